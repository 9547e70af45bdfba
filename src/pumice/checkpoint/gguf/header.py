"""The head of a GGUF file: strict, bounded parsing of untrusted bytes.

    | "GGUF" | version u32 | tensors u64 | keys u64 | keys and values | tensor table | padding | tensor data |

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3; stricter here where readers
let pass what no writer makes (tensors that overlap, booleans other than 0 and 1).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from pumice.checkpoint.gguf.blocks import BLOCK_TYPES, REMOVED, BlockType
from pumice.checkpoint.gguf.fields import ARRAY, KINDS, STRING, UINT32, Field, Fields
from pumice.checkpoint.source import Source
from pumice.errors import FormatError

MAGIC = b"GGUF"
OLD_MAGICS = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}
VERSIONS = (2, 3)
WINDOW = 1 << 20  # bytes of the head that are looked at first
NAME_CAP = 65535  # bytes of a key or a name, the specification's limit of keys
TEXTS_CAP = 1 << 24  # texts of an array: a hundred times the largest vocabulary
DIMENSIONS_CAP = 4
EXTENT_CAP = 1 << 48
ALIGNMENT, ALIGNMENT_CAP = 32, 1 << 20
LEAST_FIELD, LEAST_TENSOR = 13, 24  # bytes that each takes at least

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class Tensor:
    """One row of the tensor table. `begin` and `end` count from the start of the file; `shape` has the rows first."""

    shape: tuple[int, ...]
    type_id: int
    begin: int
    end: int

    @property
    def type(self) -> BlockType | None:
        """None for a type that was removed from the format or that is newer than this reader."""
        return BLOCK_TYPES.get(self.type_id)

    @property
    def type_name(self) -> str:
        """The name that ggml gives to the type."""
        return self.type.name if self.type else REMOVED.get(self.type_id, f"type {self.type_id}")


@dataclass(frozen=True)
class Header:
    fields: Fields
    tensors: Mapping[str, Tensor]
    alignment: int


def read_header(source: Source) -> Header:
    """Parse and check everything that can be checked without reading data.

    Raises
    ------
    FormatError
        With the key or tensor where there is one, the broken rule and what stood there.
    """
    head = _Head(source)
    count, keys = _counts(head)
    fields = {}
    for _ in range(keys):
        start, name = head.at, head.text("a key", NAME_CAP)
        if name in fields:
            fail(source, name, "every key once", "a duplicate key")
        fields[name] = head.field(name, start)
    alignment = _alignment(fields, head)
    table: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = head.text("a tensor's name", NAME_CAP)
        if name in table:
            fail(source, name, "every tensor once", "a duplicate name")
        table[name] = head.row(name)
    start = -(-head.at // alignment) * alignment
    tensors = {name: _tensor(name, *row, start, alignment, source) for name, row in table.items()}
    _check_overlaps(tensors, source)
    return Header(Fields(fields, head.view, source.name), tensors, alignment)


class _Head:
    """Reads forward; `view` grows as far as the head turns out to reach."""

    def __init__(self, source: Source) -> None:
        self.source, self.at = source, 0
        self.view = source.view(0, min(source.size, WINDOW))

    def take(self, count: int, what: str) -> int:
        """Where the next `count` bytes begin; moves behind them."""
        at, left = self.at, self.source.size - self.at
        if count > left:
            fail(self.source, None, f"{count} bytes of {what} at byte {at}", f"{left} bytes", "a truncated copy?")
        self.at += count
        self.reach(self.at)
        return at

    def reach(self, end: int) -> None:
        if end > len(self.view):
            self.view = self.source.view(0, min(self.source.size, max(end, 2 * len(self.view))))

    def u32(self, what: str) -> int:
        at = self.take(4, what)
        return int(U32.unpack_from(self.view, at)[0])

    def u64(self, what: str) -> int:
        at = self.take(8, what)
        return int(U64.unpack_from(self.view, at)[0])

    def text(self, what: str, cap: int) -> str:
        length = self.u64(what)
        if length > cap:
            fail(self.source, None, f"{what} of at most {cap} bytes at byte {self.at}", f"{length} bytes")
        at = self.take(length, what)
        try:
            return str(self.view[at : at + length], "utf-8")
        except UnicodeDecodeError as error:
            fail(self.source, None, f"{what} in UTF-8 at byte {at}", f"byte {error.start} is not")

    def field(self, name: str, start: int) -> Field:
        """Find where a value ends; scalars are checked here, arrays when they are asked for."""
        kind = self._kind(name)
        if kind == STRING:
            at = self.take(self.u64(name), name)
            return Field(start, kind, at, self.at)
        if kind != ARRAY:
            return Field(start, kind, self.take(KINDS[kind].nbytes, name), self.at)
        element = self._kind(name)
        if element == ARRAY:
            fail(self.source, name, "an array of numbers or texts", "an array of arrays")
        count = self.u64(name)
        least = 8 if element == STRING else KINDS[element].nbytes
        left = self.source.size - self.at
        if count > left // least:
            fail(self.source, name, f"an array of at most {left // least} values", f"{count}", "a truncated copy?")
        begin = self.at
        if element == STRING:
            self._skip_texts(name, count)
        else:
            self.take(count * least, name)
        return Field(start, element, begin, self.at, count)

    def _kind(self, name: str) -> int:
        kind = self.u32(name)
        if kind not in KINDS:
            fail(self.source, name, f"a kind of value in 0..{max(KINDS)}", f"{kind}", "written by a newer ggml?")
        return kind

    def _skip_texts(self, name: str, count: int) -> None:
        if count > TEXTS_CAP:
            fail(self.source, name, f"an array of at most {TEXTS_CAP} texts", f"{count}")
        at, view, unpack, last = self.at, self.view, U64.unpack_from, len(self.view) - 8
        for _ in range(count):
            if at > last:  # the view ends here, and perhaps the file
                self.at = min(at, self.source.size)
                self.take(8, name)
                view, last = self.view, len(self.view) - 8
            at += 8 + unpack(view, at)[0]
        if at > self.at:
            self.take(at - self.at, name)

    def row(self, name: str) -> tuple[tuple[int, ...], int, int]:
        """Shape, type and offset of a tensor."""
        dimensions = self.u32(name)
        if dimensions > DIMENSIONS_CAP:
            fail(self.source, name, f"at most {DIMENSIONS_CAP} dimensions", f"{dimensions}")
        shape = tuple(self.u64(name) for _ in range(dimensions))[::-1]
        return shape, self.u32(name), self.u64(name)


def fail(source: Source, name: str | None, rule: str, got: str, hint: str | None = None) -> NoReturn:
    raise FormatError(source.name, None if name is None else ascii(name)[1:-1], rule, got, hint)


def _counts(head: _Head) -> tuple[int, int]:
    """Of tensors and of keys, after the magic and the version."""
    source = head.source
    if source.size < 24:
        fail(source, None, "at least 24 bytes", f"{source.size} bytes", "a truncated copy?")
    magic = bytes(source.view(0, 4))
    if magic in OLD_MAGICS:
        hint = "convert it with the llama.cpp of its time, or download it again"
        fail(source, None, "GGUF", f"{OLD_MAGICS[magic]}, a format from before GGUF", hint)
    if magic != MAGIC:
        fail(source, None, "a file that starts with b'GGUF'", repr(magic))
    head.at = 4
    version = head.u32("version")
    if version & 0xFFFF == 0 and version:
        fail(source, None, "a little-endian file", f"a big-endian one, version {version >> 24}")
    if version not in VERSIONS:
        hint = "its counts have 32 bits: convert it with llama.cpp" if version == 1 else "written by a newer ggml?"
        fail(source, None, "GGUF version 2 or 3", f"version {version}", hint)
    tensors, keys = head.u64("counts"), head.u64("counts")
    for count, least, what in ((keys, LEAST_FIELD, "keys"), (tensors, LEAST_TENSOR, "tensors")):
        if count > (source.size - head.at) // least:
            rule = f"at most {(source.size - head.at) // least} {what} in {source.size} bytes"
            fail(source, None, rule, f"{count}", "a truncated copy?")
    return tensors, keys


def _alignment(fields: Mapping[str, Field], head: _Head) -> int:
    field = fields.get("general.alignment")
    if field is None:
        return ALIGNMENT
    if field.kind != UINT32 or field.count is not None:
        fail(head.source, "general.alignment", "a uint32", field.kind_name)
    alignment = int(U32.unpack_from(head.view, field.begin)[0])
    if alignment.bit_count() != 1 or alignment > ALIGNMENT_CAP:
        fail(head.source, "general.alignment", f"a power of two up to {ALIGNMENT_CAP}", f"{alignment}")
    return alignment


def _tensor(
    name: str, shape: tuple[int, ...], type_id: int, offset: int, start: int, alignment: int, source: Source
) -> Tensor:
    extent = 1
    for length in shape:
        extent *= max(length, 1)
    if max(shape, default=0) > EXTENT_CAP or extent > 1 << 58:
        fail(source, name, "dimensions up to 2^48 and 2^58 values", f"{shape}")
    if offset % alignment:
        fail(source, name, f"data at a multiple of {alignment}", f"byte {offset}")
    count = 0 if 0 in shape else extent
    form = BLOCK_TYPES.get(type_id)
    if form is None:
        nbytes = 0  # nobody knows
    else:
        whole = form.weights == 1 or (len(shape) > 0 and shape[-1] % form.weights == 0 and 0 not in shape[1:])
        if not whole:  # nor are there rows without columns: their scales would be any number of bytes
            fail(source, name, f"columns in multiples of {form.weights} for {form.name}", f"shape {shape}")
        nbytes = count // form.weights * form.nbytes
    begin = start + offset
    if begin + nbytes > source.size and nbytes:
        got = f"a file of {source.size} bytes"
        fail(source, name, f"data in bytes {begin}..{begin + nbytes}", got, "a truncated copy?")
    return Tensor(shape, type_id, begin, begin + nbytes)


def _check_overlaps(tensors: Mapping[str, Tensor], source: Source) -> None:
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin < end:
            rule = f"data behind that of {before!a}, which ends at byte {end}"
            fail(source, name, rule, f"byte {tensor.begin}")
        if tensor.end > tensor.begin:
            end, before = tensor.end, name
