"""float32, float16 and bfloat16: one pattern a weight, rounded half to even."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.errors import NonFiniteError
from pumice.reference.base import F32, VALUES, Definition, Parts
from pumice.scheme import Scheme


def encode_float32(w: F32, scheme: Scheme) -> Parts:
    return {"": w}


def decode_float32(parts: Parts, scheme: Scheme, rows: int, cols: int) -> F32:
    return parts[""].reshape(rows, cols)


def encode_float16(w: F32, scheme: Scheme) -> Parts:
    with np.errstate(over="ignore", under="ignore"):
        half = w.astype(np.float16)  # IEEE 754 binary16, subnormals included
    _check_overflow(half)
    return {"": half}


def decode_float16(parts: Parts, scheme: Scheme, rows: int, cols: int) -> F32:
    return parts[""].astype(np.float32).reshape(rows, cols)


def encode_bfloat16(w: F32, scheme: Scheme) -> Parts:
    wide = w.astype(np.float64)
    exponent = np.maximum(np.frexp(wide)[1], -125)  # below 2^-126 the steps stop shrinking: subnormals
    rounded = np.ldexp(np.rint(np.ldexp(wide, 8 - exponent)), exponent - 8)  # 8 significant bits
    with np.errstate(over="ignore"):
        rounded = rounded.astype(np.float32)
    _check_overflow(rounded)
    return {"": (rounded.view(np.uint32) >> 16).astype(np.uint16)}  # the upper half of a float32


def decode_bfloat16(parts: Parts, scheme: Scheme, rows: int, cols: int) -> F32:
    return (parts[""].astype(np.uint32) << 16).view(np.float32).reshape(rows, cols)


def _check_overflow(rounded: NDArray[Any]) -> None:
    if np.isinf(rounded).any():
        raise NonFiniteError("w: expected values that the codec can hold, got one that rounds to infinity")


VALUES["float32"] = Definition(encode_float32, decode_float32)
VALUES["float16"] = Definition(encode_float16, decode_float16)
VALUES["bfloat16"] = Definition(encode_bfloat16, decode_bfloat16)
