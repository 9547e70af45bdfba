"""Writing safetensors as a stream: aligned, deterministic, atomic, in bounded memory.

How many bytes a sparse part has is known only when its array ends, and the header goes first. So blocks are
appended to a spool, an unnamed file beside the target; once a shard is full its parts are copied, in their final
order, behind a finished header. Nothing is visible before `commit` publishes the files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from pumice.checkpoint.base import Block, Json, TensorInfo, Writer
from pumice.checkpoint.conventions.manifest import RESERVED, array_record, manifest_metadata, sign, tensor_name
from pumice.checkpoint.dtypes import DTYPES
from pumice.checkpoint.header import ALIGNMENT, Span, count_bits, write_header
from pumice.checkpoint.locations import local
from pumice.checkpoint.publication import INDEX, SINGLE, Publication, Staged, refuse_existing, shard_names, write_all
from pumice.checkpoint.source import is_mapped
from pumice.scheme import Scheme

MAX_SHARD_SIZE = 5_000_000_000  # bytes, Hugging Face's default
COPY_AT_ONCE = 4 << 20
NO_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


@dataclass
class _Tensor:
    """A tensor being written: where its bytes are in the spools, and what the header will say."""

    name: str
    dtype: str
    extents: list[tuple[Path | None, int, int]] = field(
        default_factory=list
    )  # a file (None: the spool), offset, length
    nbytes: int = 0
    rows: int = 0
    row_shape: tuple[int, ...] | None = None
    digest: Any = field(default_factory=hashlib.sha256)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *(self.row_shape or ()))

    def append(self, spool: IO[bytes], data: memoryview, place: tuple[Path, int] | None = None) -> None:
        if place is None:
            file, offset = None, spool.tell()
            spool.write(data)
        else:
            file, offset = place
        self.digest.update(data)
        self.nbytes += len(data)
        if self.extents and self.extents[-1][0] == file and sum(self.extents[-1][1:]) == offset:
            self.extents[-1] = (file, self.extents[-1][1], self.extents[-1][2] + len(data))
        else:
            self.extents.append((file, offset, len(data)))


@dataclass
class _Array:
    name: str
    info: TensorInfo
    tensors: dict[str, _Tensor]  # by part
    spool: IO[bytes]
    notes: dict[str, Json]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class SafetensorsWriter(Writer):
    """Writes a safetensors file, or a folder of shards with their index.

    Parameters
    ----------
    target
        A path that ends in ``.safetensors`` and is no folder: one file. Any other path: a folder, made if
        missing, with ``model.safetensors`` or Hugging Face shards. Or a binary file object.
    metadata
        Own text entries for each header; names that start with "pumice." and "format" are taken.
    max_shard_size
        Bytes of tensors in a file of a folder; only an array that is larger alone exceeds it.
    overwrite
        Whether weights that are at the target may be replaced.
    manifest
        Whether headers say what the tensors are, and their checksums. Without, only plain tensors can be written.

    Raises
    ------
    FileExistsError
        Without `overwrite`: the target is a file, or a folder that is not empty.
    ValueError
        A file object of a file that is mapped, such as one that `load` has open.

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> with SafetensorsWriter(file) as writer:
    ...     writer.begin("bias", TensorInfo((4,), "F32"))
    ...     writer.write("", np.zeros(2, np.float32))
    ...     writer.write("", np.ones(2, np.float32))
    ...     _ = writer.commit()
    >>> len(file.getvalue()) % 64
    16
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | IO[bytes],
        *,
        metadata: Mapping[str, str] | None = None,
        max_shard_size: int = MAX_SHARD_SIZE,
        overwrite: bool = True,
        manifest: bool = True,
    ) -> None:
        if max_shard_size <= 0:
            raise ValueError(f"max_shard_size: expected a positive number, got {max_shard_size}")
        self._metadata = _own_metadata(metadata or {})
        self._max = max_shard_size
        self._file: IO[bytes] | None = None
        self._path: Path | None = None  # of the only file
        self._overwrite, self._manifest = overwrite, manifest
        self._publication: Publication | None = None
        if isinstance(target, (str, os.PathLike)):
            path = local(target)
            single = path.suffix == ".safetensors" and not path.is_dir()
            self._path = path if single else None
            self._folder = path.parent if single else path
            self._refuse_existing()
            self._publication = Publication(self._folder)
        else:
            _refuse_mapped(target)
            self._file, self._folder = target, Path(tempfile.gettempdir())
        self._current: _Array | None = None
        self._shard: list[_Array] = []
        self._taken: set[str] = {"__metadata__"}
        self._finished: list[tuple[Staged, list[_Array]]] = []  # assembled under a temporary name
        self._beside: list[Staged] = []
        self._done = False
        try:
            self._spool = self._new_spool()
        except BaseException:
            if self._publication is not None:
                self._publication.discard()
            raise

    def begin(self, name: str, info: TensorInfo) -> None:
        self._end()
        _check_text("name", name)
        if info.compact and not self._manifest:
            raise ValueError(f"info: expected a plain tensor, since there is no manifest, got {info.dtype}")
        if info.compact:
            Scheme.parse(info.dtype)
        parts = info.parts or {"": info.dtype}
        for part, dtype in parts.items():
            if dtype not in DTYPES:
                rule = f"info: expected for part {part!r} a dtype of {', '.join(DTYPES)}"
                raise ValueError(f"{rule}, got {dtype!r}")
        tensors = {part: _Tensor(tensor_name(name, part), dtype) for part, dtype in parts.items()}
        names = {name, *(tensor.name for tensor in tensors.values())}
        if clash := names & self._taken:
            raise ValueError(
                f"name: expected names that no other tensor or part has, got {name!r}, "
                f"which also needs {sorted(clash)[0]!r}"
            )
        self._taken |= names
        self._current = _Array(name, info, tensors, self._spool, {})
        self.note(**info.notes)

    def write(self, part: str, block: Block, place: tuple[Path, int] | None = None) -> None:
        """As `Writer.write`. `place` is a file, and the offset in it, where the block is already: it is read from there
        once the shard is written, and must stay until then."""
        array = self._open_array()
        if part not in array.tensors:
            raise ValueError(f"part: expected one of {sorted(array.tensors)}, got {part!r}")
        tensor = array.tensors[part]
        if not isinstance(block, np.ndarray):
            if array.info.compact:
                raise TypeError(f"block: expected an ndarray for {tensor.name!r}, got {type(block).__name__}")
            tensor.append(array.spool, memoryview(block).cast("B"))
            return
        dtype = DTYPES[tensor.dtype].numpy
        if block.dtype != dtype:
            raise TypeError(f"block: expected {dtype} for {tensor.name!r}, got {block.dtype}")
        if array.info.compact:
            if block.ndim == 0 or tensor.row_shape not in (None, block.shape[1:]):
                rule = f"blocks of rows {tensor.row_shape} for {tensor.name!r}"
                raise ValueError(f"block: expected {rule}, got shape {block.shape}")
            tensor.row_shape = block.shape[1:]
            tensor.rows += block.shape[0]
        data = np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8)
        tensor.append(array.spool, data.data, place)

    def note(self, **fields: Json) -> None:
        array = self._open_array()
        if reserved := fields.keys() & RESERVED:
            raise ValueError(f"note: expected none of {sorted(RESERVED)}, got {sorted(reserved)}")
        json.dumps(fields, allow_nan=False)  # raises here, not at commit
        array.notes.update(fields)

    def drop(self) -> None:
        array = self._open_array()
        self._taken -= {array.name, *(tensor.name for tensor in array.tensors.values())}
        self._current = None  # what the spool has of it is never copied

    def attach(self, name: str, fill: Callable[[IO[bytes]], object]) -> None:
        """Have `fill` write another file of the target's folder, which appears with the weights."""
        if self._publication is None:
            raise ValueError("attach: expected a target that is a path, got a file object")
        self._beside.append(self._publication.stage(name, fill))

    def commit(self) -> tuple[Path, ...]:
        if self._done:
            raise ValueError("commit: expected a writer that is open, got one that has ended")
        self._end()
        if self._publication is None:
            assert self._file is not None
            self._assemble(self._file)
            paths: tuple[Path, ...] = ()
        else:
            if self._shard or not self._finished:
                self._close_shard(keep=None)
            with self._publication.exclusive():
                self._refuse_existing()
                weights = self._named()
                self._publication.publish(weights, self._beside, whole=self._path is None)
                self._publication.finish()
            paths = tuple(self._folder / name for _, name in weights)
        self._done = True
        self._close_spools()
        return paths

    def abort(self) -> None:
        self._close_spools()
        if not self._done and self._publication is not None:
            self._publication.discard()
        self._done = True

    def _refuse_existing(self) -> None:
        refuse_existing(self._path or self._folder, self._path is not None, self._overwrite)

    def _open_array(self) -> _Array:
        if self._current is None:
            raise ValueError("write: expected begin() first, got no current array")
        return self._current

    def _end(self) -> None:
        """Check that the current array is whole, and give it a place in a shard."""
        if self._done:
            raise ValueError("begin: expected a writer that is open, got one that has ended")
        array, self._current = self._current, None
        if array is None:
            return
        if not array.info.compact:
            _check_complete(array.tensors[""], array.info)
        elif missing := [t.name for t in array.tensors.values() if t.row_shape is None]:
            raise ValueError(f"write: expected blocks for {', '.join(missing)}, got none")
        if self._sharded and self._shard and self._shard_bytes + array.nbytes > self._max:
            self._close_shard(keep=array.spool)
        self._shard.append(array)

    @property
    def _sharded(self) -> bool:
        return self._path is None and self._file is None

    @property
    def _shard_bytes(self) -> int:
        return sum(array.nbytes for array in self._shard)

    def _close_shard(self, keep: IO[bytes] | None) -> None:
        """Assemble the shard under a temporary name and free its spools, but for the one to `keep`."""
        assert self._publication is not None
        staged = self._publication.stage(self._path.name if self._path else SINGLE, self._assemble)
        for array in self._shard:
            if array.spool is not keep:
                array.spool.close()
        self._finished.append((staged, self._shard))
        self._shard = []
        if keep is self._spool:
            self._spool = self._new_spool()

    def _close_spools(self) -> None:
        for spool in (self._spool, *(array.spool for array in self._shard)):
            spool.close()

    def _assemble(self, out: IO[bytes]) -> None:
        """Header, then the tensors in their final order."""
        tensors = sorted((t for a in self._shard for t in a.tensors.values()), key=lambda t: t.name)
        # Stable sort. Sizes that are multiples of 64 first keep each other aligned to 64 bytes, then
        # wider items before narrower ones keep each aligned to itself; gaps are illegal.
        tensors.sort(key=lambda t: (t.nbytes % ALIGNMENT != 0, -DTYPES[t.dtype].bits))
        shapes = {t.name: t.shape for a in self._shard if a.info.compact for t in a.tensors.values()}
        shapes |= {a.name: a.info.shape for a in self._shard if not a.info.compact}
        entries, position = {}, 0
        for tensor in tensors:
            entries[tensor.name] = Span(tensor.dtype, shapes[tensor.name], tensor.nbytes, position)
            position += tensor.nbytes
        if self._manifest:
            header = sign(write_header(entries, _shard_metadata(self._shard) | self._metadata))
        else:
            header = write_header(entries, {"format": "pt"} | self._metadata)
        write_all(out, header)
        spools = {t.name: array.spool for array in self._shard for t in array.tensors.values()}
        for tensor in tensors:
            for file, offset, length in tensor.extents:
                if file is None:
                    _copy(spools[tensor.name], offset, length, out)
                    continue
                with file.open("rb", buffering=0) as source:
                    _copy(source, offset, length, out)

    def _named(self) -> list[Staged]:
        """The finished files with the names that they are to get; the index last."""
        assert self._publication is not None
        if len(self._finished) == 1:
            return [self._finished[0][0]]
        names = shard_names(self._folder, len(self._finished))
        shards = ({t.name: t.nbytes for a in arrays for t in a.tensors.values()} for _, arrays in self._finished)
        text = shard_index(zip(names, shards, strict=True))
        index = self._publication.stage(INDEX, lambda out: write_all(out, text))
        return [(path, name) for ((path, _), _), name in zip(self._finished, names, strict=True)] + [index]

    def _new_spool(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._folder)  # unnamed: it cannot be left behind


