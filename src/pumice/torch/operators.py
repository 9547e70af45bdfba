"""The custom operators `pumice::linear` and `pumice::rows`: what torch.compile and autograd see of a compact weight.

A CompactArray is no tensor, so an operator is given its number. Arrays live as long as their modules do: the table
below holds them weakly. Memory is shared both ways, nothing is copied but what has another dtype or stride.
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

_arrays: weakref.WeakValueDictionary[int, CompactArray] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def enroll(w: CompactArray) -> int:
    """The number under which the operators know an array while it lives."""
    number = next(_numbers)
    _arrays[number] = w
    return number


def _array(number: int) -> CompactArray:
    w = _arrays.get(number)
    if w is None:
        raise RuntimeError(f"weight: expected a number of a living array, got {number}: of a module that is gone?")
    return w


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


_LIBRARY = torch.library.Library("pumice", "DEF")
_LIBRARY.define("linear(Tensor x, int weight, int rows, Tensor? bias, str activations) -> Tensor")
_LIBRARY.define("linear_backward(Tensor gradient, int weight, int cols) -> Tensor")
_LIBRARY.define("rows(Tensor ids, int weight, int cols) -> Tensor")
for _name, _run, _shape in (
    ("linear", _linear, _linear_shape),
    ("linear_backward", _linear_backward, _linear_backward_shape),
    ("rows", _rows, _rows_shape),
):
    _LIBRARY.impl(_name, _run, "CPU")
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
