"""`compress_`: a model's weights become compact, in place."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pumice.errors import NonFiniteError
from pumice.layouts import CompactArray
from pumice.ops import compress
from pumice.options import ACTIVATIONS, check_choice
from pumice.recipe import Recipe
from pumice.report import Report, TensorReport, relative_error
from pumice.scheme import Scheme
from pumice.torch.layers import dense, info, parameter, weighty
from pumice.torch.modules import CompactConv, CompactEmbedding, CompactLinear, CompactModule


def compress_(
    model: nn.Module,
    scheme: str | Scheme | None = None,
    *,
    recipe: Recipe | None = None,
    tensors: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    keep_embeddings: bool = False,
    activations: str = "int16",
) -> Report:
    """Put compact layers in the place of a model's Linear, Embedding and Conv layers.

    What happens to which weight is decided by the rules of `pumice.convert`: the same recipes and names, the same
    defaults. Weights that are shared stay shared. Layers that no layer here computes (convolutions in groups,
    embeddings with max_norm) stay as they are, and the report says so.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU. The layers are replaced in it; a model that is a Linear itself cannot be.
    scheme, recipe, tensors, ignore, keep_embeddings
        As in `pumice.convert`.
    activations : {"int16", "int8", "float32"}
        Of the products, as in `pumice.linear`.

    Returns
    -------
    Report
        Scheme, bytes and error of every weight.

    Raises
    ------
    ValueError
        Weights on another device, or neither scheme nor rules.
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
    plan = Recipe.of(scheme, recipe, tensors=tensors, ignore=ignore, keep_embeddings=keep_embeddings).without_methods()
    layers = dict(weighty(model))
    if "weight" in layers:
        raise ValueError(f"model: expected a module that holds layers, got a {type(model).__name__} itself")
    infos = {name: info(name, parameter(layer)) for name, layer in layers.items()}
    treatments = plan.plan(infos)
    arrays: dict[int, CompactArray] = {}  # by the identity of the parameter: layers that share it share the array
    reports: list[TensorReport] = []
    chosen: dict[str, CompactModule] = {}
    for name, layer in layers.items():
        weight, treatment, about = parameter(layer), treatments[name], infos[name]
        why = _unsupported(layer) or treatment.why
        if treatment.scheme is None or _unsupported(layer):
            reports.append(TensorReport(name, about.shape, about.dtype, about.nbytes, about.nbytes, why=why))
            continue
        shared = id(weight) in arrays
        if not shared:
            arrays[id(weight)] = _compressed(name, weight, treatment.scheme)
        array = arrays[id(weight)]
        before, after = (0, 0) if shared else (about.nbytes, array.nbytes)
        error = None if shared else relative_error(dense(weight), array.to_dense())
        why = f"{why}, shared" if shared else why
        reports.append(TensorReport(name, about.shape, array.scheme, before, after, error, why))
        chosen[name] = _compact(layer, array, activations)
    for name, layer in chosen.items():  # from here on nothing fails
        parent, _, last = name.removesuffix(".weight").rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    return Report(type(model).__name__, type(model).__name__, tuple(reports), time.perf_counter() - start)


def _unsupported(layer: nn.Module) -> str:
    """Why a layer stays as it is; "" if it need not."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.groups != 1:
        return f"a convolution in {layer.groups} groups"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "an embedding with max_norm"
    return ""


def _compressed(name: str, weight: Tensor, scheme: Scheme) -> CompactArray:
    try:
        array: CompactArray = compress(dense(weight).reshape(len(weight), -1), scheme)
    except NonFiniteError as error:
        raise NonFiniteError(f"{name}: {error}") from error
    return array


def _compact(layer: Any, array: CompactArray, activations: str) -> CompactModule:
    if isinstance(layer, nn.Embedding):
        return CompactEmbedding(array, layer.padding_idx, dtype=layer.weight.dtype)
    if isinstance(layer, nn.Linear):
        return CompactLinear(array, layer.bias, activations=activations)
    return CompactConv(array, layer, activations=activations)
