"""``"auto"``: which scheme a weight gets, and why.

Candidates are the dense schemes of `DENSE` and whatever sparse layouts are registered, with the blocksizes and N:M
whose zeros the weight has. Their bytes follow from counts that one pass over the weight makes, their time from the cost
model, and the error is measured on the weight itself, best candidate first, until one keeps within `max_error`. The
weight is only ever seen as row panels, so that conversion can stream it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.costs import Estimate, estimate, work_of
from pumice.errors import NonFiniteError, SchemeError
from pumice.layouts import LAYOUTS, CompactArray
from pumice.options import ACTIVATIONS, check_choice, current
from pumice.profile import Profile, load_profile
from pumice.scheme import SUM, LayoutGrammar, Scheme
from pumice.timing import COLD_BYTES, once
from pumice.values.base import F32, matrix_shape

PLAIN = "float32"  # what NumPy computes with
DENSE = ("int4-g128", "int4-g32", "int8", "int8-g128", "float16", "bfloat16", PLAIN)
ALWAYS_SHOWN = ("int4-g128", "int8", PLAIN)
SPARSE_VALUES = ("float32", "float16", "bfloat16", "int8", "int4-g128", "int4")
BLOCKSIZES = ((16, 1), (8, 1), (16, 4), (8, 4), (4, 4), (16, 16), (32, 32))
N_OF_M = ((2, 4), (4, 8), (1, 4), (8, 16))
OBJECTIVES = ("balanced", "speed", "size")

UNIT = 32  # rows: a multiple of the heights of all blocks
PANEL_WEIGHTS = 1 << 20
TIMED, ROUNDS = 3, 5  # candidates that `measure` times, and how often
SHOWN = 8  # candidates that the table lists

Mask: TypeAlias = NDArray[np.bool_]
Panels = Callable[[], Iterable[F32]]
"""Called for each pass over a weight: its row panels (rows, cols), each but the last of a multiple of `UNIT` rows."""


@dataclass(frozen=True)
class Request:
    """What ``"auto"`` is asked for.

    Parameters
    ----------
    batch : int
        Rows of x.
    objective : {"balanced", "speed", "size"}
        Least seconds of a product times bytes, least seconds, or least bytes; of equal ones the better in the other.
    max_error : float
        Of the weight, ``||w - w'|| / ||w||`` (Frobenius).
    measure : bool
        Time the best candidates rather than trust the cost model.
    activations : {"int16", "int8", "float32"}, optional
        By default what `options` says.
    """

    batch: int = 1
    objective: str = "balanced"
    max_error: float = 0.02
    measure: bool = False
    activations: str = field(default_factory=lambda: current().activations)

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("activations", self.activations, ACTIVATIONS)
        if self.batch < 1:
            raise ValueError(f"batch: expected at least 1, got {self.batch}")
        if not 0 <= self.max_error < math.inf:
            raise ValueError(f"max_error: expected a finite number >= 0, got {self.max_error}")


@dataclass(frozen=True)
class Candidate:
    """A scheme that a weight may get.

    Attributes
    ----------
    nbytes : int
        Exact for float values; for integers, whose codes may be 0 where the weight is not, at most this (but for half a
        byte a row of int4 in a bitmask).
    expected : Estimate or None
        Of a product with weights from DRAM; None where the profile does not know the kernel.
    seconds : float or None
        Measured, if that was asked for.
    error : float or None
        None where it was not needed; infinity where values do not fit.
    """

    scheme: str
    nbytes: int
    expected: Estimate | None
    seconds: float | None = None
    error: float | None = None

    @property
    def time(self) -> float:
        """Seconds, measured or else expected; infinity where neither is known."""
        if self.seconds is not None:
            return self.seconds
        return math.inf if self.expected is None else self.expected.seconds

    def rank(self, objective: str) -> tuple[float, float]:
        """What is least for the best."""
        by_size = (self.nbytes, self.time)
        return {"balanced": (self.time * self.nbytes, self.nbytes), "speed": by_size[::-1], "size": by_size}[objective]


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what it was held against. `str` gives the table.

    Attributes
    ----------
    scheme : str
        The chosen one.
    candidates : tuple of Candidate
        The chosen one first, then the others by their rank.
    profile : str
        Where the numbers of the cost model come from.
    """

    scheme: str
    shape: tuple[int, ...]
    density: float
    request: Request
    threads: int
    candidates: tuple[Candidate, ...]
    profile: str

    def with_size(self, nbytes: int) -> Choice:
        """This choice with the exact bytes of the chosen scheme."""
        first, *others = self.candidates
        return replace(self, candidates=(replace(first, nbytes=nbytes), *others))

    def __str__(self) -> str:
        r, plain = self.request, next(c for c in self.candidates if c.scheme == PLAIN)
        rows = [("chosen from", "bytes", "ms", "x float32", "error")]
        shown = [c for i, c in enumerate(self.candidates) if i < SHOWN or c.scheme in ALWAYS_SHOWN]
        for c in shown:
            ms = "?" if c.time == math.inf else f"{c.time * 1e3:.3g}{'' if c.seconds is None else ' measured'}"
            gain = "?" if math.inf in (c.time, plain.time) else f"{plain.time / c.time:.2f}"
            rows.append((c.scheme, f"{c.nbytes:,}", ms, gain, _error_text(c.error, r.max_error)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            ).rstrip()
            for row in rows
        ]
        more = len(self.candidates) - len(shown)
        return "\n".join([
            f"choice   {self.scheme}: {r.objective} at batch {r.batch}, error <= {r.max_error:g}, activations "
            f"{r.activations}, {self.threads} threads, weights from DRAM; {1 - self.density:.1%} are 0",
            *lines,
            *([f"and {more} more"] if more else []),
        ])  # fmt: skip


