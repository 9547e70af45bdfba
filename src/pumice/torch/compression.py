"""`compress_`: a model's weights become compact, in place."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from pumice.conversion.in_memory import ModelWeight, compact_weights
from pumice.layouts import CompactArray
from pumice.options import ACTIVATIONS, check_choice
from pumice.recipe import Recipe
from pumice.report import Report
from pumice.scheme import Scheme
from pumice.statistics import Moments
from pumice.torch.layers import FLOATS, dense, in_axis, info, kind_of, parameter, weighty
from pumice.torch.modules import CompactConv, CompactEmbedding, CompactLinear, CompactModule

PARAMETRIZED = "parametrizations."  # in the name of what a layer's weight is computed from


def compress_(
    model: nn.Module,
    scheme: str | Scheme | None = None,
    *,
    recipe: Recipe | None = None,
    tensors: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    keep_embeddings: bool = False,
    prune: str | None = None,
    method: str | None = None,
    stats: Mapping[str, Moments] | None = None,
    seed: int = 0,
    activations: str = "int16",
    **options: Any,
) -> Report:
    """Put compact layers in the place of a model's Linear, Embedding and Conv layers.

    What happens to which weight is decided by the rules of `pumice.convert`: the same recipes and names, the same
    defaults. Weights that are shared stay shared. Layers that no layer here computes (convolutions in groups,
    embeddings with max_norm, subclasses with a forward of their own) stay as they are with all that share their weight,
    and so do matrices of other modules; the report says so.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU. The layers are replaced in it; a model that is a Linear itself cannot be.
    scheme, recipe, tensors, ignore, keep_embeddings, prune, method, seed, **options
        As in `pumice.convert`.
    stats : CalibrationStats, optional
        Of `collect`: for methods that need data. The report then says what the output of each layer lost.
    activations : {"int16", "int8", "float32"}
        Of the products, as in `pumice.linear`.

    Returns
    -------
    Report
        Scheme, bytes and error of every weight.

    Raises
    ------
    ValueError
        A model without such layers, weights on another device, neither scheme nor rules, or no moments where a method
        needs them.
    RecipeError, SchemeError, NonFiniteError
        As in `pumice.convert`; the model is then as it was.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    >>> report = compress_(model, "int8")
    >>> model[0]
    CompactLinear(in_features=64, out_features=32, bias=True, int8)
    """
    check_choice("activations", activations, ACTIVATIONS)
    start = time.perf_counter()
    asked = Recipe.of(
        scheme, recipe, tensors=tensors, ignore=ignore, keep_embeddings=keep_embeddings, prune=prune, method=method,
        options=options,
    )  # fmt: skip
    layers = dict(weighty(model))
    if "weight" in layers:
        raise ValueError(f"model: expected a module that holds layers, got a {type(model).__name__} itself")
    if not layers:
        raise ValueError(f"model: expected Linear, Embedding or Conv layers, got a {type(model).__name__} without")
    weights = {name: _weight(name, layer) for name, layer in layers.items()}
    arrays, reports = compact_weights(weights | dict(_others(model)), asked, stats, seed)
    first: dict[int, CompactModule] = {}
    for name, array in arrays.items():  # from here on nothing fails
        parent, _, last = name.removesuffix(".weight").rpartition(".")
        compact = _compact(layers[name], array, activations)
        compact.tie(first.setdefault(id(array), compact))
        setattr(model.get_submodule(parent), last, compact)
    return Report(type(model).__name__, type(model).__name__, reports, time.perf_counter() - start)


def _weight(name: str, layer: nn.Module) -> ModelWeight:
    weight, axis = parameter(layer), in_axis(layer)
    return ModelWeight(
        info(name, weight, axis),
        lambda: dense(weight, axis).reshape(weight.shape[1 - axis], -1),
        id(weight),
        _unsupported(layer),
    )


def _others(model: nn.Module) -> Iterator[tuple[str, ModelWeight]]:
    """Matrices that no layer here could hold, such as all experts in one: they stay, and the report says so."""
    held = {id(parameter(layer)) for _, layer in weighty(model)}
    for prefix, module in model.named_modules():
        for last, weight in module.named_parameters(recurse=False):
            name = f"{prefix}.{last}" if prefix else last
            if weight.dim() >= 2 and weight.dtype in FLOATS and id(weight) not in held and PARAMETRIZED not in name:
                why = f"of a {type(module).__name__}"
                yield name, ModelWeight(info(name, weight), partial(dense, weight), id(weight), why)


def _unsupported(layer: nn.Module) -> str:
    """Why a layer stays as it is; "" if it need not."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups != 1:
        return f"a convolution in {layer.groups} groups"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "an embedding with max_norm"
    own = any(
        getattr(type(layer), f, None) is not getattr(kind_of(layer), f, None) for f in ("forward", "_conv_forward")
    )
    return f"a {type(layer).__name__}, whose forward is its own" if own or "forward" in vars(layer) else ""


def _compact(layer: Any, array: CompactArray, activations: str) -> CompactModule:
    if isinstance(layer, nn.Embedding):
        return CompactEmbedding(array, layer.padding_idx, dtype=layer.weight.dtype)
    if isinstance(layer, nn.Linear) or in_axis(layer) == 0:
        return CompactLinear(array, layer.bias, activations=activations, dtype=layer.weight.dtype)
    return CompactConv(array, layer, activations=activations)
