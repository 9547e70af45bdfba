"""What workers do: a chunk of rows becomes a file. A pure function of the source, the scheme and the chunk, so that
threads, processes and other machines may run it, more than once if need be."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pumice._core import native
from pumice.checkpoint import TensorInfo, load, open_reader
from pumice.checkpoint.base import Reader
from pumice.checkpoint.dtypes import widen
from pumice.checkpoint.fingerprint import Leaves, leaves_of
from pumice.checkpoint.locations import URL, Location, locate, state_of
from pumice.choice import Request, choose, panel_rows
from pumice.conversion.chunk_files import LEAVES, LOSS, Done, write_chunk
from pumice.errors import NonFiniteError, PumiceError, SourceChangedError
from pumice.layouts import LAYOUTS, CompactArray
from pumice.ops import compress
from pumice.profile import Profile
from pumice.pruning import prune_and_compress
from pumice.recipe import Treatment, options_for
from pumice.report import Loss
from pumice.scheme import AUTO, Scheme
from pumice.statistics import CalibrationStats, Moments, moments_of
from pumice.values.base import F32, Array, StoredRows

PANEL_BYTES = 4 << 20  # of float32 weights that are encoded at a time: what a second-level cache holds a few of
READ_BYTES = 4 << 20  # of the source at a time; of a store all of a chunk, since each request takes long
HALVES = {"F16": "float16", "BF16": "bfloat16"}  # dtypes that encoders take as they are


File = tuple[str, int, int | str]
"""A file's path, its bytes, and when it was changed (ns), or what a store says of that."""


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
    """What holds for all weights of a conversion. `stats` is a mapping, or the file that holds it; `nonfinite` as in
    `compress`."""

    request: Request
    profile: Profile
    stats: Mapping[str, Moments] | str
    seed: int
    options: Mapping[str, Any]
    nonfinite: str = "raise"

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

    def compact(
        self,
        name: str,
        rows: StoredRows,
        shape: tuple[int, ...],
        choice: Treatment,
        loss: Loss,
        scale_dtype: Any = None,
    ) -> CompactArray:
        """Rows of a weight, or all of it where the treatment asks for that; `loss` learns what they lose. Errors name
        the weight."""
        assert choice.scheme is not None
        try:
            if not (choice.whole or loss.of_outputs or choice.scheme == AUTO):
                layout = LAYOUTS[choice.scheme.layout]
                array, energies = layout.encode_rows(rows, choice.scheme, shape, scale_dtype)
                loss.note(energies)
                return array
            w = rows.floats().reshape(shape)
            if choice.whole:
                array = self._whole(name, w, choice, choice.scheme)
            else:
                array = compress(w, choice.scheme, scale_dtype=scale_dtype)
        except NonFiniteError as error:
            raise NonFiniteError(f"{name}: {error}") from error
        loss.add(w, array)
        return array

    def _whole(self, name: str, w: F32, choice: Treatment, scheme: Scheme) -> CompactArray:
        own, known = dict(options_for(choice, self.options)), self.known()
        stats = {name: known[name]} if name in known else None
        if scheme == AUTO:
            own |= {"batch": self.request.batch, "objective": self.request.objective}
            own |= {"max_error": self.request.max_error}
        if choice.prune is None:
            found = compress({name: w}, scheme, method=choice.method, stats=stats, **own)
        else:
            found = prune_and_compress(
                {name: w}, scheme, choice.prune, method=choice.method, stats=stats, seed=self.seed, **own
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


def encode(chunk: Chunk) -> Done:
    """Encode a chunk and write its file, whole or not at all."""
    if (
        chunk.process != os.getpid()
    ):  # a process of its own for each worker: there are as many of them as there are CPUs
        native.set_num_threads(1)
    reader = reader_of(chunk.origin)
    source = _Source(reader, chunk)
    try:
        scheme, dtypes, parts = _encode(source, chunk, np.float32 if chunk.wide else None)
    except _WiderScales:
        scheme, dtypes, parts = _encode(source, chunk, np.float32)
    parts[LEAVES] = [np.frombuffer(source.leaves(), np.uint8)]
    check_files(chunk.files)
    return write_chunk(Path(chunk.folder) / chunk.key, scheme, dtypes, parts)


def choose_scheme(task: Choosing) -> str:
    """Choose a scheme in passes over row panels."""
    reader, shape = reader_of(task.origin), task.info.shape
    stored = shape if task.in_axis == 1 else shape[::-1]
    step, cols = panel_rows(math.prod(stored[1:])), math.prod(stored[1:])

    def panels() -> Iterator[F32]:
        for start in range(0, max(stored[0], 1), step):
            rows = read_rows(reader, task.name, shape, task.in_axis, start, min(start + step, stored[0]))
            yield finite_floats(task.name, rows, start, task.in_axis, task.job.nonfinite).reshape(len(rows), cols)

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


class _Source:
    """Rows of a chunk, and the leaves of the source that begin in it: each byte is read once, and hashed while it is in
    a cache. Of what is no plain run of rows the first chunk has all leaves."""

    def __init__(self, reader: Reader, chunk: Chunk) -> None:
        self._reader, self._chunk = reader, chunk
        self._row = chunk.info.nbytes // max(chunk.info.shape[0], 1)
        self._leaves = Leaves(chunk.start * self._row, chunk.stop * self._row, chunk.info.nbytes)
        self._plain = chunk.choice.in_axis == 1
        self._ahead = chunk.info.nbytes if isinstance(locate(chunk.origin.path), URL) else READ_BYTES
        self._begin, self._end, self._held = 0, -1, np.empty(0)  # rows that were read last

    def rows(self, start: int, stop: int) -> StoredRows:
        """Rows [start, stop)."""
        stored = self._stored(start, stop) if self._plain else None
        if stored is None:
            self._plain = False
            return _rows_from(self.values(start, stop))
        return _rows_from(stored, self._chunk.info.dtype)

    def values(self, start: int, stop: int) -> Array:
        """The same as numbers, in whatever dtype they are read."""
        chunk = self._chunk
        return read_rows(self._reader, chunk.name, chunk.info.shape, chunk.choice.in_axis, start, stop)

    def leaves(self) -> bytes:
        """Once all rows were read."""
        chunk, leaves = self._chunk, self._leaves
        if not self._plain:
            return leaves_of(self._reader, chunk.name) if chunk.start == 0 else b""
        if leaves.at < leaves.end:  # the last leaf ends beyond the chunk
            self._stored(chunk.stop, -(-leaves.end // self._row))
        return leaves.digests

    def _stored(self, start: int, stop: int) -> Array | None:
        if not self._begin <= start <= stop <= self._end:
            last = max(self._chunk.stop, -(-self._leaves.end // max(self._row, 1)))
            end = max(stop, min(start + self._ahead // max(self._row, 1), last))
            stored = self._reader.stored(self._chunk.name, start, end)
            if stored is None:
                return None
            self._begin, self._end, self._held = start, end, stored
            self._leaves.add(start * self._row, np.ascontiguousarray(stored).reshape(-1).view(np.uint8).data)
        return self._held[start - self._begin : stop - self._begin]


def _rows_from(stored: Array, dtype: str = "") -> StoredRows:
    """Rows as matrices: of a dtype's patterns, or values. What is too large for float32 becomes infinite."""
    values = HALVES.get(dtype, "float32")
    if values == "float32":
        with np.errstate(over="ignore"):
            stored = np.asarray(widen(stored, dtype) if dtype else stored, np.float32)
    return StoredRows(np.ascontiguousarray(_flat(stored)), values)


def chunk_rows(scheme: Scheme, stored: tuple[int, ...], nbytes: int) -> int:
    """How many rows take `nbytes` as float32: a multiple of what the layout asks for."""
    unit = LAYOUTS[scheme.layout].chunk_rows(scheme)
    return max(1, nbytes // (4 * max(math.prod(stored[1:]), 1)) // unit) * unit


class _WiderScales(Exception):
    """A panel needs float32 scales, and those before it have float16."""


def _encode(source: _Source, chunk: Chunk, scale_dtype: Any) -> tuple[str, dict[str, str], dict[str, list[Array]]]:
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
        stop = min(start + step, chunk.stop)
        rows, shape = source.rows(start, stop), (stop - start, *stored[1:])
        try:
            array = chunk.job.compact(chunk.name, rows, shape, choice, loss, scale_dtype)
        except NonFiniteError:
            exact = finite_floats(chunk.name, source.values(start, stop), start, in_axis, chunk.job.nonfinite)
            array = chunk.job.compact(chunk.name, _rows_from(exact), shape, choice, loss, scale_dtype)
        found = {part: array.part_dtype(part) for part in array.parts()}
        if dtypes and found != dtypes:  # float32 holds what float16 does
            raise _WiderScales
        dtypes, scheme = found, array.scheme
        for part, block in array.blocks(written, stored).items():
            parts.setdefault(part, []).append(block)
            written[part] = written.get(part, 0) + len(block)
    parts |= {LOSS + str(i): [np.array(energies)] for i, energies in enumerate(loss.energies)}
    return scheme, dtypes, parts


def finite_floats(name: str, rows: Array, start: int, in_axis: int, nonfinite: str) -> F32:
    """Rows as float32. What is not finite then becomes 0, or raises NonFiniteError with its place in the tensor."""
    with np.errstate(over="ignore"):
        exact = np.ascontiguousarray(rows, np.float32)
    bad = native.first_nonfinite(_flat(exact))
    if bad >= 0 and nonfinite == "zero":
        return np.where(np.isfinite(exact), exact, np.float32(0))
    if bad >= 0:
        index = [int(i) for i in np.unravel_index(bad, rows.shape)]
        index[0] += start
        value = rows.reshape(-1)[bad]
        where = tuple(index if in_axis else index[::-1])
        raise NonFiniteError(f"{name}: expected finite values, got {value} at index {where}")
    return exact


def _flat(values: Array) -> Array:
    return values.reshape(len(values), math.prod(values.shape[1:]))
