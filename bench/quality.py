"""What compression costs three real models: quality against bits per weight, by every algorithm.

    python bench/quality.py [MODEL ...] [--cases REGEX] [--json FILE] [--again] [--llama-cpp PYTHON] [--write]

Each case is what `pumice convert` makes of the model, and `pumice eval` says of it. Calibration sees text that the
evaluation does not. Pieces are drawn with seed 0; nothing else is random. Results go to bench/quality.json one by one,
and what is there is not run again but with ``--again``, which forgets all of the models named. PYTHON is one that has
llama_cpp, whose own types of SmolLM2 are then scored, too. ``--write`` puts tables and a plot into docs/quality.md.
Models and texts come from PyPI and Debian, pinned and checked.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sources
from machine import about
from pages import write_page
from quality_tables import BASE, CALIBRATION, blocks, draw

import pumice as pm

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tools")]

import llama  # noqa: E402
import minilm  # noqa: E402
from austen_text import novels  # noqa: E402
from demo_minilm import real_model  # noqa: E402
from fetch import say  # noqa: E402

PAGE, RESULTS, WORK = ROOT / "docs" / "quality.md", ROOT / "bench" / "quality.json", ROOT / "build" / "quality"
SEED = 0
TRAINED_ON = "emma"  # of the Austen model's five novels
# llama.cpp's name -> its number in llama.h
RULERS = {"Q2_K": 10, "Q3_K_M": 12, "Q4_0": 2, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7}
Q8_0 = 8  # the embedding's type, which stays what it is


@dataclass(frozen=True)
class Model:
    """A model, what runs it, and its texts; pieces to calibrate with and to score (None: all)."""

    path: Path
    forward: Callable[..., Any]
    training: Path
    held_out: Path
    calibrated: int
    scored: int | None
    options: Mapping[str, Any] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()  # weights that the forward does not have


def cases() -> dict[str, dict[str, Any]]:
    """Name -> what `convert` is asked for, in the order of the tables."""
    found: dict[str, dict[str, Any]] = {}
    for bits in (8, 4, 3, 2):
        scheme = f"int{bits}-g64"
        found[f"{scheme}, nearest"] = {"scheme": scheme, "method": "nearest"}
        found[f"{scheme}, gptq"] = {"scheme": scheme, "method": "gptq"}
        if bits < 8:
            found[f"{scheme}, gptq, act_order=False"] = {"scheme": scheme, "method": "gptq", "act_order": False}
        if bits == 3:  # where clipping matters
            for method in ("absmax", "percentile", "mse"):
                found[f"{scheme}, {method}"] = {"scheme": scheme, "method": method}
            found[f"{scheme}, gptq, clip=mse"] = {"scheme": scheme, "method": "gptq", "clip": "mse"}
    for share in ("0.3", "0.5", "0.7"):
        found |= pruned("bitmask", share)
    found["random 50%"] = {"scheme": "bitmask+float16", "prune": "random:0.5"}  # what a method is worth
    found |= pruned("2:4") | pruned("bsr-4x4", "0.5") | mixtures(8) | mixtures(4)
    joint = {"method": "gptq"}
    found["sparsegpt 30% + int4, gptq"] = joint | {"scheme": "bitmask+int4", "prune": "sparsegpt:0.3"}
    found["sparsegpt 2:4 + int4-g64, gptq"] = joint | {"scheme": "2:4+int4-g64", "prune": "sparsegpt"}
    return found


def pruned(layout: str, share: str | None = None) -> dict[str, dict[str, Any]]:
    label = layout if layout != "bitmask" else ""
    label += f" {float(share):.0%}" if share else ""
    return {
        f"{method} {label.strip()}": {"scheme": f"{layout}+float16", "prune": f"{method}:{share}" if share else method}
        for method in ("magnitude", "wanda", "sparsegpt")
    }


def mixtures(bits: int) -> dict[str, dict[str, Any]]:
    """Half of the weights, as integers."""
    return {
        f"{method} 50% + int{bits}, {how}": {"scheme": f"bitmask+int{bits}", "prune": f"{method}:0.5", "method": how}
        for method, how in (("magnitude", "nearest"), ("wanda", "gptq"), ("sparsegpt", "gptq"))
    }


# The models.


def austen(work: Path) -> Model | None:
    """Ours, on the novel Emma, which it was trained on; scored on 60 KB of Persuasion, which it was not."""
    text = work / "emma.txt"
    if not text.is_file():
        text.write_text(novels(work)[TRAINED_ON], "utf-8")
    here = ROOT / "examples" / "austen"
    return Model(here, llama.forward, text, here / "held_out.txt", 64, None, {"like": str(here), "window": 256})


def smollm2(work: Path) -> Model | None:
    """On Lee's background news, scored on 8 windows of his 50 documents."""
    file, texts = sources.smollm2(), sources.news()
    if file is None or texts is None:
        return None
    options = {"like": str(file), "window": 512, "encoding": "latin-1"}
    return Model(file, llama.forward, texts / "lee_background.cor", texts / "lee.cor", 32, 8, options)


def all_minilm(work: Path) -> Model | None:
    """On Lee's background news; the vectors of his 50 documents beside those of the float32 model."""
    folder, texts = real_model(), sources.news()
    if folder is None or texts is None:
        return None
    options = {"like": str(folder), "encoding": "latin-1"}
    return Model(folder, minilm.forward, texts / "lee_background.cor", texts / "lee.cor", 8, None, options, ("pooler",))


