"""Conversions that are stopped, shared and squeezed: the same bytes in the end, or an error that says why not."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pumice as pm
from pumice.cli import main
from pumice.conversion import budget, chunks, driving, plan
from pumice.conversion.work import FOLDER, Work
from pumice.profile import load_profile

from .cases import RECIPE, RNG, Stop, after, changed_version, convert, digest, state, stop


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_any_number_of_threads_writes_the_same_bytes(workers: int, source: Path, expected: str) -> None:
    convert(source, source.with_name("t"), workers=workers)
    assert digest(source.with_name("t")) == expected
    assert pm.verify(source.with_name("t")).ok


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(2), lambda: ProcessPoolExecutor(2, get_context("spawn"))])
def test_any_executor_writes_the_same_bytes(make: Callable[[], Executor], source: Path, expected: str) -> None:
    with make() as executor:
        convert(source, source.with_name("t"), executor=executor)
    assert digest(source.with_name("t")) == expected


def test_of_several_failures_the_first_in_the_plan_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = np.full((64, 64), np.nan, np.float32)
    pm.save(tmp_path / "s.safetensors", {"a.weight": bad, "b.weight": bad, "c.weight": bad})
    others = threading.Semaphore(0)

    def run(task: chunks.Chunk, run: Callable[..., Any] = driving.run) -> Any:
        """Another fails before the first begins."""
        if task.name == "a.weight":
            assert others.acquire(timeout=30)
        try:
            return run(task)
        finally:
            others.release()

    monkeypatch.setattr(driving, "run", run)
    with pytest.raises(pm.NonFiniteError, match="a.weight"), ThreadPoolExecutor(3) as executor:
        pm.convert(tmp_path / "s.safetensors", tmp_path / "t.safetensors", "int8", executor=executor)


def test_tasks_in_any_order_and_a_commit_write_the_same_bytes(source: Path, expected: str) -> None:
    target = source.with_name("t")
    shares = [convert(source, target, task=(i, 3)).tensors for i in (3, 1)]
    with pytest.raises(pm.ResumeError, match="commit: expected the chunks of all tensors, got none or some of"):
        convert(source, target, commit=True)
    shares.append(convert(source, target, task=(2, 3)).tensors)
    assert sorted(t.name for share in shares for t in share) == sorted(state())
    assert [path.name for path in target.iterdir()] == [FOLDER]
    convert(source, target, commit=True)
    assert digest(target) == expected


@pytest.mark.parametrize("count", [0, 5, 11, 20])
def test_an_interrupted_conversion_goes_on(
    count: int, source: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, encoded = source.with_name("t"), []
    monkeypatch.setattr(driving, "run", lambda task, run=driving.run: encoded.append(task) or run(task))
    with pytest.raises(Stop):
        convert(source, target, progress=after(count, stop))
    assert [path.name for path in target.iterdir()] == [FOLDER]
    first = len(encoded)
    convert(source, target, resume=True)
    twice = len(encoded) - len({(t.name, getattr(t, "key", "")) for t in encoded})
    assert first >= count - 1  # what is copied is no task
    assert twice == 0  # nothing that was done is done again
    assert digest(target) == expected


def test_chunks_that_nobody_came_to_note_count(source: Path, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But only beside a journal that says what they are of."""
    target, encoded = source.with_name("t"), []
    with pytest.raises(Stop):
        convert(source, target, progress=after(14, stop))
    journal = target / FOLDER / "journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    finished = [path.name for path in (target / FOLDER / "chunks").iterdir()]
    assert len(finished) >= 3
    journal.write_bytes(lines[0])
    monkeypatch.setattr(driving, "run", lambda task, run=driving.run: encoded.append(task) or run(task))
    with pytest.raises(Stop):
        convert(source, target, resume=True, progress=after(20, stop))
    assert not set(finished) & {getattr(task, "key", "") for task in encoded}
    journal.unlink()
    encoded.clear()
    convert(source, target, resume=True)
    assert set(finished) <= {getattr(task, "key", "") for task in encoded}
    assert digest(target) == expected


def test_what_was_not_asked_for_is_neither_resumed_nor_lost(source: Path, expected: str) -> None:
    target = source.with_name("t")
    with pytest.raises(Stop):
        convert(source, target, progress=after(9, stop))
    with pytest.raises(pm.ResumeError, match=r"resume=True \(--resume\) to go on .* got an unfinished conversion"):
        convert(source, target)
    convert(source, target, overwrite=True)
    assert digest(target) == expected


