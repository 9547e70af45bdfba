"""What a values codec is, and the registry of codecs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.errors import FormatError, NonFiniteError
from pumice.scheme import Scheme, ValuesGrammar, register_values

F32: TypeAlias = NDArray[np.float32]
Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = dict[str, Array]
Energies: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Of each row the sum of squares of what an encoding misses, and of the row itself (rows,)."""


class Weights(Protocol):
    """What multiplies: y = x @ w.T + bias, all float32 and C-contiguous, written to y."""

    def matmul(self, x: F32, y: F32, bias: F32 | None, activations: str) -> None: ...


@dataclass(frozen=True)
class StoredRows:
    """Rows of a weight as a file has them: a C-contiguous matrix of float32, float16, or the patterns of bfloat16
    (uint16), which `values` says."""

    matrix: Array
    values: str = "float32"

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def floats(self) -> F32:
        """As float32. Raises NonFiniteError unless all are finite."""
        halves = self.values != "float32"
        w: F32 = native.decode_halves(self.matrix.view(np.uint16), self.values == "bfloat16") if halves else self.matrix
        bad = native.first_nonfinite(w)
        if bad >= 0:
            index = tuple(int(i) for i in np.unravel_index(bad, w.shape))
            raise NonFiniteError(f"w: expected finite values, got {w[index]} at index {index}")
        return w


