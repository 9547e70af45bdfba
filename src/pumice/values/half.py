"""float16 and bfloat16: 16-bit patterns, rounded half to even, which kernels widen in registers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.errors import NonFiniteError
from pumice.scheme import Scheme
from pumice.values.base import F32, Array, Arrays, Codec, Weights

NEGATIVE_ZERO = 0x8000
KERNEL_BATCH = 128  # beyond it, decoding row panels and BLAS is faster


class Half(Codec):
    bits = 16
    dtype: ClassVar[Any]
    """dtype of the stored array: float16, or uint16 patterns of bfloat16."""
    largest: ClassVar[str]

    def form(self, scheme: Scheme, rows: int, cols: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        return {"": (self.dtype, (rows, cols))}

    def encode(self, w: F32, scheme: Scheme, scale_dtype: Any = None) -> Arrays:
        bits, overflow = native.encode_halves(np.ascontiguousarray(w), self.dtype is np.uint16)
        if overflow >= 0:
            index = tuple(int(i) for i in np.unravel_index(overflow, w.shape))
            raise NonFiniteError(
                f"w: expected values within {self.name} ({self.largest}), got {w[index]} at index {index}"
            )
        return {"": bits.view(self.dtype)}

    def decode(self, arrays: Arrays, scheme: Scheme, cols: int) -> F32:
        return self.decode_sparse(arrays[""])

    def encode_sparse(self, w: F32, scheme: Scheme, scale_dtype: Any = None) -> tuple[Array, Array | None]:
        values = self.encode(w, scheme)[""]
        patterns = values.view(np.uint16)
        patterns *= patterns != NEGATIVE_ZERO
        return values, None

    def decode_sparse(self, values: Array) -> F32:
        bits: NDArray[np.uint16] = np.ascontiguousarray(values).view(np.uint16)
        return native.decode_halves(bits, self.dtype is np.uint16)

    def kernel(self, batch: int, activations: str) -> str | None:
        return "matmul_f32_half" if batch <= KERNEL_BATCH else None

    def weights(self, arrays: Arrays, scheme: Scheme, rows: int, cols: int) -> Weights:
        bits: NDArray[np.uint16] = arrays[""].view(np.uint16)
        return native.DenseHalf(bits, self.dtype is np.uint16)
