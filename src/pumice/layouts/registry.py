"""The layouts there are, and the one way to build an array from stored parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pumice.errors import FormatError
from pumice.scheme import Scheme, register_layout
from pumice.values.base import Array

if TYPE_CHECKING:
    from pumice.layouts.base import CompactArray

LAYOUTS: dict[str, type[CompactArray]] = {}

WRAPPERS: dict[str, type[CompactArray]] = {}
"""Name of a part that any array may have beside those of its scheme -> what the array then is."""


def register(cls: type[CompactArray]) -> type[CompactArray]:
    """Make a layout known under its name, to the grammar and to `from_parts`; a class decorator."""
    LAYOUTS[cls.grammar.name] = cls
    register_layout(cls.grammar)
    return cls


def from_parts(scheme: str | Scheme, shape: tuple[int, ...], parts: Mapping[str, Array]) -> CompactArray:
    """Build an array from its stored parts. Everything is validated; FormatError names the part and the rule.

    Parameters
    ----------
    scheme : str
        Such as ``"int4-g128"``.
    shape : tuple of int
        The logical shape, at least two dimensions.
    parts : mapping of str to ndarray
        As `CompactArray.parts` gives them. Index parts are copied, since a caller could change them afterwards.

    Raises
    ------
    SchemeError
        The scheme is not legal.
    FormatError
        A part is missing or too many, has another dtype or shape than the scheme says, or breaks a rule.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = pm.compress(np.eye(4, 32), "int8")
    >>> from_parts(w.scheme, w.shape, w.parts())
    <DenseArray int8 (4, 32) 160 bytes, 10 bits per weight>
    """
    parsed = Scheme.parse(scheme)
    shape = tuple(int(n) for n in shape)
    if len(shape) < 2 or any(n < 0 for n in shape):
        raise FormatError(None, "shape", "at least two dimensions", shape)
    for name, part in parts.items():
        if not isinstance(part, np.ndarray):
            raise FormatError(None, name, "an ndarray", type(part).__name__)
    stored = parts.get("shape")
    if stored is not None and (stored.dtype != np.int64 or tuple(stored.reshape(-1).tolist()) != shape):
        raise FormatError(None, "shape", f"int64 {list(shape)}", f"{stored.dtype} {stored.tolist()}")
    return build(parsed, shape, parts)


def build(scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Array]) -> CompactArray:
    """`from_parts` for a scheme and a shape that are known to be legal."""
    wrapper = next((WRAPPERS[name] for name in parts if name in WRAPPERS), None)
    if wrapper is not None and not scheme.terms:  # of a sum, each term has its own
        return wrapper.from_parts(scheme, shape, parts)
    return LAYOUTS[scheme.layout].from_parts(scheme, shape, parts)
