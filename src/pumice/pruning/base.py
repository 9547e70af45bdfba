"""`prune`, and the registry of its methods.

A method scores each weight; the lowest scores go first. What is removed together (a layer, a row, a whole model; single
weights or the blocks of a pattern) and how much is decided here, the same for all methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice.errors import NonFiniteError, SchemeError
from pumice.layouts import CompactArray
from pumice.members import is_collection, is_weight, members, rebuild
from pumice.options import check_choice
from pumice.pruning.patterns import block_energies, keep_n_of_m, spread
from pumice.scheme import Scheme

Weights: TypeAlias = NDArray[np.floating[Any]]
Mask: TypeAlias = NDArray[np.bool_]
Score: TypeAlias = Callable[[Weights], Weights]

SCOPES = ("layer", "row", "global")
PRUNERS: dict[str, Score] = {}


def register(name: str) -> Callable[[Score], Score]:
    """Make a scoring function known as a method of `prune`; a decorator."""

    def add(score: Score) -> Score:
        PRUNERS[name] = score
        return score

    return add


def prune(
    w: Any,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    pattern: str | Scheme | None = None,
    method: str = "magnitude",
    scope: str = "layer",
    return_mask: bool = False,
) -> Any:
    """Set the weights that matter least to 0. The input is never modified.

    Parameters
    ----------
    w : array_like, or a mapping or list of such
        Weights of two or more dimensions. In a mapping or list, 1-D, integer and bool members pass through as the same
        object. CompactArrays and SciPy matrices are decoded.
    sparsity : float in [0, 1]
        Share to remove: exactly floor(sparsity * size) entries, those of the lowest flat index first on ties.
    threshold : float, optional
        Instead of `sparsity`: remove what scores below it (``|w| < threshold``).
    pattern : str, optional
        A scheme whose layout stores a pattern of zeros without waste; matrices are (shape[0], rest).

        ``"2:4"`` (``"N:M"``): the N highest scores of every M along a row stay. That fixes the sparsity: `sparsity` may
        repeat it (0.5), `threshold` and another `scope` are refused, columns must be a multiple of M.

        ``"bsr-16x4"`` (``"bsr-RxC"``): whole blocks go, those of the least energy, the sum of the squared scores:
        exactly floor(sparsity * blocks), the first in row-major order on ties. `threshold` removes the blocks whose
        root mean square score lies below it. Blocks at ragged edges count as blocks; a row of
        `scope` is a row of blocks.
    method : str
        How weights are scored: a name in `PRUNERS`.
    scope : {"layer", "row", "global"}
        What `sparsity` counts: each array, each of its rows, or all arrays together.
    return_mask : bool
        Also return the masks: True where a weight was kept. Members that pass through have none (None in a list).

    Returns
    -------
    pruned : ndarray of w's dtype, or a dict or list
    mask : bool ndarray, or a dict or list; with `return_mask`

    Raises
    ------
    ValueError
        Not exactly one of `sparsity` and `threshold`, or one out of range; columns that do not fit the pattern.
    SchemeError
        The pattern is no scheme, or one whose layout has no pattern.
    NonFiniteError
        A weight is NaN or infinite.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> pm.prune(np.array([[1.0, -3.0], [0.5, 2.0]]), sparsity=0.5)
    array([[ 0., -3.],
           [ 0.,  2.]])
    >>> pm.prune(np.array([[1.0, -3.0], [0.5, 2.0]]), sparsity=0.5, pattern="bsr-2x1")
    array([[ 0., -3.],
           [ 0.,  2.]])
    """
    grid = _grid(pattern)
    _check(sparsity, threshold, grid, method, scope)
    single = not is_collection(w)
    found = {None: ("w", w)} if single else members(w)
    weights = {key: _weights(label, member) for key, (label, member) in found.items() if single or is_weight(member)}
    for key, array in weights.items():
        _check_columns(found[key][0], array, grid)
    scores = {key: PRUNERS[method](array) for key, array in weights.items()}
    masks = _masks(scores, sparsity, threshold, grid, scope)
    results = {
        key: np.where(masks[key], weights[key], weights[key].dtype.type(0)) if key in masks else member
        for key, (_, member) in found.items()
    }
    if single:
        return (results[None], masks[None]) if return_mask else results[None]
    pruned = rebuild(w, results)
    if not return_mask:
        return pruned
    return pruned, masks if isinstance(pruned, dict) else rebuild(w, {key: masks.get(key) for key in found})


def _grid(pattern: str | Scheme | None) -> Scheme | None:
    """The scheme of a pattern."""
    if pattern is None:
        return None
    scheme = Scheme.parse(pattern)
    if scheme.pattern is None:
        raise SchemeError(f"pattern: expected a layout with one, such as '2:4' or 'bsr-16x4', got {str(scheme)!r}")
    return scheme


def _check(sparsity: float | None, threshold: float | None, grid: Scheme | None, method: str, scope: str) -> None:
    check_choice("method", method, tuple(PRUNERS))
    check_choice("scope", scope, SCOPES)
    kept = None if grid is None or grid.pattern is None else grid.pattern.kept
    if kept is not None:
        fixed = 1 - kept[0] / kept[1]
        if threshold is not None or scope != "layer":
            raise ValueError(f"pattern: expected neither threshold nor scope with {grid}, which fixes what is removed")
        if sparsity is not None and sparsity != fixed:
            raise ValueError(f"sparsity: expected None or {fixed:g}, which {grid} fixes, got {sparsity}")
        return
    if (sparsity is None) == (threshold is None):
        raise ValueError(f"sparsity: expected it or threshold, one of them, got {sparsity} and {threshold}")
    if sparsity is not None and not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity: expected a number in [0, 1], got {sparsity}")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ValueError(f"threshold: expected a finite number >= 0, got {threshold}")


def _weights(name: str, w: Any) -> Weights:
    if isinstance(w, CompactArray):
        w = w.to_dense()
    array: Weights = w.toarray() if hasattr(w, "tocsr") else np.asarray(w)
    if array.dtype.kind in "iub":
        array = array.astype(np.float32)
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    if array.ndim < 2:
        raise ValueError(f"{name}: expected at least two dimensions, got shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        index = tuple(int(i) for i in np.unravel_index(bad[0], array.shape))
        raise NonFiniteError(f"{name}: expected finite values, got {array[index]} at index {index}")
    return array


def _check_columns(name: str, w: Weights, grid: Scheme | None) -> None:
    kept, cols = None if grid is None or grid.pattern is None else grid.pattern.kept, math.prod(w.shape[1:])
    if kept is not None and cols % kept[1]:
        raise ValueError(f"{name}: expected columns in multiples of {kept[1]} for {grid}, got {cols}")


def _masks(
    scores: dict[Any, Weights], sparsity: float | None, threshold: float | None, grid: Scheme | None, scope: str
) -> dict[Any, Mask]:
    """True where a weight stays."""
    pattern = None if grid is None else grid.pattern
    if pattern is None:
        return _keep(scores, sparsity, threshold, scope)
    matrices = {key: score.reshape(len(score), math.prod(score.shape[1:])) for key, score in scores.items()}
    if pattern.kept is not None:
        masks = {key: keep_n_of_m(matrix, *pattern.kept) for key, matrix in matrices.items()}
    else:
        assert pattern.blocksize is not None
        by_mean = threshold is not None
        energies: dict[Any, Weights] = {
            key: block_energies(m, pattern.blocksize, by_mean) for key, m in matrices.items()
        }
        kept = _keep(energies, sparsity, None if threshold is None else threshold**2, scope)
        masks = {key: spread(kept[key], pattern.blocksize, matrix.shape) for key, matrix in matrices.items()}
    return {key: mask.reshape(scores[key].shape) for key, mask in masks.items()}


def _keep(scores: dict[Any, Weights], sparsity: float | None, threshold: float | None, scope: str) -> dict[Any, Mask]:
    if threshold is not None:
        return {key: score >= threshold for key, score in scores.items()}
    assert sparsity is not None  # `_check` saw to it
    if scope == "layer":
        return {key: keep_highest(score.reshape(-1), sparsity).reshape(score.shape) for key, score in scores.items()}
    if scope == "row":
        masks = {}
        for key, score in scores.items():
            rows = score.reshape(len(score), math.prod(score.shape[1:]))
            masks[key] = np.array([keep_highest(row, sparsity) for row in rows], bool).reshape(score.shape)
        return masks
    if not scores:
        return {}
    kept = keep_highest(np.concatenate([score.reshape(-1) for score in scores.values()]), sparsity)
    ends = np.cumsum([score.size for score in scores.values()])[:-1]
    pieces = np.split(kept, ends)
    return {key: piece.reshape(score.shape) for (key, score), piece in zip(scores.items(), pieces, strict=True)}


def keep_highest(scores: Weights, sparsity: float) -> Mask:
    """False for exactly floor(sparsity * size) of the lowest scores (n,), the lowest index first on ties."""
    mask = np.ones(scores.shape, bool)
    count = math.floor(sparsity * scores.size)
    if count == 0:
        return mask
    limit = np.partition(scores, count - 1)[count - 1]
    mask[scores < limit] = False
    ties = np.flatnonzero(scores == limit)
    mask[ties[: count - int(np.count_nonzero(scores < limit))]] = False
    return mask
