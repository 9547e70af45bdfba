"""Float minima, `-min`: what conformance does not reach: extreme scales, other people's codes, damaged parts."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import pumice as pm
from pumice import reference
from pumice._core import native
from pumice.scheme import Scheme

F16, F32 = np.float16, np.float32
GOLDEN = Path(__file__).parent / "golden" / "v1-min.safetensors"
RNG = np.random.default_rng(5)
EXTREMES = [0.0, 1.0, -1.0, 2.0**-149, -(2.0**-130), 2.0**-24, 6e-5, 65504.0, -65504.0, 1e30, 3.4e38, -3.4e38]


def grid(rows: int, cols: int, bits: int) -> np.ndarray:
    return RNG.integers(0, 2**bits, (rows, cols))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_products_of_any_scales_and_minima_have_the_bits_of_the_reference(data: st.DataObject) -> None:
    bits, group = data.draw(st.sampled_from([2, 3, 4, 5, 6, 8])), data.draw(st.sampled_from([None, 16, 32, 128, 256]))
    rows, cols = data.draw(st.integers(1, 35)), data.draw(st.integers(1, 400))
    half = group is not None and data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    groups = -(-cols // group) if group else 1
    pool = [v for v in EXTREMES if abs(v) <= 65504] if half else EXTREMES
    tables = [rng.choice(pool, (rows, groups)) * rng.choice([1.0, rng.random()], (rows, groups)) for _ in range(2)]
    scales, minima = (table.astype(F16 if half else F32) for table in tables)
    codes = rng.integers(0, 2**bits, (rows, cols))
    w = pm.DenseArray.from_codes(codes, scales, minima=minima, bits=bits, group=group)
    parsed = Scheme.parse(w.scheme)
    with np.errstate(all="ignore"):
        wide = np.repeat(scales.astype(F32), group or cols, axis=1)[:, :cols]
        low = np.repeat(minima.astype(F32), group or cols, axis=1)[:, :cols]
        np.testing.assert_array_equal(w.to_dense(), wide * codes.astype(F32) + low, strict=True)
    x = rng.standard_normal((data.draw(st.integers(1, 14)), cols)).astype(F32)
    x[rng.random(len(x)) < 0.2] *= F32(1e-33)
    x[rng.random(len(x)) < 0.1, 0] = np.nan
    mode = data.draw(st.sampled_from(["int16", "int8"]))
    want = reference.linear(x, w.parts(), parsed, (rows, cols), None, mode)
    before = native.get_isa()
    try:
        for isa in native.isas():
            native.set_isa(isa)
            for prepack in ("never", "eager"):
                form = w._codec.prepack(w._canonical(), cols) if prepack == "eager" else w._canonical()
                y = np.empty((len(x), rows), F32)
                w._codec.weights(form, parsed, rows, cols).matmul(x, y, None, mode)
                same = (y.view(np.uint32) == want.view(np.uint32)) | (np.isnan(y) & np.isnan(want))
                assert same.all(), (isa, prepack, w.scheme, np.argwhere(~same)[0])
    finally:
        native.set_isa(before)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_step_is_the_range_over_the_top_code_and_rounding_errs_by_half_a_step(bits: int) -> None:
    w = RNG.standard_normal((9, 160)).astype(F32) + F32(2)
    for group in (None, 32):
        array = pm.compress(w, f"int{bits}" + (f"-g{group}" if group else "") + "-min", scale_dtype=F32)
        parts = array.parts()
        runs = w.reshape(9, -1, group or 160)
        step = (runs.max(axis=2) - runs.min(axis=2)).astype(np.float64) / (2**bits - 1)
        np.testing.assert_allclose(parts["scale"], step, rtol=1e-6)
        np.testing.assert_array_equal(parts["min"], runs.min(axis=2))
        error = np.abs(array.to_dense().reshape(runs.shape) - runs).max(axis=2)
        assert (error <= step * (0.5 + 1e-4)).all()


def test_constant_groups_are_exact_up_to_the_rounding_of_the_minimum() -> None:
    values = np.array([0.1, -3.7, 0.0, -0.0, 1e-30, 12345.0], F32)
    w = np.repeat(values[:, None], 64, axis=1)
    rows = pm.compress(w, "int4-min")
    np.testing.assert_array_equal(rows.to_dense(), w)
    assert not np.signbit(rows.to_dense()[3]).any()
    normal = w[[0, 1, 2, 5]]
    halves = pm.compress(normal, "int4-g16-min")
    assert halves.parts()["min"].dtype == F16
    np.testing.assert_array_equal(halves.to_dense(), normal.astype(F16).astype(F32))
    assert not halves.codes().any()


def test_minima_choose_the_dtype_of_both_where_their_rounding_would_count() -> None:
    w = RNG.standard_normal((4, 64)).astype(F32)
    dtypes = {}
    for name, change in {
        "normal": 1.0, "overflow": 70000.0, "subnormal beside a step": 1e-6, "subnormal alone": None,
    }.items():  # fmt: skip
        v = w.copy()
        if name == "overflow":
            v[1, :16] += change
        elif name == "subnormal beside a step":
            v[1, :16] = np.abs(v[1, :16]) + F32(0.1)
            v[1, 3] = change
        elif name == "subnormal alone":
            v[1, :16] = 1e-6
        parts = pm.compress(v, "int4-g16-min").parts()
        assert parts["scale"].dtype == parts["min"].dtype
        dtypes[name] = parts["min"].dtype
    assert dtypes == {"normal": F16, "overflow": F32, "subnormal beside a step": F16, "subnormal alone": F32}
    with pytest.raises(ValueError, match="scale_dtype: expected one that holds the scales, got float16"):
        pm.compress(w + F32(70000), "int4-g16-min", scale_dtype=F16)


def test_a_range_beyond_float32_is_refused() -> None:
    w = np.array([[3.4e38, -3.4e38]], F32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(pm.NonFiniteError, match=r"^w: expected groups whose range is within float32 .* in row 0"):
            pm.compress(w, "int4-min")
        assert np.isfinite(pm.compress(w / 4, "int4-min").to_dense()).all()


def test_other_peoples_minima_come_in_as_they_are() -> None:
    """GGUF's Q4_1: blocks of 32, w = d * q + m, d and m float16 (ggml-quants.c, dequantize_row_q4_1)."""
    codes, d = grid(6, 96, 4), RNG.uniform(0.1, 1, (6, 3)).astype(F16)
    m = RNG.standard_normal((6, 3)).astype(F16)
    w = pm.DenseArray.from_codes(codes, d, minima=m, bits=4)
    assert w.scheme == "int4-g32-min"
    q4_1 = codes.reshape(6, 3, 32).astype(F32) * d.astype(F32)[:, :, None] + m.astype(F32)[:, :, None]
    np.testing.assert_array_equal(w.to_dense(), q4_1.reshape(6, 96), strict=True)
    assert {p: w.parts()[p].dtype for p in ("scale", "min")} == {"scale": F16, "min": F16}
    mixed = pm.DenseArray.from_codes(codes, d, minima=m.astype(np.float64), bits=4)
    assert {p: mixed.parts()[p].dtype for p in ("scale", "min")} == {"scale": F32, "min": F32}
    np.testing.assert_array_equal(mixed.to_dense(), w.to_dense())


