"""The Reader over any container: what a convention claims is one array, every other tensor is one itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint.base import Json, Reader, TensorInfo
from pumice.checkpoint.container import Container
from pumice.checkpoint.conventions import CONVENTIONS, Found
from pumice.checkpoint.dtypes import float32_of, rows_of, widen
from pumice.checkpoint.locations import Location
from pumice.checkpoint.source import Buffer
from pumice.errors import FormatError
from pumice.layouts import CompactArray


class ContainerReader(Reader):
    """Reads the arrays of a container.

    Every convention is asked once, on opening. What it finds becomes one array, and the tensors that this consists of
    are not listed. A subclass names its `container_type`.
    """

    container_type: ClassVar[type[Container]]

    @classmethod
    def knows(cls, head: bytes) -> bool:
        return cls.container_type.knows(head)

    @classmethod
    def holds(cls, folder: Location) -> bool:
        return cls.container_type.holds(folder)

    def __init__(self, path: Location | Buffer, *, io: str = "mmap") -> None:
        self.container = self.container_type(path, io=io)
        self._found: dict[str, Found] = {}
        self._conventions: Counter[str] = Counter()
        self._notes: dict[str, Mapping[str, Json]] = {}
        free = dict.fromkeys(self.container.entries)
        for convention in CONVENTIONS:
            claimed: set[str] = set()
            for found in convention.find(self.container, frozenset(free)):
                twice = found.name in self._found or (
                    found.name in self.container.entries and found.name not in found.tensors
                )
                if twice or claimed & set(found.tensors):
                    where = self.container.where(found.tensors[0])
                    raise FormatError(where, found.name, "one array of this name and tensors", "two", None)
                self._found[found.name] = found
                self._conventions[convention.name] += 1
                claimed.update(found.tensors)
            plain = convention.plain(self.container)
            self._notes.update(plain)
            for name in claimed | plain.keys():
                free.pop(name, None)
        hidden = {tensor for found in self._found.values() for tensor in found.tensors}
        self._names = tuple(sorted((self.container.entries.keys() - hidden) | self._found.keys()))
        self._last: tuple[str, Any] = "", None  # of the arrays that were found, the one whose rows were read last

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.container.metadata

    @property
    def files(self) -> tuple[Location, ...]:
        return self.container.files

    @property
    def conventions(self) -> Mapping[str, int]:
        return dict(self._conventions)

    def names(self) -> tuple[str, ...]:
        return self._names

    def info(self, name: str) -> TensorInfo:
        if name in self._found:
            return self._found[name].info
        entry = self.container.entry(name)
        return TensorInfo(entry.shape, entry.dtype, entry.nbytes, notes=self._notes.get(name, {}))

    def is_tensor(self, name: str) -> bool:
        return name not in self._found

    def tensors(self, name: str) -> tuple[str, ...]:
        return self._found[name].tensors if name in self._found else (name,)

    def array(self, name: str) -> Any:
        value = self._whole(name)
        return value if isinstance(value, CompactArray) else widen(value, self.info(name).dtype)

    def _whole(self, name: str) -> CompactArray | NDArray[Any]:
        """The whole array; of plain ones what is stored, BF16 and F8 as patterns."""
        if name not in self._found:
            return self.container.read(name)
        found = self._found[name]
        try:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # infinities and NaNs are values
                return found.read()
        except FormatError as error:
            if error.path is not None:
                raise
            where = self.container.where(found.tensors[0])
            raise FormatError(where, name, error.rule, error.got, error.hint) from error

    def files_of(self, name: str) -> tuple[Location, ...]:
        return self.container.files_of(self.tensors(name))

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        if name not in self._found or name in self.container.entries:
            return self.container.raw(name, start, stop)
        value = self._whole(name)
        if isinstance(value, CompactArray):
            raise KeyError(f"name: expected a tensor, got {name!r}, which consists of several: see its parts")
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8)[start:stop].data.toreadonly()

    def stored(self, name: str, start: int, stop: int) -> NDArray[Any] | None:
        return None if name in self._found else self.container.read(name, start, stop)

    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        if name not in self._found:
            return rows_of(self.container.read(name, start, stop), self.container.entry(name).dtype)
        last = self._last  # one reference: threads may exchange it meanwhile
        if last[0] != name:
            self._last = last = "", None  # first let go of the one before
            self._last = last = name, self.array(name)
        rows: CompactArray | NDArray[Any] = last[1]
        if isinstance(rows, CompactArray):
            return rows.decode_rows(start, stop).reshape(stop - start, *rows.shape[1:])
        values = rows[start:stop] if rows.ndim else rows[None]
        return float32_of(values) if values.dtype == np.float16 else values

    def close(self) -> None:
        self._last = "", None
        self.container.close()
