"""Weights of the sparse suites: zeros at random, in blocks, N:M, and networks that were trained, by name.

``random 0.9``, ``bsr-16x4 0.9``, ``2:4``; ``lyra conv_to_gates`` (the other matrices of Lyra where ../shared/data has
them); ``minilm 0.5``: the 36 matrices of all-MiniLM-L6-v2's layers, each pruned by magnitude to 50 % zeros.
"""

from __future__ import annotations

import functools
import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "tests" / "data" / "lyra_conv_to_gates.raw.gz"
MORE = ROOT.parent / "shared" / "data" / "lyra-wavegru"
LYRA = {"conv_to_gates": (3072, 1024), "gru_layer": (3072, 1024), "proj": (512, 1024), "conv_cond": (1024, 512)}
MINILM = ("minilm 0", "minilm 0.3", "minilm 0.5")
SHAPES = {f"lyra {name}": shape for name, shape in LYRA.items()} | dict.fromkeys(MINILM, (768, 384))  # the mean of 36


class MissingError(Exception):
    """The data of a network is not here."""


def prose(name: str) -> str:
    """A weight's name as settings show it."""
    kind, _, share = name.partition(" ")
    if kind == "lyra":
        return f"Lyra {share}"
    if kind == "minilm":
        return f"MiniLM, {float(share):.0%} of its layers' weights pruned"
    if not share:
        return f"{kind} zeros"
    return f"{float(share):.0%} zeros" + (f" in blocks of {kind.removeprefix('bsr-')}" if kind != "random" else "")


def sparsity(name: str) -> float | None:
    """The share of zeros that a name promises."""
    kind, _, share = name.partition(" ")
    if ":" in kind:
        kept, of = map(int, kind.split(":"))
        return 1 - kept / of
    return None if kind == "lyra" or not share else float(share)


def blocksize(name: str) -> tuple[int, int] | None:
    """(R, C) of what stands in blocks."""
    kind = name.split()[0]
    if kind == "lyra":
        return (4, 4)
    if not kind.startswith("bsr-"):
        return None
    height, width = kind.removeprefix("bsr-").split("x")
    return int(height), int(width)


@functools.lru_cache(1)
def _normal(rows: int, cols: int) -> np.ndarray:
    w = np.random.default_rng(0).standard_normal((rows, cols), np.float32)
    w *= np.float32(0.02)
    return w


def normal(rows: int, cols: int) -> np.ndarray:
    return _normal(rows, cols).copy()


def weights(rows: int, cols: int, name: str) -> dict[str, np.ndarray]:
    """The matrices of a name, mostly one."""
    kind, _, share = name.partition(" ")
    if kind == "lyra":
        return {share: lyra(share)}
    if kind == "minilm":
        return minilm_layers(minilm(), float(share))
    return {"w": pruned(normal(rows, cols), name)}


def pruned(w: np.ndarray, name: str) -> np.ndarray:
    """`w` with the zeros of a name, in place."""
    kind, _, share = name.partition(" ")
    if kind == "":
        return w
    if ":" in kind:
        kept, of = map(int, kind.split(":"))
        groups = w.reshape(-1, of)
        least = np.abs(groups).argpartition(of - kept - 1, axis=1)[:, : of - kept]
        np.put_along_axis(groups, least, 0, axis=1)
        return w
    height, width = blocksize(name) or (1, 1)
    blocks = np.random.default_rng(1).random((-(-w.shape[0] // height), -(-w.shape[1] // width)), np.float32)
    gone = blocks < np.float32(share)
    w[gone.repeat(height, 0).repeat(width, 1)[: w.shape[0], : w.shape[1]]] = 0
    return w


def lyra(name: str) -> np.ndarray:
    path = COMMITTED if name == "conv_to_gates" else MORE / f"{name}.raw.gz"
    if not path.is_file():
        raise MissingError(f"{path} is not here")
    return np.frombuffer(gzip.decompress(path.read_bytes()), "<f4").reshape(LYRA[name])


def examples() -> Any:
    """examples/demo_minilm.py, which fetches the model and embeds sentences."""
    folder = str(ROOT / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    import demo_minilm

    return demo_minilm


@functools.lru_cache
def minilm_folder() -> Path:
    folder = examples().real_model()
    if folder is None:
        raise MissingError("all-MiniLM-L6-v2 could not be fetched")
    return Path(folder)


@functools.lru_cache
def minilm() -> dict[str, np.ndarray]:
    import pumice as pm

    folder = minilm_folder()
    return {name: np.asarray(value) for name, value in pm.load(folder).items()}


def minilm_layers(model: dict[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
    import pumice as pm

    layers = {n: w for n, w in model.items() if n.startswith("encoder.layer.") and w.ndim == 2}
    return dict(pm.prune(layers, share)) if share else layers


@functools.lru_cache
def minilm_page() -> tuple[list[list[int]], np.ndarray]:
    """The sentences, and their embeddings by the model as it was trained."""
    demo = examples()
    tokens = demo.WordPiece.load(minilm_folder() / "vocab.txt")
    page = [tokens.encode(text) for text in demo.read_page()]
    return page, demo.embed(minilm(), page)


def minilm_cosine(layers: dict[str, Any]) -> float:
    """Mean cosine of sentence embeddings with these layers to those of the model as it was trained."""
    page, exact = minilm_page()
    return float(np.mean(np.sum(examples().embed(minilm() | layers, page) * exact, axis=1)))
