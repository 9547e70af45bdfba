"""Measure a machine's profile, through pumice's own kernels and NumPy's BLAS."""

from __future__ import annotations

import contextlib
import datetime
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.costs import estimate, work_with
from pumice.errors import SchemeError
from pumice.layouts import CompactArray, from_parts
from pumice.layouts.work import Work
from pumice.ops import compress
from pumice.options import ACTIVATIONS
from pumice.profile import Bandwidth, Profile, Rate, cpu_name
from pumice.scheme import Scheme
from pumice.timing import COLD_BYTES, once, per_call

# What is timed. Each scheme stands for those that are near it in bits and group.
SCHEMES = ("float32", "float16", "bfloat16", "int8", "int4-g128", "int4-g32", "int3-g128", "int6-g128")
SPARSE = {  # scheme -> density; what has no codec or layout yet is left out
    "csr": 0.1, "csr+float16": 0.1, "csr+bfloat16": 0.1, "csr+int8": 0.1, "bsr-16x1": 0.25, "bsr-16x1+int8": 0.25,
    "bsr-8x1": 0.25, "bsr-4x4": 0.25, "bsr-4x4+int8": 0.25, "bsr-16x4": 0.25, "bsr-16x4+float16": 0.25,
    "bsr-16x4+bfloat16": 0.25, "bsr-16x4+int8": 0.25, "bsr-16x16": 0.25, "bsr-16x16+int8": 0.25, "bitmask": 0.3,
    "bitmask+float16": 0.3, "bitmask+bfloat16": 0.3, "bitmask+int8": 0.3, "bitmask+int4-g128": 0.3, "2:4": 0.5,
    "2:4+float16": 0.5, "2:4+bfloat16": 0.5, "2:4+int8": 0.5, "2:4+int4-g128": 0.5,
}  # fmt: skip
ROWS, COLS = 1024, 2048
BATCHES = (1, 4, 16, 64, 256)
SIZES = (1 << 18, 1 << 21, 1 << 24, COLD_BYTES)  # bytes of weights that a level of the caches holds; the last none
STREAMED = "int8"  # the scheme whose products read the most bytes a second, in int8 activations
COLD_BATCHES = (1, 4, 16, 64)  # of products with weights from DRAM
COLD_PASSES, COLD_REPEATS = 3, 3  # the best pass counts, and of each the median: what disturbs may last for seconds
# Of these products: rows, columns, and how many times as many values as above a sparse layout stores.
COLD_SIZES = {
    True: tuple((2 * ROWS, COLS, more) for more in (0.4, 1.0, 2.0)),
    False: tuple((rows, COLS, 1.0) for rows in (ROWS // 2, 2 * ROWS)),
}
LASTING = 0.004  # seconds of a measurement; the best of a few counts, since whatever disturbs only slows
REPEATS = 3

Progress = Callable[[str, int, int], None]
Cold: TypeAlias = dict[int, dict[int, dict[int, float]]]
"""Place of a rate -> bytes of a weight -> batch -> how many times what the cost model says."""


def calibrate(progress: Progress | None = None) -> Profile:
    """Measure this machine on the ISA in force, with one thread and with all: about two minutes.

    Parameters
    ----------
    progress : callable, optional
        Called with a text, steps done and steps in all.
    """
    from pumice import __version__

    threads = sorted({1, native.get_num_threads()})
    tell = progress or (lambda text, done, total: None)
    schemes = [*SCHEMES, *filter(_is_known, SPARSE)]
    weights = [(scheme, _weight(scheme, *size)) for scheme in schemes for size in COLD_SIZES[_is_free(scheme)]]
    total, done = len(threads) * (len(schemes) + 1 + COLD_PASSES * len(weights)), 0
    bandwidths: list[Bandwidth] = []
    rates: list[Rate] = []
    overheads: dict[str, float] = {}
    for count in threads:
        with _threads(count) as blas_too:
            for scheme in schemes:
                tell(f"{scheme}, {count} threads", done, total)
                if scheme != "float32" or blas_too:
                    _measure_scheme(scheme, count, rates, overheads)
                done += 1
            tell(f"read bandwidth, {count} threads", done, total)
            bandwidths += [Bandwidth(size, count, _short(_bandwidth(size, blas_too))) for size in SIZES]
            done += 1
    now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    profile = Profile(
        cpu_name(), native.get_isa(), __version__, f"measured {now}", tuple(bandwidths), tuple(rates), overheads
    )
    cold: Cold = {}
    evict = np.ones(COLD_BYTES // 8)
    for count in threads:
        with _threads(count) as blas_too:
            for _ in range(COLD_PASSES):
                for scheme, w in weights:
                    tell(f"{scheme} from DRAM, {count} threads", done, total)
                    if scheme != "float32" or blas_too:
                        _measure_cold(w, profile, count, evict, cold)
                    done += 1
    tell("done", total, total)
    corrected = (replace(rate, cold=cold.get(index, {})) for index, rate in enumerate(profile.rates))
    return replace(profile, rates=tuple(corrected))


@contextlib.contextmanager
def _threads(count: int) -> Iterator[bool]:
    """Pumice's threads, and NumPy's if threadpoolctl is there; whether NumPy has as many."""
    before = native.get_num_threads()
    native.set_num_threads(count)
    try:
        try:
            import threadpoolctl
        except ImportError:
            yield count == before
        else:
            with threadpoolctl.threadpool_limits(limits=count, user_api="blas"):
                yield True
    finally:
        native.set_num_threads(before)


def _is_known(scheme: str) -> bool:
    try:
        Scheme.parse(scheme)
    except SchemeError:
        return False
    return True


def _weight(scheme: str, rows: int, cols: int, more: float = 1.0) -> CompactArray:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((rows, cols), np.float32)
    pattern = Scheme.parse(scheme).pattern
    if pattern is not None and pattern.kept is not None:
        n, m = pattern.kept
        w *= (rng.random((rows, cols // m, m)).argsort(axis=2) < n).reshape(rows, cols)
    elif scheme in SPARSE:
        height, width = (1, 1) if pattern is None or pattern.blocksize is None else pattern.blocksize
        kept = rng.random((-(-rows // height), -(-cols // width))) < more * SPARSE[scheme]
        kept[:1, :1] = True  # a tiny weight has something, too
        w *= np.kron(kept, np.ones((height, width), bool))[:rows, :cols]
    array: CompactArray = compress(w, scheme)
    return array


def _works(w: CompactArray, batches: tuple[int, ...]) -> Iterator[tuple[Work, int, str | None]]:
    """Of each way that x enters and each batch: what the product does, the batch, and its kernel, None without one.

    What float32 x has, too, is not said again: it does not depend on how x enters.
    """
    for activations in ACTIVATIONS:
        for batch in batches:
            work, kernel = work_with(w, batch, activations), w.kernel(batch, activations)
            if work is not None and (activations == "float32" or kernel not in (None, w.kernel(batch, "float32"))):
                yield work, batch, kernel


def _measure_scheme(scheme: str, threads: int, rates: list[Rate], overheads: dict[str, float]) -> None:
    """Every kernel of a scheme, at every batch that it is for."""
    w, tiny = _weight(scheme, ROWS, COLS), _weight(scheme, 16, 32)
    found: dict[tuple[str, str], dict[int, float]] = {}
    for work, batch, kernel in _works(w, BATCHES):
        step, activations = work.steps[0], work.activations
        gops = found.setdefault((step.kernel, activations), {})
        if kernel is None and gops:
            continue  # decoding does not depend on the batch
        run = _product(w, batch, activations) if kernel else lambda: w.decode_rows(0, ROWS)
        small = _product(tiny, 1, activations) if kernel else lambda: tiny.decode_rows(0, 16)
        if step.kernel not in overheads:
            overheads[step.kernel] = _short(_best(small))
        seconds = max(_best(run) - overheads[step.kernel], 1e-9)
        gops[batch if kernel else 1] = _short(step.operations / seconds / 1e9)
    for (kernel_name, activations), gops in found.items():
        work_of_one = work_with(w, 1, activations)
        if work_of_one is not None:
            like = work_of_one.stored, work_of_one.bits, work_of_one.unit
            rates.append(Rate(kernel_name, activations, *like, threads, gops))


def _is_free(scheme: str) -> bool:
    """Whether a layout stores as many values as a weight has, not always the same share."""
    pattern = Scheme.parse(scheme).pattern
    return scheme in SPARSE and (pattern is None or pattern.kept is None)


def _measure_cold(w: CompactArray, profile: Profile, threads: int, evict: NDArray[np.float64], cold: Cold) -> None:
    """Into `cold`: how far products with a weight from DRAM are from the cost model, or were before if that is less."""
    for work, batch, _ in _works(w, COLD_BATCHES):
        rate = profile.nearest(work.steps[0].kernel, work, threads)
        expected = estimate(work, batch, profile, threads=threads, cold=True)
        assert rate is not None and expected is not None  # just measured
        run, seconds = _product(w, batch, work.activations), []
        for _ in range(COLD_REPEATS + 1):
            evict.sum()
            seconds.append(once(run))
        correction = _short(float(np.median(seconds[1:])) / expected.seconds)  # the first may prepack
        factors = cold.setdefault(profile.rates.index(rate), {}).setdefault(round(work.nbytes), {})
        factors[batch] = min(correction, factors.get(batch, math.inf))


def _short(number: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{number:.4g}")


def _product(w: CompactArray, batch: int, activations: str) -> Callable[[], Any]:
    x = np.random.default_rng(1).standard_normal((batch, w.shape[1]), np.float32)
    return lambda: w.linear(x, None, activations)


def _best(run: Callable[[], object]) -> float:
    """Seconds of a call; what takes long is timed once, which bounds the whole on slow machines."""
    first = per_call(run, LASTING)
    return first if first > LASTING else min(first, *(per_call(run, LASTING) for _ in range(REPEATS - 1)))


def _bandwidth(size: int, blas_too: bool) -> float:
    """GB/s of products at batch 1 that read weights of this size over and over, ours or NumPy's, whichever is more."""
    rows = min(size, 1 << 24) // COLS
    w = _weight(STREAMED, rows, COLS)
    parts = w.parts()
    copies = [w] + [
        from_parts(w.scheme, w.shape, {name: part.copy() for name, part in parts.items()})
        for _ in range(-(-size // w.nbytes) - 1)
    ]
    runs = [_product(copy, 1, "int8") for copy in copies]

    def all_of_them() -> None:
        for run in runs:
            run()

    gbytes = sum(copy.nbytes for copy in copies) / _best(all_of_them) / 1e9
    if blas_too:  # where our kernel computes more slowly than memory delivers
        plain, x = np.ones((max(size // (4 * COLS), 1), COLS), np.float32), np.ones((1, COLS), np.float32)
        gbytes = max(gbytes, plain.nbytes / _best(lambda: x @ plain.T) / 1e9)
        time.sleep(0.05)  # what spins after it has parked then
    return gbytes
