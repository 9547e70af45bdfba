"""Folders of safetensors: shards, their index, and what is no set of weights."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pumice as pm
from tests.states import same, weights

RNG = np.random.default_rng(4)


# Shards.


def test_shards_have_an_index_and_old_shards_go(tmp_path: Path) -> None:
    state = {f"w{i}": RNG.standard_normal(100) for i in range(6)}
    pm.save(tmp_path / "m", state, max_shard_size=2000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4800
    assert sorted(index["weight_map"]) == sorted(state)
    assert sorted({*index["weight_map"].values()}) == sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert all(same(pm.load(tmp_path / "m")[n], a) for n, a in state.items())
    pm.save(tmp_path / "m", state)
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["model.safetensors"]


def test_the_parts_of_an_array_stay_together(tmp_path: Path) -> None:
    pm.save(tmp_path, {f"w{i}": pm.compress(weights(), "csr") for i in range(4)}, max_shard_size=1)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for i in range(4):
        assert len({file for name, file in index.items() if name.startswith(f"w{i}_")}) == 1


def sharded(tmp_path: Path) -> Path:
    pm.save(tmp_path / "m", {f"w{i}": np.ones(100) for i in range(5)}, max_shard_size=1700)
    return tmp_path / "m"


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(pm.FormatError, match=r"shard 2 of 3, 'model-00002-of-00003.safetensors'.*no such file"):
        pm.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["weight_map"].update(w0="../m/model-00001-of-00003.safetensors"), "a file name without folders"),
        (lambda t: t["weight_map"].update(w0="/etc/passwd"), "a file name without folders"),
        (lambda t: t["weight_map"].update(w0=3), "a file name without folders"),
        (
            lambda t: t["weight_map"].update(w0="model-00002-of-00003.safetensors"),
            "no such tensor|the file that holds it",
        ),
        (lambda t: t["weight_map"].update(w9="model-00002-of-00003.safetensors"), "no such tensor there"),
        (
            lambda t: t["weight_map"].pop("w0"),
            "w0: expected an index that names it, got none, and it is in 'model",
        ),
        (lambda t: t.pop("weight_map"), "a weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    edit_index(folder, change)
    with pytest.raises(pm.FormatError, match=message):
        pm.load(folder)


# What is no weights file at all.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", r"a Git LFS pointer.*git lfs pull"),
        (b"\x80\x02}q\x00.", "a pickle, which could run code|at least 8 bytes"),
        (b"PK\x03\x04" + bytes(100), "the end record of a ZIP archive|a header of"),
        (b"abc", "a known format|at least 8 bytes"),
    ],
)
def test_other_files_are_refused_with_the_reason(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for source in (path, tmp_path):
        with pytest.raises(pm.FormatError, match=message):
            pm.load(source)


def test_folders_without_one_set_of_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(pm.FormatError, match=r"a folder with weights, got config\.json"):
        pm.load(tmp_path)
    for name in ("a", "b"):
        pm.save(tmp_path / f"{name}.safetensors", {"x": np.ones(2)})
    with pytest.raises(pm.FormatError, match=r"got a\.safetensors, b\.safetensors \(give the path of one file\)"):
        pm.load(tmp_path)
    (tmp_path / "shards").mkdir()
    pm.save(tmp_path / "shards" / "model-00001-of-00002.safetensors", {"x": np.ones(2)})
    with pytest.raises(pm.FormatError, match="one weights file"):
        pm.load(tmp_path / "shards")  # a shard alone, without its index, is not the model
    with pytest.raises(FileNotFoundError, match="path: expected an existing file or folder"):
        pm.load(tmp_path / "nothing")
    with pytest.raises(pm.FormatError, match="a file or folder"):
        pm.load("/dev/null")
    with pytest.raises(TypeError, match="source: expected a path, bytes or a binary file, got int"):
        pm.load(3)
    with pytest.raises(TypeError, match="a binary file, got one that reads str"):
        pm.load(io.StringIO("x"))
