"""Fixing weights one column after the other while the columns still free make up for the error.

Optimal brain surgeon (Hassibi & Stork 1993) for all rows of a layer at once, in the order of the columns: what GPTQ
(Frantar et al. 2022, arXiv:2210.17323) and SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774) do. With w fixed to q
the layer's output errs by e H e^T in the mean, e = w - q a row, H the mean of x^T x. Let H + damping = S D S^T, S unit
upper triangular, D diagonal (`factorize`). Then

    e H e^T = sum over columns k of D_k (v_k - q_k)^2,    v_k = w_k + sum over j < k of e_j S_jk

so v_k is the value that column k should have once those before it are fixed, and D_k what a deviation from it costs.
Columns further on are best at w + e S_fixed,free S_free,free^-1 by then.
Those papers take rows of the Cholesky factor of the inverse of H, which is D^-1/2 S^-1, and keep the updated weights;
this is the same arithmetic with one factorization and no inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.values.base import F32, Arrays

if TYPE_CHECKING:
    import logging

BLOCK = 128  # columns after which errors reach those of the same `REACH`
REACH = 512  # columns after which errors reach all others
PANEL_ROWS, PANEL_COLS = 512, 512
DAMPING = 0.01  # of the mean of the diagonal, as in the papers
# Of its diagonal entry, and of the mean of the diagonal: a pivot below that is noise. float32 that fails gives way to
# float64, and that to more damping.
PIVOTS, LEAST = {"float32": 1e-4, "float64": 1e-10}, 1e-14
RAISED, FIRST_RAISED = 10.0, 1e-6

F64: TypeAlias = NDArray[np.float64]
Levels: TypeAlias = "tuple[F32, NDArray[np.uint8] | None, F32 | None, int]"
"""Scales, zeros and minima (rows, groups), and bits: the numbers that codes stand for."""


@dataclass(frozen=True)
class Factor:
    """H + damping = S D S^T, of columns in the order that they are fixed in.

    Attributes
    ----------
    upper : float32 (cols, cols)
        S above its diagonal, which is 1; what lies on and below it means nothing.
    variance : float32 (cols,)
        D / scale; 0 for dead columns.
    scale : float
        The mean of the diagonal of H over columns that are not dead.
    dead : int
        Columns whose inputs are always 0.
    damping : float
        What was added to the diagonal, over `scale`.
    attempts : int
        Factorizations it took: 2 where float32 was not enough, more where the damping was raised.
    """

    upper: F32
    variance: F32
    scale: float
    dead: int
    damping: float
    attempts: int


def factorize(moments: F32, damping: float = DAMPING, order: NDArray[np.intp] | None = None) -> Factor:
    """Factorize second moments. Never fails: the damping is raised until all pivots are sound.

    Parameters
    ----------
    moments : float32 (cols, cols)
        H, symmetric and finite.
    damping : float
        Share of the mean of the diagonal that is added to it.
    order : int (cols,), optional
        Columns in the order in which they will be fixed.

    Examples
    --------
    >>> import numpy as np
    >>> f = factorize(np.array([[2.0, 1.0], [1.0, 2.0]], np.float32), damping=0)
    >>> np.triu(f.upper, 1), f.variance * f.scale
    (array([[0. , 0.5],
           [0. , 0. ]], dtype=float32), array([1.5, 2. ], dtype=float32))
    >>> factorize(np.ones((3, 3), np.float32), damping=0).damping    # rank 1
    1e-06
    """
    if not 0 <= damping < np.inf:
        raise ValueError(f"damping: expected a finite number >= 0, got {damping}")
    diagonal = moments.diagonal() if order is None else moments.diagonal()[order]
    dead = ~(diagonal > 0)
    scale = float(diagonal[~dead].mean(dtype=np.float64)) if not dead.all() else 1.0
    attempts = 0
    dtype: np.dtype[Any] = np.dtype(np.float32)
    while True:
        attempts += 1
        a = _damped(moments, order, scale, damping, dead, dtype)
        pivots = _factorize_in_place(a)
        if pivots is not None:
            break
        if dtype == np.float64:
            damping = max(damping * RAISED, FIRST_RAISED)
            _log().warning("second moments are singular: damping raised to %g of the mean of the diagonal", damping)
        else:
            _log().info("second moments are ill-conditioned: factorized in float64")
        dtype = np.dtype(np.float64)
    if dead.any():
        _log().info("%d of %d inputs are always 0", np.count_nonzero(dead), len(dead))
    variance = np.where(dead, 0, pivots).astype(np.float32)
    return Factor(a.astype(np.float32, copy=False), variance, scale, int(np.count_nonzero(dead)), damping, attempts)


def _log() -> logging.Logger:
    import logging  # here, since few have something to say, and it is a tenth of `import pumice`

    return logging.getLogger("pumice")


def _damped(
    moments: F32, order: NDArray[np.intp] | None, scale: float, damping: float, dead: NDArray[np.bool_], dtype: Any
) -> NDArray[Any]:
    """A copy in this order, over `scale`, with the damping; dead columns are those of the identity."""
    a = np.empty(moments.shape, dtype)
    for top in range(0, len(a), PANEL_ROWS):
        some = slice(top, top + PANEL_ROWS)
        a[some] = moments[some] if order is None else moments[order[some]].take(order, axis=1)
    a /= dtype.type(scale)
    if dead.any():
        a[dead] = a[:, dead] = 0
    a.ravel()[:: len(a) + 1] += np.where(dead, 1.0, damping).astype(dtype)
    return a


def _factorize_in_place(a: NDArray[Any]) -> F64 | None:
    """The upper triangle of a as that of S, and D; None where a pivot is not sound. Below the diagonal a is rubbish.

    Blocks from the last to the first, themselves in float64: LAPACK's bits depend on threads.
    """
    n = len(a)
    pivots, least = np.empty(n), np.maximum(PIVOTS[a.dtype.name] * a.diagonal(), LEAST)
    for first in range((n - 1) // BLOCK * BLOCK, -1, -BLOCK):
        stop = min(first + BLOCK, n)
        block = a[first:stop, first:stop].astype(np.float64)
        for k in range(stop - first - 1, -1, -1):
            pivot = block[k, k]
            if not pivot > least[first + k]:
                return None
            pivots[first + k] = pivot
            column = block[:k, k] / pivot
            block[:k, :k] -= column[:, None] * block[:k, k]
            block[:k, k] = column
        a[first:stop, first:stop] = block
        solve = (_unit_inverse(block) / pivots[first:stop, None]).T
        left = a[:first, first:stop].copy()
        a[:first, first:stop] = 0
        native.add_product(a[:first, first:stop], left, solve.astype(a.dtype))
        wide = first // REACH * REACH
        if first > wide:
            _take_off(a, pivots, slice(first, stop), slice(wide, first))
        else:
            _take_off(a, pivots, slice(wide, min(wide + REACH, n)), slice(0, wide))
    return pivots


def _take_off(a: NDArray[Any], pivots: F64, done: slice, left: slice) -> None:
    """Columns of a that are those of S by now, off columns to their left."""
    scale = -pivots[done].astype(a.dtype)
    for start in range(left.start, left.stop, PANEL_COLS):
        stop = min(start + PANEL_COLS, left.stop)
        native.add_product(a[:stop, start:stop], a[:stop, done] * scale, a[start:stop, done].T)


def _unit_inverse(upper: F64) -> F64:
    """The inverse of a unit upper triangular matrix, whatever lies on and below its diagonal.

    That of blocks on the diagonal, then of blocks twice as large until one is left.
    """
    n, size = len(upper), 8
    padded = np.zeros((max(8, 1 << (n - 1).bit_length()),) * 2)
    padded[:n, :n] = upper
    blocks = _diagonal_blocks(padded, size)
    inverse = np.tile(np.eye(size), (len(blocks), 1, 1))
    for k in range(1, size):
        inverse[:, :k, k] = -(inverse[:, :k, :k] * blocks[:, None, :k, k]).sum(axis=2)
    while len(inverse) > 1:
        whole, halves = _diagonal_blocks(padded, 2 * size), inverse
        inverse = np.zeros_like(whole)
        inverse[:, :size, :size], inverse[:, size:, size:] = halves[::2], halves[1::2]
        for left, right, block, out in zip(halves[::2], halves[1::2], whole, inverse, strict=True):
            inner = np.zeros_like(left)
            native.add_product(inner, left, block[:size, size:])
            native.add_product(out[:size, size:], -inner, right)
        size *= 2
    return inverse[0, :n, :n]


def _diagonal_blocks(a: F64, size: int) -> F64:
    """(n / size, size, size)"""
    count = np.arange(len(a) // size)
    blocks: F64 = a.reshape(len(count), size, len(count), size)[count, :, count]
    return blocks


class Sweep:
    """All rows of a weight, fixed from the first column to the last.

    Parameters
    ----------
    w : float32 (rows, cols)
        Never written to.
    factor : Factor
    order : int (cols,), optional
        That of the factor: columns are counted in this order.
    """

    def __init__(self, w: F32, factor: Factor, order: NDArray[np.intp] | None = None) -> None:
        self._w = np.ascontiguousarray(w) if order is None else w.take(order, axis=1)
        self._factor, self._order = factor, order
        self._drift = np.zeros_like(self._w)
        rows, self.cols = self._w.shape
        self._errors = np.empty(rows * min(BLOCK, self.cols), np.float32)
        self._loss = np.zeros(rows)
        self.at = 0  # columns that are fixed

    @property
    def variance(self) -> F32:
        """What a squared deviation costs in each column, over the mean of the diagonal."""
        return self._factor.variance

    def current(self, stop: int) -> F32:
        """(rows, stop - at): the next columns, all still free, where they make up best for the errors so far.

        That is w + e_fixed S_fixed,next S_next,next^-1.
        """
        at, part = self.at, slice(self.at, stop)
        if at == 0:
            return self._w[:, part]
        inverse = _unit_inverse(self._factor.upper[part, part].astype(np.float64)).astype(np.float32)
        drift, current = self._drift[:, part].copy(), self._w[:, part].copy()
        for width, last in ((BLOCK, at // REACH * REACH + REACH), (REACH, stop)):
            first = at // width * width  # errors since then have not reached columns from first + width on
            beyond = slice(first + width, min(last, stop))
            if first < at and beyond.start < beyond.stop:
                to = drift[:, beyond.start - at : beyond.stop - at]
                native.add_product(to, self._errors_of(slice(first, at)), self._factor.upper[first:at, beyond])
        native.add_product(current, drift, inverse)
        return current

    def fix(
        self,
        stop: int,
        keep: NDArray[np.bool_] | None = None,
        levels: Levels | None = None,
        groups: NDArray[np.int32] | None = None,
    ) -> None:
        """Fix the columns up to `stop`.

        Parameters
        ----------
        stop : int
        keep : bool (rows, stop - at), optional
            False where a weight becomes 0.
        levels : tuple, optional
            Round to the nearest of these numbers; otherwise weights take the value that the errors ask for.
        groups : int32 (cols,), optional
            The group of each column, in the order that columns are fixed in.
        """
        start = self.at
        while self.at < stop:
            first = self.at // BLOCK * BLOCK
            width = min(BLOCK, self.cols - first)
            end = min(stop, first + width)
            part = slice(first, first + width)
            errors = self._errors[: len(self._w) * width].reshape(len(self._w), width)
            kept = None if keep is None else np.ascontiguousarray(keep[:, self.at - start : end - start]).view(np.uint8)
            native.fix(
                self._w, self._drift, errors, first, self.at - first, end - first,
                np.ascontiguousarray(self._factor.upper[part, part]), self._factor.variance[part], self._loss,
                kept, levels, None if groups is None else groups[part],
            )  # fmt: skip
            self.at = end
            if end == first + width < self.cols:
                wide = first // REACH * REACH
                near = min(wide + REACH, self.cols)
                if end < near:
                    self._propagate(slice(first, end), slice(end, near))
                else:
                    self._propagate(slice(wide, end), slice(end, self.cols))

    def _propagate(self, fixed: slice, free: slice) -> None:
        """Errors of fixed columns to free ones."""
        native.add_product(self._drift[:, free], self._errors_of(fixed), self._factor.upper[fixed, free])

    def _errors_of(self, fixed: slice) -> F32:
        with np.errstate(over="ignore", invalid="ignore"):  # rows that overflow are found by their loss
            errors: F32 = self._w[:, fixed] - self._drift[:, fixed]
        return errors

    def result(self) -> F32:
        """(rows, cols): the fixed weights, in their own order. The sweep is over."""
        if self._order is None:
            return self._drift
        places = np.argsort(self._order)
        return self._drift.take(places, axis=1, out=self._w, mode="clip")  # "raise" would work in a copy of out

    def loss(self) -> F64:
        """(rows,): e H e^T of each row with the damped H, the mean squared error of its output."""
        return self._loss * self._factor.scale


def settled(
    sweep: Sweep, w: F32, keep: NDArray[np.bool_] | None, grid: Arrays | None, static: Arrays | None
) -> tuple[F32, float | None, int]:
    """What a sweep that is over has found, without the rows whose numbers overflowed.

    Those become `w` again, 0 where `keep` is False, to be rounded to nearest: their rows of `grid` become those of
    `static`, in place.

    Returns
    -------
    weights : float32 (rows, cols)
    loss : float or None
        The mean over the other rows, if there are any.
    rounded : int
        How many rows overflowed.
    """
    found, loss = sweep.result(), sweep.loss()
    bad = ~(np.isfinite(loss) & np.isfinite(found).all(axis=1))
    rounded = int(np.count_nonzero(bad))
    if rounded:
        found[bad] = w[bad] if keep is None else np.where(keep[bad], w[bad], np.float32(0))
        if grid is not None and static is not None:
            for name, array in static.items():
                grid[name][bad] = array[bad]
        _log().warning("%d of %d rows overflowed: nothing makes up for what they lack", rounded, len(bad))
    return found, float(loss[~bad].mean()) if rounded < len(bad) else None, rounded
