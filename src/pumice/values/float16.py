"""float16: IEEE 754 binary16, rounded half to even."""

from __future__ import annotations

from typing import Any

import numpy as np

from pumice.errors import NonFiniteError
from pumice.scheme import Scheme
from pumice.values.base import F32, Arrays, register
from pumice.values.half import Half


class Float16(Half):
    name = "float16"
    dtype = sparse_dtype = np.float16

    def encode(self, w: F32, scheme: Scheme, scale_dtype: Any = None) -> Arrays:
        with np.errstate(over="ignore"):
            half = w.astype(np.float16)
        overflow = np.flatnonzero(np.isinf(half) & np.isfinite(w))
        if overflow.size:
            index = tuple(int(i) for i in np.unravel_index(overflow[0], w.shape))
            raise NonFiniteError(f"w: expected values within float16 (65504), got {w[index]} at index {index}")
        return {"": half}

    def decode(self, arrays: Arrays, scheme: Scheme, cols: int) -> F32:
        return arrays[""].astype(np.float32)


register(Float16())
