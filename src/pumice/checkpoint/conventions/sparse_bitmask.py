"""sparse-bitmask and sparse-24-bitmask, which compressed-tensors wrote before version 0.15.

Of a module ``fc``, with N rows and K columns; the places are those of our bitmask and N:M layouts:

    sparse-bitmask       fc.shape (2,), fc.bitmask U8 (N, ceil(K / 8)), fc.compressed (entries,), fc.row_offsets (N,)
    sparse-24-bitmask    fc.shape (2, 1), fc.bitmask likewise, fc.compressed (N, K / 2)

Where the values were quantized before, fc.compressed is I8 or F8 and fc.weight_scale lies beside it.
Format: github.com/vllm-project/compressed-tensors at 0.14, `compressors/sparse_compressors`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pumice import layouts
from pumice.checkpoint.base import TensorInfo
from pumice.checkpoint.container import Container
from pumice.checkpoint.conventions.affine import Affine
from pumice.checkpoint.conventions.base import Convention, Found, modules, register
from pumice.checkpoint.conventions.ct_settings import Grid, Settings, choose, grid_of, read_config
from pumice.checkpoint.dtypes import DTYPES, widen
from pumice.errors import FormatError
from pumice.layouts import CompactArray
from pumice.scheme import Scheme
from pumice.values.base import F32, Array

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BYTE = (Settings(8),)  # without a config


@register
class SparseBitmaskConvention(Convention):
    """Pruned weights of compressed-tensors, quantized or not."""

    name = "sparse-bitmask"

    def find(self, container: Container, free: Collection[str]) -> Iterator[Found]:
        prefixes = list(modules(free, "compressed", "bitmask", "shape"))
        settings = (prefixes and read_config(container).settings) or BYTE
        for prefix in prefixes:
            weight = _Weight(container, free, prefix)
            try:
                yield weight.found(settings)
            except FormatError as error:
                if error.path is not None:
                    raise
                where = container.where(prefix + "bitmask")
                raise FormatError(where, weight.name, error.rule, error.got, error.hint) from error


class _Weight:
    """The tensors of one weight."""

    def __init__(self, container: Container, free: Collection[str], prefix: str) -> None:
        self.container, self.prefix, self.name = container, prefix, prefix + "weight"
        self.scale, self.zero_point = (
            prefix + part if prefix + part in free else None for part in ("weight_scale", "weight_zero_point")
        )
        self.row_offsets = prefix + "row_offsets" if prefix + "row_offsets" in free else None

    def found(self, settings: Sequence[Settings]) -> Found:
        rows, cols = shape = self._shape()
        values = self.container.entry(self.prefix + "compressed")
        layout = "bitmask" if len(values.shape) == 1 else "2:4"
        if layout == "2:4" and (cols % 4 or values.shape != (rows, cols // 2)):
            raise FormatError(None, None, f"compressed of shape {(rows, cols // 2)} or flat", f"{values.shape}")
        tensors = [self.prefix + part for part in ("compressed", "bitmask", "shape")]
        tensors += [self.row_offsets] if self.row_offsets else []
        nbytes = sum(self.container.entry(tensor).nbytes for tensor in tensors)
        if values.dtype in FLOATS:
            scheme = str(Scheme.parse(f"{layout}+{FLOATS[values.dtype]}"))
            parts = {"bitmask": "U8", "data": values.dtype, "shape": "I64"}
            info = TensorInfo(shape, scheme, nbytes, parts)
            return Found(self.name, info, tuple(tensors), partial(self._read_sparse, scheme, shape, None, None))
        float8 = DTYPES[values.dtype].minifloat is not None
        if values.dtype != "I8" and not float8:
            rule = f"values of {', '.join(FLOATS)}, I8 or F8"
            raise FormatError(None, None, rule, values.dtype)
        if self.scale is None:
            raise FormatError(None, None, f"weight_scale beside {values.dtype}", "none")
        tensors += [self.scale] + ([self.zero_point] if self.zero_point else [])
        nbytes = sum(self.container.entry(tensor).nbytes for tensor in tensors)
        scale = self.container.entry(self.scale)
        grid = choose(
            settings, lambda s: grid_of(s, scale.shape, rows, cols), self.container.where(self.scale), self.name
        )
        if float8:
            info = TensorInfo(shape, "F32", nbytes)
            return Found(self.name, info, tuple(tensors), partial(self._read_float8, shape, grid))
        affine = Affine(shape, 8, grid.group, self.zero_point is not None, scale.dtype == "F16")
        if affine.scheme is None or affine.zeros:  # a hole is the code 0, which is not the value 0
            return Found(self.name, affine.info(nbytes), tuple(tensors), partial(self._read_dense, affine, grid))
        scheme = f"{layout}+{affine.scheme}"
        parts = {"bitmask": "U8", "data": "I8", "scale": "F16" if affine.half else "F32", "shape": "I64"}
        info = TensorInfo(shape, scheme, nbytes, parts)
        return Found(self.name, info, tuple(tensors), partial(self._read_sparse, scheme, shape, affine, grid))

    def _shape(self) -> tuple[int, int]:
        entry = self.container.entry(self.prefix + "shape")
        if entry.dtype not in ("I64", "I32") or entry.shape not in ((2,), (2, 1)):
            raise FormatError(None, None, "shape of two integers", f"{entry.dtype} of shape {entry.shape}")
        rows, cols = (int(n) for n in self.container.read(self.prefix + "shape").reshape(-1))
        bitmask = self.container.entry(self.prefix + "bitmask")
        if rows < 1 or cols < 1 or bitmask.dtype != "U8" or bitmask.shape != (rows, -(-cols // 8)):
            rule = f"bitmask U8 of shape {(rows, -(-cols // 8))} for a weight of {rows} x {cols}"
            raise FormatError(None, None, rule, f"{bitmask.dtype} of shape {bitmask.shape}")
        return rows, cols

    # Reading.

    def _read_sparse(
        self, scheme: str, shape: tuple[int, int], affine: Affine | None, grid: Grid | None
    ) -> CompactArray:
        data = self.container.read(self.prefix + "compressed")
        parts = {"bitmask": self._bitmask(shape), "data": data, "shape": np.array(shape, np.int64)}
        if affine is not None and grid is not None:
            parts["scale"] = affine.stored_scales(self._scales(grid, shape))
        return layouts.from_parts(scheme, shape, parts)

    def _read_dense(self, affine: Affine, grid: Grid) -> CompactArray | F32:
        rows, cols = affine.shape
        codes, zeros = self._scattered((rows, cols)), None
        if self.zero_point is not None:
            stored = self.container.read(self.zero_point)
            if stored.dtype != np.int8 or stored.shape != self.container.entry(str(self.scale)).shape:
                raise FormatError(None, None, "zero points I8 of the scales' shape", f"{stored.dtype} {stored.shape}")
            zeros = grid.per_row(stored.view(np.uint8) + np.uint8(128), rows)
        return affine.array(codes.view(np.uint8) + np.uint8(128), self._scales(grid, (rows, cols)), zeros)

    def _read_float8(self, shape: tuple[int, int], grid: Grid) -> F32:
        w: F32 = widen(self._scattered(shape), self.container.entry(self.prefix + "compressed").dtype)
        scales = self._scales(grid, shape).astype(np.float32)
        w *= np.repeat(scales, grid.group or shape[1], axis=1)[:, : shape[1]]
        return w

    def _scattered(self, shape: tuple[int, int]) -> Array:
        """The values at their places, 0 elsewhere."""
        values = self.container.read(self.prefix + "compressed")
        dense = np.zeros(shape, values.dtype)
        places = np.unpackbits(self._bitmask(shape), axis=1, count=shape[1], bitorder="little")
        dense[places.astype(bool)] = values.reshape(-1)
        return dense

    def _bitmask(self, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """The bitmask, which must agree with the columns, the values and `row_offsets`."""
        bitmask = self.container.read(self.prefix + "bitmask")
        beyond = np.flatnonzero(bitmask[:, -1] >> np.uint8(shape[1] % 8 or 8))
        if beyond.size:
            raise FormatError(None, None, f"no bits beyond {shape[1]} columns", f"some in row {beyond[0]} of bitmask")
        counts = np.bitwise_count(bitmask).sum(axis=1, dtype=np.int64)
        values = self.container.entry(self.prefix + "compressed").shape
        if int(counts.sum()) != math.prod(values):
            raise FormatError(None, None, f"{counts.sum()} values, as many as bits", f"compressed of shape {values}")
        if self.row_offsets is not None:
            offsets, expected = self.container.read(self.row_offsets).reshape(-1), np.cumsum(counts) - counts
            if offsets.shape != expected.shape:
                raise FormatError(None, None, f"{len(expected)} row_offsets", f"{len(offsets)}")
            wrong = np.flatnonzero(offsets != expected)
            if wrong.size:
                row = wrong[0]
                rule = f"row_offsets that count the bits: {expected[row]} for row {row}"
                raise FormatError(None, None, rule, f"{offsets[row]}")
        return bitmask

    def _scales(self, grid: Grid, shape: tuple[int, int]) -> Array:
        """(rows, groups), finite."""
        assert self.scale is not None
        scales = widen(self.container.read(self.scale), self.container.entry(self.scale).dtype)
        if not np.isfinite(scales).all():
            raise FormatError(None, None, "finite scales", "a NaN or an infinity")
        per_row: Array = grid.per_row(scales, shape[0])
        return per_row