MODELS = {"austen": austen, "minilm": all_minilm, "smollm2": smollm2}


# One case after the other.


class Results:
    """Model -> case -> what was found, in a file after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"about": about()}

    def forget(self, model: str) -> None:
        self.found.pop(model, None)

    def ordered(self) -> dict[str, Any]:
        """All of it, cases in the order of the tables."""
        order = [BASE, CALIBRATION, *cases(), *(ruler(name) for name in RULERS)]
        tables = {m: {c: self.found[m][c] for c in order if c in self.found[m]} for m in MODELS if m in self.found}
        return {"about": self.found["about"]} | tables

    def once(self, model: str, case: str, run: Callable[[], dict[str, Any]]) -> None:
        known = self.found.setdefault(model, {})
        if case in known:
            return
        known[case] = run()
        say(f"{model}: {case}: {known[case]}")
        self.path.write_text(json.dumps(self.ordered(), indent=1) + "\n")


def measure(name: str, model: Model, results: Results, work: Path, wanted: str) -> None:
    reference = pm.load(model.path)
    results.once(name, BASE, lambda: scored(model, reference, reference))
    stats = work / f"{name}.stats.safetensors"
    if not stats.is_file():
        say(f"{name}: calibrating ...")
        found = pm.calibrate(
            reference, model.forward, model.training, samples=model.calibrated, seed=SEED, **model.options
        )
        pm.save(stats, found.pack())
    known = pm.CalibrationStats.unpack(pm.load(stats))
    results.once(name, CALIBRATION, lambda: {"rows": max(moments.count for moments in known.values())})
    for case, asked in cases().items():
        if re.search(wanted, case):
            results.once(name, case, lambda asked=asked: compressed(model, reference, known, asked))


def scored(model: Model, weights: Any, reference: Any) -> dict[str, Any]:
    found = pm.evaluate(
        weights, model.forward, model.held_out, reference=reference if model.forward is minilm.forward else None,
        samples=model.scored, seed=SEED, **model.options,
    )  # fmt: skip
    return {"rows": found.rows, "perplexity": found.perplexity, "cosine": found.cosine}


def compressed(model: Model, reference: Any, stats: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Bits per weight and output error of what was compressed, and the quality of the model."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "model.safetensors"
        report = pm.convert(
            model.path, target, **asked, stats=stats, seed=SEED, keep_embeddings=True, allow_requantize=True,
            ignore=model.ignore,
        )  # fmt: skip
        changed = [t for t in report.tensors if t.output_error is not None]
        size = sum(math.prod(t.shape) for t in changed)
        bits = 8 * sum(t.nbytes_after or 0 for t in changed) / size
        errors = [t.output_error for t in changed if t.output_error is not None]
        whole = {"bits": bits, "output error": math.sqrt(sum(e * e for e in errors) / len(errors))}
        with pm.load(target, io="read") as weights:
            return whole | scored(model, weights, reference)


def rulers(model: Model, python: str, results: Results) -> None:
    """llama.cpp's types of the same file, the embedding as it is, read by us."""
    for name, number in RULERS.items():
        results.once("smollm2", ruler(name), lambda number=number: ruled(model, python, number))


def ruler(name: str) -> str:
    return f"llama.cpp {name}"


def ruled(model: Model, python: str, number: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "model.gguf"
        code = (
            "import llama_cpp as l, sys; p = l.llama_model_quantize_default_params(); p.allow_requantize = True;"
            f"p.ftype = {number}; p.token_embedding_type = {Q8_0}; p.output_tensor_type = {Q8_0};"
            "sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))"
        )
        done = subprocess.run([python, "-c", code, model.path, target], capture_output=True, text=True)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1:]}
        with pm.load(target) as weights:
            names = [n for n in weights if n.startswith("blk.") and len(weights.info(n).shape) == 2]
            layers = [weights.info(name) for name in names]
            strange = sorted({info.dtype for info in layers if not info.compact})
            if strange:
                return {"failed": f"types that pumice does not read: {', '.join(strange)}"}
            size = sum(math.prod(info.shape) for info in layers)
            bits = 8 * sum(len(weights.raw(name)) for name in names) / size
            types = sorted({info.dtype for info in layers})
            return {"bits": bits, "types": types} | scored(model, weights, None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="run what has been run before")
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    parser.add_argument("--cases", default="", metavar="REGEX", help="those whose names it finds")
    parser.add_argument("--write", action="store_true", help="put tables and plot into docs/quality.md")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    results, skipped = Results(options.json), []
    for name in options.models:
        model = MODELS[name](WORK)
        if model is None:
            skipped.append(name)
            continue
        if options.again:
            results.forget(name)
        measure(name, model, results, WORK, options.cases)
        if name == "smollm2" and options.llama_cpp:
            rulers(model, options.llama_cpp, results)
    found = blocks(results.ordered())
    print("\n\n".join(found.values()))
    if options.write:
        write_page(PAGE, found)
        draw(results.found, ROOT / "docs" / "plots" / "quality.png")
    if skipped:
        say(f"no network: {', '.join(skipped)} SKIPPED")
    return 3 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
