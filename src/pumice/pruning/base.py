"""`prune`, and the registry of its methods.

Most methods *score* each weight, and the rule (`pruning.selection`) says which scores go. A *solver* decides and
changes weights in turn, and asks the rule itself.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pumice.errors import NonFiniteError
from pumice.layouts import CompactArray
from pumice.members import is_collection, is_weight, members, rebuild
from pumice.options import check_choice
from pumice.pruning.masks import Masks
from pumice.pruning.selection import Mask, Rule, Weights
from pumice.scheme import Scheme
from pumice.statistics import Stats, moments_of
from pumice.values.base import F32, Arrays

Score = Callable[..., Weights]
INPUTS = ("moments", "rng")


@dataclass(frozen=True)
class Solved:
    """What a solver gives back: weights, which of them stay, the grid that they lie on (or None), and an `Outcome`."""

    w: F32
    mask: Mask
    grid: Arrays | None
    outcome: Any


Solver = Callable[..., Solved]


@dataclass(frozen=True)
class Pruner:
    """A method of `prune`.

    Attributes
    ----------
    score : callable or None
        ``score(w, **inputs)``: w (rows, cols) -> scores of its shape and dtype kind.
    solve : callable or None
        ``solve(w, rule, task, **inputs, **options)``: w float32 (rows, cols) -> `Solved`; with a task of
        `pumice.quantization` the weights are put on a grid as well.
    needs : tuple of str
        Inputs beside the weights: "moments" of the layer's inputs, "rng".
    scope : str
        What `sparsity` counts unless the user says.
    """

    score: Score | None
    solve: Solver | None
    needs: tuple[str, ...]
    scope: str

    def inputs(self, label: str, key: Any, stats: Stats, seed: int, cols: int) -> dict[str, Any]:
        """What the method needs for a weight."""
        found: dict[str, Any] = {}
        if "moments" in self.needs:
            found["moments"] = moments_of(label, key, stats, cols)
            if found["moments"] is None:
                raise ValueError(f"stats: expected moments of the inputs of {label} for this method, got None")
        if "rng" in self.needs:
            found["rng"] = np.random.default_rng([seed, zlib.crc32(label.encode())])
        return found

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `given` that are the method's own."""
        return {name: value for name, value in given.items() if name in self.option_names()}

    def option_names(self) -> list[str]:
        """What may be said to the method."""
        if self.solve is None:
            return []
        known = inspect.signature(self.solve).parameters.values()
        return [p.name for p in known if p.kind is p.KEYWORD_ONLY and p.name not in INPUTS]


PRUNERS: dict[str, Pruner] = {}


def register(name: str, *, needs: tuple[str, ...] = (), scope: str = "layer") -> Callable[[Score], Score]:
    """Make a scoring function known as a method of `prune`; a decorator. See `Pruner`."""

    def add(score: Score) -> Score:
        PRUNERS[name] = Pruner(score, None, needs, scope)
        return score

    return add


def register_solver(name: str, *, needs: tuple[str, ...] = (), scope: str = "layer") -> Callable[[Solver], Solver]:
    """Make a solver known as a method of `prune`; a decorator. See `Pruner`."""

    def add(solve: Solver) -> Solver:
        PRUNERS[name] = Pruner(None, solve, needs, scope)
        return solve

    return add


