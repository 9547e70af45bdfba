"""int2 to int8: ``w = scale * (code - zero)``, one scale (and zero) per row, or per group of columns of a row.

With float minima, ``w = scale * code + minimum``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.errors import NonFiniteError
from pumice.reference.base import F32, VALUES, Definition, Integers, Parts
from pumice.reference.bits import pack, unpack
from pumice.scheme import Scheme

HALF_MIN, HALF_MAX = 2.0**-14, 65504.0  # the smallest normal and the largest float16


def groups_of(cols: int, group: int | None) -> list[slice]:
    """The columns of each group; the last may be short, and a row has at least one group."""
    size = group or max(cols, 1)
    return [slice(start, min(start + size, cols)) for start in range(0, max(cols, 1), size)]


def exact_scale(w: F32, bits: int, asym: bool) -> F32:
    """The scale of each row of one group (rows, columns of the group), before it is rounded to its stored dtype."""
    low, high = w.min(axis=1, initial=np.inf), w.max(axis=1, initial=-np.inf)
    if w.shape[1] == 0:
        low = high = np.zeros(len(w), np.float32)
    if asym:
        low, high = np.minimum(low, 0), np.maximum(high, 0)  # so that 0 has a code
        span = high.astype(np.float64) - low.astype(np.float64)
        return np.asarray(span / (2**bits - 1), np.float32)
    largest = np.where(np.abs(high) > np.abs(low), high, low)  # of largest magnitude, with its sign
    return np.asarray(largest / np.float32(-(2 ** (bits - 1))), np.float32)


def scale_dtype(exact: F32, grouped: bool) -> type[np.floating[Any]]:
    """float32 per row; float16 per group, unless a scale of the tensor would be subnormal or overflow there."""
    size = np.abs(exact[exact != 0])
    return np.float16 if grouped and ((size >= HALF_MIN) & (size <= HALF_MAX)).all() else np.float32


def quantize(
    w: F32, bits: int, group: int | None = None, asym: bool = False
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.uint8]]:
    """Codes (rows, cols), scales and zeros (rows, groups) of a finite float32 matrix.

    Examples
    --------
    >>> codes, scales, zeros = quantize(np.array([[-1.0, 0.5, 0.75]], np.float32), bits=4)
    >>> codes, scales, zeros
    (array([[ 0, 12, 14]], dtype=uint8), array([[0.125]], dtype=float32), array([[8]], dtype=uint8))
    """
    cuts = groups_of(w.shape[1], group)
    exact = np.stack([exact_scale(w[:, cut], bits, asym) for cut in cuts], axis=1)
    scales = exact.astype(scale_dtype(exact, group is not None))
    scales += scales.dtype.type(0)  # -0.0 becomes 0.0
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    zeros = np.full(scales.shape, middle, np.uint8)
    codes = np.zeros(w.shape, np.uint8)
    for g, cut in enumerate(cuts):
        scale = scales[:, g].astype(np.float32)
        live = scale != 0  # an all-zero group has scale 0, and each code is the zero
        if asym:
            low = np.minimum(w[:, cut].min(axis=1, initial=0), 0).astype(np.float64)
            zeros[live, g] = np.clip(np.rint(-low[live] / scale[live]), 0, top)
        steps = np.zeros(w[:, cut].shape, np.float32)
        with np.errstate(under="ignore"):
            steps[live] = np.rint(w[live, cut] / scale[live, None])  # a float32 division; half to even
        codes[:, cut] = np.clip(zeros[:, g, None] + steps, 0, top)
    return codes, scales, zeros


def quantize_with_minima(
    w: F32, bits: int, group: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]:
    """Codes (rows, cols), scales and minima (rows, groups) of a finite float32 matrix.

    Examples
    --------
    >>> quantize_with_minima(np.array([[1.0, 4.0, 2.5]], np.float32), bits=2)
    (array([[0, 3, 2]], dtype=uint8), array([[1.]], dtype=float32), array([[1.]], dtype=float32))
    """
    cuts, top = groups_of(w.shape[1], group), 2**bits - 1
    low, high = np.zeros((2, len(w), len(cuts)), np.float32)
    for g, cut in enumerate(cuts):
        if cut.stop > cut.start:
            low[:, g], high[:, g] = w[:, cut].min(axis=1), w[:, cut].max(axis=1)
    exact = ((high.astype(np.float64) - low.astype(np.float64)) / top).astype(np.float32)
    # A minimum that would be subnormal matters only where it is all there is: a step is larger than 2^-14 elsewhere.
    small, large = np.abs(low[exact == 0]), np.abs(low).max(initial=0)
    fits = large <= HALF_MAX and (small[small != 0] >= HALF_MIN).all()
    dtype = scale_dtype(exact, group is not None) if fits else np.float32
    scales, minima = exact.astype(dtype) + dtype(0), low.astype(dtype) + dtype(0)  # -0.0 becomes 0.0
    codes = np.zeros(w.shape, np.uint8)
    with np.errstate(over="ignore", under="ignore"):
        if np.isinf(scales.astype(np.float32) * np.float32(top) + minima.astype(np.float32)).any():
            raise NonFiniteError(
                "w: expected groups whose range is within float32, got one whose largest code is infinite"
            )
        for g, cut in enumerate(cuts):
            scale, minimum = scales[:, g].astype(np.float32), minima[:, g].astype(np.float32)
            live = scale != 0  # a group of equal weights has scale 0, and each code is 0
            steps = np.rint((w[live, cut] - minimum[live, None]) / scale[live, None])  # in float32; half to even
            codes[live, cut] = np.clip(steps, 0, top)
    return codes, scales, minima


def bits_of(scheme: Scheme) -> int:
    return int(scheme.values.removeprefix("int"))


def encode(w: F32, scheme: Scheme) -> Parts:
    bits, asym = bits_of(scheme), "asym" in scheme.flags
    if "min" in scheme.flags:
        codes, scales, minima = quantize_with_minima(w, bits, scheme.group)
        parts: Parts = {"packed": pack(codes, bits).view("<i4"), "scale": scales, "min": minima}
        return parts | {"shape": np.array(w.shape, np.int64)}
    codes, scales, zeros = quantize(w, bits, scheme.group, asym)
    parts = {"packed": pack(codes, bits).view("<i4"), "scale": scales}
    if asym:  # along the rows, as compressed-tensors has them
        parts["zero_point"] = pack(np.ascontiguousarray(zeros.T), bits).view("<i4").T
    return parts | {"shape": np.array(w.shape, np.int64)}


def integers(parts: Parts, scheme: Scheme, rows: int, cols: int) -> Integers:
    bits = bits_of(scheme)
    codes = unpack(np.ascontiguousarray(parts["packed"]).view(np.uint8), bits, cols)
    zeros = np.full(parts["scale"].shape, 0 if "min" in parts else 2 ** (bits - 1), np.uint8)
    if "zero_point" in parts:
        zeros = unpack(np.ascontiguousarray(parts["zero_point"].T).view(np.uint8), bits, rows).T
    steps = codes.astype(np.int64)
    for g, cut in enumerate(groups_of(cols, scheme.group)):
        steps[:, cut] -= zeros[:, g, None]
    minima = parts["min"].astype(np.float32) if "min" in parts else None
    return Integers(steps, parts["scale"].astype(np.float32), scheme.group or max(cols, 1), minima)


def decode(parts: Parts, scheme: Scheme, rows: int, cols: int) -> F32:
    weights = integers(parts, scheme, rows, cols)
    w = weights.steps.astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        for g, cut in enumerate(groups_of(cols, scheme.group)):
            w[:, cut] *= weights.scales[:, g, None]
            if weights.minima is not None:
                w[:, cut] += weights.minima[:, g, None]
    return w


VALUES["int8"] = Definition(encode, decode, integers)
VALUES |= {f"int{bits}": Definition(encode, decode, integers) for bits in (2, 3, 4, 5, 6)}
