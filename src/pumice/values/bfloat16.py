"""bfloat16: the upper half of a float32. NumPy has no such dtype: patterns are uint16."""

from __future__ import annotations

import numpy as np

from pumice._core import native
from pumice.values.base import register
from pumice.values.half import Half


class BFloat16(Half):
    name = "bfloat16"
    largest = "3.39e38"
    dtype = sparse_dtype = np.uint16
    file_dtypes = {"": "BF16"}  # noqa: RUF012

    def kernel(self, batch: int, activations: str) -> str | None:
        """The kernel for any batch where a matrix unit multiplies such pairs."""
        return "matmul_f32_half" if native.get_isa() == "amx" else super().kernel(batch, activations)


register(BFloat16())
