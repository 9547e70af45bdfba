"""Pruning: which weights to remove. One file a method; the imports below register them."""

from __future__ import annotations

from pumice.pruning import magnitude, random, sparsegpt, wanda  # noqa: F401
from pumice.pruning.base import PRUNERS, Pruner, Solved, prune, register, register_solver
from pumice.pruning.masks import Masks
from pumice.pruning.request import Pruning
from pumice.pruning.schedule import cubic_sparsity
from pumice.pruning.selection import Rule
from pumice.pruning.sparsification import prune_and_compress, sparsify

__all__ = [
    "PRUNERS",
    "Masks",
    "Pruner",
    "Pruning",
    "Rule",
    "Solved",
    "cubic_sparsity",
    "prune",
    "prune_and_compress",
    "register",
    "register_solver",
    "sparsify",
]
