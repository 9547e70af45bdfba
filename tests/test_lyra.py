"""A really trained block-sparse layer: Lyra WaveGRU conv_to_gates, learned 4 x 4 blocks, 8 % dense."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import pumice as pm

PATH = Path(__file__).parent / "data" / "lyra_conv_to_gates.raw.gz"
ROWS, COLS = 3072, 1024


@pytest.fixture(scope="module")
def w() -> np.ndarray:
    return np.frombuffer(gzip.decompress(PATH.read_bytes()), "<f4").reshape(ROWS, COLS)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, COLS), np.float32)


@pytest.mark.parametrize("scheme", ["csr", "bsr-4x4"])
def test_float32_is_exact_and_negative_zeros_are_holes(w: np.ndarray, scheme: str) -> None:
    compact = pm.compress(np.where(w == 0, np.float32(-0.0), w), scheme)  # as the other layers of the network have them
    np.testing.assert_array_equal(compact.to_dense(), w)
    assert compact.nbytes == pm.compress(w, scheme).nbytes


@pytest.mark.parametrize("scheme", ["csr", "bsr-4x4", "csr+int8", "bsr-4x4+int8"])
def test_the_bytes_are_those_of_the_formula(w: np.ndarray, scheme: str) -> None:
    compact = pm.compress(w, scheme)
    value = 1 if "int8" in scheme else 4
    matrix = sp.csr_array(compact.to_dense())
    if scheme.startswith("csr"):
        expected = 8 * (ROWS + 1) + (2 + value) * matrix.nnz
    else:
        blocks = sp.csr_array(compact.to_dense()).tobsr((4, 4)).indices.size
        expected = 8 * (ROWS // 4 + 1) + (2 + 16 * value) * blocks
    assert compact.nbytes == expected + 16 + (4 * ROWS if value == 1 else 0)
    assert compact.nbytes < w.nbytes / (20 if scheme == "bsr-4x4+int8" else 6)


@pytest.mark.parametrize("scheme", ["csr", "bsr-4x4"])
def test_float32_products_stay_within_the_bound_of_float32_sums(
    w: np.ndarray, x: np.ndarray, scheme: str, isa: str
) -> None:
    y = pm.linear(x, pm.compress(w, scheme))
    wide, terms = w.astype(np.float64), int((w != 0).sum(axis=1).max())
    bound = terms * 2.0**-23 * (np.abs(x).astype(np.float64) @ np.abs(wide).T)
    assert (np.abs(y - x.astype(np.float64) @ wide.T) <= bound).all()


@pytest.mark.parametrize("activations", ["int16", "int8"])
def test_int8_products_have_the_bits_of_the_dense_ones(
    w: np.ndarray, x: np.ndarray, activations: str, isa: str
) -> None:
    dense = pm.linear(x, pm.compress(w, "int8"), activations=activations)
    for scheme in ("csr+int8", "bsr-4x4+int8"):
        y = pm.linear(x, pm.compress(w, scheme), activations=activations)
        assert y.tobytes() == dense.tobytes()


def test_it_survives_a_file(w: np.ndarray, tmp_path: Path) -> None:
    arrays = {scheme: pm.compress(w, scheme) for scheme in ("csr", "bsr-4x4", "csr+int8", "bsr-4x4+int8")}
    pm.save(tmp_path / "lyra.safetensors", arrays)
    assert pm.verify(tmp_path / "lyra.safetensors").ok
    loaded = pm.load(tmp_path / "lyra.safetensors")
    for scheme, array in arrays.items():
        np.testing.assert_array_equal(loaded[scheme].to_dense(), array.to_dense())
