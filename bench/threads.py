"""Threads and batches: what a second thread and one more row of x cost or gain. ``python bench/threads.py [--write]``

In streams every figure is the best of several rounds: what disturbs only slows. After a pause it is the median.
One thread and two take turns.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from machine import about, clean_environment
from pages import machine_page, write_machine

import pumice as pm

ROOT = Path(__file__).parents[1]
SHAPES = ((64, 64), (384, 384), (1536, 384), (1024, 1024), (768, 3072), (4096, 4096), (11008, 4096))
BATCHES = (1, 8, 64)
CLIFF_SHAPES = ((384, 384), (1024, 1024), (768, 3072))
CLIFF_BATCHES = range(1, 41)
PAUSES = {0.001: 41, 0.005: 41, 0.05: 21}  # seconds, after which workers are parked: rounds


def product(shape: tuple[int, int], scheme: str, batch: int, activations: str = "int8") -> Callable[[], object]:
    rng = np.random.default_rng(0)
    w = pm.compress(rng.standard_normal(shape, np.float32), scheme)
    x = rng.standard_normal((batch, shape[1]), np.float32)
    y = np.empty((batch, shape[0]), np.float32)
    return lambda: pm.linear(x, w, activations=activations, out=y)


def stream(run: Callable[[], object], seconds: float = 0.02, rounds: int = 9) -> float:
    """Seconds of a call among many of its kind."""
    found = []
    for _ in range(rounds):
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds or count < 3:
            run()
            count += 1
        found.append((time.perf_counter() - start) / count)
    return float(np.min(found))


def lone(run: Callable[[], object], pause: float) -> float:
    """Seconds of a call after a pause."""
    time.sleep(pause)
    return _once(run)


def one_and_two(measure: Callable[[], float], rounds: int) -> np.ndarray:
    """Seconds of every round with one thread and with two, (rounds, 2)."""
    found = np.empty((rounds, 2))
    for i in range(rounds):
        for threads in (1, 2) if i % 2 else (2, 1):
            pm.set_num_threads(threads)
            found[i, threads - 1] = measure()
    return found


def second_thread() -> Iterator[str]:
    pauses = " | ".join(f"after {pause * 1e3:.0f} ms, 1 thread | 2 / 1" for pause in PAUSES)
    yield f"| product | stream, 1 thread | 2 threads | 2 / 1 | {pauses} |"
    yield "| --- | --: | --: | --: |" + " --: | --: |" * len(PAUSES)
    for shape in SHAPES:
        for batch in BATCHES:
            run = product(shape, "int8", batch)
            one, two = one_and_two(partial(stream, run, rounds=1), 9).min(axis=0)
            cells = [f"{one * 1e6:.1f}", f"{two * 1e6:.1f}", f"{two / one:.2f}"]
            for pause, rounds in PAUSES.items():
                one, two = np.median(one_and_two(partial(lone, run, pause), rounds), axis=0)
                cells += [f"{one * 1e6:.1f}", f"{two / one:.2f}"]
            yield f"| {shape[0]} x {shape[1]}, batch {batch} | " + " | ".join(cells) + " |"


def wake() -> Iterator[str]:
    """Microseconds until a worker begins, by a C++ program on the pool alone."""
    yield "| a worker begins, us | 5th percentile | median | 95th | on its caller's CPU |"
    yield "| --- | --: | --: | --: | --: |"
    with tempfile.TemporaryDirectory() as folder:
        sources = [
            ROOT / "bench" / "wake.cpp",
            *(ROOT / "csrc" / "dispatch" / name for name in ("parallel.cpp", "cpu.cpp")),
        ]
        command = ["c++", "-std=c++17", "-O2", "-pthread", f"-I{ROOT / 'csrc'}", *sources, "-o", f"{folder}/wake"]
        subprocess.run(command, check=True)
        yield subprocess.run([f"{folder}/wake"], check=True, capture_output=True, text=True).stdout.strip()


def cliffs() -> Iterator[str]:
    yield "| weights | most that one more row costs | at batch | most that it saves | at batch |"
    yield "| --- | --: | --: | --: | --: |"
    pm.set_num_threads(2)
    for scheme, activations in (("int4-g128", "int8"), ("int4-g128", "int16"), ("int8", "int8"), ("int8", "int16")):
        for shape in CLIFF_SHAPES:
            runs = [product(shape, scheme, batch, activations) for batch in CLIFF_BATCHES]
            times = np.min([[stream(run, 0.004, 4) for run in runs] for _ in range(3)], axis=0)
            steps = times[1:] / times[:-1]
            up, down = int(steps.argmax()), int(steps.argmin())
            name = f"{scheme}, {activations}, {shape[0]} x {shape[1]}"
            yield (
                f"| {name} | {steps[up]:.2f} x | {CLIFF_BATCHES[up + 1]} "
                f"| {1 - min(steps[down], 1):.0%} | {CLIFF_BATCHES[down + 1]} |"
            )


def neighbours() -> Iterator[str]:
    """Products of others and ours in turns in one process, against each alone: a spinning pool would slow the other."""
    others: dict[str, Callable[[], object]] = {}
    a, b = (np.random.default_rng(1).standard_normal(s, np.float32) for s in ((64, 1024), (1024, 1024)))
    others["NumPy float32"] = lambda: a @ b.T
    try:
        import torch

        torch.set_num_threads(2)
        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        others["torch float32"] = lambda: torch.nn.functional.linear(ta, tb)
    except ImportError:
        print("torch: not installed, skipped")
    ours = product((1024, 1024), "int8", 64)
    yield "| 1024 x 1024, batch 64 | alone | in turns | in turns / alone |"
    yield "| --- | --: | --: | --: |"
    for name, other in others.items():
        for threads in (1, 2):  # with one, pumice has no worker that could spin: what remains is the cache
            pm.set_num_threads(threads)
            alone = stream(other), stream(ours)
            turns = np.median([[_once(other), _once(ours)] for _ in range(200)], axis=0)
            ours_is = f"pumice with {threads} thread{'s' * (threads > 1)}"
            pairs = ((f"{name} beside {ours_is}", 0), (f"{ours_is} beside {name}", 1))
            for who, i in pairs:
                ratio = turns[i] / alone[i]
                yield f"| {who} | {alone[i] * 1e6:.0f} us | {turns[i] * 1e6:.0f} us | {ratio:.2f} |"


def _once(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the page of this machine")
    options = parser.parse_args()
    facts = about()
    text = "\n".join(
        [
            "Microseconds, int8 weights and int8 activations, hot:", "", *second_thread(), "", *wake(), "",
            f"Batches {CLIFF_BATCHES[0]} to {CLIFF_BATCHES[-1]}, hot, 2 threads:", "", *cliffs(), "", *neighbours(), "",
            f"*{facts['machine']}; ISA {facts['ISA']}; {facts['date']}.*",
        ]
    )  # fmt: skip
    print(text)
    if options.write:
        write_machine(machine_page(facts), {"threads": text})


if __name__ == "__main__":
    import os
    import sys

    if any(name in os.environ for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")):
        os.execve(sys.executable, [sys.executable, *sys.argv], clean_environment(2))
    main()
