"""The algorithms beside others' implementations of them, on the same layers and moments; what patterns retain.

    python bench/algorithms.py retained quality speed [--size 4096] [--rounds 3] [--threads 2] [--json FILE] [--write]

`retained` is what is left of a normal matrix by pattern. `quality` is the error of the output,
||x (w' - w)^T|| / ||x w^T||, over that of each peer (bench/algorithm_peers.py), on the inputs that the moments are of
and on inputs that nobody has seen, for random layers and those of two models (bench/algorithm_layers.py). `speed`
times one random layer: each implementation in a process of its own, in turns. Seconds are medians from moments in
memory to weights (of peers: quantized and decoded; of pumice: codes and scales), memory is what the process takes
meanwhile on top of what it had. ``--write`` puts the tables into docs/algorithms.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from algorithm_layers import SOURCES, Layer, layers, random_layer
from algorithm_peers import CASES, dense, prepared
from pages import write_page
from sparse_tables import table

import pumice as pm

PAGE = Path(__file__).parents[1] / "docs" / "algorithms.md"
SUITES = ("retained", "quality", "speed")
PEERS = ("torch", "llmcompressor")
SHAPE = (512, 1024)  # of the normal matrix
RETAINED = {  # pattern -> sparsities
    None: (0.5, 0.8, 0.9), "8:16": (None,), "4:8": (None,), "2:4": (None,), "1:4": (None,), "bsr-1x4": (0.5,),
    "bsr-16x1": (0.5, 0.8), "bsr-8x4": (0.5,), "bsr-32x32": (0.5,),
}  # fmt: skip

Rounds: TypeAlias = dict[str, list[dict[str, float]]]


# What patterns retain.


def retained() -> str:
    w = np.random.default_rng(0).standard_normal(SHAPE)
    rows = []
    for pattern, sparsities in RETAINED.items():
        for sparsity in sparsities:
            pruned = pm.prune(w, sparsity, pattern=pattern)
            share = np.count_nonzero(pruned == 0) / w.size
            magnitude, energy = np.abs(pruned).sum() / np.abs(w).sum(), np.square(pruned).sum() / np.square(w).sum()
            rows.append([pattern or "any", f"{share:.0%}", f"{magnitude:.3f}", f"{energy:.3f}"])
    return table(["pattern", "removed", "of sum abs(w)", "of sum w^2"], rows)


# Quality.


def output_error(layer: Layer, changed: np.ndarray, x: np.ndarray) -> float:
    return float(np.linalg.norm(x @ (changed - layer.w).T) / np.linalg.norm(x @ layer.w.T))


def quality(source: str, peers: list[str]) -> list[dict[str, Any]]:
    """A row for each layer, case and peer: both errors on both inputs."""
    found = []
    for layer in layers(source):
        moments = pm.Moments(layer.w.shape[1])
        moments.update(layer.seen)
        for case in CASES:
            errors = {}
            for peer in ("pumice", *peers):
                call = prepared(peer, case, layer.w, moments)
                if call is not None:
                    changed = dense(call())
                    errors[peer] = [output_error(layer, changed, x) for x in (layer.seen, layer.unseen)]
            ours = errors.pop("pumice")
            found += [
                {"source": source, "layer": layer.name, "case": case, "peer": peer, "ours": ours, "theirs": theirs}
                for peer, theirs in errors.items()
            ]
    return found


def quality_table(found: list[dict[str, Any]]) -> str:
    """The median and the worst of the ratios over the layers of a model."""
    rows = []
    for case in CASES:
        for peer in PEERS:
            some = [row for row in found if (row["case"], row["peer"]) == (case, peer)]
            cells = []
            for source in SOURCES:
                for which in (0, 1):
                    ratios = [r["ours"][which] / r["theirs"][which] for r in some if r["source"] == source]
                    cells.append(f"{statistics.median(ratios):.3f}, {max(ratios):.3f}" if ratios else "")
            if some:
                rows.append([case, peer, *cells])
    headings = [f"{source}, {inputs}" for source in SOURCES for inputs in ("seen", "unseen")]
    return table(["", "over that of", *headings], rows, left=2)


# Speed: one implementation in a process.


def run(case: str, peer: str, size: int, threads: int) -> dict[str, float] | None:
    if peer != "pumice":
        import torch

        torch.set_num_threads(threads)
    layer = random_layer(size, size)
    moments = pm.Moments(size)
    moments.update(layer.seen)
    call = prepared(peer, case, layer.w, moments)
    if call is None:
        return None
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    memory = resident("VmHWM") - before
    return {"seconds": seconds, "memory": memory, "error": output_error(layer, dense(result), layer.seen)}


def resident(what: str) -> int:
    """Bytes of this process in memory: "VmRSS" now, "VmHWM" at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def speed(options: argparse.Namespace, peers: list[str]) -> Rounds:
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "PUMICE_NUM_THREADS", "OMP_NUM_THREADS"), str(options.threads))
    rounds: Rounds = {}
    for _ in range(options.rounds):
        for case in options.cases:
            for peer in (*peers, "pumice"):
                command = [sys.executable, __file__, "--run", case, peer, "--size", str(options.size)]
                command += ["--threads", str(options.threads)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | threads)
                found = json.loads(done.stdout.splitlines()[-1])
                if found is not None:
                    rounds.setdefault(f"{case}: {peer}", []).append(found)
    return rounds


def speed_table(rounds: Rounds) -> str:
    rows = []
    for name, found in rounds.items():
        seconds = [r["seconds"] for r in found]
        memory, error = (statistics.median(r[key] for r in found) for key in ("memory", "error"))
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"
        rows.append([*name.split(": "), spread, f"{memory / 1e6:.0f}", f"{error:.4f}"])
    return table(["", "by", "seconds (spread)", "memory, MB", "error of the output"], rows, left=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(SUITES)}; by default all")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--json", type=Path, help="where all figures go; what an earlier run left there is kept")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/algorithms.md")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"suites: expected some of {', '.join(SUITES)}, got {', '.join(sorted(unknown))}")
    options.suites = options.suites or SUITES
    if options.run:
        print("\n" + json.dumps(run(*options.run, options.size, options.threads)))
        return
    peers = [peer for peer in PEERS if find_spec(peer)]
    for peer in sorted(set(PEERS) - set(peers)):
        print(f"algorithms: {peer} is not installed: SKIPPED", file=sys.stderr)
    kept = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    found = {}
    if "retained" in options.suites:
        found["retained"] = retained()
    if "quality" in options.suites:
        kept["quality"] = [row for source in SOURCES for row in quality(source, peers)]
        found["quality"] = quality_table(kept["quality"])
    if "speed" in options.suites:
        kept["speed"] = kept.get("speed", {}) | speed(options, peers)
        found["speed"] = speed_table(kept["speed"])
    if options.json:
        options.json.write_text(json.dumps(kept, indent=1))
    print("\n\n".join(found.values()))
    if options.write:
        write_page(PAGE, found)


if __name__ == "__main__":
    main()
