"""Methods of quantization: against their definitions computed another way, and on the worst of inputs."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

import pumice as pm
from pumice.compensation import Sweep, factorize
from pumice.quantization import CLIPS, METHODS, Task, quantize_matrix
from pumice.values.base import codec_of
from tests.layers import KINDS, correlated, degenerate, moments_of, output_error

X = correlated(600, 96)
W = np.random.default_rng(1).standard_normal((24, 96)).astype(np.float32)
SCHEMES = [f"int{b}{g}{f}" for b in (2, 3, 4, 5, 6, 8) for g in ("", "-g16", "-g32") for f in ("", "-asym", "-min")]


def damped(x: np.ndarray, damping: float = 0.01) -> np.ndarray:
    """The moments that a sweep works with, in float64."""
    h = moments_of(x).mean().astype(np.float64)
    live = h.diagonal() > 0
    return h + damping * h.diagonal()[live].mean() * np.eye(len(h))


def solved(w: np.ndarray, scheme: str, method: str, x: np.ndarray | None = None, **options: object) -> tuple:
    task = Task(w, pm.Scheme.parse(scheme), None if x is None else moments_of(x))
    return quantize_matrix(task, method, options)


# The definition: after columns are fixed, the free ones take the values that minimize the output error.


def best_free(w: np.ndarray, fixed: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Columns len(fixed.T)... of the minimum of e h e^T over them, by the normal equations."""
    k = fixed.shape[1]
    errors = w[:, :k] - fixed
    return w[:, k:] + np.linalg.solve(h[k:, k:], h[k:, :k] @ errors.T).T


def by_definition(w: np.ndarray, h: np.ndarray, scheme: str, group: int, moving: bool) -> np.ndarray:
    parsed = pm.Scheme.parse(scheme)
    codec, w = codec_of(parsed), w.astype(np.float64)
    fixed, grid = np.empty((len(w), 0)), {}
    for k in range(w.shape[1]):
        free = best_free(w, fixed, h)
        if k % group == 0:
            some = (free[:, :group] if moving else w[:, k : k + group]).astype(np.float32)
            grid = codec.grid(some.min(1, keepdims=True), some.max(1, keepdims=True), parsed)
        scale, bits = grid["scale"].astype(np.float64), codec.bits
        zero = grid["zero_point"].astype(float) if "zero_point" in grid else 0 if "min" in grid else 2.0 ** (bits - 1)
        low = grid["min"].astype(np.float64) if "min" in grid else 0
        code = np.clip(zero + np.rint((free[:, :1] - low) / scale), 0, 2**bits - 1)
        fixed = np.hstack([fixed, scale * (code - zero) + low])
    return fixed


@pytest.mark.parametrize("scheme", ["int4", "int3-g16", "int4-g32-asym", "int2-g16-min", "int8-g16"])
@pytest.mark.parametrize("static", [True, False])
def test_gptq_is_what_the_normal_equations_say(scheme: str, static: bool) -> None:
    x, w = correlated(300, 48, seed=3), W[:6, :48]
    options = {"act_order": False, "static_groups": static}
    found = pm.quantize(w, scheme, method="gptq", stats=moments_of(x), **options).to_dense()
    group = pm.Scheme.parse(scheme).group or 48
    expected = by_definition(w, damped(x), scheme, group, moving=not static)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_beyond_a_block_of_columns_it_is_still_what_the_normal_equations_say() -> None:
    x, w = correlated(500, 144, seed=4), np.random.default_rng(5).standard_normal((2, 144)).astype(np.float32)
    found = pm.quantize(w, "int4-g64", method="gptq", stats=moments_of(x), act_order=False).to_dense()
    np.testing.assert_allclose(found, by_definition(w, damped(x), "int4-g64", 64, True), rtol=1e-3, atol=1e-5)


