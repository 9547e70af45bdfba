"""What float16 and bfloat16 share: 16-bit patterns, and a kernel that widens them in registers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.scheme import Scheme
from pumice.values.base import F32, Arrays, Codec

KERNEL_BATCH = 8  # beyond it, decoding row panels and BLAS is faster


class Half(Codec):
    bits = 16
    dtype: ClassVar[Any]
    """dtype of the stored array: float16, or uint16 patterns of bfloat16."""

    def form(self, scheme: Scheme, rows: int, cols: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        return {"": (self.dtype, (rows, cols))}

    def kernel(self, batch: int, activations: str) -> str | None:
        return "matmul_f32_half" if batch <= KERNEL_BATCH else None

    def matmul(self, arrays: Arrays, scheme: Scheme, x: F32, y: F32, bias: F32 | None, activations: str) -> None:
        bits: NDArray[np.uint16] = arrays[""].view(np.uint16)
        native.matmul_dense_half(x, y, bits, bias, self.dtype is np.uint16)
