"""Layers for the tests of algorithms: correlated inputs, and inputs that are as bad as they can be."""

from __future__ import annotations

import numpy as np

import pumice as pm


def moments_of(x: np.ndarray) -> pm.Moments:
    found = pm.Moments(x.shape[1])
    found.update(x)
    return found


def correlated(samples: int, features: int, seed: int = 0) -> np.ndarray:
    """Inputs as layers of language models have them: correlated, six of them ten times as large."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, features)) @ (np.eye(features) + 0.1 * rng.standard_normal((features, features)))
    x[:, rng.choice(features, 6, replace=False)] *= 10
    return x.astype(np.float32)


def output_error(w: np.ndarray, changed: np.ndarray, x: np.ndarray) -> float:
    """||x (w' - w)^T|| / ||x w^T||."""
    wide = x.astype(np.float64)
    return float(np.linalg.norm(wide @ (changed - w.astype(np.float64)).T) / np.linalg.norm(wide @ w.T))


KINDS = (
    "dead",
    "copies",
    "rank one",
    "one sample",
    "zero",
    "huge and tiny",
    "huge",
    "tiny",
    "nearly equal",
    "negative",
    "ill-conditioned",
)


def degenerate(rng: np.random.Generator, kind: str, most: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """(weights, inputs) of a layer of at most so many columns whose moments are singular or worse."""
    rows, cols, samples = rng.integers(1, 7), rng.integers(1, most + 1), rng.integers(1, 20)
    x, w = rng.standard_normal((samples, cols)), rng.standard_normal((rows, cols))
    if kind == "dead":
        x[:, rng.random(cols) < 0.5] = 0
    elif kind == "copies":
        x = x[:, rng.integers(0, cols, cols)]
    elif kind == "rank one":
        x = np.outer(x[:, 0], rng.standard_normal(cols))
    elif kind == "one sample":
        x = x[:1]
    elif kind == "zero":
        x[:] = 0
    elif kind == "huge and tiny":
        x *= 10.0 ** rng.uniform(-15, 15, cols)
        w *= 10.0 ** rng.uniform(-15, 15, cols)
    elif kind == "huge":
        x, w = np.clip(x * 1e18, -1e18, 1e18), np.clip(w * 1e38, -1.5e38, 1.5e38)
    elif kind == "tiny":
        x, w = x * 1e-30, w * 1e-42
    elif kind == "nearly equal":
        x = x[:, :1] * (1 + 1e-7 * rng.standard_normal(cols))
    elif kind == "negative":
        w = -np.abs(w)
    elif kind == "ill-conditioned":
        basis = np.linalg.qr(rng.standard_normal((cols, cols)))[0]
        x = (rng.standard_normal((cols + 5, cols)) * np.logspace(0, -rng.uniform(3, 15), cols)) @ basis
    return w.astype(np.float32), x.astype(np.float32)
