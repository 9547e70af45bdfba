"""Sums of two schemes: weights and products add up; how an encoder splits weights between a dense and a sparse one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pumice.reference.base import F32, LAYOUTS, Definition, Parts
from pumice.reference.permutation import decode_in_order
from pumice.scheme import Scheme

SECOND = "and_"
SHARE = 0.005
BAND = 32


def terms_of(parts: Parts, scheme: Scheme) -> list[tuple[Scheme, Parts]]:
    """Each term's scheme and parts."""
    ours = {name: part for name, part in parts.items() if not name.startswith(SECOND)}
    theirs = {name.removeprefix(SECOND): part for name, part in parts.items() if name.startswith(SECOND)}
    return list(zip(scheme.terms, (ours, theirs), strict=True))


def outliers(w: F32, group: int | None, share: float) -> NDArray[np.bool_]:
    """True for the floor(share * size) weights that are largest beside the root mean square of their group."""
    rows, cols = w.shape
    scores = []
    for row in range(rows):
        for column in range(cols):
            start = 0 if group is None else column // group * group
            there = w[row, start : cols if group is None else start + group].astype(np.float64)
            rms = math.sqrt(np.add.reduce(there**2) / len(there))
            scores.append(abs(float(w[row, column])) / rms if rms > 0 else 0.0)
    marked = np.zeros(rows * cols, bool)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    marked[order[: math.floor(share * len(scores))]] = True
    marked &= w.reshape(-1) != 0
    return marked.reshape(w.shape)


def encode(w: F32, scheme: Scheme) -> Parts:
    dense, sparse = scheme.terms
    marked = np.zeros(w.shape, bool)
    for top in range(0, len(w), BAND):
        marked[top : top + BAND] = outliers(w[top : top + BAND], dense.group, SHARE)
    first = LAYOUTS[dense.layout].encode(np.where(marked, np.float32(0), w), dense)
    missed = np.where(marked, w - LAYOUTS[dense.layout].decode(first, dense, *w.shape), np.float32(0))
    second = LAYOUTS[sparse.layout].encode(missed, sparse)
    return first | {SECOND + name: part for name, part in second.items()}


def decode(parts: Parts, scheme: Scheme, rows: int, cols: int) -> F32:
    first, second = (decode_in_order(p, s, rows, cols) for s, p in terms_of(parts, scheme))
    return first + second


LAYOUTS["sum"] = Definition(encode, decode)
