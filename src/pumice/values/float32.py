"""float32: values as they are. Products are NumPy's BLAS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pumice.scheme import Scheme
from pumice.values.base import F32, Array, Arrays, Codec, Weights, register


@dataclass(frozen=True)
class Blas:
    """A matrix that NumPy multiplies with."""

    w: F32

    def matmul(self, x: F32, y: F32, bias: F32 | None, activations: str) -> None:
        with np.errstate(all="ignore"):  # as our kernels: NaN and infinity are results, not events
            np.matmul(x, self.w.T, out=y)
        if bias is not None:
            y += bias


class Float32(Codec):
    name = "float32"
    bits = 32
    sparse_dtype = np.float32

    def form(self, scheme: Scheme, rows: int, cols: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        return {"": (np.float32, (rows, cols))}

    def encode(self, w: F32, scheme: Scheme, scale_dtype: Any = None) -> Arrays:
        return {"": w.copy()}

    def decode(self, arrays: Arrays, scheme: Scheme, cols: int) -> F32:
        return arrays[""].astype(np.float32)  # a copy: callers may write to what they decode

    def kernel(self, batch: int, activations: str) -> str | None:
        return "BLAS"

    def weights(self, arrays: Arrays, scheme: Scheme, rows: int, cols: int) -> Weights:
        return Blas(arrays[""])

    def encode_sparse(self, w: F32, scheme: Scheme, scale_dtype: Any = None) -> tuple[Array, Array | None]:
        return w, None


register(Float32())
