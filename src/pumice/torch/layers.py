"""The layers of a model that have a weight which pumice can prune, quantize or store; their parameters and names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pumice.checkpoint import TensorInfo
from pumice.errors import near
from pumice.recipe import EMBEDDING

LAYERS = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d)
CONV1D = ("transformers.pytorch_utils", "Conv1D")
FLOATS = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}


class Trained(nn.Module):
    """A parametrization behind which the parameter is the weight itself: what is stored is encoded from it."""


def kind_of(layer: nn.Module) -> type | None:
    """Which layer with a weight this is: one of `LAYERS`, or the Conv1D of transformers (GPT-2); None for others."""
    for base in type(layer).__mro__:
        if base in LAYERS or (base.__module__, base.__name__) == CONV1D:
            return base
    return None


def in_axis(layer: nn.Module) -> int:
    """Axis of the inputs in the weight: 1, as checkpoints of torch have it, but 0 for the Conv1D of transformers."""
    return 1 if isinstance(layer, LAYERS) else 0


def weighty(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name of the weight, layer) for each place of such a layer; a layer in two places comes twice."""
    for name, module in model.named_modules(remove_duplicate=False):
        if kind_of(module) is not None:
            yield f"{name}.weight" if name else "weight", module


def parameter(layer: Any) -> Tensor:
    """The weight as an optimiser sees it, where only `Trained` stands between; else what the layer computes with."""
    if parametrize.is_parametrized(layer, "weight") and isinstance(layer.parametrizations.weight[0], Trained):
        original: Tensor = layer.parametrizations.weight.original
        return original
    weight: Tensor = layer.weight
    return weight


def matching(model: nn.Module, match: str | Sequence[str] | None) -> dict[str, Any]:
    """Layers by the name of their weight: what a regular expression finds, or all but embeddings and output heads.

    A weight in several places counts at the first. Raises ValueError for an expression that finds none.
    """
    seen: set[int] = set()
    layers = {}
    for name, layer in weighty(model):
        if id(parameter(layer)) not in seen:
            seen.add(id(parameter(layer)))
            layers[name] = layer
    if match is None:
        found = {n: m for n, m in layers.items() if not isinstance(m, nn.Embedding) and not EMBEDDING.search(n)}
        if not found:
            raise ValueError(f"model: expected Linear or Conv layers, got a {type(model).__name__} without")
        return found
    patterns = [match] if isinstance(match, str) else list(match)
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in layers):
            hint = near(pattern, layers, 0.3)
            raise ValueError(f"match: expected a pattern that finds the name of a weight, got {pattern!r}{hint}")
    return {name: m for name, m in layers.items() if any(re.search(pattern, name) for pattern in patterns)}


def info(name: str, weight: Tensor, axis: int = 1) -> TensorInfo:
    """Shape (outputs, inputs ...), dtype and bytes; raises for a weight that is not on the CPU or no real number."""
    if weight.device.type != "cpu":
        raise ValueError(f"{name}: expected a weight on the CPU, got one on {weight.device}")
    if weight.dtype not in FLOATS:
        raise TypeError(f"{name}: expected one of {', '.join(map(str, FLOATS))}, got {weight.dtype}")
    shape = tuple(weight.shape) if axis else tuple(weight.shape)[::-1]
    return TensorInfo(shape, FLOATS[weight.dtype], weight.numel() * weight.element_size())


def dense(weight: Tensor, axis: int = 1) -> np.ndarray[Any, Any]:
    """float32, (outputs, inputs ...) if its inputs are along `axis`; a view of a weight that is."""
    array: np.ndarray[Any, Any] = weight.detach().to(torch.float32).numpy()
    return array if axis else np.ascontiguousarray(array.T)


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """model(inputs): a mapping holds keywords, a tuple arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
