"""The pairs that `torch.nn.utils.prune` keeps: the weights before pruning, and a mask."""

from __future__ import annotations

from collections.abc import Collection

ORIGINAL, MASK = "_orig", "_mask"


def masked_pairs(names: Collection[object]) -> dict[str, tuple[str, str]]:
    """Name -> (X_orig, X_mask) of what is there as such a pair, in the order of the names.

    Examples
    --------
    >>> masked_pairs(["fc.weight_orig", "fc.weight_mask", "fc.bias"])
    {'fc.weight': ('fc.weight_orig', 'fc.weight_mask')}
    """
    pairs = {}
    for original in names:
        if not isinstance(original, str) or not original.endswith(ORIGINAL):
            continue
        name = original.removesuffix(ORIGINAL)
        mask = name + MASK
        if mask in names:
            pairs[name] = original, mask
    return pairs
