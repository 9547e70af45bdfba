"""``a & b``: two arrays whose weights and products are added."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import pumice as pm
from pumice import reference
from pumice.checkpoint.compressed_tensors import compressed_tensors_config
from pumice.layouts.sums import find_outliers
from pumice.scheme import Scheme

RNG = np.random.default_rng(0)
W = RNG.standard_normal((48, 256)).astype(np.float32)
W[RNG.random(W.shape) < 0.004] *= 20
X = RNG.standard_normal((5, 256)).astype(np.float32)
DENSE, OUTLIERS = pm.compress(W, "int4-g128"), pm.compress(np.where(np.abs(W) > 4, W, 0), "csr")
SCHEMES = ["int4-g128&csr", "int4&csr+int8", "int8-min&bsr-4x4", "float16&csr", "int4-g128&bitmask+int8"]


def test_weights_and_products_are_the_sums_of_both_the_bias_counts_once() -> None:
    both, bias = DENSE & OUTLIERS, np.arange(48.0)
    assert isinstance(both, pm.SumArray)
    np.testing.assert_array_equal(both.to_dense(), DENSE.to_dense() + OUTLIERS.to_dense())
    np.testing.assert_array_equal(X @ both.T, X @ DENSE.T + X @ OUTLIERS.T)
    np.testing.assert_array_equal(both @ X.T, (X @ both.T).T)
    for activations in ("int16", "int8", "float32"):
        y = pm.linear(X, both, bias, activations=activations)
        first, second = DENSE.linear(X, bias, activations), OUTLIERS.linear(X, None, activations)
        np.testing.assert_array_equal(y, first + second)
    np.testing.assert_allclose(RNG.standard_normal((2, 48)) @ both, 0, atol=1e3)
    assert (X[0] @ both.T).shape == (48,)
    assert (both.nbytes, both.nnz) == (DENSE.nbytes + OUTLIERS.nbytes, DENSE.nnz + OUTLIERS.nnz)


def test_out_may_be_x_itself() -> None:
    square = pm.compress(W[:, :48], "int8&csr")
    x = RNG.standard_normal((48, 48)).astype(np.float32)
    expected = x @ square.T
    assert square.linear(x, out=x) is x
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sum_is_an_array_as_any_other(scheme: str, tmp_path: Path) -> None:
    w = pm.compress(W, scheme)
    assert w.scheme == scheme
    assert repr(w).startswith(f"<SumArray {scheme} (48, 256) {w.nbytes} bytes")
    dense = w.to_dense()
    parts = w.parts()
    assert w.nbytes == sum(part.nbytes for part in parts.values())
    again = pm.from_parts(scheme, w.shape, parts)
    blob = io.BytesIO()
    pm.save(blob, {"fc.weight": w, "t": w.T})
    loaded = pm.load(blob.getvalue())
    assert loaded.verify().ok
    for other in (again, pickle.loads(pickle.dumps(w, 5)), copy.deepcopy(w), loaded["fc.weight"], loaded["t"].T):
        assert (type(other), other.scheme, other.shape) == (type(w), scheme, w.shape)
        np.testing.assert_array_equal(other.to_dense(), dense)
        np.testing.assert_array_equal(X @ other.T, X @ w.T)
    np.testing.assert_array_equal(w.take([3, 3, -1]), dense[[3, 3, -1]])
    np.testing.assert_array_equal(w[16:32].to_dense(), dense[16:32])
    np.testing.assert_array_equal(w.T.to_dense(), dense.T)
    np.testing.assert_array_equal(pm.concatenate([w[:16], w[16:]]).to_dense(), dense)
    w.prepack()
    np.testing.assert_array_equal(w.keep_canonical().to_dense(), dense)


def test_two_transposed_arrays_add_up_to_a_transposed_one() -> None:
    both = DENSE.T & OUTLIERS.T
    assert (both.shape, both.scheme) == ((256, 48), "int4-g128&csr")
    np.testing.assert_array_equal(X @ both, X @ (DENSE & OUTLIERS).T)


def test_what_does_not_add_up_is_named() -> None:
    with pytest.raises(ValueError, match=r"&: expected two arrays of one shape, got \(48, 256\) and \(16, 256\)"):
        DENSE & OUTLIERS[:16]
    with pytest.raises(TypeError, match="&: expected two arrays or two transposed ones"):
        pm.compress(W[:, :48], "int8") & pm.compress(W[:, :48], "csr").T
    with pytest.raises(pm.SchemeError, match="a sum of two schemes, got the sum int4-g128&csr as one of them"):
        (DENSE & OUTLIERS) & OUTLIERS
    with pytest.raises(pm.SchemeError, match="a sum has two terms, not 3"):
        Scheme.parse("int4&csr&csr")
    with pytest.raises(
        pm.SchemeError, match="expected a dense and a sparse term to split weights between, got csr&int4"
    ):
        pm.compress(W, "csr&int4")
    with pytest.raises(ValueError, match=r"outliers: expected a number in \[0, 1\], got 2"):
        pm.compress(W, "int4&csr", outliers=2)
    with pytest.raises(ValueError, match="outliers: expected None for int4"):
        pm.compress(W, "int4", outliers=0.1)
    with pytest.raises(TypeError):
        DENSE & W


def test_exactly_the_floor_of_the_share_of_a_band_is_split_off_the_largest_beside_their_group() -> None:
    w = pm.compress(W, "int4-g128&csr", outliers=0.01)
    rms = np.sqrt(np.square(W, dtype=np.float64).reshape(48, 2, 128).mean(axis=2)).repeat(128, axis=1)
    stored = w.second.to_dense() != 0
    for band in (slice(0, 32), slice(32, 48)):
        score = (np.abs(W) / rms)[band]
        count = int(0.01 * score.size)
        assert stored[band].sum() == count
        assert set(np.flatnonzero(stored[band])) == set(np.argsort(-score, axis=None, kind="stable")[:count])
    np.testing.assert_array_equal(w.to_dense()[stored], W[stored])  # the first term is 0 there


@pytest.mark.parametrize("scheme", [*SCHEMES, "int8-g16-asym&csr", "float32&csr"])
def test_production_agrees_with_the_reference(scheme: str) -> None:
    w, parsed = np.ascontiguousarray(W[:40, :150]), Scheme.parse(scheme)
    parts, array = reference.encode(w.copy(), parsed), pm.compress(w, scheme)
    assert list(array.parts()) == list(parts)
    for name, part in array.parts().items():
        np.testing.assert_array_equal(part, parts[name], strict=True)
    np.testing.assert_array_equal(array.to_dense(), reference.decode(parts, parsed, w.shape), strict=True)
    x = np.ascontiguousarray(X[:, :150])
    y = array.linear(x, np.arange(40.0))
    np.testing.assert_allclose(y, reference.linear(x, parts, parsed, w.shape, np.arange(40.0)), atol=1e-3)
    if array.second.scheme.endswith("int8"):  # both are fixed to the bit
        np.testing.assert_array_equal(y, reference.linear(x, parts, parsed, w.shape, np.arange(40, dtype=np.float32)))


def test_ties_go_by_their_index_and_zeros_are_no_outliers() -> None:
    w = np.array([[2, 0, 2, 2], [0, 0, 0, 0]], np.float32)
    assert find_outliers(w, None, 0.25).tolist() == [[True, False, True, False], [False] * 4]
    assert find_outliers(w, None, 1).tolist() == (w != 0).tolist()
    assert not find_outliers(w[:0], None, 0.5).size


def test_outliers_make_the_error_smaller() -> None:
    def error(scheme: str, **options: float) -> float:
        return float(np.linalg.norm(pm.compress(W, scheme, **options).to_dense() - W) / np.linalg.norm(W))

    assert error("int4-g128&csr", outliers=0.005) < 0.5 * error("int4-g128")
    assert error("int4-g128&csr", outliers=0.0) == error("int4-g128")


def test_explain_knows_both_kernels_and_what_they_cost() -> None:
    both = DENSE & OUTLIERS
    explained = pm.explain(both)
    assert explained.kernel == f"{DENSE.kernel(1, 'int16')} + {OUTLIERS.kernel(1, 'int16')}"
    terms = [pm.explain(term).expected for term in (DENSE, OUTLIERS)]
    assert explained.expected.call == pytest.approx(sum(term.call for term in terms))
    assert explained.expected.memory == pytest.approx(sum(term.memory for term in terms))


def test_a_checkpoint_is_converted_to_sums_chunk_by_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pumice.conversion.plan.CHUNK_BYTES", 4 * 256 * 32)
    (tmp_path / "a").mkdir()
    pm.save(tmp_path / "a" / "model.safetensors", {"fc.weight": W})
    (tmp_path / "a" / "config.json").write_text("{}")
    pm.convert(tmp_path / "a", tmp_path / "b", "int4-g128 & csr")
    converted = pm.load(tmp_path / "b")["fc.weight"]
    for name, part in pm.compress(W, "int4-g128&csr").parts().items():
        np.testing.assert_array_equal(converted.parts()[name], part, strict=True)
    # Loaders of compressed-tensors would read the first term only, so they are not invited.
    assert "quantization_config" not in json.loads((tmp_path / "b" / "config.json").read_text())
    assert compressed_tensors_config({"fc.weight": pm.load(tmp_path / "b").info("fc.weight")}) is None


def test_hostile_parts_are_refused() -> None:
    parts = pm.compress(W, "int4-g128&csr").parts()
    for wrong in (
        {k: v for k, v in parts.items() if k != "and_indptr"},
        {k: v for k, v in parts.items() if k != "scale"},
        parts | {"and_more": parts["scale"]},
        parts | {"and_indptr": parts["and_indptr"][::-1]},
        parts | {"and_shape": np.array([48, 255])},
    ):
        with pytest.raises(pm.FormatError):
            pm.from_parts("int4-g128&csr", (48, 256), wrong)
