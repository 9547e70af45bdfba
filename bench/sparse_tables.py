"""Results of the sparse suites as Markdown: the dense int4 column always, where layouts stop paying, the targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from results import NUMPY, Results, Row, judge

INT8, INT4 = "pumice int8, {} activations", "pumice int4-g128, {} activations"
INT4_SMALL = "pumice int4-g32, {} activations"
RULERS = {"float32 NumPy": NUMPY, "int8": INT8.format("int16"), "int4-g128": INT4.format("int16")}
GRIDS = ("sparse-grid", "sparse-grid-large")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first `left` columns are flush left."""
    rule = ["---" if i < left else "--:" for i in range(len(headings))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, rule, *rows))


def mark(ratio: float) -> str:
    """A ratio; a loss is bold."""
    return f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"


def against(row: Row, same: Sequence[Row], pattern: str) -> float | None:
    """Median over the rounds of (that case / this one), that case with the same activations (int16 for floats)."""
    mode = next((mode for mode in ("int16", "int8") if f"{mode} activations" in row.case), "int16")
    other = next((other for other in same if other.case == pattern.format(mode)), None)
    return None if other is None else float(np.median(np.array(other.rounds) / np.array(row.rounds)))


def stored(row: Row) -> str:
    return f"{row.facts.get('resident', row.nbytes) / 1e6:.3g}"


def name_of(row: Row) -> str:
    return row.case.removeprefix("pumice ") if row.ours else row.case


def by_batch(results: Results, suite: str) -> str:
    """For each setting, case by batch: ms (fastest peer / it, dense int8 / it, dense int4 / it)."""
    parts = ["Milliseconds (fastest peer / it, our dense int8 / it, our dense int4-g128 / it; the same activations):"]
    for setting in results.settings(suite):
        rows = results.at(setting)
        batches = list(dict.fromkeys(row.batch for row in rows))
        lines = []
        for case in dict.fromkeys(row.case for row in rows):
            here = {row.batch: row for row in rows if row.case == case}
            first = next(iter(here.values()))
            cells = [cell(here[b], results.at(setting, b)) if b in here else "" for b in batches]
            error = "" if first.error is None else f"{first.error:.0e}"
            lines.append((case, f"{first.bits / 8:.3f}", stored(first), *cells, error))
        headings = ("case", "bytes per weight", "resident MB", *(f"batch {b}" for b in batches), "error")
        parts += [f"### {setting}", lost(results, setting), table(headings, lines)]
    return "\n\n".join(parts)


def lost(results: Results, setting: str) -> str:
    """How often our sparse layouts lose, in a sentence."""
    rows = [row for row in results.at(setting) if row.ours and row.facts.get("sparsity") and not is_dense(row)]
    peers = [verdict.ratio for row in rows if (verdict := judge(row, results.at(setting, row.batch)))]
    dense = [r for row in rows if (r := against(row, results.at(setting, row.batch), INT4)) is not None]
    losses = [f"{sum(r < 1 for r in found)} of {len(found)}" for found in (peers, dense)]
    return f"Sparse layouts lose {losses[0]} comparisons to the fastest peer, {losses[1]} to our dense int4-g128."


def is_dense(row: Row) -> bool:
    return row.case.removeprefix("pumice ").startswith(("int", "bfloat16", "float"))


def cell(row: Row, same: Sequence[Row]) -> str:
    if not row.ours:
        return f"{row.ms:.3g}"
    verdict = judge(row, same)
    values = [verdict.ratio if verdict else None, *(against(row, same, dense) for dense in (INT8, INT4))]
    return f"{row.ms:.3g} ({', '.join('-' if value is None else mark(value) for value in values)})"


# The grid: where each layout stops paying.


def crossings(results: Results) -> str:
    """Layout by shape and batch: the sparsity from which it is faster than each ruler, on lines between the points."""
    parts = [f"![time against sparsity, {shape}](plots/{plot_name(shape)}.png)" for shape in shapes(results)]
    lines = []
    for shape in shapes(results):
        rows = of_shape(results, shape)
        for case in layouts(rows):
            line = [row for row in rows if row.case == case]
            cells = [f"{pays(rows, case, line[0].batch, INT4.format('int16'), size=True)}"]
            for batch in dict.fromkeys(row.batch for row in line):
                found = [pays(rows, case, batch, ruler) for ruler in RULERS.values()]
                cells.append(" / ".join(found))
            lines.append((shape, case.removeprefix("pumice "), *cells))
    width = max((len(line) for line in lines), default=0)
    batches = list(dict.fromkeys(row.batch for row in results.rows))
    full = [(*line, *[""] * (width - len(line))) for line in lines]
    headings = ("shape", "layout", "smaller than int4-g128", *(f"batch {b}" for b in batches[: width - 3]))
    legend = (
        "From which share of zeros a layout is smaller than our dense int4-g128, and faster than float32 NumPy / our "
        "dense int8 / our dense int4-g128 (int16 activations), up to 95 %, on lines between the points; `-`: never. "
        "2:4 is measured at 50 % only, where it is."
    )
    return "\n\n".join([*parts, legend, table(headings, full, left=2)])


