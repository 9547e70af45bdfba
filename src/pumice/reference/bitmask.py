"""bitmask and N:M: a bit for every weight, and the values whose bit is set, row after row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.reference.base import F32, LAYOUTS, VALUES, Definition, Integers, Parts
from pumice.reference.bits import pack, unpack
from pumice.reference.integers import bits_of, quantize
from pumice.scheme import Scheme


def is_integer(scheme: Scheme) -> bool:
    return scheme.values.startswith("int")


def stored_values(w: F32, scheme: Scheme) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """What would be stored of each weight, 0 for a hole; and scales (rows, groups) of integers."""
    if is_integer(scheme):
        bits = bits_of(scheme)
        codes, scales, _ = quantize(w, bits, scheme.group)
        return (codes.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8), scales
    values = VALUES[scheme.values].encode(w, scheme)[""].copy()
    values[VALUES[scheme.values].decode({"": values}, scheme, *w.shape) == 0] = 0  # -0.0 is a hole
    return values, None


def places(values: NDArray[Any], scheme: Scheme) -> NDArray[np.bool_]:
    """Which weights are stored: those that are not 0; with N:M, the first zeros too where there are fewer than N."""
    stored: NDArray[np.bool_] = values != 0
    if scheme.layout == "bitmask":
        return stored
    kept, of = scheme.numbers
    for group in stored.reshape(-1, of):
        assert group.sum() <= kept, "the weights have the pattern"
        holes = np.flatnonzero(~group)
        group[holes[: kept - group.sum()]] = True
    return stored


def encode(w: F32, scheme: Scheme) -> Parts:
    values, scales = stored_values(w, scheme)
    stored = places(values, scheme)
    rows = [row[bits] for row, bits in zip(values, stored, strict=True)]
    if scheme.values == "int4":  # two unsigned codes a byte; a row begins with a byte
        rows = [pack(row[None] + 8, 4)[0, : -(-len(row) // 2)] for row in rows]
    dtype = np.uint8 if scheme.values == "int4" else values.dtype
    data = np.concatenate([np.zeros(0, dtype), *rows])
    if scheme.layout != "bitmask":
        kept, of = scheme.numbers
        stored_cols = w.shape[1] // of * kept
        data = data.reshape(len(w), -(-stored_cols // 2) if scheme.values == "int4" else stored_cols)
    parts: Parts = {"bitmask": np.packbits(stored, axis=1, bitorder="little"), "data": data}
    if scales is not None:
        parts["scale"] = scales
    return parts | {"shape": np.array(w.shape, np.int64)}


def scatter(parts: Parts, scheme: Scheme, rows: int, cols: int) -> NDArray[Any]:
    """The matrix of stored values, 0 where nothing is stored."""
    stored = np.unpackbits(parts["bitmask"], axis=1, count=cols, bitorder="little").astype(bool)
    data = parts["data"].reshape(-1)
    if scheme.values != "int4":
        values = np.zeros((rows, cols), data.dtype)
        values[stored] = data
        return values
    values = np.zeros((rows, cols), np.int8)
    start = 0
    for row, bits in zip(values, stored, strict=True):
        count = int(bits.sum())
        packed = np.zeros((1, -(-count // 8) * 4), np.uint8)  # whole words, as the stream has them
        packed[0, : -(-count // 2)] = data[start : start - (-count // 2)]
        row[bits] = unpack(packed, 4, count)[0].astype(np.int8) - 8
        start -= -count // 2
    return values


def integers(parts: Parts, scheme: Scheme, rows: int, cols: int) -> Integers | None:
    if not is_integer(scheme):
        return None
    steps = scatter(parts, scheme, rows, cols).astype(np.int64)
    return Integers(steps, parts["scale"].astype(np.float32), scheme.group or max(cols, 1))


def decode(parts: Parts, scheme: Scheme, rows: int, cols: int) -> F32:
    values = scatter(parts, scheme, rows, cols)
    if not is_integer(scheme):
        return VALUES[scheme.values].decode({"": values}, scheme, rows, cols)
    group = scheme.group or max(cols, 1)
    with np.errstate(over="ignore", under="ignore"):
        scaled: F32 = values.astype(np.float32) * parts["scale"].astype(np.float32)[:, np.arange(cols) // group]
    return scaled


LAYOUTS["bitmask"] = Definition(encode, decode, integers)
LAYOUTS["nm"] = Definition(encode, decode, integers)
