"""What healing brings: trains, measures, and writes the tables and plots of docs/tutorial.md and docs/textbook.md.

    python bench/heal.py austen minilm speed bridge textbook --write

`austen` and `minilm` train (docs/tutorial.md says for how long); what they made before, in --work, is not made again.
Each measurement is a process of its own. Results are in bench/heal.json, which every run completes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from heal_speed import CASES
from heal_tables import blocks, draw, textbook_blocks
from machine import about, clean_environment
from pages import write_page

import pumice as pm

ROOT = Path(__file__).parents[1]
BENCH, DOCS = ROOT / "bench", ROOT / "docs"
RESULTS = BENCH / "heal.json"
sys.path.insert(0, str(ROOT / "examples"))

from demo_minilm import read_page, real_model, timed  # noqa: E402
from fetch import say  # noqa: E402
from llama import Llama, perplexity  # noqa: E402
from llama_files import open_checkpoint  # noqa: E402
from wordpiece import WordPiece  # noqa: E402

AUSTEN = ROOT / "examples" / "austen"
TRAININGS = ("dense", "pruned", "hard", "distilled")
PARTS = ("austen", "minilm", "speed", "bridge", "textbook")


def run(script: str, *arguments: str, threads: int = 2) -> str:
    """What a script of this folder prints."""
    command = [sys.executable, "-W", "ignore", str(BENCH / script), *arguments]
    environment = clean_environment(threads) | {"KERAS_BACKEND": "torch"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def austen(work: Path) -> dict[str, Any]:
    """The four trainings, then the pruned model's files and what they are worth."""
    left = [name for name in TRAININGS if not (work / f"{name}.json").is_file()]
    if left:
        say(f"training {', '.join(left)} ...")
        run("heal_austen.py", *left, "--work", str(work))
    found: dict[str, Any] = {name: json.loads((work / f"{name}.json").read_text()) for name in TRAININGS}
    text = (AUSTEN / "held_out.txt").read_text("utf-8")
    found["files"] = [score("float16, as shipped", AUSTEN, AUSTEN, text)]
    for scheme in ("bitmask+int8", "bitmask+int4-g32"):
        target = work / f"austen-{scheme}.safetensors"
        pm.convert(work / "pruned.safetensors", target, scheme, tensors={"embed": "int8"}, overwrite=True)
        found["files"].append(score(scheme, target, AUSTEN, text))
    return found


def score(name: str, file: Path, like: Path, text: str) -> dict[str, Any]:
    """Bytes and perplexity by examples/llama.py."""
    weights, config, tokens = open_checkpoint(file, like)
    value, _ = perplexity(Llama(weights, config), tokens.encode(text), config.context)
    path = file / "model.safetensors" if file.is_dir() else file
    return {"name": name, "bytes": path.stat().st_size, "perplexity": value}


def minilm(work: Path) -> dict[str, Any]:
    """The healing, then files: bytes, cosine and speed in NumPy."""
    if not (work / "minilm.json").is_file():
        say("healing MiniLM ...")
        run("heal_minilm.py", "--work", str(work))
    found: dict[str, Any] = json.loads((work / "minilm.json").read_text())
    source = real_model()
    assert source is not None
    tokens = WordPiece.load(source / "vocab.txt")
    page = [tokens.encode(text) for text in read_page()]
    files = {"float32": source / "model.safetensors", "int8": work / "minilm-int8.safetensors"}
    pm.convert(files["float32"], files["int8"], "int8", overwrite=True)
    rules = {r"embeddings\..*_embeddings\.weight": "int8", "pooler": "int8"}
    for scheme in ("bitmask+int8", "bitmask+int4-g32"):
        files[f"healed, {scheme}"] = work / f"minilm-{scheme}.safetensors"
        target = files[f"healed, {scheme}"]
        pm.convert(work / "minilm.safetensors", target, scheme, tensors=rules, overwrite=True)
    exact, rows = None, []
    for name, file in files.items():
        vectors, speed = timed(dict(pm.load(file, io="read")), page)
        exact = vectors if exact is None else exact
        cosine = float(np.mean(np.sum(vectors * exact, axis=1)))
        rows.append({"name": name, "bytes": file.stat().st_size, "cosine": cosine, "speed": speed})
    return found | {"files": rows}


def bridge(work: Path) -> list[dict[str, Any]]:
    healed = work / "minilm.safetensors"
    cases = [case for case in CASES if "bitmask" not in case or healed.is_file()]
    return [json.loads(run("heal_speed.py", "bridge", "--case", case, "--healed", str(healed))) for case in cases]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: tables and plots alone")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "heal")
    parser.add_argument("--write", action="store_true", help="write the pages and plots")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"expected parts among {', '.join(PARTS)}, got {unknown[0]}")
    options.work.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    parts = {
        "austen": lambda: austen(options.work),
        "minilm": lambda: minilm(options.work),
        "speed": lambda: json.loads(run("heal_speed.py", "layers")),
        "bridge": lambda: bridge(options.work),
        "textbook": lambda: json.loads(run("textbook.py")),
    }
    for part in options.parts:
        results[part] = parts[part]() if part == "textbook" else {"found": parts[part]()}
        facts = about()
        results[part]["about"] = {key: facts[key] for key in ("machine", "ISA", "date")}
        scratch = RESULTS.with_suffix(".new")
        scratch.write_text(json.dumps(results, indent=1) + "\n")
        os.replace(scratch, RESULTS)
    for name, body in {**blocks(results), **textbook_blocks(results)}.items():
        print(f"{name}\n\n{body}\n")
    if options.write:
        write_page(DOCS / "tutorial.md", blocks(results))
        write_page(DOCS / "textbook.md", textbook_blocks(results))
        draw(results, DOCS / "plots")


if __name__ == "__main__":
    main()
