"""Conversions that are stopped, shared and squeezed: the same bytes in the end, or an error that says why not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest

import pumice as pm
from pumice.checkpoint import fingerprint
from pumice.cli import main
from pumice.conversion import budget, chunks, driving, plan
from pumice.conversion.work import FOLDER
from pumice.profile import load_profile

RNG = np.random.default_rng(5)
RECIPE = (
    'scheme = "int4-g32"\n[[rule]]\nmatch = "sparse"\nscheme = "csr+int8"\n[[rule]]\nmatch = "auto"\nscheme = "auto"'
)


def state() -> dict[str, np.ndarray]:
    sparse = pm.prune(RNG.standard_normal((256, 64)).astype(np.float32), 0.8)
    wide = RNG.standard_normal((256, 64)).astype(np.float16)
    wide[200] *= np.float16(1e-3)
    wide[200] *= np.float16(1e-3)  # its float16 scales would be subnormal
    plain = {f"l{i}.weight": RNG.standard_normal((256, 64)).astype(np.float16) for i in range(4)}
    return plain | {
        "sparse.weight": sparse,
        "wide.weight": wide,
        "auto.weight": RNG.standard_normal((64, 64)).astype(np.float32),
        "bias": RNG.standard_normal(256),
    }


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CHUNK_BYTES", 64 * 64 * 4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pm.save(tmp_path / "source", state(), max_shard_size=40_000)
    (tmp_path / "source" / "config.json").write_text("{}")
    return tmp_path / "source"


def convert(source: Path, target: Path, **options: Any) -> pm.Report:
    options = {"recipe": pm.Recipe.parse(RECIPE), "max_shard_size": 20_000} | options
    return pm.convert(source, target, **options)


def digest(target: Path) -> str:
    files = sorted(path for path in target.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


@pytest.fixture
def expected(source: Path) -> str:
    convert(source, source.with_name("expected"))
    return digest(source.with_name("expected"))


class Stop(KeyboardInterrupt):
    pass


def after(count: int, then: Callable[[], object]) -> Callable[[str, int, int], None]:
    """A progress that does something at its n-th call."""
    seen: Iterator[int] = iter(range(10**9))

    def progress(*call: object) -> None:
        if next(seen) == count:
            then()

    return progress


def stop() -> None:
    raise Stop


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


def test_what_was_not_asked_for_is_neither_resumed_nor_lost(source: Path, expected: str) -> None:
    target = source.with_name("t")
    with pytest.raises(Stop):
        convert(source, target, progress=after(9, stop))
    with pytest.raises(pm.ResumeError, match=r"resume=True \(--resume\) to go on .* got an unfinished conversion"):
        convert(source, target)
    convert(source, target, overwrite=True)
    assert digest(target) == expected


def changed_version(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(pm, "__version__", "99")
    return {}


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


def left(target: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in target.rglob("*")}


@pytest.mark.parametrize(
    "how", [{"resume": True}, {"commit": True}, {"task": (2, 3)}, {"resume": True, "overwrite": True}]
)
def test_a_finished_conversion_is_complete_already(how: dict[str, Any], source: Path, expected: str) -> None:
    target = source.with_name("expected")
    before, seen = left(target), []
    report = convert(source, target, progress=lambda *call: seen.append(call), **how)
    assert report.already_complete
    assert left(target) == before
    assert seen[-1][1] == seen[-1][2] > 0
    again = convert(source, source.with_name("t"))
    assert not again.already_complete
    assert set(report.tensors) <= set(again.tensors)
    assert len(report.tensors) == (len(again.tensors) if "task" not in how else 3)


def test_a_finished_conversion_is_complete_on_the_command_line(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", str(source), str(source.with_name("t")), "--scheme", "int8", "--resume"]
    assert [main(command), main(command)] == [0, 0]
    assert "complete already, from the same source and recipe; nothing was written" in capsys.readouterr().err
    assert main([*command, "--max-error", "1e-9"]) == 65
    assert main([*command, "--keep-embeddings"]) == 2
    assert "got another one: recipe, keep_embeddings was false, is true" in capsys.readouterr().err


def changed_content(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    with pm.checkpoint.open_reader(source) as reader:
        file = reader.files_of("l1.weight")[0]
    data = file.read_bytes()
    status = file.stat()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return {}


FINISHED = {
    'recipe, scheme was "int4-g32", is "int8"': lambda *_: {"recipe": None, "scheme": "int8"},
    "max_shard_size was 20000, is 30000": lambda *_: {"max_shard_size": 30_000},
    'version was ".*", is "99"': changed_version,
    'source, .*weight was "[0-9a-f]{64}", is "[0-9a-f]{64}"': changed_content,
}


@pytest.mark.parametrize("difference", FINISHED)
def test_a_finished_conversion_of_another_source_is_refused_with_the_difference(
    difference: str, source: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = source.with_name("expected")
    options = FINISHED[difference](source, monkeypatch)
    with pytest.raises(pm.ResumeError, match=f"that has written '{target}', got another one: .*{difference}"):
        convert(source, target, resume=True, **options)
    assert digest(target) == expected
    assert not convert(source, target, resume=True, overwrite=True, **options).already_complete
    assert digest(target) != expected


def test_what_no_conversion_has_written_is_no_finished_one(source: Path) -> None:
    target = source.with_name("t")
    pm.save(target, state())
    with pytest.raises(FileExistsError, match="expected a new path or an empty folder"):
        convert(source, target, resume=True)


def test_the_source_of_a_finished_conversion_goes_once_the_target_verifies(source: Path, expected: str) -> None:
    target = source.with_name("expected")
    shard = sorted(target.glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        pm.PumiceError, match="target: expected one that verifies before its source goes, got .*SHA-256"
    ):
        convert(source, target, resume=True, delete_source=True)
    assert len(list(source.glob("*.safetensors"))) > 1
    shard.write_bytes(whole)
    assert convert(source, target, resume=True, delete_source=True).already_complete
    assert not list(source.glob("*.safetensors"))


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


def test_the_output_says_how_it_was_made(source: Path, expected: str) -> None:
    with pm.load(source.with_name("expected")) as m:
        made = json.loads(m.metadata["conversion"])
    assert made["version"] == pm.__version__
    assert made["recipe"]["rules"][0] == ["sparse", "csr+int8", 1, None, None]
    assert len(made["tensors"]) == 64


@pytest.mark.parametrize("leaf", [1 << 20, 1000])
def test_fingerprints_depend_on_the_stored_bytes_alone(
    leaf: int, source: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (fingerprint, chunks):
        monkeypatch.setattr(module, "LEAF", leaf)
    found = []
    for size in (1, 64 * 64 * 4, 10**9):
        monkeypatch.setattr(plan, "CHUNK_BYTES", size)
        convert(source, source.with_name(f"t{size}"), workers=3)
        with pm.load(source.with_name(f"t{size}")) as m:
            found.append({name: m.info(name).notes.get("fingerprint") for name in m})
    assert found[0] == found[1] == found[2]
    with pm.load(source) as m:
        assert found[0] == {name: None if name == "bias" else by_hand(bytes(m.raw(name)), leaf) for name in m}


def by_hand(data: bytes, leaf: int) -> str:
    digests = [hashlib.sha256(data[i : i + leaf]).digest() for i in range(0, len(data), leaf)]
    return hashlib.sha256(b"".join(digests)).hexdigest()


@pytest.mark.parametrize(
    ("path", "in_axis"), [("torch-nested.pt", 0), ("ggml.gguf", 0), ("gptq/v2-4bit", 0), ("v1.safetensors", 1)]
)
def test_fingerprints_of_any_format_and_of_transposed_weights(path: str, in_axis: int, tmp_path: Path) -> None:
    """Of arrays that consist of several tensors, and those that are kept, too."""
    golden = Path(__file__).parent / "golden" / path
    rule = f'[[rule]]\nmatch = "."\nscheme = "int8"\nin_axis = {in_axis}'
    report = pm.convert(golden, tmp_path / "t", recipe=pm.Recipe.parse(rule), allow_requantize=True)
    with pm.checkpoint.open_reader(golden) as before, pm.checkpoint.open_reader(tmp_path / "t") as after:
        for name in before.names():
            raw = b"".join(bytes(before.raw(tensor)) for tensor in before.tensors(name))
            assert fingerprint.made_from(after, name) == fingerprint.made_from(before, name)
            if len(before.tensors(name)) == 1:
                assert fingerprint.fingerprint(before, name) == by_hand(raw, 1 << 20)
    assert pm.convert(
        golden, tmp_path / "t", recipe=pm.Recipe.parse(rule), allow_requantize=True, resume=True
    ) == replace(report, already_complete=True, seconds=ANY, copied=ANY)


def test_a_changed_source_shows(
    source: Path, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (source.with_name(name) for name in ("expected", "second"))
    changed_content(source, monkeypatch)
    convert(source, second)
    main(["diff", str(first), str(second)])  # the last bit of a float16 may leave its code as it is
    assert "1 of 7 tensors come from ANOTHER source: " in capsys.readouterr().out
    assert main(["diff", str(source), str(second)]) == 1
    assert "7 tensors have the same source in both" in capsys.readouterr().out
    assert main(["diff", str(source), str(first), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)["tensors"]
    assert sorted(t["same_source"] for t in told if t["same_source"] is not None) == [False] + 6 * [True]
    said = []
    for target in (first, second, source):
        assert main(["inspect", str(target)]) == 0
        said.append([line for line in capsys.readouterr().out.splitlines() if "made from" in line])
        assert main(["inspect", str(target), "--json"]) == 0
        assert (json.loads(capsys.readouterr().out)["made_from"] is None) == (target == source)
    assert said[0] != said[1]
    assert [len(lines) for lines in said] == [1, 1, 0]


def test_the_journal_of_a_finished_conversion_is_gone_with_all_the_rest(source: Path) -> None:
    convert(source, source.with_name("t"))
    assert not list(source.with_name("t").rglob(".*"))
