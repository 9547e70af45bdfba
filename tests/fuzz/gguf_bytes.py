"""GGUF files, byte by byte: what no library would write can be written here."""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, TEXT, ARRAY, U64, I64, F64 = range(13)
Q4_0, Q8_0, Q4_K = 2, 8, 12


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(value: str | bytes) -> bytes:
    blob = value.encode() if isinstance(value, str) else value
    return u64(len(blob)) + blob


def field(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + u32(kind) + value


def array(key: str, kind: int, count: int, values: bytes) -> bytes:
    return field(key, ARRAY, u32(kind) + u64(count) + values)


def row(name: str | bytes, dims: Sequence[int], kind: int, offset: int) -> bytes:
    """A row of the tensor table; `dims` as the file has them, columns first."""
    return text(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


def file(
    fields: Sequence[bytes] = (),
    rows: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file; `counts` of tensors and of keys, where they lie."""
    tensors, keys = counts or (len(rows), len(fields))
    head = magic + u32(version) + u64(tensors) + u64(keys) + b"".join(fields) + b"".join(rows)
    return head + bytes(-len(head) % alignment) + data


def model() -> bytes:
    """A small file with a bit of everything; it ends with the last byte of its last tensor."""
    fields = [
        field("general.architecture", TEXT, text("llama")),
        field("general.alignment", U32, u32(32)),
        field("llama.rope.freq_base", F32, struct.pack("<f", 1e5)),
        field("llama.block_count", U32, u32(1)),
        field("tokenizer.add_bos", BOOL, b"\1"),
        array("tokenizer.tokens", TEXT, 3, text("<s>") + text("") + text("é")),
        array("tokenizer.scores", F32, 3, struct.pack("<3f", 0, -1, -2)),
    ]
    blocks = {"q4": (Q4_0, 18, 32, 2), "q8": (Q8_0, 34, 32, 2), "k": (Q4_K, 144, 256, 1)}  # type, bytes, columns, rows
    rows, data = [row("norm", [4], 0, 0)], struct.pack("<4f", 1, 2, 3, 4)
    for name, (kind, nbytes, columns, count) in blocks.items():
        data += bytes(-len(data) % 32)
        rows.append(row(name, [columns, count], kind, len(data)))
        data += bytes(i % 59 for i in range(nbytes * count))  # below 0x3c: every scale is finite
    return file(fields, rows, data)
