"""bitmask and N:M beyond the laws of tests/conformance: what is refused, and what is stored."""

from __future__ import annotations

import numpy as np
import pytest

import pumice as pm

W = np.array([[0, 2, 0, 3, 0, 0], [0, 0, 4, 0, 0, 5]], np.float32)


def changed(w: pm.CompactArray, part: str, value: object) -> pm.CompactArray:
    """The array from its parts, one of them another."""
    return pm.from_parts(w.scheme, w.shape, w.parts() | {part: value})


def test_more_values_than_the_pattern_keeps_are_refused_with_their_place() -> None:
    w = np.zeros((300, 8), np.float32)
    w[:, 1] = 1
    w[270, 4:7] = 1
    with pytest.raises(ValueError, match=r"at most 2 values in every 4 columns, got more in row 270 from column 4 on"):
        pm.compress(w, "2:4")
    with pytest.raises(ValueError, match=r"columns in multiples of 4 for 2:4, got 6"):
        pm.compress(W, "2:4")


def test_a_value_that_rounds_to_zero_counts_as_none() -> None:
    w = np.array([[1, 1, 1e-3, 0]], np.float32)
    assert pm.compress(w, "2:4+int4").nnz == 2
    assert pm.compress(np.array([[1, 1e-30, -0.0]], np.float32), "bitmask+float16").nnz == 1


@pytest.mark.parametrize("scheme", ["4:4", "5:4", "2:65"])
def test_patterns_that_keep_everything_or_span_too_much_are_no_schemes(scheme: str) -> None:
    with pytest.raises(pm.SchemeError, match="N < M <= 64"):
        pm.compress(np.eye(4), scheme)


def test_bits_beyond_the_columns_are_refused() -> None:
    w = pm.compress(W, "bitmask")
    with pytest.raises(pm.FormatError, match="no bits beyond the columns, got others in row 0"):
        changed(w, "bitmask", w.bitmask | np.uint8(0x40))


def test_bits_and_values_must_agree() -> None:
    w = pm.compress(W, "bitmask+int8")
    with pytest.raises(pm.FormatError, match=r"int8 of shape \(5,\)"):
        changed(w, "bitmask", w.bitmask | np.uint8(1) * np.array([[1], [0]], np.uint8))
    nm = pm.compress(np.eye(4, dtype=np.float32), "1:4")
    with pytest.raises(pm.FormatError, match="1 bits in every 4 columns, got others in row 2"):
        changed(nm, "bitmask", nm.bitmask ^ np.uint8(3))
    with pytest.raises(pm.FormatError, match="finite scales"):
        changed(w, "scale", np.full((2, 1), np.nan, np.float32))


def test_rows_are_taken_and_cut_from_either_form() -> None:
    w = pm.prune(np.random.default_rng(0).standard_normal((200, 96)).astype(np.float32), 0.7)
    ids = np.array([199, 0, 17, 17, 16])
    for scheme in ("bitmask", "bitmask+int4-g32"):
        array = pm.compress(w, scheme)
        for _ in range(2):
            np.testing.assert_array_equal(array.take(ids), array.to_dense()[ids])
            np.testing.assert_array_equal(array[40:60].to_dense(), array.to_dense()[40:60])
            array.prepack()
