"""What every product promises: bits in the integer modes, derived bounds in the others."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import pumice as pm
from pumice import reference
from pumice._core import native
from pumice.layouts import LAYOUTS, CompactArray
from pumice.options import options
from pumice.scheme import Scheme

from .cases import (
    BATCHES,
    activations,
    bias_of,
    expected_parts,
    expected_product,
    finite_activations,
    fitted,
    fitting,
    schemes,
    seed,
    shapes,
)
from .tolerances import assert_same_bits, product_bound

MODES = ("int16", "int8")


def made(scheme: str, kind: str, rows: int, cols: int) -> CompactArray:
    parsed = Scheme.parse(scheme)
    return LAYOUTS[parsed.layout].encode(fitting(scheme, kind, rows, cols), parsed, (rows, cols))


def is_exact(scheme: str) -> bool:
    """Whether integer kernels multiply this scheme; without one, decoded rows go to BLAS, which has no fixed order."""
    parsed = Scheme.parse(scheme)
    cols = fitted(scheme, 1)
    parts = expected_parts(scheme, "normal", 1, cols)
    assert parts is not None
    integers = reference.LAYOUTS[parsed.layout].integers(parts, parsed, 1, cols)
    return integers is not None and made(scheme, "normal", 1, cols).kernel(1, "int16") is not None


EXACT = [scheme for scheme in schemes() if is_exact(scheme)]
FLOAT = [(s, mode) for s in schemes() for mode in ("int16", "float32") if mode == "float32" or s not in EXACT]


def test_every_int8_and_int4_scheme_is_exact() -> None:
    integers = {s for s in schemes() if Scheme.parse(s).values in ("int8", "int4")}
    assert integers and integers <= set(EXACT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scheme", EXACT)
def test_integer_products_have_the_bits_of_the_reference(scheme: str, mode: str, isa: str) -> None:
    for rows, cols in shapes(scheme):
        array, want, bias = made(scheme, "edges", rows, cols), expected_product(scheme, rows, cols, mode), bias_of(rows)
        for prepack in ("never", "eager"):
            if prepack == "eager":
                array.prepack()
            with options(prepack=prepack):
                for batch in BATCHES:
                    first = 5 * batch % (65 - batch)
                    rows_of_x, wanted = activations(cols)[first : first + batch], want[first : first + batch]
                    for added, total in ((None, wanted), (bias, wanted + bias)):
                        label = rows, cols, batch, prepack, "no bias" if added is None else "bias"
                        assert_same_bits(array.linear(rows_of_x, added, mode), total, label)


@cache
def large(scheme: str, mode: str) -> tuple[CompactArray, np.ndarray, np.ndarray]:
    """A product that is cut in many chunks of rows: weights, x, and what it must give."""
    rows, cols = 700, fitted(scheme, 768)
    parsed, array = Scheme.parse(scheme), made(scheme, "sparse", rows, cols)
    x = seed("large", mode).standard_normal((64, cols)).astype(np.float32)
    return array, x, reference.linear(x, array.parts(), parsed, (rows, cols), None, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scheme", EXACT)
def test_the_bits_do_not_depend_on_threads(scheme: str, mode: str, isa: str, threads: int) -> None:
    array, x, want = large(scheme, mode)
    for prepack in ("never", "lazy"):
        array.keep_canonical() if prepack == "never" else array.prepack()
        with options(prepack=prepack):
            for batch in (1, 7, 64):
                assert_same_bits(array.linear(x[:batch], None, mode), want[:batch], (batch, prepack))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scheme", [s for s in EXACT if not Scheme.parse(s).dense])
def test_sparse_integer_products_are_those_of_the_dense_codes(scheme: str, mode: str, isa: str) -> None:
    for rows, cols in shapes(scheme):
        sparse = made(scheme, "edges", rows, cols)
        dense = pm.compress(fitting(scheme, "edges", rows, cols), scheme.partition("+")[2])
        x = activations(cols)
        assert_same_bits(sparse.linear(x, None, mode), dense.linear(x, None, mode), (rows, cols))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scheme", EXACT)
def test_a_row_with_nan_or_infinity_gives_a_row_of_nan_and_no_other(scheme: str, mode: str) -> None:
    cols = fitted(scheme, 129)
    x = finite_activations(cols).copy()
    x[5, 128], x[9, 0], x[60, 64] = np.nan, np.inf, -np.inf
    y = made(scheme, "sparse", 33, cols).linear(x, None, mode)
    assert np.isnan(y[[5, 9, 60]]).all()
    assert np.isfinite(np.delete(y, [5, 9, 60], axis=0)).all()


def sizes(parts: dict[str, np.ndarray], scheme: Scheme, rows: int, cols: int) -> tuple[np.ndarray, int]:
    """What the roundings of a product are relative to, and how many the groups add: sums, and the decoding of a sum."""
    groups = -(-cols // scheme.group) if scheme.group else 1
    integers = reference.LAYOUTS[scheme.layout].integers(parts, scheme, rows, cols)
    if integers is None or integers.minima is None:
        return reference.decode(parts, scheme, (rows, cols)).astype(np.float64), groups
    group_of = np.arange(cols) // integers.group
    scaled = integers.steps * integers.scales.astype(np.float64)[:, group_of]
    return np.abs(scaled) + np.abs(integers.minima.astype(np.float64)[:, group_of]), 2 * groups + 1


@pytest.mark.parametrize(("scheme", "mode"), FLOAT)
def test_float_products_are_within_the_derived_bound(scheme: str, mode: str, isa: str) -> None:
    parsed = Scheme.parse(scheme)
    for rows, cols in shapes(scheme):
        array, x, bias = made(scheme, "edges", rows, cols), finite_activations(cols), bias_of(rows)
        parts = array.parts()
        w, roundings = sizes(parts, parsed, rows, cols)
        exact = reference.linear(x, parts, parsed, (rows, cols), bias, "float32")
        bound = product_bound(x.astype(np.float64), w, bias, roundings)
        for prepack in ("never", "eager"):
            if prepack == "eager":
                array.prepack()
            with options(prepack=prepack):
                for batch in (0, 1, 3, 4, 8, 9, 64):
                    y = array.linear(x[:batch], bias, mode)
                    assert y.dtype == np.float32
                    assert (np.abs(y - exact[:batch]) <= bound[:batch]).all(), (rows, cols, batch, prepack)


@pytest.mark.parametrize("scheme", [s for s in schemes() if not Scheme.parse(s).dense and s not in EXACT])
def test_sparse_float_products_touch_stored_values_only(scheme: str, isa: str) -> None:
    w = np.zeros((16, 120), np.float32)
    w[:, 0] = 1
    parsed = Scheme.parse(scheme)
    array = LAYOUTS[parsed.layout].encode(w, parsed, w.shape)
    x = np.ones((5, 120), np.float32)
    holes = np.arange(120) >= 60
    if parsed.layout == "nm":  # which stores zeros, too: the first ones
        holes &= np.arange(120) % parsed.numbers[1] >= parsed.numbers[0]
    x[:, holes] = [[np.nan], [np.inf], [-np.inf], [1], [np.nan]]
    np.testing.assert_array_equal(array.linear(x), np.ones((5, 16)))


@pytest.mark.parametrize("scheme", schemes())
def test_the_other_product_is_that_of_the_decoded_weights(scheme: str) -> None:
    cols = fitted(scheme, 129)
    array, x = made(scheme, "large", 33, cols), finite_activations(33)
    w = array.to_dense().astype(np.float64)
    bound = product_bound(x.astype(np.float64), w.T, np.zeros(cols), 1)
    assert (np.abs(x @ array - x.astype(np.float64) @ w) <= bound).all()


def test_the_machine_has_the_scalar_isa_at_least() -> None:
    assert "scalar" in native.isas()
