"""Tensors that lie in a run of bytes by shape and strides, as PyTorch and NumPy keep them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint.archive import MAX_RATIO, SMALL
from pumice.checkpoint.dtypes import DTYPES
from pumice.checkpoint.header import count_bits
from pumice.errors import FormatError


@dataclass(frozen=True)
class Strided:
    """One tensor: `strides` and `offset` count items, not bytes; `swapped` says that they are big-endian.

    Examples
    --------
    >>> items = memoryview(np.arange(6, dtype=np.int16)).cast("B")
    >>> Strided("I16", (2,), (3,), offset=1).read(lambda begin, end: items[begin:end])
    array([1, 4], dtype=int16)
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    swapped: bool = False

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].bits // 8

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor when it is written out."""
        return math.prod(self.shape) * self.itemsize

    @property
    def end(self) -> int:
        """Items that must be there: one behind the last that the tensor touches."""
        if 0 in self.shape:
            return self.offset
        return self.offset + 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))

    def rows(self, start: int, stop: int) -> Strided:
        """Some rows of it; a 0-d tensor is one row."""
        shape, strides = self.shape or (1,), self.strides or (1,)
        return replace(self, shape=(stop - start, *shape[1:]), strides=strides, offset=self.offset + start * strides[0])

    def read(self, view: Callable[[int, int], memoryview]) -> NDArray[Any]:
        """The values, little-endian and aligned, read-only; a view of the bytes [begin, end) that `view` gives where
        that can be."""
        item = DTYPES[self.dtype].numpy
        assert item is not None
        if 0 in self.shape:
            return np.empty(self.shape, item)
        where = item.newbyteorder(">") if self.swapped else item
        data = view(self.offset * item.itemsize, self.end * item.itemsize)
        found: NDArray[Any] = np.ndarray(self.shape, where, data, 0, [step * item.itemsize for step in self.strides])
        if self.swapped or not found.flags.aligned:
            found = np.ascontiguousarray(found, item).reshape(self.shape)
        if self.dtype == "BOOL" and found.view(np.uint8).max() > 1:
            raise FormatError(None, None, "BOOL bytes of 0 or 1", str(found.view(np.uint8).max()), None)
        found.setflags(write=False)
        return found


def bytes_of(
    read: Callable[[int, int], NDArray[Any]], shape: tuple[int, ...], nbytes: int, start: int, stop: int | None
) -> memoryview:
    """Bytes [start, stop) of a tensor in C order, from the rows that `read` gives: no more of them than that takes.

    Examples
    --------
    >>> rows = np.arange(6, dtype=np.uint8).reshape(3, 2)
    >>> bytes(bytes_of(lambda a, b: rows[a:b], (3, 2), 6, 1, 4))
    b'\\x01\\x02\\x03'
    """
    row = max(nbytes // max(shape[0] if shape else 1, 1), 1)
    stop = nbytes if stop is None else stop
    first = start // row
    found = np.ascontiguousarray(read(first, max(first, -(-stop // row)))).reshape(-1).view(np.uint8)
    return found[start - first * row : stop - first * row].data


def check_extent(place: Strided, nbytes: int, path: str, name: str) -> None:
    """Raise FormatError unless the tensor lies within its `nbytes` bytes, and is no bomb: strides of 0 repeat items."""
    if count_bits(place.shape, place.dtype) is None:
        raise FormatError(path, name, "a shape that fits the address space", f"{place.shape}"[:80], None)
    if place.end * place.itemsize > nbytes:
        rule = f"items within the {nbytes} bytes of the storage"
        got = f"offset {place.offset}, shape {place.shape}, strides {place.strides}: {place.end * place.itemsize} bytes"
        raise FormatError(path, name, rule, got[:200], None)
    if place.nbytes > max(MAX_RATIO * nbytes, SMALL):
        rule = f"at most {MAX_RATIO} bytes out of one"
        raise FormatError(path, name, rule, f"{place.nbytes} out of {nbytes}", "strides of 0: a bomb?")


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor without gaps, its last axis side by side.

    Examples
    --------
    >>> row_major((2, 3, 4))
    (12, 4, 1)
    """
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
