"""The results of bench/quality.py as tables and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparse_tables import table

BASE, CALIBRATION = "as it is", "calibration"
TITLES = {"austen": "Austen, 3 M", "smollm2": "SmolLM2-135M", "minilm": "all-MiniLM-L6-v2"}
FAMILIES = {
    "rounding": ("#7f7f7f", "o"), "gptq": ("#1d8a5b", "o"), "magnitude": ("#e0803a", "s"), "wanda": ("#3a78b8", "s"),
    "sparsegpt": ("#8a63b0", "s"), "llama.cpp": ("#c03030", "^"),
}  # fmt: skip


def blocks(found: dict[str, Any]) -> dict[str, str]:
    """A table of each model that was measured, and what it was measured on."""
    tables = {name: model_table(found[name]) for name in TITLES if BASE in found.get(name, {})}
    where = found["about"]
    facts = [f"- {key}: {where[key]}" for key in ("machine", "ISA", "date") if key in where]
    for name in tables:
        rows = found[name][CALIBRATION]["rows"]
        unit = "tokens" if loss_of(found[name][BASE]) else "vectors"
        facts.append(f"- {TITLES[name]}: calibrated on {rows:,} tokens, scored on {found[name][BASE]['rows']:,} {unit}")
    return {"about": "\n".join(facts)} | tables


def loss_of(row: dict[str, Any]) -> bool:
    return row.get("perplexity") is not None


def quality(row: dict[str, Any], base: dict[str, Any]) -> float:
    """What is lost: perplexity over the model's own, less 1; or 1 - cosine."""
    if loss_of(row):
        return float(row["perplexity"] / base["perplexity"] - 1)
    return float(1 - row["cosine"])


def loss(lost: float, scores: bool) -> str:
    """Of perplexity as a share, or a factor where it is beyond all measure; of a cosine as it is."""
    if not scores:
        return f"{lost:.4f}"
    return f"{lost:+.1%}" if lost < 10 else f"x {lost + 1:,.0f}"


def model_table(rows: dict[str, Any]) -> str:
    base, lines = rows[BASE], []
    scores = loss_of(base)
    for name, row in rows.items():
        if name == CALIBRATION:
            continue
        if "failed" in row:
            lines.append([name, "", "", "not read", str(row["failed"])])
            continue
        bits, lost = row.get("bits"), row.get("output error")
        value = f"{row['perplexity']:,.2f}" if scores else f"{row['cosine']:.4f}"
        change = "" if name == BASE else loss(quality(row, base), scores)
        cells = [name, f"{bits:.2f}" if bits else "", "" if lost is None else f"{lost:.3f}"]
        lines.append([*cells, value, change])
    what = ("perplexity", "change") if scores else ("mean cosine", "1 - cosine")
    return table(["", "bits per weight", "output error", *what], lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """What is lost against bits per weight, a panel a model; the line joins what nothing else beats on both counts."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = [name for name in TITLES if BASE in found.get(name, {})]
    figure, panels = pyplot.subplots(1, len(names), figsize=(10, 4.6), squeeze=False, layout="constrained")
    for axes, name in zip(panels[0], names, strict=True):
        rows = {case: row for case, row in found[name].items() if row.get("bits")}
        points = {case: (row["bits"], max(quality(row, found[name][BASE]), 1e-4)) for case, row in rows.items()}
        for case, point in points.items():
            color, marker = FAMILIES[family(case)]
            axes.plot(*point, marker, color=color, markersize=6, alpha=0.85)
        front = pareto(list(points.values()))
        axes.plot(*zip(*front, strict=True), "-", color="#000000", linewidth=0.8, alpha=0.5)
        axes.set(xlabel="bits per weight", title=TITLES[name], yscale="log")
        axes.set_ylabel("1 - cosine" if not loss_of(found[name][BASE]) else "perplexity, relative increase")
        axes.grid(alpha=0.25)
    marks = [
        pyplot.Line2D([], [], linestyle="", color=color, marker=marker, label=label)
        for label, (color, marker) in FAMILIES.items()
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def family(case: str) -> str:
    """By the first of its algorithms."""
    return next((name for name in ("magnitude", "wanda", "sparsegpt", "llama.cpp", "gptq") if name in case), "rounding")


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that nothing beats on both counts, by rising bits."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front
