"""The verbs on arrays, mappings and lists, and the errors they raise."""

from __future__ import annotations

import copy
import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

import pumice as pm
from pumice.profile import Profile, default_profile

RNG = np.random.default_rng(1)
W = RNG.standard_normal((24, 64)).astype(np.float32)
X = RNG.standard_normal((5, 64)).astype(np.float32)
SPARSE = pm.prune(W, 0.7)
SCHEMES = ["float32", "float16", "bfloat16", "int8", "int4-g32-asym", "csr", "csr+int8", "bsr-4x4", "bsr-8x2+int8"]


@pytest.fixture(params=SCHEMES)
def compact(request: pytest.FixtureRequest) -> pm.CompactArray:
    return pm.compress(SPARSE, request.param)


def close(y: np.ndarray, x: np.ndarray, w: np.ndarray) -> bool:
    """Within the error of int16 activations: 1/2 of 1/16256 of the largest |x| a term, and float32 sums."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    bound = (0.5 / 16256 + 2.0**-18) * np.abs(x).max(initial=0) * np.abs(w).sum(axis=1) + 1e-30
    return bool((np.abs(y - x @ w.T) <= bound).all())


def test_every_form_of_the_fused_product_agrees(compact: pm.CompactArray) -> None:
    dense = compact.to_dense()
    assert close(X @ compact.T, X, dense)
    assert close((compact @ X.T).T, X, dense)
    assert close((X[0] @ compact.T)[None], X[:1], dense)
    assert close((compact @ X[0])[None], X[:1], dense)
    assert close(np.matmul(X, compact.T), X, dense)
    assert close(pm.linear(X.reshape(5, 1, 1, 64), compact).reshape(5, 24), X, dense)
    out = np.empty((5, 24), np.float32)
    assert np.matmul(X, compact.T, out=out) is out
    assert close(out, X, dense)


def test_the_other_products_decode_and_agree_with_numpy(compact: pm.CompactArray) -> None:
    dense, z = compact.to_dense(), RNG.standard_normal((3, 24)).astype(np.float32)
    np.testing.assert_allclose(z @ compact, z @ dense, rtol=0, atol=24 * 2.0**-23 * 50)
    np.testing.assert_allclose(compact.T @ z.T, dense.T @ z.T, rtol=0, atol=24 * 2.0**-23 * 50)


def test_bias_and_out_are_used(compact: pm.CompactArray) -> None:
    bias = RNG.standard_normal(24)
    out = np.full((5, 48), 7, np.float32)[:, ::2]
    y = pm.linear(X, compact, bias, out=out)
    assert y is out
    np.testing.assert_array_equal(out, pm.linear(X, compact, bias))
    np.testing.assert_allclose(out, X @ compact.T + bias.astype(np.float32), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "int32", "bool"])
def test_x_may_be_of_any_real_dtype_and_order(dtype: str) -> None:
    w = pm.compress(W, "int8")
    x = (X * 4).astype(dtype)
    expected = x.astype(np.float32) @ w.T
    for variant in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        assert (variant @ w.T == expected).all() if dtype != "bool" else True
        assert (pm.linear(variant, w) == expected).all()


def test_empty_batches_and_empty_weights_have_results() -> None:
    for scheme in SCHEMES:
        w = pm.compress(SPARSE, scheme)
        assert pm.linear(np.zeros((0, 64)), w).shape == (0, 24)
        assert pm.linear(np.zeros((2, 0, 64)), w).shape == (2, 0, 24)
        none = pm.compress(np.zeros((0, 64), np.float32), scheme)
        assert pm.linear(X, none).shape == (5, 0)
        assert none.to_dense().shape == (0, 64)
        flat = pm.compress(np.zeros((24, 0), np.float32), scheme)
        assert (pm.linear(np.zeros((5, 0)), flat, np.ones(24)) == 1).all()


def test_in_axis_0_makes_x_at_c_the_fused_product() -> None:
    c = pm.compress(W.T, "int8", in_axis=0)
    assert c.shape == (64, 24)
    assert (X @ c == X @ pm.compress(W, "int8").T).all()
    assert (c.to_dense() == pm.compress(W, "int8").to_dense().T).all()
    again = pickle.loads(pickle.dumps(c))
    assert (X @ again == X @ c).all()
    with pytest.raises(ValueError, match="w: expected two dimensions for in_axis=0"):
        pm.compress(np.zeros((2, 3, 4)), "int8", in_axis=0)


def test_weights_of_more_dimensions_keep_their_shape() -> None:
    kernel = RNG.standard_normal((8, 4, 3, 3)).astype(np.float32)
    c = pm.compress(kernel, "int8")
    assert c.shape == (8, 4, 3, 3)
    assert (c.to_dense() == pm.compress(kernel.reshape(8, 36), "int8").to_dense().reshape(8, 4, 3, 3)).all()
    assert c.take([1, 7]).shape == (2, 4, 3, 3)
    with pytest.raises(ValueError, match="w: expected a matrix"):
        pm.linear(np.zeros((2, 36)), c)


def test_mappings_and_lists_give_the_same_back() -> None:
    state = {"fc.weight": W, "fc.bias": np.ones(24), "ids": np.arange(6).reshape(2, 3)}
    out = pm.compress(state, "int8")
    assert list(out) == list(state)
    assert out["fc.bias"] is state["fc.bias"]
    assert out["ids"] is state["ids"]
    assert isinstance(out["fc.weight"], pm.DenseArray)
    listed = pm.compress([W, np.ones(3)], "int4")
    assert isinstance(listed, list)
    assert listed[0].scheme == "int4"
    with pytest.raises(TypeError, match=r"w\[0\]: expected an array, got float"):
        pm.compress([1.0, 2.0], "int8")


def test_a_compact_array_goes_to_another_scheme_and_stays_in_its_own() -> None:
    c = pm.compress(W, "int8")
    assert pm.compress(c, "int8") is c
    np.testing.assert_array_equal(pm.compress(c, "float32").to_dense(), c.to_dense())
    assert pm.compress(c.T, "int4").shape == (64, 24)


def test_scipy_goes_in_and_comes_out() -> None:
    for form in ("csr", "csc", "coo", "dia", "bsr", "lil"):
        matrix = sp.csr_array(SPARSE).asformat(form)
        np.testing.assert_array_equal(pm.compress(matrix, "csr").to_dense(), SPARSE)
        np.testing.assert_array_equal(pm.compress(matrix, "int8").codes(), pm.compress(SPARSE, "int8").codes())
        np.testing.assert_array_equal(pm.CSRArray.from_scipy(matrix).to_dense(), SPARSE)
    for scheme in ("csr", "csr+int8", "bsr-4x4", "bsr-5x3+int8"):
        w = pm.compress(SPARSE, scheme)
        np.testing.assert_array_equal(w.to_scipy().toarray()[:24, :64], w.to_dense())
    blocks = pm.BSRArray.from_scipy(sp.bsr_array(SPARSE, blocksize=(4, 8)))
    assert blocks.scheme == "bsr-4x8"
    np.testing.assert_array_equal(blocks.to_dense(), SPARSE)


def test_scipy_duplicates_are_summed_and_stored_zeros_become_holes() -> None:
    matrix = sp.csr_array((np.array([1.0, 2.0, 0.0]), np.array([1, 1, 0]), np.array([0, 3])), shape=(1, 3))
    w = pm.CSRArray.from_scipy(matrix)
    assert w.data.tolist() == [3.0]
    assert matrix.nnz == 3


def test_slices_and_rows_are_those_of_the_decoded_array(compact: pm.CompactArray) -> None:
    dense = compact.to_dense()
    for key in (slice(0, 8), slice(8, 24), slice(None), slice(-8, None), slice(8, 8), (slice(8, 16), slice(32, 64))):
        np.testing.assert_array_equal(compact[key].to_dense(), dense[key])
    np.testing.assert_array_equal(compact[-1], dense[-1])
    np.testing.assert_array_equal(compact.T[32:64].to_dense(), dense.T[32:64])
    ids = np.array([[0, -1], [5, 5]])
    np.testing.assert_array_equal(compact.take(ids), dense[ids])
    for bad in (99, slice(None, None, 2), np.array([1, 2]), (0, 0)):
        with pytest.raises(IndexError, match="index: expected"):
            compact[bad]
    with pytest.raises(IndexError, match="ids: expected rows below 24, got 24"):
        compact.take([24])
    with pytest.raises(TypeError, match="ids: expected integers"):
        compact.take([0.5])


def test_slices_off_the_grid_are_refused() -> None:
    with pytest.raises(IndexError, match="columns at multiples of the group, 32, got 16:64"):
        pm.compress(W, "int4-g32")[:, 16:]
    with pytest.raises(IndexError, match="rows at multiples of the block, 4, got 2:24"):
        pm.compress(W, "bsr-4x4")[2:]


def test_concatenation_stacks_rows_without_decoding(compact: pm.CompactArray) -> None:
    both = pm.concatenate([compact[:8], compact[8:24], compact])
    np.testing.assert_array_equal(both.to_dense(), np.concatenate([compact.to_dense()] * 2))
    with pytest.raises(ValueError, match="arrays: expected"):
        pm.concatenate([compact, pm.compress(W, "int4")])
    with pytest.raises(ValueError, match="got none"):
        pm.concatenate([])


def test_value_semantics(compact: pm.CompactArray) -> None:
    again = pickle.loads(pickle.dumps(compact))
    before = {name: part.copy() for name, part in compact.parts().items()}
    x = X.copy()
    y = x @ compact.T
    assert (x == X).all()
    assert {n: p.tobytes() for n, p in compact.parts().items()} == {n: p.tobytes() for n, p in before.items()}
    assert (x @ again.T == y).all()
    assert copy.copy(compact) is compact
    assert copy.deepcopy(compact) is compact
    assert weakref.ref(compact)() is compact
    assert len({compact, again}) == 2
    with pytest.raises(TypeError, match="=="):
        _ = compact == again


def test_prepacking_leaves_one_copy_and_changes_nothing_else() -> None:
    w = pm.compress(W, "int4-g32-asym")
    parts, resident, dense = w.parts(), w.resident_nbytes, w.to_dense()
    y = X @ w.T
    assert w._form.prepacked
    assert w.resident_nbytes <= resident * 32 / 24  # rows are padded to whole panels
    assert all((w.parts()[name] == part).all() for name, part in parts.items())
    np.testing.assert_array_equal(w.to_dense(), dense)
    np.testing.assert_array_equal(w[3:20].to_dense(), dense[3:20])
    np.testing.assert_array_equal(w.take([20, 3]), dense[[20, 3]])
    fresh = pm.compress(W, "int4-g32-asym")
    with pm.options(prepack="never"):
        assert (y == X @ fresh.T).all()
    assert not fresh._form.prepacked
    assert (y == X @ fresh.keep_canonical().T).all()
    assert not fresh._form.prepacked


def test_from_codes_takes_what_others_quantized() -> None:
    codes = RNG.integers(0, 16, (6, 96))
    scales = RNG.uniform(0.1, 1, (6, 3)).astype(np.float16)
    zeros = RNG.integers(0, 16, (6, 3))
    wide = np.repeat(scales.astype(np.float32), 32, axis=1)
    w = pm.DenseArray.from_codes(codes, scales, zeros, bits=4)
    assert w.scheme == "int4-g32-asym"
    np.testing.assert_array_equal(w.to_dense(), wide * (codes - np.repeat(zeros, 32, axis=1)))
    np.testing.assert_array_equal(w.codes(), codes)
    assert w.parts()["scale"].dtype == np.float16
    repeated = pm.DenseArray.from_codes(np.tile(codes, 2), scales[:, :2], bits=4, group=96)
    assert repeated.scheme == "int4-g32"
    np.testing.assert_array_equal(
        repeated.to_dense(), np.repeat(scales[:, :2].astype(np.float32), 96, axis=1) * (np.tile(codes, 2) - 8.0)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.full((2, 32), 16)}, "codes: expected integers from 0 to 15, got 16"),
        ({"codes": np.full((2, 32), -1)}, r"codes: .* got -1 \(signed codes: add 8\)"),
        ({"codes": np.zeros((2, 32))}, "codes: expected integers, got float64"),
        ({"codes": np.zeros(32, int)}, "codes: expected shape"),
        ({"scales": np.ones(3)}, r"scales: expected shape \(2,\) or \(2, groups\), got \(3,\)"),
        ({"scales": np.ones(2, int)}, "scales: expected floating point"),
        ({"zeros": np.full(2, 16)}, "zeros: expected integers from 0 to 15"),
        ({"zeros": np.zeros(2)}, "zeros: expected integers, got float64"),
        ({"minima": np.zeros(3)}, r"minima: expected shape \(2,\) or \(2, groups\), got \(3,\)"),
        ({"minima": np.zeros((2, 2))}, r"minima: expected shape \(2, 1\) as scales, got \(2, 2\)"),
        ({"minima": np.zeros(2, int)}, "minima: expected floating point, got int64"),
        ({"minima": np.array([0, np.inf])}, "min: expected finite minima"),
        ({"minima": np.zeros(2), "zeros": np.zeros(2, int)}, "minima: expected None beside zeros"),
        ({"scales": np.ones((2, 5))}, "group: expected one that makes 5 groups"),
        ({"group": 8, "scales": np.ones((2, 4))}, "group: expected a multiple of 16, got 8"),
        ({"shape": (2, 5)}, "shape: expected one of"),
        ({"bits": 9}, "bits: expected 1 to 8, got 9"),
        ({"scales": np.array([1, np.nan])}, "scale: expected finite scales"),
    ],
)
def test_from_codes_refuses_what_does_not_fit(change: dict, message: str) -> None:
    arguments = {"codes": np.zeros((2, 32), int), "scales": np.ones(2), "bits": 4} | change
    with pytest.raises((ValueError, TypeError), match=message):
        pm.DenseArray.from_codes(**arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pm.compress(np.zeros(3), "int8"), "w: expected at least two dimensions"),
        (lambda: pm.compress(W, "int9"), "legal scheme"),
        (lambda: pm.quantize(W, "csr"), "scheme: expected a dense one"),
        (lambda: pm.sparsify(W, "int8"), "scheme: expected a sparse one"),
        (lambda: pm.compress(W.astype(complex), "int8"), "w: expected real numbers, got complex128"),
        (lambda: pm.compress(W, "int8", in_axis=2), "in_axis: expected 0 or 1, got 2"),
        (lambda: pm.compress(W, "int8", nonfinite="drop"), "nonfinite: expected one of"),
        (lambda: pm.compress(W, "int8", scale_dtype="int8"), "scale_dtype: expected float16 or float32"),
        (lambda: pm.compress(np.array([["a", "b"]]), "int8"), "w: expected real numbers"),
        (
            lambda: pm.linear(np.zeros((2, 63)), pm.compress(W, "int8")),
            r"x: expected shape \(\.\.\., 64\), got \(2, 63\)",
        ),
        (lambda: pm.linear(np.float32(1), pm.compress(W, "int8")), "x: expected shape"),
        (lambda: pm.linear(X * 1j, pm.compress(W, "int8")), "x: expected real numbers"),
        (lambda: pm.linear(X, pm.compress(W, "int8"), np.zeros(3)), r"bias: expected shape \(24,\), got \(3,\)"),
        (lambda: pm.linear(X, pm.compress(W, "int8"), activations="int9"), "activations: expected one of"),
        (lambda: pm.linear(X, pm.compress(W, "int8"), out=np.zeros((5, 24))), "out: expected float32 of shape"),
        (lambda: pm.linear(X, pm.compress(W, "int8"), out=np.zeros((5, 23), np.float32)), "out: expected float32"),
        (lambda: pm.linear(np.zeros((2, 3)), np.zeros((4, 5))), "x: expected shape"),
        (lambda: pm.explain(W), "w: expected a CompactArray, got ndarray"),
        (lambda: pm.explain(pm.compress(W, "int8"), batch=0), "batch: expected at least 1"),
        (lambda: pm.set_num_threads(0), "n: expected at least 1 thread"),
        (lambda: pm.from_parts("int8", (3,), {}), "shape: expected at least two dimensions"),
        (lambda: np.array(pm.compress(W, "int8"), copy=False), "copy: expected True or None"),
        (lambda: np.add(X, pm.compress(W, "int8")), "np.add: expected ndarrays, got compact weights"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_non_finite_weights_are_refused_with_their_index(scheme: str, value: float) -> None:
    bad = SPARSE.astype(np.float64)
    bad[3, 5] = value
    with pytest.raises(
        pm.NonFiniteError, match=r"w\['fc'\]: expected finite values, got -?(nan|inf) at index \(3, 5\)"
    ):
        pm.compress({"fc": bad}, scheme)
    zeroed = pm.compress(bad, scheme, nonfinite="zero")
    assert zeroed.to_dense()[3, 5] == 0 or "int" in scheme


def test_values_beyond_a_float_codec_are_refused() -> None:
    with pytest.raises(pm.NonFiniteError, match=r"float16 \(65504\), got 1e\+05 at index \(0, 0\)|got 100000"):
        pm.compress(np.full((1, 2), 1e5), "float16")
    with pytest.raises(pm.NonFiniteError, match="within bfloat16"):
        pm.compress(np.full((1, 2), np.finfo(np.float32).max), "bfloat16")


def test_explain_tells_the_kernel_and_what_would_be_faster() -> None:
    text = str(pm.explain(pm.compress(W, "int3"), batch=2, activations="float32"))
    assert "decode + BLAS" in text
    assert "activations='int16' has a kernel" in text
    explained = pm.explain(pm.compress(W, "int4-g32"), batch=3)
    assert explained.kernel == "matmul_int"
    assert explained.bytes_moved == pm.compress(W, "int4-g32").nbytes
    assert explained.seconds > 0


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_explain_expects_a_time_and_ranks_the_other_schemes(scheme: str, cold: bool) -> None:
    explained = pm.explain(pm.compress(SPARSE, scheme), batch=2, cold=cold)
    assert explained.expected is not None
    assert explained.expected.seconds > 0
    assert explained.expected.limit in ("memory", "arithmetic", "call")
    others = [a.expected.seconds for a in explained.alternatives]
    assert others == sorted(others)
    names = {a.scheme for a in explained.alternatives}
    assert scheme not in names
    assert names | {scheme} >= {"int4-g128", "int4-g32", "int8", "float16", "float32"}
    assert f"profile  {explained.profile}" in str(explained)
    assert "weights from DRAM" in str(explained) or not cold


def test_explain_says_plainly_when_numpy_would_win(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = default_profile("scalar")

    def at(gops: float) -> Profile:
        """A machine whose BLAS is this fast, and whose calls cost nothing."""
        rates = [replace(rate, gops={1: gops}) if rate.kernel == "BLAS" else rate for rate in shipped.rates]
        bandwidths = tuple(replace(b, gbytes=1e9) for b in shipped.bandwidths)
        return replace(shipped, rates=tuple(rates), bandwidths=bandwidths, overheads={})

    w = pm.compress(W, "int8")
    monkeypatch.setattr("pumice.explanation.load_profile", lambda: at(1e9))
    explained = pm.explain(w)
    assert explained.numpy_wins
    assert explained.fastest is not None
    assert explained.fastest.scheme == "float32"
    assert "NumPy would win" in str(explained)
    monkeypatch.setattr("pumice.explanation.load_profile", lambda: at(1e-9))
    explained = pm.explain(w)
    assert not explained.numpy_wins
    assert "NumPy would win" not in str(explained)


def test_explain_estimates_the_decoded_product_of_a_transposed_array() -> None:
    explained = pm.explain(pm.compress(W, "int8").T)
    assert explained.kernel == "decode + BLAS"
    assert explained.expected is not None
    assert "in_axis=0" in str(explained)


def test_options_hold_inside_their_block_only() -> None:
    w = pm.compress(W, "int8")
    default, exact = pm.linear(X, w), pm.linear(X, w, activations="float32")
    assert (default != exact).any()
    with pm.options(activations="float32"):
        assert (exact == X @ w.T).all()
        with pm.options(activations="int8"):
            assert (pm.linear(X, w, activations="int8") == X @ w.T).all()
        assert (exact == X @ w.T).all()
    assert (default == X @ w.T).all()
    before = pm.get_num_threads()
    with pm.options(threads=1):
        assert pm.get_num_threads() == 1
    assert pm.get_num_threads() == before
    with pytest.raises(ValueError, match="activations: expected one of"), pm.options(activations="int4"):
        pass
