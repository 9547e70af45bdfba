"""States that tests write to safetensors: an array of each kind, and whether two arrays are the same."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

import pumice as pm

SCHEMES = ["float16", "bfloat16", "int8", "int4-g32", "int4-g16-asym", "csr", "csr+int8", "bsr-4x4", "bsr-3x5+int8"]


def weights() -> np.ndarray:
    w = np.random.default_rng(5).standard_normal((24, 64)).astype(np.float32)
    return pm.prune(w, 0.6)


def mixed() -> dict[str, Any]:
    state: dict[str, Any] = {f"{scheme}.weight": pm.compress(weights(), scheme) for scheme in SCHEMES}
    state |= {
        "transposed": pm.compress(weights(), "int8").T,
        "conv": pm.compress(weights().reshape(24, 4, 4, 4), "int8"),
    }
    return state | {"bias": np.arange(24.0), "flag": np.array(True), "none": np.zeros((0, 3), np.float16)}


def written(state: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pm.save(file, state, **options)
    return file.getvalue()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, pm.CompactArray):
        return a.scheme == b.scheme and a.shape == b.shape and a.to_dense().tobytes() == b.to_dense().tobytes()
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
