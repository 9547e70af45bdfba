"""SciPy's `save_npz`: data, indices and indptr (csr, csc, bsr), row and col or coords (coo) are one matrix, csr or bsr.

Format: scipy/sparse/_matrix_io.py of SciPy 1.17, which checks no index when it loads; here every one is, always.
Indices that are not sorted are sorted, and values in one place are added up, as SciPy does before it computes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint.archive import MAX_RATIO, SMALL
from pumice.checkpoint.base import TensorInfo
from pumice.checkpoint.container import Container
from pumice.checkpoint.conventions.base import Convention, Found, register
from pumice.checkpoint.dtypes import DTYPES
from pumice.errors import FormatError
from pumice.layouts import CompactArray, from_parts
from pumice.layouts.compressed import index_dtype

LABEL = "scipy "  # how the container says that it is one of these: metadata["format"] == "scipy csr"
TENSORS = {
    "csr": ("data", "indices", "indptr", "shape"),
    "csc": ("data", "indices", "indptr", "shape"),
    "bsr": ("data", "indices", "indptr", "shape"),
    "coo": ("data", "row", "col", "shape"),
}
COORDS = ("data", "coords", "shape")  # of coo, too: SciPy reads it and means to write it
Index = NDArray[np.integer[Any]]


@register
class SciPySparse(Convention):
    """The one matrix of an archive, called like the file."""

    name = "scipy"

    def find(self, container: Container, free: Collection[str]) -> Iterator[Found]:
        label = container.metadata.get("format", "")
        if not label.startswith(LABEL):
            return
        kind, path = label.removeprefix(LABEL), container.shards[0].name
        if kind not in TENSORS:
            hint = "save it as .tocsr()"
            raise FormatError(path, None, f"a matrix in {', '.join(TENSORS)}", kind, hint)
        tensors = COORDS if kind == "coo" and "coords" in free else TENSORS[kind]
        if set(tensors) != set(free):
            raise FormatError(path, None, f"the arrays {', '.join(tensors)} of {kind}", ", ".join(sorted(free))[:80])
        try:
            shape, block = _shape(container), _block(container, kind)
        except FormatError as error:
            raise FormatError(path, error.tensor, error.rule, error.got, error.hint) from error
        index = "U16" if index_dtype(-(-shape[1] // block[1])) is np.uint16 else "U32"
        info = TensorInfo(
            shape,
            "csr" if block == (1, 1) else f"bsr-{block[0]}x{block[1]}",
            sum(container.entry(tensor).nbytes for tensor in tensors),
            parts={"indptr": "I64", "indices": index, "data": "F32", "shape": "I64"},
            notes={"source": container.entry("data").dtype},
        )
        name = container.files[0].stem if container.files else "array"
        yield Found(name, info, tensors, partial(_read, container, tensors, info, block))


def _shape(container: Container) -> tuple[int, int]:
    entry = container.entry("shape")
    if entry.dtype not in ("I32", "I64") or entry.shape != (2,):
        raise FormatError(None, "shape", "two integers", f"{entry.dtype} {entry.shape}")
    rows, cols = container.read("shape").tolist()
    stored = sum(one.nbytes for one in container.entries.values())
    # A row costs 8 bytes here, and in SciPy's csc and coo nothing.
    if rows < 0 or cols < 0 or cols > 1 << 32 or 8 * rows > max(MAX_RATIO * stored, SMALL):
        rule = f"a shape of rows and columns that {stored} bytes can be about"
        raise FormatError(None, "shape", rule, f"{(rows, cols)}")
    return rows, cols


def _block(container: Container, kind: str) -> tuple[int, int]:
    """Rows and columns of a block, from the shape of the values alone."""
    entry = container.entry("data")
    if DTYPES[entry.dtype].numpy is None or entry.dtype == "C64":
        raise FormatError(None, "data", "real numbers", entry.dtype)
    axes = 3 if kind == "bsr" else 1
    if len(entry.shape) != axes or 0 in entry.shape[1:]:
        raise FormatError(None, "data", f"{axes} axes", f"shape {entry.shape}")
    height, width = entry.shape[1:] or (1, 1)
    return height, width


def _read(container: Container, tensors: tuple[str, ...], info: TensorInfo, block: tuple[int, int]) -> CompactArray:
    kind, (rows, cols) = container.metadata["format"].removeprefix(LABEL), info.shape
    if rows % block[0] or cols % block[1]:
        raise FormatError(None, None, f"whole blocks of {block}", f"shape {info.shape}")
    parts = {name: container.read(name) for name in tensors}
    if "coords" in parts:
        if parts["coords"].shape[:1] != (2,):
            raise FormatError(None, "coords", "rows and columns", f"shape {parts['coords'].shape}")
        parts["row"], parts["col"] = parts["coords"]
    limits = rows // block[0], cols // block[1]
    values = parts["data"]
    if kind == "coo":
        major, minor = (
            _indices(parts[n], n, len(values), limit) for n, limit in zip(("row", "col"), limits, strict=True)
        )
    else:
        outer, inner = limits[::-1] if kind == "csc" else limits
        minor = _indices(parts["indices"], "indices", len(values), inner)
        counts = np.diff(
            _indptr(parts["indptr"], outer, len(minor))
        )  # of the file, so not as long as the shape may say
        major = np.repeat(np.arange(len(counts)), counts)
        if kind == "csc":
            major, minor = minor, major
    major, minor, values = _canonical(major, minor, values)
    values = values.astype(np.float32, copy=False)
    if kind != "bsr":  # as `CSRArray.from_scipy`
        kept = values != 0
        major, minor, values = major[kept], minor[kept], values[kept]
    elif block == (1, 1):
        values = values.reshape(-1)
    indptr = np.zeros(limits[0] + 1, np.int64)
    np.cumsum(np.bincount(major, minlength=limits[0]), out=indptr[1:])
    found: Mapping[str, NDArray[Any]] = {
        "indptr": indptr,
        "indices": minor.astype(index_dtype(limits[1])),
        "data": np.ascontiguousarray(values),
        "shape": np.array(info.shape, np.int64),
    }
    return from_parts(info.dtype, info.shape, found)


def _indices(indices: Index, name: str, count: int, limit: int) -> Index:
    if indices.dtype.kind not in "iu" or indices.shape != (count,):
        raise FormatError(
            None, name, f"{name} of {count} integers, one for each value", f"{indices.dtype} {indices.shape}"
        )
    bad = np.flatnonzero((indices < 0) | (indices >= limit))
    if bad.size:
        raise FormatError(None, name, f"{name} in [0, {limit})", f"{indices[bad[0]]} at {bad[0]}")
    return indices.astype(np.int64)


def _indptr(indptr: Index, outer: int, count: int) -> Index:
    if indptr.dtype.kind not in "iu" or indptr.shape != (outer + 1,):
        raise FormatError(None, "indptr", f"{outer + 1} integers", f"{indptr.dtype} {indptr.shape}")
    indptr = indptr.astype(np.int64)
    falls = np.flatnonzero(np.diff(indptr) < 0)
    if falls.size or indptr[0] != 0 or indptr[-1] != count:
        got = f"a fall behind {falls[0]}" if falls.size else f"{indptr[0]} to {indptr[-1]}"
        raise FormatError(None, "indptr", f"a rise from 0 to {count}", got)
    return indptr


def _canonical(major: Index, minor: Index, values: NDArray[Any]) -> tuple[Index, Index, NDArray[Any]]:
    """Sorted by row, then column, each place once."""
    later = (np.diff(major) > 0) | ((np.diff(major) == 0) & (np.diff(minor) > 0))
    if later.all():
        return major, minor, values
    order = np.lexsort((minor, major))
    major, minor, values = major[order], minor[order], values[order]
    first = np.ones(len(major), bool)
    first[1:] = (np.diff(major) != 0) | (np.diff(minor) != 0)
    sums = np.zeros((int(first.sum()), *values.shape[1:]), values.dtype)
    np.add.at(sums, np.cumsum(first) - 1, values)
    return major[first], minor[first], sums
