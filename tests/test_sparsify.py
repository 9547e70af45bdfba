"""From zeros, wherever they come from, to a sparse scheme."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import pumice as pm

RNG = np.random.default_rng(0)
W = RNG.standard_normal((32, 48)).astype(np.float32)
HOLED = np.where(RNG.random(W.shape) < 0.3, W, 0)


def test_zeros_that_are_there_are_not_stored() -> None:
    for w in (HOLED, sp.csc_array(HOLED), pm.compress(HOLED, "float32")):
        stored = pm.sparsify(w, "csr")
        assert stored.nnz == np.count_nonzero(HOLED)
        np.testing.assert_array_equal(stored.to_dense(), HOLED)


@pytest.mark.parametrize("w", [W, sp.csr_array(HOLED)], ids=["dense", "scipy"])
def test_sparsity_and_threshold_prune_first(w: object) -> None:
    for arguments in ({"sparsity": 0.75}, {"threshold": 0.5}, {"sparsity": 0.5, "scope": "row"}):
        stored = pm.sparsify(w, "csr", **arguments)
        np.testing.assert_array_equal(stored.to_dense(), pm.prune(w, **arguments))


def test_pruning_follows_the_pattern_of_the_layout() -> None:
    stored = pm.sparsify(W, "bsr-16x4", 0.75)
    assert stored.density == 0.25
    np.testing.assert_array_equal(stored.to_dense(), pm.prune(W, 0.75, pattern="bsr-16x4"))
    turned = pm.sparsify(W, "bsr-16x4", 0.75, in_axis=0)
    assert turned.density == 0.25
    np.testing.assert_array_equal(turned.to_dense(), pm.prune(W.T, 0.75, pattern="bsr-16x4").T)


def test_collections_keep_their_kind_and_what_is_no_weight() -> None:
    state = {"w": W, "bias": W[0], "ids": np.arange(4).reshape(2, 2)}
    stored = pm.sparsify(state, "csr", 0.9)
    assert list(stored) == list(state)
    assert stored["bias"] is state["bias"]
    assert stored["ids"] is state["ids"]
    assert isinstance(pm.sparsify(list(state.values()), "csr"), list)
    pooled = pm.sparsify({"a": W, "b": 100 * W}, "csr", 0.5, scope="global")
    assert (pooled["a"].density, pooled["b"].density) == (pytest.approx(0.0, abs=0.02), pytest.approx(1.0, abs=0.02))


def test_torch_pairs_become_the_weight_that_its_forward_computes() -> None:
    mask = RNG.random(W.shape) < 0.2
    state = {
        "fc.bias_orig": W[0], "fc.weight_orig": W, "fc.bias_mask": mask[0].astype(np.float32),
        "fc.weight_mask": mask.astype(np.float32), "lone_orig": W, "lone_two_mask": W,
    }  # fmt: skip
    stored = pm.sparsify(state, "csr")
    assert list(stored) == ["fc.bias", "fc.weight", "lone_orig", "lone_two_mask"]
    np.testing.assert_array_equal(stored["fc.bias"], W[0] * mask[0])
    np.testing.assert_array_equal(stored["fc.weight"].to_dense(), W * mask)
    assert stored["fc.weight"].nnz == mask.sum()


def test_pairs_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"w\['a_mask'\]: expected shape \(32, 48\) as w\['a_orig'\], got \(48,\)"):
        pm.sparsify({"a_orig": W, "a_mask": W[0]}, "csr")
    with pytest.raises(ValueError, match="w: expected 'a' or the pair 'a_orig' and 'a_mask', got both"):
        pm.sparsify({"a": W, "a_orig": W, "a_mask": W}, "csr")


def test_a_dense_scheme_is_refused() -> None:
    with pytest.raises(pm.SchemeError, match="scheme: expected a sparse one such as 'csr', got 'int8'"):
        pm.sparsify(W, "int8", 0.5)
