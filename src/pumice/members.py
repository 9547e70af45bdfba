"""What takes one array also takes a mapping or a list of them, and gives the same back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pumice.layouts import CompactArray


def is_collection(value: Any) -> bool:
    """Whether `value` is a mapping, list or tuple of arrays."""
    return isinstance(value, Mapping | list | tuple)


def is_weight(value: Any) -> bool:
    """Whether a member of a collection is a weight; 1-D, integer and bool members are not."""
    if isinstance(value, CompactArray) or hasattr(value, "tocsr"):
        return True
    array = np.asarray(value)
    return array.ndim >= 2 and array.dtype.kind not in "iub"


def members(value: Any, name: str = "w") -> dict[Any, tuple[str, Any]]:
    """Key -> (name for errors, member) of a collection."""
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    found = {key: (f"{name}[{key!r}]", member) for key, member in pairs}
    for label, member in found.values():
        if not isinstance(member, CompactArray) and not hasattr(member, "shape"):
            raise TypeError(f"{label}: expected an array, got {type(member).__name__}")
    return found


def rebuild(value: Any, results: dict[Any, Any]) -> Any:
    """`results` by key, as the kind of collection that `value` is: dict, list or tuple."""
    if isinstance(value, Mapping):
        return results
    return tuple(results.values()) if isinstance(value, tuple) else list(results.values())


def map_members(value: Any, one: Callable[[str, Any, Any], Any], name: str = "w") -> Any:
    """`one(label, key, weight)` for a weight, its key None, or for each of a collection; other members pass through."""
    if not is_collection(value):
        return one(name, None, value)
    results = {
        key: one(label, key, member) if is_weight(member) else member
        for key, (label, member) in members(value, name).items()
    }
    return rebuild(value, results)


def map_weights(value: Any, one: Callable[[str, Any], Any], name: str = "w") -> Any:
    """`one(label, weight)` for a weight, or for each weight of a collection; other members pass through."""
    return map_members(value, lambda label, _, weight: one(label, weight), name)
