"""What the weights of a checkpoint look like: bytes, errors, histograms, density. What `pumice report` shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint import Reader, TensorInfo
from pumice.checkpoint.dtypes import DTYPES
from pumice.layouts import CompactArray

CHUNK_BYTES = 16 << 20  # of decoded values that are looked at a time
BINS = 64  # of a histogram, half of them for negative values
CELLS = 48  # of a density map, along either axis at most
SPARSE = 0.25  # share of zeros from which on a map is drawn: integers of few bits have some anyway

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each of equal intervals of [-bound, bound]."""

    bound: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class TensorSurvey:
    """One array.

    Attributes
    ----------
    scheme : str
        Of a compact array; the dtype of another.
    nbytes, nbytes_before : int
        Stored bytes, and those of the array it was made from; equal where that is not known.
    error : float or None
        ``||w - w'|| / ||w||``, as the conversion wrote it down.
    zeros : float
        Share of values that are 0.
    values : Histogram or None
        Of finite values; None of a tensor that is not floating point or has none.
    codes : dict of int to int, or None
        How often each stored integer occurs, holes aside.
    density : list of lists of float, or None
        Share of values that are not 0 in each cell of a grid over the matrix; None where few are 0.
    """

    name: str
    shape: tuple[int, ...]
    scheme: str
    nbytes: int
    nbytes_before: int
    error: float | None
    zeros: float
    values: Histogram | None
    codes: dict[int, int] | None
    density: list[list[float]] | None

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float | None:
        """Stored bits for each value; None without values."""
        return 8 * self.nbytes / self.size if self.size else None


@dataclass(frozen=True)
class Survey:
    """All arrays of a checkpoint, in the order of layers."""

    path: str
    format: str
    tensors: tuple[TensorSurvey, ...]

    @property
    def nbytes(self) -> int:
        """Stored bytes of all arrays."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def nbytes_before(self) -> int:
        """Stored bytes of what they were made from."""
        return sum(t.nbytes_before for t in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: what `pumice report --json` prints."""
        table = asdict(self)
        for entry, tensor in zip(table["tensors"], self.tensors, strict=True):
            entry["bits_per_weight"] = tensor.bits_per_weight
        return table | {"nbytes": self.nbytes, "nbytes_before": self.nbytes_before}


