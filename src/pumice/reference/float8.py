"""float8: ``w = scale * value``, each value one of the 253 finite numbers of OCP E4M3FN, or NaN."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pumice.reference.base import F32, VALUES, Definition, Parts
from pumice.reference.integers import groups_of, scale_dtype
from pumice.scheme import Scheme

LARGEST = 448.0


def value(code: int) -> float:
    """What a code means: sign 1 | exponent 4 | mantissa 3, bias 7; all ones is NaN, there is no infinity.

    Examples
    --------
    >>> value(0x7E), value(0x01), value(0x80), value(0x38)
    (448.0, 0.001953125, -0.0, 1.0)
    """
    sign = -1.0 if code >> 7 else 1.0
    exponent, mantissa = code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return float(sign * mantissa * 2.0**-9)
    return float(sign * (8 + mantissa) * 2.0 ** (exponent - 10))


def nearest(x: F32) -> NDArray[np.uint8]:
    """The code of the nearest value, of two equally near ones the even code; beyond 448 that of 448.

    Examples
    --------
    >>> nearest(np.array([1.0, 1.0625, -1000.0], np.float32))
    array([ 56,  56, 254], dtype=uint8)
    """
    sizes = np.array([value(code) for code in range(0x7F)])
    distance = np.abs(np.abs(x).astype(np.float64)[..., None] - sizes)
    near = distance == distance.min(axis=-1, keepdims=True)
    codes = np.arange(0x7F)
    first, last = near.argmax(axis=-1), np.where(near, codes, 0).max(axis=-1)
    even = np.where(first % 2 == 0, first, last)
    return np.asarray(even + 128 * np.signbit(x), np.uint8)


def encode(w: F32, scheme: Scheme) -> Parts:
    cuts = groups_of(w.shape[1], scheme.group)
    exact = np.stack([np.abs(w[:, cut]).max(axis=1, initial=0) / np.float32(LARGEST) for cut in cuts], axis=1)
    scales = exact.astype(scale_dtype(exact, scheme.group is not None))
    codes = np.zeros(w.shape, np.uint8)
    for g, cut in enumerate(cuts):
        scale = scales[:, g].astype(np.float32)
        live = scale != 0  # of a group of zeros, or of weights too small for any scale, each code is 0
        codes[live, cut] = nearest(w[live, cut] / scale[live, None])  # a float32 division
    return {"": codes, "scale": scales}


def decode(parts: Parts, scheme: Scheme, rows: int, cols: int) -> F32:
    w = np.array([value(code) for code in range(256)], np.float32)[parts[""].reshape(rows, cols)]
    with np.errstate(over="ignore", under="ignore"):
        for g, cut in enumerate(groups_of(cols, scheme.group)):
            w[:, cut] *= parts["scale"][:, g, None].astype(np.float32)
    return w


VALUES["float8"] = Definition(encode, decode)