def test_groups_that_no_scheme_names_are_split_with_repeated_minima() -> None:
    codes, scales = grid(5, 192, 3), RNG.uniform(0.1, 1, (5, 2)).astype(F16)
    minima = RNG.standard_normal((5, 2)).astype(F16)
    w = pm.DenseArray.from_codes(codes, scales, minima=minima, bits=3, group=96)
    assert w.scheme == "int3-g32-min"
    np.testing.assert_array_equal(w.parts()["min"], np.repeat(minima, 3, axis=1))
    want = np.repeat(scales.astype(F32), 96, 1) * codes.astype(F32) + np.repeat(minima.astype(F32), 96, 1)
    np.testing.assert_array_equal(w.to_dense(), want)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda p: p | {"min": np.full_like(p["min"], np.nan)}, "finite minima"),
        (lambda p: p | {"min": np.full_like(p["min"], -np.inf)}, "finite minima"),
        (lambda p: p | {"min": p["min"].astype(F32)}, "float16 as scale"),
        (lambda p: p | {"min": p["min"][:, :1]}, "of shape"),
        (lambda p: {k: v for k, v in p.items() if k != "min"}, "the parts"),
        (lambda p: p | {"zero_point": np.zeros((1, 4), np.int32)}, "the parts"),
    ],
)
def test_damaged_parts_are_refused(change, rule: str) -> None:
    parts = pm.compress(RNG.standard_normal((7, 64)), "int4-g16-min").parts()
    with pytest.raises(pm.FormatError, match=rule):
        pm.from_parts("int4-g16-min", (7, 64), change(dict(parts)))


