"""Our own convention, the manifest: which tensors of a file make up which compact array, and the SHA-256 of each.

It is JSON under ``pumice.manifest`` in the header's ``__metadata__``:

    {"arrays": {"fc.weight": {"kind": "dense", "scheme": "int4-g128", "shape": [512, 1024], "in_axis": 1,
                              "parts": {"packed": "fc.weight_packed", "scale": "fc.weight_scale", ...},
                              "sha256": {"fc.weight_packed": "9f86d0...", ...}, "source": ..., "error": ...}},
     "tensors": {"fc.bias": {"sha256": "2c2643..."}}}

``pumice.version`` is the version of this description. ``pumice.sha256`` is the digest of the header's own JSON
text (padding included) with those 64 digits written as zeros.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pumice import layouts
from pumice.checkpoint.base import Json, TensorInfo
from pumice.checkpoint.container import Container, Shard
from pumice.checkpoint.conventions.base import Convention, Found, register
from pumice.checkpoint.json_text import is_whole, parse_json
from pumice.errors import FormatError
from pumice.layouts import CompactArray
from pumice.scheme import Scheme

VERSION = "1.0"
BLANK_DIGEST = "0" * 64
RESERVED = frozenset({"kind", "scheme", "shape", "in_axis", "parts", "sha256"})  # the rest are notes
HEX_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ArrayRecord:
    """One compact array of a manifest: shape as stored, part name -> tensor name."""

    scheme: str
    shape: tuple[int, ...]
    parts: Mapping[str, str]
    in_axis: int = 1
    notes: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """The manifest of one file; empty for a file that pumice did not write."""

    arrays: Mapping[str, ArrayRecord] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)  # tensor name -> hex digest
    notes: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)  # of plain tensors


def tensor_name(array: str, part: str) -> str:
    """The tensor that holds a part.

    Examples
    --------
    >>> tensor_name("fc.weight", "packed")
    'fc.weight_packed'
    """
    return f"{array}_{part}" if part else array


def array_record(name: str, info: TensorInfo, notes: Mapping[str, Json], sha256: Mapping[str, str]) -> Json:
    """The JSON of one compact array."""
    stored = info.shape if info.in_axis == 1 else info.shape[::-1]
    return {
        "kind": Scheme.parse(info.dtype).layout,
        "scheme": info.dtype,
        "shape": list(stored),
        "in_axis": info.in_axis,
        "parts": {part: tensor_name(name, part) for part in info.parts},
        "sha256": dict(sorted(sha256.items())),
        **dict(sorted(notes.items())),
    }


def manifest_metadata(arrays: Mapping[str, Json], tensors: Mapping[str, Json]) -> dict[str, str]:
    """The metadata entries of a shard, `pumice.sha256` still blank."""
    table = {"arrays": dict(sorted(arrays.items())), "tensors": dict(sorted(tensors.items()))}
    return {
        "format": "pt",  # without it transformers refuses the file
        "pumice.version": VERSION,
        "pumice.manifest": json.dumps(table, separators=(",", ":"), ensure_ascii=False, allow_nan=False),
        "pumice.sha256": BLANK_DIGEST,
    }


def sign(header: bytes) -> bytes:
    """Fill in the digest of the header's own text; `header` starts with the 8 bytes of its length."""
    blank = f'"pumice.sha256":"{BLANK_DIGEST}"'.encode()
    digest = hashlib.sha256(header[8:]).hexdigest()
    return header.replace(blank, blank.replace(BLANK_DIGEST.encode(), digest.encode()), 1)


def header_digest_holds(metadata: Mapping[str, str], text: bytes) -> bool:
    """Whether the text of a header is what its own digest says."""
    digest = metadata.get("pumice.sha256", "")
    blank = text.replace(f'"pumice.sha256":"{digest}"'.encode(), f'"pumice.sha256":"{BLANK_DIGEST}"'.encode(), 1)
    return hashlib.sha256(blank).hexdigest() == digest


@register
class ManifestConvention(Convention):
    """The arrays that a manifest lists."""

    name = "pumice"

    def find(self, container: Container, free: Collection[str]) -> Iterator[Found]:
        for shard in container.shards:
            for name, record in read_manifest(shard).arrays.items():
                entries = {part: shard.entries[tensor] for part, tensor in record.parts.items()}
                info = TensorInfo(
                    shape=record.shape if record.in_axis == 1 else record.shape[::-1],
                    dtype=record.scheme,
                    nbytes=sum(entry.nbytes for entry in entries.values()),
                    parts={part: entry.dtype for part, entry in entries.items()},
                    in_axis=record.in_axis,
                    notes=record.notes,
                )
                yield Found(name, info, tuple(record.parts.values()), partial(_read, container, record))

    def plain(self, container: Container) -> Mapping[str, Mapping[str, Json]]:
        plain: dict[str, Mapping[str, Json]] = {}
        for shard in container.shards:
            if "pumice.manifest" in shard.metadata:
                manifest = read_manifest(shard)
                parts = {tensor for record in manifest.arrays.values() for tensor in record.parts.values()}
                plain |= {name: manifest.notes.get(name, {}) for name in shard.entries if name not in parts}
        return plain


