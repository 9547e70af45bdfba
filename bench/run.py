"""Measure pumice beside its peers in one run: ``python bench/run.py [SUITE ...] [--quick] [--json F] [--write]``.

Without a suite all but the sparse ones run (25 minutes; ``--quick`` 5), with ``sparse`` those (a quarter of an hour).
The numbers of every round go to build/bench/results.json, tables and plots beside it; ``--write`` puts them into
this machine's page in docs/performance/.

    python bench/run.py dense --batches 1 4 --rounds 7 --threads 2 --json out.json
    python bench/run.py sparse-csr --weights "random 0.9" --batches 1
    python bench/run.py dense --shape 2048x2048 --families dense_numpy dense_int4
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from harness import measure
from machine import about
from pages import PERFORMANCE, machine_page, write_machine, write_page
from results import Results
from suites import FULL, QUICK_BATCHES, QUICK_ROUNDS, SPARSE, SUITES
from tables import blocks, glance

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "build" / "bench"


def main() -> None:
    options = parse()
    if options.read:
        results = merged([Results.load(path) for path in options.read])
    else:
        results = Results(about())
        print("\n".join(f"{key}: {value}" for key, value in results.about.items()), file=sys.stderr, flush=True)
        path = options.json or OUTPUT / "results.json"
        for name in options.suites:
            run_suite(name, options, results)
            results.save(path)  # what is measured is kept, whatever comes later
        print(f"{path}: every round", file=sys.stderr)
    found = blocks(results)
    print("\n\n".join(found.values()))
    draw(results, OUTPUT)
    if options.write:
        publish(results, found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    names = [*SUITES, "full", "sparse"]
    add("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(names)}; without one, full")
    add("--suite", nargs="+", dest="more", default=[], metavar="SUITE", help="the same")
    add("--quick", action="store_true", help="fewer suites, batches and rounds")
    add("--batches", nargs="+", type=int, help="instead of each suite's own")
    add("--rounds", type=int, help="5 or 7 without it, by the suite")
    add("--threads", nargs="+", type=int, help="1 2 without it; some suites are for 2 only unless this says otherwise")
    add("--shape", nargs="+", type=shape, dest="shapes", metavar="RxC", help="instead of each suite's own")
    add("--weights", nargs="+", metavar="NAME", help="instead of each suite's own: names of weights.py")
    add("--families", nargs="+", metavar="NAME", help="keep these functions of the suites' modules only")
    add("--json", type=Path, metavar="F", help="where the results go (build/bench/results.json)")
    add("--from", nargs="+", type=Path, dest="read", metavar="F", help="show these results instead of measuring")
    add("--write", action="store_true", help="put tables and plots into docs/")
    options = parser.parse_args()
    chosen = options.suites + options.more or ["full"]
    for name in chosen:
        if name not in names:
            parser.error(f"suite: expected one of {', '.join(names)}, got {name!r}")
    groups = {"full": FULL, "sparse": SPARSE}
    options.suites = list(dict.fromkeys(suite for name in chosen for suite in groups.get(name, [name])))
    if options.quick:
        options.suites = [name for name in options.suites if SUITES[name].quick] or options.suites
    return options


def shape(text: str) -> tuple[int, int]:
    rows, x, cols = text.partition("x")
    if not x or not rows.isdigit() or not cols.isdigit():
        raise argparse.ArgumentTypeError(f"expected ROWSxCOLS, got {text!r}")
    return int(rows), int(cols)


def run_suite(name: str, options: argparse.Namespace, results: Results) -> None:
    """Measure one suite into `results`."""
    suite = SUITES[name]
    threads = options.threads or ([min(2, os.cpu_count() or 1)] if options.quick else [1, 2])
    batches = options.batches or [b for b in suite.batches if not options.quick or b in QUICK_BATCHES]
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else suite.rounds)
    families = [f for f in suite.families if not options.families or f.split(":")[1] in options.families]
    print(f"{suite.title} ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    if options.weights:
        suite = replace(suite, weights=tuple(options.weights))
    settings = list(suite.settings(threads, options.shapes, keep=options.threads is not None))
    if not settings:
        results.skipped.append(f"{suite.title}: it is for {suite.threads} threads")
        print(f"  SKIPPED {results.skipped[-1]}", file=sys.stderr, flush=True)
    for setting in settings:
        rows, skipped = measure(name, families, setting, batches, rounds)
        results.rows += rows
        results.skipped += skipped
    print(f"{suite.title}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def merged(several: list[Results]) -> Results:
    """One of several files; of a setting that two of them have in a suite, the later one counts."""
    result = Results(several[-1].about)
    for results in several:
        again = {(row.suite, row.setting) for row in results.rows}
        result.rows = [row for row in result.rows if (row.suite, row.setting) not in again] + results.rows
        result.skipped = list(dict.fromkeys(result.skipped + results.skipped))
    return result


def publish(results: Results, found: dict[str, str]) -> None:
    """Tables and plots into the page of their machine; the main suite at a glance into the first page."""
    page = machine_page(results.about)
    write_machine(page, found)
    draw(results, page.parent / "plots")
    if results.of("dense").rows:
        write_page(PERFORMANCE, {page.parent.name: glance(results)})
    print(page, file=sys.stderr)


def draw(results: Results, folder: Path) -> None:
    try:
        from plots import draw_all
    except ImportError as error:
        print(f"SKIPPED plots: {error}", file=sys.stderr)
        return
    for path in draw_all(results, folder):
        print(f"{path}: {path.stat().st_size >> 10} KB", file=sys.stderr)


if __name__ == "__main__":
    main()
