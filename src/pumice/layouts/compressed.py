"""What CSR and BSR share: compressed rows of blocks. CSR is the case of 1 x 1 blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.errors import FormatError
from pumice.layouts.base import CompactArray
from pumice.layouts.dense import is_mapped
from pumice.layouts.indexing import take_ids
from pumice.layouts.operands import frozen
from pumice.layouts.work import Work, label_of, steps_of
from pumice.options import Options
from pumice.scheme import Scheme
from pumice.values.base import F32, Array, Arrays, codec_of, matrix_shape

NARROW_COLS = 65536  # block columns that uint16 indices can name


class CompressedArray(CompactArray):
    """Rows of blocks, the blocks of a row side by side; everything else is 0.

    ``indptr[i] : indptr[i + 1]`` are the blocks of block row i; ``indices`` are their block columns, rising; ``data``
    their values. int8 values have one float32 scale per row. Ragged edges are padded with zeros.
    """

    def __init__(
        self,
        scheme: Scheme,
        shape: tuple[int, ...],
        indptr: NDArray[np.int64],
        indices: NDArray[np.uint16] | NDArray[np.uint32],
        blocks: Array,
        scales: F32 | None,
    ) -> None:
        super().__init__(scheme, shape)
        self.blocksize = block_of(scheme)
        self._indptr, self._indices, self._blocks, self._scales = indptr, indices, blocks, scales
        self._weights: native.BlockSparse | None = None  # made by the first product

    @classmethod
    def chunk_rows(cls, scheme: Scheme) -> int:
        return math.lcm(super().chunk_rows(scheme), block_of(scheme)[0])

    @classmethod
    def encode(cls, w: F32, scheme: Scheme, shape: tuple[int, ...], scale_dtype: Any = None) -> Self:
        height, width = block_of(scheme)
        values, grouped = codec_of(scheme).encode_sparse(w, scheme, np.float32)
        scales = None if grouped is None else grouped[:, 0]
        rows, cols = values.shape
        block_rows, block_cols = -(-rows // height), -(-cols // width)
        if rows % height or cols % width:
            values = np.pad(values, ((0, block_rows * height - rows), (0, block_cols * width - cols)))
        tiles = values.reshape(block_rows, height, block_cols, width)
        stored = (tiles != 0).any(axis=(1, 3))
        row, col = np.nonzero(stored)
        indptr = np.zeros(block_rows + 1, np.int64)
        np.cumsum(stored.sum(axis=1), out=indptr[1:])
        return cls(scheme, shape, indptr, col.astype(index_dtype(block_cols)), tiles[row, :, col], scales)

    @classmethod
    def from_parts(cls, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Array]) -> Self:
        rows, cols = matrix_shape(shape)
        height, width = block_of(scheme)
        block_rows, block_cols = -(-rows // height), -(-cols // width)
        dtype, block_shape = cls._data_form(scheme)
        scaled = codec_of(scheme).sparse_dtype == np.int8
        names = {"indptr", "indices", "data", "shape"} | ({"scale"} if scaled else set())
        if set(parts) != names:
            raise FormatError(None, None, f"the parts {sorted(names)} for {scheme}", sorted(parts))
        blocks = len(parts["indices"]) if parts["indices"].ndim else 0
        _check(parts, "indptr", np.int64, (block_rows + 1,))
        _check(parts, "indices", index_dtype(block_cols), (blocks,))
        _check(parts, "data", dtype, (blocks, *block_shape))
        scales = None
        if "scale" in parts:
            _check(parts, "scale", np.float32, (rows, 1))
            scales = np.ascontiguousarray(parts["scale"][:, 0])
            if not np.isfinite(scales).all():
                raise FormatError(None, "scale", "finite scales", "a NaN or an infinity")
        indptr, indices = np.array(parts["indptr"]), np.array(parts["indices"])
        rule, row = native.check_bsr(indptr, indices, block_cols)
        if rule:
            raise FormatError(None, "indptr" if rule.startswith("indptr") else "indices", rule, f"row {row}")
        data = np.ascontiguousarray(parts["data"])
        data = data.reshape(blocks, *(block_shape or (height, width)))
        return cls(scheme, shape, indptr, indices, data, scales)

    @classmethod
    def stack(cls, arrays: Sequence[CompactArray], shape: tuple[int, ...]) -> Self:
        some = [a for a in arrays if isinstance(a, cls)]
        height = some[0].blocksize[0]
        if any(a._rows % height for a in some[:-1]):
            raise ValueError(
                f"arrays: expected rows in multiples of the block's {height}, got {[a._rows for a in some]}"
            )
        starts = np.cumsum([0, *(len(a._indices) for a in some)])
        indptr = [a._indptr[1:] + start for a, start in zip(some, starts, strict=False)]
        scales = None if some[0]._scales is None else np.concatenate([a._scales for a in some if a._scales is not None])
        return cls(
            some[0]._scheme,
            shape,
            np.concatenate([np.zeros(1, np.int64), *indptr]),
            np.concatenate([a._indices for a in some]),
            np.concatenate([a._blocks for a in some]),
            scales,
        )

    @classmethod
    def work(cls, scheme: Scheme, shape: tuple[int, ...], density: float, batch: int, activations: str) -> Work:
        """What a product does, for the cost model: blocks cost what they store, zeros in them included."""
        (rows, cols), (height, width) = matrix_shape(shape), block_of(scheme)
        codec, stored = codec_of(scheme), density * rows * cols
        index, scaled = np.dtype(index_dtype(-(-cols // width))), codec.sparse_dtype == np.int8
        nbytes = stored * (codec.bits / 8 + index.itemsize / (height * width)) + 8 * (-(-rows // height) + 1)
        steps = steps_of(cls._kernel(scaled, activations), stored, rows * cols, batch)
        return Work(nbytes + 4 * rows * scaled, steps, activations, label_of(scheme), codec.bits, height * width)

    @classmethod
    def _data_form(cls, scheme: Scheme) -> tuple[Any, tuple[int, ...]]:
        """dtype of `data`, and the shape of one of its entries."""
        return codec_of(scheme).sparse_dtype, cls._block_shape(scheme)

    @classmethod
    def _block_shape(cls, scheme: Scheme) -> tuple[int, ...]:
        return block_of(scheme)

    @property
    def indptr(self) -> NDArray[np.int64]:
        """int64 (block rows + 1,), read-only."""
        return frozen(self._indptr)

    @property
    def indices(self) -> NDArray[np.uint16] | NDArray[np.uint32]:
        """Block columns: uint16, or uint32 beyond 65536 of them; read-only."""
        return frozen(self._indices)

    @property
    def data(self) -> Array:
        """The stored values, floats or integer codes, read-only."""
        return frozen(self._blocks.reshape(-1, *self._data_form(self._scheme)[1]))

    @property
    def scales(self) -> F32 | None:
        """One float32 per row of integers, else None."""
        return None if self._scales is None else frozen(self._scales)

    def parts(self) -> Arrays:
        parts = {"indptr": self.indptr, "indices": self.indices, "data": self.data}
        if self._scales is not None:
            parts["scale"] = frozen(self._scales[:, None])
        return parts | {"shape": frozen(np.array(self._shape, np.int64))}

    def blocks(self, written: Mapping[str, int], shape: tuple[int, ...]) -> Arrays:
        blocks = super().blocks(written, shape)
        if written:
            blocks["indptr"] = blocks["indptr"][1:] + written["indices"]
        return blocks

    def decode_rows(self, start: int, stop: int) -> F32:
        (height, width), block_cols = self.blocksize, -(-self._cols // self.blocksize[1])
        first, last = start // height, -(-stop // height)
        begin, end = self._indptr[first], self._indptr[last]
        tiles = np.zeros((last - first, height, block_cols, width), np.float32)
        row = np.repeat(np.arange(last - first), np.diff(self._indptr[first : last + 1]))
        tiles[row, :, self._indices[begin:end]] = self._blocks[begin:end]
        w = tiles.reshape((last - first) * height, block_cols * width)[
            start - first * height : stop - first * height, : self._cols
        ]
        if self._scales is not None:
            with np.errstate(over="ignore"):  # infinity, as in products
                w = w * self._scales[start:stop, None]
        return np.ascontiguousarray(w)

    def take(self, ids: Any) -> F32:
        ids = take_ids(ids, self._rows)
        flat, (height, width) = ids.reshape(-1), self.blocksize
        start = self._indptr[flat // height]
        count = self._indptr[flat // height + 1] - start
        row = np.repeat(np.arange(len(flat)), count)
        block = np.arange(len(row)) + np.repeat(start - np.cumsum(count) + count, count)
        w = np.zeros((len(flat), -(-self._cols // width), width), np.float32)
        w[row, self._indices[block]] = self._blocks[block, (flat % height)[row]]
        if self._scales is not None:
            with np.errstate(over="ignore"):
                w *= self._scales[flat, None, None]
        return w.reshape(len(flat), w.shape[1] * width)[:, : self._cols].reshape(*ids.shape, *self._shape[1:])

    def _slice(self, rows: slice, cols: slice) -> Self:
        height, width = self.blocksize
        _check_aligned("rows", rows, height, self._rows)
        _check_aligned("columns", cols, width, self._cols)
        first, last = rows.start // height, -(-rows.stop // height)
        begin, end = self._indptr[first], self._indptr[last]
        indptr = self._indptr[first : last + 1] - begin
        indices, blocks = self._indices[begin:end], self._blocks[begin:end]
        shape = (rows.stop - rows.start, *self._shape[1:])
        if cols != slice(0, self._cols):
            shape = (shape[0], cols.stop - cols.start)
            left, right = cols.start // width, -(-cols.stop // width)
            keep = (indices >= left) & (indices < right)
            indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep, dtype=np.int64)])[indptr]
            indices = (indices[keep] - indices.dtype.type(left)).astype(index_dtype(right - left))
            blocks = blocks[keep]
        scales = None if self._scales is None else self._scales[rows]
        return type(self)(self._scheme, shape, indptr, indices, blocks, scales)

    def kernel(self, batch: int, activations: str) -> str | None:
        return self._kernel(self._scales is not None, activations)

    @staticmethod
    def _kernel(scaled: bool, activations: str) -> str | None:
        if not scaled:
            return "matmul_f32_bsr"
        return None if activations == "float32" else "matmul_int_bsr"

    def _fused(self, x: F32, y: F32, bias: F32 | None, options: Options, activations: str) -> None:
        self._native().matmul(x, y, bias, activations)

    def _native(self) -> native.BlockSparse:
        if self._weights is None:
            arrays = self._indptr, self._indices, self._blocks, self._scales
            self._weights = native.BlockSparse(
                *arrays, self._rows, self._cols, self.blocksize, codec_of(self._scheme).name
            )
        return self._weights

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts().values())

    @property
    def resident_nbytes(self) -> int:
        arrays = (self._indptr, self._indices, self._blocks, self._scales)
        return sum(array.nbytes for array in arrays if array is not None and not is_mapped(array))

    @property
    def nnz(self) -> int:
        return int(self._blocks.size)

    def _decoded_blocks(self) -> Array:
        """`data` in float32, scales applied: (blocks, R, C)."""
        blocks = self._stored_values()
        if self._scales is None:
            return frozen(blocks)
        height = self.blocksize[0]
        row = np.repeat(np.arange(len(self._indptr) - 1), np.diff(self._indptr))
        padded = np.zeros((len(self._indptr) - 1) * height, np.float32)
        padded[: self._rows] = self._scales
        return blocks * padded.reshape(-1, height)[row][:, :, None]

    def _stored_values(self) -> Array:
        """`data` (blocks, R, C) as numbers, without scales; float32 is shared."""
        return self._blocks if self._blocks.dtype == np.float32 else codec_of(self._scheme).decode_sparse(self._blocks)


def block_of(scheme: Scheme) -> tuple[int, int]:
    """(R, C): rows and columns of a block."""
    height, width = scheme.numbers or (1, 1)
    return height, width


def index_dtype(block_cols: int) -> Any:
    """uint16 if and only if every block column fits."""
    return np.uint16 if block_cols <= NARROW_COLS else np.uint32


def _check(parts: Mapping[str, Array], name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    got = parts[name]
    if got.dtype != dtype or got.shape != shape:
        raise FormatError(None, name, f"{np.dtype(dtype)} of shape {shape}", f"{got.dtype} of shape {got.shape}")


def _check_aligned(what: str, cut: slice, step: int, size: int) -> None:
    if cut.start % step or (cut.stop % step and cut.stop != size):
        raise IndexError(f"index: expected {what} at multiples of the block, {step}, got {cut.start}:{cut.stop}")


def sorted_scipy(matrix: Any) -> Any:
    """A SciPy csr or bsr matrix with sorted, unique indices; the given one is not modified."""
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix
