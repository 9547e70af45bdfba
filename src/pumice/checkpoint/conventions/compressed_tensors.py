"""compressed-tensors: integers packed in words or one a byte, and float8, with scales beside them.

Of a module ``fc``, with N rows, K columns, G groups and b bits:

    pack-quantized     fc.weight_packed I32 (N, ceil(K * b / 32)), a stream of code + 2^(b-1), low bits first;
                       before version 0.18 with 3, 5, 6 or 7 bits: floor(32 / b) codes a word;
                       fc.weight_shape, fc.weight_zero_point I32 packed likewise along the rows
    int-, naive-,      fc.weight I8 or F8 (N, K), fc.weight_zero_point as fc.weight_scale
    float-quantized
    all                fc.weight_scale F32, F16 or BF16: (1,), (N, 1), (N, G), or one a block

w = scale * (code - zero). Format: github.com/vllm-project/compressed-tensors, `compressors`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice import layouts
from pumice._core import native
from pumice.checkpoint.base import TensorInfo
from pumice.checkpoint.container import Container
from pumice.checkpoint.conventions.affine import Affine
from pumice.checkpoint.conventions.base import Convention, Found, modules, register
from pumice.checkpoint.conventions.ct_settings import Config, Grid, Settings, choose, grid_of, read_config
from pumice.checkpoint.conventions.scaled import Scaled
from pumice.checkpoint.dtypes import DTYPES, widen
from pumice.errors import FormatError
from pumice.layouts import CompactArray
from pumice.layouts.permuted import order_of_groups
from pumice.values.base import F32, Array

SCALES = ("F32", "F16", "BF16")
DENSE_SINCE = (0, 18)  # the version that began to pack 3, 5, 6 and 7 bits without gaps
GUESSES = ((4, 8, 2), (3, 5, 6), (7,))  # bits without a config, the likelier first


@dataclass(frozen=True)
class Plan:
    """How a weight is read."""

    affine: Affine
    grid: Grid
    gaps: bool  # whether words have unused bits, as before version 0.18


@register
class CompressedTensorsConvention(Convention):
    """Quantized weights of compressed-tensors, dense ones."""

    name = "compressed-tensors"

    def find(self, container: Container, free: Collection[str]) -> Iterator[Found]:
        packed = list(modules(free, "weight_packed"))
        bytewise = [
            prefix
            for prefix in modules(free, "weight", "weight_scale")
            if container.entry(prefix + "weight").dtype == "I8" or _is_float8(container.entry(prefix + "weight").dtype)
        ]
        if not packed and not bytewise:
            return
        config = read_config(container)
        for prefix in packed:
            yield _Module(container, free, prefix, config).packed()
        for prefix in bytewise:
            if not config.settings and len(container.entry(prefix + "weight").shape) != 2:
                continue  # such as a quantized convolution of others: its tensors are what they are
            yield _Module(container, free, prefix, config).bytewise()


def _is_float8(dtype: str) -> bool:
    return DTYPES[dtype].minifloat is not None and dtype != "F8_E8M0"


class _Module:
    """The tensors of one weight."""

    def __init__(self, container: Container, free: Collection[str], prefix: str, config: Config) -> None:
        self.container, self.free, self.prefix, self.config = container, free, prefix, config
        self.name = prefix + "weight"

    # Finding.

    def packed(self) -> Found:
        if self._has("scale_packed"):
            raise self._error(None, "a format with a decoder", "marlin-24", "CUDA's order of bits")
        packed = self.container.entry(self.name + "_packed")
        if packed.dtype != "I32":
            kind = "nvfp4" if self._has("weight_global_scale") else "mxfp4"
            raise self._error("weight_packed", "integers packed in I32", f"{packed.dtype}: {kind}-pack-quantized")
        shape = self._shape()
        self._check_order(shape)
        if len(packed.shape) != len(shape) or packed.shape[:-1] != shape[:-1]:
            rule = f"the rows of weight_shape {shape}"
            raise self._error("weight_packed", rule, f"shape {packed.shape}")
        plan = partial(self._packed_plan, shape, packed.shape[-1])
        return self._found(self._chosen(plan, GUESSES), self._read_packed, "weight_packed")

    def bytewise(self) -> Found:
        entry = self.container.entry(self.name)
        self._check_order(())
        if len(entry.shape) != 2 or not all(entry.shape):
            raise self._error("weight", "a matrix that is not empty", f"shape {entry.shape}")
        if entry.dtype == "I8":
            plan = self._chosen(partial(self._bytes_plan, entry.shape), ((8,),))
            return self._found(plan, self._read_bytes, "weight")
        grid = self._chosen(lambda settings: self._grid(settings, entry.shape), ((8,),))
        tensors = self._tensors("weight")
        if entry.dtype == "F8_E4M3":
            scaled = Scaled((entry.shape[0], entry.shape[1]), grid.rows, grid.group)
            return Found(self.name, scaled.info(self._nbytes(tensors)), tensors, partial(self._read_scaled, scaled))
        info = TensorInfo(entry.shape, "F32", self._nbytes(tensors))
        return Found(self.name, info, tensors, partial(self._read_float, grid, entry.shape))

    def _chosen(self, plan: Any, guesses: tuple[tuple[int, ...], ...]) -> Any:
        """What the settings that fit make: those of the config, else the first guesses of bits that may be."""
        where = self.container.where(self._tensors("weight_scale")[0])
        if self.config.settings:
            return choose(self.config.settings, plan, where, self.name)
        for i, bits in enumerate(guesses):
            try:
                return choose([Settings(b) for b in bits], plan, where, self.name)
            except FormatError as error:
                if i == len(guesses) - 1 or "may be" in str(error.got):
                    raise
        raise AssertionError("the last guess returns or raises")

    def _packed_plan(self, shape: tuple[int, ...], words: int, settings: Settings) -> Plan:
        bits, cols = settings.bits, shape[-1]
        dense, gapped = -(-cols * bits // 32), -(-cols // (32 // bits))
        if words not in (dense, gapped):
            rule = f"{dense} words a row of {cols} columns in {bits} bits" + (
                "" if dense == gapped else f" (or {gapped}, before version 0.18)"
            )
            raise FormatError(None, None, rule, f"{words} words")
        version = self.config.version
        old = version is not None and version < DENSE_SINCE
        gaps = 32 % bits != 0 and words == gapped and (dense != gapped or old)
        return self._plan(settings, shape, gaps)

    def _bytes_plan(self, shape: tuple[int, ...], settings: Settings) -> Plan:
        return self._plan(settings, shape, False)

    def _plan(self, settings: Settings, shape: tuple[int, ...], gaps: bool) -> Plan:
        grid = self._grid(settings, shape)
        zeros = self._has("weight_zero_point")
        if settings.symmetric is False and not zeros:
            raise FormatError(None, None, "weight_zero_point for asymmetric weights", "none")
        scale = self.container.entry(self.name + "_scale")
        if zeros:
            self._check_zeros(settings, shape, gaps, scale.shape)
        group = grid.group
        if len(shape) == 3:  # a stack of matrices: groups may not cross from row to row
            group = group or shape[-1]
            if shape[-1] % group:
                raise FormatError(None, None, f"columns in multiples of {group}", f"{shape[-1]}")
        return Plan(
            Affine(shape, settings.bits, group, zeros and settings.symmetric is not True, scale.dtype == "F16"),
            grid,
            gaps,
        )

    def _check_zeros(self, settings: Settings, shape: tuple[int, ...], gaps: bool, scale: tuple[int, ...]) -> None:
        """Zero points lie one a byte, as the scales, or are packed along the rows of a matrix."""
        entry, bits = self.container.entry(self.name + "_zero_point"), settings.bits
        words = -(-shape[0] // (32 // bits)) if gaps else -(-shape[0] * bits // 32)
        packed = (words, 1 if len(scale) < 2 else scale[-1])
        per_row = len(shape) == 2 and scale[:1] == shape[:1]
        if not (entry.dtype == "I8" and entry.shape == scale) and not (
            entry.dtype == "I32" and entry.shape == packed and per_row
        ):
            rule = f"zero points packed in I32 of shape {packed}, or I8 of shape {scale}"
            raise FormatError(None, None, rule, f"{entry.dtype} of shape {entry.shape}")

    def _grid(self, settings: Settings, shape: tuple[int, ...]) -> Grid:
        scale = self.container.entry(self.name + "_scale")
        if scale.dtype not in SCALES:
            raise FormatError(None, None, f"scales of {', '.join(SCALES)}", scale.dtype, "mxfp8 has U8, for example")
        rows = math.prod(shape[:-1])
        if len(shape) == 3 and len(scale.shape) == 3:
            return grid_of(settings, (rows, *scale.shape[2:]), rows, shape[-1])
        return grid_of(settings, scale.shape, rows, shape[-1])

    def _found(self, plan: Plan, read: Any, first: str) -> Found:
        tensors = self._tensors(first)
        return Found(self.name, plan.affine.info(self._nbytes(tensors)), tensors, partial(read, plan))

    def _shape(self) -> tuple[int, ...]:
        """The logical shape, which is a tensor of its own."""
        for part in ("weight_shape", "weight_scale"):
            if not self._has(part):
                raise self._error(None, f"{part} beside weight_packed", "none")
        entry = self.container.entry(self.name + "_shape")
        if entry.dtype not in ("I64", "I32") or entry.shape not in ((2,), (3,)):
            raise self._error("weight_shape", "two or three integers", f"{entry.dtype} of shape {entry.shape}")
        shape = tuple(int(n) for n in self.container.read(self.name + "_shape"))
        if not all(0 < n <= 1 << 48 for n in shape):
            raise self._error("weight_shape", "a weight that is not empty", f"{shape}")
        return shape

    def _check_order(self, shape: tuple[int, ...]) -> None:
        """weight_g_idx, the group of each column, is of packed matrices."""
        if not self._has("weight_g_idx"):
            return
        entry = self.container.entry(self.name + "_g_idx")
        if len(shape) != 2 or entry.dtype not in ("I32", "I64") or entry.shape != shape[1:]:
            got = f"{entry.dtype} of shape {entry.shape}"
            raise self._error("weight_g_idx", "a group for each column of a packed matrix", got)

    def _has(self, part: str) -> bool:
        return self.prefix + part in self.free

    def _tensors(self, first: str) -> tuple[str, ...]:
        optional = ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
        return tuple(self.prefix + part for part in dict.fromkeys((first, *optional)) if self._has(part))

    def _nbytes(self, tensors: tuple[str, ...]) -> int:
        return sum(self.container.entry(tensor).nbytes for tensor in tensors)

    def _error(self, part: str | None, rule: str, got: str, hint: str | None = None) -> FormatError:
        where = self.container.where(next(name for name in sorted(self.free) if name.startswith(self.prefix)))
        return FormatError(where, self.name if part is None else self.prefix + part, rule, got, hint)

    # Reading.

    def _read_packed(self, plan: Plan) -> CompactArray | F32:
        affine = plan.affine
        packed, scales = self.container.read(self.name + "_packed"), self._scales(plan.grid, affine.shape)
        perm = self._order(scales.shape[-1], affine.group)
        plain = len(affine.shape) == 2 and not plan.gaps and perm is None
        if affine.as_stored and plain and self._zero_dtype in (None, "I32"):
            parts = {"packed": packed, "scale": scales, "shape": np.array(affine.shape, np.int64)}
            if affine.zeros:
                parts["zero_point"] = self.container.read(self.name + "_zero_point")
            self._check_symmetric(affine, plan)
            return layouts.from_parts(str(affine.scheme), affine.shape, parts)
        rows, cols = math.prod(affine.shape[:-1]), affine.shape[-1]
        codes = _unpack(packed.reshape(rows, -1), affine.bits, cols, plan.gaps)
        return self._array(plan, codes, scales, perm)

    def _order(self, groups: int, group: int | None) -> NDArray[np.int32] | None:
        """The columns in the order of their groups; None where they stand so."""
        if not self._has("weight_g_idx"):
            return None
        g_idx = self.container.read(self.name + "_g_idx")
        if (g_idx == -1).all():  # as it is made, before anything is quantized by it
            return None
        perm, found = order_of_groups(g_idx, groups)
        if group is not None and found != group:
            raise FormatError(None, None, f"groups of {group} columns, as config.json says", f"{found} in weight_g_idx")
        return perm

    def _read_bytes(self, plan: Plan) -> CompactArray | F32:
        stored = self.container.read(self.name)
        return self._array(plan, _unsigned(stored, plan.affine.bits), self._scales(plan.grid, plan.affine.shape))

    def _read_scaled(self, scaled: Scaled) -> CompactArray | F32:
        self._refuse_zeros()
        scale = self.container.read(self.name + "_scale")
        scales = widen(scale, self.container.entry(self.name + "_scale").dtype)
        return scaled.array(self.container.read(self.name), scales)

    def _read_float(self, grid: Grid, shape: tuple[int, ...]) -> F32:
        scales = self._scales(grid, shape).astype(np.float32)
        if not np.isfinite(scales).all():
            raise FormatError(None, None, "finite scales", "a NaN or an infinity")
        w: F32 = widen(self.container.read(self.name), self.container.entry(self.name).dtype)
        self._refuse_zeros()
        w *= scales if grid.group is None else np.repeat(scales, grid.group, axis=1)[:, : shape[1]]
        return w

    def _refuse_zeros(self) -> None:
        """Float weights have no zero points, but for some that are 0."""
        if not self._has("weight_zero_point"):
            return
        name = self.name + "_zero_point"
        if np.any(widen(self.container.read(name), self.container.entry(name).dtype)):
            raise FormatError(None, None, "float weights without zero points", "some that are not 0")

    def _array(
        self, plan: Plan, codes: NDArray[np.uint8], scales: Array, perm: NDArray[np.int32] | None = None
    ) -> CompactArray | F32:
        affine = plan.affine
        self._check_symmetric(affine, plan)
        zeros = self._zeros(plan) if affine.zeros else None
        rows, cols = affine.shape[0], affine.cols
        scales = scales.reshape(rows, -1)
        if zeros is not None:
            zeros = np.ascontiguousarray(zeros).reshape(rows, -1)
        return affine.array(codes.reshape(rows, cols), scales, zeros, perm)

    def _check_symmetric(self, affine: Affine, plan: Plan) -> None:
        """Older versions stored the zero points of symmetric weights too: they must be 0."""
        if self._zero_dtype is not None and not affine.zeros and np.any(self._zeros(plan) != 1 << (affine.bits - 1)):
            rule = "no zero points, or 0, as config.json says symmetric"
            raise FormatError(None, None, rule, "weight_zero_point with others")

    def _scales(self, grid: Grid, shape: tuple[int, ...]) -> Array:
        entry = self.container.entry(self.name + "_scale")
        scales = widen(self.container.read(self.name + "_scale"), entry.dtype)
        per_row: Array = grid.per_row(scales, math.prod(shape[:-1]))
        return per_row

    @property
    def _zero_dtype(self) -> str | None:
        name = self.name + "_zero_point"
        return self.container.entry(name).dtype if name in self.free else None

    def _zeros(self, plan: Plan) -> NDArray[np.uint8]:
        """(rows, groups), unsigned."""
        rows, bits = math.prod(plan.affine.shape[:-1]), plan.affine.bits
        stored = self.container.read(self.name + "_zero_point")
        if self._zero_dtype == "I8":
            zeros: NDArray[np.uint8] = plan.grid.per_row(_unsigned(stored, bits), rows)
            return zeros
        return np.ascontiguousarray(_unpack(np.ascontiguousarray(stored.T), bits, rows, plan.gaps).T)


def _unsigned(stored: Array, bits: int) -> NDArray[np.uint8]:
    """Signed codes, one a byte, as unsigned ones."""
    half = 1 << (bits - 1)
    if stored.size and (stored.min() < -half or stored.max() >= half):
        bad = stored.min() if stored.min() < -half else stored.max()
        raise FormatError(None, None, f"codes from {-half} to {half - 1}, of {bits} bits", f"{bad}")
    return stored.view(np.uint8) + np.uint8(half)


def _unpack(words: Array, bits: int, cols: int, gaps: bool) -> NDArray[np.uint8]:
    """(rows, words) int32 -> codes (rows, cols)."""
    if gaps:
        shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
        fields = words.view(np.uint32)[:, :, None] >> shifts & np.uint32((1 << bits) - 1)
        return fields.astype(np.uint8).reshape(len(words), -1)[:, :cols]
    if bits not in (1, 7):
        return native.unpack_codes(np.ascontiguousarray(words).view(np.uint8), bits, cols)
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, count=cols * bits, bitorder="little")
    weights = np.left_shift(1, np.arange(bits)).astype(np.uint8)
    return stream.reshape(len(words), cols, bits) @ weights
