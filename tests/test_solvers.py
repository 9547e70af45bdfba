"""Wanda, SparseGPT and random pruning: orderings, definitions computed another way, bad inputs."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pumice as pm
from pumice.pruning import PRUNERS
from tests.layers import KINDS, correlated, degenerate, moments_of, output_error

X = correlated(2048, 256)
W = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
STATS = moments_of(X)
UNIT = moments_of(16 * np.eye(256))  # H = I


def pruned(method: str, **arguments: object) -> np.ndarray:
    return pm.prune(W, method=method, stats=STATS, **arguments)


# Orderings of the layer's output error.


@pytest.mark.parametrize(
    "arguments",
    [{"sparsity": s} for s in (0.5, 0.7, 0.9)]
    + [{"pattern": p} for p in ("2:4", "4:8")]
    + [{"sparsity": 0.5, "pattern": p} for p in ("bsr-16x4", "bsr-1x8")],
)
def test_sparsegpt_errs_less_than_wanda_less_than_magnitude_less_than_chance(arguments: dict) -> None:
    random, magnitude, wanda, sparsegpt = (
        output_error(W, pruned(method, **arguments), X) for method in ("random", "magnitude", "wanda", "sparsegpt")
    )
    assert sparsegpt < wanda < 0.75 * magnitude
    assert magnitude < random


@pytest.mark.parametrize(
    ("arguments", "errors"),  # of magnitude, Wanda, SparseGPT: research/sparse.md 8.1
    [
        ({"sparsity": 0.5}, (0.265, 0.146, 0.122)), ({"sparsity": 0.7}, (0.462, 0.254, 0.229)),
        ({"sparsity": 0.9}, (0.751, 0.412, 0.400)), ({"pattern": "2:4"}, (None, 0.199, 0.161)),
        ({"pattern": "4:8"}, (None, 0.174, 0.140)),
    ],
)  # fmt: skip
def test_errors_are_those_of_an_independent_simulation(arguments: dict, errors: tuple) -> None:
    w = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
    for method, expected in zip(("magnitude", "wanda", "sparsegpt"), errors, strict=True):
        if expected is not None:
            found = output_error(w, pm.prune(w, method=method, stats=STATS, **arguments), X)
            assert found == pytest.approx(expected, abs=0.025)  # another draw of inputs and weights


def lost(t: float) -> float:
    """Of the sum of squares of normal numbers, the share of those below t in magnitude."""
    return math.erf(t / math.sqrt(2)) - t * math.sqrt(2 / math.pi) * math.exp(-t * t / 2)


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
def test_for_independent_inputs_errors_are_what_integrals_say(sparsity: float) -> None:
    """Magnitude cuts all columns at t, Wanda those of inputs ten times as large at t / 10."""
    sizes = np.where(np.arange(256) % 43 == 0, 10.0, 1.0)  # six of them
    stats, w = moments_of(16 * np.diag(sizes)), np.random.default_rng(2).standard_normal((2048, 256))
    share = np.mean(sizes > 1)

    def removed(t: float) -> float:
        return (1 - share) * math.erf(t / math.sqrt(2)) + share * math.erf(t / 10 / math.sqrt(2))

    cut = float(np.interp(sparsity, [removed(t) for t in np.linspace(0, 4, 4001)], np.linspace(0, 4, 4001)))
    alone = float(np.interp(sparsity, [math.erf(t / 1000 / math.sqrt(2)) for t in range(4000)], range(4000))) / 1000
    wanda = ((1 - share) * lost(cut) + 100 * share * lost(cut / 10)) / (1 - share + 100 * share)
    for method, expected in (("magnitude", lost(alone)), ("wanda", wanda)):
        found = pm.prune(w, sparsity, method=method, stats=stats)
        assert output_error(w, found, np.diag(sizes)) == pytest.approx(math.sqrt(expected), abs=0.01)


# Wanda.


def test_wanda_removes_the_smallest_products_of_weight_and_norm_of_each_row() -> None:
    norms = np.sqrt(np.square(X.astype(np.float64)).mean(axis=0))
    _, mask = pm.prune(W, 0.6, method="wanda", stats=STATS, return_mask=True)
    for row, kept in zip(np.abs(W) * norms, mask, strict=True):
        assert np.count_nonzero(~kept) == math.floor(0.6 * 256)
        assert row[~kept].max() < row[kept].min()


def test_with_inputs_of_one_size_wanda_is_magnitude_by_row() -> None:
    np.testing.assert_array_equal(pm.prune(W, 0.5, method="wanda", stats=UNIT), pm.prune(W, 0.5, scope="row"))
    np.testing.assert_array_equal(pm.prune(W, pattern="2:4", method="wanda", stats=UNIT), pm.prune(W, pattern="2:4"))


def test_wanda_is_the_same_for_sizes_whose_products_float32_does_not_hold() -> None:
    """Scores of 1e47 and 1e-45: where float32 has infinities or zeros all would tie."""
    stats = {size: moments_of(X * np.float32(size)) for size in (1e12, 1e-15)}
    for w, size in ((W * np.float32(1e35), 1e12), (W * np.float32(1e-30), 1e-15)):
        for what in ({"sparsity": 0.5}, {"pattern": "2:4"}):
            mask = pm.prune(w, method="wanda", stats=stats[size], return_mask=True, **what)[1]
            want = pm.prune(W, method="wanda", stats=STATS, return_mask=True, **what)[1]
            assert (mask != want).mean() < 1e-3  # weights that rounding has tied


def test_wanda_takes_every_dtype_and_scope() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        assert pm.prune(W.astype(dtype), 0.5, method="wanda", stats=STATS).dtype == dtype
    whole, masks = pm.prune(
        {"a": W, "b": 9 * W}, 0.5, method="wanda", scope="global", stats={"a": STATS, "b": STATS}, return_mask=True
    )
    assert masks.density == 0.5
    assert np.count_nonzero(whole["a"]) < np.count_nonzero(whole["b"])


# SparseGPT.


def optimum(w: np.ndarray, mask: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The weights at a mask's places that minimize e h e^T, row by row."""
    best = np.zeros(w.shape)
    for i, kept in enumerate(mask):
        free, gone = np.flatnonzero(kept), np.flatnonzero(~kept)
        best[i, free] = w[i, free] + np.linalg.solve(h[np.ix_(free, free)], h[np.ix_(free, gone)] @ w[i, gone])
    return best


