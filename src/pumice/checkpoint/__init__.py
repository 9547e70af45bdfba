"""File formats behind one Reader and one Writer protocol, chosen by content. One file a format."""

from __future__ import annotations

from pumice.checkpoint.base import Reader, TensorInfo, Writer, open_reader
from pumice.checkpoint.gguf import GGUFReader
from pumice.checkpoint.numpy_files import NumpyReader
from pumice.checkpoint.safetensors import SafetensorsReader
from pumice.checkpoint.store import Checkpoint, load, save
from pumice.checkpoint.torch_zip import TorchReader
from pumice.checkpoint.verification import VerifyReport, verify
from pumice.checkpoint.writer import SafetensorsWriter

__all__ = [
    "Checkpoint",
    "GGUFReader",
    "NumpyReader",
    "Reader",
    "SafetensorsReader",
    "SafetensorsWriter",
    "TensorInfo",
    "TorchReader",
    "VerifyReport",
    "Writer",
    "load",
    "open_reader",
    "save",
    "verify",
]
