"""Two result files side by side: ``python bench/compare.py A.json B.json`` (``make bench-compare A=... B=...``).

The ratio is A / B: above 1, B is faster. The last column is the same beside NumPy of the same setting and batch, which
takes out what the machine itself did between the runs. A change is flagged where the quartiles of the rounds of the
two files do not touch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from results import NUMPY, Results, Row
from tables import table


def key(row: Row) -> tuple[str, str, str, int]:
    return row.suite, row.setting, row.case, row.batch


def compare(a: Results, b: Results) -> tuple[str, int]:
    """A Markdown table of the cases that both files have, and how many changed beyond their spreads."""
    before, after = {key(row): row for row in a.rows}, {key(row): row for row in b.rows}
    lines, changed = [], 0
    for name, row in before.items():
        other = after.get(name)
        if other is None:
            continue
        flag = verdict(row, other)
        changed += bool(flag)
        ratio = row.ms / other.ms
        numpy = (*name[:2], NUMPY, name[3])
        beside = ratio / (before[numpy].ms / after[numpy].ms) if numpy in before and numpy in after else float("nan")
        cells = (f"{row.ms:.3f}", f"{other.ms:.3f}", f"{ratio:.2f}", f"{beside:.2f}", flag)
        lines.append((row.setting, row.case, str(row.batch), *cells))
    headings = ("", "case", "batch", "A ms", "B ms", "A / B", "beside NumPy", "beyond the spreads")
    return table(headings, lines, left=2), changed


def verdict(a: Row, b: Row) -> str:
    """Whether b is faster or slower; nothing where the quartiles of the rounds touch."""
    low_a, high_a = np.percentile(a.rounds, [25, 75])
    low_b, high_b = np.percentile(b.rounds, [25, 75])
    return "faster" if high_b < low_a else "slower" if low_b > high_a else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--changes", action="store_true", help="only what is flagged")
    options = parser.parse_args()
    a, b = Results.load(options.a), Results.load(options.b)
    text, changed = compare(a, b)
    if options.changes:
        text = "\n".join(line for i, line in enumerate(text.splitlines()) if i < 2 or not line.endswith("|  |"))
    print(text)
    for name in a.about.keys() | b.about.keys():
        if a.about.get(name) != b.about.get(name):
            print(f"{name} differs: {a.about.get(name)} | {b.about.get(name)}")
    missing = len({key(row) for row in a.rows} ^ {key(row) for row in b.rows})
    print(f"{changed} changes beyond the spreads; {missing} rows are in one of the files only")


if __name__ == "__main__":
    main()
