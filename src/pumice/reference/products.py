"""``y = x @ w.T + bias``: the integer modes to the bit, the float32 mode in float64.

All float32 operations round to nearest even, none is fused, and sums run in ascending order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.reference.base import F32, LAYOUTS, Integers, Parts
from pumice.reference.permutation import PERM, without_order
from pumice.reference.sums import terms_of
from pumice.scheme import Scheme

BLOCK = 128  # columns of x that share a scale
LEVELS = {"int16": 16256, "int8": 127}  # 16256 = 127 * 128: two int8 digits, a = 128 * hi + lo
DEAD = np.float32(2.0**-100)  # a block whose largest |x| is smaller counts as 0


def quantize_block(x: F32, levels: int) -> tuple[NDArray[np.int64], F32]:
    """Integers a (batch, columns) and one scale per row (batch,) of one block of x.

    Examples
    --------
    >>> a, scale = quantize_block(np.array([[1.0, -0.25, 0.5]], np.float32), 127)
    >>> a, scale == np.float32(1) / np.float32(127)
    (array([[127, -32,  64]]), array([ True]))
    """
    largest = np.abs(x).max(axis=1)
    live = largest >= DEAD
    a, scale = np.zeros(x.shape, np.int64), np.zeros(len(x), np.float32)
    scale[live] = largest[live] / np.float32(levels)
    inverse = np.float32(levels) / largest[live]
    a[live] = np.rint(x[live] * inverse[:, None])
    return a, scale


def integer_product(x: F32, w: Integers, levels: int) -> F32:
    """x (batch, cols) @ w.T in the arithmetic of the integer modes: float32 (batch, rows)."""
    finite = np.isfinite(x).all(axis=1)
    y = np.full((len(x), len(w.steps)), np.nan, np.float32)  # a row with NaN or infinity gives a row of NaN
    y[finite] = 0
    x = x[finite]
    blocks = [quantize_block(x[:, k : k + BLOCK], levels) for k in range(0, x.shape[1], BLOCK)]
    total = y[finite]
    for g in range(-(-x.shape[1] // w.group)):
        start, stop = g * w.group, min((g + 1) * w.group, x.shape[1])
        s, u = np.zeros_like(total), np.zeros((len(x), 1), np.float32)
        for b in range(start // BLOCK, -(-stop // BLOCK)):
            a, scale = blocks[b]
            first, last = max(start, b * BLOCK), min(stop, (b + 1) * BLOCK)
            segment = a[:, first - b * BLOCK : last - b * BLOCK]
            t = segment @ w.steps[:, first:last].T  # integers, below 2^29
            s += t.astype(np.float32) * scale[:, None]
            u += segment.sum(axis=1, keepdims=True).astype(np.float32) * scale[:, None]
        total += s * w.scales[:, g]
        if w.minima is not None:
            total += w.minima[:, g] * u
    y[finite] = total
    return y


def product(
    x: F32, parts: Parts, scheme: Scheme, rows: int, cols: int, bias: F32 | None = None, activations: str = "int16"
) -> NDArray[Any]:
    """x (batch, cols) @ w.T + bias.

    float32, to the bit, for integer weights with activations "int16" or "int8"; float64 otherwise, where production
    promises accuracy.
    """
    y: NDArray[Any]
    if scheme.terms:
        (first, ours), (second, theirs) = terms_of(parts, scheme)
        y = product(x, ours, first, rows, cols, bias, activations)
        y = y + product(x, theirs, second, rows, cols, None, activations)
        return y
    if PERM in parts:  # blocks of x are blocks of permuted columns
        x, parts = x[:, parts[PERM]], without_order(parts)
    definition = LAYOUTS[scheme.layout]
    weights = definition.integers(parts, scheme, rows, cols)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if weights is None or activations == "float32":
            y = x.astype(np.float64) @ definition.decode(parts, scheme, rows, cols).T.astype(np.float64)
        else:
            y = integer_product(x, weights, LEVELS[activations])
        return y if bias is None else y + bias
