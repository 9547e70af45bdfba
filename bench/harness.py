"""Time libraries side by side: each in a process of its own, stopped while another is timed.

Thread pools spin for up to 200 ms after a product, so two libraries in one process slow each other down. A cold case
holds copies of its weight that are worth more than the caches and takes the next one for each product, as when a model
is decoded; a hot case has one copy. Cases are asked in a fresh random order every round.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import weights
from machine import clean_environment, cold_bytes
from results import OURS, Row

SLICE = 0.05  # seconds that a case is timed for, a round, at least
ORACLE_WEIGHTS = 1 << 24  # that y is held against: of larger weights, rows spread evenly
REST = 0.05  # seconds after which the threads of NumPy's BLAS, which the oracle uses, no longer spin


@dataclass(frozen=True)
class Setting:
    """What all cases of a measurement share."""

    rows: int
    cols: int
    threads: int
    hot: bool = False
    weight: str = ""  # a name of weights.py; "" has no zeros

    def copies(self, nbytes: int) -> int:
        """As many copies as make the weights cold; one weight beyond the caches evicts itself."""
        return 1 if self.hot else max(1, -(-cold_bytes() // max(nbytes, 1)))

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        shape = "mean of 36" if self.weight.startswith("minilm") else f"{self.rows} x {self.cols}"
        kind = f", {weights.prose(self.weight)}" if self.weight else ""
        return f"{shape}{kind}, {'hot' if self.hot else 'cold'}, {threads}"


@dataclass
class Case:
    """One weight in one library.

    Attributes
    ----------
    kind : str
        What the weights are stored as: int4, int8, 16-bit, float32, or probe.
    nbytes : int
        What a product reads of the weight.
    copies : list
        Equal weights, or at least weights of equal size, at different places.
    prepare : callable
        ``prepare(x)`` gives the product that is timed: ``product(copy)`` -> y, from float32 to float32.
    exact : callable or None
        Gives the decoded weight of ``copies[0]`` that y is held against; None for a probe.
    products : int
        Products that one call computes; its time is divided by them.
    operations : float
        Of a call of a probe; a product has 2 * batch * rows * cols.
    facts : dict
        What else is to be said of it in numbers: they go into its rows.
    resident : callable or None
        Gives the bytes in memory of ``copies[0]``: asked after a product, which may prepack.
    checked : int or None
        Weights that y is held against, `ORACLE_WEIGHTS` if None.
    slice : float
        Seconds that it is timed for, a round, at least.
    warm : int or None
        Rows of x that prepare a copy for any larger batch, where that is not the batch itself.
    """

    name: str
    kind: str
    nbytes: int
    copies: list[Any]
    prepare: Callable[[np.ndarray], Callable[[Any], Any]]
    exact: Callable[[], np.ndarray] | None = None
    products: int = 1
    operations: float = 0.0
    facts: dict[str, float] = field(default_factory=dict)
    resident: Callable[[], int] | None = None
    checked: int | None = None
    warm: int | None = None
    slice: float = SLICE
    errors: dict[int, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.turns = cycle(self.copies)

    @cached_property
    def oracle(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows, and the decoded weight there."""
        if self.exact is None:
            return None
        w = self.exact()
        rows = spread(len(w), max(1, (self.checked or ORACLE_WEIGHTS) // w.shape[1]))
        return rows, w[rows]


@dataclass(frozen=True)
class Skip:
    """A case that cannot run here, and why: printed and kept, never silent."""

    name: str
    why: str


def measure(
    suite: str, families: Iterable[str], setting: Setting, batches: list[int], rounds: int
) -> tuple[list[Row], list[str]]:
    """Time every case of the families (``module:function`` that yield cases) at every batch.

    Returns the rows, and a line for each case that was skipped.
    """
    workers: list[subprocess.Popen[str]] = []
    cases: list[tuple[subprocess.Popen[str], int, dict[str, Any]]] = []
    skipped: list[str] = []
    try:
        for family in families:  # one after the other: what is built must not disturb what is being built
            process = _start(family, setting)
            workers.append(process)
            answer = _read(process)
            if "failed" in answer:
                answer = {"cases": [], "skipped": [f"{family}: {answer['failed']}"]}
            cases += [(process, i, case) for i, case in enumerate(answer["cases"])]
            for line in answer["skipped"]:
                skipped.append(f"{setting}: {line}")
                print(f"  SKIPPED {line}", file=sys.stderr, flush=True)
            process.send_signal(signal.SIGSTOP)
        rows = []
        for batch in batches:
            rows += _rounds(suite, cases, setting, batch, rounds, skipped)
            print(f"  {setting}, batch {batch}: {len(cases)} cases", file=sys.stderr, flush=True)
    finally:
        for process in workers:
            process.send_signal(signal.SIGCONT)
            process.communicate()
    return rows, skipped


def _start(family: str, setting: Setting) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), family, json.dumps(asdict(setting))]
    environment = clean_environment(setting.threads)
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def _rounds(suite: str, cases: list[Any], setting: Setting, batch: int, rounds: int, skipped: list[str]) -> list[Row]:
    order = np.random.default_rng(batch)
    times: list[list[float]] = [[] for _ in cases]
    errors: list[float | None] = [None] * len(cases)
    facts: list[dict[str, float]] = [{} for _ in cases]
    failed: dict[int, str] = {}
    for _ in range(rounds):
        for j in order.permutation(len(cases)):
            if j in failed:
                continue
            process, i, _ = cases[j]
            process.send_signal(signal.SIGCONT)
            answer = _ask(process, [i, batch])
            process.send_signal(signal.SIGSTOP)
            if "failed" in answer:
                failed[j] = answer["failed"]
                continue
            times[j].append(answer["seconds"] * 1e3)
            errors[j] = answer["error"]
            facts[j] = answer["facts"]
    found = []
    for j, (_, _, case) in enumerate(cases):
        if j in failed:
            skipped.append(f"{setting}, batch {batch}: {case['name']}: {failed[j]}")
            print(f"  SKIPPED {case['name']}, batch {batch}: {failed[j]}", file=sys.stderr, flush=True)
            continue
        operations = case["operations"] or 2.0 * batch * setting.rows * setting.cols
        row = Row(
            suite, str(setting), case["name"], case["kind"], batch, setting.rows, setting.cols, setting.threads,
            setting.hot, case["nbytes"], operations, case["copies"], times[j], errors[j], facts[j],
        )  # fmt: skip
        found.append(row)
    return found


