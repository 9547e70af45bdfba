"""Wanda: weights that are small or meet small inputs matter least (Sun et al. 2023, arXiv:2306.11695)."""

from __future__ import annotations

import numpy as np

from pumice.pruning.base import register
from pumice.pruning.selection import Weights
from pumice.statistics import Moments


@register("wanda", needs=("moments",), scope="row")
def wanda(w: Weights, moments: Moments) -> Weights:
    """The score of a weight is its absolute value times the root mean square of its input."""
    norms = moments.norms()
    if w.dtype == np.float16:
        return np.abs(w).astype(np.float32) * norms
    return np.abs(w) * norms.astype(w.dtype)
