"""Moments are those of the data, however it came, and survive files."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import threadpoolctl

import pumice as pm
from pumice.statistics import CHUNK_ROWS, moments_of

U = 2.0**-24
GAMMA = CHUNK_ROWS * U / (1 - CHUNK_ROWS * U)
RNG = np.random.default_rng(0)
X = (RNG.standard_normal((1000, 70)) * RNG.uniform(0.01, 30, 70)).astype(np.float32)


def moments(*parts: np.ndarray) -> pm.Moments:
    found = pm.Moments(parts[0].shape[-1])
    for part in parts:
        found.update(part)
    return found


def exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of x^T x, and the bound that the docstring states."""
    wide = x.astype(np.float64)
    return wide.T @ wide / len(x), (GAMMA + U) * (np.abs(wide).T @ np.abs(wide)) / len(x)


def test_the_mean_is_within_the_stated_bound() -> None:
    mean, bound = exact(X)
    found = moments(X).mean()
    assert (np.abs(found - mean) <= bound).all()
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(moments(X).norms(), np.sqrt(mean.diagonal()), rtol=GAMMA + 2 * U)


def test_more_features_than_a_panel_and_leading_dimensions() -> None:
    x = RNG.standard_normal((3, 5, 1100)).astype(np.float32)
    mean, bound = exact(x.reshape(15, 1100))
    assert (np.abs(moments(x).mean() - mean) <= bound).all()


def test_merging_in_any_order_stays_within_the_bound_and_counts_all_rows() -> None:
    pieces = np.split(X, [100, 400, 401])
    mean, bound = exact(X)
    for order in itertools.permutations(pieces):
        merged = pm.Moments(70)
        for piece in order:
            merged.merge(moments(piece))
        assert merged.count == 1000
        assert (np.abs(merged.mean() - mean) <= bound).all()


def test_merging_nothing_changes_nothing() -> None:
    one = moments(X)
    one.merge(pm.Moments(70))
    np.testing.assert_array_equal(one.mean(), moments(X).mean())


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    wide = RNG.standard_normal((600, 700)).astype(np.float32)
    found = []
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads):
            found.append(moments(wide).mean())
    np.testing.assert_array_equal(*found)


def test_packed_moments_come_back_to_the_bit_and_can_go_on() -> None:
    whole = moments(X[:600])
    back = pm.Moments.unpack(whole.pack(), whole.count)
    np.testing.assert_array_equal(back.mean(), whole.mean())
    np.testing.assert_array_equal(back.norms(), whole.norms())
    np.testing.assert_array_equal(back.pack(), whole.pack())
    assert back.pack().size == 70 * 71 // 2
    back._opened()  # as an update does first
    np.testing.assert_array_equal(back.mean(), whole.mean())
    back.update(X[600:])
    mean, bound = exact(X)
    assert back.count == 1000
    assert (np.abs(back.mean() - mean) <= 2 * bound).all()  # the mean was rounded in between