def damped(x: np.ndarray) -> np.ndarray:
    h = moments_of(x).mean().astype(np.float64)
    return h + 0.01 * h.diagonal().mean() * np.eye(len(h))


def by_definition(w: np.ndarray, h: np.ndarray, unit: int, choose: object) -> np.ndarray:
    """Column by column, free columns at their optimum; the score is the rise of the error if a column is set to 0 and
    those after it make up for it."""
    w = w.astype(np.float64)
    fixed, cols = np.empty((len(w), 0)), w.shape[1]
    keep = np.ones(w.shape, bool)
    for k in range(cols):
        errors = w[:, :k] - fixed
        free = w[:, k:] + np.linalg.solve(h[k:, k:], h[k:, :k] @ errors.T).T
        if k % unit == 0:
            end = min(k + unit, cols)
            cost = [1 / np.linalg.inv(h[m:, m:])[0, 0] for m in range(k, end)]
            keep[:, k:end] = choose(np.square(free[:, : end - k]) * cost)
        fixed = np.hstack([fixed, np.where(keep[:, k], free[:, 0], 0)[:, None]])
    return fixed


def test_sparsegpt_is_what_the_normal_equations_say() -> None:
    x, w = correlated(400, 24, seed=2), W[:5, :24]

    def two_of_four(scores: np.ndarray) -> np.ndarray:
        return scores >= np.sort(scores, axis=1)[:, 2:3]

    found = pm.prune(w, pattern="2:4", method="sparsegpt", stats=moments_of(x))
    np.testing.assert_allclose(found, by_definition(w, damped(x), 4, two_of_four), rtol=1e-3, atol=1e-5)

    def half(scores: np.ndarray) -> np.ndarray:
        return scores > np.sort(scores, axis=None)[scores.size // 2 - 1]

    found = pm.prune(w, 0.5, method="sparsegpt", stats=moments_of(x))
    np.testing.assert_allclose(found, by_definition(w, damped(x), 24, half), rtol=1e-3, atol=1e-5)


def test_no_other_weights_at_its_places_could_be_better_in_the_last_row_of_columns() -> None:
    """Weights after the last removal are at their optimum, so one pass of least squares can only win before it."""
    x, w = correlated(400, 40, seed=3), W[:4, :40]
    found, mask = pm.prune(w, 0.5, method="sparsegpt", stats=moments_of(x), return_mask=True)
    best, kept_as_they_were = optimum(w, mask, damped(x)), w * mask

    def error(changed: np.ndarray) -> float:
        e = w - changed
        return float(np.einsum("rk,kl,rl->", e, damped(x), e))

    assert error(best) <= error(found) < error(kept_as_they_were)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
def test_with_h_the_identity_sparsegpt_is_magnitude_and_leaves_what_stays(pattern: str) -> None:
    np.testing.assert_array_equal(
        pm.prune(W, pattern=pattern, method="sparsegpt", stats=UNIT), pm.prune(W, pattern=pattern)
    )


@pytest.mark.parametrize("scope", ["layer", "row"])
@pytest.mark.parametrize("pattern", [None, "bsr-4x2"])
def test_with_h_the_identity_it_is_magnitude_of_every_128_columns(scope: str, pattern: str | None) -> None:
    found = pm.prune(W, 0.5, method="sparsegpt", stats=UNIT, scope=scope, pattern=pattern)
    blocks = [pm.prune(W[:, k : k + 128], 0.5, scope=scope, pattern=pattern) for k in (0, 128)]
    np.testing.assert_array_equal(found, np.hstack(blocks))


@given(st.integers(1, 20), st.integers(1, 300), st.floats(0, 1, exclude_max=True), st.sampled_from(["layer", "row"]))
@settings(max_examples=40, deadline=None)
def test_sparsegpt_removes_exactly_the_floor_of_the_share(rows: int, cols: int, sparsity: float, scope: str) -> None:
    rng = np.random.default_rng(rows * cols)
    w, stats = rng.standard_normal((rows, cols)), moments_of(rng.standard_normal((10, cols)))
    _, mask = pm.prune(w, sparsity, method="sparsegpt", stats=stats, scope=scope, return_mask=True)
    expected = rows * math.floor(sparsity * cols) if scope == "row" else math.floor(sparsity * w.size)
    assert np.count_nonzero(~mask) == expected
    _, mask = pm.prune(w, sparsity, method="sparsegpt", stats=stats, pattern="bsr-4x3", return_mask=True)
    blocks = -(-rows // 4) * -(-cols // 3)
    tops = np.add.reduceat(np.add.reduceat(mask, np.arange(0, rows, 4), 0), np.arange(0, cols, 3), 1)
    assert np.count_nonzero(tops == 0) == math.floor(sparsity * blocks)


def test_weights_that_make_up_for_more_than_float16_holds_are_its_largest_number() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 1)) + 0.01 * rng.standard_normal((50, 16))  # nearly the same input 16 times
    found = pm.prune(np.full((4, 16), 60000, np.float16), 0.5, method="sparsegpt", stats=moments_of(x))
    assert np.count_nonzero(found == 0) == 32
    assert found.max() == np.finfo(np.float16).max


