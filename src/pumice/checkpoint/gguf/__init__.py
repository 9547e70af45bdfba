"""GGUF, the format of llama.cpp: its header (`header`, `fields`), its tensor types (`blocks`) and the reader."""

from __future__ import annotations

from pumice.checkpoint.gguf.reader import GGUFReader

__all__ = ["GGUFReader"]
