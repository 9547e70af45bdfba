"""Results as pictures: four of the main suite, and time against sparsity for each shape of the grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("agg")  # files only
from matplotlib import pyplot
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter, ScalarFormatter
from PIL import Image
from results import FLOAT_PEAK, INT8_PEAK, OURS, PROBE, READ, Results, Row, judge
from sparse_tables import GRIDS, RULERS, crossing, layouts, of_shape, plot_name, ratios, shapes

WIDTH, DPI = 10, 100  # 1000 pixels
COLORS = {"NumPy": "#7f7f7f", "torch": "#e0803a", "ONNX Runtime": "#3a78b8", "OpenVINO": "#8a63b0", OURS: "#1d8a5b"}
SHADES = ("#1d8a5b", "#74c39c", "#24507a", "#7fb2de", "#a8482e", "#e3a08c", "#777777", "#b5b5b5")  # of our cases
MARKERS = {"int4": "o", "int8": "s", "16-bit": "D", "float32": "^"}
STYLE = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9.5, "axes.titlesize": 12,
}  # fmt: skip


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draw what the results allow; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    main = results.of("dense")
    settings = main.settings()[::-1]  # most threads first
    plots: dict[str, Callable[[], Any]] = {}
    if settings:
        found = {"bandwidth": bandwidth, "compute": compute, "ratio": ratio, "error": error}
        plots = {name: partial(draw, main, settings) for name, draw in found.items()}
    grid = Results(results.about, [row for row in results.rows if row.suite in GRIDS])
    plots |= {plot_name(shape): partial(sparsity, of_shape(grid, shape), shape) for shape in shapes(grid)}
    drawn = []
    with pyplot.rc_context(STYLE):
        for name, draw in plots.items():
            figure = draw()
            path = folder / f"{name}.png"
            about = results.about
            where = f"{about.get('machine', '')}, ISA {about.get('ISA', '')}, {about.get('date', '')}"
            figure.text(0.995, 0.004, where, ha="right", va="bottom", fontsize=8, color="#666666")
            figure.savefig(path, dpi=DPI)
            pyplot.close(figure)
            with Image.open(path) as image:  # a third of the size, and no eye sees it
                image.convert("RGB").quantize(96).save(path, optimize=True)
            drawn.append(path)
    return drawn


def color(case: str) -> str:
    return next(shade for name, shade in COLORS.items() if case.startswith(name))


def products(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.kind != PROBE]


def probe(rows: Sequence[Row], case: str) -> Row | None:
    return next((row for row in rows if row.case == case), None)


def bandwidth(results: Results, settings: list[str]) -> Any:
    """Bars: GB/s of weights at the smallest batch, one panel a setting, the read ceiling as a line."""
    first = min(row.batch for row in results.at(settings[0]))
    order = [row.case for row in sorted(products(results.at(settings[0], first)), key=lambda row: row.gbytes)]
    figure, axes = pyplot.subplots(
        1, len(settings), figsize=(WIDTH, 1.6 + 0.27 * len(order)), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, setting in zip(axes[0], settings, strict=True):
        rows = {row.case: row for row in results.at(setting, first)}
        for y, case in enumerate(order):
            if case in rows:
                axis.barh(y, rows[case].gbytes, color=color(case), height=0.72)
                label = f" {rows[case].gbytes:.1f} GB/s, {rows[case].ms:.3g} ms"
                axis.text(rows[case].gbytes, y, label, va="center", fontsize=8.5)
        ceiling = rows.get(READ)
        longest = max(row.gbytes for row in rows.values() if row.nbytes)
        if ceiling is not None:
            axis.axvline(ceiling.gbytes, color="black", linestyle="--", linewidth=1)
            axis.set_xlabel(f"GB/s of weights (dashed: read ceiling, {ceiling.gbytes:.0f} GB/s)")
        else:
            axis.set_xlabel("GB/s of weights")
        axis.set_xlim(0, 1.5 * longest)
        axis.set_title(f"{setting}, batch {first}")
        axis.set_yticks(range(len(order)), order, fontsize=9.5)
        axis.grid(axis="y", visible=False)
    figure.get_layout_engine().set(rect=(0, 0.02, 1, 0.98))
    return figure


def compute(results: Results, settings: list[str]) -> Any:
    """Lines: GFLOP/s by batch, ours and the fastest configuration of each library; the peaks as lines."""
    rows = results.at(settings[0])
    figure, axis = pyplot.subplots(figsize=(WIDTH, 5.6), layout="constrained")
    batches = sorted({row.batch for row in rows})
    ours = dict(zip(our_cases(rows), SHADES, strict=False))
    for case in chosen(rows):
        line = sorted((row for row in rows if row.case == case), key=lambda row: row.batch)
        axis.plot(
            [row.batch for row in line], [row.gflops for row in line], color=ours.get(case) or color(case),
            linestyle="-" if case in ours else (0, (5, 2)), linewidth=2 if case in ours else 1.3,
            marker=MARKERS[line[0].kind], markersize=5, label=case,
        )  # fmt: skip
    for case, side, shift in ((INT8_PEAK, "bottom", 1.03), (FLOAT_PEAK, "top", 0.97)):
        found = [row.gflops for row in rows if row.case == case]
        if found:
            axis.axhline(max(found), color="black", linestyle=":", linewidth=1.2)
            text = f"{case}: {max(found):.0f} GFLOP/s"
            axis.text(batches[0], max(found) * shift, text, fontsize=9, va=side)
    axis.set(xscale="log", yscale="log", xlabel="batch (rows of x)", ylabel="GFLOP/s", title=settings[0])
    batch_axis(axis, batches)
    plain_logs(axis.yaxis)
    figure.legend(loc="outside right center")
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
    return figure


def chosen(rows: Sequence[Row]) -> list[str]:
    """Ours, and of each library and kind the configuration that is fastest at the largest batch."""
    largest = max(row.batch for row in rows)
    best: dict[tuple[str, str], Row] = {}
    for row in products(rows):
        name = (row.case, "") if row.ours else (row.case.split()[0], row.kind)
        if row.batch == largest and (name not in best or row.ms < best[name].ms):
            best[name] = row
    return [row.case for row in sorted(best.values(), key=lambda row: row.ms)]


def ratio(results: Results, settings: list[str]) -> Any:
    """Lines: median of (fastest peer / ours) by batch; beside peers of the same kind, and beside all."""
    figure, axes = pyplot.subplots(1, 2, figsize=(WIDTH, 5), sharey=True, layout="constrained")
    rows = results.at(settings[0])
    batches = sorted({row.batch for row in rows})
    for axis, same_kind, title in zip(axes, (True, False), ("peers of the same kind", "all peers"), strict=True):
        for shade, case in zip(SHADES, our_cases(rows), strict=False):
            line = []
            for row in sorted((row for row in rows if row.case == case), key=lambda row: row.batch):
                verdict = judge(row, results.at(settings[0], row.batch), row.kind if same_kind else None)
                if verdict is not None:
                    line.append((row.batch, verdict.ratio, row.kind))
            if line:
                marker, label = MARKERS[line[0][2]], case.removeprefix("pumice ") if same_kind else None
                axis.plot(
                    [b for b, _, _ in line], [r for _, r, _ in line], color=shade, marker=marker, markersize=5,
                    label=label,
                )  # fmt: skip
        axis.axhline(1, color="black", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="batch (rows of x)", title=f"{settings[0]}\nbeside {title}")
        batch_axis(axis, batches)
        plain_logs(axis.yaxis)
        axis.tick_params(axis="y", labelleft=True)
    axes[0].set_ylabel("time of the fastest peer / ours\n(above 1: pumice is faster)")
    figure.legend(loc="outside upper center", ncols=4)
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
    return figure


def error(results: Results, settings: list[str]) -> Any:
    """Points: relative rms error against time, at the smallest batch and at one that is bound by arithmetic."""
    rows = [row for row in products(results.at(settings[0])) if row.error]
    batches = sorted({row.batch for row in rows})
    shown = list(dict.fromkeys((batches[0], 64 if 64 in batches else batches[-1])))
    figure, axes = pyplot.subplots(1, len(shown), figsize=(WIDTH, 5), sharey=True, squeeze=False, layout="constrained")
    for axis, batch in zip(axes[0], shown, strict=True):
        for row in (row for row in rows if row.batch == batch):
            size = 75 if row.ours else 45
            axis.scatter(
                row.ms, row.error, color=color(row.case), marker=MARKERS[row.kind], s=size, alpha=0.85,
                edgecolor="black" if row.ours else "none", linewidth=0.8,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="milliseconds", title=f"{settings[0]}, batch {batch}")
        plain_logs(axis.xaxis)
    axes[0][0].set_ylabel("relative rms error of y against float64\n(with each case's own decoded weight)")
    libraries = [Line2D([], [], color=shade, marker="o", linestyle="", label=name) for name, shade in COLORS.items()]
    kinds = [Line2D([], [], color="#444444", marker=m, linestyle="", label=kind) for kind, m in MARKERS.items()]
    figure.legend(handles=libraries + kinds, loc="outside upper center", ncols=9, columnspacing=1, handletextpad=0.2)
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
    return figure


RULES = {"float32 NumPy": ("#444444", ":"), "int8": ("#3a78b8", "--"), "int4-g128": ("#c0392b", "--")}


def sparsity(rows: Sequence[Row], shape: str) -> Any:
    """Lines: time by sparsity, one a layout, a panel a batch; the dense rulers, and where layouts pass the int4 one."""
    batches = list(dict.fromkeys(row.batch for row in rows))
    figure, axes = pyplot.subplots(1, len(batches), figsize=(WIDTH, 5.2), squeeze=False, layout="constrained")
    shades = dict(zip(layouts(rows), pyplot.get_cmap("tab20").colors, strict=False))
    for axis, batch in zip(axes[0], batches, strict=True):
        here = [row for row in rows if row.batch == batch]
        for name, case in RULERS.items():
            line = sorted((row.facts["sparsity"], row.ms) for row in here if row.case == case)
            shade, style = RULES[name]
            axis.plot(*zip(*line, strict=True), color=shade, linestyle=style, linewidth=1.6, label=f"dense {name}")
        for case, shade in shades.items():
            line = sorted((row.facts["sparsity"], row.ms) for row in here if row.case == case)
            axis.plot(
                *zip(*line, strict=True), color=shade, marker="o", markersize=3.5, linewidth=1.4,
                label=case.removeprefix("pumice ").removesuffix(", int16 activations"),
            )  # fmt: skip
            for ruler in RULERS.values():
                at = crossing(ratios(rows, case, batch, ruler))
                if at is not None and at > line[0][0]:
                    time = np.exp(np.interp(at, [s for s, _ in line], np.log([ms for _, ms in line])))
                    axis.plot(at, time, marker="x", color="black", markersize=7)
        axis.set(yscale="log", xlabel="share of zeros", title=f"batch {batch}")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        plain_logs(axis.yaxis)
    axes[0][0].set_ylabel(f"milliseconds, {shape}, cold, 1 thread\n(x: from here on faster than a dense ruler)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5)
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))
    return figure


def our_cases(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.case for row in rows if row.ours))


def plain_logs(axis: Any) -> None:
    """1, 2, 5, 10 ... rather than powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def batch_axis(axis: Any, batches: Sequence[int]) -> None:
    axis.set_xticks(batches)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=9)
    axis.minorticks_off()
