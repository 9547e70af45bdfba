"""What a definition is, and the two tables of definitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice.scheme import Scheme

F32: TypeAlias = NDArray[np.float32]
Parts: TypeAlias = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Integers:
    """Weights of an integer product: ``w = steps * scale + minimum``, one scale per row and group of columns.

    `steps` (rows, cols) is code - zero, `scales` (rows, groups) float32, `group` columns share a scale. `minima` are as
    scales; None where no minimum is added.
    """

    steps: NDArray[np.int64]
    scales: F32
    group: int
    minima: F32 | None = None


@dataclass(frozen=True)
class Definition:
    """What a values codec, or a layout, means.

    Parameters
    ----------
    encode : (w, scheme) -> parts
        From finite float32 (rows, cols) to the parts of the canonical form, as a file has them.
    decode : (parts, scheme, rows, cols) -> w
        Back to float32 (rows, cols).
    integers : (parts, scheme, rows, cols) -> Integers or None
        The integers behind the weights; None where they are floats.
    """

    encode: Callable[[F32, Scheme], Parts]
    decode: Callable[[Parts, Scheme, int, int], F32]
    integers: Callable[[Parts, Scheme, int, int], Integers | None] = lambda parts, scheme, rows, cols: None


VALUES: dict[str, Definition] = {}
"""Name of a codec -> what it means in the dense layout."""

LAYOUTS: dict[str, Definition] = {}
"""Name of a layout -> what it means."""


def _of(scheme: Scheme) -> Definition:
    return VALUES[scheme.values]


LAYOUTS["dense"] = Definition(
    encode=lambda w, scheme: _of(scheme).encode(w, scheme),
    decode=lambda parts, scheme, rows, cols: _of(scheme).decode(parts, scheme, rows, cols),
    integers=lambda parts, scheme, rows, cols: _of(scheme).integers(parts, scheme, rows, cols),
)
