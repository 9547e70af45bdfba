"""Conversions as large as they come: memory, a hard limit, kills, ways to share the work, and what a terabyte costs.

    python bench/conversion.py [PART ...] [--json FILE] [--dask PYTHON] [--write]

Parts: `disk` (what the disk does without us), `memory` (checkpoints of 2 and 20 GB under --max-memory), `limit` (20 GB
under a hard limit of 2 GB), `ways` (threads, processes, Dask, tasks) and `kills` (200 SIGKILLs). Results go to a JSON
file, which every run completes; all parts that it has are printed. PYTHON is one that has dask.distributed.
``--write`` puts tables and a plot into docs/scale.md. The disk needs 12 GB: the large checkpoint is a hole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from conversion_tables import IN_MEMORY, blocks, draw
from conversion_worker import SCHEME
from machine import about
from pages import write_page

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scale.md"
PLOT = ROOT / "docs" / "plots" / "conversion.png"
STOPPING = ROOT / "tests" / "promises" / "stopping.py"

# The matrices of one layer of LLaMA-3-8B: 436 MB as float16.
LAYER = {
    "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336), "input_layernorm": (4096,), "post_attention_layernorm": (4096,),
}  # fmt: skip
SMALL, LARGE = 5, 46  # layers: 2.2 and 20.1 GB
BUDGET, LIMIT = 500_000_000, 2_000_000_000  # bytes: --max-memory, and the hard limit
EVERY = 0.02  # seconds between two looks at the memory of a process
BLOCK = 64 << 20  # bytes of normal weights, over and over
SHM = Path("/dev/shm/pumice-bench-conversion")
ROUNDS = 3
TASKS = 4
KILLS = {"nearest": 67, "gptq": 67, "sparse": 66}
SYNCS = 200


def main() -> int:
    parts: dict[str, Callable[[Path, argparse.Namespace], Any]] = {
        "disk": disk, "memory": memory, "limit": limited, "ways": ways, "kills": kills,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(parts), metavar="PART", help=f"of {', '.join(parts)}")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "conversion" / "results.json")
    parser.add_argument("--dask", type=Path, default=ROOT / ".venv-dask" / "bin" / "python", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of `ways`")
    parser.add_argument("--write", action="store_true", help="put tables and plot into docs/scale.md")
    options = parser.parse_args()
    if unknown := set(options.parts) - parts.keys():
        parser.error(f"PART: expected some of {', '.join(parts)}, got {', '.join(sorted(unknown))}")
    work = options.json.parent
    work.mkdir(parents=True, exist_ok=True)
    results = json.loads(options.json.read_text()) if options.json.is_file() else {}
    for part in options.parts:
        say(f"{part} ...")
        results[part] = parts[part](work, options)
        results["about"] = about()
        options.json.write_text(json.dumps(results))
    found = blocks(results)
    print("\n\n".join(found.values()))
    if options.write:
        write_page(PAGE, found)
        if "memory" in results:
            draw(results, PLOT)
    return 0


def say(text: str) -> None:
    print(f"conversion: {text}", file=sys.stderr, flush=True)


# What is converted.


def checkpoint(work: Path, layers: int, content: str) -> Path:
    """A safetensors file of so many layers: a hole, which reads as zeros, or normal weights."""
    path = work / f"{content}-{layers}.safetensors"
    entries, end = {}, 0
    for i in range(layers):
        for name, shape in LAYER.items():
            start, end = end, end + 2 * math.prod(shape)
            entries[f"model.layers.{i}.{name}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(entries).encode()
    head += b" " * (-(8 + len(head)) % 64)
    size = 8 + len(head) + end
    if path.is_file() and path.stat().st_size == size:
        return path
    block = (0.02 * np.random.default_rng(0).standard_normal(BLOCK // 2, np.float32)).astype(np.float16).tobytes()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        if content == "hole":
            file.truncate(size)
        else:
            for start in range(0, end, len(block)):
                file.write(block[: end - start])
        os.fsync(file.fileno())
    return path


def fresh(work: Path) -> Path:
    """Where to convert to."""
    target = work / "out"
    shutil.rmtree(target, ignore_errors=True)
    return target


def warm(path: Path) -> None:
    """Bring a file into the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def command(source: Path, target: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "pumice", "convert", str(source), str(target), "--scheme", SCHEME, *options]


def nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def digest(folder: Path) -> str:
    """SHA-256 of the names and the contents of all files."""
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


# The disk without us.


def disk(work: Path, options: argparse.Namespace) -> dict[str, float]:
    """GB/s of writing 2 GB with a sync, and of reading them when the page cache has none; ms of a synced line."""
    path, block, count = work / "scratch", os.urandom(1 << 24), 128
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(block)
        os.fsync(file.fileno())
    written = time.perf_counter() - start
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    warm(path)
    read = time.perf_counter() - start
    synced = []
    with path.open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            start = time.perf_counter()
            file.write(bytes(200))
            os.fdatasync(file.fileno())
            synced.append(time.perf_counter() - start)
    path.unlink()
    size = count * len(block) / 1e9
    return {"write": size / written, "read": size / read, "sync ms": 1e3 * float(np.median(synced))}


# Memory.