def test_weights_beyond_float32_are_pruned_to_a_pattern_without_a_warning() -> None:
    w = 1e300 * np.random.default_rng(0).standard_normal((6, 40))
    for what in ({"sparsity": 0.5}, {"pattern": "2:4"}):
        found, mask = pm.prune(w, method="sparsegpt", stats=moments_of(X[:, :40]), return_mask=True, **what)
        assert np.count_nonzero(mask) == 120
        assert np.isfinite(found).all()


# With quantization.


@pytest.mark.parametrize(
    ("scheme", "sparsity"),
    [
        ("bitmask+int4-g32", 0.5),
        ("bitmask+int8-g128", 0.5),
        ("2:4+int4-g32", None),
        ("csr+int8", 0.7),
        ("csr+int4", 0.7),
        ("bsr-4x4+int8", 0.5),
    ],
)
def test_sparsify_prunes_and_quantizes_in_one_sweep_and_stores_it_exactly(scheme: str, sparsity: float | None) -> None:
    joint = pm.sparsify(W, scheme, sparsity, method="sparsegpt", stats=STATS)
    pattern = scheme.split("+")[0] if scheme[0] in "2b" and "bitmask" not in scheme else None
    apart = pm.compress(pm.prune(W, sparsity, pattern=pattern, method="sparsegpt", stats=STATS), scheme)
    assert joint.scheme == apart.scheme
    assert output_error(W, joint.to_dense(), X) < 1.01 * output_error(W, apart.to_dense(), X)
    e = W - joint.to_dense().astype(np.float64)
    h = damped(X)
    assert joint.outcome.loss == pytest.approx(float(np.einsum("rk,kl,rl->r", e, h, e).mean()), rel=1e-3)  # exact
    turned = pm.sparsify(W.T, scheme, sparsity, method="sparsegpt", stats=STATS, in_axis=0)
    np.testing.assert_array_equal(turned.to_dense().T, joint.to_dense())


