"""GGUF that llama.cpp itself wrote: its quantizers, its writer, its values (golden/make_gguf.py).

The gguf package decodes all types but Q8_1, which ggml has for activations; in a file it is a type like others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pumice as pm
from pumice.checkpoint import open_reader

GOLDEN = Path(__file__).parent / "golden" / "ggml.gguf"
with np.load(GOLDEN.with_suffix(".npz")) as _file:
    VALUES = dict(_file)


@pytest.mark.parametrize("kind", VALUES)
def test_every_type_has_the_values_that_ggml_gives(kind: str) -> None:
    with pm.load(GOLDEN) as m:
        w = m[kind]
        dense = w.to_dense() if isinstance(w, pm.CompactArray) else np.asarray(w, np.float32)
        np.testing.assert_array_equal(dense, VALUES[kind], strict=True)
    with open_reader(GOLDEN, io="read") as reader:
        np.testing.assert_array_equal(reader.rows(kind, 1, 3), VALUES[kind][1:3], strict=True)


def test_the_golden_has_a_tensor_of_each_type_that_is_decoded() -> None:
    names = {f"Q{bits}_{form}" for bits in (4, 5, 8) for form in (0, 1)} | {f"Q{bits}_K" for bits in range(2, 7)}
    assert set(pm.load(GOLDEN)) == set(VALUES) == names | {"F32", "F16", "BF16"}


def test_a_block_of_q8_1_has_a_sum_that_its_codes_give() -> None:
    """So it may be left out: w = scale * code is all there is."""
    with pm.load(GOLDEN) as m:
        blocks = np.frombuffer(m.raw("Q8_1"), np.dtype([("scale", "<f2"), ("sum", "<f2"), ("codes", "i1", 32)]))
        w = m["Q8_1"]
        assert (w.scheme, m.info("Q8_1").nbytes) == ("int8-g32", 3 * 256 // 32 * 36)
    codes = blocks["codes"].astype(np.int32)
    np.testing.assert_array_equal(w.codes(), codes.reshape(3, 256) + 128)
    assert w.parts()["scale"].tobytes() == blocks["scale"].tobytes()
    np.testing.assert_allclose(blocks["sum"], codes.sum(axis=1) * blocks["scale"].astype(float), rtol=1e-2, atol=1e-4)