def watched(arguments: Sequence[str], limit: int | None = None) -> dict[str, Any]:
    """Run a command, under a limit of its address space, and look at its memory: seconds and MB of pages of its own
    and of files, all along, and the peaks that the kernel kept."""

    def confine() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    curve, peaks = [], {}
    start = time.perf_counter()
    process = subprocess.Popen(arguments, preexec_fn=confine, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        now = status(process.pid)
        if "VmHWM" in now:
            curve.append([time.perf_counter() - start, now["RssAnon"], now["RssFile"]])
            peaks = {"resident": now["VmHWM"], "address space": now["VmPeak"]}
        time.sleep(EVERY)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
    return {"seconds": seconds, "curve": curve, "peaks": peaks}


def status(pid: int) -> dict[str, float]:
    """MB, by the kernel's names; nothing once the process has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines if line.endswith(" kB")}


def converted(work: Path, layers: int, content: str, *options: str, limit: int | None = None) -> dict[str, Any]:
    source, target = checkpoint(work, layers, content), fresh(work)
    if content != "hole":
        warm(source)
    found = watched(command(source, target, *options), limit) | {"source": source.stat().st_size}
    found["target"] = nbytes(target)
    say(f"{source.name}: {found['source'] / 1e9 / found['seconds']:.2f} GB/s, MB at most: {found['peaks']}")
    shutil.rmtree(target)
    return found


def memory(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    asked = ("--max-memory", str(BUDGET))
    cases = {
        "normal weights": (SMALL, "normal"),
        "zeros": (SMALL, "hole"),
        "zeros, nine times the size": (LARGE, "hole"),
    }
    return {name: converted(work, *case, *asked) for name, case in cases.items()} | {"budget": BUDGET}


def limited(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The large one under the limit alone, and how the limit refuses what exceeds it: a map of the source."""
    found = converted(work, LARGE, "hole", limit=LIMIT)
    code = "import mmap, sys; f = open(sys.argv[1], 'rb'); mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)"
    confine = partial(resource.setrlimit, resource.RLIMIT_AS, (LIMIT, LIMIT))
    mapping = [sys.executable, "-c", code, str(checkpoint(work, LARGE, "hole"))]
    done = subprocess.run(mapping, preexec_fn=confine, capture_output=True, text=True)
    return found | {"limit": LIMIT, "refused": done.stderr.strip().splitlines()[-1:]}


# Ways to share the work.


def ways(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every way, a round after the other; what each took, and the SHA-256 of what it wrote."""
    source = checkpoint(work, SMALL, "normal")
    cpus = len(os.sched_getaffinity(0))
    shared = {f"threads: {count}": partial(worker, "threads", count) for count in dict.fromkeys((1, cpus, 8))}
    shared |= {"processes: 4": partial(worker, "processes", 4)}
    shared |= {f"tasks: {TASKS}, then a commit": tasks}
    shared |= {name + IN_MEMORY: shared[name] for name in (f"threads: {cpus}", f"tasks: {TASKS}, then a commit")}
    if options.dask.is_file():
        shared |= {"Dask: 4 workers, one killed": partial(worker, "dask", 4, python=options.dask)}
    else:
        say(f"no dask.distributed at {options.dask}: Dask SKIPPED (make test-dask makes it)")
    runs: dict[str, list[Any]] = {name: [] for name in shared}
    written = 0
    warm(source)
    for i in range(options.rounds):
        for name, way in shared.items():
            target = fresh(SHM if name.endswith(IN_MEMORY) else work)
            runs[name].append(way(source, target) | {"sha256": digest(target)})
            written = nbytes(target)
            say(f"round {i + 1}, {name}: {runs[name][-1]}")
            shutil.rmtree(target)
    return {"source": source.stat().st_size, "target": written, "cpus": cpus, "runs": runs}


def worker(way: str, count: int, source: Path, target: Path, python: Path | None = None) -> dict[str, Any]:
    script = Path(__file__).with_name("conversion_worker.py")
    environment = dict(os.environ)
    if python is not None:
        environment.pop("PYTHONPATH", None)  # of this Python, not of that
    arguments = [str(python or sys.executable), str(script), way, str(count), str(source), str(target)]
    done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    if way == "dask" and not found["killed"]:
        raise SystemExit("the conversion ended before a worker was killed")
    return found


def tasks(source: Path, target: Path) -> dict[str, Any]:
    """All tasks at once, one thread each, and then the commit: seconds from the first start to the last end, and what
    the tasks and the commit took without the start of their processes."""
    start = time.perf_counter()
    shares = [f"{i}/{TASKS}" for i in range(1, TASKS + 1)]
    running = [
        subprocess.Popen(
            command(source, target, "--task", share, "--workers", "1", "--json"), stdout=subprocess.PIPE, text=True
        )
        for share in shares
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"tasks ended with {[process.returncode for process in running]}")
    committed = subprocess.run(
        command(source, target, "--commit", "--json"), check=True, stdout=subprocess.PIPE, text=True
    )
    return {
        "seconds": time.perf_counter() - start,
        "tasks": max(json.loads(output)["seconds"] for output in outputs),
        "commit": json.loads(committed.stdout)["seconds"],
    }


# Kills.


def kills(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """SIGKILLs at random moments of conversions that then go on: tests/promises/stopping.py."""
    found = {}
    for recipe, count in KILLS.items():
        folder = work / "kills"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        arguments = [sys.executable, str(STOPPING), str(folder), str(count), recipe, "SIGKILL"]
        done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
        found[recipe] = json.loads(done.stdout)
        say(f"{recipe}: {found[recipe]}")
    shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    sys.exit(main())
