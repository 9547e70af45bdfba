"""Random pruning: the baseline that any method must beat."""

from __future__ import annotations

import numpy as np

from pumice.pruning.base import register
from pumice.pruning.selection import Weights


@register("random", needs=("rng",))
def random(w: Weights, rng: np.random.Generator) -> Weights:
    """Scores are random, from `seed` and the name of the weight."""
    return rng.random(w.shape)
