"""Layers for bench/algorithms.py: weights, inputs to calibrate on, and inputs that no algorithm has seen."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SAMPLES = 2048
SOURCES = ("random", "Austen", "MiniLM")


@dataclass(frozen=True)
class Layer:
    """w (rows, cols), seen and unseen (samples, cols)."""

    name: str
    w: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray


def layers(source: str) -> Iterator[Layer]:
    """Those of one of `SOURCES`; none, with a line on stderr, where a model cannot be fetched."""
    sys.path.insert(0, str(EXAMPLES))
    return {"random": random_layers, "Austen": austen, "MiniLM": minilm}[source]()


def random_layer(rows: int, cols: int, seed: int = 0) -> Layer:
    """Normal weights; correlated inputs, six of them ten times as large."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((cols // 8, cols), np.float32)
    loud = rng.choice(cols, 6, replace=False)

    def inputs() -> np.ndarray:
        x = rng.standard_normal((SAMPLES, cols // 8), np.float32) @ factors / np.float32((cols / 8) ** 0.5)
        x += rng.standard_normal((SAMPLES, cols), np.float32)
        x[:, loud] *= 10
        return x

    w = rng.standard_normal((rows, cols), np.float32)
    return Layer(f"{rows} x {cols}, seed {seed}", w, inputs(), inputs())


def random_layers() -> Iterator[Layer]:
    for seed, (rows, cols) in enumerate([(256, 256), (512, 512), (256, 1024), (1024, 640)]):
        yield random_layer(rows, cols, seed)


def austen() -> Iterator[Layer]:
    """Every product of the language model in examples/austen: the first half of its held-out text, and the second."""
    import llama
    from llama_files import open_checkpoint

    weights, config, text = open_checkpoint(EXAMPLES / "austen")
    model = llama.Llama(weights, config)
    ids = text.encode((EXAMPLES / "austen" / "held_out.txt").read_text("utf-8"))
    names = {
        id(getattr(layer, part)): f"layer {i} {part}"
        for i, layer in enumerate(model.layers)
        for part in ("qkv", "output", "gate_up", "down")
    }
    product, found = llama.Linear.__call__, []

    def recorded(self: Any, x: np.ndarray) -> np.ndarray:
        found[-1].setdefault(names[id(self)], []).append(x.copy())
        return product(self, x)

    llama.Linear.__call__ = recorded  # type: ignore[method-assign]
    try:
        for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
            found.append({})
            llama.perplexity(model, half, config.context)
    finally:
        llama.Linear.__call__ = product  # type: ignore[method-assign]
    for i, layer in enumerate(model.layers):
        for part in ("qkv", "output", "gate_up", "down"):
            name = f"layer {i} {part}"
            w = np.array(getattr(layer, part).parts[0][0], np.float32)
            yield Layer(name, w, *(np.concatenate(half[name]) for half in found))


def minilm() -> Iterator[Layer]:
    """Layers of all-MiniLM-L6-v2: the sentences of a page of examples/ and some of Jane Austen's, every other one."""
    import minilm
    from demo_minilm import read_page, real_model
    from wordpiece import WordPiece

    import pumice as pm

    folder = real_model()
    if folder is None:
        return
    model, tokens = dict(pm.load(folder, io="read")), WordPiece.load(folder / "vocab.txt")
    prose = (EXAMPLES / "austen" / "held_out.txt").read_text("utf-8").replace("\n", " ").split(". ")
    sentences = [tokens.encode(text) for text in [*read_page(), *prose] if len(text) < 400]
    wanted = [
        f"encoder.layer.{i}.{part}.dense" if "query" not in part else f"encoder.layer.{i}.{part}"
        for i in (0, 3, 5)
        for part in ("attention.self.query", "attention.output", "intermediate", "output")
    ]
    product, found = minilm.linear, []

    def recorded(weights: Any, name: str, x: np.ndarray) -> np.ndarray:
        if name in wanted:
            found[-1].setdefault(name, []).append(x.reshape(-1, x.shape[-1]).copy())
        return product(weights, name, x)

    minilm.linear = recorded
    try:
        for start in (0, 1):
            found.append({})
            minilm.embed(model, sentences[start::2])
    finally:
        minilm.linear = product
    for name in wanted:
        yield Layer(name, np.array(model[f"{name}.weight"], np.float32), *(np.concatenate(h[name]) for h in found))
