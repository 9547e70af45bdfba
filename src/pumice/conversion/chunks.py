"""What workers do: a chunk of rows becomes a file. A pure function of the source, the scheme and the chunk, so that
threads, processes and other machines may run it, more than once if need be."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import secrets
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pumice._core import native
from pumice.checkpoint import TensorInfo, load, open_reader
from pumice.checkpoint.base import Reader
from pumice.checkpoint.dtypes import rows_of
from pumice.checkpoint.fingerprint import LEAF, hash_leaves, leaves_from, leaves_of
from pumice.checkpoint.locations import Location, locate, state_of
from pumice.checkpoint.publication import sync_folders, write_all
from pumice.choice import Request, choose, panel_rows
from pumice.errors import FormatError, NonFiniteError, PumiceError, SourceChangedError
from pumice.layouts import LAYOUTS, CompactArray
from pumice.layouts.registry import build
from pumice.ops import compress
from pumice.profile import Profile
from pumice.pruning import prune_and_compress
from pumice.recipe import Treatment, options_for
from pumice.report import Loss
from pumice.scheme import AUTO, Scheme
from pumice.statistics import CalibrationStats, Moments, moments_of
from pumice.values.base import F32, Array

PANEL_BYTES = 4 << 20  # of float32 weights that are encoded at a time: what a second-level cache holds a few of
ALIGNMENT = 64
LOSS = ".loss"  # and a number: beside the parts of a chunk, the energies of its rows that the error is made of
LEAVES = ".leaves"  # what the chunk adds to the fingerprint of the source


File = tuple[str, int, int | str]
"""A file's path, its bytes, and when it was changed (ns), or what a store says of that."""
Rows = Callable[[int, int], Array]
"""Gives rows [start, stop)."""


@dataclass(frozen=True)
class Origin:
    """The source as it was when the plan was made: its files with their sizes and times of change."""

    path: str
    io: str
    files: tuple[File, ...]

    @classmethod
    def of(cls, path: Location, reader: Reader, io: str) -> Origin:
        """The source that a reader has open."""
        return cls(str(path), io, tuple((str(file), *state_of(file)) for file in reader.files))


def check_files(files: Iterable[File]) -> None:
    """Raise SourceChangedError unless all files are as they were."""
    for file, *before in files:
        try:
            now = [*state_of(locate(file))]
        except FileNotFoundError:
            raise SourceChangedError(f"source: expected {file!r} until the end, and it vanished") from None
        if now != before:
            rule = f"source: expected {file!r} to stay as it was"
            raise SourceChangedError(f"{rule}, got a change while it was read (bytes, time: {before}, now {now})")


@dataclass(frozen=True)
class Job:
    """What holds for all weights of a conversion. `stats` is a mapping, or the file that holds it."""

    request: Request
    profile: Profile
    stats: Mapping[str, Moments] | str
    seed: int
    options: Mapping[str, Any]

    def only(self, name: str) -> Job:
        """What one weight needs of it, to be sent with a task."""
        if isinstance(self.stats, str):
            return self
        return replace(self, stats={name: self.stats[name]} if name in self.stats else {})

    def known(self) -> Mapping[str, Moments]:
        """The statistics."""
        return _statistics(self.stats) if isinstance(self.stats, str) else self.stats

    def moments(self, name: str, cols: int) -> Moments | None:
        """Those of the inputs of a weight, if they are known."""
        known = self.known()
        return moments_of(name, name, known, cols) if name in known else None

    def compact(self, name: str, w: F32, choice: Treatment, scale_dtype: Any) -> CompactArray:
        """Rows of a weight, or all of it where the treatment asks for that. Errors name the weight."""
        assert choice.scheme is not None
        if not choice.whole:
            try:
                return compress(w, choice.scheme, scale_dtype=scale_dtype)  # type: ignore[no-any-return]
            except NonFiniteError as error:
                raise NonFiniteError(f"{name}: {error}") from error
        own, known = dict(options_for(choice, self.options)), self.known()
        stats = {name: known[name]} if name in known else None
        if choice.scheme == AUTO:
            own |= {"batch": self.request.batch, "objective": self.request.objective}
            own |= {"max_error": self.request.max_error}
        if choice.prune is None:
            found = compress({name: w}, choice.scheme, method=choice.method, stats=stats, **own)
        else:
            found = prune_and_compress(
                {name: w}, choice.scheme, choice.prune, method=choice.method, stats=stats, seed=self.seed, **own
            )
        return found[name]  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=1)
