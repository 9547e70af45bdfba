"""Columns in another order: stored column j is column ``perm[j]`` of the weight."""

from __future__ import annotations

import numpy as np

from pumice.reference.base import F32, LAYOUTS, Parts
from pumice.scheme import Scheme

PERM = "perm"


def decode_in_order(parts: Parts, scheme: Scheme, rows: int, cols: int) -> F32:
    """The weights of one array, each column where it belongs."""
    definition = LAYOUTS[scheme.layout]
    if PERM not in parts or scheme.terms:  # the terms of a sum have one each
        return definition.decode(parts, scheme, rows, cols)
    stored = definition.decode(without_order(parts), scheme, rows, cols)
    w = np.empty_like(stored)
    for j, column in enumerate(parts[PERM]):
        w[:, column] = stored[:, j]
    return w


def without_order(parts: Parts) -> Parts:
    return {name: part for name, part in parts.items() if name != PERM}
