"""Small LLaMAs by transformers (tests/golden/make_llama.py), for the tests of examples/llama.py."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import pumice as pm

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"


def example(name: str) -> Any:
    """A module of examples/, found as a script there finds it."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "examples"))


llama, files = example("llama"), example("llama_files")


class Golden:
    """A small model by transformers: weights, sizes, and the logits after each of 150 tokens."""

    def __init__(self, name: str) -> None:
        folder = GOLDEN / f"llama-{name}"
        self.weights = dict(pm.load(folder / "model.safetensors"))
        self.json = json.loads((folder / "config.json").read_text())
        expected = pm.load(folder / "expected.safetensors")
        self.ids, self.logits = expected["ids"].tolist(), expected["logits"]


def as_gguf(golden: Golden) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model as llama.cpp's converter writes it: other names, and rows in the order of neighbouring pairs."""
    names = {both[0]: both[1] for both in files.NAMES.values()}
    weights = {}
    for name, array in golden.weights.items():
        layer = next((part for part in name.split(".") if part.isdigit()), "")
        stem, _, kind = name.replace(f".{layer}.", ".{}.").rpartition(".")
        heads = {"q_proj": 4, "k_proj": 2}.get(stem.rpartition(".")[2])
        if heads:
            pairs = array.reshape(heads, 2, -1, *array.shape[1:])
            array = np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(array.shape))
        weights[f"{names[stem].format(layer)}.{kind}"] = array
    fields = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": golden.json["head_dim"],
        "llama.attention.layer_norm_rms_epsilon": golden.json["rms_norm_eps"],
        "llama.embedding_length": 32,
        "llama.context_length": 256,
        "llama.rope.freq_base": golden.json["rope_parameters"]["rope_theta"],
    }
    return weights, fields
