"""Run by test_writers.py with faults.so preloaded: one writer after another, each in a fork that meets a fault.

Prints one JSON object: how many faults of each kind were met, and each case in which a promise was broken.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import pumice as pm
from pumice.checkpoint.publication import INDEX

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
import gguf_bytes

COUNT, FAIL, SHORT, KILL_BEFORE, KILL_AFTER = range(5)
FAULTS = {
    "ENOSPC": (FAIL, errno.ENOSPC, 0),
    "disk stays full": (FAIL, errno.ENOSPC, 1),
    "EIO": (FAIL, errno.EIO, 0),
    "EINTR": (FAIL, errno.EINTR, 0),
    "short write": (SHORT, 0, 0),
    "SIGKILL before": (KILL_BEFORE, 0, 0),
    "SIGKILL after": (KILL_AFTER, 0, 0),
}
FAILED = 3  # exit code of a writer that raised OSError


def state(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    w = pm.prune(rng.standard_normal((32, 32)).astype(np.float32), 0.5)
    return {f"l{i}.weight": pm.compress(w + i, scheme) for i, scheme in enumerate(("int8", "csr", "int4-g32"))} | {
        "l3.weight": w,
        "bias": rng.standard_normal(8),
    }


OLD, NEW = state(1), state(2)
SHARDS: dict[str, Any] = {"max_shard_size": 2048}


def nothing(root: Path) -> None:
    pass


def saver(target: str, arrays: dict[str, Any], **options: Any) -> Callable[[Path], object]:
    return lambda root: pm.save(root / target, arrays, **options)


def model_folder(path: Path, arrays: dict[str, Any]) -> None:
    pm.save(path, {name: np.asarray(array) for name, array in arrays.items()})
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text("{}")
    (path / "config.json").write_text('{"hidden": 32}')


def convert(root: Path) -> None:
    pm.convert(root / "source", root / "out", "int8", overwrite=True, **SHARDS)


def converted_before(root: Path) -> None:
    model_folder(root / "source", NEW)
    model_folder(root / "old", OLD)
    pm.convert(root / "old", root / "out", "int4-g32", **SHARDS)
    shutil.rmtree(root / "old")


def exported_before(root: Path) -> None:
    model_folder(root / "source", NEW)
    model_folder(root / "old", OLD)
    pm.export(root / "old", root / "out.npz", "npz")
    shutil.rmtree(root / "old")


def gguf_before(root: Path) -> None:
    kib = 1 << 10
    rows = [gguf_bytes.row(f"l{i}.weight", (32, 32), 0, 4 * kib * i) for i in range(4)]
    rows += [gguf_bytes.row(f"copied{i}", (32, 128), 0, 16 * kib * (i + 1)) for i in range(12)]  # a write each
    (root / "model.gguf").write_bytes(gguf_bytes.file(rows=rows, data=bytes(13 * 16 * kib)))
    for name, arrays in (("old", OLD), ("new", NEW)):
        weights = {name: pm.compress(np.asarray(w), "int8-g32") for name, w in arrays.items() if name != "bias"}
        pm.save(root / f"{name}.safetensors", weights)
    export_gguf(root, "old")


def export_gguf(root: Path, source: str = "new") -> None:
    options: dict[str, Any] = {"template": root / "model.gguf", "overwrite": True}
    pm.export(root / f"{source}.safetensors", root / "out.gguf", "gguf", **options)


SCENARIOS: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    # name: the target, what makes what is there before, the writer
    "new-file": ("a/b/m.safetensors", nothing, saver("a/b/m.safetensors", NEW)),
    "file": ("m.safetensors", saver("m.safetensors", OLD), saver("m.safetensors", NEW)),
    "single-to-single": ("m", saver("m", OLD), saver("m", NEW)),
    "single-to-shards": ("m", saver("m", OLD), saver("m", NEW, **SHARDS)),
    "shards-to-single": ("m", saver("m", OLD, **SHARDS), saver("m", NEW)),
    "shards-to-shards": ("m", saver("m", OLD, **SHARDS), saver("m", NEW, **SHARDS)),
    "convert-new": ("out", lambda root: model_folder(root / "source", NEW), convert),
    "convert-shards": ("out", converted_before, convert),
    "export-npz": (
        "out.npz",
        exported_before,
        lambda root: pm.export(root / "source", root / "out.npz", "npz", overwrite=True),
    ),
    "export-gguf": ("out.gguf", gguf_before, export_gguf),
}


def content(target: Path) -> dict[str, bytes] | None:
    """Every array as it is loaded; None if nothing is there that loads."""
    if not target.exists() or (target.is_dir() and not {"model.safetensors", INDEX} & set(os.listdir(target))):
        with contextlib.suppress(FileNotFoundError, pm.FormatError):
            pm.load(target)
            raise AssertionError("something is loaded that was never finished")
        return None
    report = pm.verify(target)
    assert report.ok, report.errors
    with pm.load(target, io="read") as m:
        return {name: np.asarray(m[name]).tobytes() for name in m}


def listing(root: Path) -> list[str]:
    """All names; shards under their first name, as a second writer's have another."""
    return sorted(str(path.relative_to(root)).replace("model-2-", "model-") for path in root.rglob("*"))


