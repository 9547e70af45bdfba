"""The safetensors header: strict, bounded parsing of untrusted bytes, and the one way to write it.

    | N: u64 little-endian | N bytes of JSON, padded with spaces | tensor data, no gaps |

Specification: https://github.com/huggingface/safetensors#format; stricter here where upstream lets pass
what no writer makes (duplicate names, unknown fields, leading blanks).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pumice.checkpoint.container import Entry
from pumice.checkpoint.dtypes import DTYPES
from pumice.checkpoint.json_text import is_unicode, is_whole, parse_json
from pumice.checkpoint.source import Source
from pumice.errors import FormatError

HEADER_CAP = 100_000_000  # bytes, the specification's limit
DIMENSIONS_CAP = 64  # NumPy's limit
ALIGNMENT = 64
FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Span(Entry):
    """One tensor of a header; `begin` counts from the start of the file."""

    begin: int

    @property
    def end(self) -> int:
        return self.begin + self.nbytes


@dataclass(frozen=True)
class Header:
    entries: Mapping[str, Span]
    metadata: Mapping[str, str]
    text: bytes


def read_header(source: Source) -> Header:
    """Parse and check everything that can be checked without reading data.

    Raises
    ------
    FormatError
        With the tensor where there is one, the broken rule and what stood there.
    """
    if source.size < 8:
        _fail(source, None, "at least 8 bytes", f"{source.size} bytes", "a truncated copy?")
    length = int.from_bytes(source.view(0, 8), "little")
    if length > HEADER_CAP:
        _fail(source, None, f"a header of at most {HEADER_CAP} bytes", f"{length} bytes")
    if 8 + length > source.size:
        got = f"a file of {source.size} bytes"
        _fail(source, None, f"a header of {length} bytes", got, "a truncated copy?")
    text = bytes(source.view(8, 8 + length))
    if not text.startswith(b"{"):
        _fail(source, None, "a header that starts with '{'", repr(text[:16]))
    table = parse_json(text, source.name)
    metadata = _metadata(table.pop("__metadata__", {}), source)
    entries = {name: _entry(name, field, 8 + length, source) for name, field in table.items()}
    _check_tiling(entries, 8 + length, source)
    return Header(entries, metadata, text)


def _metadata(table: object, source: Source) -> dict[str, str]:
    if not isinstance(table, dict):
        _fail(source, "__metadata__", "an object", type(table).__name__)
    for key, value in table.items():
        if not isinstance(value, str):
            _fail(source, "__metadata__", f"text for {key!a}", type(value).__name__)
        if not is_unicode(key) or not is_unicode(value):
            _fail(source, "__metadata__", f"Unicode text for {key!a}", "a lone surrogate")
    return table


def _entry(name: str, field: object, data_start: int, source: Source) -> Span:
    if not is_unicode(name):
        _fail(source, ascii(name), "a name in Unicode", "a lone surrogate")
    if not isinstance(field, dict) or field.keys() != FIELDS:
        got = sorted(map(ascii, field)) if isinstance(field, dict) else type(field).__name__
        _fail(source, name, f"the fields {', '.join(sorted(FIELDS))}", str(got)[:200])
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        hint = "written by a newer safetensors?"
        _fail(source, name, f"a dtype of {', '.join(DTYPES)}", ascii(dtype)[:60], hint)
    if not isinstance(shape, list) or len(shape) > DIMENSIONS_CAP or not all(map(is_whole, shape)):
        rule = f"a shape of at most {DIMENSIONS_CAP} integers in [0, 2^48]"
        _fail(source, name, rule, ascii(shape)[:80])
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_whole, offsets)):
        _fail(source, name, "two offsets in [0, 2^48]", ascii(offsets)[:80])
    begin, end = offsets
    bits = count_bits(tuple(shape), dtype)
    if bits is None or bits != 8 * (end - begin):
        rule = f"{end - begin} bytes, as data_offsets says"
        _fail(source, name, rule, f"{dtype} {shape} of {'too many' if bits is None else bits} bits")
    return Span(dtype, tuple(shape), end - begin, data_start + begin)


def count_bits(shape: Sequence[int], dtype: str) -> int | None:
    """Bits of a tensor; None if a NumPy array could not have that shape, zeros ignored."""
    extent, total = DTYPES[dtype].bits, DTYPES[dtype].bits
    for length in shape:
        extent *= max(length, 1)
        total *= length
        if extent > 1 << 62:
            return None
    return total


def _check_tiling(entries: Mapping[str, Span], data_start: int, source: Source) -> None:
    """Tensors must cover the data exactly: no hole, no overlap, no byte behind the last."""
    position, before = data_start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            what = "a hole" if entry.begin > position else "an overlap"
            rule = f"data that starts where {before!r} ends, at byte {position - data_start}"
            _fail(source, name, rule, f"{what}: byte {entry.begin - data_start}")
        position, before = entry.end, name
    if position != source.size:
        rule = f"{position - data_start} bytes of data"
        _fail(source, None, rule, f"{source.size - data_start} bytes", "a truncated copy?")


def _fail(source: Source, tensor: str | None, rule: str, got: str, hint: str | None = None) -> NoReturn:
    raise FormatError(source.name, tensor, rule, got, hint)


def write_header(entries: Mapping[str, Span], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded so that the data behind it starts on a multiple of 64 bytes."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, entry in entries.items():
        offsets = [entry.begin, entry.end]
        table[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > HEADER_CAP:
        raise ValueError(
            f"mapping: expected a header of at most {HEADER_CAP} bytes, got {len(text)} "
            f"for {len(entries)} tensors; lower max_shard_size"
        )
    return len(text).to_bytes(8, "little") + text
