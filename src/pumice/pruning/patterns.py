"""Patterns of zeros: N of every M weights along a row, and blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = 1 << 17  # scores that are ranked at a time: what is made of them stays in a near cache
MOST_COMPARED = 32  # of a group: beyond it, a sort takes less time than comparing each with each


def keep_n_of_m(scores: NDArray[np.floating[Any]], n: int, m: int) -> NDArray[np.bool_]:
    """True for the n highest of every m scores along a row; of equal ones the lowest index goes first.

    Examples
    --------
    >>> keep_n_of_m(np.array([[1.0, 4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0]]), 2, 4).astype(int)
    array([[0, 1, 1, 0, 0, 0, 1, 1]])
    """
    groups, step = scores.reshape(-1, m), max(STEP // m, 1)
    mask = np.empty(groups.shape, bool)
    ranks = _ranks_by_comparison if m <= MOST_COMPARED else _ranks_by_sort
    for start in range(0, len(groups), step):
        part = slice(start, start + step)
        np.greater_equal(ranks(groups[part]), m - n, out=mask[part])
    return mask.reshape(scores.shape)


def _ranks_by_comparison(groups: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """How many of its group (groups, m) go before a score: one comparison of many groups for each pair of places."""
    places = np.ascontiguousarray(groups.T)
    ranks = np.zeros(places.shape, np.uint8)
    for j in range(1, len(places)):
        higher = places[:j] > places[j]
        ranks[:j] += higher
        ranks[j] += np.uint8(j) - higher.sum(axis=0, dtype=np.uint8)
    return ranks.T


def _ranks_by_sort(groups: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    ranks = np.empty(groups.shape, np.intp)
    order = np.argsort(groups, axis=1, kind="stable")
    np.put_along_axis(ranks, order, np.arange(groups.shape[1])[None], axis=1)
    return ranks


def block_energies(
    scores: NDArray[np.floating[Any]], blocksize: tuple[int, int], mean: bool = False
) -> NDArray[np.float64]:
    """The sum of the squared scores of each block, or their mean: (block rows, block cols). Edges may be ragged.

    Examples
    --------
    >>> scores = np.array([[1.0, 2.0, 3.0]])
    >>> block_energies(scores, (1, 2)), block_energies(scores, (1, 2), mean=True)
    (array([[5., 9.]]), array([[2.5, 9. ]]))
    """
    (rows, cols), (height, width) = scores.shape, blocksize
    lefts, energies = np.arange(0, cols, width), np.zeros((-(-rows // height), -(-cols // width)))
    for i, top in enumerate(range(0, rows, height)):
        if cols:
            columns = np.square(scores[top : top + height], dtype=np.float64).sum(axis=0)
            energies[i] = np.add.reduceat(columns, lefts)
    if not mean:
        return energies
    heights = np.minimum(height, rows - np.arange(0, rows, height))
    widths = np.minimum(width, cols - lefts)
    energies /= heights[:, None] * widths
    return energies


def spread(kept: NDArray[np.bool_], blocksize: tuple[int, int], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask of blocks as one of weights, of this shape (rows, cols)."""
    rows, cols = shape
    return np.repeat(np.repeat(kept, blocksize[0], 0)[:rows], blocksize[1], 1)[:, :cols]
