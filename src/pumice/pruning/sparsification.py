"""`sparsify`: from weights, pruned already or not, to a sparse scheme."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pumice.errors import SchemeError
from pumice.layouts import CompactArray
from pumice.members import map_weights
from pumice.ops import compress
from pumice.pruning.base import prune
from pumice.pruning.masks import masked_pairs
from pumice.scheme import Scheme


def sparsify(
    w: Any,
    scheme: str | Scheme,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    method: str = "magnitude",
    scope: str = "layer",
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
    sparsity, threshold, method, scope
        As in `prune`, which comes first if one of the former two is given, with the scheme's own pattern: whole blocks
        go for ``"bsr-16x4"``, two of four for ``"2:4"``. Without them, w's own zeros are all.
    **options
        Those of `compress`.

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
    if sparsity is None and threshold is None:
        return compress(w, parsed, **options)
    pattern = parsed if parsed.pattern else None
    turned = options.get("in_axis", 1) == 0  # patterns lie in the matrix as it is stored
    pruned = prune(
        map_weights(w, _turn) if turned else w,
        sparsity, threshold=threshold, pattern=pattern, method=method, scope=scope,
    )  # fmt: skip
    return compress(map_weights(pruned, _turn) if turned else pruned, parsed, **options)


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
