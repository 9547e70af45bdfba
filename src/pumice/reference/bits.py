"""Bit streams: codes of a few bits each, packed along a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = 32  # bits; each row ends on a whole word


def pack(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """(rows, cols) codes -> (rows, row_bytes): bit i of code k is bit ``k * bits + i`` of its row, lowest bit first.

    Examples
    --------
    >>> pack(np.array([[0x1, 0x2, 0x3]]), bits=4)
    array([[33,  3,  0,  0]], dtype=uint8)
    """
    rows, cols = codes.shape
    words = -(-cols * bits // WORD)
    stream = np.zeros((rows, words * WORD), np.uint8)
    for bit in range(bits):
        stream[:, bit : cols * bits : bits] = codes >> bit & 1
    return np.packbits(stream, axis=1, bitorder="little")


def unpack(packed: NDArray[np.uint8], bits: int, cols: int) -> NDArray[np.uint8]:
    """(rows, row_bytes) -> (rows, cols): the inverse of `pack`.

    Examples
    --------
    >>> unpack(np.array([[33, 3, 0, 0]], np.uint8), bits=4, cols=3)
    array([[1, 2, 3]], dtype=uint8)
    """
    stream = np.unpackbits(packed, axis=1, bitorder="little")
    codes = np.zeros((len(packed), cols), np.uint8)
    for bit in range(bits):
        codes |= stream[:, bit : cols * bits : bits] << np.uint8(bit)
    return codes
