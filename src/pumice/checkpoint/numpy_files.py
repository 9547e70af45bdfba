"""Reading .npy and .npz: NumPy's arrays, one a file or many in a ZIP archive. No object arrays: those are pickles.

    | \\x93NUMPY | version: 2 bytes | length: u16, or u32 from version 2 | a dict as Python writes it, padded | items |

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. What is stored is mapped, in .npz too.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from pumice.checkpoint.source import Buffer, Source
from pumice.checkpoint.strided import Strided, row_major
from pumice.errors import FormatError

MAGIC = b"\x93NUMPY"
HEAD = 64 << 10  # bytes in which a header ends; NumPy's own limit is 10,000
FIELD = (
    r"""['"](?:descr['"]\s*:\s*(?P<descr>['"][^'"]{1,20}['"]|\[.*\])"""
    r"""|fortran_order['"]\s*:\s*(?P<order>True|False)|shape['"]\s*:\s*\((?P<shape>[\d\s,L]*)\))"""
)
FIELDS = re.compile(FIELD)
HEADER = re.compile(r"\{\s*(?:" + re.sub(r"\?P<[a-z]+>", "?:", FIELD) + r"\s*,?\s*){3}\}\s*")
LABELS = {"format", "_is_array"}  # of SciPy's archives: text and a mark, no tensors


class NumpyShard(Shard):
    """One file: its arrays by name, and where their bytes are."""

    def __init__(self, origin: Path | Buffer, *, io: str = "mmap") -> None:
        self.source = Source(origin, io=io)
        size, path = self.source.size, self.source.name
        head = bytes(self.source.view(0, min(HEAD, size)))
        refuse_non_weights(head, path)
        self.archive = None if head.startswith(MAGIC) else Archive(self.source)
        self.places: dict[str, tuple[Strided, int]] = {}
        metadata: dict[str, str] = {}
        if self.archive is None:
            self.places[origin.stem if isinstance(origin, Path) else "array"] = read_npy_header(head, size, path, None)
        else:
            metadata = self._members(self.archive)
        entries = {name: Entry(place.dtype, place.shape, place.nbytes) for name, (place, _) in self.places.items()}
        super().__init__(path, origin if isinstance(origin, Path) else None, entries, metadata)

    def _members(self, members: Archive) -> Mapping[str, str]:
        """Finds the arrays of an archive; returns SciPy's labels, if it has them."""
        labels: dict[str, str] = {}
        scipy = {"format.npy", "shape.npy"} <= members.members.keys()
        for file, member in members.members.items():
            name = file.removesuffix(".npy")
            if name == file:
                raise FormatError(self.source.name, ascii(file)[1:-1], "members that end in .npy", "another", None)
            head = members.head(file, HEAD)
            if scipy and name in LABELS:
                labels[name] = _label(head, self.source.name, name) if name == "format" else ""
            else:
                self.places[name] = read_npy_header(head, member.size, self.source.name, name)
        return {"format": f"scipy {labels['format']}"} if scipy else {}

    def view(self, name: str) -> memoryview:
        """The items of an array as the file has them."""
        place, begin = self.places[name]
        if self.archive is None:
            return self.source.view(begin, begin + place.nbytes)
        return self.archive.view(f"{name}.npy", begin, begin + place.nbytes)


class NumpyContainer(Container):
    """A .npy or .npz file; a folder whose only .npy or .npz file it is; or bytes."""

    format = "NumPy"
    shards: tuple[NumpyShard, ...]

    @classmethod
    def matches(cls, path: Path) -> bool:
        if path.is_dir():
            return bool(_weights_files(path))
        return path.is_file() and _is_numpy(path)

    def __init__(self, path: Path | Buffer, *, io: str = "mmap") -> None:
        if isinstance(path, Path) and path.is_dir():
            files = _weights_files(path)
            if len(files) != 1:
                got = ", ".join(file.name for file in files[:8])
                raise FormatError(str(path), None, "one weights file", got, "give the path of one file")
            path = files[0]
        self.shards = (NumpyShard(path, io=io),)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        self.entry(name)
        shard = self.shards[0]
        try:
            return shard.places[name][0].read(shard.view(name), start, stop)
        except FormatError as error:
            raise FormatError(shard.name, name, error.rule, error.got, error.hint) from error

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        return np.ascontiguousarray(self.read(name)).reshape(-1).view(np.uint8).data[start:stop]

    def close(self) -> None:
        for shard in self.shards:
            (shard.source if shard.archive is None else shard.archive).close()


@register
class NumpyReader(ContainerReader):
    """Reads .npy and .npz, Fortran order and big-endian too; a .npy's one array is named after the file.

    Parameters
    ----------
    path
        A file, a folder whose only .npy or .npz it is, or bytes.
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
    found = {kind: value for match in FIELDS.finditer(text) for kind, value in match.groupdict().items() if value}
    shape = re.search(r"shape['\"]\s*:\s*\(\s*\)", text)
    if not HEADER.fullmatch(text) or not {"descr", "order"} <= found.keys() or ("shape" not in found and not shape):
        raise FormatError(path, name, "descr, fortran_order and shape", ascii(text.strip())[:120], None)
    numbers = [number.strip().rstrip("L") for number in found.get("shape", "").split(",") if number.strip()]
    if not all(number.isdecimal() and len(number) < 20 for number in numbers):
        raise FormatError(path, name, "a shape of integers", ascii(found["shape"])[:80], None)
    return begin, found["descr"], found["order"] == "True", tuple(map(int, numbers))


def _dtype(descr: str, path: str, name: str | None) -> np.dtype[Any]:
    if descr.startswith("["):
        raise FormatError(path, name, "one number an item", f"a structured dtype {descr[:80]}", None)
    descr = descr[1:-1]
    if descr.lstrip("<>|=") == "O":
        hint = "refused: such arrays are pickles, which could run code"
        raise FormatError(path, name, "numbers", "an object array", hint)
    if not re.fullmatch(r"[<>|=]?[biufc]\d{1,2}", descr):
        hint = "NumPy does not say which dtype a void is: save it as float32" if "V" in descr else None
        raise FormatError(path, name, "numbers", f"dtype {descr!a}", hint)
    try:
        dtype = np.dtype(descr)
        dtype_name(dtype)
    except TypeError as error:
        raise FormatError(path, name, "a dtype that safetensors has", f"{descr!a}", None) from error
    return dtype


def _label(head: bytes, path: str, name: str) -> str:
    """The text of a 0-d array of text."""
    begin, descr, _, shape = _fields(head, path, name)
    if shape or not re.fullmatch(r"'(\|S3|<U3)'", descr):
        raise FormatError(path, name, "three letters", f"dtype {descr} of shape {shape}"[:80], None)
    text = head[begin:].decode("utf-32-le" if "U" in descr else "latin-1", "replace")
    return ascii(text)[1:-1][:20]


def _is_numpy(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(512)
    return head.startswith(MAGIC) or (head.startswith(archive.MAGIC) and archive.first_name(head).endswith(b".npy"))


def _weights_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.np[yz]") if path.is_file() and _is_numpy(path))
