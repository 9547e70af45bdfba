"""How long a call takes, as calibration, comparison and `explain` measure it."""

from __future__ import annotations

import time
from collections.abc import Callable

COLD_BYTES = 128 << 20  # more than the caches of most machines hold


def per_call(run: Callable[[], object], lasting: float) -> float:
    """Seconds of a call: the mean over as many as last this long together, after one that warms up.

    Examples
    --------
    >>> 0 < per_call(lambda: None, lasting=1e-3) < 1e-3
    True
    """
    run()
    count = 1
    while True:
        start = time.perf_counter()
        for _ in range(count):
            run()
        seconds = time.perf_counter() - start
        if seconds >= lasting:
            return seconds / count
        count = max(2 * count, int(1.1 * count * lasting / max(seconds, 1e-9)))


def once(run: Callable[[], object]) -> float:
    """Seconds of one call.

    Examples
    --------
    >>> once(lambda: None) >= 0
    True
    """
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
