"""The safetensors container: one file, a sharded folder, or bytes in memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pumice.checkpoint.base import LFS_HEAD, refuse_non_weights, register
from pumice.checkpoint.container import Container, Shard
from pumice.checkpoint.container_reader import ContainerReader
from pumice.checkpoint.header import Span, read_header
from pumice.checkpoint.locations import Location, matching
from pumice.checkpoint.publication import SINGLE
from pumice.checkpoint.shards import open_folder
from pumice.checkpoint.source import Buffer, Source


@dataclass(frozen=True)
class SafetensorsShard(Shard):
    """One safetensors file: its bytes, and the text of its header."""

    entries: Mapping[str, Span]
    source: Source
    text: bytes

    @classmethod
    def open(cls, origin: Location | Buffer, *, io: str = "mmap") -> Self:
        if sys.byteorder != "little":
            raise NotImplementedError("safetensors: expected a little-endian machine, got a big-endian one")
        source = Source(origin, io=io)
        head = bytes(source.view(0, min(len(LFS_HEAD), source.size)))
        refuse_non_weights(head, source.name)
        header = read_header(source)
        path = None if isinstance(origin, Buffer) else origin
        return cls(source.name, path, header.entries, header.metadata, source, header.text)


class SafetensorsContainer(Container):
    """A file; a folder that holds ``model.safetensors``, or shards and their index; or bytes."""

    format = "safetensors"
    shards: tuple[SafetensorsShard, ...]

    @classmethod
    def knows(cls, head: bytes) -> bool:
        # Below 2^32, not below the cap: a header that claims too much deserves the reader's own message.
        return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32

    @classmethod
    def holds(cls, folder: Location) -> bool:
        return any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json"))

    def __init__(self, path: Location | Buffer, *, io: str = "mmap") -> None:
        if not isinstance(path, Buffer) and path.is_dir():
            files = matching(path, "*.safetensors")
            self.shards = open_folder(path, files, SINGLE, lambda file: SafetensorsShard.open(file, io=io))
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
