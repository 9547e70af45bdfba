"""`save` and `load`: arrays to a file and back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from pumice.checkpoint.base import HEAD, Reader, TensorInfo, info_of, open_reader, reader_for
from pumice.checkpoint.dtypes import dtype_name
from pumice.checkpoint.locations import Location, locate
from pumice.checkpoint.safetensors import SafetensorsReader
from pumice.checkpoint.verification import VerifyReport, verify_reader
from pumice.checkpoint.writer import MAX_SHARD_SIZE, SafetensorsWriter
from pumice.errors import near
from pumice.layouts import CompactArray
from pumice.options import PREPACK, check_choice

MEMORY = "<memory>"  # where the bytes of a file are said to be


def save(
    target: str | os.PathLike[str] | IO[bytes],
    arrays: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> tuple[Path, ...]:
    """Write arrays as safetensors: atomic, deterministic, with checksums.

    Parameters
    ----------
    target : path or binary file
        A path that ends in ``.safetensors``: one file. Any other path: a folder with ``model.safetensors``, or shards
        and their index. What is there already stays until the new files are whole.
    arrays : mapping of str to CompactArray or array_like
        Plain arrays of any dtype that safetensors has, any shape, order and byte order.
    metadata : mapping of str to str, optional
        Own text entries of the header.
    max_shard_size : int
        Bytes of tensors in a file of a folder.

    Returns
    -------
    tuple of Path
        The files written; empty for a file object.

    Raises
    ------
    TypeError
        A member that is no array, or of a dtype that safetensors lacks; names it.

    Examples
    --------
    >>> import io
    >>> import numpy as np, pumice as pm
    >>> file = io.BytesIO()
    >>> pm.save(file, {"fc.weight": pm.compress(np.eye(32), "int8"), "fc.bias": np.zeros(32)})
    ()
    >>> sorted(pm.load(file.getvalue()))
    ['fc.bias', 'fc.weight']
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays: expected a mapping of names to arrays, got {type(arrays).__name__}")
    plain = {name: _plain(name, value) for name, value in arrays.items() if not isinstance(value, CompactArray)}
    with SafetensorsWriter(target, metadata=metadata, max_shard_size=max_shard_size) as writer:
        for name, value in arrays.items():
            if name in plain:
                array = plain[name]
                writer.begin(name, TensorInfo(array.shape, dtype_name(array.dtype), array.nbytes))
                writer.write("", array)
                continue
            writer.begin(name, info_of(value))
            for part, block in value.parts().items():
                writer.write(part, block)
        return writer.commit()


def _plain(name: object, value: Any) -> np.ndarray[Any, Any]:
    if not isinstance(name, str):
        raise TypeError(f"arrays: expected names that are str, got {name!r}")
    if value is None or isinstance(value, str | bytes | Mapping):
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}")
    array = np.asarray(value)
    try:
        dtype_name(array.dtype)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def load(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes],
    *,
    io: str = "mmap",
    prepack: str = "lazy",
) -> Checkpoint:
    """Open a checkpoint: a lazy mapping of names to arrays. Loading never runs code.

    Parameters
    ----------
    source : path, bytes or binary file
        A weights file, a folder that holds one or shards and their index, or the bytes of a file. Or a URL that fsspec
        knows (``pip install pumice[fsspec]``), such as ``s3://bucket/model``: only what is asked for is read.
    io : {"mmap", "read"}
        "mmap" maps files, which then must not change; "read" reads what is asked for (network disks).
    prepack : {"lazy", "eager", "never"}
        Whether weights are reordered for the kernels: by the first product, when they are accessed, or never, so that
        processes share the file's pages.

    Returns
    -------
    Checkpoint

    Raises
    ------
    FormatError
        The file breaks a rule of its format; names path, tensor, rule and what was there.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pumice as pm
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "m.safetensors"
    >>> _ = pm.save(path, {"fc.weight": pm.compress(np.eye(64), "int4-g32")})
    >>> m = pm.load(path)
    >>> m["fc.weight"]
    <DenseArray int4-g32 (64, 64) 2320 bytes, 4.53 bits per weight>
    """
    check_choice("prepack", prepack, PREPACK)
    check_choice("io", io, ("mmap", "read"))
    if isinstance(source, str | os.PathLike):
        return Checkpoint(open_reader(source, io=io), str(source), prepack)
    if not isinstance(source, bytes | bytearray | memoryview):
        if not hasattr(source, "read"):
            raise TypeError(f"source: expected a path, bytes or a binary file, got {type(source).__name__}")
        source = source.read()
        if not isinstance(source, bytes):
            raise TypeError(f"source: expected a binary file, got one that reads {type(source).__name__}")
    blob = bytes(source) if isinstance(source, bytearray) else source
    # Of bytes that nobody knows, safetensors says best what is wrong.
    reader = reader_for(bytes(memoryview(blob)[:HEAD])) or SafetensorsReader
    return Checkpoint(reader(blob), MEMORY, prepack)


class Checkpoint(Mapping[str, Any]):
    """An open checkpoint: name -> ndarray or CompactArray, each read when it is first asked for.

    Plain tensors are read-only ndarrays; BF16 and F8, which NumPy lacks, are widened exactly to float32. A compact
    array is validated on first access and kept, so that it is prepacked once.
    """

    def __init__(self, reader: Reader, path: str, prepack: str) -> None:
        self._reader, self._path, self._prepack = reader, path, prepack
        self._names = dict.fromkeys(reader.names())
        self._compact: dict[str, CompactArray] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(f"name: expected one of the checkpoint's, got {name!r}{near(name, self._names)}")
        if name in self._compact:
            return self._compact[name]
        value = self._reader.array(name)
        if not isinstance(value, CompactArray):
            value.setflags(write=False)
            return value
        if self._prepack == "never":
            value = value.keep_canonical()
        elif self._prepack == "eager":
            value = value.prepack()
        return self._compact.setdefault(name, value)  # of threads that race, all get the first one's

    def get(self, name: str, default: Any = None) -> Any:
        """The array, or `default`; looks for no near names, as ``checkpoint[name]`` does."""
        if name not in self:
            return default
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @property
    def path(self) -> Location | None:
        """The file or folder; None of bytes."""
        return None if self._path == MEMORY else locate(self._path)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The text entries of the file."""
        return self._reader.metadata

    @property
    def fields(self) -> Mapping[str, Any]:
        """The entries with their types, of a format that has any: in GGUF int, float, bool, str, arrays."""
        return self._reader.fields

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype or scheme, and bytes, from the headers alone."""
        return self._reader.info(name)

    def raw(self, name: str) -> memoryview:
        """The bytes of a tensor as the file has them; also takes the tensor names of parts."""
        return self._reader.raw(name)

    def verify(self) -> VerifyReport:
        """Check every checksum and the structure of every array."""
        return verify_reader(self._reader, self._path)

    def close(self) -> None:
        """Let go of the file. Arrays that were handed out stay valid."""
        self._compact.clear()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Checkpoint {self._path!r}: {len(self)} arrays>"
