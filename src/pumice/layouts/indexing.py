"""Rows and slices that callers ask for, as checked numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def take_ids(ids: Any, rows: int) -> NDArray[np.int64]:
    """Row numbers as int64 within 0 .. rows - 1; negative ones count from the end."""
    array = np.asarray(ids)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"ids: expected integers, got {array.dtype}")
    if array.size and int(array.max()) >= rows:  # before the cast: uint64 does not fit int64
        raise IndexError(f"ids: expected rows below {rows}, got {array.max()}")
    if array.size and int(array.min()) < -rows:
        raise IndexError(f"ids: expected rows from {-rows}, got {array.min()}")
    array = array.astype(np.int64)
    return np.where(array < 0, array + rows, array)


def bounds(key: Any, size: int) -> slice:
    """A slice with step 1 as plain bounds."""
    if not isinstance(key, slice):
        raise IndexError(f"index: expected slices (or take(ids) for rows), got {key!r}")
    start, stop, step = key.indices(size)
    if step != 1:
        raise IndexError(f"index: expected step 1, got {step}")
    return slice(start, max(start, stop))
