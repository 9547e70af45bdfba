"""Pruning removes exactly what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import pumice as pm
from pumice.pruning.patterns import keep_n_of_m

W = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
small = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.integers(-3, 3).map(float))


def lowest_first(w: np.ndarray, count: int) -> np.ndarray:
    """The rule by itself: a stable sort of the magnitudes."""
    kept = np.ones(w.size, bool)
    kept[np.argsort(np.abs(w).reshape(-1), kind="stable")[:count]] = False
    return kept.reshape(w.shape)


@given(small, st.floats(0, 1, exclude_max=True))
def test_exactly_floor_of_sparsity_entries_go_the_lowest_index_first_on_ties(w: np.ndarray, sparsity: float) -> None:
    pruned, mask = pm.prune(w, sparsity, return_mask=True)
    expected = lowest_first(w, math.floor(sparsity * w.size))
    assert (mask == expected).all()
    assert (pruned == np.where(expected, w, 0)).all()


@given(small, st.floats(0, 1, exclude_max=True))
def test_by_row_each_row_loses_the_same_number(w: np.ndarray, sparsity: float) -> None:
    _, mask = pm.prune(w, sparsity, scope="row", return_mask=True)
    for row, kept in zip(w, mask, strict=True):
        assert (kept == lowest_first(row, math.floor(sparsity * row.size))).all()


@given(small, small, st.floats(0, 1, exclude_max=True))
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
    assert list(listed_masks) == [0]


def test_a_compact_array_is_decoded_first() -> None:
    compact = pm.compress(W, "int8")
    assert (pm.prune(compact, 0.5) == pm.prune(compact.to_dense(), 0.5)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "sparsity: expected it or threshold"),
        ({"sparsity": 0.5, "threshold": 1.0}, "sparsity: expected it or threshold"),
        ({"sparsity": 1}, r"sparsity: expected a number in \[0, 1\), got 1"),
        ({"sparsity": -0.1}, r"sparsity: expected a number in \[0, 1\), got -0.1"),
        ({"sparsity": math.nan}, r"sparsity: expected a number in \[0, 1\), got nan"),
        ({"threshold": -1.0}, "threshold: expected a finite number >= 0"),
        ({"sparsity": 0.5, "method": "magic"}, "method: expected one of magnitude"),
        ({"sparsity": 0.5, "scope": "block"}, "scope: expected one of layer, row, global"),
        ({"pattern": "2:4", "sparsity": 0.7}, "sparsity: expected None or 0.5, which 2:4 fixes, got 0.7"),
        ({"pattern": "2:4", "threshold": 0.7}, "pattern: expected neither threshold nor scope with 2:4"),
        ({"pattern": "2:4", "scope": "row"}, "pattern: expected neither threshold nor scope with 2:4"),
        ({"pattern": "2:4"}, "w: expected columns in multiples of 4 for 2:4, got 10"),
        ({"pattern": "bsr-4x4"}, "sparsity: expected it or threshold"),
        ({"pattern": "csr", "sparsity": 0.5}, "pattern: expected a layout with one, such as '2:4' or 'bsr-16x4'"),
        ({"pattern": "4x4", "sparsity": 0.5}, "'4x4' is neither a layout"),
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


# Patterns.

NM = ("2:4", "4:8", "1:4", "8:16")
blocks = st.tuples(st.integers(1, 4), st.integers(1, 4))


@pytest.mark.parametrize("pattern", NM)
def test_the_n_highest_of_every_m_stay_the_lowest_index_goes_first_on_ties(pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    w = np.random.default_rng(1).integers(-3, 4, (5, 2, 16)).astype(np.float32)  # ties
    pruned, mask = pm.prune(w, pattern=pattern, return_mask=True)
    for group, kept in zip(w.reshape(-1, m), mask.reshape(-1, m), strict=True):
        removed = np.argsort(np.abs(group), kind="stable")[: m - n]
        assert set(np.flatnonzero(~kept)) == set(removed)
    assert (pruned == np.where(mask, w, 0)).all()
    assert (pm.prune(w, 1 - n / m, pattern=pattern + "+float32") == pruned).all()


@pytest.mark.parametrize("m", [1, 2, 3, 31, 32, 33, 128])
def test_groups_of_any_size_keep_what_a_stable_sort_says(m: int) -> None:
    scores = np.random.default_rng(m).integers(0, 6, (300, m)).astype(np.float32)  # ties
    order = np.argsort(scores, axis=1, kind="stable")
    for n in {0, 1, m // 2, m}:
        expected = np.ones(scores.shape, bool)
        np.put_along_axis(expected, order[:, : m - n], False, axis=1)
        np.testing.assert_array_equal(keep_n_of_m(scores, n, m), expected)


def test_a_share_may_be_written_as_a_fraction_where_a_pattern_fixes_it() -> None:
    w = np.random.default_rng(6).standard_normal((4, 9))
    np.testing.assert_array_equal(pm.prune(w, 2 / 3, pattern="1:3"), pm.prune(w, pattern="1:3"))  # not 1 - 1 / 3


@given(small, blocks, st.floats(0, 1, exclude_max=True))
def test_whole_blocks_go_exactly_floor_of_the_share_those_of_least_energy(
    w: np.ndarray, block: tuple[int, int], sparsity: float
) -> None:
    (rows, cols), (height, width) = w.shape, block
    _, mask = pm.prune(w, sparsity, pattern=f"bsr-{height}x{width}", return_mask=True)
    cells = [(slice(i, i + height), slice(j, j + width)) for i in range(0, rows, height) for j in range(0, cols, width)]
    order = np.argsort([np.square(w[cell], dtype=float).sum() for cell in cells], kind="stable")
    removed = set(order[: math.floor(sparsity * len(cells))].tolist())
    for k, cell in enumerate(cells):
        assert (mask[cell] == (k not in removed)).all()


def test_a_threshold_removes_blocks_whose_root_mean_square_lies_below_it() -> None:
    w = np.array([[3.0, 4.0, 1.0, 1.0, 2.0], [0.0, 0.0, 1.0, 1.0, 2.0]])  # 2.5, 1 and a ragged block of 2
    kept = pm.prune(w, threshold=2.0, pattern="bsr-2x2") != 0
    assert kept.any(axis=0).tolist() == [True, True, False, False, True]


def test_scopes_count_blocks() -> None:
    w = np.random.default_rng(2).standard_normal((8, 12)).astype(np.float32)
    mask = pm.prune(w, 0.5, pattern="bsr-4x3", scope="row", return_mask=True)[1]
    assert (mask[::4, ::3].sum(axis=1) == 2).all()
    state = {"a": w, "b": 10 * w, "bias": w[0]}
    pruned, masks = pm.prune(state, 0.5, pattern="bsr-4x3", scope="global", return_mask=True)
    assert not masks["a"].any()
    assert masks["b"].all()
    assert pruned["bias"] is state["bias"]


@pytest.mark.parametrize("pattern", ["bsr-16x4", "bsr-8x1", "bsr-32x32", "bsr-16x4+int8"])
def test_what_a_block_pattern_leaves_is_stored_in_full_blocks(pattern: str) -> None:
    w = np.random.default_rng(3).standard_normal((128, 96)).astype(np.float32)
    stored = pm.compress(pm.prune(w, 0.75, pattern=pattern), pattern)
    assert stored.density == 0.25
    assert (stored.data != 0).mean() > 0.99  # int8 rounds a few to 0


@pytest.mark.parametrize("pattern", NM)
def test_what_n_of_m_leaves_is_stored_as_that(pattern: str) -> None:
    for values in ("", "+int8", "+int4-g64"):
        w = pm.prune(np.random.default_rng(4).standard_normal((6, 64)), pattern=pattern)
        assert pm.compress(w, pattern + values).scheme == pattern + values


@pytest.mark.parametrize(
    ("pattern", "sparsity", "magnitude", "energy"),  # closed forms and simulations, research/sparse.md 8.1
    [
        (None, 0.5, 0.796, 0.928), ("8:16", None, 0.782, 0.912), ("4:8", None, 0.768, 0.897),
        ("2:4", None, 0.744, 0.868), ("bsr-1x4", 0.5, 0.645, 0.763), ("bsr-4x1", 0.5, 0.645, 0.763),
        ("bsr-16x1", 0.5, 0.572, 0.639), ("bsr-8x4", 0.5, 0.550, 0.599), ("bsr-32x32", 0.5, 0.509, 0.518),
        (None, 0.8, 0.440, 0.650), ("bsr-16x1", 0.8, 0.251, 0.307), (None, 0.9, 0.258, 0.439),
        ("1:4", None, 0.459, 0.617),
    ],
)  # fmt: skip
def test_a_normal_matrix_keeps_as_much_as_theory_says(
    pattern: str | None, sparsity: float | None, magnitude: float, energy: float
) -> None:
    w = np.random.default_rng(5).standard_normal((512, 1024))
    pruned = pm.prune(w, sparsity, pattern=pattern)
    assert np.abs(pruned).sum() / np.abs(w).sum() == pytest.approx(magnitude, abs=0.01)
    assert (pruned**2).sum() / (w**2).sum() == pytest.approx(energy, abs=0.01)


def test_of_uniform_magnitudes_half_by_size_keeps_three_quarters_and_two_of_four_seven_tenths() -> None:
    """Means of order statistics: the upper half of [0, 1] has 3/4 of its sum; of four (3/5 + 4/5) / 2."""
    w = np.random.default_rng(7).random((512, 1024))
    assert pm.prune(w, 0.5).sum() / w.sum() == pytest.approx(0.75, abs=0.003)
    assert pm.prune(w, pattern="2:4").sum() / w.sum() == pytest.approx(0.70, abs=0.003)


def test_the_freer_the_pattern_the_more_magnitude_stays() -> None:
    w = np.random.default_rng(8).standard_normal((512, 1024))
    patterns = (None, "8:16", "4:8", "2:4", "bsr-1x4", "bsr-16x1", "bsr-8x4", "bsr-32x32")
    kept = [float(np.abs(pm.prune(w, 0.5, pattern=pattern)).sum()) for pattern in patterns]
    assert kept == sorted(kept, reverse=True)
