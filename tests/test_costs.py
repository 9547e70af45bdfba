"""The machine profile and the cost model: what is kept, what is refused, and that estimates follow the work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pumice as pm
from pumice._core import native
from pumice.calibration import calibrate
from pumice.costs import estimate, predict, work_of, work_with
from pumice.layouts.work import Step, Work
from pumice.profile import (
    DEFAULTS,
    Bandwidth,
    Profile,
    Rate,
    cache_path,
    cpu_name,
    default_profile,
    load_profile,
    save_profile,
)
from pumice.scheme import Scheme

SCHEMES = ("float32", "float16", "int8", "int4-g128", "int4-g32", "int3", "csr", "csr+int8", "bsr-4x4", "bsr-4x4+int8")
HERE = replace(
    default_profile("scalar"), cpu=cpu_name(), isa=native.get_isa(), version=pm.__version__, source="measured by hand"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own: no test sees, or writes, the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def profile_of(gbytes: float = 10.0, gops: float = 100.0, call: float = 1e-6) -> Profile:
    """A machine with one number of each kind."""
    rates = tuple(
        Rate(kernel, "int16", "dense int8", 8, 128, 1, {1: gops}) for kernel in ("matmul_int", "BLAS", "decode")
    )
    return Profile("toaster", "scalar", "0", "by hand", (Bandwidth(1 << 20, 1, gbytes),), rates, {"matmul_int": call})


def like(activations: str, bits: int, unit: int, stored: str = "dense int4") -> Work:
    return Work(0, (), activations, stored, bits, unit)


def test_a_profile_survives_its_file() -> None:
    assert load_profile().source.startswith("shipped defaults")
    path = save_profile(HERE)
    assert path == cache_path()
    assert load_profile() == HERE
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing staged is left


def test_another_isa_has_another_file() -> None:
    assert len({cache_path(isa) for isa in ("scalar", "avx2", "avx512")}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "expected the fields of one"),
        ("{}", "expected the fields of one, got KeyError: 'cpu'"),
        (json.dumps(HERE.to_json() | {"rates": []}), "expected bandwidths and rates, got none"),
        (json.dumps(HERE.to_json() | {"cpu": 3}), "cpu: expected text, got 3"),
        (json.dumps(HERE.to_json() | {"overheads": {"BLAS": -1}}), "overheads: expected a positive number, got -1"),
        (json.dumps(HERE.to_json() | {"bandwidths": [{"nbytes": 1e999, "threads": 1, "gbytes": 1}]}), "OverflowError"),
        (json.dumps(HERE.to_json() | {"version": "0.0.0"}), "expected one of this CPU, ISA and version"),
        ("\xff", "codec can't decode"),
    ],
)
def test_a_broken_cache_is_reported_and_the_defaults_hold(text: str, message: str) -> None:
    path = cache_path()
    path.parent.mkdir(parents=True)
    path.write_text(text, "latin-1")
    with pytest.warns(RuntimeWarning, match=message) as caught:
        profile = load_profile()
    assert profile == default_profile(native.get_isa())
    assert "the shipped defaults are used" in str(caught[0].message)
    assert str(path) in str(caught[0].message)


def test_a_write_that_fails_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    save_profile(HERE)

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="no space left"):
        save_profile(replace(HERE, source="another"))
    assert load_profile() == HERE
    assert len(list(cache_path().parent.iterdir())) == 1


def test_defaults_are_shipped_for_every_isa_of_this_build() -> None:
    shipped = json.loads(Path(DEFAULTS).read_text("utf-8"))
    assert set(shipped) >= {"scalar", "avx2", "avx512"}
    for isa in (*native.isas(), "an ISA of the future"):
        assert default_profile(isa).rates


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("activations", ["int16", "int8", "float32"])
def test_a_layout_says_the_work_that_its_arrays_do(scheme: str, activations: str) -> None:
    rng = np.random.default_rng(0)
    kept = np.kron(rng.random((24, 64)) < 0.3, np.ones((4, 4)))
    w = pm.compress(np.where(kept, rng.standard_normal((96, 256)), 0), scheme)
    for batch in (1, 64):
        said, does = (
            work_of(Scheme.parse(scheme), w.shape, w.density, batch, activations),
            work_with(w, batch, activations),
        )
        assert said is not None
        assert does is not None
        assert said.steps == does.steps
        assert said.nbytes == pytest.approx(w.nbytes, abs=8 * w.ndim)  # sparse parts hold their shape too
        kernel = w.kernel(batch, activations)
        assert [step.kernel for step in said.steps] == ([kernel] if kernel else ["decode", "BLAS"])


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_default_profile_estimates_every_scheme(isa: str, scheme: str) -> None:
    for batch in (1, 8, 100, 1000):
        found = predict(scheme, (512, 512), 0.2, batch, "int16", default_profile(isa), threads=2)
        assert found is not None
        assert 0 < found.seconds < 10


def test_estimates_grow_with_bytes_and_with_arithmetic() -> None:
    profile = profile_of()
    seconds = [
        estimate(Work(n, (Step("matmul_int", 1e3),), "int16", "dense int8", 8, 128), 1, profile)
        for n in (1e6, 2e6, 4e6)
    ]
    assert [e.memory for e in seconds if e] == pytest.approx([1e-4, 2e-4, 4e-4])
    assert [e.limit for e in seconds if e] == ["memory"] * 3
    more = [
        estimate(Work(1e3, (Step("matmul_int", n),), "int16", "dense int8", 8, 128), 1, profile, threads=1)
        for n in (1e8, 2e8)
    ]
    assert [e.seconds for e in more if e] == pytest.approx([1e-3 + 1e-6, 2e-3 + 1e-6])
    assert [e.limit for e in more if e] == ["arithmetic"] * 2
    shapes = [predict("int8", (n, 512), 1.0, 1, "int16", profile, threads=1) for n in (16, 64, 256, 1024, 4096)]
    times = [e.seconds for e in shapes if e]
    assert len(times) == 5
    assert times == sorted(times)


def test_the_call_limits_what_is_tiny() -> None:
    found = predict("int8", (16, 32), 1.0, 1, "int16", profile_of(call=1e-3), threads=1)
    assert found is not None
    assert found.limit == "call"
    assert "bound by the call" in str(found)


def test_a_kernel_that_was_never_measured_has_no_estimate() -> None:
    assert predict("csr", (64, 64), 0.1, 1, "int16", profile_of(), threads=1) is None


def test_bandwidth_is_that_of_the_level_that_holds_the_weights() -> None:
    levels = tuple(Bandwidth(1 << size, 1, speed) for size, speed in ((18, 200.0), (24, 50.0), (27, 10.0)))
    profile = replace(profile_of(), bandwidths=(*levels, Bandwidth(1 << 18, 8, 900.0)))
    assert profile.bandwidth(1000, 1) == 200
    assert profile.bandwidth(1 << 24, 2) == 50
    assert profile.bandwidth(1 << 21, 1) == pytest.approx(100)
    assert profile.bandwidth(1 << 40, 1) == profile.bandwidth(float("inf"), 1) == 10
    assert profile.bandwidth(1 << 40, 8) == 900


def test_rates_are_interpolated_between_batches_and_taken_from_the_nearest() -> None:
    rate = Rate("k", "int16", "dense int4", 4, 128, 1, {1: 10.0, 16: 160.0})
    assert rate.at(4) == pytest.approx(40)
    assert (rate.at(1), rate.at(16), rate.at(1000)) == (10, 160, 160)
    profile = replace(
        profile_of(),
        rates=(rate, Rate("k", "int8", "dense int4", 4, 128, 1, {1: 99.0}), replace(rate, unit=32, gops={1: 5.0})),
    )

    def gops(profile: Profile, kernel: str, work: Work) -> float | None:
        nearest = profile.nearest(kernel, work, 1)
        return None if nearest is None else nearest.at(1)

    assert gops(profile, "k", like("int16", 3, 128)) == 10
    assert gops(profile, "k", like("int16", 4, 16)) == 5
    assert gops(profile, "k", like("float32", 4, 128)) in (10, 99)
    other = replace(rate, stored="bsr int8", bits=8, gops={1: 7.0})
    assert gops(replace(profile, rates=(rate, other)), "k", like("int16", 4, 128, "bsr int8")) == 7
    assert gops(profile, "unheard of", like("int16", 4, 128)) is None


def test_what_products_from_dram_took_corrects_what_the_model_says_of_them() -> None:
    corrected = Rate("k", "int16", "dense int8", 8, 128, 1, {1: 100.0}, cold={10**6: {1: 2.0, 16: 0.5}})
    work = Work(1e6, (Step("k", 2e6),), "int16", "dense int8", 8, 128)
    plain, better = (replace(profile_of(), rates=(r,)) for r in (replace(corrected, cold={}), corrected))
    for batch, factor in ((1, 2.0), (4, 1.0), (16, 0.5), (64, 0.5)):
        says, does = (estimate(work, batch, p, threads=1, cold=True) for p in (plain, better))
        assert says is not None and does is not None
        assert does.seconds == pytest.approx(factor * says.seconds)
        assert says.seconds == says.uncorrected == does.uncorrected
    assert estimate(work, 1, better, threads=1) == estimate(work, 1, plain, threads=1)  # from the cache
    two, one = (estimate(work, 1, better, threads=n) for n in (2, 1))
    assert two is not None and one is not None
    assert two.arithmetic == one.arithmetic / 2
    both = estimate(replace(work, also=replace(work)), 1, better, threads=1, cold=True)
    assert both is not None and both.correction == pytest.approx(2)


def test_between_two_sizes_a_product_from_dram_is_a_straight_line_in_its_bytes() -> None:
    rate = Rate("k", "int16", "csr", 8, 128, 1, {1: 1.0}, cold={1000: {1: 3.0}, 5000: {1: 1.0, 16: 2.0}})
    found = [size * rate.cold_at(size, 1) for size in (1000, 2000, 3000, 5000)]
    assert found == pytest.approx([3000, 3500, 4000, 5000])
    assert rate.cold_at(1, 1) == rate.cold_at(1000, 1) == 3.0  # as the smallest
    assert rate.cold_at(10**9, 16) == rate.cold_at(5000, 16) == 2.0  # and as the largest


def test_calibration_measures_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "LASTING": 1e-6,
        "REPEATS": 2,
        "ROWS": 32,
        "COLS": 64,
        "BATCHES": (1, 16),
        "COLD_BYTES": 1 << 16,
        "COLD_REPEATS": 1,
        "COLD_PASSES": 2,
        "COLD_SIZES": {True: ((64, 64, 0.4), (64, 64, 2.0)), False: ((16, 64, 1.0), (64, 64, 1.0))},
    }.items():
        monkeypatch.setattr(f"pumice.calibration.{name}", value)
    monkeypatch.setattr("pumice.calibration.SIZES", (1 << 12, 1 << 14))
    before, told = pm.get_num_threads(), []
    profile = calibrate(lambda text, done, total: told.append((done, total)))
    assert pm.get_num_threads() == before
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    kernels = {rate.kernel for rate in profile.rates}
    assert kernels == {rate.kernel for rate in default_profile("scalar").rates} == set(profile.overheads)
    assert {(b.nbytes, b.threads) for b in profile.bandwidths} == {
        (n, t) for n in (1 << 12, 1 << 14) for t in {1, before}
    }
    for rate in profile.rates:
        assert len(rate.cold) == (2 if rate.gops else 0), rate
        assert all(set(factors) <= {1, 4, 16, 64} for factors in rate.cold.values()), rate
    save_profile(profile)
    assert load_profile() == profile
