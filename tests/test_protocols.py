"""A good NumPy citizen: what NumPy, SciPy, pickle and the array protocols expect of an array."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse as sp
import threadpoolctl

import pumice as pm

RNG = np.random.default_rng(7)
W = pm.prune(RNG.standard_normal((48, 64)).astype(np.float32), 0.6)
X = RNG.standard_normal((5, 64)).astype(np.float32)
Z = RNG.standard_normal((3, 48)).astype(np.float32)
SCHEMES = [
    "float32", "float16", "bfloat16", "int8", "int4-g32", "int4-g16-min", "csr", "csr+int8", "csr+int4", "bsr-4x4+int8",
]  # fmt: skip


@pytest.fixture(params=SCHEMES)
def w(request: pytest.FixtureRequest) -> pm.CompactArray:
    return pm.compress(W, request.param)


def test_array_gives_a_new_float32_array_of_any_dtype_asked_for(w: pm.CompactArray) -> None:
    assert np.asarray(w).dtype == np.float32
    assert np.array(w, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.asarray(w), w.to_dense())
    np.testing.assert_array_equal(np.asarray(w.T), w.to_dense().T)
    with pytest.raises(ValueError, match="copy: expected True or None"):
        np.array(w, copy=False)
    np.asarray(w)[0, 0] = w[:4].to_dense()[0, 0] = 99  # the caller's own
    for part in w.parts().values():
        assert not part.flags.writeable
    assert w.to_dense()[0, 0] != 99


def test_matmul_with_out_returns_out(w: pm.CompactArray) -> None:
    cases: list[tuple[Any, Any, tuple[int, ...]]] = [
        (X, w.T, (5, 48)), (w, X.T, (48, 5)), (Z, w, (3, 64)),
        (w.T, Z.T, (64, 3)), (X[0], w.T, (48,)), (w, X[0], (48,)),
    ]  # fmt: skip
    for left, right, shape in cases:
        out = np.empty(shape, np.float32)
        assert np.matmul(left, right, out=out) is out
        np.testing.assert_allclose(out, left @ right, rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="out: expected float32 of shape"):
            np.matmul(left, right, out=np.empty((7, 7), np.float32))
        with pytest.raises(ValueError, match="out: expected a writable array"):
            out.setflags(write=False)
            np.matmul(left, right, out=out)


@pytest.mark.parametrize("scheme", ["int8", "int4-g32", "float16", "csr", "bsr-4x4+int8", "float32"])
def test_out_may_overlap_x_and_bias(scheme: str) -> None:
    rng = np.random.default_rng(5)
    w = pm.compress(pm.prune(rng.standard_normal((64, 64)).astype(np.float32), 0.5), scheme)
    memory = rng.standard_normal(64 * 40).astype(np.float32)
    for x_at, out_at in ((0, 0), (0, 64), (64, 0), (0, 7), (256, 250), (0, 64 * 20)):
        buffer = memory.copy()
        x, out = (buffer[at : at + 64 * 8].reshape(8, 64) for at in (x_at, out_at))
        expected = pm.linear(x.copy(), w)
        assert pm.linear(x, w, out=out) is out
        np.testing.assert_array_equal(out, expected)
    square = rng.standard_normal((64, 64)).astype(np.float32)
    expected = pm.linear(square.T.copy(), w)
    np.testing.assert_array_equal(pm.linear(square.T, w, out=square), expected)
    expected = pm.linear(memory[:64], w, memory[64:128].copy())
    np.testing.assert_array_equal(pm.linear(memory[:64], w, memory[64:128], out=memory[64:128]), expected)


def test_what_numpy_cannot_do_with_compact_weights_says_so(w: pm.CompactArray) -> None:
    calls = [
        (lambda: np.add(X, w), "np.add: expected ndarrays"),
        (lambda: X * w, "np.multiply: expected ndarrays"),
        (lambda: np.add.reduce(w), "np.add.reduce: expected ndarrays"),
        (lambda: np.matmul(X, w.T, dtype=np.float64), "np.matmul: expected no option but out .* got dtype"),
        (lambda: w == w, "=="),
        (lambda: w != w, "=="),
        (lambda: w + 1, "unsupported operand"),
    ]
    for call, message in calls:
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(ValueError, match="bool: expected an ndarray"):
        bool(w)


@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 3), (0,), (2, 0, 3)])
def test_leading_dimensions_are_a_batch(w: pm.CompactArray, lead: tuple[int, ...]) -> None:
    x = RNG.standard_normal((*lead, 64)).astype(np.float32)
    y = x @ w.T
    assert y.shape == (*lead, 48)
    np.testing.assert_allclose(y, x @ w.to_dense().T, rtol=0, atol=2e-3)
    z = RNG.standard_normal((*lead, 48)).astype(np.float32)
    assert (z @ w).shape == (*lead, 64)
    if len(lead) >= 2:
        columns = np.swapaxes(x, -1, -2)
        np.testing.assert_allclose(w @ columns, w.to_dense() @ columns, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f2", ">f4", ">f8", "longdouble", "i1", "u8", "?"])
def test_x_of_any_real_dtype_order_and_layout_gives_the_same(w: pm.CompactArray, dtype: str) -> None:
    x = np.abs(X * 4).astype(dtype)
    expected = pm.linear(np.ascontiguousarray(x.astype(np.float32)), w)
    wide = np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)
    readonly = x.copy()
    readonly.setflags(write=False)
    for variant in (x, np.asfortranarray(x), wide[::2, ::3], x[::-1][::-1], readonly):
        assert pm.linear(variant, w).tobytes() == expected.tobytes()


def test_weights_of_any_layout_compress_to_the_same() -> None:
    wide = np.repeat(np.repeat(W, 2, axis=0), 3, axis=1)
    readonly = W.copy()
    readonly.setflags(write=False)
    for scheme in SCHEMES:
        expected = pickle.dumps(pm.compress(W, scheme))
        for variant in (np.asfortranarray(W), wide[::2, ::3], readonly, W.astype(">f4"), W.astype(">f8"), W.tolist()):
            given = np.array(variant) if isinstance(variant, list) else variant
            assert pickle.dumps(pm.compress(given, scheme)) == expected


def test_pickle_5_moves_the_buffers_out_of_band(w: pm.CompactArray) -> None:
    big = pm.compress(np.tile(W, (20, 8)), w.scheme)
    for array in (big, big.T):
        buffers: list[pickle.PickleBuffer] = []
        blob = pickle.dumps(array, protocol=5, buffer_callback=buffers.append)
        assert len(blob) < 2048
        assert sum(len(b.raw()) for b in buffers) <= array.nbytes
        again = pickle.loads(blob, buffers=buffers)
        assert again.shape == array.shape
        np.testing.assert_array_equal(again.to_dense(), array.to_dense())
    for protocol in range(2, 6):
        assert pickle.loads(pickle.dumps(w, protocol)).scheme == w.scheme


def test_a_pickle_is_validated_like_a_file() -> None:
    w = pm.compress(W, "csr")
    blob = bytearray(pickle.dumps(w, 5))
    where = blob.find(w.indptr.tobytes())
    assert where > 0
    blob[where + 8 : where + 16] = (2**40).to_bytes(8, "little")
    with pytest.raises(pm.FormatError, match="indptr must rise"):
        pickle.loads(bytes(blob))


def test_index_parts_are_copied_so_that_a_caller_cannot_change_them() -> None:
    w = pm.compress(W, "csr")
    parts = {name: np.array(part) for name, part in w.parts().items()}
    again = pm.from_parts("csr", W.shape, parts)
    parts["indices"][:] = 60_000
    parts["indptr"][:] = 2**40
    np.testing.assert_array_equal(again.to_dense(), W)
    for name in ("indptr", "indices", "data"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(again, name)[0] = 1


def test_copies_are_the_object_and_hash_is_identity(w: pm.CompactArray) -> None:
    assert copy.copy(w) is w
    assert copy.deepcopy({"a": w})["a"] is w
    assert weakref.ref(w)() is w
    other = pm.compress(W, w.scheme)
    assert {w: 1, other: 2}[w] == 1
    assert hash(w) == hash(w)


def test_repr_html_and_sizeof_tell_the_truth(w: pm.CompactArray) -> None:
    assert w.scheme in repr(w)
    assert str(w.nbytes) in repr(w)
    html = w._repr_html_()
    assert html.startswith("<table>")
    assert f"{w.nbytes:,}" in html
    assert w.resident_nbytes < sys.getsizeof(w) < w.resident_nbytes + 1000


class OnlyDLPack:
    """An array of another library: no buffer, no __array__."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self._array, self.device, self.shape = array, device, array.shape

    def __dlpack__(self, **options: Any) -> Any:
        if self.device != (1, 0):
            raise BufferError("not in CPU memory")
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def test_dlpack_goes_in_and_out(w: pm.CompactArray) -> None:
    expected = X @ w.T
    assert pm.linear(OnlyDLPack(X), w).tobytes() == expected.tobytes()
    assert pm.linear(array_api_strict.asarray(X), w).tobytes() == expected.tobytes()
    for array in (OnlyDLPack(W), array_api_strict.asarray(W)):
        np.testing.assert_array_equal(pm.compress(array, w.scheme).to_dense(), w.to_dense())
    np.testing.assert_array_equal(np.from_dlpack(w.to_dense()), w.to_dense())
    with pytest.raises(TypeError, match="x: expected an array in CPU memory, got OnlyDLPack"):
        pm.linear(OnlyDLPack(X, (2, 0)), w)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_ml_dtypes_arrays_are_real_numbers(name: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    x, weights = X.astype(dtype), W.astype(dtype)
    c = pm.compress(weights, "int8")
    np.testing.assert_array_equal(c.to_dense(), pm.compress(weights.astype(np.float32), "int8").to_dense())
    assert pm.linear(x, c).tobytes() == pm.linear(x.astype(np.float32), c).tobytes()
    assert isinstance(pm.compress({"a": weights}, "int8")["a"], pm.DenseArray)
    if name == "bfloat16":
        patterns = pm.compress(W, "bfloat16").parts()[""]
        np.testing.assert_array_equal(patterns, weights.view(np.uint16))


def test_scipy_shares_what_it_can() -> None:
    matrix = sp.csr_array(W)
    ours = pm.CSRArray.from_scipy(matrix)
    assert np.shares_memory(ours.data, matrix.data)
    back = ours.to_scipy()
    assert np.shares_memory(back.data, ours.data)
    np.testing.assert_allclose(back @ X.T, ours @ X.T, rtol=1e-5, atol=1e-5)
    blocks = sp.bsr_array(W, blocksize=(4, 4)).sorted_indices()
    assert np.shares_memory(pm.BSRArray.from_scipy(blocks).data, blocks.data)
    assert (matrix @ X.T).shape == (48, 5)
    assert (matrix != sp.csr_array(W)).nnz == 0  # SciPy's own was not touched


def test_first_products_of_many_threads_agree() -> None:
    expected = X @ pm.compress(W, "int4-g32").T
    for _ in range(20):
        fresh = pm.compress(W, "int4-g32")
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _, w=fresh: X @ w.T, range(16)))
        assert all(y.tobytes() == expected.tobytes() for y in results)


