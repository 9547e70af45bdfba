"""What a run measured, as JSON keeps it: rows of rounds, and the ratios between them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

OURS = "pumice"
PROBE = "probe"
NUMPY = "NumPy float32"
READ, INT8_PEAK, FLOAT_PEAK = "read ceiling (C loop)", "int8 peak (C loop)", "float32 peak (C loop)"


@dataclass(frozen=True)
class Row:
    """A measured case at a batch: milliseconds of every round, and the relative rms error against float64.

    `kind` is what the weights are stored as (int4, int8, 16-bit, float32): peers of one kind compete. `nbytes` is what
    a product reads of the weight, `operations` what it computes (multiplications and additions apart).
    """

    suite: str
    setting: str
    case: str
    kind: str
    batch: int
    rows: int
    cols: int
    threads: int
    hot: bool
    nbytes: int
    operations: float
    copies: int
    rounds: list[float]
    error: float | None
    facts: dict[str, float] = field(default_factory=dict)  # sparsity, bytes on disk and resident, cosine, peak

    @property
    def ours(self) -> bool:
        return self.case.startswith(OURS)

    @property
    def ms(self) -> float:
        return float(np.median(self.rounds))

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        low, high = np.percentile(self.rounds, [25, 75])
        return float((high - low) / self.ms)

    @property
    def bits(self) -> float:
        """Per weight, of those that a product reads."""
        return 8 * self.nbytes / (self.rows * self.cols)

    @property
    def gbytes(self) -> float:
        """GB/s of weights."""
        return self.nbytes / self.ms / 1e6

    @property
    def gflops(self) -> float:
        return self.operations / self.ms / 1e6


@dataclass
class Results:
    """A run: what it was measured on, its rows, and what was left out and why."""

    about: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def settings(self, suite: str | None = None) -> list[str]:
        return list(dict.fromkeys(row.setting for row in self.rows if suite in (None, row.suite)))

    def of(self, suite: str) -> Results:
        """The results of one suite: two of them may measure at the same setting."""
        return replace(self, rows=[row for row in self.rows if row.suite == suite])

    def at(self, setting: str, batch: int | None = None) -> list[Row]:
        return [row for row in self.rows if row.setting == setting and batch in (None, row.batch)]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1), "utf-8")

    @classmethod
    def load(cls, path: Path) -> Results:
        table: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if not isinstance(table, dict) or set(table) != {"about", "rows", "skipped"}:
            raise SystemExit(f"{path}: expected a file that bench/run.py wrote, got other JSON")
        return cls(table["about"], [Row(**row) for row in table["rows"]], table["skipped"])


@dataclass(frozen=True)
class Verdict:
    """Our case beside the fastest of some peers: `ratio` above 1 is a win; `peer` is the one that is fastest most."""

    ratio: float
    peer: str


def judge(ours: Row, rows: Iterable[Row], kind: str | None = None) -> Verdict | None:
    """Median over the rounds of (fastest peer of that round / ours); None without a peer of the kind.

    Parameters
    ----------
    rows : rows of the same setting and batch
        Ours and the probes among them do not count.
    kind : str, optional
        Only peers that store this; None: all of them.
    """
    peers = [row for row in rows if not row.ours and row.kind != PROBE and kind in (None, row.kind)]
    peers = [row for row in peers if np.isfinite(row.rounds).all()]
    if not peers:
        return None
    times = np.array([row.rounds for row in peers])
    best = np.bincount(times.argmin(axis=0), minlength=len(peers)).argmax()
    return Verdict(float(np.median(times.min(axis=0) / np.array(ours.rounds))), peers[best].case)


def share(row: Row, rows: Iterable[Row], probe: str) -> float | None:
    """Part of a probe's rate that a row reaches, median over rounds; None where the probe did not run."""
    limit = next((other for other in rows if other.case == probe), None)
    if limit is None:
        return None
    work = (limit.nbytes, row.nbytes) if probe == READ else (limit.operations, row.operations)
    return float(np.median(np.array(limit.rounds) / work[0] / (np.array(row.rounds) / work[1])))
