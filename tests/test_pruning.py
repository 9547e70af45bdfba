"""Pruning removes exactly what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import pumice as pm

W = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
small = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.integers(-3, 3).map(float))


def lowest_first(w: np.ndarray, count: int) -> np.ndarray:
    """The rule by itself: a stable sort of the magnitudes."""
    kept = np.ones(w.size, bool)
    kept[np.argsort(np.abs(w).reshape(-1), kind="stable")[:count]] = False
    return kept.reshape(w.shape)


@given(small, st.floats(0, 1))
def test_exactly_floor_of_sparsity_entries_go_the_lowest_index_first_on_ties(w: np.ndarray, sparsity: float) -> None:
    pruned, mask = pm.prune(w, sparsity, return_mask=True)
    expected = lowest_first(w, math.floor(sparsity * w.size))
    assert (mask == expected).all()
    assert (pruned == np.where(expected, w, 0)).all()


@given(small, st.floats(0, 1))
def test_by_row_each_row_loses_the_same_number(w: np.ndarray, sparsity: float) -> None:
    _, mask = pm.prune(w, sparsity, scope="row", return_mask=True)
    for row, kept in zip(w, mask, strict=True):
        assert (kept == lowest_first(row, math.floor(sparsity * row.size))).all()


@given(small, small, st.floats(0, 1))
def test_globally_the_mapping_is_one_pool(a: np.ndarray, b: np.ndarray, sparsity: float) -> None:
    _, masks = pm.prune({"a": a, "b": b}, sparsity, scope="global", return_mask=True)
    pool = np.concatenate([a.reshape(-1), b.reshape(-1)])
    expected = lowest_first(pool, math.floor(sparsity * pool.size))
    assert (np.concatenate([masks["a"].reshape(-1), masks["b"].reshape(-1)]) == expected).all()


def test_a_threshold_removes_what_lies_below_it_and_keeps_what_equals_it() -> None:
    w = np.array([[0.5, -0.5, 0.49, -2.0]])
    assert (pm.prune(w, threshold=0.5) == [[0.5, -0.5, 0, -2.0]]).all()


def test_the_input_is_never_modified_and_the_dtype_stays() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        w = W.astype(dtype)
        before = w.copy()
        pruned = pm.prune(w, 0.5)
        assert pruned.dtype == dtype
        assert (w == before).all()
        assert not np.shares_memory(w, pruned)


def test_members_that_are_no_weights_pass_through_as_the_same_object() -> None:
    state = {"w": W, "bias": np.ones(3, np.float32), "ids": np.arange(4).reshape(2, 2), "on": np.ones((2, 2), bool)}
    pruned, masks = pm.prune(state, 0.5, return_mask=True)
    assert list(pruned) == list(state)
    assert all(pruned[name] is state[name] for name in ("bias", "ids", "on"))
    assert list(masks) == ["w"]
    listed, listed_masks = pm.prune(list(state.values()), 0.5, return_mask=True)
    assert isinstance(listed, list)
    assert (listed[0] == pruned["w"]).all()
    assert [m is None for m in listed_masks] == [False, True, True, True]


def test_a_compact_array_is_decoded_first() -> None:
    compact = pm.compress(W, "int8")
    assert (pm.prune(compact, 0.5) == pm.prune(compact.to_dense(), 0.5)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "sparsity: expected it or threshold"),
        ({"sparsity": 0.5, "threshold": 1.0}, "sparsity: expected it or threshold"),
        ({"sparsity": 1.5}, r"sparsity: expected a number in \[0, 1\], got 1.5"),
        ({"sparsity": math.nan}, r"sparsity: expected a number in \[0, 1\]"),
        ({"threshold": -1.0}, "threshold: expected a finite number >= 0"),
        ({"sparsity": 0.5, "method": "magic"}, "method: expected one of magnitude"),
        ({"sparsity": 0.5, "scope": "block"}, "scope: expected one of layer, row, global"),
    ],
)
def test_arguments_that_make_no_sense_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pm.prune(W, **arguments)


def test_non_finite_weights_are_named_with_their_member_and_index() -> None:
    bad = W.copy()
    bad[2, 3] = np.nan
    with pytest.raises(pm.NonFiniteError, match=r"w\['fc'\]: expected finite values, got nan at index \(2, 3\)"):
        pm.prune({"fc": bad}, 0.5)
