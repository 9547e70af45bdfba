"""Reading safetensors: one file, a sharded folder, or bytes in memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice import layouts
from pumice.checkpoint.base import LFS_HEAD, Reader, TensorInfo, refuse_non_weights, register
from pumice.checkpoint.dtypes import DTYPES, widen
from pumice.checkpoint.header import HEADER_CAP, Entry, Header, parse_json, read_header
from pumice.checkpoint.manifest import ArrayRecord, Manifest, read_manifest
from pumice.checkpoint.publication import INDEX, SINGLE
from pumice.checkpoint.source import Buffer, Source
from pumice.errors import FormatError

SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\.safetensors")


class Shard:
    """One safetensors file: its bytes, header and manifest."""

    def __init__(self, origin: Path | Buffer, *, io: str = "mmap") -> None:
        if sys.byteorder != "little":
            raise NotImplementedError("safetensors: expected a little-endian machine, got a big-endian one")
        self.path = origin if isinstance(origin, Path) else None
        self.source = Source(origin, io=io)
        head = bytes(self.source.view(0, min(len(LFS_HEAD), self.source.size)))
        refuse_non_weights(head, self.source.name)
        self.header: Header = read_header(self.source)
        self.manifest: Manifest = read_manifest(self.header, self.source.name)


@register
class SafetensorsReader(Reader):
    """Reads safetensors, ours and everybody's; opening one reads headers only.

    Parameters
    ----------
    path
        A file; a folder that holds ``model.safetensors``, or shards and their index; or bytes.
    io
        "mmap" or "read".

    Raises
    ------
    FormatError
        Names the file, the tensor, the broken rule and what was there instead.

    Notes
    -----
    Format: https://github.com/huggingface/safetensors#format. Nothing is allocated from a number that was not
    checked against the file's size, and nothing in the file is ever run.
    """

    format = "safetensors"

    @staticmethod
    def matches(path: Path) -> bool:
        if path.is_dir():
            return any(path.glob("*.safetensors")) or any(path.glob("*.safetensors.index.json"))
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(9)
        # Below 2^32, not below the cap: a header that claims too much deserves the reader's own message.
        return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32

    def __init__(self, path: Path | Buffer, *, io: str = "mmap") -> None:
        if isinstance(path, Path) and path.is_dir():
            self._shards = _open_folder(path, io)
        else:
            self._shards = (Shard(path, io=io),)
        self._shard_of = {name: shard for shard in self._shards for name in shard.header.entries}
        self._records: dict[str, tuple[ArrayRecord, Shard]] = {}
        for shard in self._shards:
            for name, record in shard.manifest.arrays.items():
                if name in self._records or self._shard_of.get(name, shard) is not shard:
                    raise FormatError(shard.source.name, name, "one array of this name", "two", None)
                self._records[name] = (record, shard)
        hidden = {tensor for record, _ in self._records.values() for tensor in record.parts.values()}
        self._names = tuple(sorted((self._shard_of.keys() - hidden) | self._records.keys()))

    @property
    def metadata(self) -> Mapping[str, str]:
        return {k: v for shard in self._shards for k, v in shard.header.metadata.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(shard.path for shard in self._shards if shard.path is not None)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The open files, for checks that go below arrays."""
        return self._shards

    def names(self) -> tuple[str, ...]:
        return self._names

    def info(self, name: str) -> TensorInfo:
        if name not in self._records:
            entry = self._entry(name)
            notes = self._shard_of[name].manifest.notes.get(name, {})
            return TensorInfo(entry.shape, entry.dtype, entry.end - entry.begin, notes=notes)
        record, shard = self._records[name]
        entries = {part: shard.header.entries[tensor] for part, tensor in record.parts.items()}
        return TensorInfo(
            shape=record.shape if record.in_axis == 1 else record.shape[::-1],
            dtype=record.scheme,
            nbytes=sum(entry.end - entry.begin for entry in entries.values()),
            parts={part: entry.dtype for part, entry in entries.items()},
            in_axis=record.in_axis,
            notes=record.notes,
        )

    def array(self, name: str) -> Any:
        if name not in self._records:
            return widen(self._stored(name), self._entry(name).dtype)
        record, shard = self._records[name]
        parts = {part: self._stored(tensor) for part, tensor in record.parts.items()}
        try:
            array = layouts.from_parts(record.scheme, record.shape, parts)
        except (FormatError, ValueError) as error:
            raise _located(error, shard.source.name, name) from error
        for part, tensor in record.parts.items():
            if array.part_dtype(part) != self._entry(tensor).dtype:
                rule = f"part {part!r} as {array.part_dtype(part)}"
                raise FormatError(shard.source.name, name, rule, self._entry(tensor).dtype, None)
        return array if record.in_axis == 1 else array.T

    def raw(self, name: str) -> memoryview:
        entry = self._entry(name)
        return self._shard_of[name].source.view(entry.begin, entry.end)

    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        if name in self._records:
            decoded: NDArray[np.float32] = self.array(name)[start:stop].to_dense()
            return decoded
        entry = self._entry(name)
        values = widen(self._stored(name, start, stop), entry.dtype)
        return values.astype(np.float32) if entry.dtype == "F16" else values

    def _stored(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """The tensor (or some of its rows) as NumPy holds it, BF16 and F8 as patterns."""
        entry = self._entry(name)
        source = self._shard_of[name].source
        dtype = DTYPES[entry.dtype].numpy
        if dtype is None:
            rule = "a dtype of whole bytes"
            hint = "no specification orders its bits: use raw(name)"
            raise FormatError(source.name, name, rule, entry.dtype, hint)
        begin, end, shape = entry.begin, entry.end, entry.shape
        if stop is not None:
            row = (end - begin) // max(shape[0] if shape else 1, 1)
            begin, end = begin + start * row, begin + stop * row
            shape = (stop - start, *shape[1:])
        flat = np.frombuffer(source.view(begin, end), np.uint8)
        if entry.dtype == "BOOL" and flat.size and flat.max() > 1:
            raise FormatError(source.name, name, "BOOL bytes of 0 or 1", str(flat.max()), None)
        if flat.ctypes.data % dtype.itemsize:
            flat = flat.copy()
            flat.setflags(write=False)
        return flat.view(dtype).reshape(shape)

    def _entry(self, name: str) -> Entry:
        if name not in self._shard_of:
            raise KeyError(f"name: expected a tensor of the checkpoint, got {name!r}")
        return self._shard_of[name].header.entries[name]

    def close(self) -> None:
        for shard in self._shards:
            shard.source.close()


def _located(error: Exception, path: str, name: str) -> FormatError:
    """The error of an array's structure, with the place that only a reader knows."""
    if isinstance(error, FormatError):
        return FormatError(path, name, error.rule, error.got, error.hint)
    return FormatError(path, name, "a valid scheme and parts", str(error), None)


def _open_folder(folder: Path, io: str) -> tuple[Shard, ...]:
    """The shards that the folder's index names, or its only weights file."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if folder / SINGLE in files:  # as transformers does, it goes before an index
        return (Shard(folder / SINGLE, io=io),)
    if folder / INDEX in indexes:
        return _open_index(folder / INDEX, io)
    if len(indexes) == 1:
        return _open_index(indexes[0], io)
    if not indexes and len(files) == 1 and not _is_part(files[0].name):
        return (Shard(files[0], io=io),)
    got = ", ".join(path.name for path in (indexes or files)[:8])
    rule = f"{SINGLE}, one index or one weights file"
    raise FormatError(str(folder), None, rule, got, "give the path of one file")


def _is_part(name: str) -> bool:
    match = SHARD.fullmatch(name)
    return match is not None and int(match[2]) > 1


def _open_index(index: Path, io: str) -> tuple[Shard, ...]:
    where = str(index)
    source = Source(index, io="read")
    refuse_non_weights(bytes(source.view(0, min(len(LFS_HEAD), source.size))), where)
    if source.size > HEADER_CAP:
        raise FormatError(where, None, f"at most {HEADER_CAP} bytes", f"{source.size} bytes", None)
    table = parse_json(bytes(source.view(0, source.size)), where, floats=True)
    source.close()
    shard_names = table.get("weight_map")
    if not isinstance(shard_names, dict) or not shard_names:
        raise FormatError(where, None, "a weight_map of tensors to files", ascii(shard_names)[:80], None)
    files = _shard_files(index, shard_names)
    shards = {file: Shard(index.parent / file, io=io) for file in files}
    for tensor, file in shard_names.items():
        if tensor not in shards[file].header.entries:
            raise FormatError(where, tensor, f"a tensor of {file!r}", "no such tensor there", None)
    for file, shard in shards.items():
        for tensor in shard.header.entries:
            if shard_names.get(tensor) != file:
                got = f"{shard_names.get(tensor)!r}"
                raise FormatError(where, tensor, f"the file that holds it, {file!r}", got, None)
    return tuple(shards.values())


def _shard_files(index: Path, shard_names: Mapping[str, object]) -> list[str]:
    """The files of an index, each a plain name (links are followed) and there."""
    for tensor, file in shard_names.items():
        plain = isinstance(file, str) and file not in ("", ".", "..") and not set(file) & set("/\\\0")
        if not plain:
            rule = "a file name without folders"
            raise FormatError(str(index), tensor, rule, ascii(file)[:80], "a hostile index?")
    files = sorted({str(file) for file in shard_names.values()})
    for file in files:
        if not (index.parent / file).is_file():
            match = SHARD.fullmatch(file)
            which = f"shard {int(match[1])} of {int(match[2])}" if match else "a shard"
            hint = "copy or download it again"
            raise FormatError(str(index), None, f"{which}, {file!r}, beside the index", "no such file", hint)
    return files