def test_sparsify_hands_on_what_methods_need() -> None:
    state = {"fc": W, "bias": np.ones(3)}
    for method in ("wanda", "sparsegpt"):
        stored = pm.sparsify(state, "csr", 0.5, method=method, stats={"fc": STATS})
        np.testing.assert_array_equal(stored["fc"].to_dense(), pm.prune(W, 0.5, method=method, stats=STATS))
    assert pm.sparsify(W, "2:4", method="magnitude").nnz == W.size // 2
    with pytest.raises(TypeError, match="nonfinite: expected in_axis or scale_dtype"):
        pm.sparsify(W, "csr+int8", 0.5, method="sparsegpt", stats=STATS, nonfinite="zero")


# Random.


def test_random_is_fixed_by_seed_and_name() -> None:
    state = {"a": W, "b": W}
    first, again = (pm.prune(state, 0.5, method="random", seed=1) for _ in range(2))
    np.testing.assert_array_equal(first["a"], again["a"])
    assert (first["a"] != first["b"]).any()
    assert (first["a"] != pm.prune(state, 0.5, method="random", seed=2)["a"]).any()
    np.testing.assert_array_equal(first["b"], pm.prune({"b": W}, 0.5, method="random", seed=1)["b"])


# Never fails; bits.


def check_degenerate(seed: int, kind: str, sparsity: float, scheme: str | None, most: int = 40) -> None:
    """No exception, no NaN, and exactly as many zeros as asked for."""
    w, x = degenerate(np.random.default_rng(seed), kind, most)
    if scheme == "2:4":
        w, x = (np.pad(a, ((0, 0), (0, -a.shape[1] % 4))) for a in (w, x))
        found, mask = pm.prune(w, pattern=scheme, method="sparsegpt", stats=moments_of(x), return_mask=True)
        assert (mask.reshape(-1, 4).sum(axis=1) == 2).all()
        assert np.isfinite(found).all()
    elif scheme is None:
        found, mask = pm.prune(w, sparsity, method="sparsegpt", stats=moments_of(x), return_mask=True)
        assert np.count_nonzero(~mask) == math.floor(sparsity * w.size)
        assert not found[~mask].any()
        assert np.isfinite(found).all()
    else:
        assert np.isfinite(pm.sparsify(w, scheme, sparsity, method="sparsegpt", stats=moments_of(x)).to_dense()).all()


def test_a_share_that_floats_round_differently_by_columns_removes_as_many_as_any_method() -> None:
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((5, 15)).astype(np.float32), rng.standard_normal((40, 15))
    found = pm.prune(w, 1 / 3, method="sparsegpt", stats=moments_of(x))  # (1 / 3 * 5) * 15 < 25 == 1 / 3 * 75
    assert np.count_nonzero(found == 0) == np.count_nonzero(pm.prune(w, 1 / 3) == 0) == 25


@given(
    st.integers(0, 2**32),
    st.sampled_from(KINDS),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([None, "csr+int8", "bitmask+int4-g16", "2:4"]),
)
@settings(max_examples=1000, deadline=None)
def test_no_moments_are_too_bad_for_sparsegpt(seed: int, kind: str, sparsity: float, scheme: str | None) -> None:
    logging.disable(logging.WARNING)
    try:
        check_degenerate(seed, kind, sparsity, scheme)
    finally:
        logging.disable(logging.NOTSET)


