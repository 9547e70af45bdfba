"""Time libraries side by side: each in a process of its own, stopped while another is timed.

Thread pools spin for up to 200 ms after a product, so two libraries in one process slow each other down. Each case
holds copies of its weight worth four times the L3 cache and takes the next one for each product: cold weights, as when
a model is decoded. Cases are asked in a fresh random order every round.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

SLICE = 0.06  # seconds that a case is timed for, a round
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PUMICE_NUM_THREADS")


@dataclass
class Case:
    """One weight in one library.

    `nbytes` is what a product reads of it; `copies` are equal weights at different places; `product(copy, x)` gives y;
    `exact` is the decoded weight that y is held against.
    """

    name: str
    nbytes: int
    copies: list[Any]
    product: Callable[[Any, np.ndarray], np.ndarray]
    exact: np.ndarray
    errors: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.turns = cycle(self.copies)


@dataclass(frozen=True)
class Row:
    """A measured case: milliseconds of every round, and the relative rms error against float64."""

    group: str
    case: str
    batch: int
    nbytes: int
    copies: int
    rounds: list[float]
    error: float

    @property
    def ms(self) -> float:
        return float(np.median(self.rounds))

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, high = np.percentile(self.rounds, [25, 75])
        return float((high - low) / self.ms)


def cold_copies(nbytes: int, make: Callable[[], Any]) -> list[Any]:
    """As many copies as make the weights cold."""
    return [make() for _ in range(max(2, -(-4 * l3_bytes() // max(nbytes, 1))))]


def l3_bytes() -> int:
    try:
        size = int(subprocess.run(["getconf", "LEVEL3_CACHE_SIZE"], capture_output=True, text=True).stdout or 0)
    except (OSError, ValueError):
        size = 0
    return size or 32 << 20


def measure(group: str, families: list[str], batches: list[int], rounds: int, threads: int) -> list[Row]:
    """Time every case of the families (functions of `cases.py` that yield cases) at every batch."""
    environment = os.environ | {name: str(threads) for name in THREAD_VARIABLES}
    workers, cases = [], []
    for family in families:
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), family]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        workers.append(process)
        cases += [(process, i, *case) for i, case in enumerate(_read(process))]
        process.send_signal(signal.SIGSTOP)
    order = np.random.default_rng(0)
    rows = []
    for batch in batches:
        times: dict[str, list[float]] = {name: [] for _, _, name, _, _ in cases}
        errors = {}
        for _ in range(rounds):
            for j in order.permutation(len(cases)):
                process, i, name, _, _ = cases[j]
                process.send_signal(signal.SIGCONT)
                print(json.dumps([i, batch]), file=process.stdin, flush=True)
                seconds, errors[name] = _read(process)
                process.send_signal(signal.SIGSTOP)
                times[name].append(seconds * 1e3)
        rows += [Row(group, name, batch, size, n, times[name], errors[name]) for _, _, name, size, n in cases]
        print(f"  {group}, batch {batch}: done", file=sys.stderr, flush=True)
    for process in workers:
        process.send_signal(signal.SIGCONT)
        process.communicate()
    return rows


def _read(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args}: ended with {process.wait()}")
    return json.loads(line)


def serve(cases: Iterator[Case]) -> None:
    """The other end: build the cases, then answer [case, batch] with [seconds, error]."""
    built = list(cases)
    print(json.dumps([(case.name, case.nbytes, len(case.copies)) for case in built]), flush=True)
    for line in sys.stdin:
        index, batch = json.loads(line)
        print(json.dumps(_time(built[index], batch)), flush=True)


def _time(case: Case, batch: int) -> tuple[float, float]:
    x = np.random.default_rng(batch).standard_normal((batch, case.exact.shape[1]), np.float32)
    if batch not in case.errors:
        y = case.product(case.copies[0], x)
        true = x.astype(np.float64) @ case.exact.T.astype(np.float64)
        case.errors[batch] = float(np.sqrt(np.mean((y - true) ** 2) / np.mean(true**2)))
        for copy in case.copies:  # first products prepack
            case.product(copy, x)
        time.sleep(0.3)  # NumPy's threads, which the oracle used, spin until then
    case.product(next(case.turns), x)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SLICE or count < 3:
        case.product(next(case.turns), x)
        count += 1
    return (time.perf_counter() - start) / count, case.errors[batch]


def machine(threads: int) -> dict[str, str]:
    """What the numbers were measured on."""
    import scipy

    import pumice

    config = pumice.show_config()
    name = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
    return {
        "machine": f"{name}, {os.cpu_count()} CPUs, L3 {l3_bytes() >> 20} MiB",
        "threads": str(threads),
        "isa": config["isa"],
        "import": import_cost(),
        "versions": f"pumice {config['version']} ({config['compiler']}), NumPy {np.__version__}, "
        f"SciPy {scipy.__version__}, Python {platform.python_version()}",
    }


def import_cost() -> str:
    """What ``import pumice`` adds to ``import numpy``, each in a process of its own."""
    code = "import time, numpy; start = time.perf_counter(); import pumice; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    runs = [float(subprocess.run(command, env=environment, capture_output=True, text=True).stdout) for _ in range(9)]
    return f"{np.median(runs) * 1e3:.0f} ms above NumPy (median of {len(runs)} processes)"


def save(path: Path, about: dict[str, str], rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1))
