"""Wanda: weights that are small or meet small inputs matter least (Sun et al. 2023, arXiv:2306.11695)."""

from __future__ import annotations

import numpy as np

from pumice.pruning.base import register
from pumice.pruning.selection import Weights
from pumice.statistics import Moments

SAFE = 2.0**-60, 2.0**127  # the largest score of a layer, for float32 to hold the others as well


@register("wanda", needs=("moments",), scope="row")
def wanda(w: Weights, moments: Moments) -> Weights:
    """The score of a weight is its absolute value times the root mean square of its input."""
    norms, sizes = moments.norms(), np.abs(w)
    largest = float(sizes.max(initial=0)) * float(norms.max())
    wide = w.dtype.itemsize > 4 or not (largest == 0 or SAFE[0] < largest < SAFE[1])
    scores: Weights = np.multiply(sizes, norms, dtype=np.float64 if wide else np.float32)
    return scores
