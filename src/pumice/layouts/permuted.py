"""Columns stored in another order, so that columns which share a scale stand together (GPTQ's "act-order").

A permutation belongs to no layout and no scheme: it is one more part beside those of the array whose columns it orders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pumice.errors import FormatError
from pumice.layouts.base import CompactArray, Transposed
from pumice.layouts.operands import frozen
from pumice.layouts.registry import WRAPPERS, build
from pumice.options import Options
from pumice.scheme import Scheme
from pumice.values.base import F32, Array, Arrays

PERM = "perm"


class PermutedArray(CompactArray):
    """Weights whose stored column j is column ``perm[j]`` of the matrix, so that ``x[..., perm]`` meets what is stored.

    Its scheme is that of `base`; its parts are those of `base` and ``perm``, int32 (cols,). Rows can be cut, columns
    cannot.

    Parameters
    ----------
    base : CompactArray
        The weights with their columns in stored order; no sum and no transposed array.
    perm : (cols,) integers
        Each column once.

    Raises
    ------
    FormatError
        `perm` has another length, or is no permutation.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w, perm = np.arange(32.0).reshape(2, 16), np.arange(16)[::-1]
    >>> array = PermutedArray(pm.compress(w[:, perm], "float16"), perm)
    >>> array
    <PermutedArray float16 (2, 16) 128 bytes, 32 bits per weight>
    >>> bool((array.to_dense() == w).all()), (np.ones(16) @ array.T).tolist()
    (True, [120.0, 376.0])
    """

    def __init__(self, base: CompactArray, perm: Any) -> None:
        if isinstance(base, Transposed | PermutedArray) or base.terms:
            got = "a sum" if base.terms else f"a {type(base).__name__}"
            raise TypeError(f"base: expected an array whose columns are stored, got {got}")
        super().__init__(base._scheme, base._shape)
        self.base = base
        self.perm: NDArray[np.int32] = frozen(as_permutation(perm, self._cols))
        self._inverse = np.empty(self._cols, np.intp)  # column c is stored at _inverse[c]
        self._inverse[self.perm] = np.arange(self._cols)

    @classmethod
    def encode(cls, w: F32, scheme: Scheme, shape: tuple[int, ...], scale_dtype: Any = None) -> CompactArray:
        raise TypeError("scheme: expected one to compress to, got a permutation of columns, which no scheme names")

    @classmethod
    def from_parts(cls, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Array]) -> Self:
        own = {name: part for name, part in parts.items() if name != PERM}
        if parts[PERM].dtype != np.int32:
            raise FormatError(None, PERM, "int32", str(parts[PERM].dtype))
        return cls(build(scheme, shape, own), parts[PERM])

    def parts(self) -> Arrays:
        return self.base.parts() | {PERM: self.perm}

    def part_dtype(self, part: str) -> str:
        return "I32" if part == PERM else self.base.part_dtype(part)

    @classmethod
    def stack(cls, arrays: Sequence[CompactArray], shape: tuple[int, ...]) -> Self:
        some = [a for a in arrays if isinstance(a, cls)]
        if any(not np.array_equal(a.perm, some[0].perm) for a in some):
            raise ValueError("arrays: expected the same order of stored columns, got different permutations")
        bases = [a.base for a in some]
        return cls(type(bases[0]).stack(bases, shape), some[0].perm)

    def blocks(self, written: Mapping[str, int], shape: tuple[int, ...]) -> Arrays:
        theirs = {name: count for name, count in written.items() if name != PERM}
        return self.base.blocks(theirs, shape) | ({} if written else {PERM: self.perm})

    def decode_rows(self, start: int, stop: int) -> F32:
        return self._in_order(self.base.decode_rows(start, stop))

    def codes(self) -> Array:
        """The stored integers, one per weight, in the order of the matrix: (rows, cols)."""
        return self._in_order(self.base.codes())

    def take(self, ids: Any) -> F32:
        rows = self.base.take(ids)
        return self._in_order(rows.reshape(*np.shape(ids), self._cols)).reshape(rows.shape)

    def _in_order(self, stored: Array) -> Array:
        """(..., cols) as stored, in the order of the matrix."""
        return np.take(stored, self._inverse, axis=-1)

    def _slice(self, rows: slice, cols: slice) -> Self:
        if cols != slice(0, self._cols):
            got = f"columns {cols.start}:{cols.stop}"
            raise IndexError(f"index: expected rows only, since columns are stored in another order, got {got}")
        return type(self)(self.base._slice(rows, cols), self.perm)

    def kernel(self, batch: int, activations: str) -> str | None:
        return self.base.kernel(batch, activations)

    def _fused(self, x: F32, y: F32, bias: F32 | None, options: Options, activations: str) -> None:
        self.base._fused(np.take(x, self.perm, axis=1), y, bias, options, activations)

    def _decoded(self, x: F32, y: F32, bias: F32 | None) -> None:
        self.base._decoded(np.take(x, self.perm, axis=1), y, bias)

    def _untransposed(self, x: Any) -> F32:
        return self._in_order(self.base._untransposed(x))

    def prepack(self) -> Self:
        self.base.prepack()
        return self

    def keep_canonical(self) -> Self:
        self.base.keep_canonical()
        return self

    @property
    def nbytes(self) -> int:
        return self.base.nbytes + self.perm.nbytes

    @property
    def resident_nbytes(self) -> int:
        return self.base.resident_nbytes + self.perm.nbytes + self._inverse.nbytes

    @property
    def nnz(self) -> int:
        return self.base.nnz


WRAPPERS[PERM] = PermutedArray


def as_permutation(perm: Any, cols: int) -> NDArray[np.int32]:
    """A copy of `perm` as int32, if it holds each of `cols` columns once; FormatError otherwise."""
    array = np.asarray(perm)
    if array.dtype.kind not in "iu" or array.shape != (cols,):
        raise FormatError(None, PERM, f"integers of shape ({cols},)", f"{array.dtype} of shape {array.shape}")
    counts = np.zeros(cols, np.int64)
    inside = (array >= 0) & (array < cols)
    np.add.at(counts, array[inside], 1)
    if not inside.all():
        raise FormatError(None, PERM, f"columns from 0 to {cols - 1}", int(array[~inside][0]))
    if (counts != 1).any():
        missing = int(np.flatnonzero(counts == 0)[0])
        raise FormatError(None, PERM, "each column once", f"none {missing}, and another twice")
    return array.astype(np.int32)


def order_of_groups(g_idx: Any, groups: int) -> tuple[NDArray[np.int32] | None, int]:
    """How columns of these groups stand together, and how many share a group.

    Parameters
    ----------
    g_idx : (cols,) integers
        The group of each column, as GPTQ has it.
    groups : int
        How many there are.

    Returns
    -------
    perm : (cols,) int32, or None
        The columns by group, within a group as they come; None where they stand so already.
    group : int
        Columns of each group; the last may have fewer.

    Raises
    ------
    FormatError
        A group out of range, or groups of unequal size.

    Examples
    --------
    >>> order_of_groups([0, 1, 1, 0, 2], 3)
    (array([0, 3, 1, 2, 4], dtype=int32), 2)
    >>> order_of_groups([0, 0, 1, 1, 2], 3)
    (None, 2)
    """
    array = np.asarray(g_idx)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise FormatError(None, "g_idx", "integers of shape (cols,)", f"{array.dtype} of shape {array.shape}")
    bad = array[(array < 0) | (array >= groups)]
    if bad.size:
        raise FormatError(None, "g_idx", f"groups from 0 to {groups - 1}", int(bad[0]))
    counts = np.bincount(array, minlength=groups)
    group = int(counts[0]) if groups else 0
    if (counts[:-1] != group).any() or (groups and not 0 < counts[-1] <= group):
        odd = int(np.flatnonzero(counts != group)[0])
        got = f"{group} of group 0 and {int(counts[odd])} of group {odd}"
        raise FormatError(None, "g_idx", "as many columns in each group, but fewer in the last", got)
    perm = np.argsort(array, kind="stable").astype(np.int32)
    return (None if (perm[1:] > perm[:-1]).all() else perm), group
