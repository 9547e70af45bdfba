"""Sizes beyond 32 bits: really made under ``-m huge`` (about 16 GB of memory), and with lowered limits always."""

from __future__ import annotations

import os

import numpy as np
import pytest

import pumice as pm
from pumice.layouts import compressed

needs_memory = pytest.mark.skipif(
    os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 20 << 30, reason="needs 20 GB of memory"
)


@pytest.mark.parametrize("scheme", ["csr", "csr+float16", "csr+int8", "csr+int4", "bsr-2x3", "bsr-2x3+int8"])
def test_wide_indices_compute_what_narrow_ones_do(scheme: str, monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    rng = np.random.default_rng(0)
    w = pm.prune(rng.standard_normal((30, 90)).astype(np.float32), 0.7)
    x = rng.standard_normal((9, 90)).astype(np.float32)
    narrow = pm.compress(w, scheme)
    monkeypatch.setattr(compressed, "NARROW_COLS", 8)
    wide = pm.compress(w, scheme)
    assert (narrow.indices.dtype, wide.indices.dtype) == (np.uint16, np.uint32)
    assert (x @ wide.T).tobytes() == (x @ narrow.T).tobytes()
    again = pm.from_parts(scheme, w.shape, wide.parts())
    np.testing.assert_array_equal(again.to_dense(), narrow.to_dense())
    np.testing.assert_array_equal(again[4:10, 3:60].to_dense(), narrow.to_dense()[4:10, 3:60])
    with pytest.raises(pm.FormatError, match="indices: expected uint32"):
        pm.from_parts(scheme, w.shape, narrow.parts())


def test_columns_beyond_65536_have_wide_indices() -> None:
    w = np.zeros((2, 65537), np.float32)
    w[0, 65536], w[1, 0] = 3, 4
    c = pm.compress(w, "csr")
    assert c.indices.dtype == np.uint32
    assert pm.compress(w[:, :65536], "csr").indices.dtype == np.uint16
    np.testing.assert_array_equal(np.ones(65537, np.float32) @ c.T, [3, 4])


@pytest.mark.huge
@needs_memory
def test_more_than_2_to_the_31_stored_values() -> None:
    rows, cols, each = 40_000, 65_536, 54_000
    one = np.sort(np.random.default_rng(0).choice(cols, each, replace=False)).astype(np.uint16)
    data = np.ones(rows * each, np.int8)
    data[-each:] = 3
    parts = {
        "indptr": np.arange(rows + 1, dtype=np.int64) * each,
        "indices": np.tile(one, rows),
        "data": data,
        "scale": np.full((rows, 1), 0.5, np.float32),
        "shape": np.array([rows, cols]),
    }
    w = pm.from_parts("csr+int8", (rows, cols), parts)
    del parts, data
    assert w.nnz > 2**31
    x = np.ones((2, cols), np.float32)
    y = x @ w.T
    np.testing.assert_allclose(y[:, :-1], each / 2, rtol=1e-4)
    np.testing.assert_allclose(y[:, -1], each * 3 / 2, rtol=1e-4)
    np.testing.assert_array_equal(w.take([rows - 1])[0, one], np.full(each, 1.5, np.float32))
    np.testing.assert_array_equal(w[rows - 1 :].to_dense()[0], w.take(rows - 1))


@pytest.mark.huge
@needs_memory
def test_more_than_2_to_the_32_bytes_of_codes() -> None:
    rows, cols = 70_000, 65_536
    codes = np.full((rows, cols), 128, np.uint8)
    codes[-1] = 130
    w = pm.from_parts(
        "int8", (rows, cols),
        {"packed": codes.view(np.int32), "scale": np.ones((rows, 1), np.float32), "shape": np.array([rows, cols])},
    )  # fmt: skip
    del codes
    assert w.nbytes > 2**32
    x = np.ones(cols, np.float32)
    for prepack in ("never", "lazy"):
        with pm.options(prepack=prepack):
            y = x @ w.T
        assert not y[:-1].any()
        np.testing.assert_allclose(y[-1], 2 * cols, rtol=1e-4)
    assert w.take([rows - 1]).sum() == 2 * cols