class Codec(ABC):
    """How each value of a weight is written.

    A codec turns float32 row panels into named arrays and back; every array has the rows on axis 0, so that a matrix
    can be encoded in row chunks. A new codec is one file with a subclass and `register`; with `form`, `encode` and
    `decode` it is complete, and products decode row panels and call BLAS until it brings a kernel.
    """

    name: ClassVar[str]
    bits: ClassVar[int]
    group: ClassVar[bool] = False
    flags: ClassVar[tuple[str, ...]] = ()
    """Options, of which a scheme has at most one."""
    file_dtypes: ClassVar[Mapping[str, str]] = {}
    """safetensors dtype names of parts that NumPy cannot name, such as ``{"": "BF16"}``."""

    @abstractmethod
    def form(self, scheme: Scheme, rows: int, cols: int) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Name -> (dtype or tuple of legal dtypes, shape) of each array: the exact size formula."""

    @abstractmethod
    def encode(self, w: F32, scheme: Scheme, scale_dtype: Any = None) -> Arrays:
        """Encode a finite (rows, cols) panel."""

    def encode_rows(self, rows: StoredRows, scheme: Scheme, scale_dtype: Any = None) -> tuple[Arrays, Energies]:
        """`encode` rows as a file has them, and what that misses. Raises NonFiniteError, as `StoredRows.floats`."""
        w = rows.floats()
        arrays = self.encode(w, scheme, scale_dtype)
        return arrays, native.row_energies(w, self.decode(arrays, scheme, w.shape[1]))

    @abstractmethod
    def decode(self, arrays: Arrays, scheme: Scheme, cols: int) -> F32:
        """Decode to (rows, cols) float32."""

    def codes(self, arrays: Arrays, cols: int) -> Array:
        """The stored numbers, one per weight, without their scales."""
        raise TypeError(f"codes: expected an integer codec, got {self.name}")

    def pack(self, codes: NDArray[np.uint8]) -> Arrays:
        """The array that holds these codes (rows, cols)."""
        raise TypeError(f"bits: expected those of an integer codec, got {self.name}")

    # Files: by default the arrays are the parts; the one called "" is the weight itself and has its logical shape.

    def to_parts(self, arrays: Arrays, shape: tuple[int, ...]) -> Arrays:
        """The arrays as they are written to a file."""
        return {name: array.reshape(shape) if name == "" else array for name, array in arrays.items()}

    def nbytes(self, scheme: Scheme, shape: tuple[int, ...]) -> int:
        """Bytes of the parts of a weight of this shape, where the first of several legal dtypes is used."""
        form = self.form(scheme, *matrix_shape(shape))
        sizes = (np.dtype(d[0] if isinstance(d, tuple) else d).itemsize * math.prod(s) for d, s in form.values())
        return sum(sizes)

    def from_parts(self, parts: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> Arrays:
        """The inverse of `to_parts`; raises FormatError for parts that do not fit."""
        rows, cols = matrix_shape(shape)
        arrays = dict(parts)
        if "" in arrays and arrays[""].shape == shape:
            arrays[""] = arrays[""].reshape(rows, cols)
        self.check(arrays, scheme, rows, cols)
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    def columns(self, arrays: Arrays, scheme: Scheme, cols: int, start: int, stop: int) -> Arrays:
        """Columns [start, stop) of `cols`; raises IndexError where the codec cannot be cut there."""
        if set(arrays) != {""}:
            raise IndexError(f"index: expected rows only, {scheme} cannot be cut by columns")
        return {"": np.ascontiguousarray(arrays[""][:, start:stop])}

    def group_of(self, scheme: Scheme, cols: int) -> int:
        """Columns that share a scale."""
        return max(cols, 1) if scheme.group is None else scheme.group

    def groups_between(self, scheme: Scheme, cols: int, start: int, stop: int) -> tuple[int, int]:
        """First and last + 1 of the groups that columns [start, stop) are; IndexError for one that is cut through."""
        group = self.group_of(scheme, cols)
        if scheme.group is None:
            return 0, 1
        if start % group or (stop % group and stop != cols):
            raise IndexError(f"index: expected columns at multiples of the group, {group}, got {start}:{stop}")
        return start // group, max(-(-stop // group), start // group + 1)

    def check(self, arrays: Arrays, scheme: Scheme, rows: int, cols: int) -> None:
        """Raise FormatError unless the arrays have the dtypes and shapes of `form` and hold legal values."""
        form = self.form(scheme, rows, cols)
        if set(arrays) != set(form):
            raise FormatError(None, None, f"the parts {sorted(form)} for {scheme}", sorted(arrays))
        for name, (dtypes, shape) in form.items():
            check_part(arrays, name, dtypes, shape)

    # Products: a codec with a kernel overrides these.

    def kernel(self, batch: int, activations: str) -> str | None:
        """Name of the kernel for such a product; None: decode row panels and call BLAS."""
        return None

    def weights(self, arrays: Arrays, scheme: Scheme, rows: int, cols: int) -> Weights:
        """The arrays as the kernels that `kernel` names take them."""
        raise NotImplementedError  # pragma: no cover - only called where `kernel` names one

    prepacks: ClassVar[bool] = False
    """Whether kernels profit from arrays that are reordered by `prepack`."""

    def prepack(self, arrays: Arrays, cols: int) -> Arrays:
        """The arrays reordered for the kernels, without loss."""
        raise NotImplementedError  # pragma: no cover - only called where `prepacks`

    def unprepack(self, arrays: Arrays, ids: NDArray[np.int64], cols: int) -> Arrays:
        """The canonical arrays of some rows (n,), from prepacked ones."""
        raise NotImplementedError  # pragma: no cover - only called where `prepacks`

    # Sparse layouts: a codec that they may use says how stored values look.

    sparse_dtype: ClassVar[Any] = None
    """dtype of a stored value in a sparse layout; None where sparse layouts cannot use the codec."""

    def encode_sparse(self, w: F32, scheme: Scheme, scale_dtype: Any = None) -> tuple[Array, Array | None]:
        """Values (rows, cols) of `sparse_dtype`, 0 being a hole, and scales (rows, groups) of integers, else None.

        A hole is what is 0 once it is rounded; -0.0 is one.
        """
        raise TypeError(f"scheme: expected values that a sparse layout can store, got {self.name}")

    def decode_sparse(self, values: Array) -> F32:
        """Stored values as float32, without their scales."""
        return values.astype(np.float32)


def check_part(parts: Mapping[str, Array], name: str, dtypes: Any, shape: tuple[int, ...]) -> None:
    """Raise FormatError unless a part has the dtype, or one of the tuple of legal ones, and the shape."""
    legal = [np.dtype(d) for d in (dtypes if isinstance(dtypes, tuple) else (dtypes,))]
    got = parts[name]
    if got.dtype not in legal or got.shape != shape:
        names = " or ".join(map(str, legal))
        raise FormatError(None, name or None, f"{names} of shape {shape}", f"{got.dtype} of shape {got.shape}")


def grid_of(grid: Arrays | None, start: int = 0, stop: int | None = None) -> tuple[Arrays, ...]:
    """What `encode` of integers takes behind the dtype of scales: the grid of rows [start, stop), if there is one."""
    return () if grid is None else ({name: array[start:stop] for name, array in grid.items()},)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, cols) of a weight of this logical shape."""
    return shape[0], math.prod(shape[1:])


CODECS: dict[str, Codec] = {}


def register(codec: Codec) -> Codec:
    """Make a codec known under its name, to the grammar and to the layouts."""
    CODECS[codec.name] = codec
    register_values(ValuesGrammar(codec.name, codec.group, codec.flags))
    return codec


def codec_of(scheme: Scheme) -> Codec:
    """The codec that a scheme names."""
    return CODECS[scheme.values]


def stored_dtype(scheme: Scheme) -> Any:
    """dtype of the data of a sparse layout: of a stored value, or of two int4 codes."""
    return np.uint8 if scheme.values == "int4" else codec_of(scheme).sparse_dtype
