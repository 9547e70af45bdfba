"""Products of schemes beside NumPy's float32 product, in one process: what `pumice bench` prints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

import numpy as np

from pumice._core import native
from pumice.layouts import CompactArray, from_parts
from pumice.ops import compress
from pumice.options import current
from pumice.report import table_of
from pumice.timing import COLD_BYTES, per_call
from pumice.values.base import F32

LASTING = 0.04  # seconds that a case is timed for, a round
REST = 0.03  # seconds after which the threads of the other library no longer spin
NUMPY = "NumPy float32"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Timing:
    """A case at a batch.

    Attributes
    ----------
    seconds, spread : float
        Median over the rounds, and interquartile range over the median.
    ratio : float
        NumPy's seconds / these: median of the ratios of each round.
    error : float
        Relative rms of y against NumPy in float64 with the decoded weight.
    """

    case: str
    batch: int
    nbytes: int
    seconds: float
    spread: float
    ratio: float
    error: float


@dataclass(frozen=True)
class Comparison:
    """What `compare_with_numpy` measured."""

    shape: tuple[int, int]
    activations: str
    cold: bool
    isa: str
    threads: int
    timings: tuple[Timing, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            (
                t.case, str(t.batch), f"{t.nbytes:,}", f"{t.seconds * 1e3:.4g}", f"{t.spread:.0%}",
                f"{t.nbytes / t.seconds / 1e9:.1f}", f"{t.ratio:.2f}", f"{t.error:.1e}",
            )
            for t in self.timings
        ]  # fmt: skip
        title = (
            f"{self.shape[0]} x {self.shape[1]}, {'cold' if self.cold else 'hot'} weights, activations "
            f"{self.activations}, {self.isa}, {self.threads} threads"
        )
        headings = ("case", "batch", "bytes", "ms", "spread", "GB/s", "NumPy / it", "error")
        return title + "\n" + table_of(headings, rows, left=1)


def compare_with_numpy(
    shape: tuple[int, int] = (4096, 4096),
    schemes: Sequence[str] = ("int8", "int4-g128"),
    batches: Sequence[int] = (1, 16, 64),
    *,
    activations: str | None = None,
    cold: bool = True,
    rounds: int = 5,
    progress: Progress | None = None,
) -> Comparison:
    """Time products of random weights in some schemes and in NumPy, in turns.

    Parameters
    ----------
    shape : (rows, cols)
    schemes : sequence of str
    batches : sequence of int
    activations : {"int16", "int8", "float32"}, optional
        By default what `options` says.
    cold : bool
        Copies of each weight that no cache holds take turns, as when a model is decoded; else one copy.
    rounds : int

    Examples
    --------
    >>> found = compare_with_numpy((32, 64), ["int8"], [1], cold=False, rounds=1)
    >>> [timing.case for timing in found.timings]
    ['NumPy float32', 'pumice int8']
    """
    for name, numbers in (("shape", shape), ("batches", batches), ("rounds", (rounds,))):
        if not numbers or min(numbers) < 1:
            raise ValueError(f"{name}: expected numbers of at least 1, got {numbers}")
    activations = current().activations if activations is None else activations
    w = np.random.default_rng(0).standard_normal(shape, np.float32)
    tell = progress or (lambda text, done, total: None)
    cases = [(NUMPY, w.nbytes, _turns(w, cold), w)]
    for scheme in schemes:
        tell(f"compressing to {scheme}", 0, 1)
        c = compress(w, scheme)
        cases.append((f"pumice {scheme}", c.nbytes, _turns(c, cold), c.to_dense()))
    timings = []
    for done, batch in enumerate(batches):
        tell(f"batch {batch}", done, len(batches))
        timings += _at(batch, cases, activations, rounds)
    tell("done", 1, 1)
    isa, threads = native.get_isa(), native.get_num_threads()
    return Comparison((shape[0], shape[1]), activations, cold, isa, threads, tuple(timings))


def _turns(w: Any, cold: bool) -> Any:
    """Equal weights at different places, for ever."""

    def copy() -> Any:
        if isinstance(w, CompactArray):
            parts = {name: part.copy() for name, part in w.parts().items()}
            return from_parts(w.scheme, w.shape, parts).prepack()  # what the first product would do
        return w.copy()

    count = max(1, -(-COLD_BYTES // max(w.nbytes, 1))) if cold else 1
    return cycle([copy() for _ in range(count)])


def _at(batch: int, cases: list[Any], activations: str, rounds: int) -> list[Timing]:
    x = np.random.default_rng(batch).standard_normal((batch, cases[0][3].shape[1]), np.float32)
    times: list[list[float]] = [[] for _ in cases]
    for _ in range(rounds):
        for i, (_, _, turns, _) in enumerate(cases):
            time.sleep(REST)
            times[i].append(per_call(_product(x, turns, activations), LASTING))
    numpy, timings = np.array(times[0]), []
    for (name, nbytes, turns, exact), seconds in zip(cases, times, strict=True):
        low, median, high = np.percentile(seconds, [25, 50, 75])
        error = _error(x, _multiply(x, next(turns), activations), exact)
        ratio = float(np.median(numpy / np.array(seconds)))
        timings.append(Timing(name, batch, nbytes, float(median), float((high - low) / median), ratio, error))
    return timings


def _product(x: F32, turns: Any, activations: str) -> Callable[[], F32]:
    return lambda: _multiply(x, next(turns), activations)


def _multiply(x: F32, w: Any, activations: str) -> F32:
    y: F32 = w.linear(x, None, activations) if isinstance(w, CompactArray) else x @ w.T
    return y


def _error(x: F32, y: F32, w: F32) -> float:
    true = x.astype(np.float64) @ w.T.astype(np.float64)
    return float(np.sqrt(np.mean((y - true) ** 2) / np.mean(true**2)))
