"""The custom operators `pumice::linear`, `rows` and `decoded`: what torch.compile and autograd see of a compact weight.

A CompactArray is no tensor, so an operator is given the number of the `Slot` that holds it. Slots live as long as their
modules do: the table below holds them weakly. Memory is shared both ways, nothing is copied but what has another dtype
or stride.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pumice.layouts import CompactArray, Transposed
from pumice.ops import linear

_slots: weakref.WeakValueDictionary[int, Slot] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class Slot:
    """Where the layers that share a weight find it: loading puts another array there, and graphs keep the number."""

    def __init__(self, array: CompactArray) -> None:
        self.array = array
        self.given: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()  # parts in state dicts
        self.number = next(_numbers)
        _slots[self.number] = self

    def put(self, array: CompactArray) -> None:
        """Hold another array from now on."""
        self.array = array
        self.given.clear()

    def __reduce__(self) -> Any:
        return Slot, (self.array,)  # a copy has a number of its own


def _array(number: int) -> CompactArray:
    slot = _slots.get(number)
    if slot is None:
        raise RuntimeError(f"weight: expected a number of a living weight, got {number}: of a module that is gone?")
    return slot.array


def as_numpy(x: Tensor) -> Any:
    """float32 and C-contiguous; a view wherever x is so already."""
    return x.detach().to(torch.float32).contiguous().numpy()


def _linear(x: Tensor, weight: int, rows: int, bias: Tensor | None, activations: str) -> Tensor:
    y = torch.empty((*x.shape[:-1], rows), dtype=torch.float32)
    b = None if bias is None else as_numpy(bias)
    linear(as_numpy(x), _array(weight), b, activations=activations, out=y.numpy())
    return y.to(x.dtype)


def _linear_shape(x: Tensor, weight: int, rows: int, bias: Tensor | None, activations: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _linear_backward(gradient: Tensor, weight: int, cols: int) -> Tensor:
    """gradient @ w: the weight itself is fixed and has none."""
    w = _array(weight)
    flat = as_numpy(gradient).reshape(-1, gradient.shape[-1])
    found = torch.from_numpy(np.ascontiguousarray(flat @ w, np.float32))
    return found.reshape(*gradient.shape[:-1], cols).to(gradient.dtype)


def _linear_backward_shape(gradient: Tensor, weight: int, cols: int) -> Tensor:
    return gradient.new_empty((*gradient.shape[:-1], cols))


def _rows(ids: Tensor, weight: int, cols: int) -> Tensor:
    w = _array(weight)
    if isinstance(w, Transposed):
        raise TypeError("weight: expected an embedding of shape (rows, cols), got a transposed array")
    return torch.from_numpy(w.take(ids.numpy()).reshape(*ids.shape, cols))


def _rows_shape(ids: Tensor, weight: int, cols: int) -> Tensor:
    return ids.new_empty((*ids.shape, cols), dtype=torch.float32)


def _decoded(weight: int, rows: int, cols: int) -> Tensor:
    return torch.from_numpy(_array(weight).to_dense())


def _decoded_shape(weight: int, rows: int, cols: int) -> Tensor:
    return torch.empty((rows, cols), dtype=torch.float32)


_LIBRARY = torch.library.Library("pumice", "DEF")
_LIBRARY.define("linear(Tensor x, int weight, int rows, Tensor? bias, str activations) -> Tensor")
_LIBRARY.define("linear_backward(Tensor gradient, int weight, int cols) -> Tensor")
_LIBRARY.define("rows(Tensor ids, int weight, int cols) -> Tensor")
_LIBRARY.define("decoded(int weight, int rows, int cols) -> Tensor")
for _name, _run, _shape in (
    ("linear", _linear, _linear_shape),
    ("linear_backward", _linear_backward, _linear_backward_shape),
    ("rows", _rows, _rows_shape),
    ("decoded", _decoded, _decoded_shape),
):
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd" if _name == "decoded" else "CPU")
    torch.library.register_fake(f"pumice::{_name}", _shape, lib=_LIBRARY)


def _keep_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, ctx.weight, _, bias, _ = inputs
    ctx.cols, ctx.bias_dtype = x.shape[-1], None if bias is None else bias.dtype


def _backward(ctx: Any, gradient: Tensor) -> Any:
    x = torch.ops.pumice.linear_backward(gradient, ctx.weight, ctx.cols) if ctx.needs_input_grad[0] else None
    bias = None
    if ctx.bias_dtype is not None and ctx.needs_input_grad[3]:
        bias = gradient.reshape(-1, gradient.shape[-1]).sum(0).to(ctx.bias_dtype)
    return x, None, None, bias, None


torch.library.register_autograd("pumice::linear", _backward, setup_context=_keep_context, lib=_LIBRARY)
