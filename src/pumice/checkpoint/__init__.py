"""File formats behind one Reader and one Writer protocol, chosen by content. One file a format."""

from __future__ import annotations

from pumice.checkpoint.base import Reader, TensorInfo, Writer, open_reader
from pumice.checkpoint.safetensors import SafetensorsReader
from pumice.checkpoint.store import Checkpoint, load, save
from pumice.checkpoint.verification import VerifyReport, verify
from pumice.checkpoint.writer import SafetensorsWriter

__all__ = [
    "Checkpoint",
    "Reader",
    "SafetensorsReader",
    "SafetensorsWriter",
    "TensorInfo",
    "VerifyReport",
    "Writer",
    "load",
    "open_reader",
    "save",
    "verify",
]
