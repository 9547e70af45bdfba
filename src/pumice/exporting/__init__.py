"""Checkpoints for other programs. One file a format; the imports below register them."""

from __future__ import annotations

from pumice.exporting import compressed_tensors as _compressed_tensors  # noqa: F401
from pumice.exporting import dense as _dense  # noqa: F401
from pumice.exporting import gguf as _gguf  # noqa: F401
from pumice.exporting import npz as _npz  # noqa: F401
from pumice.exporting.base import FORMATS, export

__all__ = ["FORMATS", "export"]