def _statistics(path: str) -> Mapping[str, Moments]:
    return CalibrationStats.unpack(load(path))


@dataclass(frozen=True)
class Chunk:
    """Rows [start, stop) of a matrix as it will be stored, and what becomes of them; all rows where methods need them.

    `files` are those that hold the tensor; `folder` is where the result goes; `wide` asks for float32 scales, where
    another chunk of the tensor needs them.
    """

    origin: Origin
    files: tuple[File, ...]
    folder: str
    name: str
    info: TensorInfo
    choice: Treatment
    job: Job
    start: int
    stop: int
    key: str
    wide: bool = False
    process: int = 0

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of the rows."""
        shape = self.info.shape if self.choice.in_axis == 1 else self.info.shape[::-1]
        return (self.stop - self.start, *shape[1:])


@dataclass(frozen=True)
class Choosing:
    """A tensor whose scheme is to be chosen."""

    origin: Origin
    name: str
    info: TensorInfo
    in_axis: int
    job: Job


@dataclass(frozen=True)
class Done:
    """A chunk's file: its size and its CRC-32, the scheme and the dtypes of its parts."""

    key: str
    scheme: str
    nbytes: int
    crc: int
    dtypes: Mapping[str, str]


def encode(chunk: Chunk) -> Done:
    """Encode a chunk and write its file, whole or not at all."""
    if (
        chunk.process != os.getpid()
    ):  # a process of its own for each worker: there are as many of them as there are CPUs
        native.set_num_threads(1)
    reader = reader_of(chunk.origin)
    rows, leaves = _source(reader, chunk)
    try:
        scheme, dtypes, parts = _encode(rows, chunk, np.float32 if chunk.wide else None)
    except _WiderScales:
        scheme, dtypes, parts = _encode(rows, chunk, np.float32)
    parts[LEAVES] = [np.frombuffer(leaves, np.uint8)]
    check_files(chunk.files)
    nbytes, crc = _write(Path(chunk.folder) / chunk.key, parts)
    return Done(chunk.key, scheme, nbytes, crc, dtypes)


def choose_scheme(task: Choosing) -> str:
    """Choose a scheme in passes over row panels."""
    reader, shape = reader_of(task.origin), task.info.shape
    stored = shape if task.in_axis == 1 else shape[::-1]
    step, cols = panel_rows(math.prod(stored[1:])), math.prod(stored[1:])

    def panels() -> Iterator[F32]:
        for start in range(0, max(stored[0], 1), step):
            rows = read_rows(reader, task.name, shape, task.in_axis, start, min(start + step, stored[0]))
            with np.errstate(over="ignore"):
                exact = np.ascontiguousarray(rows, np.float32)
            check_finite(task.name, rows, exact, start, task.in_axis)
            yield exact.reshape(len(rows), cols)

    return choose(stored, panels, task.job.request, task.job.profile).scheme


def run(task: Chunk | Choosing) -> Done | str:
    """What executors are given."""
    return encode(task) if isinstance(task, Chunk) else choose_scheme(task)


@functools.lru_cache(maxsize=1)
def _opened(origin: Origin) -> Reader:
    return open_reader(origin.path, io=origin.io)


_opening = threading.Lock()


def reader_of(origin: Origin) -> Reader:
    """The source, opened once in each process."""
    with _opening:
        return _opened(origin)


def forget() -> None:
    """Close what `reader_of` has opened in this process, once nobody reads it."""
    with _opening:
        _opened.cache_clear()