def test_wherever_a_sweep_stands_it_knows_where_free_columns_are_best() -> None:
    cols, x = 700, correlated(900, 700, seed=7)
    w = np.random.default_rng(8).standard_normal((3, cols)).astype(np.float32)
    sweep, stops = Sweep(w, factorize(moments_of(x).mean())), (40, 128, 200, 500, 512, 530, cols)
    keep = np.random.default_rng(9).random(w.shape) < 0.5
    for start, stop in zip((0, *stops), stops, strict=False):
        sweep.fix(stop, keep[:, start:stop])
        if stop < cols:
            fixed = sweep.result()[:, :stop]
            best = best_free(w.astype(np.float64), fixed.astype(np.float64), damped(x))
            np.testing.assert_allclose(sweep.current(min(stop + 300, cols)), best[:, :300], atol=2e-4)


def test_act_order_is_gptq_of_permuted_columns_and_the_default() -> None:
    order = np.argsort(-moments_of(X).norms(), kind="stable")
    direct = pm.quantize(W, "int4", method="gptq", stats=moments_of(X)).to_dense()
    given = {"stats": moments_of(X[:, order]), "act_order": False}
    turned = pm.quantize(W[:, order], "int4", method="gptq", **given).to_dense()
    np.testing.assert_allclose(direct[:, order], turned, rtol=1e-6)
    assert (direct != pm.quantize(W, "int4", method="gptq", stats=moments_of(X), act_order=False).to_dense()).any()


def test_act_order_costs_nothing_afterwards() -> None:
    """Grids are those of groups as given, so codes stay in the order of the weight: no permutation, the same parts."""
    found, plain = pm.quantize(W, "int4-g32", method="gptq", stats=moments_of(X)), pm.quantize(W, "int4-g32")
    assert type(found) is type(plain) and found.nbytes == plain.nbytes
    assert found.parts().keys() == plain.parts().keys()
    np.testing.assert_array_equal(found.parts()["scale"], plain.parts()["scale"])


def test_uncorrelated_inputs_of_one_size_leave_nothing_to_make_up_for() -> None:
    stats = moments_of(np.sqrt(96) * np.eye(96))
    for scheme in ("int4", "int3-g32-asym", "int2-g16-min"):
        found = pm.quantize(W, scheme, method="gptq", stats=stats)
        for part, expected in pm.quantize(W, scheme).parts().items():
            np.testing.assert_array_equal(found.parts()[part], expected)


def test_the_loss_is_the_mean_squared_error_of_the_output() -> None:
    c = pm.quantize(W, "int4-g32", method="gptq", stats=moments_of(X))
    e = W - c.to_dense().astype(np.float64)
    assert c.outcome.loss == pytest.approx(float(np.einsum("rk,kl,rl->r", e, damped(X), e).mean()), rel=1e-4)
    assert (c.outcome.damping, c.outcome.attempts, c.outcome.dead, c.outcome.rounded) == (0.01, 1, 0, 0)
    assert c.T.outcome is c.outcome


@pytest.mark.parametrize("scheme", ["int2-g32", "int3-g32", "int4-g32", "int4", "int4-g32-asym", "int8"])
def test_gptq_errs_less_than_clipping_and_that_less_than_the_default(scheme: str) -> None:
    def error(method: str, **options: object) -> float:
        return output_error(W, pm.quantize(W, scheme, method=method, stats=moments_of(X), **options).to_dense(), X)

    gain = 0.95 if scheme.startswith("int2") else 0.85
    assert error("gptq") < gain * error("nearest")
    assert error("gptq", act_order=False) < gain * error("nearest")
    assert error("mse") <= error("nearest")


# Exactness: what the method believed is what is stored.


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", list(METHODS))
def test_what_a_method_puts_on_its_grid_is_stored_exactly(method: str, scheme: str) -> None:
    if method == "absmax" and pm.Scheme.parse(scheme).flags:
        return  # refused, see below
    w, _, _ = solved(W, scheme, method, X)
    stored = pm.quantize(W, scheme, method=method, stats=moments_of(X))
    if method == "gptq":
        np.testing.assert_array_equal(stored.to_dense(), w)
    assert np.abs(stored.to_dense() - w).max() < 3
    assert stored.nbytes == pm.quantize(W, scheme).nbytes