def test_threadpoolctl_sees_and_limits_our_threads() -> None:
    before = pm.get_num_threads()
    found = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "pumice"]
    assert [info["num_threads"] for info in found] == [before]
    assert found[0]["version"] == pm.__version__
    with threadpoolctl.threadpool_limits(1, user_api="pumice"):
        assert pm.get_num_threads() == 1
    assert pm.get_num_threads() == before


def test_threadpoolctl_finds_us_whichever_was_imported_first() -> None:
    for first, second in (("pumice", "threadpoolctl"), ("threadpoolctl", "pumice")):
        code = (
            f"import {first}, {second}, threadpoolctl; print([i['user_api'] for i in threadpoolctl.threadpool_info()])"
        )
        assert "pumice" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout


def test_rows_with_nan_or_infinity_touch_only_themselves(w: pm.CompactArray, isa: str) -> None:
    x = np.concatenate([X, X])
    x[2, 5], x[7, 0] = np.nan, np.inf
    y, clean = pm.linear(x, w), pm.linear(np.concatenate([X, X]), w)
    rows = [0, 1, 3, 4, 5, 6, 8, 9]
    assert y[rows].tobytes() == clean[rows].tobytes()
    if "int" in w.scheme:
        assert np.isnan(y[[2, 7]]).all()
    assert not np.isfinite(y[2]).all()