def read_rows(reader: Reader, name: str, shape: tuple[int, ...], in_axis: int, start: int, stop: int) -> Array:
    """Rows [start, stop) of the matrix as it will be stored; of a transposed one, a panel of its columns at a time."""
    if in_axis == 1:
        return reader.rows(name, start, stop)
    if len(shape) != 2:
        raise PumiceError(f"{name}: expected two dimensions for in_axis=0, got shape {shape}")
    step = max(1, PANEL_BYTES // (4 * max(shape[1], 1)))
    pieces = [reader.rows(name, i, min(i + step, shape[0]))[:, start:stop].T for i in range(0, max(shape[0], 1), step)]
    return np.concatenate(pieces, axis=1)


def _source(reader: Reader, chunk: Chunk) -> tuple[Rows, bytes]:
    """What gives rows of the chunk, and the leaves of the source that begin in it: each byte is read once. Of what is
    no plain run of rows the first chunk has all leaves."""
    name, info, start, stop = chunk.name, chunk.info, chunk.start, chunk.stop
    row = info.nbytes // max(info.shape[0], 1)
    leaves = leaves_from(start * row, stop * row)
    begin, end = leaves.start * LEAF, min(leaves.stop * LEAF, info.nbytes)
    until = max(stop, -(-end // row)) if leaves else stop  # the last leaf may end beyond the chunk
    stored = reader.stored(name, start, until) if chunk.choice.in_axis == 1 else None
    if stored is None:
        rows = partial(read_rows, reader, name, info.shape, chunk.choice.in_axis)
        return rows, leaves_of(reader, name) if start == 0 else b""
    data = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
    own = data[begin - start * row : end - start * row]
    return lambda a, b: rows_of(stored[a - start : b - start], info.dtype), hash_leaves(own.data)


def chunk_rows(scheme: Scheme, stored: tuple[int, ...], nbytes: int) -> int:
    """How many rows take `nbytes` as float32: a multiple of what the layout asks for."""
    unit = LAYOUTS[scheme.layout].chunk_rows(scheme)
    return max(1, nbytes // (4 * max(math.prod(stored[1:]), 1)) // unit) * unit


class _WiderScales(Exception):
    """A panel needs float32 scales, and those before it have float16."""


def _encode(source: Rows, chunk: Chunk, scale_dtype: Any) -> tuple[str, dict[str, str], dict[str, list[Array]]]:
    """The scheme, dtypes of the parts, and their blocks."""
    choice, stored = chunk.choice, chunk.stored
    assert choice.scheme is not None
    scheme, in_axis = str(choice.scheme), choice.in_axis
    step = max(1, stored[0]) if choice.whole else chunk_rows(choice.scheme, stored, PANEL_BYTES)
    loss = Loss(chunk.job.moments(chunk.name, math.prod(stored[1:])))
    dtypes: dict[str, str] = {}
    parts: dict[str, list[Array]] = {}
    written: dict[str, int] = {}
    for start in range(chunk.start, max(chunk.stop, chunk.start + 1), step):
        rows = source(start, min(start + step, chunk.stop))
        with np.errstate(over="ignore"):  # too large for float32 is reported, too
            exact = np.ascontiguousarray(rows, np.float32)
        try:
            array = chunk.job.compact(chunk.name, exact, choice, scale_dtype)
        except NonFiniteError:
            check_finite(chunk.name, rows, exact, start, in_axis)
            raise
        found = {part: array.part_dtype(part) for part in array.parts()}
        if dtypes and found != dtypes:  # float32 holds what float16 does
            raise _WiderScales
        dtypes, scheme = found, array.scheme
        loss.add(exact, array)
        for part, block in array.blocks(written, stored).items():
            parts.setdefault(part, []).append(block)
            written[part] = written.get(part, 0) + len(block)
    parts |= {LOSS + str(i): [np.array(energies)] for i, energies in enumerate(loss.energies)}
    return scheme, dtypes, parts


def check_finite(name: str, rows: Array, exact: F32, start: int, in_axis: int) -> None:
    """Raise NonFiniteError, with the index in the whole tensor, unless rows are finite as float32."""
    bad = native.first_nonfinite(_flat(exact))
    if bad >= 0:
        index = [int(i) for i in np.unravel_index(bad, rows.shape)]
        index[0] += start
        value = rows.reshape(-1)[bad]
        where = tuple(index if in_axis else index[::-1])
        raise NonFiniteError(f"{name}: expected finite values, got {value} at index {where}")


def _flat(values: F32) -> F32:
    return values.reshape(len(values), math.prod(values.shape[1:]))


# The file of a chunk: 8 bytes of length, a JSON table of parts (dtype, shape, offset), and the parts, aligned.


def _write(path: Path, parts: Mapping[str, list[Array]]) -> tuple[int, int]:
    table, offset = {}, 0
    for part, blocks in parts.items():
        shape = (sum(len(block) for block in blocks), *blocks[0].shape[1:])
        table[part] = [blocks[0].dtype.str, shape, offset]
        offset = _aligned(offset + sum(block.nbytes for block in blocks))
    text = json.dumps(table).encode()
    head = (len(text)).to_bytes(8, "little") + text
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
    size = crc = 0
    try:
        with scratch.open("xb", buffering=0) as out:
            for data in _pieces(head, parts):
                write_all(out, data)
                size, crc = size + len(data), zlib.crc32(data, crc)
            os.fsync(out.fileno())
        os.replace(scratch, path)
        sync_folders({path.parent})
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    return size, crc


def _pieces(head: bytes, parts: Mapping[str, list[Array]]) -> Iterator[bytes | memoryview]:
    yield head + bytes(_aligned(len(head)) - len(head))
    for blocks in parts.values():
        nbytes = 0
        for block in blocks:
            if block.nbytes:
                yield np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
                nbytes += block.nbytes
        yield bytes(_aligned(nbytes) - nbytes)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def is_whole(path: Path, done: Done) -> bool:
    """Whether the file is the one that was written."""
    try:
        with path.open("rb") as file:
            crc = 0
            while data := file.read(PANEL_BYTES):
                crc = zlib.crc32(data, crc)
            return crc == done.crc and file.tell() == done.nbytes
    except FileNotFoundError:
        return False


class ChunkFile:
    """What a chunk's file holds: views of the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = np.memmap(path, np.uint8, "r")
        length = int.from_bytes(self._bytes[:8].tobytes(), "little")
        self._data = _aligned(8 + length)
        self._table = json.loads(self._bytes[8 : 8 + length].tobytes())

    def array(self, part: str) -> Array:
        """One part."""
        dtype, shape, offset = self._table[part]
        nbytes = np.dtype(dtype).itemsize * math.prod(shape)
        begin = self._data + offset
        array: Array = self._bytes[begin : begin + nbytes].view(np.ndarray).view(dtype).reshape(shape)
        return array

    def compact(self, scheme: Scheme, stored: tuple[int, ...]) -> CompactArray:
        """The chunk as an array of its own."""
        parts = {part: self.array(part) for part in self._table if not part.startswith((LOSS, LEAVES))}
        try:
            return build(scheme, stored, parts)
        except FormatError as error:
            raise FormatError(self.path, error.tensor, error.rule, error.got, "was the file changed?") from error

    def energies(self) -> list[list[float]]:
        """What `Loss` has of the rows."""
        return [self.array(LOSS + str(i)).tolist() for i in range(4)]

    def leaves(self) -> bytes:
        """What it adds to the fingerprint of the source."""
        return self.array(LEAVES).tobytes()

    def offset(self, block: Array) -> int | None:
        """Where in the file a block is; None for one in memory."""
        at = block.__array_interface__["data"][0] - self._bytes.__array_interface__["data"][0]
        return at if block.flags.c_contiguous and 0 <= at <= len(self._bytes) - block.nbytes else None
