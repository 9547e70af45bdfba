"""`sparsify`: from weights, pruned already or not, to a sparse scheme."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from pumice.errors import SchemeError
from pumice.layouts import LAYOUTS, CompactArray
from pumice.members import map_members, map_weights
from pumice.ops import compress
from pumice.options import check_choice
from pumice.pruning.base import PRUNERS, Pruner, as_float32_matrix, checked, prune
from pumice.pruning.masks import masked_pairs
from pumice.pruning.request import Pruning
from pumice.pruning.selection import Rule
from pumice.quantization import Task, has_integers
from pumice.scheme import Scheme
from pumice.statistics import Stats


def sparsify(
    w: Any,
    scheme: str | Scheme,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    method: str | None = None,
    scope: str | None = None,
    stats: Stats = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """`compress` for a sparse scheme: zeros are not stored, those that are there and those that pruning makes.

    Parameters
    ----------
    w : array_like, SciPy sparse matrix, CompactArray, or a mapping or list of such
        As in `compress`. In a mapping, the pair ``X_orig`` and ``X_mask`` that ``torch.nn.utils.prune`` keeps becomes
        ``X``, their product.
    scheme : str
        Such as ``"csr"``, ``"bitmask+int8"``, ``"bsr-16x4+int8"``.
    sparsity, threshold, method, scope, stats, seed
        As in `prune`, which comes first if one of the first three is given, with the scheme's own pattern: whole blocks
        go for ``"bsr-16x4"``, two of four for ``"2:4"``. Without them, w's own zeros are all. ``"sparsegpt"`` prunes
        and quantizes to integers in one, so that later weights make up for both.
    **options
        Those of the method, and of `compress`.

    Returns
    -------
    CompactArray, or a dict or list of them

    Raises
    ------
    SchemeError
        The scheme is dense or not legal.
    ValueError
        As `prune`; a mask of another shape than its weights.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> pm.sparsify(np.eye(4, 32), "csr").nnz
    4
    >>> pm.sparsify(np.arange(32.0).reshape(4, 8), "bsr-4x2", sparsity=0.75).density
    0.25
    >>> state = {"fc.weight_orig": np.ones((4, 8)), "fc.weight_mask": np.eye(4, 8), "fc.bias": np.zeros(4)}
    >>> pm.sparsify(state, "csr")
    {'fc.weight': <CSRArray csr (4, 8) 80 bytes, 20 bits per weight>, 'fc.bias': array([0., 0., 0., 0.])}
    """
    parsed = Scheme.parse(scheme)
    if parsed.dense:
        raise SchemeError(f"scheme: expected a sparse one such as 'csr', got {str(scheme)!r}")
    if isinstance(w, Mapping):
        w = _masked(w)
    if sparsity is None and threshold is None and method is None:
        return compress(w, parsed, **options)
    method = method or "magnitude"
    check_choice("method", method, tuple(PRUNERS))
    pruner = PRUNERS[method]
    own = pruner.options(options)
    others = {name: value for name, value in options.items() if name not in own}
    pattern = parsed if parsed.pattern else None
    turned = others.get("in_axis", 1) == 0  # patterns lie in the matrix as it is stored
    rows = map_weights(w, _turn) if turned else w
    if pruner.solve is not None and has_integers(parsed):
        rule = Rule.of(sparsity, threshold, pattern, scope, pruner.scope)
        return map_members(rows, partial(_sparsify_by_solver, parsed, pruner, rule, stats, own, others))
    pruned = prune(
        rows, sparsity, threshold=threshold, pattern=pattern, method=method, scope=scope, stats=stats, seed=seed, **own
    )
    return compress(map_weights(pruned, _turn) if turned else pruned, parsed, **others)


def prune_and_compress(
    w: Any,
    scheme: Scheme,
    pruning: Pruning,
    *,
    method: str | None = None,
    stats: Stats = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """`prune`, then `compress` to any scheme by a method of quantization, of a weight or a collection.

    A solver that meets integers does both in one sweep, unless another method than ``"gptq"`` is asked for.

    Parameters
    ----------
    w, scheme, method, stats
        As in `compress`; the scheme may be `AUTO`.
    pruning : Pruning
    seed : int
        Of ``"random"``.
    **options
        Of the methods, and of `compress`.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> pruning = Pruning.parse("magnitude:0.5")
    >>> prune_and_compress(np.eye(4, 32), pm.Scheme.parse("bitmask+int8"), pruning)
    <BitmaskArray bitmask+int8 (4, 32) 52 bytes, 3.25 bits per weight>
    """
    pruner = PRUNERS[pruning.method]
    own = pruner.options(options)
    others = {name: value for name, value in options.items() if name not in own}
    rule = pruning.rule(scheme)
    if pruner.solve is not None and has_integers(scheme) and method in (None, "gptq"):
        return map_members(w, partial(_sparsify_by_solver, scheme, pruner, rule, stats, own, others))
    pruned = prune(w, pruning.sparsity, pattern=rule.grid, method=pruning.method, stats=stats, seed=seed, **own)
    return compress(pruned, scheme, method=method, stats=None if method is None else stats, **others)


def _sparsify_by_solver(
    scheme: Scheme, pruner: Pruner, rule: Rule, stats: Stats, own: dict[str, Any], others: dict[str, Any],
    label: str, key: Any, w: Any,
) -> CompactArray:  # fmt: skip
    """Pruned and quantized in one sweep. Of the options of `compress` two mean something here: in_axis, scale_dtype."""
    unknown = [name for name in others if name not in ("in_axis", "scale_dtype")]
    if unknown:
        raise TypeError(f"{unknown[0]}: expected in_axis or scale_dtype beside a method that quantizes, too")
    array = checked(label, w, rule)
    matrix = as_float32_matrix(array)
    task = Task(matrix, scheme, scale_dtype=others.get("scale_dtype"), name=label)
    assert pruner.solve is not None
    solved = pruner.solve(matrix, rule, task, **pruner.inputs(label, key, stats, 0, matrix.shape[1]), **own)
    stored = LAYOUTS[scheme.layout].encode(solved.w, scheme, array.shape, grid=solved.grid)  # type: ignore[call-arg]
    stored.outcome = solved.outcome
    return stored.T if others.get("in_axis", 1) == 0 else stored


def _turn(name: str, w: Any) -> Any:
    if len(w.shape) != 2:
        raise ValueError(f"{name}: expected two dimensions for in_axis=0, got shape {w.shape}")
    return w.T


def _masked(w: Mapping[Any, Any]) -> dict[Any, Any]:
    """Pairs X_orig and X_mask as X = X_orig * X_mask, in the place of the former; everything else as it is."""
    pairs = {original: (name, mask) for name, (original, mask) in masked_pairs(w.keys()).items()}
    masks, joined = {mask for _, mask in pairs.values()}, {}
    for key, value in w.items():
        if key in pairs:
            name, mask = pairs[key]
            if name in w:
                raise ValueError(f"w: expected {name!r} or the pair {key!r} and {mask!r}, got both")
            joined[name] = _product(key, value, mask, w[mask])
        elif key not in masks:
            joined[key] = value
    return joined


def _product(name: str, original: Any, mask_name: str, mask: Any) -> Any:
    values, kept = (np.asarray(v.to_dense() if isinstance(v, CompactArray) else v) for v in (original, mask))
    if kept.shape != values.shape:
        raise ValueError(f"w[{mask_name!r}]: expected shape {values.shape} as w[{name!r}], got {kept.shape}")
    return values * kept.astype(values.dtype)