def _error_text(error: float | None, limit: float) -> str:
    if error is None:
        return "not needed"
    return f"{error:.2g}" if error <= limit else "too large"


@dataclass
class Facts:
    """Counts of a weight that one pass makes.

    Attributes
    ----------
    blocks : dict
        (R, C) -> blocks that are not all 0.
    kept : set
        (N, M) of which no M in a row keep more than N.
    energy : float
        Sum of squares.
    """

    rows: int
    cols: int
    nnz: int = 0
    blocks: dict[tuple[int, int], int] = field(default_factory=lambda: dict.fromkeys(BLOCKSIZES, 0))
    kept: set[tuple[int, int]] = field(default_factory=set)
    energy: float = 0.0

    @classmethod
    def of(cls, rows: int, cols: int, panels: Iterable[F32]) -> Facts:
        facts = cls(rows, cols, kept={(n, m) for n, m in N_OF_M if cols % m == 0})
        for panel in panels:
            facts._add(panel)
        return facts

    def _add(self, panel: F32) -> None:
        nnz = int(np.count_nonzero(panel))
        self.nnz += nnz
        self.energy += float(np.square(panel, dtype=np.float64).sum())
        if nnz == panel.size:
            self.kept.clear()
            for height, width in self.blocks:
                self.blocks[height, width] += -(-len(panel) // height) * -(-self.cols // width)
            return
        there = np.zeros((-(-len(panel) // UNIT) * UNIT, -(-self.cols // UNIT) * UNIT), bool)
        there[: len(panel), : self.cols] = panel != 0
        self.kept = {(n, m) for n, m in self.kept if _most_of(there, m) <= n}
        bands = {1: there}
        for height in sorted({height for height, _ in self.blocks}):
            lower = max(h for h in bands if height % h == 0)
            tall = bands[lower].reshape(len(there) // height, height // lower, there.shape[1])
            bands[height] = np.logical_or.reduce(tall, axis=1)
        for height, width in self.blocks:
            self.blocks[height, width] += int(np.count_nonzero(_any_of(bands[height], width)))

    @property
    def size(self) -> int:
        return self.rows * self.cols

    def stored(self, scheme: Scheme) -> float:
        """Values that a scheme stores."""
        pattern = scheme.pattern
        if pattern is None:
            return self.size if scheme.dense else self.nnz
        if pattern.kept is not None:
            return self.size * pattern.kept[0] / pattern.kept[1]
        assert pattern.blocksize is not None
        return self.blocks[pattern.blocksize] * math.prod(pattern.blocksize)

    def numbers(self, grammar: LayoutGrammar) -> Iterator[tuple[int, ...]]:
        """The numbers of a layout that suit the weight."""
        if not grammar.letters:
            yield ()
        elif grammar.letters == ("R", "C"):
            yield from (block for block, count in self.blocks.items() if count * math.prod(block) < self.size)
        elif grammar.letters == ("N", "M"):
            yield from self.kept


def _words(mask: Mask, width: int) -> NDArray[np.unsignedinteger[Any]]:
    """A mask whose columns are a multiple of width, a power of two, as one integer per `width` of them, or per 8."""
    return mask.view(f"u{min(width, 8)}")


def _any_of(mask: Mask, width: int) -> NDArray[Any]:
    """Not 0 where one of `width` columns is True.

    Examples
    --------
    >>> np.count_nonzero(_any_of(np.eye(32, 64) != 0, 16), axis=1)[:2], _any_of(np.eye(32, 64) != 0, 16).shape
    (array([1, 1]), (32, 4))
    """
    words = _words(mask, width)
    if width <= 8:
        return words
    merged: NDArray[Any] = np.bitwise_or.reduce(words.reshape(len(words), -1, width // 8), axis=2)
    return merged


def _most_of(mask: Mask, width: int) -> int:
    """The most that are True of any `width` columns side by side.

    Examples
    --------
    >>> [_most_of(np.arange(32)[None] % 3 == 0, m) for m in (4, 8, 16)]
    [2, 3, 6]
    """
    words = _words(mask, width)
    bits = 8 * words.dtype.itemsize
    counts = words * words.dtype.type((1 << bits) // 255) >> words.dtype.type(bits - 8)  # bytes added up in the highest
    return int(counts.reshape(-1, max(width // 8, 1)).sum(axis=1).max(initial=0))


def choose(shape: tuple[int, ...], panels: Panels, request: Request, profile: Profile | None = None) -> Choice:
    """Choose a scheme for a finite float32 weight.

    Parameters
    ----------
    shape : tuple of int
        Logical shape.
    panels : callable
        Gives the weight anew for each pass: `Panels`.
    profile : Profile, optional
        Of the machine; by default `load_profile`.
    """
    profile = load_profile() if profile is None else profile
    threads, (rows, cols) = native.get_num_threads(), matrix_shape(shape)
    facts = Facts.of(rows, cols, panels())
    found = [_candidate(scheme, shape, facts, request, profile, threads) for scheme in _schemes(facts)]
    ranked = sorted(found, key=lambda c: c.rank(request.objective))
    good: list[str] = []
    errors: dict[str, float] = {}
    for i, candidate in enumerate(ranked):
        values = str(replace(Scheme.parse(candidate.scheme), layout="dense", numbers=()))
        if values not in errors:
            errors[values] = (
                0.0 if values == PLAIN else measure_error(values, panels(), facts.energy, request.max_error)
            )
        ranked[i] = replace(candidate, error=errors[values])
        if errors[values] <= request.max_error:
            good.append(candidate.scheme)
        if len(good) >= (TIMED if request.measure else 1):
            break
    if request.measure:
        seconds = time_products(good, panels, request)
        ranked = [replace(c, seconds=seconds.get(c.scheme)) for c in ranked]
    best = min((c for c in ranked if c.scheme in good), key=lambda c: c.rank(request.objective))
    ranked.sort(key=lambda c: (c is not best, c.rank(request.objective)))
    density = facts.nnz / facts.size if facts.size else 1.0
    return Choice(best.scheme, shape, density, request, threads, tuple(ranked), profile.source)


def _schemes(facts: Facts) -> Iterator[Scheme]:
    """The dense ones, and the sparse ones that leave something out."""
    yield from map(Scheme.parse, DENSE)
    for name, layout in LAYOUTS.items():
        if name == SUM or layout.grammar.name == "dense" or facts.nnz == facts.size:
            continue
        for numbers in facts.numbers(layout.grammar):
            for values in SPARSE_VALUES:
                try:
                    yield Scheme.parse(f"{layout.grammar.template.format(*numbers)}+{values}")
                except SchemeError:
                    continue  # values that this layout does not store


def _candidate(
    scheme: Scheme, shape: tuple[int, ...], facts: Facts, request: Request, profile: Profile, threads: int
) -> Candidate:
    density = facts.stored(scheme) / facts.size if facts.size else 0.0
    work = work_of(scheme, shape, density, request.batch, request.activations)
    nbytes = LAYOUTS[scheme.layout].expected_nbytes(scheme, shape)
    if nbytes is None:
        nbytes = 4 * facts.size if work is None else round(work.nbytes) + 8 * len(shape)
    expected = None if work is None else estimate(work, request.batch, profile, threads=threads, cold=True)
    return Candidate(str(scheme), nbytes, expected)


def measure_error(values: str, panels: Iterable[F32], energy: float, limit: float) -> float:
    """``||w - w'|| / ||w||`` of values, dense, as every layout has them; infinity as soon as it exceeds `limit`."""
    scheme, noise = Scheme.parse(values), 0.0
    layout = LAYOUTS[scheme.layout]
    for panel in panels:
        try:
            decoded = layout.encode(panel, scheme, panel.shape).to_dense()
        except NonFiniteError:
            return math.inf
        noise += float(np.square(panel - decoded, dtype=np.float64).sum())
        if noise > limit**2 * energy:
            return math.inf
    return math.sqrt(noise / energy) if energy else 0.0


def time_products(schemes: Iterable[str], panels: Panels, request: Request, rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of products with a few schemes in turns, weights from DRAM."""
    whole = np.concatenate(list(panels()))
    arrays: dict[str, CompactArray] = {}
    for text in schemes:
        scheme = Scheme.parse(text)
        arrays[text] = LAYOUTS[scheme.layout].encode(whole, scheme, whole.shape)
    x, evict = np.ones((request.batch, whole.shape[1]), np.float32), np.ones(COLD_BYTES // 8)
    runs: dict[str, list[float]] = {text: [] for text in arrays}
    for i in range(rounds + 1):
        for text, array in arrays.items():
            evict.sum()
            seconds = once(partial(array.linear, x, None, request.activations))
            if i:  # the first prepacks
                runs[text].append(seconds)
    return {text: float(np.median(some)) for text, some in runs.items()}


def panels_of(matrix: F32) -> Panels:
    """Row panels of a matrix that is there."""
    step = panel_rows(matrix.shape[1])
    return lambda: (matrix[i : i + step] for i in range(0, len(matrix), step))


def panel_rows(cols: int) -> int:
    """Rows of a panel."""
    return max(1, PANEL_WEIGHTS // max(cols, 1) // UNIT) * UNIT
