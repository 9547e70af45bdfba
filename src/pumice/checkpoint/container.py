"""Containers: how the bytes of a file hold named tensors. What tensors mean together, conventions say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint.dtypes import DTYPES
from pumice.checkpoint.json_text import parse_json
from pumice.checkpoint.locations import Location
from pumice.checkpoint.source import Buffer, Source
from pumice.errors import FormatError, near

CONFIGS = {  # file beside the weights -> its keys that hold the quantization's settings; (): the whole file does
    "config.json": ("quantization_config", "compression_config"),
    "quantize_config.json": (),
    "quant_config.json": (),
}
CONFIG_CAP = 16 << 20  # bytes; they are kilobytes


@dataclass(frozen=True)
class Entry:
    """One tensor of a container: its dtype by its safetensors name, its shape, and its bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """One file of a container (most have one): `name` is for messages, `path` None for one in memory."""

    name: str
    path: Location | None
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


class Container(ABC):
    """An open file, or several that belong together, of one format. Opening it reads headers only.

    A subclass sets `shards` and gives `knows` and `raw`; the rest follows. No tensor is in two shards.
    """

    format: ClassVar[str]
    shards: tuple[Shard, ...]

    @classmethod
    @abstractmethod
    def knows(cls, head: bytes) -> bool:
        """Whether a file that begins so is of this format; see `Reader.knows`."""

    @classmethod
    def holds(cls, folder: Location) -> bool:
        """Whether the folder has weights of this format."""
        return False

    @abstractmethod
    def __init__(self, path: Location | Buffer, *, io: str = "mmap") -> None: ...

    @abstractmethod
    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Bytes [start, stop) of a tensor in C order, read-only; a view of the mapped file where that can be."""

    @abstractmethod
    def close(self) -> None:
        """Release the files. Arrays that were handed out stay valid."""

    def check(self) -> Iterator[tuple[str | None, FormatError | None]]:
        """Compare the bytes with the checksums that the format itself has: the tensors that have one (None for what is
        no tensor), each with what is wrong."""
        return iter(())

    @property
    def files(self) -> tuple[Location, ...]:
        """The files that hold the tensors; empty for one read from memory."""
        return tuple(shard.path for shard in self.shards if shard.path is not None)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The free text entries of all files."""
        return {key: text for shard in self.shards for key, text in shard.metadata.items()}

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """All tensors."""
        return {name: entry for shard in self.shards for name, entry in shard.entries.items()}

    def entry(self, name: str) -> Entry:
        """One tensor; KeyError for an unknown name."""
        if name not in self.entries:
            raise KeyError(f"name: expected a tensor of the checkpoint, got {name!r}{near(name, self.entries)}")
        return self.entries[name]

    def where(self, name: str) -> str:
        """The file that holds a tensor, for messages."""
        return self._shard_of[name].name

    def files_of(self, names: Iterable[str]) -> tuple[Location, ...]:
        """The files that hold some tensors, in the order of `files`."""
        paths = {self._shard_of[name].path for name in names}
        return tuple(file for file in self.files if file in paths)

    @cached_property
    def _shard_of(self) -> Mapping[str, Shard]:
        return {name: shard for shard in self.shards for name in shard.entries}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) of a tensor as stored (BF16 and F8 as uint16 and uint8 patterns), read-only; views
        where that can be. A 0-d tensor counts as one row, and stays 0-d without `stop`."""
        entry = self.entry(name)
        dtype = DTYPES[entry.dtype].numpy
        if dtype is None:
            rule = "a dtype of whole bytes"
            hint = "no specification orders its bits: use raw(name)"
            raise FormatError(self.where(name), name, rule, entry.dtype, hint)
        shape = entry.shape
        if stop is None:
            view = self.raw(name)
        else:
            row = entry.nbytes // max(shape[0] if shape else 1, 1)
            view, shape = self.raw(name, start * row, stop * row), (stop - start, *shape[1:])
        flat = np.frombuffer(view, np.uint8)
        if entry.dtype == "BOOL" and flat.size and flat.max() > 1:
            raise FormatError(self.where(name), name, "BOOL bytes of 0 or 1", str(flat.max()), None)
        if flat.ctypes.data % dtype.itemsize:
            flat = flat.copy()
            flat.setflags(write=False)
        return flat.view(dtype).reshape(shape)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The settings of a quantization that the file beside the weights holds, such as the `quantization_config` of
        config.json; {} if there are none. Nobody has checked them."""
        if not self.files:
            return {}
        for file, keys in CONFIGS.items():
            path = self.files[0].parent / file
            if not path.is_file():
                continue
            table = _read_config(path)
            if not keys:
                return table
            for key in keys:
                if isinstance(table.get(key), dict):
                    return {**table[key]}
        return {}


def _read_config(path: Location) -> dict[str, Any]:
    source = Source(path, io="read")
    if source.size > CONFIG_CAP:
        raise FormatError(str(path), None, f"at most {CONFIG_CAP} bytes", f"{source.size} bytes", None)
    table = parse_json(bytes(source.view(0, source.size)), str(path), floats=True, constants=True)
    source.close()
    return table
