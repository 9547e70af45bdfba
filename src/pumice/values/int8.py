"""int8: one code a byte; in sparse layouts signed, with one scale per row, so that a hole is exactly 0."""

from __future__ import annotations

import numpy as np

from pumice.scheme import Scheme
from pumice.values.base import F32, Array, register
from pumice.values.integer import Integer

PER_ROW = Scheme(values="int8")


class Int8(Integer):
    sparse_dtype = np.int8

    def encode_sparse(self, w: F32) -> tuple[Array, F32 | None]:
        arrays = self.encode(w, PER_ROW, np.float32)
        codes = arrays["packed"][:, : w.shape[1]]
        return (codes ^ 0x80).view(np.int8), arrays["scale"][:, 0]


register(Int8(8))
