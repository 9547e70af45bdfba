"""Floating point of 8 bits: what each of the 256 codes means."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pumice.values.base import F32


@lru_cache
def minifloat_values(exponent_bits: int, mantissa_bits: int, special: str) -> F32:
    """The values of all 256 codes, each exact in float32; read-only.

    Parameters
    ----------
    exponent_bits, mantissa_bits : int
        Beside the sign, which only "scale" has not.
    special : {"fn", "ieee", "fnuz", "scale"}
        What the codes of the largest exponent mean. OCP "fn" has no infinity and one NaN pattern a sign; "fnuz" has no
        -0, whose pattern is the only NaN, and a bias one higher; "scale" is OCP MX's E8M0 (arXiv 2209.05433,
        2206.02915; OCP MX 1.0).

    Examples
    --------
    >>> minifloat_values(4, 3, "fn")[[0x01, 0x38, 0x7E, 0x7F]].tolist()
    [0.001953125, 1.0, 448.0, nan]
    """
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = codes & ((1 << mantissa_bits) - 1)
    if special == "scale":  # powers of two only: no sign, no zero, no subnormals
        values = np.ldexp(1.0, exponent - 127)
        values[255] = np.nan
        return _table(values)
    bias = (1 << (exponent_bits - 1)) - (0 if special == "fnuz" else 1)
    step = np.ldexp(1.0, -mantissa_bits)
    normal = np.ldexp(1.0 + mantissa * step, exponent - bias)
    values = np.where(exponent == 0, np.ldexp(mantissa * step, 1 - bias), normal)
    top = exponent == (1 << exponent_bits) - 1
    if special == "ieee":
        values[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    elif special == "fn":
        values[codes & 0x7F == 0x7F] = np.nan
    values = np.where(codes >= 128, -values, values)
    if special == "fnuz":
        values[0x80] = np.nan
    return _table(values)


def _table(values: object) -> F32:
    table = np.asarray(values, np.float32)
    table.setflags(write=False)
    return table
