"""csr and bsr: compressed rows of R x C blocks that are not all 0. csr is the case of 1 x 1 blocks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.reference.base import F32, LAYOUTS, VALUES, Definition, Integers, Parts
from pumice.reference.integers import bits_of, quantize
from pumice.scheme import Scheme


def block_of(scheme: Scheme) -> tuple[int, int]:
    """(R, C): rows and columns of a block."""
    height, width = scheme.numbers or (1, 1)
    return height, width


def stored_values(w: F32, scheme: Scheme) -> tuple[NDArray[Any], F32 | None]:
    """The matrix of what is stored: floats as their codec has them, or signed codes with one float32 scale per row."""
    if scheme.values == "float32":
        return w, None
    if not scheme.values.startswith("int"):
        rounded = VALUES[scheme.values].encode(w, scheme)[""]
        return np.where(stored(rounded, scheme), rounded, rounded.dtype.type(0)), None  # -0.0 becomes 0
    codes, scales, _ = quantize(w, bits_of(scheme))
    return (codes.astype(np.int16) - 2 ** (bits_of(scheme) - 1)).astype(np.int8), scales


def stored(tile: NDArray[Any], scheme: Scheme) -> NDArray[np.bool_]:
    """What of a tile is no hole; -0.0 is one, and so is a weight whose code is 0."""
    magnitude = tile & 0x7FFF if scheme.values == "bfloat16" else tile
    return np.asarray(magnitude != 0)


def two_a_byte(codes: NDArray[np.int8], indptr: NDArray[np.int64]) -> NDArray[np.uint8]:
    """int4 of csr: code + 8, two a byte, the first in the low half; each row begins on a byte."""
    packed: list[int] = []
    for first, last in itertools.pairwise(indptr):
        row = [int(code) + 8 for code in codes[first:last]]
        row += [0] * (len(row) % 2)
        packed += [low | high << 4 for low, high in zip(row[::2], row[1::2], strict=True)]
    return np.array(packed, np.uint8)


def one_a_byte(packed: NDArray[np.uint8], indptr: NDArray[np.int64]) -> NDArray[np.int8]:
    """The inverse of `two_a_byte`."""
    codes, start = [], 0
    for count in np.diff(indptr):
        codes += [int(packed[start + i // 2] >> 4 * (i % 2) & 15) - 8 for i in range(count)]
        start += (count + 1) // 2
    return np.array(codes, np.int8)


def encode(w: F32, scheme: Scheme) -> Parts:
    height, width = block_of(scheme)
    values, scales = stored_values(w, scheme)
    (rows, cols), block_cols = w.shape, -(-w.shape[1] // width)
    indptr, indices, data = [0], [], []
    for top in range(0, rows, height):
        for column in range(block_cols):
            tile = values[top : top + height, column * width : (column + 1) * width]
            if stored(tile, scheme).any():
                block = np.zeros((height, width), values.dtype)  # ragged edges are padded
                block[: tile.shape[0], : tile.shape[1]] = tile
                indices.append(column)
                data.append(block)
        indptr.append(len(indices))
    held = np.array(data, values.dtype).reshape(-1, *scheme.numbers)
    parts: Parts = {
        "indptr": np.array(indptr, np.int64),
        "indices": np.array(indices, np.uint16 if block_cols <= 65536 else np.uint32),
        "data": held,
    }
    if scheme.values == "int4" and scheme.layout == "csr":
        parts["data"] = two_a_byte(parts["data"], parts["indptr"])
    elif scheme.values == "int4":  # two unsigned codes a byte, in the order of a block, the first one in its low half
        pairs = (held + 8).astype(np.uint8).reshape(len(held), height * width // 2, 2)
        parts["data"] = pairs[:, :, 0] | pairs[:, :, 1] << 4
    if scales is not None:
        parts["scale"] = scales
    return parts | {"shape": np.array([rows, cols], np.int64)}


def scatter(parts: Parts, scheme: Scheme, rows: int, cols: int) -> NDArray[Any]:
    """The matrix of what is stored, 0 where nothing is: float32, or integers."""
    height, width = block_of(scheme)
    block_cols, indptr, data = -(-cols // width), parts["indptr"], parts["data"]
    if scheme.values == "int4" and scheme.layout == "csr":
        data = one_a_byte(data, indptr)
    elif scheme.values == "int4":
        data = np.stack([data & 15, data >> 4], axis=-1).astype(np.int8) - 8
    if scheme.values in ("float16", "bfloat16"):
        data = VALUES[scheme.values].decode({"": data}, scheme, len(data), height * width)
    data = data.reshape(len(parts["indices"]), height, width)
    values = np.zeros(((len(indptr) - 1) * height, block_cols * width), data.dtype)
    for i in range(len(indptr) - 1):
        for b in range(indptr[i], indptr[i + 1]):
            left = int(parts["indices"][b]) * width
            values[i * height : (i + 1) * height, left : left + width] = data[b]
    return values[:rows, :cols]


def integers(parts: Parts, scheme: Scheme, rows: int, cols: int) -> Integers | None:
    if "scale" not in parts:
        return None
    return Integers(scatter(parts, scheme, rows, cols).astype(np.int64), parts["scale"], max(cols, 1))


def decode(parts: Parts, scheme: Scheme, rows: int, cols: int) -> F32:
    values = scatter(parts, scheme, rows, cols)
    if "scale" not in parts:
        return values.astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float32) * parts["scale"]


LAYOUTS["csr"] = Definition(encode, decode, integers)
LAYOUTS["bsr"] = Definition(encode, decode, integers)
