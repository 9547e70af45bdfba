"""What CSR and BSR share: compressed rows of blocks. CSR is the case of 1 x 1 blocks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.errors import FormatError
from pumice.layouts.base import CompactArray
from pumice.layouts.dense import is_mapped
from pumice.layouts.operands import frozen
from pumice.layouts.work import Work, label_of, steps_of
from pumice.scheme import Scheme
from pumice.values.base import F32, Array, Arrays, check_part, codec_of, matrix_shape, stored_dtype
from pumice.values.integer import check_scales

INTEGERS = ("int8", "int4")  # values with a scale per row
NARROW_COLS = 65536  # block columns that uint16 indices can name


class CompressedArray(CompactArray):
    """Rows of blocks, the blocks of a row side by side; everything else is 0.

    ``indptr[i] : indptr[i + 1]`` are the blocks of block row i; ``indices`` are their block columns, rising; ``data``
    their values. Integers have one float32 scale per row. Ragged edges are padded with zeros.
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

    @classmethod
    def chunk_rows(cls, scheme: Scheme) -> int:
        return math.lcm(super().chunk_rows(scheme), block_of(scheme)[0])

    @classmethod
    def from_parts(cls, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Array]) -> Self:
        rows, cols = matrix_shape(shape)
        height, width = block_of(scheme)
        block_rows, block_cols = -(-rows // height), -(-cols // width)
        scaled = codec_of(scheme).sparse_dtype == np.int8
        names = {"indptr", "indices", "data", "shape"} | ({"scale"} if scaled else set())
        if set(parts) != names:
            raise FormatError(None, None, f"the parts {sorted(names)} for {scheme}", sorted(parts))
        blocks = len(parts["indices"]) if parts["indices"].ndim else 0
        check_part(parts, "indptr", np.int64, (block_rows + 1,))
        check_part(parts, "indices", index_dtype(block_cols), (blocks,))
        scales = None
        if scaled:
            check_part(parts, "scale", np.float32, (rows, 1))
            check_scales("scale", parts["scale"])
            scales = np.ascontiguousarray(parts["scale"][:, 0])
        indptr, indices = np.array(parts["indptr"]), np.array(parts["indices"])
        rule, row = native.check_bsr(indptr, indices, block_cols)
        if rule:
            raise FormatError(None, "indptr" if rule.startswith("indptr") else "indices", rule, f"row {row}")
        check_part(parts, "data", stored_dtype(scheme), cls._data_shape(scheme, indptr))
        data = np.ascontiguousarray(parts["data"])
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
    @abstractmethod
    def _data_shape(cls, scheme: Scheme, indptr: NDArray[np.int64]) -> tuple[int, ...]:
        """Shape of `data` behind a valid `indptr`."""

    @staticmethod
    @abstractmethod
    def _kernel(scaled: bool, activations: str) -> str | None:
        """The kernel for integers, or floats; None where row panels are decoded for BLAS."""

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
        return frozen(self._blocks)

    @property
    def scales(self) -> F32 | None:
        """One float32 per row of integers, else None."""
        return None if self._scales is None else frozen(self._scales)

    def parts(self) -> Arrays:
        parts = {"indptr": self.indptr, "indices": self.indices, "data": self.data}
        if self._scales is not None:
            parts["scale"] = frozen(self._scales[:, None])
        return parts | {"shape": frozen(np.array(self._shape, np.int64))}

    def part_dtype(self, part: str) -> str:
        name = codec_of(self._scheme).file_dtypes.get("") if part == "data" else None
        return name or super().part_dtype(part)

    def blocks(self, written: Mapping[str, int], shape: tuple[int, ...]) -> Arrays:
        blocks = super().blocks(written, shape)
        if written:
            blocks["indptr"] = blocks["indptr"][1:] + written["indices"]
        return blocks

    def kernel(self, batch: int, activations: str) -> str | None:
        return self._kernel(self._scales is not None, activations)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts().values())

    @property
    def resident_nbytes(self) -> int:
        arrays = (self._indptr, self._indices, self._blocks, self._scales)
        return sum(array.nbytes for array in arrays if array is not None and not is_mapped(array))


def block_of(scheme: Scheme) -> tuple[int, int]:
    """(R, C): rows and columns of a block."""
    height, width = scheme.numbers or (1, 1)
    return height, width


def ends_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where rows of so many values begin, and the end."""
    ends = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=ends[1:])
    return ends


def index_dtype(block_cols: int) -> Any:
    """uint16 if and only if every block column fits."""
    return np.uint16 if block_cols <= NARROW_COLS else np.uint32


def sorted_scipy(matrix: Any) -> Any:
    """A SciPy csr or bsr matrix with sorted, unique indices; the given one is not modified."""
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix
