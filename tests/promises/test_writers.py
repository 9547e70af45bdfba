"""The target is the old file or the new one, whatever happens to the writer; the next run leaves nothing stray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pumice as pm
from pumice.checkpoint import SafetensorsWriter, TensorInfo

HERE = Path(__file__).parent
SCENARIOS = [
    "new-file", "file", "single-to-single", "single-to-shards", "shards-to-single", "shards-to-shards",
    "convert-new", "convert-shards", "export-npz", "export-gguf",
]  # fmt: skip
Count = Callable[[str, object], None]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_faults_and_kills_leave_the_old_or_the_new(
    scenario: str, faults: Path, long: bool, count: Count, tmp_path: Path
) -> None:
    most, kills = (10**6, 500) if long else (120, 63)
    environment = os.environ | {"LD_PRELOAD": str(faults), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, HERE / "writing.py", tmp_path, faults, str(most), str(kills), scenario]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    count(f"writer faults, {scenario}", result["counts"])
    assert result["broken"] == []
    assert result["counts"]["ENOSPC"] >= 4
    assert result["counts"]["SIGKILL at random"] == kills


def weights(value: float) -> dict[str, np.ndarray]:
    return {f"l{i}.weight": np.full((16, 16), value + i, np.float32) for i in range(4)}


def test_a_file_that_is_mapped_is_not_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    pm.save(path, weights(1))
    before = path.read_bytes()
    m = pm.load(path)
    kept = m["l0.weight"]
    m.close()
    with path.open("r+b") as file:
        with pytest.raises(ValueError, match=r"target: expected a file that is not open for reading, .* is mapped"):
            pm.save(file, weights(2))
        assert path.read_bytes() == before
        del kept, m
        pm.save(file, weights(2))
    assert pm.load(path)["l0.weight"][0, 0] == 2
    kept = pm.load(path)["l1.weight"]
    pm.save(path, weights(3))  # a path gets a new file: the old one lives on under the mapping
    assert kept[0, 0] == 3
    assert pm.load(path)["l1.weight"][0, 0] == 4


def test_shards_never_take_the_names_of_those_that_are_there(tmp_path: Path) -> None:
    for value in range(4):
        pm.save(tmp_path, weights(value), max_shard_size=2000)
        assert pm.load(tmp_path)["l2.weight"][0, 0] == value + 2
        names = sorted(path.name for path in tmp_path.iterdir())
        stem = "model-2" if value % 2 else "model"
        assert names == sorted([f"{stem}-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)] + [
            "model.safetensors.index.json"
        ])  # fmt: skip


def test_a_living_writer_keeps_its_files_while_others_sweep(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path, max_shard_size=100) as slow:
        for name in ("a", "b", "c"):
            slow.begin(name, TensorInfo((64,), "F32"))
            slow.write("", np.ones(64, np.float32))
        pm.save(tmp_path, weights(1))
        slow.commit()
    assert sorted(pm.load(tmp_path)) == ["a", "b", "c"]
    assert pm.verify(tmp_path).ok
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_writers_that_race_leave_one_whole_winner(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def write(value: int) -> None:
        try:
            for turn in range(20):
                pm.save(tmp_path, weights(value), max_shard_size=2000 if (turn + value) % 2 else 10**9)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(value,)) for value in (10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert pm.verify(tmp_path).ok
    with pm.load(tmp_path) as m:
        assert {m[f"l{i}.weight"][0, 0] - i for i in range(4)} in ({10}, {20}, {30})
        shards = len({tmp_path / "model.safetensors"} & set(tmp_path.iterdir())) or 5
    assert len(list(tmp_path.iterdir())) == shards


@pytest.mark.parametrize(
    "name", ["../precious.txt", "precious.txt", "sub/../../precious.txt", "{root}/precious.txt", "m/x"]
)
@pytest.mark.parametrize("inode", [None, "its", 0])
def test_a_ledger_that_lies_removes_nothing_else(name: str, inode: object, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "m").mkdir(parents=True)
    for place in (tmp_path / "precious.txt", folder / "precious.txt", folder / "m" / "x"):
        place.write_text("precious")
    name = name.format(root=tmp_path)
    if inode == "its":
        inode = os.stat(os.path.normpath(folder / name)).st_ino
    ledger = folder / ".pumice.0123456789ab.tmp"
    ledger.write_text(f'{json.dumps([name, inode])}\nnull\n[1, 2]\n{{}}\n[[], null]\n["cut')
    pm.save(folder, weights(1))
    assert (tmp_path / "precious.txt").exists()
    assert (folder / "precious.txt").exists()
    assert (folder / "m" / "x").exists()
    assert not ledger.exists()


def test_what_another_user_left_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = tmp_path / ".pumice.0123456789ab.tmp"
    ledger.write_text("")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    pm.save(tmp_path, weights(1))
    assert ledger.exists()
