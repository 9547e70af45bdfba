"""How good "auto" is: its choice beside the best of all candidates: ``python bench/choice.py [--calibrate] [--write]``.

On one thread, objective "speed", weights from DRAM. Candidates that keep within the error are timed in turns, but for
those that the model expects to take `HOPELESS` times as long as its favourite; then the choice and whoever came within
`LEADING` of the fastest once more, in more rounds: of many, the fastest is also the luckiest. Prints a line a case, and
in how many the choice takes at most 10 % longer than the best.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from machine import about
from pages import machine_page, write_machine
from sparse_tables import table as markdown

HOPELESS, LEADING, FINAL_ROUNDS = 4.0, 1.25, 31
PATTERNS = {None: (0.0, 0.5, 0.7, 0.8, 0.9, 0.95), "bsr-16x4": (0.7, 0.9), "bsr-16x16": (0.8,), "2:4": (None,)}


def cases(rows: int, cols: int) -> Iterator[tuple[str, np.ndarray]]:
    """(what it is, weight), those whose pattern is known."""
    import pumice as pm

    rng = np.random.default_rng(0)
    for pattern, sparsities in PATTERNS.items():
        for sparsity in sparsities:
            w = rng.standard_normal((rows, cols), np.float32)
            try:
                w = pm.prune(w, sparsity, pattern=pattern)
            except pm.SchemeError:
                continue
            yield f"{pattern or 'scattered'} {'' if sparsity is None else f'{sparsity:.0%}'}", w


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=(2048, 2048), metavar=("ROWS", "COLS"))
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 16, 64))
    parser.add_argument("--max-error", type=float, default=0.02)
    parser.add_argument(
        "--calibrate", action="store_true", help="measure this machine first (else its profile, or the defaults)"
    )
    parser.add_argument("--json", metavar="FILE", help="where all times go")
    parser.add_argument("--write", action="store_true", help="put the table into the page of this machine")
    options = parser.parse_args()
    if options.calibrate:
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()

    import pumice as pm
    from pumice.calibration import calibrate
    from pumice.choice import Request, choose, panels_of, time_products
    from pumice.profile import save_profile

    pm.set_num_threads(1)
    if options.calibrate:
        save_profile(calibrate())
    ratios, table = [], []
    for name, w in cases(*options.shape):
        for batch in options.batches:
            request = Request(batch, "speed", options.max_error)
            panels = panels_of(w)
            choice = choose(w.shape, panels, request)
            favourite = choice.candidates[0]
            errors = {c.scheme: c.error for c in choice.candidates}
            hopeful = [c.scheme for c in choice.candidates if c.time <= HOPELESS * favourite.time]
            good = [s for s in hopeful if fits(w, s, errors[s], options.max_error)]
            seconds = time_products(good, panels, request)
            leaders = {s for s, t in seconds.items() if t <= LEADING * min(seconds.values())} | {choice.scheme}
            seconds |= (final := time_products(leaders, panels, request, FINAL_ROUNDS))
            best = min(final, key=final.__getitem__)
            ratios.append(seconds[choice.scheme] / seconds[best])
            table.append({"case": name, "batch": batch, "choice": choice.scheme, "best": best, "seconds": seconds})
            mine, its = (f"{scheme:<16} {seconds[scheme] * 1e3:8.3f} ms" for scheme in (choice.scheme, best))
            expected = f"(expected {favourite.time * 1e3:.3f})"
            print(f"{name:<16} batch {batch:<4} {mine} {expected}   best {its}   x {ratios[-1]:.2f}", flush=True)
    within = sum(r <= 1.1 for r in ratios)
    result = f"within 10 % of the best: {within} of {len(ratios)}; worst x {max(ratios):.2f}"
    print(result, file=sys.stderr)
    if options.write:
        facts = about()
        costs = "calibrated" if options.calibrate else "the shipped defaults"
        where = f"{facts['machine']}; ISA {facts['ISA']}; {facts['date']}"
        text = f"{options.shape[0]} x {options.shape[1]}, costs {costs}: {result}.\n\n{shown(table)}\n\n*{where}.*"
        write_machine(machine_page(facts), {"choice": text})
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(table, file, indent=1)


def shown(lines: list[dict[str, Any]]) -> str:
    """A line a case and batch: what was chosen, what was the fastest, and their times."""
    rows = []
    for line in lines:
        mine, its = (line["seconds"][line[which]] * 1e3 for which in ("choice", "best"))
        best = "" if line["best"] == line["choice"] else f"{line['best']} {its:.3f}"
        rows.append((line["case"], str(line["batch"]), line["choice"], f"{mine:.3f}", best, f"{mine / its:.2f}"))
    return markdown(("weights", "batch", "choice", "ms", "fastest, ms", "choice / fastest"), rows)


def fits(w: np.ndarray, scheme: str, error: float | None, limit: float) -> bool:
    """Whether a scheme keeps within the error."""
    import pumice as pm

    if error is not None:
        return error <= limit
    if "int" not in scheme:
        return True
    sample = w[:: max(len(w) // 128, 1)]
    values = scheme.rpartition("+")[2]
    return float(np.linalg.norm(pm.compress(sample, values).to_dense() - sample)) <= limit * float(
        np.linalg.norm(sample)
    )


if __name__ == "__main__":
    main()
