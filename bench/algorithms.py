"""GPTQ, SparseGPT and Wanda beside their papers' algorithms in torch, on the same layers and moments.

    python bench/algorithms.py [--size 4096] [--rounds 3] [--threads 2] [--json FILE]

Each implementation runs in a process of its own, in turns, with the same inputs from a seed: correlated, six of them
ten times as large. Seconds are medians from moments in memory to weights (of torch: quantized and decoded; of pumice:
codes and scales), memory is what the process takes meanwhile on top of what it had, the error is
||x (w' - w)^T|| / ||x w^T|| on the inputs that the moments are of. The algorithms are written down from the papers
(arXiv:2210.17323, 2301.00774, 2306.11695) as their authors' programs compute them: float32, blocks of 128 columns,
damping 0.01.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 2048
BLOCK, DAMPING, BITS, GROUP = 128, 0.01, 4, 128
CASES = ("gptq", "sparsegpt 50 %", "sparsegpt 2:4", "wanda 50 %", "wanda 2:4")
PEERS = ("torch", "pumice")


def layer(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x (samples, size) and w (size, size)."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((size // 8, size), np.float32)
    x = rng.standard_normal((SAMPLES, size // 8), np.float32) @ factors / np.float32((size / 8) ** 0.5)
    x += rng.standard_normal((SAMPLES, size), np.float32)
    x[:, rng.choice(size, 6, replace=False)] *= 10
    return x, rng.standard_normal((size, size), np.float32)


# The papers, in torch.


def _upper(h: Any) -> Any:
    """The upper Cholesky factor of the inverse of the damped moments."""
    import torch

    h = h.clone()
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def _sweep(w: Any, upper: Any, settle: Callable[[int, int, Any, Any], Callable[[int, Any], Any]]) -> Any:
    """Block after block: `settle(first, last, block, its factor)` gives what a column becomes."""
    import torch

    w, result, cols = w.clone(), torch.zeros_like(w), w.shape[1]
    for first in range(0, cols, BLOCK):
        last = min(first + BLOCK, cols)
        block, factor, errors = (
            w[:, first:last].clone(),
            upper[first:last, first:last],
            torch.zeros_like(w[:, first:last]),
        )
        become = settle(first, last, block, factor)
        for i in range(last - first):
            column = block[:, i]
            fixed = become(i, column)
            errors[:, i] = (column - fixed) / factor[i, i]
            result[:, first + i] = fixed
            block[:, i:] -= errors[:, i : i + 1] @ factor[i : i + 1, i:]
        w[:, last:] -= errors @ upper[first:last, last:]
    return result


def torch_gptq(w: Any, h: Any) -> Any:
    import torch

    top, scales = 2**BITS - 1, {}

    def settle(first: int, last: int, block: Any, factor: Any) -> Callable[[int, Any], Any]:
        def become(i: int, column: Any) -> Any:
            if (first + i) % GROUP == 0:
                scales[0] = (2 * block[:, i : i + GROUP].abs().amax(1) / top).clamp_min(1e-12)
            zero = (top + 1) / 2
            return scales[0] * (torch.clamp(torch.round(column / scales[0]) + zero, 0, top) - zero)

        return become

    assert BLOCK % GROUP == 0
    return _sweep(w, _upper(h), settle)


def torch_sparsegpt(w: Any, h: Any, pattern: tuple[int, int] | None) -> Any:
    import torch

    def settle(first: int, last: int, block: Any, factor: Any) -> Callable[[int, Any], Any]:
        cost = torch.diagonal(factor) ** 2
        mask = torch.zeros_like(block, dtype=torch.bool)
        if pattern is None:
            score = block**2 / cost
            mask = score <= torch.sort(score.flatten())[0][score.numel() // 2 - 1]

        def become(i: int, column: Any) -> Any:
            if pattern is not None and i % pattern[1] == 0:
                score = block[:, i : i + pattern[1]] ** 2 / cost[i : i + pattern[1]]
                mask.scatter_(1, i + torch.topk(score, pattern[1] - pattern[0], largest=False)[1], True)
            return torch.where(mask[:, i], 0, column)

        return become

    return _sweep(w, _upper(h), settle)


def torch_wanda(w: Any, h: Any, pattern: tuple[int, int] | None) -> Any:
    import torch

    score = w.abs() * torch.sqrt(torch.diagonal(h))
    n, m = pattern or (w.shape[1] // 2, w.shape[1])
    groups = score.reshape(-1, m)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, torch.sort(groups, stable=True)[1][:, : m - n], True)
    return torch.where(mask.reshape(w.shape), 0, w)


# One implementation in a process.


def prepared(case: str, peer: str, x: np.ndarray, w: np.ndarray) -> Callable[[], Any]:
    method, _, what = case.partition(" ")
    pattern = (2, 4) if what == "2:4" else None
    import pumice as pm

    moments = pm.Moments(x.shape[1])
    moments.update(x)
    if peer == "pumice":
        if method == "gptq":
            return lambda: pm.quantize(w, f"int{BITS}-g{GROUP}", method="gptq", stats=moments)
        wanted: dict[str, Any] = {"pattern": "2:4"} if pattern else {"sparsity": 0.5}
        return lambda: pm.prune(w, method=method, stats=moments, **wanted)
    import torch

    h, weights = torch.from_numpy(moments.mean()), torch.from_numpy(w)
    if method == "gptq":
        return lambda: torch_gptq(weights, h)
    return lambda: (torch_sparsegpt if method == "sparsegpt" else torch_wanda)(weights, h, pattern)


def run(case: str, peer: str, size: int, threads: int) -> dict[str, float]:
    if peer == "torch":
        import torch

        torch.set_num_threads(threads)
    x, w = layer(size)
    call = prepared(case, peer, x, w)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    memory = resident("VmHWM") - before
    changed = result.to_dense() if hasattr(result, "to_dense") and peer == "pumice" else np.asarray(result)
    error = float(np.linalg.norm(x @ (changed - w).T) / np.linalg.norm(x @ w.T))
    return {"seconds": seconds, "memory": memory, "error": error}


def resident(what: str) -> int:
    """Bytes of this process in memory: "VmRSS" now, "VmHWM" at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(*options.run, options.size, options.threads)))
        return
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "PUMICE_NUM_THREADS", "OMP_NUM_THREADS"), str(options.threads))
    rounds: dict[str, list[dict[str, float]]] = {f"{case}, {peer}": [] for case in options.cases for peer in PEERS}
    for _ in range(options.rounds):
        for case in options.cases:
            for peer in PEERS:
                command = [sys.executable, __file__, "--run", case, peer, "--size", str(options.size)]
                command += ["--threads", str(options.threads)]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | threads)
                rounds[f"{case}, {peer}"].append(json.loads(done.stdout))
    if options.json:
        options.json.write_text(json.dumps({"machine": platform.processor(), "rounds": rounds}, indent=1))
    print(f"{options.size} x {options.size}, {options.threads} threads, medians of {options.rounds}")
    print("| | seconds (spread) | memory, MB | output error |\n|---|---|---|---|")
    for name, found in rounds.items():
        seconds = [r["seconds"] for r in found]
        memory, error = (statistics.median(r[key] for r in found) for key in ("memory", "error"))
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"
        print(f"| {name} | {spread} | {memory / 1e6:.0f} | {error:.4f} |")


if __name__ == "__main__":
    main()
