"""The array that users hold, whatever its layout; and its transposed view."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from pumice._core import native
from pumice.layouts.indexing import bounds, take_ids
from pumice.layouts.operands import FLOAT32, apart, as_bias, as_matrix, check_out
from pumice.layouts.operators import Operators, into, swapped
from pumice.layouts.registry import LAYOUTS, build, from_parts
from pumice.layouts.work import Work
from pumice.options import Options, current
from pumice.scheme import SUM, LayoutGrammar, Scheme
from pumice.values.base import F32, Array, Arrays, Energies, StoredRows

PANEL_BYTES = 8 << 20  # decoded weights that are held at a time

FILE_DTYPES = {"u1": "U8", "i1": "I8", "u2": "U16", "u4": "U32", "i4": "I32", "i8": "I64", "f2": "F16", "f4": "F32"}


class CompactArray(Operators):
    """A weight at its true size: what `compress` returns.

    Behaves as a float32 matrix (rows, cols) = (out_features, in_features) that never changes. ``x @ w.T`` and ``w @ x``
    are fused; ``x @ w`` and ``w.T @ x`` decode row panels. Weights of more dimensions are stored as (shape[0], rest).
    """

    grammar: ClassVar[LayoutGrammar]
    choice: Any = None
    """Why it has its scheme, if ``"auto"`` chose it: a `pumice.choice.Choice`. Not written to files."""
    outcome: Any = None
    """What the method of `compress` did, if there was one: a `pumice.quantization.Outcome`. Not written to files."""
    __hash__ = object.__hash__

    def __init__(self, scheme: Scheme, shape: tuple[int, ...]) -> None:
        self._scheme, self._shape = scheme, shape
        self._rows, self._cols = shape[0], math.prod(shape[1:])

    # What a layout defines.

    @classmethod
    @abstractmethod
    def encode(cls, w: F32, scheme: Scheme, shape: tuple[int, ...], scale_dtype: Any = None) -> CompactArray:
        """Compress a finite float32 matrix; `shape` is the logical one."""

    @classmethod
    def encode_rows(
        cls, rows: StoredRows, scheme: Scheme, shape: tuple[int, ...], scale_dtype: Any = None
    ) -> tuple[CompactArray, Energies]:
        """`encode` rows as a file has them, and what that misses. Raises NonFiniteError, as `StoredRows.floats`."""
        w = rows.floats()
        array = cls.encode(w, scheme, shape, scale_dtype)
        return array, native.row_energies(w, np.ascontiguousarray(array.decode_rows(0, len(w))))

    @classmethod
    @abstractmethod
    def from_parts(cls, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Array]) -> CompactArray:
        """The inverse of `parts`: validates, copies index parts, views the rest."""

    @abstractmethod
    def parts(self) -> Arrays:
        """Part name -> array: the canonical form exactly as it is written to a file."""

    @classmethod
    @abstractmethod
    def stack(cls, arrays: Sequence[CompactArray], shape: tuple[int, ...]) -> CompactArray:
        """Arrays of one scheme and equal columns, row under row; `shape` is the result's."""

    @abstractmethod
    def decode_rows(self, start: int, stop: int) -> F32:
        """Rows [start, stop) as float32 (stop - start, cols)."""

    @abstractmethod
    def take(self, ids: Any) -> F32:
        """Decoded rows, as an embedding table gives them: float32 of shape (*ids.shape, *shape[1:])."""

    @abstractmethod
    def _slice(self, rows: slice, cols: slice) -> CompactArray:
        """Rows [rows.start, rows.stop) and columns likewise; both are within range, with step 1."""

    @abstractmethod
    def kernel(self, batch: int, activations: str) -> str | None:
        """The kernel of such a product; None where row panels are decoded for BLAS."""

    @abstractmethod
    def _fused(self, x: F32, y: F32, bias: F32 | None, options: Options, activations: str) -> None:
        """y = x @ w.T + bias through `kernel`."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the canonical form."""

    @property
    @abstractmethod
    def resident_nbytes(self) -> int:
        """Bytes that the form in memory takes now; 0 for what stays in a mapped file."""

    @property
    @abstractmethod
    def nnz(self) -> int:
        """Stored values."""

    # What a layout may define.

    def part_dtype(self, part: str) -> str:
        """safetensors dtype name of a part."""
        return FILE_DTYPES[self.parts()[part].dtype.newbyteorder("=").str[1:]]

    @classmethod
    def expected_nbytes(cls, scheme: Scheme, shape: tuple[int, ...]) -> int | None:
        """`nbytes` of a weight of this shape, known before its values are; None where it depends on them."""
        return None

    @classmethod
    def work(cls, scheme: Scheme, shape: tuple[int, ...], density: float, batch: int, activations: str) -> Work | None:
        """What a product does with a weight of this shape, for the cost model; None: unknown."""
        return None

    @classmethod
    def chunk_rows(cls, scheme: Scheme) -> int:
        """Chunks of rows that are stored one after the other have a multiple of this many, but for the last."""
        return 32  # so that bit streams along the rows end on 32-bit words

    def blocks(self, written: Mapping[str, int], shape: tuple[int, ...]) -> Arrays:
        """What to append to each part when this is the next row chunk of a larger array.

        Parameters
        ----------
        written : mapping of str to int
            Entries that each part has along axis 0; empty for the first chunk.
        shape : tuple of int
            Logical shape of the whole. Chunks before the last have a multiple of `chunk_rows`.
        """
        blocks = self.parts()
        if blocks.pop("shape", None) is not None and not written:
            blocks["shape"] = np.array(shape, np.int64)
        return blocks

    @property
    def terms(self) -> tuple[CompactArray, ...]:
        """The arrays that are added up, if this is a sum; else ()."""
        return ()

    def prepack(self) -> Self:
        """Reorder the weights for the kernels now; the first product does it otherwise."""
        return self

    def keep_canonical(self) -> Self:
        """Never reorder: products read the canonical form, which a mapped file shares between processes."""
        return self

    # What follows from that.

    @property
    def scheme(self) -> str:
        """The scheme, as text."""
        return str(self._scheme)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def ndim(self) -> int:
        return len(self._shape)

    @property
    def size(self) -> int:
        return self._rows * self._cols

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """float32 always: what the weights decode to."""
        return np.dtype(np.float32)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits / (rows * cols)."""
        return 8 * self.nbytes / self.size if self.size else 0.0

    @property
    def density(self) -> float:
        """Stored values / (rows * cols)."""
        return self.nnz / self.size if self.size else 0.0

    @property
    def T(self) -> Transposed:
        return Transposed(self)

    def transpose(self) -> CompactArray:
        return self.T

    def to_dense(self) -> F32:
        """The weights, decoded: float32 of `shape`."""
        return self.decode_rows(0, self._rows).reshape(self._shape)

    def codes(self) -> Array:
        """The stored integers, unpacked, one per weight: (rows, cols)."""
        raise TypeError(f"codes: expected dense integer weights, got {self.scheme}")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("copy: expected True or None (decoding makes a new array), got False")
        return self.to_dense().astype(dtype or np.float32, copy=False)

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) > 2 or (len(keys) == 2 and self.ndim != 2):
            raise IndexError(f"index: expected rows, or rows and columns of a matrix, got {key!r}")
        if len(keys) == 1 and isinstance(keys[0], int | np.integer):
            row = int(keys[0])
            if not -self._rows <= row < self._rows:
                raise IndexError(f"index: expected a row below {self._rows}, got {row}")
            return self.take(np.array(row % self._rows))
        rows = bounds(keys[0], self._rows)
        cols = bounds(keys[1], self._cols) if len(keys) == 2 else slice(0, self._cols)
        return self._slice(rows, cols)

    def __eq__(self, other: object) -> bool:
        raise TypeError("==: expected ndarrays, got a CompactArray; compare to_dense() or parts()")

    def __bool__(self) -> bool:
        raise ValueError("bool: expected an ndarray, got compact weights, whose truth is ambiguous; use len() or nnz")

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.scheme} {self.shape} {self.nbytes} bytes, "
            f"{self.bits_per_weight:.3g} bits per weight>"
        )

    def _repr_html_(self) -> str:
        rows = {
            "scheme": self.scheme,
            "shape": "x".join(map(str, self.shape)),
            "bytes": f"{self.nbytes:,} ({4 * self.size:,} as float32)",
            "bits per weight": f"{self.bits_per_weight:.3g}",
            "density": f"{self.density:.3g}",
        }
        cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows.items())
        return f"<table><caption>{type(self).__name__}</caption>{cells}</table>"

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + self.resident_nbytes

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return from_parts, (self.scheme, self.shape, self.parts())

    # Products.

    def linear(self, x: Any, bias: Any = None, activations: str | None = None, out: Array | None = None) -> F32:
        """x @ w.T + bias for x (..., cols): float32 (..., rows)."""
        if len(self._shape) != 2:
            raise ValueError(f"w: expected a matrix, got shape {self.shape}")
        options = current()
        if activations is None:
            activations = options.activations
        matrix, leading = as_matrix("x", x, self._cols)
        vector = None if bias is None else as_bias(bias, self._rows)
        batch = len(matrix)
        shape = (batch, self._rows) if leading is None else (*leading, self._rows)
        if out is not None:
            check_out(out, shape)
        direct = out is not None and apart(out, matrix) and (vector is None or apart(out, vector))
        y = out.reshape(batch, self._rows) if out is not None and direct else np.empty((batch, self._rows), FLOAT32)
        if self.kernel(batch, activations) is None:
            self._decoded(matrix, y, vector)
        else:
            self._fused(matrix, y, vector, options, activations)
        if out is None:
            return y if leading is None else y.reshape(shape)
        if not direct:
            out[...] = y.reshape(shape)
        return out

    def _panels(self) -> Any:
        step = max(1, PANEL_BYTES // (4 * max(self._cols, 1)))
        for start in range(0, self._rows, step):
            stop = min(self._rows, start + step)
            yield start, stop, self.decode_rows(start, stop)

    def _decoded(self, x: F32, y: F32, bias: F32 | None) -> None:
        with np.errstate(all="ignore"):  # as our kernels: NaN and infinity are results, not events
            for start, stop, panel in self._panels():
                y[:, start:stop] = x @ panel.T
        if bias is not None:
            y += bias

    def _untransposed(self, x: Any) -> F32:
        """x @ w for x (..., rows)."""
        if self.ndim != 2:
            raise ValueError(f"w: expected a matrix, got shape {self.shape}")
        matrix, leading = as_matrix("x", x, self._rows)
        y = np.zeros((matrix.shape[0], self._cols), np.float32)
        with np.errstate(all="ignore"):
            for start, stop, panel in self._panels():
                y += matrix[:, start:stop] @ panel
        return y if leading is None else y.reshape(*leading, self._cols)

    def __and__(self, other: Any) -> CompactArray:  # a & b
        if not isinstance(other, CompactArray):
            return NotImplemented
        if isinstance(self, Transposed) and isinstance(other, Transposed):
            return (self.T & other.T).T
        return LAYOUTS[SUM](self, other)  # type: ignore[arg-type]


class Transposed(CompactArray):
    """w.T: the same arrays, read the other way round. ``x @ w.T`` is the fused product."""

    def __init__(self, base: CompactArray) -> None:
        if len(base._shape) != 2:
            raise ValueError(f"T: expected a matrix, got shape {base.shape}")
        self._scheme, self._base = base._scheme, base
        self._rows, self._cols = self._shape = (base._cols, base._rows)

    @property
    def T(self) -> CompactArray:  # type: ignore[override]
        return self._base

    @property
    def choice(self) -> Any:
        return self._base.choice

    @property
    def outcome(self) -> Any:
        return self._base.outcome

    @classmethod
    def encode(cls, w: F32, scheme: Scheme, shape: tuple[int, ...], scale_dtype: Any = None) -> CompactArray:
        rows = np.ascontiguousarray(w.T)
        return LAYOUTS[scheme.layout].encode(rows, scheme, rows.shape, scale_dtype).T

    @classmethod
    def from_parts(cls, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Array]) -> CompactArray:
        return build(scheme, shape[::-1], parts).T

    def parts(self) -> Arrays:
        return self._base.parts()

    @classmethod
    def stack(cls, arrays: Sequence[CompactArray], shape: tuple[int, ...]) -> CompactArray:
        raise TypeError("arrays: expected arrays whose rows are stored, got transposed ones")

    def part_dtype(self, part: str) -> str:
        return self._base.part_dtype(part)

    def blocks(self, written: Mapping[str, int], shape: tuple[int, ...]) -> Arrays:
        return self._base.blocks(written, shape[::-1])

    def prepack(self) -> Self:
        self._base.prepack()
        return self

    def keep_canonical(self) -> Self:
        self._base.keep_canonical()
        return self

    def decode_rows(self, start: int, stop: int) -> F32:
        return np.ascontiguousarray(self._base.to_dense().T[start:stop])

    def take(self, ids: Any) -> F32:
        return self.to_dense()[take_ids(ids, self._rows)]

    def codes(self) -> Array:
        return self._base.codes().T

    def _slice(self, rows: slice, cols: slice) -> CompactArray:
        return self._base._slice(cols, rows).T

    def kernel(self, batch: int, activations: str) -> str | None:
        return None

    def _fused(self, x: F32, y: F32, bias: F32 | None, options: Options, activations: str) -> None:
        raise NotImplementedError  # pragma: no cover - `kernel` names none

    @property
    def nbytes(self) -> int:
        return self._base.nbytes

    @property
    def resident_nbytes(self) -> int:
        return self._base.resident_nbytes

    @property
    def nnz(self) -> int:
        return self._base.nnz

    def linear(self, x: Any, bias: Any = None, activations: str | None = None, out: Array | None = None) -> F32:
        """x @ w + bias for x (..., rows of the base): row panels are decoded."""
        y = self._base._untransposed(x)
        vector = as_bias(bias, self._rows)
        if vector is not None:
            y += vector
        return into(out, y)

    def __matmul__(self, x: Any) -> F32:  # w.T @ x
        return swapped(self._base._untransposed, x)

    def __rmatmul__(self, x: Any) -> F32:  # x @ w.T
        return self._base.linear(x)

    def _right_of(self, x: Any, out: Array | None) -> F32:
        return self._base.linear(x, out=out)

    def __reduce__(self) -> tuple[Any, ...]:
        return Transposed, (self._base,)
