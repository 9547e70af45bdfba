"""What float16 and bfloat16 share: 16-bit patterns, and a kernel that widens them in registers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.scheme import Scheme
from pumice.values.base import F32, Array, Arrays, Codec, Weights

NEGATIVE_ZERO = 0x8000
KERNEL_BATCH = 128  # beyond it, decoding row panels and BLAS is faster


class Half(Codec):
    bits = 16
    dtype: ClassVar[Any]
    """dtype of the stored array: float16, or uint16 patterns of bfloat16."""

    def form(self, scheme: Scheme, rows: int, cols: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        return {"": (self.dtype, (rows, cols))}

    def encode_sparse(self, w: F32, scheme: Scheme, scale_dtype: Any = None) -> tuple[Array, Array | None]:
        values = self.encode(w, scheme)[""]
        patterns = values.view(np.uint16)
        patterns[patterns == NEGATIVE_ZERO] = 0
        return values, None

    def kernel(self, batch: int, activations: str) -> str | None:
        return "matmul_f32_half" if batch <= KERNEL_BATCH else None

    def weights(self, arrays: Arrays, scheme: Scheme, rows: int, cols: int) -> Weights:
        bits: NDArray[np.uint16] = arrays[""].view(np.uint16)
        return native.DenseHalf(bits, self.dtype is np.uint16)
