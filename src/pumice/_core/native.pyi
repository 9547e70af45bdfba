"""What the C++ core offers Python. Every function checks shapes and dtypes, releases the GIL, and raises ValueError."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]
Scales: TypeAlias = NDArray[np.float16] | NDArray[np.float32]
U8: TypeAlias = NDArray[np.uint8]

def isas() -> tuple[str, ...]:
    """ISAs that this build has and this machine can run, best first."""

def get_isa() -> str: ...
def set_isa(name: str) -> None:
    """Choose the ISA of every later call; ValueError names the legal ones. PUMICE_ISA does the same at import."""

def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def build_info() -> dict[str, str]:
    """Compiler, version and flags of the core."""

def first_nonfinite(values: F32) -> int:
    """Flat index of the first NaN or infinity of a C-contiguous array, -1 without one."""

def group_range(w: NDArray[Any], group: int, values: str = "float32") -> tuple[F32, F32]:
    """Minimum and maximum of each group of each row, both NaN where not all is finite: two (rows, groups) arrays.

    `w` is float32, or with other `values` float16 or, of bfloat16, uint16 patterns.
    """

def row_energies(exact: F32, decoded: F32) -> tuple[F64, F64]:
    """Of each row the sum of squares of exact - decoded, and that of exact, in float64: two (rows,) arrays."""

def encode_int(w: F32, scales: F32, zeros: U8 | None, bits: int, group: int, minima: F32 | None = None) -> U8:
    """Packed codes (rows, row_bytes): clip(zero + rint(w / scale), 0, 2^bits - 1); code = zero where scale is 0.

    With `minima` clip(rint((w - minimum) / scale), 0, 2^bits - 1), and 0 where scale is 0; they exclude `zeros`.
    """

def encode_int_rows(
    w: NDArray[Any],
    values: str,
    scales: F32,
    zeros: U8 | None,
    bits: int,
    group: int,
    minima: F32 | None = None,
) -> tuple[U8, F64, F64]:
    """`encode_int` of a matrix as `group_range` takes it, and what `row_energies` says of it and the decoded codes."""

def decode_int(
    packed: U8,
    scales: F32,
    zeros: U8 | None,
    bits: int,
    group: int,
    cols: int,
    xor: int = 0,
    minima: F32 | None = None,
) -> F32:
    """(rows, cols) float32: scale * (code - zero), or scale * code + minimum. `xor` is 0x80 for signed int8 codes."""

def sha256_pieces(data: bytes | bytearray | memoryview, length: int) -> bytes | None:
    """The SHA-256s of all whole pieces of `length` bytes, a multiple of 64, one behind the other; None where the ISA or
    the processor has no instructions for it."""

def pack_codes(codes: U8, bits: int) -> U8:
    """(rows, cols) unpacked codes -> (rows, row_bytes); ValueError if a code does not fit."""

def unpack_codes(packed: U8, bits: int, cols: int) -> U8:
    """(rows, row_bytes) -> (rows, cols) unpacked codes."""

def prepack_dense(packed: U8, bits: int, cols: int) -> U8:
    """(rows, row_bytes) -> (panels, words, 16, 4); rows beyond the last are zero."""

def unprepack_dense(prepacked: U8, ids: NDArray[np.int64], bits: int, cols: int) -> U8:
    """Rows `ids` of prepacked panels, as packed rows."""

class Weights:
    """Weights as kernels see them: checked when made, so that a product looks at x and y only."""

    def matmul(self, x: F32, y: F32, bias: F32 | None, activations: str) -> None:
        """y (batch, rows) = x (batch, cols) @ w.T + bias, written in place; all C-contiguous.

        `activations` is "int16", "int8" or "float32", and matters for integer weights only. ValueError names what does
        not fit.
        """

class DenseInt(Weights):
    """Integer codes. 2-D `codes` are the canonical form, with scales, zeros and minima (rows, groups); 4-D ones the
    prepacked form, with (panels, groups, 16). `minima` have the dtype of `scales` and exclude `zeros`."""

    def __init__(
        self,
        codes: U8,
        scales: Scales,
        zeros: U8 | None,
        minima: Scales | None,
        rows: int,
        cols: int,
        bits: int,
        group: int,
        xor: int = 0,
    ) -> None: ...

class DenseHalf(Weights):
    """float16 or bfloat16 weights, as their 16-bit patterns (rows, cols)."""

    def __init__(self, bits: NDArray[np.uint16], bfloat16: bool) -> None: ...

class DenseFloat8(Weights):
    """E4M3 codes (rows, cols), with scales (rows, groups); `group` columns share one."""

    def __init__(self, codes: U8, scales: F32, group: int) -> None: ...

class BlockSparse(Weights):
    """`data` is (blocks, R, C) of float32, float16, bfloat16 (patterns) or int8, or (blocks, R * C / 2) bytes of int4.
    Integers have `scales` (rows,).

    Structure must have been validated with `check_bsr`.
    """

    def __init__(
        self,
        indptr: NDArray[np.int64],
        indices: NDArray[np.uint16] | NDArray[np.uint32],
        data: NDArray[Any],
        scales: F32 | None,
        rows: int,
        cols: int,
        blocksize: tuple[int, int],
        values: str,
    ) -> None: ...
    def decode(self, start: int, stop: int) -> F32:
        """Rows [start, stop) in float32."""

    def take(self, ids: NDArray[np.int64]) -> F32:
        """Some rows in float32."""

def count_bsr(matrix: NDArray[Any], blocksize: tuple[int, int], values: str) -> NDArray[np.int64]:
    """indptr of the blocks of a matrix, as `encode_bsr` takes it, that are not all 0."""

def encode_bsr(
    matrix: NDArray[Any], blocksize: tuple[int, int], values: str
) -> tuple[NDArray[np.int64], NDArray[np.uint16] | NDArray[np.uint32], NDArray[Any]]:
    """indptr, indices and flat data of the blocks of a matrix that are not all 0.

    The matrix holds what is stored: float32, float16, patterns of bfloat16, or signed codes of int8 or int4."""

def fill_bsr_codes(
    w: F32,
    scales: F32,
    values: str,
    blocksize: tuple[int, int],
    indptr: NDArray[np.int64],
    indices: NDArray[np.uint16] | NDArray[np.uint32],
    data: NDArray[Any],
) -> NDArray[np.int64]:
    """Round w with `scales` (rows, 1) to int8 or int4 and write the block columns and codes of the blocks that are not
    all 0 then, block row behind block row; how many each has. indptr gives each room for those not 0 before."""

def check_bsr(
    indptr: NDArray[np.int64], indices: NDArray[np.uint16] | NDArray[np.uint32], block_cols: int
) -> tuple[str, int]:
    """("", -1) if indptr rises from 0 to len(indices) and each row's indices are sorted, unique and < block_cols;
    else the broken rule and the first bad row."""

def encode_halves(values: F32, bfloat16: bool) -> tuple[NDArray[np.uint16], int]:
    """Patterns of float16 or bfloat16, rounded half to even, of a C-contiguous array.

    And the flat index of the first finite value that rounds to infinity, -1 without one.
    """

def decode_halves(bits: NDArray[np.uint16], bfloat16: bool) -> F32:
    """The float32 values of patterns, a C-contiguous array."""

def find_places(values: NDArray[Any], name: str, kept: int = 0, of: int = 1) -> tuple[U8, NDArray[np.int64]]:
    """Bitmask (rows, ceil(cols / 8)) of what is not 0, and counts (rows,).

    With `kept` exactly so many `of` every columns, the first zeros where there are fewer; instead of a count
    -1 - column of the first that has more.
    """

def count_places(bitmask: U8, cols: int, kept: int = 0, of: int = 1) -> NDArray[np.int64]:
    """Bits of each row; -1 where there are some beyond `cols`, or not `kept` of every `of` columns."""

def row_offsets(counts: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    """Where each row begins in data, and the end: (rows + 1,)."""

class Bitmask:
    """Weights at the places of a bitmask, row by row; `scales` (rows, groups) of integers, else None."""

    def __init__(
        self,
        bitmask: U8,
        offsets: NDArray[np.int64],
        data: NDArray[Any],
        scales: Scales | None,
        rows: int,
        cols: int,
        name: str,
        group: int = 0,
    ) -> None: ...
    def matmul(self, x: F32, y: F32, bias: F32 | None, activations: str) -> None: ...
    def gather(self, values: NDArray[Any], out: NDArray[Any]) -> None:
        """Fill `out`, the data of these weights, with the values at their places."""

    def scatter(self, start: int, stop: int, stride: int) -> NDArray[Any]:
        """Rows [start, stop) with holes, (rows, stride): floats as stored, or unsigned codes, a byte each."""

    def prepack(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], U8]:
        """Masks (panels, steps), offsets (panels,) and data of the codes, panel by panel."""

class MaskedInt:
    """Integer weights as `Bitmask.prepack` gives them; `scales` (panels, groups, 16)."""

    def __init__(
        self,
        masks: NDArray[np.uint64],
        offsets: NDArray[np.int64],
        data: U8,
        scales: Scales,
        rows: int,
        cols: int,
        name: str,
        group: int,
    ) -> None: ...
    def matmul(self, x: F32, y: F32, bias: F32 | None, activations: str) -> None: ...
    def unprepack(self, start: int, stop: int) -> tuple[U8, NDArray[np.int64], U8]:
        """Bitmask, offsets and data, row by row, of the rows of panels [start, stop)."""

class CompressedRows(Weights):
    """Compressed sparse rows. `values` is float32, float16, bfloat16 (uint16 patterns), int8 or int4; integers have
    `scales` (rows,). int4 codes are packed, two a byte of uint8 `data`; row i starts at byte starts[i] (rows + 1,).
    `runs` uint8 (rows, ceil(cols / 128)) are what `count_runs` gives: stored values in each block of columns.

    Structure must have been validated with `check_bsr`.
    """

    def __init__(
        self,
        indptr: NDArray[np.int64],
        indices: NDArray[np.uint16] | NDArray[np.uint32],
        data: NDArray[Any],
        starts: NDArray[np.int64] | None,
        scales: F32 | None,
        runs: U8 | None,
        rows: int,
        cols: int,
        values: str,
    ) -> None: ...
    def count_runs(self) -> U8: ...
    def decode_rows(self, start: int, stop: int) -> F32: ...
    def take(self, ids: NDArray[np.int64]) -> F32: ...

def count_csr(matrix: NDArray[Any], values: str) -> NDArray[np.int64]:
    """What is not 0 in each row of a C-contiguous matrix of stored values; int4 is as int8 there."""

def fill_csr_codes(
    w: F32,
    scales: F32,
    values: str,
    indptr: NDArray[np.int64],
    starts: NDArray[np.int64] | None,
    indices: NDArray[np.uint16] | NDArray[np.uint32],
    data: NDArray[Any],
) -> NDArray[np.int64]:
    """Round w with `scales` (rows, 1) to int8 or int4 and write the columns and codes of what is not 0 then, row behind
    row; how many each row has. indptr, and starts of int4, give each row room for all that is not 0 before."""

def fill_bitmask_codes(
    w: F32, scales: F32, values: str, group: int, offsets: NDArray[np.int64], data: NDArray[Any]
) -> tuple[U8, NDArray[np.int64]]:
    """The same with `scales` (rows, groups): the bitmask, and how many codes each row has in `data`."""

def fill_csr(
    matrix: NDArray[Any],
    values: str,
    indptr: NDArray[np.int64],
    starts: NDArray[np.int64] | None,
    indices: NDArray[np.uint16] | NDArray[np.uint32],
    data: NDArray[Any],
) -> None:
    """Write the columns and values of what is not 0 to `indices` and `data`, where indptr, and starts of int4, say."""

def add_product(out: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> None:
    """``out += a @ b``, bits that depend neither on threads nor on a BLAS.

    Matrices of any strides, `out` with rows without gaps, beside `a` and `b` in memory: float32, float32 into float64,
    or float64. Every element is a sum in the order of its terms, 512 at a time.
    """

def fix(
    w: F32,
    drift: F32,
    errors: F32,
    first: int,
    start: int,
    stop: int,
    factor: F32,
    variance: F32,
    loss: NDArray[np.float64],
    keep: U8 | None = None,
    grid: tuple[F32, U8 | None, F32 | None, int] | None = None,
    group_of: NDArray[np.int32] | None = None,
) -> None:
    """Fix columns first + start to first + stop of w + drift, and let the rest of the block make up for it, in place.

    A block is the columns first to first + len(factor), at most 128. `factor` is unit upper triangular, `keep`
    (rows, stop - start) is 0 where a weight becomes 0, `grid` has scales, zeros, minima (rows, groups) and bits, and
    `group_of` the group of each column of the block. Without a grid what stays takes the value w + drift. `drift`
    becomes the fixed value, `errors` (rows, len(factor)) gets w - fixed; loss[row] grows by
    variance * (w + drift - fixed)^2.
    """

def grid_errors(
    w: F32, scales: F32, zeros: U8 | None, bits: int, group: int, minima: F32 | None = None, weight: F32 | None = None
) -> F32:
    """(rows, groups): the sum of weight[col] * (w - the nearest number of the grid)^2 over the columns of a group."""
