"""float16: IEEE 754 binary16."""

from __future__ import annotations

import numpy as np

from pumice.values.base import register
from pumice.values.half import Half


class Float16(Half):
    name = "float16"
    largest = "65504"
    dtype = sparse_dtype = np.float16


register(Float16())
