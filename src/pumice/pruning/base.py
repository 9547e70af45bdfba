"""`prune`, and the registry of its methods.

A method scores each weight; the lowest scores go first. What is removed together (a layer, a row, a whole model) and
how much is decided here, the same for all methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice.errors import NonFiniteError
from pumice.layouts import CompactArray
from pumice.members import is_collection, is_weight, members, rebuild
from pumice.options import check_choice

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
    method: str = "magnitude",
    scope: str = "layer",
    return_mask: bool = False,
) -> Any:
    """Set the weights that matter least to 0. The input is never modified.

    Parameters
    ----------
    w : array_like, or a mapping or list of such
        Weights of two or more dimensions. In a mapping or list, 1-D, integer and bool members pass through as the same
        object. A CompactArray is decoded.
    sparsity : float in [0, 1]
        Share to remove: exactly floor(sparsity * size) entries, those of the lowest flat index first on ties.
    threshold : float, optional
        Instead of `sparsity`: remove what scores below it (``|w| < threshold``).
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
        Not exactly one of `sparsity` and `threshold`, or one out of range.
    NonFiniteError
        A weight is NaN or infinite.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> pm.prune(np.array([[1.0, -3.0], [0.5, 2.0]]), sparsity=0.5)
    array([[ 0., -3.],
           [ 0.,  2.]])
    """
    _check(sparsity, threshold, method, scope)
    single = not is_collection(w)
    found = {None: ("w", w)} if single else members(w)
    weights = {key: _weights(label, member) for key, (label, member) in found.items() if single or is_weight(member)}
    scores = {key: PRUNERS[method](array) for key, array in weights.items()}
    masks = _masks(scores, sparsity, threshold, scope)
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


def _check(sparsity: float | None, threshold: float | None, method: str, scope: str) -> None:
    check_choice("method", method, tuple(PRUNERS))
    check_choice("scope", scope, SCOPES)
    if (sparsity is None) == (threshold is None):
        raise ValueError(f"sparsity: expected it or threshold, one of them, got {sparsity} and {threshold}")
    if sparsity is not None and not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity: expected a number in [0, 1], got {sparsity}")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise ValueError(f"threshold: expected a finite number >= 0, got {threshold}")


def _weights(name: str, w: Any) -> Weights:
    array = w.to_dense() if isinstance(w, CompactArray) else np.asarray(w)
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


def _masks(scores: dict[Any, Weights], sparsity: float | None, threshold: float | None, scope: str) -> dict[Any, Mask]:
    if threshold is not None:
        return {key: score >= threshold for key, score in scores.items()}
    assert sparsity is not None  # `_check` saw to it
    if scope == "layer":
        return {key: keep_highest(score.reshape(-1), sparsity).reshape(score.shape) for key, score in scores.items()}
    if scope == "row":
        masks = {}
        for key, score in scores.items():
            rows = score.reshape(len(score), -1)
            masks[key] = np.stack([keep_highest(row, sparsity) for row in rows]).reshape(score.shape)
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
