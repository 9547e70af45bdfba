"""What `torch.save` writes about its tensors: a pickle, read by a machine that can build containers and nothing else.

A pickle is a program for a stack machine, and Python's own machine may call whatever the file names. This one is
ours: it knows the instructions that put numbers, texts and containers together, and calls one of the few functions
of `KNOWN`, all of which are in this file. Any other instruction or name ends the reading. Python's `pickle` is not
used at all: its C machine sizes its memo, and byte strings, by numbers in the file.

Instructions: Lib/pickletools.py of CPython. The calls: torch/_utils.py and torch/serialization.py of PyTorch 2.13.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pumice.checkpoint.header import DIMENSIONS_CAP
from pumice.checkpoint.json_text import is_whole
from pumice.checkpoint.strided import Strided
from pumice.errors import FormatError

PICKLE_CAP = 64_000_000  # bytes; 1,000 tensors take 0.2 MB
STEPS_CAP = 5_000_000  # instructions; a tensor takes about 40


@dataclass(frozen=True)
class Kind:
    """A dtype, or the class of a storage; None for a storage of bytes."""

    dtype: str | None


@dataclass(frozen=True)
class Storage:
    """A run of items in a file of its own, `data/<key>`."""

    kind: Kind
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its storage."""

    storage: Storage
    place: Strided


class Refused(Exception):
    """A call that makes no sense: what was expected, and what was there."""


def read_torch_pickle(data: bytes | memoryview, path: str) -> Any:
    """The object that was saved: containers, texts, numbers and `Tensor`s.

    Raises
    ------
    FormatError
        A reference to code, an instruction that only code needs, or a broken program.

    Examples
    --------
    >>> import pickle
    >>> read_torch_pickle(pickle.dumps({"epoch": 3, "loss": [0.5]}, protocol=2), "model.pt")
    {'epoch': 3, 'loss': [0.5]}
    >>> read_torch_pickle(pickle.dumps(print, protocol=2), "model.pt")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    pumice.errors.FormatError: model.pt: expected ..., got a reference to code, '__builtin__.print' (refused, ...)
    """
    if len(data) > PICKLE_CAP:
        raise FormatError(path, None, f"a pickle of at most {PICKLE_CAP} bytes", f"{len(data)} bytes", None)
    machine = _Machine(bytes(data), path)
    try:
        return machine.run()
    except Refused as error:
        rule, got = error.args
        raise machine.error(rule, got) from error
    except (IndexError, KeyError, struct.error) as error:
        raise machine.error("a whole pickle", "one that is cut or breaks its own rules") from error


def _strided(
    storage: object, offset: object, shape: object, strides: object, dtype: str | None, metadata: object
) -> Tensor:
    """What the functions that rebuild tensors have in common."""
    if not isinstance(storage, Storage):
        raise Refused("a storage", type(storage).__name__)
    if metadata:
        raise Refused("a tensor without flags", "one that is conjugated or negated")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides):
        raise Refused("a stride for each axis", f"{_brief(shape)} and {_brief(strides)}")
    numbers = (*shape, *strides, offset)
    if len(shape) > DIMENSIONS_CAP or not all(map(is_whole, numbers)) or not isinstance(offset, int):
        rule = f"at most {DIMENSIONS_CAP} axes, and sizes, strides and an offset in [0, 2^48]"
        raise Refused(rule, ", ".join(map(_brief, numbers[:200]))[:80])
    if dtype is None:
        raise Refused("a dtype", "none")
    return Tensor(storage, Strided(dtype, shape, strides, offset))


def _tensor(storage: object, offset: object, shape: object, strides: object, *rest: object) -> Tensor:
    dtype = storage.kind.dtype if isinstance(storage, Storage) else None
    return _strided(storage, offset, shape, strides, dtype, rest[2] if len(rest) > 2 else None)


def _tensor_of_bytes(storage: object, offset: object, shape: object, strides: object, *rest: object) -> Tensor:
    kind = rest[2] if len(rest) > 2 else None
    dtype = kind.dtype if isinstance(kind, Kind) else None
    return _strided(storage, offset, shape, strides, dtype, rest[3] if len(rest) > 3 else None)


