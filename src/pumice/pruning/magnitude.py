"""Magnitude pruning: small weights matter least (Han et al. 2015, arXiv:1506.02626)."""

from __future__ import annotations

import numpy as np

from pumice.pruning.base import register
from pumice.pruning.selection import Weights


@register("magnitude")
def magnitude(w: Weights) -> Weights:
    """The score of a weight is its absolute value."""
    return np.abs(w)