def prune(
    w: Any,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    pattern: str | Scheme | None = None,
    method: str = "magnitude",
    scope: str | None = None,
    stats: Stats = None,
    seed: int = 0,
    return_mask: bool = False,
    **method_options: Any,
) -> Any:
    """Set the weights that matter least to 0. The input is never modified.

    Parameters
    ----------
    w : array_like, or a mapping or list of such
        Weights of two or more dimensions. In a mapping or list, 1-D, integer and bool members pass through as the same
        object. CompactArrays and SciPy matrices are decoded.
    sparsity : float in [0, 1)
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
    method : {"magnitude", "wanda", "sparsegpt", "random"}
        docs/algorithms.md. ``"sparsegpt"`` also changes the weights that stay; it works in float32, takes `sparsity`
        or a pattern, and removes the same share of every 128 columns.
    scope : {"layer", "row", "global"}, optional
        What `sparsity` counts: each array, each of its rows, or all arrays together. By default "row" for ``"wanda"``,
        else "layer".
    stats : Moments, or a mapping of them, optional
        Of the inputs of the layer, or of each member's by its name, such as `CalibrationStats`: for ``"wanda"`` and
        ``"sparsegpt"``.
    seed : int
        Of ``"random"``.
    return_mask : bool
        Also return the masks: True where a weight was kept.
    **method_options
        Of the method: `damping` of ``"sparsegpt"``.

    Returns
    -------
    pruned : ndarray of w's dtype, or a dict or list
    mask : bool ndarray, or `Masks`; with `return_mask`

    Raises
    ------
    ValueError
        Not exactly one of `sparsity` and `threshold`, or one out of range; columns that do not fit the pattern; stats
        of another shape, or none where they are needed.
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
    >>> stats = pm.Moments(2)
    >>> stats.update(np.array([[10.0, 1.0], [-10.0, 1.0]]))    # the first input is ten times the second
    >>> pm.prune(np.array([[1.0, -3.0], [0.5, 2.0]]), sparsity=0.5, method="wanda", stats=stats)
    array([[1. , 0. ],
           [0.5, 0. ]])
    """
    check_choice("method", method, tuple(PRUNERS))
    pruner = PRUNERS[method]
    rule = Rule.of(sparsity, threshold, pattern, scope, pruner.scope)
    options = pruner.options(method_options)
    if options.keys() != method_options.keys():
        unknown = next(name for name in method_options if name not in options)
        raise TypeError(f"{unknown}: expected an option of prune, or of method {method!r}")
    single = not is_collection(w)
    found = {None: ("w", w)} if single else members(w)
    weights = {k: checked(label, member, rule) for k, (label, member) in found.items() if single or is_weight(member)}
    inputs = {k: pruner.inputs(found[k][0], k, stats, seed, math.prod(array.shape[1:])) for k, array in weights.items()}
    if pruner.solve is not None:
        pruned, masks = _solved(pruner.solve, rule, weights, inputs, options)
    else:
        assert pruner.score is not None
        scores = {key: pruner.score(_matrix(a), **inputs[key]).reshape(a.shape) for key, a in weights.items()}
        masks = rule.masks(scores)
        pruned = {key: np.where(masks[key], array, array.dtype.type(0)) for key, array in weights.items()}
    if single:
        return (pruned[None], masks[None]) if return_mask else pruned[None]
    result = rebuild(w, {key: pruned.get(key, member) for key, (_, member) in found.items()})
    return (result, Masks(masks)) if return_mask else result


def _solved(
    solve: Solver, rule: Rule, weights: dict[Any, Weights], inputs: dict[Any, dict[str, Any]], options: dict[str, Any]
) -> tuple[dict[Any, Weights], dict[Any, Mask]]:
    pruned: dict[Any, Weights] = {}
    masks: dict[Any, Mask] = {}
    for key, array in weights.items():
        solved = solve(as_float32_matrix(array), rule, None, **inputs[key], **options)
        largest = np.finfo(array.dtype).max  # float16 cannot hold all that later weights may have to make up for
        pruned[key] = np.clip(solved.w, -largest, largest).astype(array.dtype).reshape(array.shape)
        masks[key] = solved.mask.reshape(array.shape)
    return pruned, masks


def checked(name: str, w: Any, rule: Rule) -> Weights:
    """A weight as an array of finite floats that the rule's pattern divides."""
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
    rule.check_columns(name, math.prod(array.shape[1:]))
    return array


def _matrix(w: Weights) -> Weights:
    return w.reshape(len(w), math.prod(w.shape[1:]))


def as_float32_matrix(w: Weights) -> F32:
    """(rows, cols) for a solver; what float32 cannot hold becomes its largest number."""
    largest = np.finfo(np.float32).max
    if w.dtype.itemsize > 4:
        w = np.clip(w, -largest, largest)
    return np.ascontiguousarray(_matrix(w), np.float32)