def _read(container: Container, record: ArrayRecord) -> CompactArray:
    parts = {part: container.read(tensor) for part, tensor in record.parts.items()}
    try:
        array = layouts.from_parts(record.scheme, record.shape, parts)
    except FormatError:
        raise
    except ValueError as error:
        raise FormatError(None, None, "a valid scheme and parts", str(error)) from error
    for part, tensor in record.parts.items():
        stored = container.entry(tensor).dtype
        if array.part_dtype(part) != stored:
            raise FormatError(None, None, f"part {part!r} as {array.part_dtype(part)}", stored)
    return array if record.in_axis == 1 else array.T


def read_manifest(shard: Shard) -> Manifest:
    """The manifest of a file, checked against its tensors.

    Raises
    ------
    FormatError
        A newer version, malformed JSON, or parts that name missing or shared tensors.
    """
    path, text = shard.name, shard.metadata.get("pumice.manifest")
    if text is None:
        return Manifest()
    version = shard.metadata.get("pumice.version", "")
    if version.split(".")[0] != VERSION.split(".")[0]:
        rule = f"pumice.version {VERSION.split('.')[0]}.x"
        raise FormatError(path, None, rule, repr(version), "written by a newer pumice?")
    table = parse_json(text.encode("utf-8", "surrogatepass"), f"{path}, pumice.manifest", floats=True)
    arrays: dict[str, ArrayRecord] = {}
    digests: dict[str, str] = {}
    owner: dict[str, str] = {}
    for name, record in _objects(table.get("arrays"), path):
        arrays[name] = _array(name, record, path)
        digests.update(_digests(name, record.get("sha256"), path))
        for tensor in arrays[name].parts.values():
            if tensor not in shard.entries:
                raise FormatError(path, name, "parts that are in the file", f"no {tensor!r}", None)
            if owner.setdefault(tensor, name) != name:
                got = f"{tensor!r}, of {owner[tensor]!r} too"
                raise FormatError(path, name, "tensors of its own as parts", got, None)
    for name in arrays:
        if name in shard.entries and owner.get(name) != name:
            raise FormatError(path, name, "one array of this name", "two", None)
    notes = {}
    for name, record in _objects(table.get("tensors"), path):
        digests.update(_digests(name, {name: record.get("sha256")}, path))
        notes[name] = _notes(record)
    return Manifest(arrays, digests, notes)


def _objects(table: object, path: str) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(table, dict) or not all(isinstance(item, dict) for item in table.values()):
        raise FormatError(path, None, "a manifest of named objects", ascii(table)[:80], None)
    return list(table.items())


def _array(name: str, record: dict[str, Any], path: str) -> ArrayRecord:
    scheme, shape, parts = record.get("scheme"), record.get("shape"), record.get("parts")
    in_axis = record.get("in_axis", 1)
    if not isinstance(scheme, str):
        raise FormatError(path, name, "a scheme", ascii(scheme)[:80], None)
    if not isinstance(shape, list) or not 2 <= len(shape) <= 64 or not all(map(is_whole, shape)):
        raise FormatError(path, name, "a shape of 2 to 64 integers", ascii(shape)[:80], None)
    if not isinstance(parts, dict) or not parts:
        raise FormatError(path, name, "named parts", ascii(parts)[:80], None)
    if any(tensor != tensor_name(name, part) for part, tensor in parts.items()):
        raise FormatError(path, name, "parts named array_part", ascii(parts)[:80], None)
    if type(in_axis) is not int or in_axis not in (0, 1):
        raise FormatError(path, name, "in_axis 0 or 1", ascii(in_axis)[:80], None)
    return ArrayRecord(scheme, tuple(shape), parts, in_axis, _notes(record))


def _notes(record: dict[str, Any]) -> dict[str, Json]:
    return {key: value for key, value in record.items() if key not in RESERVED}


def _digests(name: str, table: object, path: str) -> dict[str, str]:
    if isinstance(table, dict) and all(
        isinstance(digest, str) and HEX_DIGEST.fullmatch(digest) for digest in table.values()
    ):
        return table
    raise FormatError(path, name, "SHA-256 digests in hexadecimal", ascii(table)[:80], None)
