"""What integer codecs share: packed codes, scales per row or per group, and optional zeros.

The rule (docs/formats.md, "Integers"): w = scale * (code - zero). Scales are rounded to their stored dtype before the
codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.errors import FormatError
from pumice.scheme import Scheme
from pumice.values.base import F32, Array, Arrays, Codec, matrix_shape

PANEL = 16  # rows of a panel of the prepacked form
FLOAT32_KERNEL_BATCH = 8  # float32 activations: beyond it, decoding row panels and BLAS is faster
HALF_MIN, HALF_MAX = 2.0**-14, 65504.0  # the normal range of float16
SCALE_DTYPES = (np.float16, np.float32)
FLOAT32_KERNEL_BITS = (4, 8)


def row_bytes(cols: int, bits: int) -> int:
    """Bytes of a packed row: whole 32-bit words."""
    return -(-cols * bits // 32) * 4


def stored_scales(exact: NDArray[np.floating[Any]], grouped: bool, scale_dtype: Any) -> Array:
    """Scales in the dtype that they are stored in.

    float32 per row, float16 per group; a tensor whose float16 scales would be subnormal or overflow uses float32.
    """
    if scale_dtype is None:
        size = np.abs(exact)
        fits = not np.any((size > HALF_MAX) | ((size > 0) & (size < HALF_MIN)))
        scale_dtype = np.float16 if grouped and fits else np.float32
    dtype = np.dtype(scale_dtype)
    if dtype not in (np.float16, np.float32):
        raise ValueError(f"scale_dtype: expected float16 or float32, got {dtype}")
    with np.errstate(over="ignore"):
        scales: Array = exact.astype(np.float32).astype(dtype) + dtype.type(
            0
        )  # -0.0, of an all-zero group, becomes 0.0
    if not np.isfinite(scales).all():
        raise ValueError("scale_dtype: expected one that holds the scales, got float16, which overflows")
    return scales


class Integer(Codec):
    """Unsigned integer codes of `bits` bits."""

    group = True
    flags = ("asym",)
    prepacks = True

    def __init__(self, bits: int) -> None:
        self.bits = bits  # type: ignore[misc]
        self.name = f"int{bits}"  # type: ignore[misc]

    def group_of(self, scheme: Scheme, cols: int) -> int:
        return max(cols, 1) if scheme.group is None else scheme.group

    def form(self, scheme: Scheme, rows: int, cols: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        groups = max(1, -(-cols // self.group_of(scheme, cols)))
        form: dict[str, tuple[Any, tuple[int, ...]]] = {
            "packed": (np.uint8, (rows, row_bytes(cols, self.bits))),
            "scale": (SCALE_DTYPES if scheme.group else SCALE_DTYPES[::-1], (rows, groups)),
        }
        if "asym" in scheme.flags:
            form["zero_point"] = (np.uint8, (rows, groups))
        return form

    def encode(self, w: F32, scheme: Scheme, scale_dtype: Any = None) -> Arrays:
        group, grouped = self.group_of(scheme, w.shape[1]), scheme.group is not None
        low, high = native.group_range(w, group)
        if "asym" not in scheme.flags:
            largest = np.where(high > -low, high, low)
            scales = stored_scales(largest / np.float32(-(2.0 ** (self.bits - 1))), grouped, scale_dtype)
            return {"packed": native.encode_int(w, scales.astype(np.float32), None, self.bits, group), "scale": scales}
        top = 2**self.bits - 1
        low, high = np.minimum(low, 0).astype(np.float64), np.maximum(high, 0).astype(np.float64)
        scales = stored_scales(((high - low) / top).astype(np.float32), grouped, scale_dtype)
        steps = np.divide(-low, scales, out=np.full(low.shape, 2.0 ** (self.bits - 1)), where=scales != 0, dtype=float)
        zeros = np.clip(np.rint(steps), 0, top).astype(np.uint8)
        packed = native.encode_int(w, scales.astype(np.float32), zeros, self.bits, group)
        return {"packed": packed, "scale": scales, "zero_point": zeros}

    def decode(self, arrays: Arrays, scheme: Scheme, cols: int) -> F32:
        scales = arrays["scale"].astype(np.float32)
        packed, zeros = np.ascontiguousarray(arrays["packed"]), arrays.get("zero_point")
        zeros = None if zeros is None else np.ascontiguousarray(zeros)
        return native.decode_int(packed, scales, zeros, self.bits, self.group_of(scheme, cols), cols)

    def codes(self, arrays: Arrays, cols: int) -> Array:
        return native.unpack_codes(np.ascontiguousarray(arrays["packed"]), self.bits, cols)

    def pack(self, codes: NDArray[np.uint8]) -> Arrays:
        """The array that holds these codes (rows, cols)."""
        return {"packed": native.pack_codes(np.ascontiguousarray(codes), self.bits)}

    def to_parts(self, arrays: Arrays, shape: tuple[int, ...]) -> Arrays:
        parts = {"packed": arrays["packed"].view(np.int32), "scale": arrays["scale"]}
        if "zero_point" in arrays:  # packed along the rows, as compressed-tensors does
            zeros = native.pack_codes(np.ascontiguousarray(arrays["zero_point"].T), self.bits)
            parts["zero_point"] = np.ascontiguousarray(zeros.view(np.int32).T)
        parts["shape"] = np.array(shape, np.int64)
        return parts

    def nbytes(self, scheme: Scheme, shape: tuple[int, ...]) -> int:
        rows, cols = matrix_shape(shape)
        form = self.form(scheme, rows, cols)
        size = super().nbytes(scheme, shape) + 8 * len(shape)
        if "zero_point" in form:
            groups = form["zero_point"][1][1]
            size += row_bytes(rows, self.bits) * groups - rows * groups
        return size

    def from_parts(self, parts: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> Arrays:
        rows, cols = matrix_shape(shape)
        form = self.form(scheme, rows, cols)
        words = {"packed": (rows, row_bytes(cols, self.bits) // 4), "scale": form["scale"][1], "shape": None}
        if "zero_point" in form:
            words["zero_point"] = (row_bytes(rows, self.bits) // 4, form["scale"][1][1])
        if set(parts) != set(words):
            raise FormatError(None, None, f"the parts {sorted(words)} for {scheme}", sorted(parts))
        for name in words.keys() & {"packed", "zero_point"}:
            if parts[name].dtype != np.int32 or parts[name].shape != words[name]:
                got = f"{parts[name].dtype} of shape {parts[name].shape}"
                raise FormatError(None, name, f"int32 of shape {words[name]}", got)
        packed, scale = np.ascontiguousarray(parts["packed"]), np.ascontiguousarray(parts["scale"])
        arrays: Arrays = {"packed": packed.view(np.uint8), "scale": scale}
        if "zero_point" in form:
            stream = np.ascontiguousarray(parts["zero_point"].T).view(np.uint8)
            zeros = native.unpack_codes(stream, self.bits, rows)
            arrays["zero_point"] = np.ascontiguousarray(zeros.T)
        self.check(arrays, scheme, rows, cols)
        return arrays

    def check(self, arrays: Arrays, scheme: Scheme, rows: int, cols: int) -> None:
        super().check(arrays, scheme, rows, cols)
        if not np.isfinite(arrays["scale"]).all():
            raise FormatError(None, "scale", "finite scales", "a NaN or an infinity")
        top = 2**self.bits - 1
        if "zero_point" in arrays and arrays["zero_point"].size and int(arrays["zero_point"].max()) > top:
            raise FormatError(None, "zero_point", f"values up to {top}", int(arrays["zero_point"].max()))

    def columns(self, arrays: Arrays, scheme: Scheme, cols: int, start: int, stop: int) -> Arrays:
        group = self.group_of(scheme, cols)
        if scheme.group is not None and (start % group or (stop % group and stop != cols)):
            raise IndexError(f"index: expected columns at multiples of the group, {group}, got {start}:{stop}")
        cut = native.unpack_codes(np.ascontiguousarray(arrays["packed"]), self.bits, cols)[:, start:stop]
        first, last = (start // group, max(-(-stop // group), start // group + 1)) if scheme.group else (0, 1)
        per_group = {k: np.ascontiguousarray(a[:, first:last]) for k, a in arrays.items() if k != "packed"}
        return {"packed": native.pack_codes(np.ascontiguousarray(cut), self.bits)} | per_group

    def kernel(self, batch: int, activations: str) -> str | None:
        if activations != "float32":
            return "matmul_int"
        fused = self.bits in FLOAT32_KERNEL_BITS and batch <= FLOAT32_KERNEL_BATCH
        return "matmul_f32_int" if fused else None

    def matmul(self, arrays: Arrays, scheme: Scheme, x: F32, y: F32, bias: F32 | None, activations: str) -> None:
        group = self.group_of(scheme, x.shape[1])
        zeros = arrays.get("zero_point")
        native.matmul_dense_int(x, y, arrays["packed"], arrays["scale"], zeros, bias, self.bits, group, activations)

    def prepack(self, arrays: Arrays, cols: int) -> Arrays:
        packed = native.prepack_dense(np.ascontiguousarray(arrays["packed"]), self.bits, cols)
        return {"packed": packed} | {name: _to_panels(arrays[name]) for name in arrays if name != "packed"}

    def unprepack(self, arrays: Arrays, ids: NDArray[np.int64], cols: int) -> Arrays:
        packed = native.unprepack_dense(arrays["packed"], ids, self.bits, cols)
        panel, lane = np.divmod(ids, PANEL)
        return {"packed": packed} | {name: arrays[name][panel, :, lane] for name in arrays if name != "packed"}


def _to_panels(array: Array) -> Array:
    """(rows, groups) -> (panels, groups, 16), rows beyond the last being zero."""
    rows, groups = array.shape
    padded = np.zeros((-(-rows // PANEL) * PANEL, groups), array.dtype)
    padded[:rows] = array
    return np.ascontiguousarray(padded.reshape(-1, PANEL, groups).swapaxes(1, 2))