def shard_index(shards: Iterable[tuple[str, Mapping[str, int]]]) -> bytes:
    """The index of some shards: of each its name, and the bytes of its tensors."""
    weight_map: dict[str, str] = {}
    total = 0
    for name, tensors in shards:
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensors.values())
    table = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(table, indent=2, ensure_ascii=False).encode() + b"\n"


def _shard_metadata(arrays: list[_Array]) -> dict[str, str]:
    records: dict[str, Json] = {}
    plain: dict[str, Json] = {}
    for array in arrays:
        digests = {t.name: t.digest.hexdigest() for t in array.tensors.values()}
        if array.info.compact:
            records[array.name] = array_record(array.name, array.info, array.notes, digests)
        else:
            plain[array.name] = {**array.notes, "sha256": digests[array.name]}
    return manifest_metadata(records, plain)


def _check_complete(tensor: _Tensor, info: TensorInfo) -> None:
    bits = count_bits(info.shape, info.dtype)
    if bits != 8 * tensor.nbytes:
        rule = f"{bits} bits for {tensor.name!r} ({info.dtype} {info.shape})"
        raise ValueError(f"write: expected {rule}, got {tensor.nbytes} bytes")


def _check_text(argument: str, text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{argument}: expected str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{argument}: expected Unicode text, got {text!a}") from None


def _own_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        _check_text("metadata", key)
        _check_text("metadata", value)
        if key == "format" or key.startswith("pumice."):
            raise ValueError(f"metadata: expected keys other than 'format' and 'pumice.*', got {key!r}")
    return dict(sorted(metadata.items()))


def _refuse_mapped(file: IO[bytes]) -> None:
    try:
        fd = file.fileno()
    except (AttributeError, OSError):  # not a file of the system
        return
    if is_mapped(fd):
        raise ValueError(f"target: expected a file that is not open for reading, got {file!r}, which is mapped")


def _copy(source: IO[bytes], offset: int, length: int, out: IO[bytes]) -> None:
    """Append bytes [offset, offset + length) of the spool, or of another file, in bounded memory."""
    if all(isinstance(file, io.BufferedWriter | io.BufferedRandom | io.FileIO) for file in (source, out)):
        done = _copy_within_kernel(source, offset, length, out)
        offset, length = offset + done, length - done
    source.seek(offset)
    while length:
        data = source.read(min(length, COPY_AT_ONCE))
        if not data:
            raise OSError(errno.EIO, "expected all bytes that were written, got fewer")
        write_all(out, data)
        length -= len(data)


def _copy_within_kernel(source: IO[bytes], offset: int, length: int, out: IO[bytes]) -> int:
    """The same between files of the system, as far as it can; how many bytes that were.

    The disk begins at once to write what it gets, so that there is little left for the sync at the end.
    """
    source.flush()
    out.flush()
    done = 0
    with contextlib.suppress(AttributeError):  # not on this system
        while done < length:
            try:
                count = os.copy_file_range(
                    source.fileno(), out.fileno(), min(length - done, COPY_AT_ONCE), offset_src=offset + done
                )
            except OSError as error:
                if error.errno in NO_COPY:
                    break
                raise
            if not count:
                break
            done += count
            end = os.lseek(out.fileno(), 0, os.SEEK_CUR)
            os.posix_fadvise(
                out.fileno(), end - count, count, os.POSIX_FADV_DONTNEED
            )  # what is dirty is sent, and stays
    return done
