"""int8: one code a byte."""

from __future__ import annotations

import numpy as np

from pumice.values.base import register
from pumice.values.integer import Integer


class Int8(Integer):
    sparse_dtype = np.int8


register(Int8(8))
