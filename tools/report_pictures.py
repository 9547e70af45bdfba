"""The pictures of docs/report.md: ``python tools/report_pictures.py``, with pumice installed and Debian's chromium.

Converts the Austen model to int4 and, where it is cached or can be fetched, MiniLM pruned to half of its weights to
bitmask+int8, writes their pages with ``pumice report`` and looks at them in a headless browser.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from demo_minilm import real_model  # noqa: E402 - of the examples

import pumice as pm  # noqa: E402
from pumice.cli import main as pumice  # noqa: E402

PICTURES = ROOT / "docs" / "plots"
WIDTH, HEIGHT = 1100, 2350


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("report_pictures: expected chromium, got none (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pm.convert(ROOT / "examples" / "austen", folder / "austen", "int4-g64")
        minilm = real_model()
        if minilm is not None:
            pm.convert(minilm, folder / "minilm", "bitmask+int8", prune="magnitude:0.5")
        for name in ("austen", "minilm") if minilm is not None else ("austen",):
            look(browser, folder, name)


def look(browser: str, folder: Path, name: str) -> None:
    """The page of a model, and its picture."""
    page, picture = folder / f"{name}.html", PICTURES / f"report-{name}.png"
    with contextlib.chdir(folder):  # so that the page says the name alone
        assert pumice(["report", name, "-o", page.name]) == 0
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
    subprocess.run([browser, *options, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)
    print(picture)


if __name__ == "__main__":
    main()
