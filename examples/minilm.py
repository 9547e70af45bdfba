"""all-MiniLM-L6-v2 in plain NumPy: a BERT encoder (arXiv:1810.04805), mean pooling (Sentence-BERT, arXiv:1908.10084).

The model is any mapping of tensor names to arrays: `pumice.load` of the float32 checkpoint or of a compact one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from wordpiece import WordPiece

import pumice as pm

F32 = NDArray[np.float32]
HEADS = 12
EPSILON = 1e-12
BATCH = 16  # sentences of similar length that go together


def embed(model: Mapping[str, Any], sentences: Sequence[Sequence[int]]) -> F32:
    """Unit vectors (n, width) of sentences given as token ids."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    vectors: list[Any] = [None] * len(sentences)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        ids, mask = pad([sentences[i] for i in batch])
        for i, vector in zip(batch, pool(encode(model, ids, mask), mask), strict=True):
            vectors[i] = vector
    return np.stack(vectors)


def forward(weights: Any, data: Path, *, like: str | None = None, encoding: str = "utf-8") -> list[Callable[[], F32]]:
    """For `pumice calibrate` and `pumice eval`: the vectors of a text's lines, `BATCH` of them a piece."""
    tokens = WordPiece.load(Path(like or weights.path) / "vocab.txt")
    lines = [tokens.encode(line) for line in data.read_text(encoding).splitlines() if line.strip()]
    model = dict(weights)
    return [partial(embed, model, lines[i : i + BATCH]) for i in range(0, len(lines), BATCH)]


def encode(model: Mapping[str, Any], ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> F32:
    """Hidden states (batch, length, width) of token ids (batch, length)."""
    positions = np.arange(ids.shape[1])
    x = (
        rows(model["embeddings.word_embeddings.weight"], ids)
        + rows(model["embeddings.position_embeddings.weight"], positions)
        + rows(model["embeddings.token_type_embeddings.weight"], np.zeros_like(positions))
    )
    x = norm(model, "embeddings.LayerNorm", x)
    layer = 0
    while f"encoder.layer.{layer}.output.dense.weight" in model:
        name = f"encoder.layer.{layer}"
        x = norm(model, f"{name}.attention.output.LayerNorm", x + attention(model, f"{name}.attention", x, mask))
        hidden = gelu(linear(model, f"{name}.intermediate.dense", x))
        x = norm(model, f"{name}.output.LayerNorm", x + linear(model, f"{name}.output.dense", hidden))
        layer += 1
    return x


def attention(model: Mapping[str, Any], name: str, x: F32, mask: NDArray[np.bool_]) -> F32:
    """softmax(q k^T / sqrt(d)) v, then the output projection."""
    batch, length, width = x.shape
    q, k, v = (
        linear(model, f"{name}.self.{which}", x).reshape(batch, length, HEADS, width // HEADS).swapaxes(1, 2)
        for which in ("query", "key", "value")
    )
    scores = q @ k.swapaxes(-1, -2) / np.float32(np.sqrt(width // HEADS))
    scores = np.where(mask[:, None, None, :], scores, np.float32(-1e9))
    mixed = softmax(scores) @ v
    return linear(model, f"{name}.output.dense", mixed.swapaxes(1, 2).reshape(batch, length, width))


def linear(model: Mapping[str, Any], name: str, x: F32) -> F32:
    """x @ w.T + b: the fused product where w is compact, NumPy's where it is not."""
    return pm.linear(x, model[f"{name}.weight"], model[f"{name}.bias"])


def rows(table: Any, ids: NDArray[np.int64]) -> F32:
    """Rows of an embedding table; of a compact one only these are decoded."""
    return table.take(ids) if isinstance(table, pm.CompactArray) else table[ids]


def norm(model: Mapping[str, Any], name: str, x: F32) -> F32:
    """Layer normalisation (arXiv:1607.06450)."""
    x = x - x.mean(axis=-1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(EPSILON))
    return x * model[f"{name}.weight"] + model[f"{name}.bias"]


def softmax(x: F32) -> F32:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def gelu(x: F32) -> F32:
    """x Phi(x), with erf by Abramowitz and Stegun 7.1.26 (absolute error below 1.5e-7)."""
    z = np.abs(x) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.zeros_like(t)
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(coefficient)) * t
    erf = np.copysign(1 - series * np.exp(-z * z), x)
    return np.float32(0.5) * x * (1 + erf)


def pool(x: F32, mask: NDArray[np.bool_]) -> F32:
    """The mean over a sentence's tokens, at length 1."""
    mean = (x * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return (mean / np.linalg.norm(mean, axis=-1, keepdims=True)).astype(np.float32)


def pad(sentences: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Token ids (batch, longest) filled with 0, and where they are real."""
    lengths = np.array([len(sentence) for sentence in sentences])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate([np.asarray(sentence) for sentence in sentences])
    return ids, mask