def shapes(results: Results) -> list[str]:
    return list(dict.fromkeys(f"{row.rows} x {row.cols}" for row in results.rows))


def of_shape(results: Results, shape: str) -> list[Row]:
    return [row for row in results.rows if f"{row.rows} x {row.cols}" == shape]


def plot_name(shape: str) -> str:
    return "sparsity-" + shape.replace(" ", "")


def layouts(rows: Sequence[Row]) -> list[str]:
    """Cases that are no rulers."""
    return [case for case in dict.fromkeys(row.case for row in rows) if case not in RULERS.values()]


def ratios(rows: Sequence[Row], case: str, batch: int, ruler: str, size: bool = False) -> list[tuple[float, float]]:
    """(sparsity, ruler / case) in time, round by round, or in bytes."""
    found = []
    for row in (row for row in rows if row.case == case and row.batch == batch):
        other = next(o for o in rows if (o.case, o.batch, o.setting) == (ruler, batch, row.setting))
        ratio = other.nbytes / row.nbytes if size else np.median(np.array(other.rounds) / np.array(row.rounds))
        found.append((row.facts["sparsity"], float(ratio)))
    return sorted(found)


def crossing(points: Sequence[tuple[float, float]]) -> float | None:
    """Where the ratio passes 1 for good; the first sparsity if it is above 1 all along, None if it ends below."""
    if not points or points[-1][1] < 1:
        return None
    for (low, below), (high, above) in reversed(list(pairwise(points))):
        if below < 1:
            share = -np.log(below) / (np.log(above) - np.log(below))
            return float(low + share * (high - low))
    return points[0][0]


def pays(rows: Sequence[Row], case: str, batch: int, ruler: str, size: bool = False) -> str:
    points = ratios(rows, case, batch, ruler, size)
    found = crossing(points)
    if found is None:
        return "-"
    return f"<= {found:.0%}" if found == points[0][0] and len(points) > 1 else f"{found:.0%}"


# Networks and conversions.


def real(results: Results, suite: str) -> str:
    """Bytes on disk and in memory, time of a product, cosine: beside dense float32, int8 and int4."""
    lines = []
    for setting in results.settings(suite):
        rows = results.at(setting)
        batches = list(dict.fromkeys(row.batch for row in rows))
        for case in dict.fromkeys(row.case for row in rows):
            here = [row for row in rows if row.case == case]
            cells = []
            for row in here:
                same = results.at(setting, row.batch)
                ratios = [against(row, same, pattern) for pattern in (NUMPY, INT8)]
                ratios.append(next((r for p in (INT4, INT4_SMALL) if (r := against(row, same, p)) is not None), None))
                cells.append(f"{row.ms:.3g} ({', '.join('-' if r is None else mark(r) for r in ratios)})")
            facts = here[0].facts
            disk = f"{facts['disk'] / 1e6:.3f}" if "disk" in facts else ""
            cosine = f"{facts['cosine']:.4f}" if "cosine" in facts else ""
            where = setting.partition(", cold")[0]
            lines.append((where, name_of(here[0]), f"{here[0].bits / 8:.3f}", disk, stored(here[0]), *cells, cosine))
    headings = ("network", "weights", "bytes per weight", "MB on disk", "MB resident", *(f"batch {b}" for b in batches))
    legend = "Milliseconds of a product (dense float32 NumPy / it, our dense int8 / it, our dense int4 / it):"
    return f"{legend}\n\n{table((*headings, 'cosine'), lines, left=2)}"


def conversions(results: Results, suite: str) -> str:
    lines = []
    for setting in results.settings(suite):
        rows = results.at(setting)
        for row in rows:
            ratio = against(row, rows, SCIPY) or 1.0
            where = setting.partition(", cold")[0]
            cells = (where, name_of(row), f"{row.nbytes / 1e6:.3g}", f"{row.bits / 8:.3f}", f"{row.ms:.3g}")
            lines.append((*cells, mark(ratio), f"{row.facts['peak']:.2f}"))
    headings = ("dense w", "to", "MB", "bytes per weight", "ms", f"{SCIPY} / it", "peak extra memory / result")
    note = "A dense int4-g128 has 0.516 bytes per weight. The peak includes the result."
    return f"{note}\n\n{table(headings, lines, left=2)}"


# Targets of issue 5.

SCIPY = "SciPy csr_array(w)"


