"""The checkpoint, what becomes of it, and chunks that are small."""

from __future__ import annotations

from pathlib import Path

import pytest

import pumice as pm
from pumice.conversion import plan

from .cases import convert, digest, state


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CHUNK_BYTES", 64 * 64 * 4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pm.save(tmp_path / "source", state(), max_shard_size=40_000)
    (tmp_path / "source" / "config.json").write_text("{}")
    return tmp_path / "source"


@pytest.fixture
def expected(source: Path) -> str:
    convert(source, source.with_name("expected"))
    return digest(source.with_name("expected"))
