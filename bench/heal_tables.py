"""The results of bench/heal.py as tables and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparse_tables import table

Results = dict[str, Any]


def footer(name: str, part: dict[str, Any]) -> str:
    about = part["about"]
    threads = "" if name == "austen" else "; 2 threads"  # its trainings say their own
    return f"\n\n*{about['machine']}; ISA {about['ISA']}; {about['date']}{threads}.*"


def blocks(results: Results) -> dict[str, str]:
    """Of docs/tutorial.md; of what has been measured."""
    makers = {
        "trainings": ("austen", trainings), "files": ("austen", files), "minilm": ("minilm", minilm),
        "layers": ("speed", layers), "bridge": ("bridge", bridge),
    }  # fmt: skip
    return {
        name: make(results[part]["found"]) + footer(part, results[part])
        for name, (part, make) in makers.items()
        if part in results
    }


def trainings(found: dict[str, Any]) -> str:
    names = {
        "dense": "all layers, dense: the rival",
        "pruned": "all layers, pruned and distilled",
        "hard": "2 of 4 layers, hard labels alone",
        "distilled": "2 of 4 layers, distilled",
    }
    dense = found["dense"]["perplexity"]
    rows = []
    for name, label in names.items():
        run = found[name]
        sparsity = f"{run['sparsity']:.0%}" if run["sparsity"] > 0.01 else "0"
        change = f"{run['perplexity'] / dense - 1:+.1%}"
        cells = [f"{run['parameters']:,}", sparsity, f"{run['steps']}", f"{run['seconds']:.0f}", f"{run['threads']}"]
        rows.append([label, *cells, f"{run['perplexity']:.2f}", change])
    headings = [
        "",
        "weights in matrices",
        "zeros",
        "extra steps",
        "s of CPU",
        "threads",
        "perplexity",
        "against the rival",
    ]
    return table(headings, rows)


def files(found: dict[str, Any]) -> str:
    whole = found["files"][0]["bytes"]
    dense = found["dense"]["perplexity"]
    rows = [
        [f["name"], f"{f['bytes']:,}", f"{f['bytes'] / whole:.1%}", f"{f['perplexity']:.2f}",
         f"{f['perplexity'] / dense - 1:+.1%}"]
        for f in found["files"]
    ]  # fmt: skip
    return table(["file", "bytes", "of float16", "perplexity", "against the rival"], rows)


def minilm(found: dict[str, Any]) -> str:
    texts = list(found["healed"])
    stages = {"pruned by magnitude": "by magnitude", "pruned by SparseGPT": "by SparseGPT", "healed": "healed"}
    spent = {"healed": [f"{found[key]:.0f}" if key in found else "" for key in ("steps", "seconds", "threads")]}
    first = table(
        ["mean cosine to float32", *texts, "steps", "s of CPU", "threads"],
        [
            [label, *(f"{found[key][text]:.4f}" for text in texts), *spent.get(key, [""] * 3)]
            for label, key in stages.items()
        ],
    )
    rows = [
        [f["name"], f"{f['bytes']:,}", f"{f['cosine']:.4f}", f"{f['speed']:.0f}"] for f in found["files"]
    ]  # fmt: skip
    return first + "\n\n" + table(["file", "bytes", "mean cosine, 78 sentences", "sentences/s in NumPy"], rows)


def layers(found: list[dict[str, Any]]) -> str:
    rows = []
    for case in found:
        same = {other["scheme"]: other["ms"] for other in found if other["activations"] == case["activations"]}
        rows.append(
            [case["scheme"], case["activations"], f"{case['bytes'] / 1e6:.1f}", f"{case['ms']:.3f}",
             f"{same['int8'] / case['ms']:.2f}", f"{same['int4-g32'] / case['ms']:.2f}"]
        )  # fmt: skip
    headings = ["70 % pruned where sparse", "activations", "MB", "ms", "times as fast as int8", "as int4-g32"]
    return table(headings, rows, left=2)


def bridge(found: list[dict[str, Any]]) -> str:
    rows = [
        [f["case"], f"{f['speed']:.0f}", f"{f['memory'] / 1e6:.0f}", f"{f['error']:.1e}"] for f in found
    ]  # fmt: skip
    return table(["MiniLM in transformers", "sentences/s", "resident MB", "1 - mean cosine"], rows)


def textbook_blocks(results: Results) -> dict[str, str]:
    """Of docs/textbook.md."""
    if "textbook" not in results:
        return {}
    found = results["textbook"]
    arrays = [
        [f"{r['threshold']}", f"{r['zeros']:.1%}", f"{r['before']:,}", f"{r['after']:,}", "0", f"{r['ms']:.1f}"]
        for r in found["arrays"]["rows"]
    ]
    points = [
        [f"{r['bits']}", f"{r['before']:,}", f"{r['error by hand']:.4f}", r["scheme"], f"{r['after']:,}",
         f"{r['error']:.4f}", f"{r['ms']:.1f}"]
        for r in found["fixed point"]["rows"]
    ]  # fmt: skip
    students = [[r["model"], f"{r['bytes']:,}", f"{r['accuracy']:.1%}"] for r in found["student"]["rows"]]
    limits = [
        [f"{r['threshold']}", f"{r['zeros']:.0%}", f"{r['file before']:,}", f"{r['file']:,}",
         f"{r['memory before']:,}", f"{r['memory']:,}", f"{r['accuracy before']:.1%}", f"{r['accuracy']:.1%}",
         f"{r['error']:.4f}", f"{r['ms']:.0f}"]
        for r in found["threshold"]["rows"]
    ]  # fmt: skip
    end = footer("textbook", found)
    return {
        "arrays": table(["threshold", "zeros", "bytes before", "bytes after", "error", "ms"], arrays) + end,
        "fixed-point": table(
            ["bits", "bytes before", "error before", "scheme", "bytes after", "error after", "ms"], points
        )
        + end,
        "student": table(["model", "bytes of kernels", "accuracy"], students) + end,
        "threshold": table(
            ["threshold", "zeros", "file before", "file after", "memory before", "memory after", "accuracy before",
             "accuracy after", "error", "ms"],
            limits,
        )
        + end,
    }  # fmt: skip


def draw(results: Results, folder: Path) -> None:
    """Learning curves, healing, and the memory of a Keras model by threshold."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from plots import STYLE

    with pyplot.rc_context(STYLE):
        if "austen" in results:
            curves(pyplot, results["austen"]["found"]).savefig(folder / "heal_austen.png", dpi=90)
        if "minilm" in results:
            healing(pyplot, results["minilm"]["found"]).savefig(folder / "heal_minilm.png", dpi=90)
        if "textbook" in results:
            shrinking(pyplot, results["textbook"]["threshold"]["rows"]).savefig(folder / "textbook.png", dpi=90)
    pyplot.close("all")


