"""Quantization: which numbers codes stand for, and which code a weight gets. The imports below register the methods."""

from __future__ import annotations

from pumice.quantization import clipping, gptq  # noqa: F401
from pumice.quantization.base import METHODS, Outcome, Task, has_integers, options_of, quantize_matrix, register
from pumice.quantization.clipping import CLIPS, register_clip

__all__ = [
    "CLIPS",
    "METHODS",
    "Outcome",
    "Task",
    "has_integers",
    "options_of",
    "quantize_matrix",
    "register",
    "register_clip",
]
