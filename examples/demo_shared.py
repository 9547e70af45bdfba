"""What the parts of the demo share: where files go, conversion, a process for each measurement, the table, the plot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fetch import say

import pumice as pm

HERE = Path(__file__).parent
OUT = Path(os.environ.get("PUMICE_DEMO_OUT", HERE.parent / "build" / "demo"))


def converted(source: Path, schemes: Sequence[str]) -> dict[str, Path]:
    """A folder for each scheme."""
    folders = {scheme: OUT / source.name / scheme for scheme in schemes}
    for scheme, folder in folders.items():
        shutil.rmtree(folder, ignore_errors=True)
        report = pm.convert(source, folder, scheme)
        say(f"converted {source.name} to {scheme} in {report.seconds:.2f} s")
    return folders


def measured(script: str, folder: Path) -> dict[str, Any]:
    """What `script --measure folder` prints: by itself, since NumPy's threads spin for a while after a product."""
    done = subprocess.run([sys.executable, script, "--measure", str(folder)], stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main(measure: Callable[[Path], dict[str, Any]], run: Callable[[], Any]) -> None:
    """Of a part: what `measured` starts, or the part."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        OUT.mkdir(parents=True, exist_ok=True)
        run()


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def table(results: Mapping[str, Mapping[str, Any]], columns: Mapping[str, tuple[str, str]]) -> str:
    """Columns are heading -> (key, format)."""
    width = {heading: max(len(heading), 11) + 2 for heading in columns}
    lines = [f"{'weights':<10}" + "".join(f"{heading:>{width[heading]}}" for heading in columns)]
    for name, result in results.items():
        cells = (f"{format(result[key], form):>{width[heading]}}" for heading, (key, form) in columns.items())
        lines.append(f"{name:<10}" + "".join(cells))
    return "\n".join(lines)


def plot(results: Mapping[str, Mapping[str, Any]], key: str, label: str, title: str, name: str) -> None:
    """The size of the file against a result, into a PNG."""
    try:
        import matplotlib
    except ImportError:
        say("no plot: matplotlib is not installed (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for scheme, result in results.items():
        point = (result["disk"] / 1e6, result[key])
        axes.plot(*point, "o", markersize=9)
        axes.annotate(scheme, point, xytext=(8, -4), textcoords="offset points")
    axes.set(xlabel="file, MB", ylabel=label, title=title)
    axes.set_xlim(0, max(r["disk"] for r in results.values()) / 1e6 * 1.18)
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    figure.savefig(OUT / name, dpi=120)
    pyplot.close(figure)
    print(f"\nplot: {OUT / name}")