THREADS_OF_BLAS = """
import hashlib
import numpy as np, threadpoolctl
import pumice as pm
rng = np.random.default_rng(0)
x, w = (rng.standard_normal((rows, 576)).astype(np.float32) for rows in (1500, 576))
for threads in (1, 2, 3, 8):
    with threadpoolctl.threadpool_limits(threads):
        stats = pm.Moments(576)
        stats.update(x)
        pruned = pm.prune(w, 0.5, method="sparsegpt", stats=stats)
        blocks = pm.prune(w, 0.5, pattern="bsr-16x4", method="sparsegpt", stats=stats)
        rounded = pm.compress(w, "int4-g64", method="gptq", stats=stats)
        singular = pm.Moments(576)
        singular.update(x[:100])
        rough = pm.compress(w, "int3", method="gptq", stats=singular, damping=1e-7)
        made = (stats.mean(), pruned, blocks, rounded.to_dense(), rough.to_dense())
        print(*(hashlib.sha256(array.tobytes()).hexdigest() for array in made))
"""


def test_the_bits_depend_neither_on_threads_nor_on_the_kernels_of_blas() -> None:
    """OpenBLAS's kernels for AVX2 round differently where threads cut the rows."""
    found = set()
    for core in ("", "Haswell"):
        environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
        done = subprocess.run(
            [sys.executable, "-c", THREADS_OF_BLAS], capture_output=True, text=True, check=True,
            env=environment | ({"OPENBLAS_CORETYPE": core} if core else {}),
        )  # fmt: skip
        lines = done.stdout.splitlines()
        assert len(lines) == 4
        found.update(lines)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "wanda"}, "stats: expected moments of the inputs of w for this method, got None"),
        ({"method": "sparsegpt"}, "stats: expected moments of the inputs of w for this method, got None"),
        ({"method": "wanda", "stats": moments_of(X[:, :7])}, "stats: expected 256 features as w has columns, got 7"),
        ({"method": "wanda", "stats": pm.Moments(256)}, "stats: expected at least one row of inputs, got none"),
        ({"method": "sparsegpt", "stats": STATS, "scope": "global"}, "scope='global': expected a sparsity"),
        ({"method": "sparsegpt", "stats": STATS, "sparsity": None, "threshold": 0.1}, "threshold: expected a sparsity"),
        ({"method": "sparsegpt", "stats": STATS, "damping": math.nan}, "damping: expected a finite number >= 0"),
        ({"method": "wanda", "stats": STATS, "damping": 0.1}, "damping: expected an option of prune, or of"),
        ({"method": "sparsegpt", "stats": STATS, "sparsity": 1.5}, r"sparsity: expected a number in \[0, 1\), got 1.5"),
        ({"method": "sparsegpt", "stats": STATS, "sparsity": None, "pattern": "2:6"}, "w: expected columns in"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        pm.prune(W, **({"sparsity": 0.5} | arguments))


def test_every_method_is_a_scorer_or_a_solver() -> None:
    assert {name for name, pruner in PRUNERS.items() if pruner.solve} == {"sparsegpt"}
    assert all((pruner.score is None) != (pruner.solve is None) for pruner in PRUNERS.values())


# The schedule.


def test_the_cubic_schedule_rises_from_initial_to_final() -> None:
    steps = np.arange(-10, 130)
    found = np.array([pm.cubic_sparsity(s, final=0.9, initial=0.2, start=0, stop=100) for s in steps])
    inside = (steps >= 0) & (steps <= 100)
    np.testing.assert_allclose(found[inside], 0.9 - 0.7 * (1 - steps[inside] / 100) ** 3, rtol=1e-12)
    assert (found[steps < 0] == 0.2).all() and (found[steps > 100] == 0.9).all()
    for arguments, message in (
        ({"final": 1.1, "stop": 10}, "final: expected a number"),
        ({"final": 0.9, "initial": -1, "stop": 10}, "initial: expected a number"),
        ({"final": 0.9, "stop": 0}, "stop: expected a step after start, 0.0, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            pm.cubic_sparsity(1, **arguments)