def curves(pyplot: Any, found: dict[str, Any]) -> Any:
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    panels = (
        ("70 % of the weights removed", {"dense": "dense, as many steps", "pruned": "pruned while it learns"}),
        ("two of four layers", {"hard": "hard labels alone", "distilled": "distilled"}),
    )
    for axis, (title, runs) in zip(axes, panels, strict=True):
        for (name, label), color in zip(runs.items(), ("#7f7f7f", "#1d8a5b"), strict=True):
            steps, values = zip(*found[name]["curve"], strict=True)
            axis.plot(steps, values, color=color, marker="o", markersize=4, label=label)
        axis.set(title=title, xlabel="step", ylabel="perplexity of Persuasion, chapters 1 to 12")
        axis.legend()
    return figure


def healing(pyplot: Any, found: dict[str, Any]) -> Any:
    figure, axis = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for text, color in zip(found["healed"], ("#1d8a5b", "#3a78b8"), strict=True):
        points = [(step, values[text]) for step, values in found["curve"]]
        axis.plot(*zip(*points, strict=True), color=color, marker="o", markersize=4, label=f"healed: {text}")
        axis.axhline(found["by magnitude"][text], color=color, linestyle=":", label=f"by magnitude: {text}")
    axis.set(title="MiniLM, 50 % pruned", xlabel="step", ylabel="mean cosine to float32")
    axis.legend(loc="center right")
    return figure


def shrinking(pyplot: Any, rows: list[dict[str, Any]]) -> Any:
    figure, axis = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    zeros = [100 * row["zeros"] for row in rows]
    lines = {
        "Keras, file": ("file before", "#7f7f7f", "o-"), "Keras, memory": ("memory before", "#7f7f7f", "s:"),
        "bitmask+int8, file": ("file", "#1d8a5b", "o-"), "bitmask+int8, memory": ("memory", "#1d8a5b", "s:"),
    }  # fmt: skip
    for label, (key, color, style) in lines.items():
        axis.plot(zeros, [row[key] / 1e6 for row in rows], style, color=color, label=label)
    axis.set(xlabel="zeros, %", ylabel="MB", title="a Keras model as its threshold rises", ylim=(0, None))
    axis.legend(loc="center right")
    return figure
