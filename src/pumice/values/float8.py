"""float8: OCP E4M3FN, one byte a weight, with a scale per row or per group.

The rule (docs/formats.md, "float8"): w = scale * value. Scales are rounded to their stored dtype before the codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.scheme import Scheme
from pumice.values.base import F32, Array, Arrays, Codec, Weights, register
from pumice.values.half import KERNEL_BATCH
from pumice.values.integer import SCALE_DTYPES, check_scales, stored_scales
from pumice.values.minifloat import minifloat_values

PANEL_WEIGHTS = 1 << 16  # weights that are encoded at a time, in a near cache
LARGEST = np.float32(448)
SMALLEST_NORMAL = np.float32(2.0**-6)
STEPS = np.float32(2.0**9)  # below the smallest normal number values are 2^-9 apart
SHIFT = 20  # a float32 has that many mantissa bits more
REBIAS = (127 - 7) << 3  # exponent biases of float32 and E4M3, above three mantissa bits


def round_to_codes(x: F32) -> NDArray[np.uint8]:
    """The E4M3FN codes next to finite numbers: half to even, beyond 448 the code of 448, the sign of zero kept.

    Examples
    --------
    >>> [hex(code) for code in round_to_codes(np.array([1, -1.0625, 1e9, 2.0**-9, -0.0], np.float32))]
    ['0x38', '0xb8', '0x7e', '0x1', '0x80']
    """
    size = np.minimum(np.abs(x), LARGEST)
    bits = size.view(np.uint32)
    odd = (bits >> np.uint32(SHIFT)) & np.uint32(1)
    normal = ((bits + np.uint32((1 << (SHIFT - 1)) - 1) + odd) >> np.uint32(SHIFT)) - np.uint32(REBIAS)
    small = np.rint(size * STEPS).astype(np.uint32)  # 8 steps are the smallest normal number, and its code
    codes = np.where(size < SMALLEST_NORMAL, small, normal).astype(np.uint8)
    codes |= np.signbit(x).view(np.uint8) << np.uint8(7)
    return codes


def per_weight(numbers: Array, group: int, cols: int) -> Array:
    """(rows, groups) -> (rows, cols), or what broadcasts to it."""
    return numbers if numbers.shape[1] == 1 else np.repeat(numbers, group, axis=1)[:, :cols]


class Float8(Codec):
    name = "float8"
    bits = 8
    group = True
    file_dtypes = {"": "F8_E4M3"}  # noqa: RUF012

    def form(self, scheme: Scheme, rows: int, cols: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        groups = max(1, -(-cols // self.group_of(scheme, cols)))
        scale_dtypes = SCALE_DTYPES if scheme.group else SCALE_DTYPES[::-1]
        return {"": (np.uint8, (rows, cols)), "scale": (scale_dtypes, (rows, groups))}

    def encode(self, w: F32, scheme: Scheme, scale_dtype: Any = None) -> Arrays:
        group = self.group_of(scheme, w.shape[1])
        low, high = native.group_range(w, group)
        scales = stored_scales(np.maximum(-low, high) / LARGEST, scheme.group is not None, scale_dtype)
        codes = np.empty(w.shape, np.uint8)
        step = max(1, PANEL_WEIGHTS // max(w.shape[1], 1))
        for top in range(0, len(w), step):
            rows = slice(top, top + step)
            scale = per_weight(scales[rows].astype(np.float32), group, w.shape[1])
            live = scale != 0
            codes[rows] = round_to_codes(np.divide(w[rows], scale, out=np.zeros_like(w[rows]), where=live))
        return {"": codes, "scale": scales}

    def decode(self, arrays: Arrays, scheme: Scheme, cols: int) -> F32:
        w: F32 = minifloat_values(4, 3, "fn")[arrays[""]]
        with np.errstate(over="ignore", under="ignore"):
            w *= per_weight(arrays["scale"].astype(np.float32), self.group_of(scheme, cols), cols)
        return w

    def codes(self, arrays: Arrays, cols: int) -> Array:
        return arrays[""].copy()

    def kernel(self, batch: int, activations: str) -> str | None:
        return "matmul_f32_half" if batch <= KERNEL_BATCH else None

    def weights(self, arrays: Arrays, scheme: Scheme, rows: int, cols: int) -> Weights:
        """Codes as they rest: a product makes them halves, exactly, a few rows at a time."""
        return native.DenseFloat8(arrays[""], arrays["scale"].astype(np.float32), self.group_of(scheme, cols))

    def check(self, arrays: Arrays, scheme: Scheme, rows: int, cols: int) -> None:
        super().check(arrays, scheme, rows, cols)
        check_scales("scale", arrays["scale"])

    def columns(self, arrays: Arrays, scheme: Scheme, cols: int, start: int, stop: int) -> Arrays:
        first, last = self.groups_between(scheme, cols, start, stop)
        cut = {"": arrays[""][:, start:stop], "scale": arrays["scale"][:, first:last]}
        return {name: np.ascontiguousarray(array) for name, array in cut.items()}


register(Float8())