def _ask(process: subprocess.Popen[str], question: Any) -> Any:
    with contextlib.suppress(BrokenPipeError):  # then there is no answer either
        print(json.dumps(question), file=process.stdin, flush=True)
    return _read(process)


def _read(process: subprocess.Popen[str]) -> Any:
    """The answer; of a process that is no more, which one that takes too much memory is not for long, ``failed``."""
    assert process.stdout is not None
    line = process.stdout.readline()
    return json.loads(line) if line else {"failed": f"its process ended with {process.wait()}"}


def serve(found: Iterator[Case | Skip], family: str, cols: int) -> None:
    """The other end: build the cases, then answer [case, batch] with seconds and error."""
    built: list[Case] = []
    skipped: list[str] = []
    try:
        for case in found:
            if isinstance(case, Case):
                built.append(case)
            else:
                skipped.append(f"{case.name}: {case.why}")
    except ImportError as error:
        skipped.append(f"{family}: {error}; install it to have it beside {OURS}")
    except Exception as error:  # a peer's own troubles must not end the run
        skipped.append(f"{family}: {_line(error)}")
    facts = [
        {"name": c.name, "kind": c.kind, "nbytes": c.nbytes, "copies": len(c.copies) * c.products}
        | {"operations": c.operations}
        for c in built
    ]
    print(json.dumps({"cases": facts, "skipped": skipped}), flush=True)
    for line in sys.stdin:
        index, batch = json.loads(line)
        try:
            seconds, error = timed(built[index], batch, cols)
            answer: dict[str, Any] = {"seconds": seconds, "error": error, "facts": built[index].facts}
        except Exception as error:
            answer = {"failed": _line(error)}
        print(json.dumps(answer), flush=True)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"


def timed(case: Case, batch: int, cols: int) -> tuple[float, float | None]:
    """Seconds of a product, over as many as take a slice; and the error, once a batch."""
    x = np.random.default_rng(batch).standard_normal((batch, cols), np.float32)
    product = case.prepare(x)
    if batch not in case.errors:
        y = np.asarray(product(case.copies[0]))
        case.errors[batch] = relative_error(x, y[:, case.oracle[0]], case.oracle[1]) if case.oracle else None
        first = case.prepare(x[: case.warm]) if case.warm else product
        for copy in case.copies:  # first products prepack, and some libraries compile for each batch
            first(copy)
        if case.resident:
            case.facts["resident"] = case.resident()
        time.sleep(REST)
    count = 1
    while True:  # the short turns warm the threads up, which were stopped
        start = time.perf_counter()
        for copy in islice(case.turns, count):
            product(copy)
        seconds = time.perf_counter() - start
        if seconds >= case.slice:
            return seconds / count / case.products, case.errors[batch]
        count = max(2 * count, int(1.1 * count * case.slice / max(seconds, 1e-9)))


def spread(count: int, most: int) -> np.ndarray:
    """At most so many of `count` rows, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def relative_error(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    """Relative rms error of y against x @ w.T in float64."""
    true = x.astype(np.float64) @ w.T.astype(np.float64)
    size = float(np.sum(true**2))
    return (float(np.sum((y - true) ** 2)) / size) ** 0.5 if size else 0.0
