"""What every method of quantization promises."""

from __future__ import annotations

import numpy as np
import pytest

import pumice as pm
from pumice.quantization import METHODS, Task, quantize_matrix
from pumice.statistics import Moments
from pumice.values.base import codec_of

from .cases import seed

SCHEMES = ("int4", "int8-g32", "int3-g16", "int4-g16-asym", "int2-min", "int5-g32-min")
every_method = pytest.mark.parametrize("method", list(METHODS))
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def weights() -> np.ndarray:
    w = seed("methods").standard_normal((7, 75)).astype(np.float32)
    w[3], w[4, :40], w[5] = 0, 0, 2.5
    w[w > 1.9] = 0
    return w


def moments() -> Moments:
    found, rng = Moments(75), seed("inputs")
    found.update(rng.standard_normal((50, 75)) * rng.uniform(0.1, 3, 75))
    return found


def task(scheme: str, **more: object) -> Task:
    w = weights()
    w.setflags(write=False)
    return Task(w, pm.Scheme.parse(scheme), moments(), **more)


def solve(method: str, some: Task) -> tuple | None:
    """What the method gives; None where it refuses zeros or minima, by its name. Symmetric grids every method has."""
    try:
        return quantize_matrix(some, method, {})
    except ValueError as error:
        assert some.scheme.flags
        assert str(error).startswith("method: expected another than")
        return None


@every_scheme
@every_method
def test_it_gives_finite_weights_and_a_grid_of_the_form_of_the_codec(method: str, scheme: str) -> None:
    some = task(scheme)
    found = solve(method, some)
    if found is None:
        return
    w, grid, outcome = found
    assert w.shape == some.w.shape and w.dtype == np.float32 and np.isfinite(w).all()
    codec = codec_of(some.scheme)
    arrays = codec.encode(w, some.scheme, None, grid)
    codec.check(arrays, some.scheme, *w.shape)
    assert arrays.keys() == codec.form(some.scheme, *w.shape).keys() == grid.keys() | {"packed"}
    assert outcome.method == method


@every_scheme
@every_method
def test_holes_stay_holes(method: str, scheme: str) -> None:
    some = task(scheme, keep=weights() != 0)
    found = solve(method, some)
    if found is None:
        return
    w, grid, _ = found
    assert not w[weights() == 0].any()
    if "min" not in some.scheme.flags:  # whose grids need not have 0
        decoded = codec_of(some.scheme).decode(
            codec_of(some.scheme).encode(w, some.scheme, None, grid), some.scheme, 75
        )
        assert not decoded[weights() == 0].any()


@every_method
def test_it_is_deterministic(method: str) -> None:
    first, second = (quantize_matrix(task("int4-g32"), method, {}) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0], strict=True)
    for name, array in first[1].items():
        np.testing.assert_array_equal(array, second[1][name], strict=True)


@every_method
def test_a_scale_dtype_that_is_asked_for_is_kept(method: str) -> None:
    for dtype in (np.float16, np.float32):
        assert quantize_matrix(task("int4-g32", scale_dtype=dtype), method, {})[1]["scale"].dtype == dtype
