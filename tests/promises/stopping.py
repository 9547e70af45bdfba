"""Run by test_conversions.py and bench/conversion.py: a conversion that is stopped again and again, and goes on; each
time in a fork.

    python tests/promises/stopping.py FOLDER STOPS RECIPE [WAY ...]

Prints one JSON object: how often it was stopped, how, what was done twice, and each promise that was broken. A power
cut is a kill after which every file has what was synced of it, and every folder the names that were there when it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pumice as pm
from pumice.conversion import driving, plan
from pumice.conversion.work import FOLDER

WORKERS = 2
WAYS = ("SIGKILL", "power cut", "Ctrl-C")
RECIPES = {
    "nearest": 'scheme = "int4-g32"',
    "sparse": 'scheme = "csr+int8"',
    "gptq": 'scheme = "int4-g32"\nmethod = "gptq"',
    "sparsegpt": 'scheme = "2:4+int4-g32"\nprune = "sparsegpt"\nmethod = "gptq"',
    "mixed": '[[rule]]\nmatch = "[24]"\nscheme = "bsr-4x4"\n[[rule]]\nmatch = "weight"\nscheme = "auto"',
}


def model(path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {f"l{i}.weight": pm.prune(rng.standard_normal((512, 128)).astype(np.float16), 0.5) for i in range(6)}
    stats = pm.CalibrationStats()
    for name in weights:
        stats.update(name, rng.standard_normal((300, 128)) @ rng.standard_normal((128, 128)))
    pm.save(path.with_name("stats.safetensors"), stats.pack())
    pm.save(path, weights | {"bias": rng.standard_normal(512)}, max_shard_size=300_000)
    (path / "config.json").write_text('{"model_type": "none"}', "utf-8")


def convert(root: Path, recipe: str, **options: Any) -> None:
    made = pm.Recipe.parse(RECIPES[recipe])
    stats = root / "stats.safetensors" if made.method else None
    options |= {"stats": stats, "max_shard_size": 100_000, "workers": WORKERS}
    pm.convert(root / "source", root / "out", recipe=made, **options)


def digest(target: Path) -> str:
    files = sorted(path for path in target.iterdir() if not path.name.startswith("."))
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


class Disk:
    """What a power cut would leave: noted at each sync, outside of what it happens to."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def watch(self) -> None:
        """In the child: note what each sync has made safe."""
        log = os.open(self._notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def noting(sync: Callable[[int], None]) -> Callable[[int], None]:
            def synced(fd: int) -> None:
                sync(fd)
                status = os.fstat(fd)
                path = os.readlink(f"/proc/self/fd/{fd}")
                names = os.listdir(fd) if os.path.isdir(path) else None
                os.write(log, json.dumps([status.st_ino, path, status.st_size, names]).encode() + b"\n")

            return synced

        os.fsync, os.fdatasync = noting(os.fsync), noting(os.fdatasync)

    def cut(self, folder: Path) -> None:
        """In the parent, after the kill: what was not synced is gone."""
        sizes: dict[int, int] = {}
        names: dict[str, set[str]] = {}
        for line in self._notes.read_bytes().splitlines() if self._notes.exists() else ():
            inode, path, size, listed = json.loads(line)
            sizes[inode] = size
            if listed is not None:
                names[path] = set(listed)
        for path in sorted(folder.rglob("*")) if folder.exists() else ():
            if path.is_file():
                known = names.get(str(path.parent))
                if path.parent.name == "chunks" and (known is None or path.name not in known):
                    path.unlink()
                elif path.stat().st_size > sizes.get(path.stat().st_ino, 0):
                    os.truncate(path, sizes.get(path.stat().st_ino, 0))


def stopped(root: Path, recipe: str, seconds: float | None, how: str, log: Path) -> bool:
    """Convert in a fork, and stop it after some seconds, if any; whether it was at work until then."""
    disk = Disk(root / "synced")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the child can take it
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    else:
        code = 1
        try:
            disk.watch()  # whatever stops this one: what it synced outlives the power cut of a later one
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            tasks = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            run = driving.run

            def noted(task: Any) -> Any:
                key = f"{task.name}/{getattr(task, 'key', 'auto')}"
                os.write(tasks, f"{os.getpid()} begun {key}\n".encode())
                done = run(task)
                os.write(tasks, f"{os.getpid()} encoded {key}\n".encode())
                return done

            driving.run = noted
            convert(root, recipe, resume=True)
            code = 0
        except KeyboardInterrupt:
            code = 75
        except BaseException:
            traceback.print_exc()  # what the parent's assertion is about
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if how == "power cut" and os.WIFSIGNALED(status):
        disk.cut(root / "out" / FOLDER)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) in (0, 75), "a conversion that goes on failed"
    return os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 75


def again(log: Path, what: str) -> Counter[str]:
    """How many tasks each process did (begun, or encoded) that a later one did again."""
    lines = [line.split() for line in log.read_text().splitlines()]
    last = {key: i for i, (_, done, key) in enumerate(lines) if done == what}
    return Counter(pid for i, (pid, done, key) in enumerate(lines) if done == what and i != last[key])


def main(root: Path, stops: int, recipe: str, ways: Sequence[str]) -> None:
    plan.CHUNK_BYTES = 64 * 128 * 4
    rng = random.Random(11)
    model(root / "source")
    start = time.perf_counter()
    convert(root, recipe)
    span = time.perf_counter() - start
    expected = digest(root / "out")
    shutil.rmtree(root / "out")
    counts: Counter[str] = Counter()
    broken: list[str] = []
    log = root / "tasks"
    twice = {"begun": 0, "encoded": 0}
    most = conversions = chunks = 0
    since = 0  # stops since the conversion began
    while counts.total() < stops or since:
        how, seconds = rng.choice(ways), rng.uniform(0, span * 0.7)
        if stopped(root, recipe, seconds if counts.total() < stops else None, how, log):
            counts[how] += 1
            since += 1
            if (root / "out" / FOLDER).exists() or not (root / "out").exists() or not any((root / "out").iterdir()):
                continue
            # It was stopped when all was done but the end of its own folder: there is nothing to go on with.
        if digest(root / "out") != expected:
            broken.append("the bytes differ after --resume")
        for what in twice:
            lost = again(log, what)
            twice[what] += lost.total()
            if what == "encoded" and lost.total() > WORKERS * since:
                broken.append(f"{lost.total()} chunks were encoded again after {since} stops with {WORKERS} workers")
            if what == "begun":
                most = max(most, *lost.values(), 0)
        conversions += 1
        chunks = len({line.split()[2] for line in log.read_text().splitlines()})
        shutil.rmtree(root / "out")
        log.unlink()
        since = 0
    if most > WORKERS:
        broken.append(f"a stop lost {most} chunks that were begun with {WORKERS} workers")
    facts = {"stops": counts, "conversions": conversions, "chunks": chunks, "begun at most": most}
    print(json.dumps(facts | {f"{what} again": count for what, count in twice.items()} | {"broken": broken}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:] or WAYS)
