"""examples/llama.py against transformers' logits (tests/golden/make_llama.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import pumice as pm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
import llama
import llama_files as files
import json

GOLDEN = ROOT / "tests" / "golden"

@pytest.mark.parametrize("name", ["plain", "scaled"])
def test_x(name):
    folder = GOLDEN / f"llama-{name}"
    w = pm.load(folder / "model.safetensors")
    c = files.Config.from_json(json.loads((folder / "config.json").read_text()))
    e = pm.load(folder / "expected.safetensors")
    m = llama.Llama(w, c)
    got = m.forward(e["ids"], llama.Cache(c, 150), every=True)
    print(np.abs(got - e["logits"]).max())
    np.testing.assert_allclose(got, e["logits"], atol=1e-4)
