"""GGUF, the format of llama.cpp: its header (`header`, `fields`), its tensor types (`blocks`), the reader; and what an
export needs: our arrays as its types (`encoding`), Hugging Face's names (`names`), the file (`writer`)."""

from __future__ import annotations

from pumice.checkpoint.gguf.reader import GGUFReader

__all__ = ["GGUFReader"]