@pytest.mark.parametrize(
    "scheme", ["csr+int8", "csr+int4", "bsr-4x4+int8", "bitmask+int4-g32", "2:4+int8-g16", "2:4+int4"]
)
@pytest.mark.parametrize("method", list(METHODS))
def test_in_sparse_layouts_holes_stay_holes_and_the_rest_is_exact(method: str, scheme: str) -> None:
    pruned = pm.prune(W, pattern="2:4")
    stored = pm.compress(pruned, scheme, method=method, stats=moments_of(X))
    assert not stored.to_dense()[pruned == 0].any()
    if method == "nearest":
        np.testing.assert_array_equal(stored.to_dense(), pm.compress(pruned, scheme).to_dense())
    if method == "gptq":
        task = Task(pruned, pm.Scheme.parse(scheme), moments_of(X), keep=pruned != 0)
        np.testing.assert_array_equal(stored.to_dense(), quantize_matrix(task, "gptq", {})[0])
        assert output_error(pruned, stored.to_dense(), X) < output_error(
            pruned, pm.compress(pruned, scheme).to_dense(), X
        )


# Grids.


def test_nearest_is_the_default_rule() -> None:
    for scheme in SCHEMES:
        for part, expected in pm.quantize(W, scheme).parts().items():
            np.testing.assert_array_equal(pm.quantize(W, scheme, method="nearest").parts()[part], expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_absmax_has_the_largest_magnitude_at_both_ends(bits: int) -> None:
    c = pm.quantize(W, f"int{bits}", method="absmax")
    largest = np.abs(W).max(axis=1)
    np.testing.assert_allclose(c.parts()["scale"][:, 0], largest / (2 ** (bits - 1) - 1), rtol=1e-6)
    assert c.codes().min() == 1
    np.testing.assert_allclose(np.abs(c.to_dense()).max(axis=1), largest, rtol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_mse_is_no_worse_in_any_group_and_better_in_some(scheme: str) -> None:
    w = np.random.default_rng(2).standard_t(3, (16, 96)).astype(np.float32)
    group = pm.Scheme.parse(scheme).group or 96

    def errors(c: pm.DenseArray) -> np.ndarray:
        return np.square(w - c.to_dense().astype(np.float64)).reshape(16, -1, group).sum(axis=2)

    clipped, plain = errors(pm.quantize(w, scheme, method="mse")), errors(pm.quantize(w, scheme))
    assert (clipped <= plain * (1 + 1e-5)).all()
    assert clipped.sum() < plain.sum() or scheme.startswith("int8")  # whose steps are too small for clipping to pay


def test_mse_minds_the_inputs_where_it_knows_them() -> None:
    weight = np.square(moments_of(X).norms().astype(np.float64))

    def error(c: pm.DenseArray) -> float:
        return float((np.square(W - c.to_dense()) * weight).sum())

    assert error(pm.quantize(W, "int3-g32", method="mse", stats=moments_of(X))) < error(
        pm.quantize(W, "int3-g32", method="mse")
    )


def test_percentiles_cut_what_numpy_says() -> None:
    c = pm.quantize(W, "int4", method="percentile", percentile=90)
    bound = np.percentile(np.abs(W), 90, axis=1)
    np.testing.assert_allclose(np.abs(c.parts()["scale"][:, 0]), bound / 8, rtol=1e-6)
    c = pm.quantize(W, "int4-g32-min", method="percentile", percentile=80)
    low, high = np.percentile(W.reshape(24, 3, 32), [10, 90], axis=2)
    np.testing.assert_allclose(c.parts()["min"], low, rtol=1e-3)
    np.testing.assert_allclose(c.parts()["scale"], (high - low) / 15, rtol=2e-3)
    for scheme in ("int4-g32", "int4-asym", "int4-g32-min"):
        whole = pm.quantize(W, scheme, method="percentile", percentile=100)
        np.testing.assert_array_equal(whole.to_dense(), pm.quantize(W, scheme).to_dense())


# Never fails.


def check_degenerate(seed: int, kind: str, scheme: str, options: dict, most: int = 40) -> None:
    """No exception, no NaN, and no worse than the weights' own size says."""
    w, x = degenerate(np.random.default_rng(seed), kind, most)
    c = pm.quantize(w, scheme, method="gptq", stats=moments_of(x), **options)
    assert np.isfinite(c.to_dense()).all()
    assert c.outcome.rounded == len(w) or np.isfinite(c.outcome.loss)


worst = st.tuples(
    st.integers(0, 2**32),
    st.sampled_from(KINDS),
    st.sampled_from(["int4", "int2-g16", "int4-g16-asym", "int8-g32"]),
    st.sampled_from([{}, {"damping": 0.0}, {"act_order": False}, {"clip": "mse", "damping": 1e-9}]),
)


@given(worst)
@settings(max_examples=1000, deadline=None)
def test_no_moments_are_too_bad_for_gptq(case: tuple) -> None:
    logging.disable(logging.WARNING)
    try:
        check_degenerate(*case)
    finally:
        logging.disable(logging.NOTSET)


def test_a_damping_that_is_too_small_is_raised_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    stats = moments_of(np.ones((3, 40)))
    c = pm.quantize(W[:, :40], "int4", method="gptq", stats=stats, damping=0)
    assert c.outcome.attempts > 1 and c.outcome.damping >= 1e-6
    assert "damping raised to 1e-06" in caplog.text


def test_what_it_takes_not_to_fail_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pumice")
    x = X.copy()
    x[:, [3, 50]] = 0
    pm.quantize(W, "int4", method="gptq", stats=moments_of(x))
    assert "2 of 96 inputs are always 0" in caplog.text
    pm.quantize(W[:, :40], "int4", method="gptq", stats=moments_of(np.ones((3, 40))), damping=1e-6)
    assert "ill-conditioned: factorized in float64" in caplog.text
    w = W.copy()
    w[7] *= np.float32(5e37)
    loud = X * np.logspace(5, -5, 96, dtype=np.float32)
    rounded = pm.quantize(w, "int4", method="gptq", stats=moments_of(loud), damping=0)
    assert np.isfinite(rounded.to_dense()).all()
    assert rounded.outcome.rounded == 1
    assert "1 of 24 rows overflowed" in caplog.text


def test_dead_inputs_are_counted_and_their_weights_rounded_to_nearest() -> None:
    x = X.copy()
    x[:, [3, 50]] = 0
    c = pm.quantize(W, "int4", method="gptq", stats=moments_of(x))
    assert c.outcome.dead == 2
    np.testing.assert_array_equal(c.to_dense()[:, [3, 50]], pm.quantize(W, "int4").to_dense()[:, [3, 50]])


@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_a_factorization_is_that_of_the_damped_moments(seed: int, kind: str, damping: float) -> None:
    logging.disable(logging.WARNING)
    _, x = degenerate(np.random.default_rng(seed), kind)
    h = moments_of(x).mean()
    factor = factorize(h, damping)
    logging.disable(logging.NOTSET)
    upper = np.triu(factor.upper, 1).astype(np.float64) + np.eye(len(h))
    alive = h.diagonal() > 0
    again = (upper * factor.variance) @ upper.T * factor.scale
    expected = h.astype(np.float64) + factor.damping * factor.scale * np.diag(alive)
    spread = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    assert (np.abs(again - expected)[np.ix_(alive, alive)] <= 1e-5 * spread[np.ix_(alive, alive)]).all()
    assert factor.dead == np.count_nonzero(~alive)
    assert np.isfinite(factor.upper).all()


def test_an_empty_weight_stays_one() -> None:
    for shape in ((0, 4),):
        assert pm.quantize(np.ones(shape), "int4", method="gptq", stats=moments_of(np.eye(4))).shape == shape


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    x, w = correlated(700, 1100), np.random.default_rng(6).standard_normal((300, 1100)).astype(np.float32)
    found = []
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads):
            array = pm.quantize(w, "int4-g64", method="gptq", stats=moments_of(x))
            found.append((array.parts()["packed"], array.parts()["scale"]))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_rows_do_not_depend_on_each_other() -> None:
    whole = pm.quantize(W, "int4-g32", method="gptq", stats=moments_of(X)).to_dense()
    some = pm.quantize(W[5:12], "int4-g32", method="gptq", stats=moments_of(X)).to_dense()
    np.testing.assert_allclose(whole[5:12], some, rtol=1e-6)


# Faces.


def test_mappings_lists_and_other_axes_find_their_moments() -> None:
    stats = pm.CalibrationStats()
    stats.update("fc", X)
    weights = {"fc.weight": W, "fc.bias": np.ones(24)}
    one = pm.quantize(W, "int4-g32", method="gptq", stats=stats["fc"])
    found = pm.quantize(weights, "int4-g32", method="gptq", stats=stats)
    np.testing.assert_array_equal(found["fc.weight"].to_dense(), one.to_dense())
    assert found["fc.bias"] is weights["fc.bias"]
    listed = pm.quantize([W, np.ones(24)], "int4-g32", method="gptq", stats={0: stats["fc"]})
    np.testing.assert_array_equal(listed[0].to_dense(), one.to_dense())
    turned = pm.quantize(W.T, "int4-g32", in_axis=0, method="gptq", stats=stats["fc"])
    np.testing.assert_array_equal(turned.to_dense(), one.to_dense().T)
    deep = pm.quantize(W.reshape(24, 24, 2, 2), "int4-g32", method="gptq", stats=stats["fc"])
    assert deep.shape == (24, 24, 2, 2)
    np.testing.assert_array_equal(deep.to_dense().reshape(24, 96), one.to_dense())
    assert pm.quantize(W, "int4").outcome is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "method: expected one of nearest, absmax, percentile, mse, gptq, got 'magic'"),
        ({"method": "gptq"}, "stats: expected moments of the inputs of w for this method, got None"),
        ({"method": "gptq", "stats": moments_of(X[:, :5])}, "stats: expected 96 features as w has columns, got 5"),
        ({"method": "gptq", "stats": pm.Moments(96)}, "stats: expected at least one row of inputs, got none"),
        ({"method": "gptq", "stats": moments_of(X), "damping": -1}, "damping: expected a finite number >= 0, got -1"),
        ({"method": "gptq", "stats": moments_of(X), "clip": "x"}, "clip: expected one of nearest"),
        ({"method": "gptq", "stats": moments_of(X), "steps": 3}, "steps: expected an option of 'gptq' .*act_order"),
        (
            {"method": "gptq", "stats": moments_of(X), "static_groups": False},
            "static_groups: expected True with act_order=True, which tears groups apart, got False",
        ),
        ({"method": "percentile", "percentile": 0}, r"percentile: expected a number in \(0, 100\], got 0"),
        ({"method": "mse", "steps": 0}, "steps: expected at least 1, got 0"),
        ({"method": "mse", "smallest": 1}, r"smallest: expected a number in \(0, 1\), got 1"),
        ({"damping": 0.1}, "damping: expected an option of compress, or a method that has it"),
        ({"scheme": "float16", "method": "mse"}, "scheme: expected integer values for method 'mse', got 'float16'"),
        ({"scheme": "int4-g32-asym", "method": "absmax"}, "method: expected another than 'absmax'"),
        ({"scheme": "auto", "method": "mse"}, "method: expected None with 'auto'"),
        ({"scheme": "int4&csr", "method": "mse"}, "scheme: expected integer values for method 'mse'"),
    ],
)
def test_arguments_that_make_no_sense_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        pm.compress(W, **({"scheme": "int4-g32"} | arguments))


def test_weights_that_are_not_finite_are_named() -> None:
    bad = W.copy()
    bad[1, 2] = np.nan
    with pytest.raises(pm.NonFiniteError, match=r"w\['q'\]: expected finite values, got nan at index \(1, 2\)"):
        pm.quantize({"q": bad}, "int4", method="gptq", stats={"q": moments_of(X)})


def test_every_clip_is_a_method() -> None:
    assert CLIPS.keys() < METHODS.keys()
