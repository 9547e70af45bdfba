"""The safetensors container: one file, a sharded folder, or bytes in memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pumice.checkpoint.base import LFS_HEAD, refuse_non_weights, register
from pumice.checkpoint.container import Container, Shard
from pumice.checkpoint.container_reader import ContainerReader
from pumice.checkpoint.header import HEADER_CAP, Span, read_header
from pumice.checkpoint.json_text import parse_json
from pumice.checkpoint.publication import INDEX, SINGLE
from pumice.checkpoint.source import Buffer, Source
from pumice.errors import FormatError

SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class SafetensorsShard(Shard):
    """One safetensors file: its bytes, and the text of its header."""

    entries: Mapping[str, Span]
    source: Source
    text: bytes

    @classmethod
    def open(cls, origin: Path | Buffer, *, io: str = "mmap") -> Self:
        if sys.byteorder != "little":
            raise NotImplementedError("safetensors: expected a little-endian machine, got a big-endian one")
        source = Source(origin, io=io)
        head = bytes(source.view(0, min(len(LFS_HEAD), source.size)))
        refuse_non_weights(head, source.name)
        header = read_header(source)
        path = origin if isinstance(origin, Path) else None
        return cls(source.name, path, header.entries, header.metadata, source, header.text)


class SafetensorsContainer(Container):
    """A file; a folder that holds ``model.safetensors``, or shards and their index; or bytes."""

    format = "safetensors"
    shards: tuple[SafetensorsShard, ...]

    @classmethod
    def matches(cls, path: Path) -> bool:
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
            self.shards = _open_folder(path, io)
        else:
            self.shards = (SafetensorsShard.open(path, io=io),)
        self._place = {name: (shard, span) for shard in self.shards for name, span in shard.entries.items()}

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        entry = self.entry(name)
        shard, span = self._place[name]
        return shard.source.view(span.begin + start, span.begin + (entry.nbytes if stop is None else stop))

    def close(self) -> None:
        for shard in self.shards:
            shard.source.close()


@register
class SafetensorsReader(ContainerReader):
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
    container_type = SafetensorsContainer
    container: SafetensorsContainer


def _open_folder(folder: Path, io: str) -> tuple[SafetensorsShard, ...]:
    """The shards that the folder's index names, or its only weights file."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if folder / SINGLE in files:  # as transformers does, it goes before an index
        return (SafetensorsShard.open(folder / SINGLE, io=io),)
    if folder / INDEX in indexes:
        return _open_index(folder / INDEX, io)
    if len(indexes) == 1:
        return _open_index(indexes[0], io)
    if not indexes and len(files) == 1 and not _is_part(files[0].name):
        return (SafetensorsShard.open(files[0], io=io),)
    got = ", ".join(path.name for path in (indexes or files)[:8])
    rule = f"{SINGLE}, one index or one weights file"
    raise FormatError(str(folder), None, rule, got, "give the path of one file")


def _is_part(name: str) -> bool:
    match = SHARD.fullmatch(name)
    return match is not None and int(match[2]) > 1


def _open_index(index: Path, io: str) -> tuple[SafetensorsShard, ...]:
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
    shards = {file: SafetensorsShard.open(index.parent / file, io=io) for file in files}
    for tensor, file in shard_names.items():
        if tensor not in shards[file].entries:
            raise FormatError(where, tensor, f"a tensor of {file!r}", "no such tensor there", None)
    for file, shard in shards.items():
        for tensor in shard.entries:
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
