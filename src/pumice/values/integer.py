"""What integer codecs share: packed codes, scales per row or per group, and optional zeros or minima.

The rule (docs/formats.md, "Integers"): w = scale * (code - zero), or scale * code + min. Scales and minima are rounded
to their stored dtype before the codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.errors import FormatError, NonFiniteError
from pumice.memory import copied
from pumice.scheme import Scheme
from pumice.values.base import F32, Array, Arrays, Codec, Energies, StoredRows, Weights, matrix_shape

PANEL = 16  # rows of a panel of the prepacked form
FLOAT32_KERNEL_BATCH = 8  # float32 activations: beyond it, decoding row panels and BLAS is faster
HALF_MIN, HALF_MAX = 2.0**-14, 65504.0  # the normal range of float16
SCALE_DTYPES = (np.float16, np.float32)
FLOAT32_KERNEL_BITS = SPARSE_BITS = (4, 8)


def row_bytes(cols: int, bits: int) -> int:
    """Bytes of a packed row: whole 32-bit words."""
    return -(-cols * bits // 32) * 4


def fits_half(exact: NDArray[np.floating[Any]]) -> bool:
    """Whether float16 holds these numbers without overflow or subnormals."""
    size = np.abs(exact)
    return not np.any((size > HALF_MAX) | ((size > 0) & (size < HALF_MIN)))


def stored_scales(exact: NDArray[np.floating[Any]], grouped: bool, scale_dtype: Any) -> Array:
    """Scales, or minima, in the dtype that they are stored in.

    float32 per row, float16 per group; a tensor whose float16 scales would be subnormal or overflow uses float32.
    """
    if scale_dtype is None:
        scale_dtype = np.float16 if grouped and fits_half(exact) else np.float32
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


def check_scales(name: str, scales: Array) -> None:
    """Raise FormatError unless all are finite."""
    if not np.isfinite(scales).all():
        raise FormatError(None, name, "finite scales", "a NaN or an infinity")


class Integer(Codec):
    """Unsigned integer codes of `bits` bits."""

    group = True
    flags = ("asym", "min")
    prepacks = True

    def __init__(self, bits: int) -> None:
        self.bits = bits  # type: ignore[misc]
        self.name = f"int{bits}"  # type: ignore[misc]
        self.sparse_dtype = np.int8 if bits in SPARSE_BITS else None  # type: ignore[misc]

    def form(self, scheme: Scheme, rows: int, cols: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        groups = max(1, -(-cols // self.group_of(scheme, cols)))
        form: dict[str, tuple[Any, tuple[int, ...]]] = {
            "packed": (np.uint8, (rows, row_bytes(cols, self.bits))),
            "scale": (SCALE_DTYPES if scheme.group else SCALE_DTYPES[::-1], (rows, groups)),
        }
        if "asym" in scheme.flags:
            form["zero_point"] = (np.uint8, (rows, groups))
        if "min" in scheme.flags:
            form["min"] = form["scale"]
        return form

    def encode(self, w: F32, scheme: Scheme, scale_dtype: Any = None, grid: Arrays | None = None) -> Arrays:
        group = self.group_of(scheme, w.shape[1])
        if grid is None:
            grid = self.grid_for(w, scheme, scale_dtype)
        scales, zeros, minima, bits = self.levels(grid)
        return {"packed": native.encode_int(w, scales, zeros, bits, group, minima)} | grid

    def encode_rows(self, rows: StoredRows, scheme: Scheme, scale_dtype: Any = None) -> tuple[Arrays, Energies]:
        group = self.group_of(scheme, rows.shape[1])
        low, high = native.group_range(rows.matrix, group, rows.values)
        if np.isnan(low).any():
            rows.floats()  # raises, and says where
        grid = self.grid(low, high, scheme, scale_dtype)
        scales, zeros, minima, bits = self.levels(grid)
        packed, noise, signal = native.encode_int_rows(rows.matrix, rows.values, scales, zeros, bits, group, minima)
        return {"packed": packed} | grid, (noise, signal)

    def levels(self, grid: Arrays) -> tuple[F32, NDArray[np.uint8] | None, F32 | None, int]:
        """A grid as the core takes it: scales, zeros and minima (rows, groups), and bits."""
        minima = grid.get("min")
        wide = None if minima is None else minima.astype(np.float32)
        return grid["scale"].astype(np.float32), grid.get("zero_point"), wide, self.bits

    def grid(self, low: F32, high: F32, scheme: Scheme, scale_dtype: Any = None) -> Arrays:
        """The grid for groups that range from low to high (rows, groups): the arrays beside the codes, as stored."""
        grouped = scheme.group is not None
        if "min" in scheme.flags:
            scales, minima = self._scales_and_minima(low, high, grouped, scale_dtype)
            return {"scale": scales, "min": minima}
        if "asym" not in scheme.flags:
            largest = np.where(high > -low, high, low)
            return {"scale": stored_scales(largest / np.float32(-(2.0 ** (self.bits - 1))), grouped, scale_dtype)}
        top = 2**self.bits - 1
        low, high = np.minimum(low, 0).astype(np.float64), np.maximum(high, 0).astype(np.float64)
        scales = stored_scales(((high - low) / top).astype(np.float32), grouped, scale_dtype)
        steps = np.divide(-low, scales, out=np.full(low.shape, 2.0 ** (self.bits - 1)), where=scales != 0, dtype=float)
        return {"scale": scales, "zero_point": np.clip(np.rint(steps), 0, top).astype(np.uint8)}

    def grid_for(self, w: F32, scheme: Scheme, scale_dtype: Any = None) -> Arrays:
        """The grid that the default rule gives a weight."""
        return self.grid(*native.group_range(w, self.group_of(scheme, w.shape[1])), scheme, scale_dtype)

    def _scales_and_minima(self, low: F32, high: F32, grouped: bool, scale_dtype: Any) -> tuple[Array, Array]:
        """Both in one dtype. A subnormal minimum is exact enough beside a scale that is not: to 2^-11 of a step."""
        top = 2**self.bits - 1
        exact = ((high.astype(np.float64) - low) / top).astype(np.float32)
        if scale_dtype is None:
            weighty = np.where(exact == 0, low, np.maximum(np.abs(low), np.float32(HALF_MIN)))
            scale_dtype = np.float16 if grouped and fits_half(exact) and fits_half(weighty) else np.float32
        scales, minima = stored_scales(exact, grouped, scale_dtype), stored_scales(low, grouped, scale_dtype)
        with np.errstate(over="ignore"):
            largest = scales.astype(np.float32) * np.float32(top) + minima
        overflow = np.flatnonzero(np.isinf(largest))
        if overflow.size:
            index = tuple(int(i) for i in np.unravel_index(overflow[0], largest.shape))
            got = f"{low[index]} to {high[index]} in row {index[0]}"
            raise NonFiniteError(f"w: expected groups whose range is within float32 (3.4e38), got {got}")
        return scales, minima

    def decode(self, arrays: Arrays, scheme: Scheme, cols: int) -> F32:
        scales, minima = arrays["scale"].astype(np.float32), arrays.get("min")
        packed, zeros = np.ascontiguousarray(arrays["packed"]), arrays.get("zero_point")
        zeros = None if zeros is None else np.ascontiguousarray(zeros)
        minima = None if minima is None else minima.astype(np.float32)
        group = self.group_of(scheme, cols)
        return native.decode_int(packed, scales, zeros, self.bits, group, cols, minima=minima)

    def codes(self, arrays: Arrays, cols: int) -> Array:
        return native.unpack_codes(np.ascontiguousarray(arrays["packed"]), self.bits, cols)

    def encode_sparse(
        self, w: F32, scheme: Scheme, scale_dtype: Any = None, grid: Arrays | None = None
    ) -> tuple[Array, Array | None]:
        """Signed codes (rows, cols), so that a hole is exactly 0, and scales (rows, groups)."""
        arrays = self.encode(w, scheme, scale_dtype, grid)
        codes = arrays["packed"][:, : w.shape[1]] if self.bits == 8 else self.codes(arrays, w.shape[1])
        codes -= np.uint8(1 << (self.bits - 1))  # modulo 256
        return np.ascontiguousarray(codes).view(np.int8), arrays["scale"]

    def pack(self, codes: NDArray[np.uint8]) -> Arrays:
        """The array that holds these codes (rows, cols)."""
        return {"packed": native.pack_codes(np.ascontiguousarray(codes), self.bits)}

    def to_parts(self, arrays: Arrays, shape: tuple[int, ...]) -> Arrays:
        parts = {"packed": arrays["packed"].view(np.int32), "scale": arrays["scale"]}
        if "zero_point" in arrays:  # packed along the rows, as compressed-tensors does
            zeros = native.pack_codes(np.ascontiguousarray(arrays["zero_point"].T), self.bits)
            parts["zero_point"] = np.ascontiguousarray(zeros.view(np.int32).T)
        if "min" in arrays:
            parts["min"] = arrays["min"]
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
        if "min" in form:
            words["min"] = form["min"][1]
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
        if "min" in form:
            arrays["min"] = np.ascontiguousarray(parts["min"])
        self.check(arrays, scheme, rows, cols)
        return arrays

    def check(self, arrays: Arrays, scheme: Scheme, rows: int, cols: int) -> None:
        super().check(arrays, scheme, rows, cols)
        check_scales("scale", arrays["scale"])
        if "min" in arrays and arrays["min"].dtype != arrays["scale"].dtype:
            raise FormatError(None, "min", f"{arrays['scale'].dtype} as scale", str(arrays["min"].dtype))
        if "min" in arrays and not np.isfinite(arrays["min"]).all():
            raise FormatError(None, "min", "finite minima", "a NaN or an infinity")
        top = 2**self.bits - 1
        if "zero_point" in arrays and arrays["zero_point"].size and int(arrays["zero_point"].max()) > top:
            raise FormatError(None, "zero_point", f"values up to {top}", int(arrays["zero_point"].max()))

    def columns(self, arrays: Arrays, scheme: Scheme, cols: int, start: int, stop: int) -> Arrays:
        first, last = self.groups_between(scheme, cols, start, stop)
        cut = native.unpack_codes(np.ascontiguousarray(arrays["packed"]), self.bits, cols)[:, start:stop]
        per_group = {k: np.ascontiguousarray(a[:, first:last]) for k, a in arrays.items() if k != "packed"}
        return {"packed": native.pack_codes(np.ascontiguousarray(cut), self.bits)} | per_group

    def kernel(self, batch: int, activations: str) -> str | None:
        if activations != "float32":
            return "matmul_int"
        fused = self.bits in FLOAT32_KERNEL_BITS and batch <= FLOAT32_KERNEL_BATCH
        return "matmul_f32_int" if fused else None

    def weights(self, arrays: Arrays, scheme: Scheme, rows: int, cols: int) -> Weights:
        codes, scales, zeros, minima = arrays["packed"], arrays["scale"], arrays.get("zero_point"), arrays.get("min")
        return native.DenseInt(codes, scales, zeros, minima, rows, cols, self.bits, self.group_of(scheme, cols))

    def prepack(self, arrays: Arrays, cols: int) -> Arrays:
        packed = native.prepack_dense(np.ascontiguousarray(arrays["packed"]), self.bits, cols)
        return {"packed": packed} | {name: to_panels(arrays[name]) for name in arrays if name != "packed"}

    def unprepack(self, arrays: Arrays, ids: NDArray[np.int64], cols: int) -> Arrays:
        packed = native.unprepack_dense(arrays["packed"], ids, self.bits, cols)
        panel, lane = np.divmod(ids, PANEL)
        return {"packed": packed} | {name: arrays[name][panel, :, lane] for name in arrays if name != "packed"}


def to_panels(array: Array) -> Array:
    """(rows, groups) -> (panels, groups, 16), rows beyond the last being zero."""
    rows, groups = array.shape
    padded = np.zeros((-(-rows // PANEL) * PANEL, groups), array.dtype)
    padded[:rows] = array
    return copied(padded.reshape(-1, PANEL, groups).swapaxes(1, 2))
