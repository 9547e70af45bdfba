"""Compressed sparse rows: every stored value with its column."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from pumice import memory
from pumice._core import native
from pumice.errors import NonFiniteError
from pumice.layouts.compressed import INTEGERS, CompressedArray, ends_of, index_dtype, sorted_scipy
from pumice.layouts.indexing import take_ids
from pumice.layouts.operands import frozen
from pumice.layouts.registry import register
from pumice.options import Options
from pumice.scheme import LayoutGrammar, Scheme
from pumice.values.base import F32, Array, Arrays, codec_of, stored_dtype
from pumice.values.integer import Integer

BLOCK = 128  # columns of a block of `runs`
PANEL_BYTES = 1 << 20  # of float32 weights that are rounded to other values at a time
MIDDLE = 8  # the int4 code of 0
RUN = 4  # stored values of a block: with fewer, walking rows block by block costs more than it saves
ROWS_WITHOUT_RUNS = 32  # of x: a tile that meets float weights as they come


class Form(NamedTuple):
    """The weights as kernels take them, and what is there beside the canonical arrays."""

    rows: native.CompressedRows
    runs: NDArray[np.uint8] | None = None


@register
class CSRArray(CompressedArray):
    """Compressed sparse rows, as in SciPy: `indptr`, `indices`, `data`.

    int4 codes are packed, two a byte of `data`, and each row begins on a byte.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = pm.compress(np.array([[0.0, 2.0], [0.0, 0.0], [3.0, 4.0]]), "csr")
    >>> w.indptr, w.indices, w.data
    (array([0, 1, 1, 3]), array([1, 0, 1], dtype=uint16), array([2., 3., 4.], dtype=float32))
    >>> pm.compress(np.array([[0.0, -4.0], [0.0, 0.0], [3.5, -4.0]]), "csr+int4").data
    array([ 0, 15], dtype=uint8)
    """

    grammar = LayoutGrammar("csr", "csr", values=("float32", "float16", "bfloat16", *INTEGERS))

    _form: Form | None = None  # made by the first product
    _keep = False

    @cached_property
    def _starts(self) -> NDArray[np.int64] | None:
        """The byte of `data` at which each row of int4 begins, and the end."""
        return _starts_of(self._indptr) if self._scheme.values == "int4" else None

    @classmethod
    def _data_shape(cls, scheme: Scheme, indptr: NDArray[np.int64]) -> tuple[int, ...]:
        return (int((_starts_of(indptr) if scheme.values == "int4" else indptr)[-1]),)

    @classmethod
    def encode(
        cls, w: F32, scheme: Scheme, shape: tuple[int, ...], scale_dtype: Any = None, grid: Arrays | None = None
    ) -> Self:
        values, packed, cols = scheme.values, scheme.values == "int4", w.shape[1]
        w = np.ascontiguousarray(w)
        room = ends_of(native.count_csr(w, "float32"))  # before rounding; what is left after it is no more
        starts = _starts_of(room) if packed else None
        indices = memory.empty(int(room[-1]), index_dtype(cols))
        data = memory.empty(int((room if starts is None else starts)[-1]), stored_dtype(scheme))
        scales = None
        if values in INTEGERS:
            codec = cast(Integer, codec_of(scheme))
            scales = (grid or codec.grid_for(w, scheme, np.float32))["scale"].astype(np.float32, copy=False)
            counts = native.fill_csr_codes(w, scales, values, room, starts, indices, data)
            scales = scales[:, 0]
        else:
            counts = _fill_floats(w, scheme, room, indices, data)
        indptr = ends_of(counts)
        end = (_starts_of(indptr) if packed else indptr)[-1]
        return cls(scheme, shape, indptr, memory.shrunk(indices, indptr[-1]), memory.shrunk(data, end), scales)

    @classmethod
    def from_scipy(cls, matrix: Any) -> Self:
        """Any SciPy sparse matrix or array, as ``csr`` in float32; stored zeros become holes.

        float32 data is shared.
        """
        matrix = sorted_scipy(matrix.tocsr())
        if not matrix.data.all():
            matrix = matrix.copy()
            matrix.eliminate_zeros()
        parts = {
            "indptr": matrix.indptr.astype(np.int64),
            "indices": memory.copied(matrix.indices, index_dtype(matrix.shape[1])),
            "data": matrix.data.astype(np.float32, copy=False),
            "shape": np.array(matrix.shape, np.int64),
        }
        return cls.from_parts(Scheme("csr"), matrix.shape, parts)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.csr_array` in float32; float32 data is shared, read-only.

        SciPy (``pip install pumice[scipy]``) is needed here only.
        """
        from scipy.sparse import csr_array

        return csr_array(self.scipy_arrays(), shape=(self._rows, self._cols))

    def scipy_arrays(self) -> tuple[F32, Array, Array]:
        """(data, indices, indptr) as SciPy has them: float32 values, signed indices."""
        data, counts = self._blocks, np.diff(self._indptr)
        if self._scales is not None:
            with np.errstate(over="ignore"):
                data = self._signed().astype(np.float32) * np.repeat(self._scales, counts)
        elif self._scheme.values != "float32":
            data = codec_of(self._scheme).decode_sparse(data)
        index = np.int32 if max(self.nnz, self._cols) < 2**31 else np.int64
        return frozen(data), self._indices.astype(index), self._indptr.astype(index)

    def decode_rows(self, start: int, stop: int) -> F32:
        return self._rows_view().decode_rows(start, stop)

    def take(self, ids: Any) -> F32:
        ids = take_ids(ids, self._rows)
        flat = np.ascontiguousarray(ids.reshape(-1), np.int64)
        return self._rows_view().take(flat).reshape(*ids.shape, *self._shape[1:])

    def _slice(self, rows: slice, cols: slice) -> Self:
        begin, end = self._indptr[rows.start], self._indptr[rows.stop]
        indptr = self._indptr[rows.start : rows.stop + 1] - begin
        indices, starts = self._indices[begin:end], self._starts
        data = self._blocks[begin:end] if starts is None else self._blocks[starts[rows.start] : starts[rows.stop]]
        scales = None if self._scales is None else self._scales[rows]
        cut = type(self)(self._scheme, (rows.stop - rows.start, *self._shape[1:]), indptr, indices, data, scales)
        return cut if cols == slice(0, self._cols) else cut._columns(cols.start, cols.stop)

    def _columns(self, start: int, stop: int) -> Self:
        keep = (self._indices >= start) & (self._indices < stop)
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep, dtype=np.int64)])[self._indptr]
        indices = (self._indices[keep] - self._indices.dtype.type(start)).astype(index_dtype(stop - start))
        data = self._blocks[keep] if self._starts is None else _packed(self._signed()[keep], indptr)
        return type(self)(self._scheme, (self._rows, stop - start), indptr, indices, data, self._scales)

    def _signed(self) -> Array:
        """The codes of integers, one an entry."""
        if self._starts is None:
            return self._blocks
        halves = np.stack([self._blocks & 15, self._blocks >> 4], axis=1).reshape(-1)
        return halves[_places(self._indptr)].astype(np.int8) - np.int8(MIDDLE)

    @staticmethod
    def _kernel(scaled: bool, activations: str) -> str | None:
        return "matmul_int_csr" if scaled and activations != "float32" else "matmul_f32_csr"

    def _view(self, runs: NDArray[np.uint8] | None) -> native.CompressedRows:
        return native.CompressedRows(
            self._indptr, self._indices, self._blocks, self._starts, self._scales, runs,
            self._rows, self._cols, self._scheme.values,
        )  # fmt: skip

    def _rows_view(self) -> native.CompressedRows:
        form = self._form
        if form is None:  # of threads that race here each makes one, and any will do
            form = self._form = Form(self._view(None))
        return form.rows

    def _fused(self, x: F32, y: F32, bias: F32 | None, options: Options, activations: str) -> None:
        walked = len(x) > ROWS_WITHOUT_RUNS or self._kernel(self._scales is not None, activations) == "matmul_int_csr"
        if walked and not self._keep and options.prepack != "never":
            self.prepack()
        self._rows_view().matmul(x, y, bias, activations)

    def prepack(self) -> Self:
        form = self._form
        blocks = self._rows * -(-self._cols // BLOCK)
        if (form is None or form.runs is None) and self.nnz >= RUN * blocks:
            runs = self._rows_view().count_runs()
            self._form = Form(self._view(runs), runs)
        return self

    def keep_canonical(self) -> Self:
        self._keep = True
        self._form = None
        return self

    @property
    def resident_nbytes(self) -> int:
        form = self._form
        beside = (self._starts, None if form is None else form.runs)
        return super().resident_nbytes + sum(array.nbytes for array in beside if array is not None)

    @property
    def nnz(self) -> int:
        return len(self._indices)


def _fill_floats(
    w: F32, scheme: Scheme, room: NDArray[np.int64], indices: NDArray[Any], data: Array
) -> NDArray[np.int64]:
    """What is stored of w, row behind row, and how many values each row has; `room` counts what is not 0."""
    if scheme.values == "float32":
        native.fill_csr(w, scheme.values, room, None, indices, data)
        return np.diff(room)
    counts, end = np.zeros(len(w), np.int64), 0
    step = max(1, PANEL_BYTES // (4 * max(w.shape[1], 1)))
    for start in range(0, len(w), step):
        panel = _rounded(w, scheme, start, start + step)
        counts[start : start + step] = native.count_csr(panel, scheme.values)
        ends = ends_of(counts[start : start + step])
        native.fill_csr(panel, scheme.values, ends, None, indices[end:], data[end:])
        end += int(ends[-1])
    return counts


def _rounded(w: F32, scheme: Scheme, start: int, stop: int) -> Array:
    """Rows start .. stop - 1 as they are stored."""
    codec = codec_of(scheme)
    try:
        return codec.encode_sparse(w[start:stop], scheme)[0]
    except NonFiniteError:
        codec.encode_sparse(w, scheme)  # names the index in the whole
        raise


def _starts_of(indptr: NDArray[np.int64]) -> NDArray[np.int64]:
    """The byte of `data` at which each row of int4 begins, and the end."""
    return ends_of((np.diff(indptr) + 1) // 2)


def _places(indptr: NDArray[np.int64]) -> NDArray[np.int64]:
    """The half byte of each stored value."""
    before = 2 * _starts_of(indptr)[:-1] - indptr[:-1]
    return np.arange(indptr[-1]) + np.repeat(before, np.diff(indptr))


def _packed(codes: NDArray[np.int8], indptr: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Signed codes as `data` has them."""
    halves = np.zeros(2 * _starts_of(indptr)[-1], np.uint8)
    halves[_places(indptr)] = codes + np.int8(MIDDLE)
    packed: NDArray[np.uint8] = halves[::2] | halves[1::2] << 4
    return packed