def test_nothing_is_added_by_an_update_that_is_refused() -> None:
    some = moments(X)
    before = some.mean()
    bad = X.copy()
    bad[999, 3] = np.inf
    with pytest.raises(pm.NonFiniteError, match=r"x: expected finite values up to 2\^60, got inf at index \(999, 3\)"):
        some.update(bad)
    assert some.count == 1000
    np.testing.assert_array_equal(some.mean(), before)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 71)), r"x: expected shape \(..., 70\), got \(2, 71\)"),
        (np.float32(1), r"x: expected shape \(..., 70\), got \(\)"),
        (np.ones((0, 70)), r"x: expected at least one row, got shape \(0, 70\)"),
        (np.full((2, 70), np.nan), r"x: expected finite values up to 2\^60, got nan at index \(0, 0\)"),
        (
            np.full((2, 70), -(2.0**61)),
            r"x: expected finite values up to 2\^60, got -2.305843009213694e\+18 at index \(0, 0\)",
        ),
        (np.full((2, 70), "a"), "x: expected real numbers"),
    ],
)
def test_inputs_that_make_no_sense_are_named(x: np.ndarray, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        moments(X).update(x)


def test_before_the_first_input_there_is_no_mean() -> None:
    for ask in (pm.Moments(3).mean, pm.Moments(3).norms, pm.Moments(3).pack):
        with pytest.raises(ValueError, match="stats: expected at least one row of inputs, got none"):
            ask()
    with pytest.raises(ValueError, match="features: expected at least 1, got 0"):
        pm.Moments(0)


def test_layers_that_share_inputs_share_moments_also_in_files() -> None:
    stats = pm.CalibrationStats()
    stats.update(("q", "k"), X)
    stats.update("v.weight", X[:, :30])
    stats.update(("q", "k"), X)
    assert stats["q"] is stats["k"] and stats["q"].count == 2000
    assert stats["q.weight"] is stats["q"] and stats["v"] is stats["v.weight"]
    file = io.BytesIO()
    pm.save(file, stats.pack())
    assert file.tell() < 4 * (70 * 71 // 2 + 30 * 31 // 2) + 2000
    back = pm.CalibrationStats.unpack(pm.load(file.getvalue()))
    assert list(back) == ["q", "v.weight", "k"] or set(back) == {"q", "k", "v.weight"}
    assert back["q"] is back["k"]
    np.testing.assert_array_equal(back["v"].mean(), stats["v"].mean())


def test_stats_of_parts_of_the_data_merge() -> None:
    first, second, whole = pm.CalibrationStats(), pm.CalibrationStats(), pm.CalibrationStats()
    first.update(("q", "k"), X[:512])
    second.update(("q", "k"), X[512:])
    second.update("o", X)
    whole.update("q", X)
    first.merge(second)
    assert first["q"].count == 1000 and first["q"] is first["k"] and first["o"].count == 1000
    np.testing.assert_array_equal(first["q"].mean(), whole["q"].mean())  # cut where a chunk ends
    assert second["q"].count == 488


def test_stats_that_do_not_fit_together_are_refused() -> None:
    stats, other = pm.CalibrationStats(), pm.CalibrationStats()
    stats.update(("q", "k"), X)
    for names in ("q", ("q", "k", "v")):
        if names == "q":
            stats.update("q", X)  # counts for both
            continue
        with pytest.raises(ValueError, match="name: expected layers that always share their inputs"):
            stats.update(names, X)
    with pytest.raises(ValueError, match=r"q: x: expected shape \(..., 70\), got \(2, 3\)"):
        stats.update("q", np.ones((2, 3)))
    with pytest.raises(ValueError, match="name: expected at least one, got none"):
        stats.update((), X)
    other.update("q", X[:, :3])
    with pytest.raises(ValueError, match="q: other: expected 70 features, got 3"):
        stats.merge(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q.mean": np.ones(5, np.float32)}, "a float32 triangle"),
        ({"q.mean": np.ones(6)}, "a float32 triangle"),
        ({"q.mean": np.full(6, np.nan, np.float32)}, "finite moments"),
        ({"q.count": np.array([0])}, "a count of at least 1, got 0"),
        ({"q.count": np.array([1.0])}, r"int64 of shape \(1,\)"),
        ({"w": np.ones(3)}, "NAME.mean and NAME.count"),
        ({"aliases": np.frombuffer(b"{", np.uint8)}, "expected JSON"),
        ({"aliases": np.frombuffer(b'{"k": "nobody"}', np.uint8)}, "other names of entries"),
        ({"aliases": np.frombuffer(b"[1]", np.uint8)}, "an object of strings"),
    ],
)
def test_arrays_that_are_no_stats_are_refused(change: dict, message: str) -> None:
    stats = pm.CalibrationStats()
    stats.update("q", X[:, :3])
    with pytest.raises(pm.FormatError, match=message):
        pm.CalibrationStats.unpack(stats.pack() | change)


def test_what_users_give_as_stats_is_checked() -> None:
    stats = pm.CalibrationStats()
    stats.update("q", X)
    assert moments_of("w", None, None, 70) is None
    assert moments_of("w['q']", "q", stats, 70) is stats["q"]
    for key, given, message in (
        ("q", stats["q"], "stats: expected a mapping of Moments for a collection"),
        (None, stats, r"stats: expected Moments for w, such as stats\['name'\], got CalibrationStats"),
        (None, np.eye(70), "stats: expected Moments for w"),
        ("v", stats, "stats: expected moments of w, got those of q"),
        ("q", {"q": np.eye(70)}, r"stats\['q'\]: expected Moments, got ndarray"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            moments_of("w", key, given, 70)
    with pytest.raises(ValueError, match="stats: expected 5 features as w has columns, got 70"):
        moments_of("w", None, stats["q"], 5)
    with pytest.raises(ValueError, match="at least one row of inputs"):
        moments_of("w", None, pm.Moments(5), 5)
