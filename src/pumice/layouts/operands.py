"""x and y of a product, as the kernels want them: C-contiguous float32 matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.values.base import F32, Array

FLOAT32 = np.dtype(np.float32)


def frozen(array: Array) -> Array:
    """A read-only view."""
    view = array.view()
    view.setflags(write=False)
    return view


def as_array(name: str, value: Any) -> Array:
    """`value` as an ndarray, without a copy where it has one: lists, NumPy's protocol, DLPack (CPU)."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:
            raise TypeError(f"{name}: expected an array in CPU memory, got {type(value).__name__}: {error}") from error
    return np.asarray(value)


def as_float32(name: str, value: Any) -> F32:
    """`value` as a float32 array; a copy only where one is needed. Raises TypeError for what is not a real number."""
    array = as_array(name, value)
    if array.dtype == np.float32:
        return array.astype(np.float32, copy=False)  # what is left is the byte order
    # bfloat16, float8 and the like of ml_dtypes cast as NumPy's own do.
    if array.dtype.kind not in "fiub" and array.dtype.type.__module__ != "ml_dtypes":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    return array.astype(np.float32)


def as_matrix(name: str, x: Any, cols: int) -> tuple[F32, tuple[int, ...] | None]:
    """x (..., cols) as a C-contiguous (batch, cols) matrix, and its leading shape; None if x is such a matrix."""
    if type(x) is np.ndarray and x.dtype is FLOAT32 and x.ndim == 2 and x.shape[1] == cols and x.flags.c_contiguous:
        return x, None
    array = as_float32(name, x)
    if array.ndim == 0 or array.shape[-1] != cols:
        raise ValueError(f"{name}: expected shape (..., {cols}), got {array.shape}")
    leading = array.shape[:-1]
    if array.ndim != 2:
        array = array.reshape(math.prod(leading), cols)
    return np.ascontiguousarray(array), leading


def as_bias(bias: Any, rows: int) -> F32 | None:
    """bias as a contiguous float32 vector of length `rows`."""
    if bias is None:
        return None
    vector = as_float32("bias", bias)
    if vector.shape != (rows,):
        raise ValueError(f"bias: expected shape ({rows},), got {vector.shape}")
    return np.ascontiguousarray(vector)


def check_out(out: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raise unless `out` can take a product of this shape."""
    if not isinstance(out, np.ndarray) or out.dtype != FLOAT32 or out.shape != shape:
        got = f"{out.dtype} of shape {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out: expected float32 of shape {shape}, got {got}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writable array, got a read-only one")


def apart(out: Array, x: Array) -> bool:
    """Whether a kernel can write `out` while it reads x: in one piece, and elsewhere."""
    if not out.flags.c_contiguous:
        return False
    if out.base is None and x.base is None:  # both own their memory
        return out is not x
    return not np.may_share_memory(out, x)