@pytest.mark.parametrize("activations", ["int16", "int8", "float32"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_scales_at_their_limits_are_multiplied_as_they_are(dtype: type, activations: str, isa: str) -> None:
    info = np.finfo(dtype)
    scales = np.array(
        [0, -0.0, info.tiny, info.smallest_subnormal, -info.smallest_subnormal, info.max / 512, -1, -info.tiny], dtype
    )
    codes = RNG.integers(0, 256, (len(scales), 32))
    w = pm.DenseArray.from_codes(codes, scales, bits=8)
    exact = scales.astype(np.float64)[:, None] * (codes - 128.0)
    np.testing.assert_array_equal(w.to_dense(), exact.astype(np.float32))
    x = np.zeros((2, 32), np.float32)
    x[0, 3], x[1, 4] = 1, -2
    with np.errstate(over="ignore"):
        expected = (x @ exact.T).astype(np.float32)
    # One non-zero activation: it quantizes to L, so y is am * (L / L) but for the rounding of am / L.
    np.testing.assert_allclose(pm.linear(x, w, activations=activations), expected, rtol=2.0**-22, atol=2.0**-149)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(33, 130), (1, 1), (1, 70), (70, 1), (16, 16), (0, 5), (5, 0)])
def test_odd_shapes_and_zeros_work(scheme: str, shape: tuple[int, int], isa: str) -> None:
    for w in (
        RNG.standard_normal(shape).astype(np.float32),
        np.zeros(shape, np.float32),
        np.full(shape, -0.0, np.float32),
    ):
        c = pm.compress(w, scheme)
        x = RNG.standard_normal((2, shape[1])).astype(np.float32)
        y = x @ c.T
        bound = (0.5 / 16256 + 2.0**-16) * np.abs(x).max(initial=0) * np.abs(c.to_dense()).sum(axis=1) + 1e-30
        assert (np.abs(y - x.astype(np.float64) @ c.to_dense().T) <= bound).all()
        if not w.any():
            assert not y.any()
            assert not np.signbit(y).any()
