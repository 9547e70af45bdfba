"""Reading .npy and .npz: NumPy's arrays, one a file or many in a ZIP archive. No object arrays: those are pickles.

    | \\x93NUMPY | version: 2 bytes | length: u16, or u32 from version 2 | a dict as Python writes it, padded | items |

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. What is stored is mapped, in .npz too.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint import archive
from pumice.checkpoint.archive import Archive
from pumice.checkpoint.base import refuse_non_weights, register
from pumice.checkpoint.container import Container, Entry, Shard
from pumice.checkpoint.container_reader import ContainerReader
from pumice.checkpoint.dtypes import dtype_name
from pumice.checkpoint.header import DIMENSIONS_CAP
from pumice.checkpoint.json_text import NUMBER_CAP
from pumice.checkpoint.locations import Location
from pumice.checkpoint.source import Buffer, Source
from pumice.checkpoint.strided import Strided, bytes_of, row_major
from pumice.errors import FormatError

MAGIC = b"\x93NUMPY"
HEAD = 1 << 14  # bytes in which a header ends; NumPy's own limit is 10,000
DESCR = r"""['"]descr['"]\s*:\s*['"]([^'"]{1,20})['"]"""
ORDER = r"""['"]fortran_order['"]\s*:\s*(True|False)"""
SHAPE = r"""['"]shape['"]\s*:\s*\(([\d\s,L]*)\)"""
HEADER = re.compile(rf"\{{\s*(?:(?:{DESCR}|{ORDER}|{SHAPE})\s*(?:,\s*)?){{3}}\}}\s*")
STRUCTURED = re.compile(r"""['"]descr['"]\s*:\s*\[""")


@dataclass(frozen=True)
class NumpyShard(Shard):
    """One file: where the items of each array begin, in the file or in its member of the archive."""

    source: Source
    archive: Archive | None
    places: Mapping[str, tuple[Strided, int]]

    @classmethod
    def open(cls, origin: Location | Buffer, *, io: str = "mmap") -> Self:
        source = Source(origin, io=io)
        head = bytes(source.view(0, min(HEAD, source.size)))
        refuse_non_weights(head, source.name)
        members: Archive | None = None
        metadata: dict[str, str] = {}
        if head.startswith(MAGIC):
            stem = "array" if isinstance(origin, Buffer) else origin.stem
            places = {stem: read_npy_header(head, source.size, source.name, None)}
        else:
            members = Archive(source)
            places, metadata = _members(members)
        path = None if isinstance(origin, Buffer) else origin
        entries = {name: Entry(place.dtype, place.shape, place.nbytes) for name, (place, _) in places.items()}
        return cls(source.name, path, entries, metadata, source, members, places)

    def view(self, name: str, start: int, stop: int) -> memoryview:
        """Bytes [start, stop) of the items of an array as the file has them."""
        _, begin = self.places[name]
        if self.archive is None:
            return self.source.view(begin + start, begin + stop)
        return self.archive.view(f"{name}.npy", begin + start, begin + stop)


class NumpyContainer(Container):
    """A .npy or .npz file, or bytes."""

    format = "NumPy"
    shards: tuple[NumpyShard, ...]

    @classmethod
    def knows(cls, head: bytes) -> bool:
        zipped = head.startswith(archive.MAGIC) and archive.first_name(head).endswith(b".npy")
        return head.startswith((MAGIC, archive.END)) or zipped  # an end alone: numpy.savez of nothing

    def __init__(self, path: Location | Buffer, *, io: str = "mmap") -> None:
        self.shards = (NumpyShard.open(path, io=io),)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        self.entry(name)
        shard = self.shards[0]
        place = shard.places[name][0]
        part = place if stop is None else place.rows(start, stop)
        try:
            return part.read(partial(shard.view, name))
        except FormatError as error:
            raise FormatError(shard.name, name, error.rule, error.got, error.hint) from error

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        entry = self.entry(name)
        return bytes_of(partial(self.read, name), entry.shape, entry.nbytes, start, stop)

    def check(self) -> Iterator[tuple[str | None, FormatError | None]]:
        for shard in self.shards:
            if shard.archive is not None:
                yield from shard.archive.check({name: f"{name}.npy" for name in shard.places})

    def close(self) -> None:
        for shard in self.shards:
            (shard.source if shard.archive is None else shard.archive).close()


@register
class NumpyReader(ContainerReader):
    """Reads .npy and .npz, Fortran order and big-endian too; a .npy's one array is named after the file.

    Parameters
    ----------
    path
        A file, or bytes.
    io
        "mmap" or "read".

    Raises
    ------
    FormatError
        Object arrays, dtypes that safetensors lacks, shapes larger than the file, archives that are encrypted or grow
        more than 200 times.
    """

    format = "NumPy"
    container_type = NumpyContainer
    container: NumpyContainer


def _members(members: Archive) -> tuple[dict[str, tuple[Strided, int]], dict[str, str]]:
    """The arrays of an archive, and the label of one of SciPy's."""
    path = members.source.name
    places: dict[str, tuple[Strided, int]] = {}
    metadata: dict[str, str] = {}
    scipy = {"format.npy", "shape.npy"} <= members.members.keys()
    for file, member in members.members.items():
        name = file.removesuffix(".npy")
        if name == file:
            raise FormatError(path, ascii(file)[1:-1], "members that end in .npy", "another", None)
        if scipy and name == "format":
            metadata["format"] = f"scipy {_label(members.head(file, HEAD), path)}"
        elif not scipy or name != "_is_array":  # SciPy's mark of sparse arrays, as opposed to matrices
            places[name] = read_npy_header(members.head(file, HEAD), member.size, path, name)
    return places, metadata


def read_npy_header(head: bytes, size: int, path: str, name: str | None) -> tuple[Strided, int]:
    """The array whose file of `size` bytes starts with `head`, and where its items begin."""
    begin, descr, fortran, shape = _fields(head, path, name)
    dtype = _dtype(descr, path, name)
    if len(shape) > DIMENSIONS_CAP or any(length > NUMBER_CAP for length in shape):
        raise FormatError(path, name, f"at most {DIMENSIONS_CAP} axes of at most 2^48", f"{shape}"[:80], None)
    nbytes = math.prod(shape) * dtype.itemsize
    if begin + nbytes != size:
        rule = f"{nbytes} bytes of {dtype.str} {shape}"[:200]
        raise FormatError(path, name, rule, f"{size - begin}", "a truncated copy?")
    strides = row_major(shape[::-1])[::-1] if fortran else row_major(shape)
    return Strided(dtype_name(dtype), shape, strides, swapped=dtype.str[0] == ">"), begin


def _fields(head: bytes, path: str, name: str | None) -> tuple[int, str, bool, tuple[int, ...]]:
    """Where the items begin, and what the header says. No eval, in no form: it is a dict of three known fields."""
    if not head.startswith(MAGIC) or len(head) < 12:
        raise FormatError(path, name, "an array of NumPy", f"{len(head)} bytes that start {head[:8]!r}", None)
    if head[6] not in (1, 2, 3):
        raise FormatError(path, name, "version 1, 2 or 3 of the header", f"{head[6]}.{head[7]}", "a newer NumPy's?")
    form = struct.Struct("<H" if head[6] == 1 else "<I")
    text_at = 8 + form.size
    begin = text_at + form.unpack_from(head, 8)[0]
    if begin > len(head):
        rule = f"a header of at most {len(head) - text_at} bytes"
        raise FormatError(path, name, rule, f"{begin - text_at}", "a truncated copy?")
    text = head[text_at:begin].decode("utf-8", "replace")
    if STRUCTURED.search(text):
        raise FormatError(path, name, "one number an item", "a structured dtype", None)
    descr, order, shape = re.search(DESCR, text), re.search(ORDER, text), re.search(SHAPE, text)
    if not HEADER.fullmatch(text) or not (descr and order and shape):
        raise FormatError(path, name, "descr, fortran_order and shape", ascii(text.strip())[:120], None)
    numbers = [number.strip().rstrip("L") for number in shape[1].split(",") if number.strip()]  # Python 2 wrote 3L
    if not all(number.isdecimal() and len(number) < 20 for number in numbers):
        raise FormatError(path, name, "a shape of integers", ascii(shape[1])[:80], None)
    return begin, descr[1], order[1] == "True", tuple(map(int, numbers))


def _dtype(descr: str, path: str, name: str | None) -> np.dtype[Any]:
    if descr.lstrip("<>|=") == "O":
        why = "refused: such arrays are pickles, which could run code"
        raise FormatError(path, name, "numbers", "an object array", why)
    if not re.fullmatch(r"[<>|=]?[biufc]\d{1,2}", descr):
        hint = "NumPy does not say which dtype a void is: save it as float32" if "V" in descr else None
        raise FormatError(path, name, "numbers", f"dtype {descr!a}", hint)
    try:
        dtype = np.dtype(descr)
        dtype_name(dtype)
    except TypeError as error:
        raise FormatError(path, name, "a dtype that safetensors has", f"{descr!a}", None) from error
    return dtype


def _label(head: bytes, path: str) -> str:
    """The text of SciPy's `format`, a 0-d array of three letters."""
    begin, descr, _, shape = _fields(head, path, "format")
    if shape or not re.fullmatch(r"\|S3|<U3", descr):
        raise FormatError(path, "format", "three letters", f"dtype {descr} of shape {shape}"[:80], None)
    text = head[begin:].decode("utf-32-le" if "U" in descr else "latin-1", "replace")
    return ascii(text)[1:-1][:20]
