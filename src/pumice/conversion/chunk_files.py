"""The file of a chunk: 8 bytes of length, a JSON table, the parts, aligned, and the CRC-32 of all that.

The table has of each part the dtype, the shape and the offset, and what `Done` says; so a chunk that a worker has
finished counts even if nobody came to note it.
"""

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


CRC_BYTES = 4


@dataclass(frozen=True)
class Done:
    """A chunk's file: its size and the CRC-32 at its end, the scheme and the dtypes of its parts."""

    key: str
    scheme: str
    nbytes: int
    crc: int
    dtypes: Mapping[str, str]


def write_chunk(path: Path, scheme: str, dtypes: Mapping[str, str], parts: Mapping[str, list[Array]]) -> Done:
    """Write a chunk's file, whole or not at all. Its name is the key of the chunk."""
    table, offset = {}, 0
    for part, blocks in parts.items():
        shape = (sum(len(block) for block in blocks), *blocks[0].shape[1:])
        table[part] = [blocks[0].dtype.str, shape, offset]
        offset = _aligned(offset + sum(block.nbytes for block in blocks))
    text = json.dumps({"parts": table, "scheme": scheme, "dtypes": dict(dtypes)}).encode()
    head = (len(text)).to_bytes(8, "little") + text
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
    size = crc = 0
    try:
        with scratch.open("xb", buffering=0) as out:
            for data in _pieces(head, parts):
                write_all(out, data)
                size, crc = size + len(data), zlib.crc32(data, crc)
            write_all(out, crc.to_bytes(CRC_BYTES, "little"))
            os.fsync(out.fileno())
        os.replace(scratch, path)
        sync_folders({path.parent})
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    return Done(path.name, scheme, size + CRC_BYTES, crc, dict(dtypes))


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


def read_done(path: Path) -> Done | None:
    """What a chunk's file says, if it is the one that was written."""
    with contextlib.suppress(FileNotFoundError):
        nbytes = path.stat().st_size
        with path.open("rb") as file:
            crc, left = 0, nbytes - CRC_BYTES
            while left > 0 and (data := file.read(min(left, READ_BYTES))):
                crc, left = zlib.crc32(data, crc), left - len(data)
            if left or file.read() != crc.to_bytes(CRC_BYTES, "little"):
                return None
        about = ChunkFile(path).about
        return Done(path.name, about["scheme"], nbytes, crc, about["dtypes"])
    return None


class ChunkFile:
    """What a chunk's file holds: views of the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = np.memmap(path, np.uint8, "r")
        length = int.from_bytes(self._bytes[:8].tobytes(), "little")
        self._data = _aligned(8 + length)
        self.about = json.loads(self._bytes[8 : 8 + length].tobytes())
        self._table = self.about["parts"]

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
