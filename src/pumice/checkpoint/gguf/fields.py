"""The keys and values of a GGUF file, each read when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pumice.errors import FormatError


@dataclass(frozen=True)
class Kind:
    """How a value is written. `numpy` is None for texts and arrays, which have no fixed size."""

    name: str
    numpy: np.dtype[Any] | None = None

    @property
    def nbytes(self) -> int:
        assert self.numpy is not None
        return self.numpy.itemsize


KINDS = {
    number: Kind(name, np.dtype(code) if code else None)
    for number, (name, code) in enumerate(
        {
            "uint8": "u1", "int8": "i1", "uint16": "<u2", "int16": "<i2", "uint32": "<u4", "int32": "<i4",
            "float32": "<f4", "bool": "u1", "text": "", "array": "", "uint64": "<u8", "int64": "<i8", "float64": "<f8",
        }.items()
    )
}  # fmt: skip
UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9


@dataclass(frozen=True)
class Field:
    """Where a value is, in bytes of the file, and where its key begins; `count` is None unless it is an array."""

    start: int
    kind: int
    begin: int
    end: int
    count: int | None = None

    @property
    def kind_name(self) -> str:
        name = KINDS[self.kind].name
        return name if self.count is None else f"{self.count} x {name}"


class Fields(Mapping[str, Any]):
    """Key -> int, float, bool or str; of an array, a read-only ndarray of numbers or a tuple of str.

    Values are kept once read. A text that is no UTF-8, or a bool other than 0 and 1, raises FormatError then.
    """

    def __init__(self, fields: Mapping[str, Field], head: memoryview, path: str) -> None:
        self._fields, self._head, self._path = fields, head, path
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            self._values[key] = self._read(key, self._fields[key])
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, key: object) -> bool:
        return key in self._fields

    def raw(self, key: str) -> memoryview:
        """The bytes of a key and its value, as the file has them."""
        field = self._fields[key]
        return self._head[field.start : field.end]

    def texts(self) -> dict[str, str]:
        """All that are no arrays, as text: "llama", "32", "1e-05", "true"."""
        return {key: _as_text(self[key], field) for key, field in self._fields.items() if field.count is None}

    def _read(self, key: str, field: Field) -> Any:
        if field.kind == STRING:
            if field.count is None:
                return self._text(key, field.begin, field.end)
            return self._array_of_texts(key, field)
        dtype = KINDS[field.kind].numpy
        assert dtype is not None  # only texts and arrays have none
        values = np.frombuffer(self._head[field.begin : field.end], dtype).astype(dtype.newbyteorder("="))
        if field.kind == BOOL:
            if values.size and values.max() > 1:
                raise FormatError(self._path, key, "a bool of 0 or 1", int(values.max()))
            values = values.astype(bool)
        if field.count is None:
            return values[0].item()
        values.setflags(write=False)
        return values

    def _text(self, key: str, begin: int, end: int) -> str:
        try:
            return str(self._head[begin:end], "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(self._path, key, "UTF-8 text", f"byte {begin + error.start} is not") from error

    def _array_of_texts(self, key: str, field: Field) -> tuple[str, ...]:
        texts, at = [], field.begin
        for _ in range(field.count or 0):
            begin = at + 8
            at = begin + int.from_bytes(self._head[at:begin], "little")
            texts.append(self._text(key, begin, at))
        return tuple(texts)


def _as_text(value: Any, field: Field) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(np.float32(value)) if KINDS[field.kind].name == "float32" else str(value)
