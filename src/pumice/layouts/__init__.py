"""Layouts: where the stored values are. One file a layout; the imports below register them."""

from __future__ import annotations

from pumice import values as _values  # noqa: F401 - codecs first: layouts name them
from pumice.layouts.base import CompactArray, Transposed
from pumice.layouts.bitmask import BitmaskArray
from pumice.layouts.bsr import BSRArray
from pumice.layouts.csr import CSRArray
from pumice.layouts.dense import DenseArray
from pumice.layouts.nm import NMArray
from pumice.layouts.permuted import PermutedArray
from pumice.layouts.registry import LAYOUTS, from_parts, register
from pumice.layouts.sums import SumArray

__all__ = [
    "LAYOUTS",
    "BSRArray",
    "BitmaskArray",
    "CSRArray",
    "CompactArray",
    "DenseArray",
    "NMArray",
    "PermutedArray",
    "SumArray",
    "Transposed",
    "from_parts",
    "register",
]
