"""The sum of two arrays: dense weights and what they miss, such as int4 and its outliers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pumice.errors import FormatError, SchemeError
from pumice.layouts.base import CompactArray, Transposed
from pumice.layouts.registry import LAYOUTS, build
from pumice.layouts.work import Work
from pumice.options import Options
from pumice.scheme import SUM, LayoutGrammar, Scheme
from pumice.values.base import F32, Array, Arrays

SECOND = "and_"  # before the names of the second term's parts
OUTLIERS = 0.005  # share of the weights that go to the second term


class SumArray(CompactArray):
    """``a & b``: two arrays of one shape, whose weights and products are added.

    Made by ``a & b``; by `pumice.compress` with a scheme such as ``"int4-g128&csr"``, which gives the outliers of the
    dense first term to the sparse second (SpQR, Dettmers et al. 2023, arXiv:2306.03078); or from stored parts, those of
    the second behind ``and_``.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = np.tile(np.linspace(-1, 1, 128), (32, 1))
    >>> w[3, 5] = 100
    >>> w4, both = pm.compress(w, "int4-g128"), pm.compress(w, "int4-g128&csr", outliers=0.001)
    >>> both.second.nnz, float(abs(w4.to_dense() - w).max()), float(abs(both.to_dense() - w).max())
    (4, 1.0, 0.125)
    """

    grammar = LayoutGrammar(SUM, SUM)

    def __init__(self, first: CompactArray, second: CompactArray) -> None:
        if first.shape != second.shape:
            raise ValueError(f"&: expected two arrays of one shape, got {first.shape} and {second.shape}")
        for term in (first, second):
            if isinstance(term, Transposed):
                raise TypeError("&: expected two arrays or two transposed ones, got one of each")
        super().__init__(Scheme.sum(Scheme.parse(first.scheme), Scheme.parse(second.scheme)), first.shape)
        self.first, self.second = first, second

    @classmethod
    def encode(
        cls,
        w: F32,
        scheme: Scheme,
        shape: tuple[int, ...],
        scale_dtype: Any = None,
        outliers: float = OUTLIERS,
    ) -> Self:
        """Give the outliers of w to the second term.

        Outliers are the weights of largest magnitude beside the root mean square of their group (of their row without
        groups): exactly floor(outliers * size) of each band of `chunk_rows` rows, the lowest flat index first on ties,
        zeros never. The first term has 0 there before it is quantized, so that its scales shrink; the second has what
        the first then misses.
        """
        dense, sparse = scheme.terms
        if not dense.dense or sparse.dense:
            raise SchemeError(f"scheme: expected a dense and a sparse term to split weights between, got {scheme}")
        band = cls.chunk_rows(scheme)
        marked = np.zeros(w.shape, bool)
        for top in range(0, len(w), band):
            marked[top : top + band] = find_outliers(w[top : top + band], dense.group, outliers)
        first = LAYOUTS[dense.layout].encode(np.where(marked, np.float32(0), w), dense, shape, scale_dtype)
        missed = np.zeros_like(w)
        for top in range(0, len(w), band):  # decoded a band at a time
            rest = w[top : top + band] - first.decode_rows(top, min(top + band, len(w)))
            np.copyto(missed[top : top + band], rest, where=marked[top : top + band])
        return cls(first, LAYOUTS[sparse.layout].encode(missed, sparse, shape, scale_dtype))

    @classmethod
    def from_parts(cls, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Array]) -> Self:
        first, second = scheme.terms
        theirs = {name.removeprefix(SECOND): part for name, part in parts.items() if name.startswith(SECOND)}
        ours = {name: part for name, part in parts.items() if not name.startswith(SECOND)}
        stored = theirs.get("shape")
        if stored is not None and (stored.dtype != np.int64 or tuple(stored.reshape(-1).tolist()) != shape):
            raise FormatError(None, SECOND + "shape", f"int64 {list(shape)}", f"{stored.dtype} {stored.tolist()}")
        return cls(build(first, shape, ours), build(second, shape, theirs))

    @classmethod
    def stack(cls, arrays: Sequence[CompactArray], shape: tuple[int, ...]) -> Self:
        some = [a for a in arrays if isinstance(a, cls)]
        firsts, seconds = [a.first for a in some], [a.second for a in some]
        return cls(type(firsts[0]).stack(firsts, shape), type(seconds[0]).stack(seconds, shape))

    @classmethod
    def chunk_rows(cls, scheme: Scheme) -> int:
        return math.lcm(*(LAYOUTS[term.layout].chunk_rows(term) for term in scheme.terms))

    @classmethod
    def work(cls, scheme: Scheme, shape: tuple[int, ...], density: float, batch: int, activations: str) -> Work | None:
        """What a product does, for the cost model. Of the density, the second term has what the first leaves of it."""
        first, second = scheme.terms
        one = LAYOUTS[first.layout].work(first, shape, min(density, 1.0), batch, activations)
        other = LAYOUTS[second.layout].work(second, shape, max(density - 1, 0.0), batch, activations)
        return None if one is None or other is None else replace(one, also=other)

    @property
    def terms(self) -> tuple[CompactArray, ...]:
        return self.first, self.second

    def parts(self) -> Arrays:
        return self.first.parts() | {SECOND + name: part for name, part in self.second.parts().items()}

    def part_dtype(self, part: str) -> str:
        if part.startswith(SECOND):
            return self.second.part_dtype(part.removeprefix(SECOND))
        return self.first.part_dtype(part)

    def blocks(self, written: Mapping[str, int], shape: tuple[int, ...]) -> Arrays:
        theirs = {name.removeprefix(SECOND): n for name, n in written.items() if name.startswith(SECOND)}
        ours = {name: n for name, n in written.items() if not name.startswith(SECOND)}
        blocks = self.second.blocks(theirs, shape)
        return self.first.blocks(ours, shape) | {SECOND + name: block for name, block in blocks.items()}

    def decode_rows(self, start: int, stop: int) -> F32:
        return _added(self.first.decode_rows(start, stop), self.second.decode_rows(start, stop))

    def take(self, ids: Any) -> F32:
        return _added(self.first.take(ids), self.second.take(ids))

    def _slice(self, rows: slice, cols: slice) -> Self:
        return type(self)(self.first._slice(rows, cols), self.second._slice(rows, cols))

    def kernel(self, batch: int, activations: str) -> str | None:
        """The kernels of both; "decode" where there is none."""
        kernels = [term.kernel(batch, activations) for term in (self.first, self.second)]
        return " + ".join(name or "decode" for name in kernels) if any(kernels) else None

    def linear(self, x: Any, bias: Any = None, activations: str | None = None, out: Array | None = None) -> F32:
        """x @ first.T + bias, plus x @ second.T: float32 (..., rows)."""
        more = self.second.linear(x, None, activations)  # before `out` is written, which may be x
        y = self.first.linear(x, bias, activations, out)
        return _added(y, more)

    def _fused(self, x: F32, y: F32, bias: F32 | None, options: Options, activations: str) -> None:
        raise NotImplementedError  # pragma: no cover - `linear` asks the terms

    def prepack(self) -> Self:
        self.first.prepack()
        self.second.prepack()
        return self

    def keep_canonical(self) -> Self:
        self.first.keep_canonical()
        self.second.keep_canonical()
        return self

    @property
    def nbytes(self) -> int:
        return self.first.nbytes + self.second.nbytes

    @property
    def resident_nbytes(self) -> int:
        return self.first.resident_nbytes + self.second.resident_nbytes

    @property
    def nnz(self) -> int:
        """Stored values of both."""
        return self.first.nnz + self.second.nnz


def _added(total: F32, more: F32) -> F32:
    """`total`, to which `more` is added in place."""
    with np.errstate(all="ignore"):  # as our kernels: NaN and infinity are results, not events
        total += more
    return total


LAYOUTS[SUM] = SumArray  # not in the grammar: a sum is written by its terms


def find_outliers(w: F32, group: int | None, share: float) -> NDArray[np.bool_]:
    """True for floor(share * size) of the largest weights beside the root mean square of their group; zeros never.

    Examples
    --------
    >>> find_outliers(np.array([[1, 9, 1, 1], [20, 20, 20, 20]], np.float32), None, 0.13).astype(int)
    array([[0, 1, 0, 0],
           [0, 0, 0, 0]])
    """
    cols = w.shape[1]
    count, width = math.floor(share * w.size), group or max(cols, 1)
    marked = np.zeros(w.size, bool)
    if count == 0:
        return marked.reshape(w.shape)
    lefts = np.arange(0, cols, width)
    lengths = np.minimum(width, cols - lefts)
    energy = np.add.reduceat(np.square(w, dtype=np.float64), lefts, axis=1) / lengths
    score = np.abs(w) / np.repeat(np.sqrt(np.where(energy > 0, energy, 1)), lengths, axis=1)
    flat = score.reshape(-1)
    limit = np.partition(flat, len(flat) - count)[len(flat) - count]
    marked[flat > limit] = True
    ties = np.flatnonzero(flat == limit)
    marked[ties[: count - int(np.count_nonzero(marked))]] = True
    marked &= flat > 0
    return marked.reshape(w.shape)