def _parameter(data: object, *_: object) -> object:
    return data


def _ordered_dict(pairs: object = ()) -> dict[Any, Any]:
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise Refused("pairs of keys and values", type(pairs).__name__)
    return {_key(key): value for key, value in pairs}


def _sequence(kind: type) -> Callable[..., Any]:
    def make(items: object = ()) -> Any:
        if not isinstance(items, list | tuple):
            raise Refused("a list or tuple", type(items).__name__)
        return kind(items)

    return make


def _encoded(text: object, *_: object) -> bytes:
    """How bytes are written before protocol 3."""
    if not isinstance(text, str):
        raise Refused("text", type(text).__name__)
    return text.encode("latin-1", "replace")


def _device(*name: object) -> tuple[object, ...]:
    return name


def _key(key: object) -> object:
    """A key of a dict. No tuples: a nest of them is hashed recursively, which ends the process; and no integers of
    more than 64 bits, any number of which can be made to collide."""
    if not isinstance(key, str | float | bytes) and not (isinstance(key, int) and -(1 << 63) <= key < 1 << 63):
        raise Refused("keys that are text or numbers", _brief(key))
    return key


def _brief(value: object) -> str:
    """For messages; a container by its kind alone, since one of few bytes may print as any number of them."""
    return ascii(value)[:80] if value is None or isinstance(value, str | int | float) else type(value).__name__


_STORAGES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32", "Short": "I16",
    "Char": "I8", "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64",
}  # fmt: skip
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64", "bool": "BOOL",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip

