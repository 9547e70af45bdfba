"""Memory for weights, on huge pages.

A product with weights from DRAM reads each of them once, so on small pages it waits for the tables of the pages, too:
sparse layouts took a seventh to a quarter longer (docs/performance.md). Linux gives huge pages of 2 MB on request, but
few arrays are larger than that. So arrays share blocks of `BLOCK` bytes, one behind the other; a block goes when the
last array in it does. What is never written takes no memory, but for the rest of a huge page.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

BLOCK = 16 << 20  # bytes that arrays share; larger ones have their own
SMALL = 64 << 10  # bytes below which NumPy's memory is as good
HUGE_PAGE, LINE = 2 << 20, 64
AVAILABLE = hasattr(mmap, "MADV_HUGEPAGE")


class Anonymous(mmap.mmap):
    """Memory of its own, as opposed to a mapped file."""


class Blocks:
    """Where the next array goes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._block: NDArray[np.uint8] | None = None
        self._used = 0

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """Bytes that begin a cache line, alone or behind those that were taken before."""
        if nbytes > BLOCK:
            return _mapped(nbytes)
        with self._lock:
            if self._block is None or self._used + nbytes > BLOCK:
                self._block, self._used = _mapped(BLOCK), 0
            start = self._used
            self._used += -(-nbytes // LINE) * LINE
            return self._block[start : start + nbytes]


def _mapped(nbytes: int) -> NDArray[np.uint8]:
    """Zeros of their own that begin a huge page."""
    memory = Anonymous(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)  # which unmaps it when no array is left
    first = -whole.ctypes.data % HUGE_PAGE
    return whole[first : first + nbytes]


_blocks = Blocks()
if hasattr(os, "register_at_fork"):  # a lock that another thread holds stays locked in the child
    os.register_at_fork(after_in_child=lambda: _blocks.__init__())  # type: ignore[misc]


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array for weights, C-contiguous, with whatever is in it.

    Parameters
    ----------
    shape : int or tuple of int
    dtype : dtype

    Examples
    --------
    >>> w = empty((256, 1024), np.float32)
    >>> w.shape, w.flags.c_contiguous, w.ctypes.data % 64
    ((256, 1024), True, 0)
    """
    shape, dtype = (shape,) if isinstance(shape, int) else shape, np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < SMALL or not AVAILABLE:
        return np.empty(shape, dtype)
    return _blocks.take(nbytes).view(dtype).reshape(shape)


def copied(array: NDArray[Any], dtype: DTypeLike | None = None) -> NDArray[Any]:
    """A C-contiguous copy for weights, in another dtype if one is given.

    Examples
    --------
    >>> copied(np.arange(6).reshape(2, 3).T).tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    copy = empty(array.shape, dtype or array.dtype)
    copy[...] = array
    return copy


def shrunk(array: NDArray[Any], count: int) -> NDArray[Any]:
    """The first `count` entries of an array that was made here or by NumPy and that nobody else has; the rest goes.

    In a block its addresses stay taken, but its pages go back to the system, where they are `SMALL` bytes or more.

    Examples
    --------
    >>> shrunk(np.arange(6.0), 2)
    array([0., 1.])
    """
    memory = mapping_of(array)
    if not isinstance(memory, Anonymous):
        array.resize((count, *array.shape[1:]), refcheck=False)
        return array
    kept, start = array[:count], array.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
    first = -(-(start + kept.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop - first >= SMALL:
        memory.madvise(mmap.MADV_DONTNEED, first, stop - first)
    return kept


def mapping_of(array: NDArray[Any]) -> mmap.mmap | None:
    """What an array is a view of: a mapped file, memory from here, or neither."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base
