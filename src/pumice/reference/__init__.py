"""The specification that runs: every codec, layout and product in plain NumPy, written to be read.

docs/formats.md says the same in words. Tests compare production with this package; production never imports it, and it
calls nothing of production but the grammar of schemes.

>>> import numpy as np
>>> from pumice.scheme import Scheme
>>> scheme, w = Scheme.parse("int4"), np.array([[-1.0, 0.5, 0.75]], np.float32)
>>> parts = encode(w, scheme)
>>> parts["packed"], parts["scale"]
(array([[3776]], dtype=int32), array([[0.125]], dtype=float32))
>>> decode(parts, scheme, w.shape)
array([[-1.  ,  0.5 ,  0.75]], dtype=float32)
>>> linear(np.ones((1, 3), np.float32), parts, scheme, w.shape)
array([[0.25]], dtype=float32)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.reference import bitmask, compressed, float8, floats, integers, sums  # noqa: F401 - they fill the tables
from pumice.reference.base import F32, LAYOUTS, VALUES, Definition, Integers, Parts
from pumice.reference.permutation import decode_in_order
from pumice.reference.products import product
from pumice.scheme import Scheme

__all__ = ["LAYOUTS", "VALUES", "Definition", "Integers", "decode", "encode", "linear"]


def encode(w: F32, scheme: Scheme) -> Parts:
    """The parts of a finite float32 weight (rows, ...), as a file has them."""
    parts = LAYOUTS[scheme.layout].encode(w.reshape(*_matrix(w.shape)), scheme)
    for name in parts.keys() & {""}:
        parts[name] = parts[name].reshape(w.shape)
    for name in parts.keys() & {"shape", "and_shape"}:
        parts[name] = np.array(w.shape, np.int64)
    return parts


def decode(parts: Parts, scheme: Scheme, shape: tuple[int, ...]) -> F32:
    """The weight that the parts mean: float32 of `shape`."""
    return decode_in_order(parts, scheme, *_matrix(shape)).reshape(shape)


def linear(
    x: F32, parts: Parts, scheme: Scheme, shape: tuple[int, ...], bias: F32 | None = None, activations: str = "int16"
) -> NDArray[Any]:
    """x (batch, cols) @ w.T + bias; float64 where the arithmetic is not fixed to the bit."""
    return product(x, parts, scheme, *_matrix(shape), bias, activations)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])
