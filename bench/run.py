"""Measure pumice beside its peers in one run: ``python bench/run.py [--groups dense csr lyra] [--write]``.

``--write`` puts the tables into docs/performance.md; the numbers of every round go to build/bench/results.json.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

import numpy as np
from harness import Row, machine, measure, save

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"

GROUPS: dict[str, tuple[str, list[str], list[int]]] = {
    "dense": (
        "Dense, 4096 x 4096, cold weights",
        ["dense_numpy", "dense_int4", "dense_int4_g32", "dense_int8"],
        [1, 4, 16, 64, 256],
    ),
    "csr": (
        "CSR, 4096 x 4096, 90 % sparse at random, cold weights",
        ["csr_numpy", "csr_scipy", "csr_float32", "csr_int8"],
        [1, 16, 64],
    ),
    "lyra": (
        "Lyra WaveGRU conv_to_gates, 3072 x 1024, learned 4 x 4 blocks, 8 % dense, cold weights",
        ["lyra_numpy", "lyra_scipy", "lyra_scipy_bsr", "lyra_csr", "lyra_csr_int8", "lyra_bsr", "lyra_bsr_int8"],
        [1],
    ),
}


def table(rows: list[Row]) -> str:
    """Markdown: one line a case and batch, ratios to the first case of the batch (NumPy float32) round by round."""
    lines = [
        "| case | batch | bytes | ms | spread | GB/s | NumPy float32 / it | relative rms error |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for batch in dict.fromkeys(row.batch for row in rows):
        same = [row for row in rows if row.batch == batch]
        base = np.array(next(row for row in same if row.case.startswith("NumPy")).rounds)
        for row in same:
            ratio = float(np.median(base / np.array(row.rounds)))
            lines.append(
                f"| {row.case} | {batch} | {row.nbytes:,} | {row.ms:.3f} | {row.spread:.0%} | "
                f"{row.nbytes / row.ms / 1e6:.1f} | {ratio:.2f} | {row.error:.1e} |"
            )
    return "\n".join(lines)


def write(tables: dict[str, str], about: dict[str, str]) -> None:
    """Replace what stands between the markers of the page."""
    text = PAGE.read_text("utf-8")
    facts = "\n".join(f"- {key}: {value}" for key, value in about.items())
    for name, body in (tables | {"machine": facts}).items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text, count = pattern.subn(lambda m, body=body: m[1] + body + m[2], text)
        if count != 1:
            raise SystemExit(f"{PAGE}: expected one place for {name!r}, found {count}")
    PAGE.write_text(text, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--batches", nargs="+", type=int, help="instead of each group's own")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    options = parser.parse_args()
    about, rows, tables = machine(options.threads), [], {}
    for name in options.groups:
        title, families, batches = GROUPS[name]
        print(f"{title} ...", file=sys.stderr, flush=True)
        found = measure(name, families, options.batches or batches, options.rounds, options.threads)
        rows += found
        tables[name] = table(found)
        print(f"\n{title}\n\n{tables[name]}\n", flush=True)
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    save(ROOT / "build" / "bench" / "results.json", about, rows)
    if options.write:
        write(tables, about)


if __name__ == "__main__":
    main()
