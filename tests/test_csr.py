"""Compressed sparse rows: what is theirs alone."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

import pumice as pm

RNG = np.random.default_rng(3)
SCHEMES = ["csr", "csr+float16", "csr+bfloat16", "csr+int8", "csr+int4"]


def pruned(rows: int, cols: int, density: float = 0.2) -> np.ndarray:
    w = RNG.standard_normal((rows, cols)).astype(np.float32)
    w[RNG.random((rows, cols)) >= density] = 0
    return w


def exact(x: np.ndarray, w: pm.CompactArray) -> np.ndarray:
    return x.astype(np.float64) @ w.to_dense().T.astype(np.float64)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_long_row_among_empty_ones(scheme: str, isa: str) -> None:
    w = np.zeros((301, 5000), np.float32)
    w[150] = RNG.standard_normal(5000)
    w[300, 4999] = 1
    c = pm.compress(w, scheme)
    x = RNG.standard_normal((70, 5000)).astype(np.float32)
    for batch in (1, 16, 70):
        y = pm.linear(x[:batch], c, activations="float32")
        np.testing.assert_allclose(y, exact(x[:batch], c), rtol=1e-4, atol=1e-3)
        assert not np.delete(y, (150, 300), axis=1).any()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(0, 7), (7, 0), (0, 0), (5, 9)])
def test_arrays_that_store_nothing(scheme: str, shape: tuple[int, int]) -> None:
    c = pm.compress(np.zeros(shape, np.float32), scheme)
    assert c.nnz == 0
    for batch in (0, 1, 3, 65):
        y = np.ones((batch, shape[1]), np.float32) @ c.prepack().T
        np.testing.assert_array_equal(y, np.zeros((batch, shape[0])))
    again = pm.from_parts(scheme, shape, c.parts())
    np.testing.assert_array_equal(again.to_dense(), np.zeros(shape))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_and_columns_are_cut_and_joined_without_decoding(scheme: str) -> None:
    c = pm.compress(pruned(33, 70), scheme)
    w = c.to_dense()
    for start in range(0, 33, 5):
        np.testing.assert_array_equal(c[start : start + 7].to_dense(), w[start : start + 7])
        np.testing.assert_array_equal(c[:, start : 2 * start + 1].to_dense(), w[:, start : 2 * start + 1])
        joined = pm.concatenate([c[:start], c[start:]])
        for name, part in c.parts().items():
            np.testing.assert_array_equal(joined.parts()[name], part)
    np.testing.assert_array_equal(c.take([[32, 0], [5, 5]]), w[[[32, 0], [5, 5]]])
    np.testing.assert_array_equal(c.to_scipy().toarray(), w)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_runs_are_made_once_counted_and_never_where_nothing_is_prepacked(scheme: str) -> None:
    w = pruned(256, 512)
    x = RNG.standard_normal((65, 512)).astype(np.float32)
    kept, free = (pm.compress(w, scheme) for _ in range(2))
    bare = kept.resident_nbytes
    with pm.options(prepack="never"):
        expected = x @ kept.T
    assert kept.resident_nbytes == bare
    y = x @ free.T
    assert free.resident_nbytes == bare + 256 * 4
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)
    assert free.nbytes == kept.nbytes
    assert free.keep_canonical().resident_nbytes == bare


def test_float_products_touch_stored_values_only_in_tiles_too() -> None:
    w = pm.compress(np.eye(40, 300, dtype=np.float32), "csr")
    x = np.ones((64, 300), np.float32)
    x[:, 40:] = np.inf
    x[:, 299] = np.nan
    np.testing.assert_array_equal(x @ w.T, np.ones((64, 40)))


def test_read_only_and_strided_x() -> None:
    w = pm.compress(pruned(50, 60), "csr+int8")
    x = RNG.standard_normal((40, 120)).astype(np.float32)
    x.setflags(write=False)
    np.testing.assert_array_equal(x[::2, ::2] @ w.T, np.ascontiguousarray(x[::2, ::2]) @ w.T)


def test_compressing_takes_little_more_memory_than_the_result() -> None:
    w = pruned(1024, 2048, 0.3)
    for scheme in ("csr", "csr+int8"):
        pm.compress(w, scheme)
        tracemalloc.start()
        c = pm.compress(w, scheme)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        slack = 0.1 * c.nbytes if scheme == "csr" else 12 << 20  # a panel of float32, its codes, and the same packed
        assert peak < c.nbytes + slack


def test_a_weight_that_float16_cannot_hold_is_named_by_its_place() -> None:
    w = np.zeros((4000, 512), np.float32)
    w[3999, 7] = 1e6
    with pytest.raises(pm.NonFiniteError, match=r"at index \(3999, 7\)"):
        pm.compress(w, "csr+float16")


def test_int4_rows_must_have_all_their_bytes() -> None:
    c = pm.compress(pruned(9, 30, 0.5), "csr+int4")
    parts = c.parts()
    parts["data"] = parts["data"][:-1]
    with pytest.raises(pm.FormatError, match="data: expected uint8 of shape"):
        pm.from_parts("csr+int4", c.shape, parts)


def test_scipy_data_is_shared_and_its_products_are_ours() -> None:
    matrix = sp.random_array((60, 90), density=0.2, dtype=np.float32, rng=RNG).tocsr()
    c = pm.CSRArray.from_scipy(matrix)
    assert np.shares_memory(c.data, matrix.data)
    x = RNG.standard_normal((33, 90)).astype(np.float32)
    np.testing.assert_allclose(x @ c.T, (matrix @ x.T).T, rtol=1e-4, atol=1e-4)
