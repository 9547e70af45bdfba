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
SCORES, COSINES = (1e-4, 10.0), (1e-4, 1.0)  # what the plot shows of losses


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
    figure, panels = pyplot.subplots(1, len(names), figsize=(14, 5.6), squeeze=False, layout="constrained")
    for axes, name in zip(panels[0], names, strict=True):
        rows, scores = found[name], loss_of(found[name][BASE])
        least, most = SCORES if scores else COSINES
        points = {
            case: (row["bits"], min(max(quality(row, rows[BASE]), least), most))
            for case, row in rows.items()
            if row.get("bits")
        }
        front = pareto(points)
        axes.plot(*zip(*(points[case] for case in front), strict=True), "-", color="#000000", linewidth=0.8, alpha=0.5)
        for case, (bits, lost) in points.items():
            color, marker = FAMILIES[family(case)]
            beyond = lost in (least, most)  # drawn at the edge, hollow
            axes.plot(
                bits, lost, marker, color=color, markersize=6, alpha=0.85, markerfacecolor="none" if beyond else color
            )
        for place, case in enumerate(front):
            below = place % 2 == 0 and points[case][1] > 2 * least
            axes.annotate(
                case.replace(", ", "\n").replace(" + ", "\n+ "), points[case], (-4 if below else 5, -5 if below else 5),
                textcoords="offset points", fontsize=6.5, ha="right" if below else "left",
                va="top" if below else "bottom", color="#404040",
            )  # fmt: skip
        axes.set(xlabel="bits per weight", title=TITLES[name], yscale="log", ylim=(least / 1.6, most * 1.4))
        axes.set_xlim(0, max(bits for bits, _ in points.values()) + 1)
        axes.set_ylabel("rise of the perplexity" if scores else "1 - cosine")
        if scores:
            axes.yaxis.set_major_formatter(
                lambda y, _: f"{y:.2%}" if y < 0.001 else f"{y:.1%}" if y < 0.01 else f"{y:.0%}"
            )
        axes.grid(alpha=0.25)
    marks = [
        pyplot.Line2D([], [], linestyle="", color=color, marker=marker, label=label)
        for label, (color, marker) in FAMILIES.items()
    ]
    marks.append(
        pyplot.Line2D([], [], color="#000000", linewidth=0.8, alpha=0.5, label="nothing is better on both counts")
    )
    marks.append(
        pyplot.Line2D(
            [], [], linestyle="", marker="o", color="#7f7f7f", markerfacecolor="none", label="beyond the scale"
        )
    )
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def family(case: str) -> str:
    """By the first of its algorithms."""
    return next((name for name in ("magnitude", "wanda", "sparsegpt", "llama.cpp", "gptq") if name in case), "rounding")


def pareto(points: dict[str, tuple[float, float]]) -> list[str]:
    """Cases that nothing beats on both counts, by rising bits."""
    front: list[str] = []
    for case in sorted(points, key=points.__getitem__):
        if not front or points[case][1] < points[front[-1]][1]:
            front.append(case)
    return front
