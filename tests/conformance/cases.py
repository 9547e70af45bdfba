"""The cases: every scheme that the grammar allows, weights that are hard on an encoder, x that is hard on a kernel."""

from __future__ import annotations

from functools import cache
from math import lcm
from typing import Any

import numpy as np

from pumice import reference
from pumice.errors import NonFiniteError
from pumice.layouts import LAYOUTS
from pumice.scheme import SUM, Scheme
from pumice.values import CODECS

GROUPS = (None, 16, 32, 128, 256)
SPARSE_GROUPS = (None, 16, 128)
NUMBERS: dict[int, list[tuple[int, ...]]] = {
    0: [()],
    1: [(4,), (16,)],
    2: [(4, 4), (2, 4), (3, 5), (16, 1), (16, 4)],
}

# Around a panel (16 rows), a vector (8 and 16 lanes), a word of nibbles (8), a block of x (128) and a group.
SHAPES = (
    (17, 1), (1, 3), (15, 15), (16, 16), (33, 17), (1, 31), (17, 32), (33, 33), (16, 127), (17, 128), (15, 129),
    (1, 128), (1, 300), (33, 300),
)  # fmt: skip
ENCODED_SHAPES = ((1, 1), (3, 16), (17, 33), (33, 129), (16, 300))
KINDS = ("normal", "large", "sparse", "edges", "offset", "wide")
BATCHES = (*range(14), 64)


def schemes() -> list[str]:
    """Every layout with each of its values, every codec with each of its options."""
    found = []
    for layout in LAYOUTS.values():
        grammar = layout.grammar
        if grammar.name == SUM:
            continue  # tests/test_sums.py
        for numbers in NUMBERS[grammar.numbers]:
            chosen = CODECS if grammar.values is None else grammar.values
            for name in chosen:
                free = grammar.values is None
                groups = (
                    (GROUPS if free else SPARSE_GROUPS) if CODECS[name].group and (free or grammar.group) else (None,)
                )
                options = [(), *((flag,) for flag in CODECS[name].flags)] if free else [()]
                parsed = [Scheme(grammar.name, numbers, name, group, some) for group in groups for some in options]
                found += [str(scheme) for scheme in parsed if not grammar.refuses(scheme)]
    assert len(found) == len(set(found)) >= len(LAYOUTS) - 1 + len(CODECS)
    return found


def row_step(scheme: Scheme) -> int:
    """Rows may be cut at multiples of this."""
    return scheme.numbers[0] if scheme.layout == "bsr" else 1


def column_step(scheme: Scheme) -> int:
    """Columns may be cut at multiples of this."""
    return lcm(scheme.group or 1, scheme.numbers[1] if scheme.numbers else 1)