def survey(reader: Reader, path: str, progress: Progress | None = None) -> Survey:
    """Look at all values of an open checkpoint, a chunk of rows at a time.

    Parameters
    ----------
    reader
        Of any format.
    path
        What the checkpoint is called in the result.
    progress
        Called with (name, bytes done, bytes in all).

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pumice as pm
    >>> from pumice.checkpoint import open_reader
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> _ = pm.save(file, {"fc.weight": pm.compress(np.eye(64), "csr")})
    >>> with open_reader(file) as reader:
    ...     found = survey(reader, "a").tensors[0]
    >>> found.scheme, found.zeros, found.density[0][:3]
    ('csr', 0.984375, [1.0, 0.0, 0.0])
    """
    names = sorted(reader.names(), key=natural)
    total, done, found = sum(reader.info(name).nbytes for name in names), 0, []
    for name in names:
        info = reader.info(name)
        found.append(_surveyed(reader, name, info))
        done += info.nbytes
        if progress is not None:
            progress(name, done, total)
    return Survey(path, reader.format, tuple(found))


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key by which layer 2 comes before layer 10.

    Examples
    --------
    >>> sorted(["a.10.w", "a.2.w", "a.b"], key=natural)
    ['a.2.w', 'a.10.w', 'a.b']
    """
    return [(int(part), "") if part.isdecimal() else (1 << 62, part) for part in name.split(".")]


class Binner:
    """A histogram in one pass: where a value lies outside, the range doubles and pairs of bins become one.

    Examples
    --------
    >>> binner = Binner()
    >>> binner.add(np.array([0.5, -3.0]))
    >>> binner.histogram.bound, sum(binner.histogram.counts)
    (4.0, 2)
    """

    def __init__(self) -> None:
        self._bound = 0.0
        self._counts = np.zeros(BINS, np.int64)

    def add(self, values: NDArray[Any]) -> None:
        """Count these; NaN and infinity are left out."""
        values = values[np.isfinite(values)]
        most = float(np.abs(values).max(initial=0.0))
        if most > self._bound:
            self._widen(2.0 ** math.ceil(math.log2(most)))
        if values.size:
            bound = self._bound or 1.0
            self._counts += np.histogram(values, BINS, (-bound, bound))[0]

    @property
    def histogram(self) -> Histogram | None:
        """What was counted; None if nothing was."""
        return Histogram(self._bound, tuple(self._counts.tolist())) if self._counts.any() else None

    def _widen(self, bound: float) -> None:
        while self._bound and self._bound < bound:
            quarter = BINS // 4
            pairs = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.pad(pairs, quarter)
            self._bound *= 2
        self._bound = bound


class Mapper:
    """Shares of values that are not 0, in the cells of a grid."""

    def __init__(self, rows: int, cols: int) -> None:
        self._edges = [np.linspace(0, n, min(n, CELLS) + 1).round().astype(np.int64) for n in (rows, cols)]
        self._counts = np.zeros([len(edges) - 1 for edges in self._edges], np.int64)

    def add(self, start: int, matrix: NDArray[Any]) -> None:
        """Count the rows from `start` on."""
        rows, cols = self._edges
        across = np.add.reduceat(matrix != 0, cols[:-1], axis=1, dtype=np.int64)
        cells = np.searchsorted(rows, np.arange(start, start + len(matrix)), side="right") - 1
        np.add.at(self._counts, cells, across)

    @property
    def density(self) -> list[list[float]]:
        """Of the grid, row by row."""
        rows, cols = (np.diff(edges) for edges in self._edges)
        shares: list[list[float]] = (self._counts / np.outer(rows, cols)).round(4).tolist()
        return shares


def _surveyed(reader: Reader, name: str, info: TensorInfo) -> TensorSurvey:
    size = math.prod(info.shape)
    error = info.notes.get("error")
    source = info.notes.get("source")
    before = size * DTYPES[source].bits // 8 if isinstance(source, str) and source in DTYPES else info.nbytes
    values, codes, zeros, density = _looked_at(reader, name, info) if size else (None, None, 0.0, None)
    return TensorSurvey(
        name,
        info.shape,
        info.dtype,
        info.nbytes,
        before,
        float(error) if isinstance(error, int | float) else None,
        zeros,
        values,
        codes,
        density,
    )


def _looked_at(
    reader: Reader, name: str, info: TensorInfo
) -> tuple[Histogram | None, dict[int, int] | None, float, list[list[float]] | None]:
    """Histogram, codes, share of zeros and density map of an array with values."""
    rows, cols = (info.shape[0], math.prod(info.shape[1:])) if info.shape else (1, 1)
    binner, mapper, counter = Binner(), Mapper(rows, cols), _Codes(reader, name, info)
    zeros = 0
    step = max(1, CHUNK_BYTES // (4 * cols))
    floating = True
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        matrix = reader.rows(name, start, stop).reshape(stop - start, cols)
        floating = matrix.dtype.kind == "f"
        if floating:
            binner.add(matrix)
        zeros += matrix.size - int(np.count_nonzero(matrix))
        mapper.add(start, matrix)
        counter.add(start, stop)
    share = zeros / (rows * cols)
    density = mapper.density if floating and share >= SPARSE and len(info.shape) > 1 else None
    return binner.histogram if floating else None, counter.counts, share, density


class _Codes:
    """How often each stored integer occurs; nothing of an array that has none."""

    def __init__(self, reader: Reader, name: str, info: TensorInfo) -> None:
        self.counts: dict[int, int] | None = None
        self._array: CompactArray | None = reader.array(name) if info.compact else None

    def add(self, start: int, stop: int) -> None:
        """Count the codes of these rows."""
        if self._array is None:
            return
        try:
            codes = self._array[start:stop].codes()
        except TypeError:  # what is stored is not integers
            self._array = None
            return
        known = self.counts or {}
        for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
            known[int(code)] = known.get(int(code), 0) + int(count)
        self.counts = dict(sorted(known.items()))