KNOWN: dict[str, Kind | Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.storage.UntypedStorage": Kind(None),
    "torch.Size": _sequence(tuple),
    "torch.device": _device,
    "collections.OrderedDict": _ordered_dict,
    "__builtin__.set": _sequence(list),  # members need not be told apart here
    "builtins.set": _sequence(list),
    "_codecs.encode": _encoded,
    **{f"torch.{name}Storage": Kind(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": Kind(dtype) for name, dtype in _DTYPES.items()},
}


class _Machine:
    """The stack, the stacks that marks have put aside, and the memo: a dict, so that its numbers cost nothing."""

    def __init__(self, data: bytes, path: str) -> None:
        self._data, self._path, self._at, self._copied = data, path, 0, 0
        self._stack: list[Any] = []
        self._aside: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(STEPS_CAP):
            code = self._take(1)[0]
            if code == STOP:
                return self._stack.pop()
            step = STEPS.get(code)
            if step is None:
                raise self.error(
                    "instructions that build containers", f"{chr(code)!a} (0x{code:02x}) at byte {self._at - 1}"
                )
            step(self)
        raise self.error(f"at most {STEPS_CAP} instructions", "more")

    def error(self, rule: str, got: str, hint: str | None = None) -> FormatError:
        return FormatError(self._path, None, rule, got, hint)

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise IndexError
        self._at, taken = end, self._data[self._at : end]
        return taken

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        items, self._stack = self._stack, self._aside.pop()
        return items

    def skip(self, count: int) -> None:
        self._take(count)

    def mark(self) -> None:
        self._aside.append(self._stack)
        self._stack = []

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_number(self, form: str) -> None:
        self.push(self._number(form))

    def push_long(self) -> None:
        self.push(int.from_bytes(self._take(self._take(1)[0]), "little", signed=True))

    def push_text(self, form: str) -> None:
        try:
            self.push(self._take(self._number(form)).decode())
        except UnicodeDecodeError as error:
            raise self.error("text in UTF-8", f"other bytes before {self._at}") from error

    def push_bytes(self, form: str) -> None:
        self.push(self._take(self._number(form)))

    def pop(self) -> None:
        self._stack.pop()

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def tuple_of_marked(self) -> None:
        self.push(tuple(self._marked()))

    def append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise Refused("a list to append to", type(target).__name__)
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise Refused("keys and values for a dict", f"{len(items)} items for {type(target).__name__}")
        target.update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def pop_two(self) -> list[Any]:
        value, key = self._stack.pop(), self._stack.pop()
        return [key, value]

    def find_line(self) -> None:
        lines = []
        for _ in range(2):
            end = self._data.find(b"\n", self._at)
            if end < 0:
                raise IndexError
            lines.append(self._take(end + 1 - self._at)[:-1].decode("utf-8", "replace"))
        self._find(*lines)

    def find_pushed(self) -> None:
        self._find(*self.pop_two())

    def _find(self, module: object, name: object) -> None:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "?"
        if full not in KNOWN:
            hint = "refused, since nothing in a file is run; save the state_dict() alone, or as safetensors"
            raise self.error(
                "dense tensors, texts, numbers and containers", f"a reference to code, {full[:200]!a}", hint
            )
        self.push(KNOWN[full])

    def call(self) -> None:
        function, arguments = self.pop_two()
        if not callable(function) or not isinstance(arguments, tuple):
            raise Refused("a call of a known function", f"one of {type(function).__name__}")
        self._copied += sum(len(a) for a in arguments if isinstance(a, str | list | tuple))
        if self._copied > STEPS_CAP:
            raise Refused(f"at most {STEPS_CAP} items that calls copy", "more")
        try:
            self.push(function(*arguments))
        except TypeError as error:
            raise Refused(f"the arguments of {function.__name__.strip('_')}", str(error)[:200]) from error

    def build(self) -> None:
        """Attributes: those of an OrderedDict are notes (`_metadata`, versions of modules); nothing else has any."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict):
            raise Refused("attributes of an OrderedDict only", f"those of {type(self._stack[-1]).__name__}")

    def find_storage(self) -> None:
        found = self._stack.pop()
        if not isinstance(found, tuple) or len(found) != 5 or found[0] != "storage":
            raise Refused("a reference to a storage", _brief(found))
        _, kind, key, _, count = found
        if not isinstance(kind, Kind) or not isinstance(key, str) or not is_whole(count):
            raise Refused("a storage with dtype, key and size", ", ".join(map(_brief, (kind, key, count))))
        self.push(Storage(kind, key, count))

    def remember(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def recall(self, place: int) -> None:
        self.push(self._memo[place])


STOP = ord(".")
STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: lambda m: m.skip(1),  # PROTO
    0x95: lambda m: m.skip(8),  # FRAME
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push_number("<i"),
    ord("K"): lambda m: m.push_number("<B"),
    ord("M"): lambda m: m.push_number("<H"),
    ord("G"): lambda m: m.push_number(">d"),
    0x8A: _Machine.push_long,
    ord("X"): lambda m: m.push_text("<I"),
    0x8C: lambda m: m.push_text("<B"),
    ord("B"): lambda m: m.push_bytes("<I"),
    ord("C"): lambda m: m.push_bytes("<B"),
    ord("]"): lambda m: m.push([]),
    0x8F: lambda m: m.push([]),  # EMPTY_SET
    ord("}"): lambda m: m.push({}),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("t"): _Machine.tuple_of_marked,
    ord("a"): lambda m: m.append([m._stack.pop()]),
    ord("e"): lambda m: m.append(m._marked()),
    0x90: lambda m: m.append(m._marked()),  # ADDITEMS
    ord("s"): lambda m: m.set_items(m.pop_two()),
    ord("u"): lambda m: m.set_items(m._marked()),
    ord("c"): _Machine.find_line,
    0x93: _Machine.find_pushed,
    ord("R"): _Machine.call,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.find_storage,
    ord("q"): lambda m: m.remember(m._number("<B")),
    ord("r"): lambda m: m.remember(m._number("<I")),
    0x94: lambda m: m.remember(len(m._memo)),  # MEMOIZE
    ord("h"): lambda m: m.recall(m._number("<B")),
    ord("j"): lambda m: m.recall(m._number("<I")),
}