@dataclass(frozen=True)
class Target:
    """What a case is to reach at each batch: of the fastest peer, or of one case."""

    suite: str
    weight: str
    case: str
    rival: str | None
    wanted: dict[int, float]


def _targets() -> Iterator[Target]:
    for share, wanted in (("80%", (1.3, 2, 2.5, 3)), ("90%", (1.5, 2.2, 3.3, 3.5)), ("95%", (1.3, 2, 2.5, 3))):
        batches = dict(zip((1, 16, 64, 256), wanted, strict=True))
        yield Target("sparse-csr", f"{share} zeros", "pumice csr", None, batches)
    block = "90% zeros in blocks of {}"
    yield Target("sparse-bsr", block.format("16x16"), "pumice bsr-16x16", None, {1: 2.2, 16: 4.5, 256: 4.5})
    for mode, wanted in (("int8", (7, 4.5, 4)), ("int16", (6, 4, 4))):
        case = f"pumice bsr-16x4+int8, {mode} activations"
        batches = dict(zip((1, 16, 256), wanted, strict=True))
        yield Target("sparse-bsr", block.format("16x4"), case, INT8, batches)
    for share, ratio in (("50%", 1.5), ("70%", 2.1), ("90%", 3.2)):
        for mode in ("int16", "int8"):
            case = f"pumice bitmask+int8, {mode} activations"
            first = {1: ratio} if mode == "int16" else {}
            yield Target("sparse-bitmask", f"{share} zeros", case, INT8, first | {64: 0.95, 256: 0.95})
    for layout, share, ratio in (("bitmask", "50%", 1.1), ("2:4", "50%", 1.1), ("bitmask", "70%", 1.5)):
        case = f"pumice {layout}+int4-g128, int16 activations"
        yield Target("sparse-bitmask", f"{share} zeros", case, INT4, {1: ratio})


TARGETS = tuple(_targets())
CONVERT, PEAK = 4.0, 1.1


def targets(results: Results) -> str:
    """Issue 5's targets beside what was measured on 2 threads."""
    lines = []
    for target in TARGETS:
        for row in (row for row in results.of(target.suite).rows if row.case == target.case and row.threads == 2):
            if row.batch not in target.wanted or row.setting.split(", ")[1] != target.weight:
                continue
            same = results.of(target.suite).at(row.setting, row.batch)
            lines.append(_line(target, row, same))
    for row in results.of("sparse-convert").rows:
        if row.ours:
            same = results.of("sparse-convert").at(row.setting)
            ratio, peak = against(row, same, SCIPY), row.facts["peak"]
            where = f"{row.setting.split(', ')[1]}, from dense"
            if ratio is not None:
                lines.append((where, name_of(row), "", SCIPY, f">= {CONVERT:g}", f"{ratio:.2f}", met(ratio >= CONVERT)))
            lines.append((where, name_of(row), "", "peak / result", f"< {PEAK:g}", f"{peak:.2f}", met(peak < PEAK)))
    count = sum(line[-1] == "met" for line in lines)
    headings = ("weights", "pumice", "batch", "beside", "target", "measured", "")
    return f"{count} of {len(lines)} targets are met.\n\n" + table(headings, lines, left=2)


def _line(target: Target, row: Row, same: Sequence[Row]) -> tuple[str, ...]:
    if target.rival is None:
        verdict = judge(row, same)
        ratio, rival = (verdict.ratio, verdict.peer) if verdict else (None, "")
    else:
        ratio = against(row, same, target.rival)
        rival = target.rival.split(",")[0].replace("pumice", "our dense")
    wanted = target.wanted[row.batch]
    smaller = ""
    ok = ratio is not None and ratio >= wanted
    if target.rival == INT4:  # and fewer bytes
        dense = next(other for other in same if other.case == INT4.format("int16"))
        smaller = f", {row.nbytes / dense.nbytes:.2f} of its bytes"
        ok = ok and row.nbytes < dense.nbytes
    measured = "not measured" if ratio is None else f"{ratio:.2f}{smaller}"
    cells = (target.weight, name_of(row), str(row.batch), rival, f">= {wanted:g}", measured)
    return (*cells, met(ok))


def met(ok: bool) -> str:
    return "met" if ok else "**missed**"


def sparse_blocks(results: Results) -> dict[str, str]:
    """Block name -> Markdown of what was measured."""
    found = {}
    for name in ("sparse-csr", "sparse-bsr", "sparse-bitmask"):
        if results.of(name).rows:
            found[name] = by_batch(results.of(name), name)
    grid = Results(results.about, [row for row in results.rows if row.suite in GRIDS])
    if grid.rows:
        found["sparse-grid"] = crossings(grid)
    for name, make in (("sparse-real", real), ("sparse-convert", conversions)):
        if results.of(name).rows:
            found[name] = make(results.of(name), name)
    return found | ({"sparse-targets": targets(results)} if found else {})