@cache
def fitted(scheme: str, cols: int) -> int:
    """`cols`, or as few more as the layout needs: N:M stores whole patterns."""
    parsed = Scheme.parse(scheme)
    return -(-cols // parsed.numbers[1]) * parsed.numbers[1] if parsed.layout == "nm" else cols


@cache
def shapes(scheme: str, some: tuple[tuple[int, int], ...] = SHAPES) -> list[tuple[int, int]]:
    """Shapes that the layout can have."""
    return list(dict.fromkeys((rows, fitted(scheme, cols)) for rows, cols in some))


@cache
def fitting(scheme: str, kind: str, rows: int, cols: int) -> np.ndarray:
    """`weights` with no more values than the layout stores, N of every M columns, the largest ones; read-only."""
    w, parsed = weights(kind, rows, cols), Scheme.parse(scheme)
    if parsed.layout != "nm":
        return w
    kept, of = parsed.numbers
    order = np.argsort(-np.abs(w.reshape(rows, -1, of)), axis=2, kind="stable")
    mask = np.zeros(order.shape, bool)
    np.put_along_axis(mask, order[:, :, :kept], True, axis=2)
    w = np.where(mask.reshape(rows, cols), w, np.float32(0))
    w.setflags(write=False)
    return w


def seed(*parts: Any) -> np.random.Generator:
    return np.random.default_rng(list(repr(parts).encode()))


@cache
def weights(kind: str, rows: int, cols: int) -> np.ndarray:
    """A read-only float32 matrix.

    `large`: 1 and more. `edges`: ties of +a and -a, all-zero rows and groups, -0.0, tiny groups, float16's limits.
    `offset`: far from 0 on either side, some rows and groups constant, one minimum that is subnormal in float16.
    `wide`: the whole float32 range, which float16 and bfloat16 cannot hold.
    """
    rng = seed(kind, rows, cols)
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    if kind == "sparse":
        w[rng.random((rows, cols)) < 0.9] = 0
    if kind == "large":
        w = np.sign(w) * (1 + np.abs(w))
    if kind == "edges":
        w = np.rint(w * 4) / np.float32(4)  # ties everywhere
        w[rng.random((rows, cols)) < 0.2] = -0.0
        w[1::5] = 0
        w[2::5] *= -0.0
        w[3::5] *= np.float32(2.0**-13)
        w[:, 16:32] = np.abs(w[:, 16:32])
        w[:, 32:48] = -np.abs(w[:, 32:48])
        w[4::5, :16] = 0
        w[:, 48:96] = 1 + rng.integers(0, 128, w[:, 48:96].shape) * 2.0**-8  # half of them ties of bfloat16
        w[:, 96:128] = 1 + rng.integers(0, 1024, w[:, 96:128].shape) * 2.0**-11  # and of float16
        w[0, 0], w[0, -1] = 60000.0, -60000.0
        w[-1, 0], w[-1, -1] = -60000.0, 60000.0
    if kind == "offset":
        w = w * np.float32(0.01) + np.where(np.arange(rows) % 2, 3, -0.3)[:, None].astype(np.float32)
        w[1::5] = np.float32(0.1)
        w[2::5, :32] = np.float32(-0.1)
        w[-1] = np.abs(w[-1])
        w[-1, :16], w[-1, 0] = np.float32(0.1), np.float32(1e-6)
    if kind == "wide":
        w *= np.exp2(rng.integers(-148, 126, (rows, 1))).astype(np.float32)
        w[0, 0] = np.finfo(np.float32).max
        w[rows // 2] = 1e-45
    w.setflags(write=False)
    return w


@cache
def activations(cols: int) -> np.ndarray:
    """64 rows of x: plain ones, and every kind that could go wrong."""
    x = seed("x", cols).standard_normal((64, cols)).astype(np.float32)
    x[1] *= np.float32(1e30)
    x[2] *= np.float32(1e-40)  # subnormal: below the smallest block that counts
    x[3] = -0.0
    x[4, cols // 2] = np.nan
    x[5, -1] = np.inf
    x[6, ::2] *= np.float32(1e30)
    x[7] = np.rint(x[7] * 8) + np.float32(0.5)  # halves: rint must go to even
    x[7, 0] = 127.0
    x[8] = np.sign(x[8]) * np.float32(2.0**-100)  # exactly the smallest block that counts
    x[9, : cols // 2] = 0
    x[10] = np.finfo(np.float32).max
    x[12] = -np.inf
    x.setflags(write=False)
    return x


@cache
def finite_activations(cols: int) -> np.ndarray:
    """64 rows of x for bounds: finite, with zeros and subnormals; read-only."""
    x = seed("finite", cols).standard_normal((64, cols)).astype(np.float32)
    x[1] *= np.float32(1e-40)
    x[2] = -0.0
    x[3] *= np.float32(1e12)
    x.setflags(write=False)
    return x


def bias_of(rows: int) -> np.ndarray:
    return seed("bias", rows).standard_normal(rows).astype(np.float32)


@cache
def expected_parts(scheme: str, kind: str, rows: int, cols: int) -> dict[str, np.ndarray] | None:
    """What the reference encodes; None where it refuses the weights."""
    try:
        return reference.encode(fitting(scheme, kind, rows, cols).copy(), Scheme.parse(scheme))
    except NonFiniteError:
        return None


@cache
def expected_product(scheme: str, rows: int, cols: int, mode: str) -> np.ndarray:
    """The reference's product with all 64 rows of x, without bias; a smaller batch is some of its rows."""
    parts = expected_parts(scheme, "edges", rows, cols)
    assert parts is not None
    return reference.linear(activations(cols), parts, Scheme.parse(scheme), (rows, cols), None, mode)
