"""Results as Markdown: a block for each suite, the losses, and what the main suite comes to at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from results import FLOAT_PEAK, INT8_PEAK, PROBE, READ, Results, Row, Verdict, judge, share
from sparse_tables import mark, sparse_blocks, table
from suites import SPARSE, SUITES

PLOTS = {
    "bandwidth": "GB/s of weights at batch 1 against the read ceiling",
    "compute": "GFLOP/s by batch against the peaks",
    "ratio": "ratio to the fastest peer by batch",
    "error": "error against time",
}


def blocks(results: Results) -> dict[str, str]:
    """Block name -> Markdown: one for each suite that was measured, `losses` and `machine`; the sparse ones' own."""
    found = {}
    full = replace(results, rows=[row for row in results.rows if row.suite not in SPARSE])
    for name in dict.fromkeys(row.suite for row in full.rows):
        found[name] = f"{(dense if name == 'dense' else summary)(results.of(name), name)}\n\n{footer(results, name)}"
    if full.rows:
        found |= {"losses": losses(full), "machine": facts(results)}
    sparse = sparse_blocks(results)
    for name in sparse:
        if name != "sparse-targets":
            sparse[name] += f"\n\n{footer(results, name)}"
    return found | sparse | ({"sparse-machine": facts(results)} if sparse else {})


def facts(results: Results) -> str:
    lines = [f"- {key}: {value}" for key, value in results.about.items()]
    return "\n".join(lines + [f"- not measured: {line}" for line in results.skipped])


def footer(results: Results, suite: str) -> str:
    """What goes with every number: a line under each table."""
    about = results.about
    rounds = sorted({len(row.rounds) for row in results.rows if row.suite == suite})
    threads = sorted({row.threads for row in results.rows if row.suite == suite})
    text = f"{about.get('machine', '?')}; ISA {about.get('ISA', '?')}; {about.get('date', '?')}"
    return f"*{text}; threads {', '.join(map(str, threads))}; rounds {', '.join(map(str, rounds))}.*"


# The main suite: everything that there is to say about one shape.


def dense(results: Results, suite: str) -> str:
    """The headline table, the plots, and every library's milliseconds, for each setting of the suite."""
    parts = []
    for setting in reversed(results.settings(suite)):  # most threads first
        rows = results.at(setting)
        if not parts:
            parts += [f"### {setting}", headline(rows)]
            parts += [f"![{text}](plots/{name}.png)" for name, text in PLOTS.items()]
            parts += [f"Milliseconds of every library, {setting}:", everybody(rows)]
        else:
            parts += [f"### {setting}", our_table(results, [setting]), everybody(rows)]
    return "\n\n".join(parts)


def headline(rows: Sequence[Row]) -> str:
    """One line for each of our cases and batches."""
    lines = []
    for row in sorted((row for row in rows if row.ours), key=lambda row: row.batch):
        same = [other for other in rows if other.batch == row.batch]
        cells = (
            row.case.removeprefix("pumice "), str(row.batch), f"{row.ms:.3f}", f"{row.spread:.0%}",
            f"{row.gbytes:.1f}", f"{row.gflops:.0f}", roof(row, same), versus(judge(row, same, row.kind)),
            versus(judge(row, same)), error_of(row),
        )  # fmt: skip
        lines.append(cells)
    headings = (
        "pumice", "batch", "ms", "spread", "GB/s", "GFLOP/s", "of the machine", "fastest of its kind / it",
        "fastest of all / it", "error",
    )  # fmt: skip
    return table(headings, lines)


def roof(row: Row, same: Sequence[Row]) -> str:
    """The larger of the two shares: of the read ceiling, of the arithmetic peak."""
    peak = INT8_PEAK if row.kind in ("int8", "int4") else FLOAT_PEAK
    shares = [(share(row, same, probe), text) for probe, text in ((READ, "reading"), (peak, peak.split(" (")[0]))]
    known = [(value, text) for value, text in shares if value is not None]
    if not known:
        return ""
    value, text = max(known)
    return f"{value:.0%} {text}"


def versus(verdict: Verdict | None) -> str:
    if verdict is None:
        return "no peer"
    return f"{mark(verdict.ratio)} {verdict.peer}"


def error_of(row: Row) -> str:
    return "" if row.error is None else f"{row.error:.1e}"


