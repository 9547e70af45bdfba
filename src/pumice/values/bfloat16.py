"""bfloat16: the upper half of a float32, rounded half to even. NumPy has no such dtype: patterns are uint16."""

from __future__ import annotations

from typing import Any

import numpy as np

from pumice.errors import NonFiniteError
from pumice.scheme import Scheme
from pumice.values.base import F32, Array, Arrays, register
from pumice.values.half import Half


class BFloat16(Half):
    name = "bfloat16"
    dtype = sparse_dtype = np.uint16
    file_dtypes = {"": "BF16"}  # noqa: RUF012

    def encode(self, w: F32, scheme: Scheme, scale_dtype: Any = None) -> Arrays:
        bits = w.view(np.uint32)
        # Adding 0x7fff, and one more if the kept part is odd, carries into it exactly when half-to-even rounds up.
        finite = (bits & 0x7F800000) != 0x7F800000
        half = np.where(finite, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16, bits >> 16).astype(np.uint16)
        overflow = np.flatnonzero(finite & ((half & 0x7F80) == 0x7F80))
        if overflow.size:
            index = tuple(int(i) for i in np.unravel_index(overflow[0], w.shape))
            raise NonFiniteError(f"w: expected values within bfloat16 (3.39e38), got {w[index]} at index {index}")
        return {"": half}

    def decode(self, arrays: Arrays, scheme: Scheme, cols: int) -> F32:
        return self.decode_sparse(arrays[""])

    def decode_sparse(self, values: Array) -> F32:
        return (values.astype(np.uint32) << 16).view(np.float32)


register(BFloat16())
