"""Block-sparse rows: every stored R x C block with its block column."""

from __future__ import annotations

from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from pumice import memory
from pumice._core import native
from pumice.errors import NonFiniteError
from pumice.layouts.compressed import INTEGERS, CompressedArray, block_of, ends_of, index_dtype, sorted_scipy
from pumice.layouts.indexing import take_ids
from pumice.layouts.operands import frozen
from pumice.layouts.registry import register
from pumice.options import Options
from pumice.scheme import LayoutGrammar, Scheme
from pumice.values.base import F32, Array, Arrays, codec_of, stored_dtype
from pumice.values.integer import Integer

PANEL_WEIGHTS = 1 << 16  # that are rounded at a time


def refused(scheme: Scheme) -> str | None:
    """Why blocks of this size cannot have such values, if so."""
    height, width = block_of(scheme)
    if scheme.values == "int4" and height * width % 2:
        return f"int4 needs blocks of an even number of weights, two in a byte, not {height}x{width}"
    return None


@register
class BSRArray(CompressedArray):
    """Block-sparse rows, as in SciPy: `indptr`, `indices` and `data` (blocks, R, C); `blocksize` is (R, C).

    bfloat16 `data` are uint16 patterns; of int4 it is (blocks, R * C / 2), two codes a byte.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = pm.compress(np.kron(np.eye(3), np.ones((4, 4))), "bsr-4x4")
    >>> w.data.shape, w.density
    ((3, 4, 4), 0.3333333333333333)
    """

    grammar = LayoutGrammar(
        "bsr", "bsr-{}x{}", ("R", "C"), values=("float32", "float16", "bfloat16", "int8", "int4"), refuses=refused
    )

    _weights: native.BlockSparse | None = None  # made by the first product

    @classmethod
    def encode(
        cls, w: F32, scheme: Scheme, shape: tuple[int, ...], scale_dtype: Any = None, grid: Arrays | None = None
    ) -> Self:
        blocksize, w = block_of(scheme), np.ascontiguousarray(w)
        most = native.count_bsr(w, blocksize, "float32")  # what is 0 before rounding is 0 after it
        indices = memory.empty(int(most[-1]), index_dtype(-(-w.shape[1] // blocksize[1])))
        data, scales = memory.empty(cls._data_shape(scheme, most), stored_dtype(scheme)), None
        if scheme.values in INTEGERS:
            codec = cast(Integer, codec_of(scheme))
            scales = (grid or codec.grid_for(w, scheme, np.float32))["scale"].astype(np.float32, copy=False)
            counts = native.fill_bsr_codes(w, scales, scheme.values, blocksize, most, indices, data)
            scales = scales[:, 0]
        else:
            counts = _fill_floats(w, scheme, indices, data)
        indptr = ends_of(counts)
        end = indptr[-1]
        return cls(scheme, shape, indptr, memory.shrunk(indices, end), memory.shrunk(data, end), scales)

    @classmethod
    def _data_shape(cls, scheme: Scheme, indptr: NDArray[np.int64]) -> tuple[int, ...]:
        height, width = block_of(scheme)
        block = (height * width // 2,) if scheme.values == "int4" else (height, width)
        return int(indptr[-1]), *block

    def decode_rows(self, start: int, stop: int) -> F32:
        return self._native().decode(start, stop)

    def take(self, ids: Any) -> F32:
        ids = take_ids(ids, self._rows)
        return self._native().take(ids.reshape(-1)).reshape(*ids.shape, *self._shape[1:])

    @property
    def nnz(self) -> int:
        height, width = self.blocksize
        return len(self._indices) * height * width

    @classmethod
    def from_scipy(cls, matrix: Any, blocksize: tuple[int, int] | None = None) -> Self:
        """Any SciPy sparse matrix or array, as ``bsr`` in float32, with its own blocks or those given.

        float32 data is shared.
        """
        matrix = sorted_scipy(matrix.tobsr(blocksize))
        height, width = matrix.blocksize
        parts = {
            "indptr": matrix.indptr.astype(np.int64),
            "indices": memory.copied(matrix.indices, index_dtype(matrix.shape[1] // width)),
            "data": matrix.data.astype(np.float32, copy=False),
            "shape": np.array(matrix.shape, np.int64),
        }
        return cls.from_parts(Scheme("bsr", (int(height), int(width))), matrix.shape, parts)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.bsr_array` in float32, its ragged edges padded to whole blocks; float32 data is shared."""
        from scipy.sparse import bsr_array

        height, width = self.blocksize
        padded = -(-self._rows // height) * height, -(-self._cols // width) * width
        return bsr_array(self.scipy_arrays(), shape=padded, blocksize=self.blocksize)

    def scipy_arrays(self) -> tuple[F32, Array, Array]:
        """(data, indices, indptr) as SciPy has them: float32 blocks, signed indices."""
        width = self.blocksize[1]
        index = np.int32 if max(len(self._indices), -(-self._cols // width) * width) < 2**31 else np.int64
        return self._decoded_blocks(), self._indices.astype(index), self._indptr.astype(index)

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

    @staticmethod
    def _kernel(scaled: bool, activations: str) -> str | None:
        if not scaled:
            return "matmul_f32_bsr"
        return None if activations == "float32" else "matmul_int_bsr"

    def _fused(self, x: F32, y: F32, bias: F32 | None, options: Options, activations: str) -> None:
        self._native().matmul(x, y, bias, activations)

    def _native(self) -> native.BlockSparse:
        if self._weights is None:  # of threads that race here each makes one, and any will do
            arrays = self._indptr, self._indices, self._blocks, self._scales
            self._weights = native.BlockSparse(
                *arrays, self._rows, self._cols, self.blocksize, codec_of(self._scheme).name
            )
        return self._weights

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
        if self._blocks.dtype == np.float32:
            return self._blocks
        if self._scheme.values != "int4":
            return codec_of(self._scheme).decode_sparse(self._blocks)
        codes = np.stack([self._blocks & 15, self._blocks >> 4], axis=-1).astype(np.float32) - 8
        return codes.reshape(-1, *self.blocksize)


def _check_aligned(what: str, cut: slice, step: int, size: int) -> None:
    if cut.start % step or (cut.stop % step and cut.stop != size):
        raise IndexError(f"index: expected {what} at multiples of the block, {step}, got {cut.start}:{cut.stop}")


def _fill_floats(w: F32, scheme: Scheme, indices: Array, data: Array) -> NDArray[np.int64]:
    """The blocks of w in a float codec; how many each block row has."""
    codec, (height, width), counts, end = codec_of(scheme), block_of(scheme), [], 0
    step = max(PANEL_WEIGHTS // max(w.shape[1], 1) // height, 1) * height
    for start in range(0, len(w), step):
        try:
            values, _ = codec.encode_sparse(w[start : start + step], scheme)
        except NonFiniteError:
            codec.encode_sparse(w, scheme)  # for the index in its message
            raise
        ends, columns, blocks = native.encode_bsr(values, (height, width), scheme.values)
        stop = end + len(columns)
        indices[end:stop], data[end:stop] = columns, blocks.reshape(-1, height, width)
        counts.append(np.diff(ends))
        end = stop
    return np.concatenate(counts) if counts else np.zeros(0, np.int64)
