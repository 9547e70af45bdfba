"""What a conversion will take: bytes and memory from the headers, seconds from encoding a little."""

from __future__ import annotations

import math
import os
import resource
from collections import defaultdict
from pathlib import Path

import numpy as np

from pumice._core import native
from pumice.conversion.chunks import PANEL_BYTES
from pumice.conversion.plan import CHUNK_BYTES, Plan, Step
from pumice.layouts import LAYOUTS
from pumice.ops import compress
from pumice.report import Report, TensorReport
from pumice.scheme import AUTO, Scheme
from pumice.timing import per_call
from pumice.values.base import F32

PANELS = 8  # that a worker holds at a time, as stored, as float32, encoded, decoded, and on the way to a file
SMALL = 1 << 18  # weights that are encoded to see how long that takes
STATUS = Path("/proc/self/status")


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forecast(plan: Plan, source: str, target: str, workers: int) -> Report:
    """A report of what would be done."""
    reports = tuple(_expected(step) for step in plan.steps)
    seconds = _seconds(plan, workers)
    return Report(source, target, reports, seconds, memory=_resident() + workers * _footprint(plan))


def workers_within(plan: Plan, workers: int, max_memory: int | None) -> int:
    """As many workers as there is memory for."""
    room = math.inf if max_memory is None else max_memory - _resident()
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        room = min(room, limit - _field("VmSize"))
    need = _footprint(plan)
    if room < need:
        got = f"room for {max(0, int(room)):,} more"
        raise MemoryError(f"max_memory: expected at least {need:,} bytes beside what the process has, got {got}")
    return int(min(workers, room / need))


def _footprint(plan: Plan) -> int:
    """Bytes that a worker takes at most: some panels, and the largest chunk, encoded."""
    largest = PANELS * PANEL_BYTES
    for step in plan.steps:
        if not step.copied:
            if step.choice.whole:
                largest = max(largest, PANELS * 4 * math.prod(step.info.shape))
                continue
            row, scheme = 4 * math.prod(step.stored[1:]), step.choice.scheme
            unit = 32 if scheme in (None, AUTO) else LAYOUTS[scheme.layout].chunk_rows(scheme)
            rows = min(unit, step.stored[0]) * row
            encoded = min(max(CHUNK_BYTES, rows), step.stored[0] * row) * _share(step)
            stored = CHUNK_BYTES * step.info.nbytes // max(4 * math.prod(step.info.shape), 1)
            largest = max(largest, PANELS * max(PANEL_BYTES, rows) + stored + int(encoded))
    return largest


def _share(step: Step) -> float:
    """Bytes of the encoded weight for each of float32."""
    after, size = _expected(step).nbytes_after, 4 * max(math.prod(step.info.shape), 1)
    return 1.5 if after is None else after / size


def _expected(step: Step) -> TensorReport:
    scheme, info = step.choice.scheme, step.info
    if step.copied or scheme is None:
        return TensorReport(step.name, info.shape, info.dtype, info.nbytes, info.nbytes, why=step.choice.why)
    after = None if scheme == AUTO else LAYOUTS[scheme.layout].expected_nbytes(scheme, step.stored)
    return TensorReport(step.name, info.shape, str(scheme), info.nbytes, after, why=step.choice.why)


def _seconds(plan: Plan, workers: int) -> float:
    """What encoding takes, by encoding some weights in each scheme with one thread. A disk may take longer."""
    weights: dict[Scheme, int] = defaultdict(int)
    for step in plan.steps:
        if not step.copied and step.choice.scheme is not None:
            weights[step.choice.scheme] += math.prod(step.info.shape)
    w = np.random.default_rng(0).standard_normal((SMALL // 1024, 1024)).astype(np.float32)
    sparse = np.where(np.arange(1024) % 8, np.float32(0), w)
    before, total = native.get_num_threads(), 0.0
    native.set_num_threads(1)
    try:
        for scheme, count in weights.items():
            parsed = Scheme(values="int8") if scheme == AUTO else scheme

            sample = w if parsed.dense else sparse

            def encode(parsed: Scheme = parsed, sample: F32 = sample) -> None:
                native.row_energies(sample, compress(sample, parsed).to_dense())

            total += per_call(encode, lasting=0.02) * count / w.size * (3 if scheme == AUTO else 1)
    finally:
        native.set_num_threads(before)
    return total / workers


def _resident() -> int:
    return _field("VmRSS")


def _field(name: str) -> int:
    """Bytes that Linux says of this process; 0 elsewhere."""
    if not STATUS.exists():
        return 0
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10