def test_a_file_holds_the_minima_as_a_tensor_and_verifies(tmp_path: Path) -> None:
    w = pm.compress(RNG.standard_normal((40, 100)), "int6-g32-min")
    path = tmp_path / "w.safetensors"
    pm.save(path, {"fc.weight": w})
    assert pm.verify(path).ok
    tensors = safetensors.numpy.load_file(path)  # a reader that knows nothing of ours
    np.testing.assert_array_equal(tensors["fc.weight_min"], w.parts()["min"], strict=True)
    loaded = pm.load(path)
    again = loaded["fc.weight"]
    np.testing.assert_array_equal(again.to_dense(), w.to_dense())
    np.testing.assert_array_equal(pm.concatenate([again, w]).to_dense(), np.tile(w.to_dense(), (2, 1)))


def test_cuts_at_groups_multiply_to_the_whole() -> None:
    """Rows are independent to the bit; columns up to the rounding of x, half a unit of 16256 of the largest."""
    w = pm.compress(RNG.standard_normal((50, 96)) + 1, "int4-g32-min")
    x = RNG.standard_normal((3, 96)).astype(F32)
    whole = x @ w.T
    np.testing.assert_array_equal(x @ w[:32].T, whole[:, :32])
    np.testing.assert_array_equal(x @ w[32:].T, whole[:, 32:])
    cuts = sum(x[:, a:b] @ w[:, a:b].to_dense().T.astype(np.float64) for a, b in pairwise((0, 32, 64, 96)))
    half_unit = np.abs(x).max(axis=1) / 16256 / 2
    assert (np.abs(whole - cuts) <= 1.01 * half_unit[:, None] * np.abs(w.to_dense()).sum(axis=1)).all()


def test_float32_activations_agree_with_the_decoded_weights_and_nan_stays_in_its_row(isa: str) -> None:
    for scheme in ("int4-g16-min", "int8-g32-min", "int8-min", "int4-min"):
        w = pm.compress(RNG.standard_normal((35, 75)) * 3 + 1, scheme)
        x = RNG.standard_normal((6, 75)).astype(F32)
        y = pm.linear(x, w, activations="float32")
        np.testing.assert_allclose(y, x @ w.to_dense().T, rtol=1e-4, atol=1e-3)
        x[2, 5], x[4, 74] = np.nan, np.inf
        damaged = pm.linear(x, w, activations="float32")
        np.testing.assert_array_equal(damaged[[0, 1, 3, 5]], y[[0, 1, 3, 5]])
        assert not np.isfinite(damaged[[2, 4]]).any()


def golden() -> dict[str, pm.DenseArray]:
    w = ((np.arange(20 * 80) * 37 % 101 - 30) / 64).astype(F32).reshape(20, 80)
    w[3] = 0.1
    return {f"{scheme}.weight": pm.compress(w, scheme) for scheme in ("int4-g32-min", "int8-min", "int3-g16-min")}


def test_the_golden_file_of_minima_stays_readable_and_reproducible(tmp_path: Path) -> None:
    pm.save(tmp_path / "again.safetensors", golden())
    assert (tmp_path / "again.safetensors").read_bytes() == GOLDEN.read_bytes()
    assert pm.verify(GOLDEN).ok
    for name, w in golden().items():
        np.testing.assert_array_equal(pm.load(GOLDEN)[name].to_dense(), w.to_dense(), strict=True)