def changed_source(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    os.utime(next(source.glob("*00001*")), ns=(0, 12345))
    return {}


CHANGES = {
    'recipe, scheme was null, is "int8"': lambda *_: {"scheme": "int8"},
    "recipe, keep_embeddings was false, is true": lambda *_: {"keep_embeddings": True},
    "layout, max_shard_size was 20000, is 30000": lambda *_: {"max_shard_size": 30_000},
    'version was ".*", is "99"': changed_version,
    r"source, .*00001-of-.* was \[.*\], is \[.*12345\]": changed_source,
}


@pytest.mark.parametrize("difference", CHANGES)
def test_another_conversion_is_refused_with_the_difference(
    difference: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = source.with_name("t")
    recipe = pm.Recipe.parse('[[rule]]\nmatch = "l"\nscheme = "int4-g32"')
    with pytest.raises(Stop):
        convert(source, target, recipe=recipe, progress=after(3, stop))
    options = CHANGES[difference](source, monkeypatch)
    with pytest.raises(pm.ResumeError, match=f"got another one: {difference}$"):
        convert(source, target, recipe=recipe, resume=True, **options)


def test_damage_to_unfinished_work_is_found_and_done_again(source: Path, expected: str) -> None:
    target = source.with_name("t")
    with pytest.raises(Stop):
        convert(source, target, progress=after(14, stop))
    work = target / FOLDER
    files = sorted((work / "chunks").iterdir())
    assert len(files) >= 3
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"?")
    files[1].write_bytes(files[1].read_bytes()[:100])
    files[2].unlink()
    (work / "chunks" / "000001-0.0123.tmp").write_bytes(b"a dead worker's half part")
    with (work / "journal").open("ab") as journal:
        journal.write(b'00000000 ["chunk", {"cut sho')
    convert(source, target, resume=True)
    assert digest(target) == expected


def test_a_second_conversion_is_told_who_is_at_work(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = source.with_name("t")
    told: list[int] = []

    def second() -> None:
        told.append(main(["convert", str(source), str(target), "--scheme", "int8", "--overwrite"]))

    convert(source, target, progress=after(2, second))
    assert told == [75]
    assert f"expected no other conversion into '{target}', got process {os.getpid()} on" in capsys.readouterr().err
    assert pm.verify(target).ok


@pytest.mark.parametrize("harm", ["changes", "vanishes"])
def test_a_source_that_does_not_last_is_an_error(harm: str, source: Path) -> None:
    shard = sorted(source.glob("*.safetensors"))[-1]
    act = {"changes": lambda: os.utime(shard, ns=(1, 1)), "vanishes": shard.unlink}[harm]
    with pytest.raises(pm.SourceChangedError, match=f"{shard.name}.*(changed? while|vanished)"):
        convert(source, source.with_name("t"), progress=after(1, act), workers=1)


def test_a_target_within_the_source_folder_is_not_taken_for_a_part_of_it(source: Path, expected: str) -> None:
    convert(source, source / "small")
    assert digest(source / "small") == expected


def test_times_in_the_future_and_the_past_do_not_matter(source: Path, expected: str) -> None:
    for file, time in zip(sorted(source.iterdir()), (0, 2**33, -(10**6), 1, 2, 3, 4, 5), strict=False):
        os.utime(file, (time, time))
    target = source.with_name("t")
    with pytest.raises(Stop):
        convert(source, target, progress=after(7, stop))
    for path in (target / FOLDER).rglob("*"):
        os.utime(path, (2**33, 2**33))
    convert(source, target, resume=True)
    assert digest(target) == expected


def test_names_that_would_collide_are_found_before_anything_is_encoded(tmp_path: Path) -> None:
    w = np.eye(32, dtype=np.float32)
    pm.save(tmp_path / "a.safetensors", {"x.weight": w, "x.weight_packed": w})
    with pytest.raises(
        pm.PumiceError, match=r"got 'x.weight_packed', which both 'x.weight' and 'x.weight_packed' need"
    ):
        pm.convert(tmp_path / "a.safetensors", tmp_path / "b", "int8")
    assert not (tmp_path / "b").exists()


def test_weights_that_err_too_much_are_named_and_nothing_is_written(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = source.with_name("t")
    command = ["convert", str(source), str(target), "--scheme", "int4-g32", "--tensor", "l[12]=int2-g16", "--max-error"]
    assert main([*command, "0.2"]) == 65
    error = capsys.readouterr().err
    assert "expected at most 0.2 of each weight, got more of 2: " in error
    assert "l1.weight 0." in error
    assert "l3" not in error
    assert [path.name for path in target.iterdir()] == [FOLDER]
    assert main([*command, "0.9", "--resume"]) == 0
    assert pm.verify(target).ok


@pytest.mark.parametrize("scheme", ["int4-g32", "int8", "float16", "2:4+int8", "int4-g32-asym"])
def test_a_dry_run_knows_sizes_within_a_hundredth(scheme: str, tmp_path: Path) -> None:
    weights = {f"l{i}.weight": RNG.standard_normal((1024, 1024)).astype(np.float16) for i in range(3)}
    pm.save(tmp_path / "a.safetensors", {k: pm.prune(w, pattern="2:4") for k, w in weights.items()})
    dry = pm.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", scheme, dry_run=True)
    assert not (tmp_path / "b.safetensors").exists()
    pm.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", scheme)
    assert dry.nbytes_after == pytest.approx(os.path.getsize(tmp_path / "b.safetensors"), rel=0.01)
    assert dry.seconds > 0
    assert dry.memory > 0


def test_a_source_that_is_deleted_gives_its_bytes_back_shard_by_shard(source: Path, expected: str) -> None:
    target, before = source.with_name("t"), sum(f.stat().st_blocks for f in source.glob("*.safetensors"))
    with pytest.raises(Stop):
        convert(source, target, delete_source=True, progress=after(22, stop), workers=1)
    assert sum(f.stat().st_blocks for f in source.glob("*.safetensors")) < before
    assert (target / FOLDER / "shard-00001.safetensors").exists()
    convert(source, target, delete_source=True, resume=True)
    assert digest(target) == expected
    assert not list(source.glob("*.safetensors"))


@pytest.mark.parametrize("deleted", [False, True], ids=["the source stays", "the source goes"])
def test_it_takes_the_disk_of_its_output_and_a_shard(
    deleted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, shard = tmp_path / "s", tmp_path / "t", 650_000
    weights = {f"l{i:02}.weight": RNG.standard_normal((256, 1024)).astype(np.float16) for i in range(16)}
    pm.save(source, weights, max_shard_size=2_200_000)  # four tensors of 524,288 bytes a file, as in a shard
    before, seen = disk(source), []

    def look(*_: object) -> None:
        seen.append(disk(target) + (disk(source) if deleted else 0))

    def note(self: Work, *args: Any, kept: Callable[..., None] = Work.note) -> None:
        look()  # a shard is written, its chunks are still there
        kept(self, *args)

    monkeypatch.setattr(Work, "note", note)
    pm.convert(source, target, "int4-g32", max_shard_size=shard, workers=2, delete_source=deleted, progress=look)
    output = disk(target)
    assert len(list(target.glob("*.safetensors"))) == 4
    tables = 64 << 10  # of chunks and the journal, and the rest of their last blocks
    ahead = 2 * 4 * 160_000  # chunks that two workers have in hand, and those that wait for their shard's turn
    most = before + 2 * shard + ahead if deleted else output + shard
    assert output < max(seen) <= most + tables


def disk(folder: Path) -> int:
    """Bytes of the files in a folder, each once, and those of a hole not at all."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # workers rename theirs
            about = path.stat()
            found[about.st_ino] = min(about.st_size, 512 * about.st_blocks) if path.is_file() else 0
    return sum(found.values())


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM and RLIMIT_AS are Linux's")
def test_memory_is_held_to_its_limit(tmp_path: Path) -> None:
    script = """
import resource, sys
import numpy as np, pumice as pm
from pumice.checkpoint import SafetensorsWriter, TensorInfo
with SafetensorsWriter(sys.argv[1] + "/a.safetensors") as writer:
    writer.begin("big.weight", TensorInfo((1 << 16, 1024), "F16"))
    for _ in range(16):
        writer.write("", bytes(8 << 20))
    writer.commit()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (128 << 20),) * 2)
pm.convert(sys.argv[1] + "/a.safetensors", sys.argv[1] + "/b.safetensors", "int4-g128")
status = open("/proc/self/status").read()  # ru_maxrss is that of the parent, too
print(int(status.split("VmHWM:")[1].split()[0]) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * 32 + 256  # MiB


def test_too_little_memory_is_refused_before_anything_is_read(source: Path) -> None:
    with pytest.raises(MemoryError, match="max_memory: expected at least .* bytes beside what the process has"):
        convert(source, source.with_name("t"), max_memory=1 << 20)
    assert budget.workers_within(plan_of(source), 64, 10**12) == 64


def plan_of(source: Path) -> plan.Plan:
    with pm.checkpoint.open_reader(source) as reader:
        origin = plan.Origin.of(source, reader, "read")
        job = chunks.Job(plan.Request(), load_profile(), {}, 0, {})
        return plan.Plan.of(reader, origin, pm.Recipe.parse(RECIPE), job, {})
