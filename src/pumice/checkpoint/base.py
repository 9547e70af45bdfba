"""The one face of every file format: `Reader`, `Writer`, and the registry that picks a reader by content."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias

from numpy.typing import NDArray

from pumice.checkpoint.locations import URL, Location, locate, state_of
from pumice.checkpoint.source import Buffer
from pumice.errors import FormatError
from pumice.layouts import CompactArray, Transposed

Block: TypeAlias = NDArray[Any] | bytes | bytearray | memoryview
Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

LFS_HEAD = b"version https://git-lfs"
HEAD = 512  # bytes of a file that tell its format; a tar archive says so at 257


@dataclass(frozen=True)
class TensorInfo:
    """What the headers say about one array; what a writer must know before its first block.

    Parameters
    ----------
    shape
        The shape users see. Of a transposed array (`in_axis=0`) that is (in_features, out_features).
    dtype
        A safetensors dtype name ("F32", "BF16", "I64"); for a compact array its scheme ("int4-g128").
    nbytes
        Stored bytes, all parts together. A writer does not need it.
    parts
        Empty for a plain tensor; for a compact array, part name -> safetensors dtype name, as
        `CompactArray.parts` and `part_dtype` give them. Part ``""`` is the tensor called like the array.
    in_axis
        1, or 0 for a transposed array: its parts are those of the array with the axes exchanged.
    notes
        What a writer was told with `note` (``source``, ``error``); a writer starts with these.

    Examples
    --------
    >>> TensorInfo((384,), "F32", 1536).compact
    False
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int = 0
    parts: Mapping[str, str] = field(default_factory=dict)
    in_axis: int = 1
    notes: Mapping[str, Json] = field(default_factory=dict)

    @property
    def compact(self) -> bool:
        """Whether this is a compact array; then `dtype` is its scheme."""
        return bool(self.parts)


def info_of(array: CompactArray, notes: Mapping[str, Json] | None = None) -> TensorInfo:
    """What a writer must know of a compact array.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> dict(info_of(pm.compress(np.eye(16), "int8")).parts)
    {'packed': 'I32', 'scale': 'F32', 'shape': 'I64'}
    """
    parts = {part: array.part_dtype(part) for part in array.parts()}
    in_axis = 0 if isinstance(array, Transposed) else 1
    return TensorInfo(array.shape, array.scheme, array.nbytes, parts, in_axis, notes or {})


class Reader(ABC):
    """One open checkpoint. Opening it reads headers only; tensors are read when asked for."""

    format: ClassVar[str]

    @classmethod
    def knows(cls, head: bytes) -> bool:
        """Whether a file that begins so (`HEAD` bytes, or all of it) is of this format."""
        return False

    @classmethod
    def holds(cls, folder: Location) -> bool:
        """Whether the folder has weights of this format."""
        return False

    @abstractmethod
    def __init__(self, path: Location | Buffer, *, io: str = "mmap") -> None: ...

    @property
    @abstractmethod
    def metadata(self) -> Mapping[str, str]:
        """The free text entries of the file, as they stand there."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """`metadata` with types, of a format that has any."""
        return self.metadata

    @property
    @abstractmethod
    def files(self) -> tuple[Location, ...]:
        """The files that hold the tensors; empty for one read from memory."""

    def files_of(self, name: str) -> tuple[Location, ...]:
        """The files that hold an array."""
        return self.files

    @property
    def conventions(self) -> Mapping[str, int]:
        """How many arrays consist of several tensors, by the name of the convention that says so."""
        return {}

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of all arrays, sorted. The parts of a compact array are not listed."""

    @abstractmethod
    def info(self, name: str) -> TensorInfo:
        """Shape, dtype or scheme, and bytes, from the headers alone. KeyError for an unknown name."""

    def is_tensor(self, name: str) -> bool:
        """Whether an array is one tensor of the file, whose bytes `raw` gives, and not made of several."""
        return True

    def tensors(self, name: str) -> tuple[str, ...]:
        """The tensors of the file that an array consists of; `raw` gives the bytes of each."""
        return (name,)

    @abstractmethod
    def array(self, name: str) -> Any:
        """The whole array: an ndarray (as `rows` widens it; a read-only view where it can be) or a CompactArray."""

    @abstractmethod
    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Bytes [start, stop) of one tensor as the file has them. Also takes the tensor names of parts."""

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) along axis 0: (stop - start, ...).

        Floating point below 64 bits becomes float32, exactly; integers, bool, F64 and C64 keep their dtype.
        Compact arrays are decoded to float32. A 0-d tensor counts as one row.
        """
        info = self.info(name)
        count = info.shape[0] if info.shape else 1
        if not 0 <= start <= stop <= count:
            raise ValueError(f"start, stop: expected 0 <= start <= stop <= {count}, got {start}, {stop}")
        return self._rows(name, start, stop)

    def stored(self, name: str, start: int, stop: int) -> NDArray[Any] | None:
        """Rows [start, stop) of a plain tensor as the file has them, BF16 and F8 as patterns, of which `rows_of` makes
        `rows`; None for an array whose rows are made otherwise."""
        return None

    @abstractmethod
    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]: ...

    @abstractmethod
    def close(self) -> None:
        """Release the file. Arrays that were handed out stay valid."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Writer(ABC):
    """One checkpoint being written, array by array, in row blocks. Nothing is visible before `commit`.

    Per array: ``begin(name, info)``, then `write` as often as needed, then optionally `note`. Used as a
    context manager it aborts unless `commit` was called.
    """

    @abstractmethod
    def begin(self, name: str, info: TensorInfo) -> None:
        """Start the next array (and end the one before)."""

    @abstractmethod
    def write(self, part: str, block: Block) -> None:
        """Append to a part of the current array; plain tensors have the one part ``""``.

        `block` is an ndarray in the part's stored dtype (BF16 and F8 as uint16 and uint8 patterns) whose
        axis 0 is appended, or bytes exactly as the file shall have them (plain tensors only).
        """

    @abstractmethod
    def note(self, **fields: Json) -> None:
        """Record facts on the current array in the manifest, such as ``source="F32"`` or ``error=0.01``."""

    @abstractmethod
    def drop(self) -> None:
        """Forget the current array, as if `begin` had not been called."""

    @abstractmethod
    def commit(self) -> tuple[Path, ...]:
        """Make everything visible at once and durable; the files written, the index (if any) last."""

    @abstractmethod
    def abort(self) -> None:
        """Drop everything written. The target is as it was. Does nothing after `commit`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


