"""Pruning: which weights to remove. One file a method; the imports below register them."""

from __future__ import annotations

from pumice.pruning import magnitude  # noqa: F401
from pumice.pruning.base import PRUNERS, prune, register
from pumice.pruning.sparsification import sparsify

__all__ = ["PRUNERS", "prune", "register", "sparsify"]
