"""Writing GGUF: whole or not at all, the same bytes for the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pumice.checkpoint.gguf.fields import UINT32
from pumice.checkpoint.gguf.header import MAGIC, U32, U64
from pumice.checkpoint.publication import Publication, write_all

VERSION = 3
Bytes = bytes | memoryview


@dataclass(frozen=True)
class Piece:
    """A tensor about to be written: what the table says, and its bytes, piece by piece."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    nbytes: int
    chunks: Callable[[], Iterable[Bytes]]


def write_gguf(target: Path, fields: Sequence[Bytes], pieces: Sequence[Piece], alignment: int) -> None:
    """Write a file of version 3.

    Parameters
    ----------
    target
        Its path; what is there is replaced at the end.
    fields
        Keys and values as the file shall have them, such as `number_field` makes.
    pieces
        The tensors in their order.
    alignment
        What `fields` say of it, or 32.
    """
    publication = Publication(target.parent)
    try:
        staged = publication.stage(target.name, lambda out: _write(out, fields, pieces, alignment))
        with publication.exclusive():
            publication.publish([staged], [], whole=False)
            publication.finish()
    except BaseException:
        publication.discard()
        raise


def number_field(key: str, value: int) -> bytes:
    """A key with a uint32."""
    return _text(key) + U32.pack(UINT32) + U32.pack(value)


def _write(out: IO[bytes], fields: Sequence[Bytes], pieces: Sequence[Piece], alignment: int) -> None:
    head = [MAGIC, U32.pack(VERSION), U64.pack(len(pieces)), U64.pack(len(fields)), *fields]
    offset = 0
    for piece in pieces:
        dims = [U64.pack(length) for length in reversed(piece.shape)]
        head += [_text(piece.name), U32.pack(len(dims)), *dims, U32.pack(piece.type_id), U64.pack(offset)]
        offset += _padded(piece.nbytes, alignment)
    size = sum(map(len, head))
    head.append(bytes(_padded(size, alignment) - size))
    for part in head:
        write_all(out, part)
    for piece in pieces:
        _write_data(out, piece, alignment)


def _write_data(out: IO[bytes], piece: Piece, alignment: int) -> None:
    written = 0
    for chunk in piece.chunks():
        write_all(out, chunk)
        written += len(chunk)
    assert written == piece.nbytes, f"{piece.name}: {written} bytes, not {piece.nbytes}"
    write_all(out, bytes(_padded(written, alignment) - written))


def _padded(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment


def _text(value: str) -> bytes:
    blob = value.encode()
    return U64.pack(len(blob)) + blob