_READERS: list[type[Reader]] = []


def register(reader: type[Reader]) -> type[Reader]:
    """Add a format to those that `open_reader` tries; a class decorator."""
    _READERS.append(reader)
    return reader


def open_reader(path: str | os.PathLike[str], *, io: str = "mmap") -> Reader:
    """Open a checkpoint, a file or a folder; its content, never its name, decides the format.

    Parameters
    ----------
    path
        A weights file, or a folder that holds one (or shards and their index); or a URL that fsspec knows, of which
        only the ranges of bytes are read that are asked for.
    io
        "mmap" maps the file, which then must not change while open; "read" copies what is asked for
        (network disks).

    Raises
    ------
    ValueError
        A URL, and fsspec or what it needs for this store is not installed.
    FileNotFoundError
        Nothing is there.
    FormatError
        A Git LFS pointer, an empty file, a folder without weights, or content that no reader knows.
    """
    if io not in ("mmap", "read"):
        raise ValueError(f"io: expected 'mmap' or 'read', got {io!r}")
    where = locate(path)
    if not where.exists():
        raise FileNotFoundError(f"path: expected an existing file or folder, got {str(where)!r}")
    if where.is_dir():
        if holder := next((reader for reader in _READERS if reader.holds(where)), None):
            return holder(where, io=io)
        found = ", ".join(sorted(entry.name for entry in where.iterdir())[:8]) or "nothing"
        raise FormatError(str(where), None, "a folder with weights", found, f"known formats: {_formats()}")
    if not where.is_file():
        raise FormatError(str(where), None, "a file or folder", "something else (device or pipe)", None)
    head = read_head(where)
    if knower := reader_for(head):
        return knower(where, io=io)
    refuse_non_weights(head, str(where))
    got = f"{state_of(where)[0]} bytes that start {head[:16]!r}"
    raise FormatError(str(where), None, f"a known format ({_formats()})", got, "a truncated or damaged copy?")


def reader_for(head: bytes) -> type[Reader] | None:
    """The reader that knows a file by its first bytes, if there is one."""
    return next((reader for reader in _READERS if reader.knows(head)), None)


def read_head(path: Location) -> bytes:
    """The first `HEAD` bytes of a file."""
    if isinstance(path, URL):
        return path.read(0, HEAD)
    with path.open("rb") as file:
        return file.read(HEAD)


def refuse_non_weights(head: bytes, path: str) -> None:
    """Raise FormatError for what is no weights file in any format: nothing at all, or a Git LFS pointer."""
    if not head:
        raise FormatError(path, None, "a weights file", "an empty file", "copy or download it again")
    if head.startswith(LFS_HEAD):
        raise FormatError(path, None, "a weights file", "a Git LFS pointer, not the weights", "run: git lfs pull")


def same_file(a: Location, b: Location) -> bool:
    """Whether both paths lead to one file or folder (links followed); False if either is missing."""
    try:
        if isinstance(a, URL) or isinstance(b, URL):
            return a == b
        return os.path.samefile(a, b)
    except FileNotFoundError:
        return False


def _formats() -> str:
    return ", ".join(reader.format for reader in _READERS)