def everybody(rows: Sequence[Row]) -> str:
    """Case by batch: milliseconds of everybody, the fastest of a column in bold; the probes as what they reach."""
    batches = list(dict.fromkeys(row.batch for row in rows))
    times = [row for row in rows if row.kind != PROBE]
    best = {batch: min((row.ms for row in times if row.batch == batch), default=0.0) for batch in batches}
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        here = {row.batch: row for row in rows if row.case == case}
        first = next(iter(here.values()))
        cells = []
        for batch in batches:
            row = here.get(batch)
            if row is None:
                cells.append("")
            elif row.kind == PROBE:
                cells.append(f"{row.gbytes:.0f} GB/s" if row.nbytes else f"{row.gflops:.0f} GFLOP/s")
            else:
                cells.append(f"**{row.ms:.3f}**" if row.ms == best[batch] else f"{row.ms:.3f}")
        size = "" if first.kind == PROBE else f"{first.nbytes / 1e6:.3g}"
        lines.append((case, size, *cells, error_of(first)))
    return table(("case", "MB", *(f"batch {batch}" for batch in batches), "error"), lines)


def glance(results: Results) -> str:
    """The fastest peer of its kind (of all, where none has it) / pumice: the main suite by batch, most threads."""
    main = results.of("dense")
    setting = main.settings()[-1]
    batches = sorted({row.batch for row in main.at(setting)})
    lines = []
    for case in our_cases(main, setting):
        here = {row.batch: row for row in main.at(setting) if row.case == case}
        verdicts = [peer_of(here[batch], main.at(setting, batch)) for batch in batches]
        lines.append((case.removeprefix("pumice "), *("" if v is None else mark(v.ratio) for v in verdicts)))
    return table((setting, *(f"batch {batch}" for batch in batches)), lines)


def peer_of(row: Row, same: Sequence[Row]) -> Verdict | None:
    """Beside the fastest peer that stores as many bits; where none does, beside the fastest."""
    return judge(row, same, row.kind) or judge(row, same)


# Other suites: our cases by shape.


def summary(results: Results, suite: str) -> str:
    return our_table(results, results.settings(suite))


def our_table(results: Results, settings: Sequence[str]) -> str:
    """Our cases by setting and batch: milliseconds, then the ratios to the fastest of the kind and of all."""
    batches = sorted({row.batch for setting in settings for row in results.at(setting)})
    lines = []
    for setting in settings:
        for case in our_cases(results, setting):
            cells = []
            for batch in batches:
                same = results.at(setting, batch)
                row = next((row for row in same if row.case == case), None)
                cells.append("" if row is None else f"{row.ms:.3g} ({ratios(row, same)})")
            lines.append((setting, case.removeprefix("pumice "), *cells))
    legend = "Milliseconds (fastest peer of its kind / it, fastest of all / it):"
    return legend + "\n\n" + table(("", "pumice", *(f"batch {batch}" for batch in batches)), lines, left=2)


def our_cases(results: Results, setting: str) -> list[str]:
    return list(dict.fromkeys(row.case for row in results.at(setting) if row.ours))


def ratios(row: Row, same: Sequence[Row]) -> str:
    verdicts = (judge(row, same, row.kind), judge(row, same))
    return ", ".join("no peer" if verdict is None else mark(verdict.ratio) for verdict in verdicts)


# Losses.


def losses(results: Results) -> str:
    """Where a peer is faster: a line for each setting and case, the batches with their ratios in it."""
    lines, count, lost = [], 0, 0
    suites = dict.fromkeys(row.suite for row in results.rows)
    for part, setting in ((results.of(name), at) for name in suites for at in results.settings(name)):
        for case in our_cases(part, setting):
            cells: tuple[list[str], list[str]] = ([], [])
            winners: dict[str, None] = {}
            for row in (row for row in part.at(setting) if row.case == case):
                same = part.at(setting, row.batch)
                for cell, kind in zip(cells, (row.kind, None), strict=True):
                    found = judge(row, same, kind)
                    count += found is not None
                    if found is not None and found.ratio < 1:
                        lost += 1
                        cell.append(f"{row.batch}: {found.ratio:.2f}")
                        winners[found.peer] = None
            if winners:
                lines.append((setting, case.removeprefix("pumice "), *map(", ".join, cells), ", ".join(winners)))
    titles = "; ".join(SUITES[name].title if name in SUITES else name for name in suites)
    text = f"{lost} of {count} comparisons are lost ({titles}). Each entry is a batch and the ratio there."
    if not lines:
        return text
    headings = ("", "pumice", "lost to its kind", "lost to any", "to whom")
    return text + "\n\n" + table(headings, lines, left=5)
