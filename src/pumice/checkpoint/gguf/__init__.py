"""GGUF, the format of llama.cpp: its header (`header`, `fields`), its tensor types (`blocks`), a reader, an export."""

from __future__ import annotations

from pumice.checkpoint.gguf.export import Exported, export_gguf
from pumice.checkpoint.gguf.reader import GGUFReader

__all__ = ["Exported", "GGUFReader", "export_gguf"]
