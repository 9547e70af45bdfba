"""How far a float32 product may be from the exact one, and what equal means. Derived, never tuned."""

from __future__ import annotations

import numpy as np

UNIT = 2.0**-24  # half the distance of 1 to the next float32
SMALLEST = 2.0**-149


def gamma(n: int) -> float:
    """n roundings change a value by at most this share (Higham 2002, lemma 3.1)."""
    return n * UNIT / (1 - n * UNIT)


def product_bound(x: np.ndarray, w: np.ndarray, bias: np.ndarray, groups: int) -> np.ndarray:
    """|computed - exact| of x (batch, cols) @ w.T + bias in float32, in any order, fused or not.

    A term meets these roundings: decoding its weight (1), its product (1), at most cols - 1 sums inside its group, the
    scale (1), a sum per group, the bias (1). What underflows adds at most one smallest float32 an operation, which a
    scale or an x beyond 1 can enlarge.
    """
    cols = w.shape[1]
    size = np.abs(x) @ np.abs(w).T + np.abs(bias)
    largest = max(1.0, float(np.abs(w).max(initial=0)), float(np.abs(x).max(initial=0)))
    return gamma(cols + groups + 3) * size + 3 * (cols + 1) * SMALLEST * largest


def assert_same_bits(got: np.ndarray, want: np.ndarray, label: object = "") -> None:
    """Equal dtypes, shapes and bit patterns; NaN equals NaN of any payload."""
    assert got.dtype == want.dtype, (label, got.dtype, want.dtype)
    assert got.shape == want.shape, (label, got.shape, want.shape)
    got, want = np.ascontiguousarray(got), np.ascontiguousarray(want)
    differs = got.reshape(-1).view(f"u{got.itemsize}") != want.reshape(-1).view(f"u{want.itemsize}")
    if not differs.any():
        return
    if got.dtype.kind == "f":
        differs &= ~(np.isnan(got) & np.isnan(want)).reshape(-1)
    bad = np.flatnonzero(differs)
    if bad.size:
        at = np.unravel_index(bad[0], got.shape)
        raise AssertionError(f"{label}: {bad.size} of {got.size} differ, first at {at}: {got[at]!r}, not {want[at]!r}")


def assert_same_parts(got: dict[str, np.ndarray], want: dict[str, np.ndarray], label: object = "") -> None:
    assert got.keys() == want.keys(), (label, sorted(got), sorted(want))
    for name in want:
        assert_same_bits(got[name], want[name], (label, name))