class Case:
    """One scenario with its states before and after, and a place to run it in."""

    def __init__(self, name: str, place: Path) -> None:
        self.template, self.work = place / "template", place / "work"
        self.target, before, self.write = SCENARIOS[name]
        self.template.mkdir()
        before(self.template)
        self.old = content(self.template / self.target)
        self.reset()
        self.write(self.work)
        self.new = content(self.work / self.target)
        self.after = listing(self.work)
        assert self.new is not None and self.old != self.new

    def reset(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.template, self.work)

    def check(self, status: int) -> str | None:
        """What a writer that ended with `status` broke."""
        try:
            found = content(self.work / self.target)
        except Exception as error:
            return f"half written: {error}"
        if found not in (self.old, self.new):
            return "neither the old arrays nor the new"
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            if code not in (0, FAILED):
                return f"exit code {code}"
            if code == 0 and found != self.new:
                return "no error, and still the old arrays"
        try:
            self.write(self.work)
        except Exception as error:
            return f"the next run failed: {error}"
        if content(self.work / self.target) != self.new:
            return "the next run did not write the new arrays"
        left = listing(self.work)
        return None if left == self.after else f"left after the next run: {left}"


def in_a_fork(work: Callable[[], object]) -> int:
    """Run in a child; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except OSError:
        code = FAILED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def points(case: Case, shim: ctypes.CDLL) -> int:
    """How many calls the writer makes that could fail."""
    case.reset()
    shim.faults_arm(-1, COUNT, 0, 0)
    case.write(case.work)
    return int(shim.faults_disarm())


def at_each_call(case: Case, shim: ctypes.CDLL, most: int) -> Iterator[tuple[str, str, str | None]]:
    """Every fault at every call; if these are more than `most`, as many of them, evenly."""
    calls = points(case, shim)
    every = -(-calls * len(FAULTS) // most)
    for nth in range(calls):
        for turn, (fault, (action, code, lasts)) in enumerate(FAULTS.items()):
            if (nth + turn) % every:
                continue
            case.reset()

            def work() -> None:
                shim.faults_arm(nth, action, code, lasts)  # noqa: B023
                case.write(case.work)

            _, status = os.waitpid(in_a_fork(work), 0)
            yield fault, f"call {nth}", case.check(status)


def at_random(case: Case, count: int) -> Iterator[tuple[str, str, str | None]]:
    """`count` kills of a writer at work. How long it takes changes with the machine's load, so the span follows."""
    rng = random.Random(7)
    start = time.perf_counter()
    case.reset()
    case.write(case.work)
    span = time.perf_counter() - start
    landed = 0
    for turn in range(10 * count):
        if landed == count:
            return
        case.reset()
        pid = in_a_fork(lambda: case.write(case.work))
        time.sleep(rng.uniform(0, span))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status)
        landed += killed
        span *= 1.002 if killed else 0.97  # at rest one in fifteen is done before the kill
        yield "SIGKILL at random" if killed else "done before the SIGKILL", f"kill {turn}", case.check(status)


def main(place: Path, shim: ctypes.CDLL, most: int, kills: int, names: list[str]) -> None:
    counts: Counter[str] = Counter()
    broken: list[str] = []
    for name in names:
        (place / name).mkdir()
        case = Case(name, place / name)
        for fault, where, wrong in (*at_each_call(case, shim, most), *at_random(case, kills)):
            counts[fault] += 1
            if wrong:
                broken.append(f"{name}, {fault} at {where}: {wrong}")
    print(json.dumps({"counts": counts, "broken": broken}))


if __name__ == "__main__":
    _, place, shim, most, kills, *names = sys.argv
    main(Path(place), ctypes.CDLL(shim), int(most), int(kills), names or list(SCENARIOS))
