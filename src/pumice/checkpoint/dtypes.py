"""The dtypes of safetensors: their bits, the NumPy dtype that holds them, and exact widening to float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.values.minifloat import minifloat_values


@dataclass(frozen=True)
class Dtype:
    """One dtype name. `numpy` holds the stored pattern; None for those packed in less than a byte."""

    name: str
    bits: int
    numpy: np.dtype[Any] | None
    minifloat: tuple[int, int, str] | None = None  # exponent bits, mantissa bits, special values


def _table() -> dict[str, Dtype]:
    whole = {
        "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
        "U64": "<u8", "I64": "<i8", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
    }  # fmt: skip
    table = {name: Dtype(name, 8 * np.dtype(code).itemsize, np.dtype(code)) for name, code in whole.items()}
    minifloats = {
        "F8_E5M2": (5, 2, "ieee"), "F8_E4M3": (4, 3, "fn"), "F8_E8M0": (8, 0, "scale"),
        "F8_E4M3FNUZ": (4, 3, "fnuz"), "F8_E5M2FNUZ": (5, 2, "fnuz"),
    }  # fmt: skip
    for name, kind in minifloats.items():
        table[name] = Dtype(name, 8, np.dtype("u1"), kind)
    # No specification fixes the order of the codes within the bytes, so these are carried, not decoded.
    for name, bits in {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}.items():
        table[name] = Dtype(name, bits, None)
    return table


DTYPES = _table()

_NAMES = {
    dtype.numpy.str: name
    for name, dtype in DTYPES.items()
    if dtype.numpy is not None and dtype.minifloat is None and name != "BF16"
}


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The safetensors name of a NumPy dtype.

    Examples
    --------
    >>> dtype_name(np.dtype("float16"))
    'F16'
    """
    name = _NAMES.get(dtype.newbyteorder("<").str)
    if name is None:
        raise TypeError(f"dtype: expected one of {', '.join(_NAMES.values())}, got {dtype}")
    return name


def float32_of(halves: NDArray[Any], bfloat16: bool = False) -> NDArray[np.float32]:
    """float16, or uint16 patterns of bfloat16, as float32."""
    return native.decode_halves(np.ascontiguousarray(halves).view(np.uint16), bfloat16)


def widen(stored: NDArray[Any], name: str) -> NDArray[Any]:
    """Stored patterns -> values: what NumPy lacks (BF16, F8) becomes float32, exactly; the rest stays.

    Examples
    --------
    >>> widen(np.array([0x3FC0], np.uint16), "BF16")
    array([1.5], dtype=float32)
    """
    minifloat = DTYPES[name].minifloat
    if minifloat is not None:
        values: NDArray[Any] = minifloat_values(*minifloat)[stored]
        return values
    if name == "BF16":
        return float32_of(stored, bfloat16=True)
    return stored


def rows_of(stored: NDArray[Any], name: str) -> NDArray[Any]:
    """As `widen`, and float16 becomes float32, too: what `Reader.rows` gives.

    Examples
    --------
    >>> rows_of(np.array([1.5], np.float16), "F16")
    array([1.5], dtype=float32)
    """
    return float32_of(stored) if name == "F16" else widen(stored, name)
