"""The file of a chunk: 8 bytes of length, a JSON table of parts (dtype, shape, offset), and the parts, aligned."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pumice.checkpoint.publication import sync_folders, write_all
from pumice.errors import FormatError
from pumice.layouts import CompactArray
from pumice.layouts.registry import build
from pumice.scheme import Scheme
from pumice.values.base import Array

ALIGNMENT = 64
READ_BYTES = 4 << 20  # at a time
LOSS = ".loss"  # and a number: beside the parts of a chunk, the energies of its rows that the error is made of
LEAVES = ".leaves"  # what the chunk adds to the fingerprint of the source


@dataclass(frozen=True)
class Done:
    """A chunk's file: its size and its CRC-32, the scheme and the dtypes of its parts."""

    key: str
    scheme: str
    nbytes: int
    crc: int
    dtypes: Mapping[str, str]


def write_chunk(path: Path, parts: Mapping[str, list[Array]]) -> tuple[int, int]:
    """Write a chunk's file, whole or not at all: its bytes, and their CRC-32."""
    table, offset = {}, 0
    for part, blocks in parts.items():
        shape = (sum(len(block) for block in blocks), *blocks[0].shape[1:])
        table[part] = [blocks[0].dtype.str, shape, offset]
        offset = _aligned(offset + sum(block.nbytes for block in blocks))
    text = json.dumps(table).encode()
    head = (len(text)).to_bytes(8, "little") + text
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
    size = crc = 0
    try:
        with scratch.open("xb", buffering=0) as out:
            for data in _pieces(head, parts):
                write_all(out, data)
                size, crc = size + len(data), zlib.crc32(data, crc)
            os.fsync(out.fileno())
        os.replace(scratch, path)
        sync_folders({path.parent})
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    return size, crc


def _pieces(head: bytes, parts: Mapping[str, list[Array]]) -> Iterator[bytes | memoryview]:
    yield head + bytes(_aligned(len(head)) - len(head))
    for blocks in parts.values():
        nbytes = 0
        for block in blocks:
            if block.nbytes:
                yield np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
                nbytes += block.nbytes
        yield bytes(_aligned(nbytes) - nbytes)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def is_whole(path: Path, done: Done) -> bool:
    """Whether the file is the one that was written."""
    try:
        with path.open("rb") as file:
            crc = 0
            while data := file.read(READ_BYTES):
                crc = zlib.crc32(data, crc)
            return crc == done.crc and file.tell() == done.nbytes
    except FileNotFoundError:
        return False


class ChunkFile:
    """What a chunk's file holds: views of the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = np.memmap(path, np.uint8, "r")
        length = int.from_bytes(self._bytes[:8].tobytes(), "little")
        self._data = _aligned(8 + length)
        self._table = json.loads(self._bytes[8 : 8 + length].tobytes())

    def array(self, part: str) -> Array:
        """One part."""
        dtype, shape, offset = self._table[part]
        nbytes = np.dtype(dtype).itemsize * math.prod(shape)
        begin = self._data + offset
        array: Array = self._bytes[begin : begin + nbytes].view(np.ndarray).view(dtype).reshape(shape)
        return array

    def compact(self, scheme: Scheme, stored: tuple[int, ...]) -> CompactArray:
        """The chunk as an array of its own."""
        parts = {part: self.array(part) for part in self._table if not part.startswith((LOSS, LEAVES))}
        try:
            return build(scheme, stored, parts)
        except FormatError as error:
            raise FormatError(self.path, error.tensor, error.rule, error.got, "was the file changed?") from error

    def energies(self) -> list[list[float]]:
        """What `Loss` has of the rows."""
        return [self.array(LOSS + str(i)).tolist() for i in range(4)]

    def leaves(self) -> bytes:
        """What it adds to the fingerprint of the source."""
        return self.array(LEAVES).tobytes()

    def offset(self, block: Array) -> int | None:
        """Where in the file a block is; None for one in memory."""
        at = block.__array_interface__["data"][0] - self._bytes.__array_interface__["data"][0]
        return at if block.flags.c_contiguous and 0 <= at <= len(self._bytes) - block.nbytes else None
