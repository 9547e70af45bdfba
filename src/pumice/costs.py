"""The cost model: seconds of a product before anyone has compressed anything.

A roofline. A product waits for its weights to be read or for its arithmetic, whichever takes longer (from DRAM the two
overlap only in part), and a call costs something whatever it computes. What is read and computed is what a layout's
`work` says; how fast, a `Profile`. No layout, codec or kernel is known by name here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pumice._core import native
from pumice.layouts import LAYOUTS, CompactArray
from pumice.layouts.work import Work, label_of, steps_of
from pumice.profile import Profile
from pumice.scheme import Scheme
from pumice.values.base import codec_of, matrix_shape

EXPOSED = 0.75  # of the shorter of reading from DRAM and computing: what the longer does not hide (0.5 to 1 measured)


@dataclass(frozen=True)
class Estimate:
    """Seconds of a product, and of what.

    Attributes
    ----------
    memory, arithmetic, call : float
        Seconds to read the weights, to compute, and of the call itself.
    exposed : float
        Seconds of the shorter of the former two that the longer does not hide.
    correction : float
        How many times the sum of these such products took when the machine was measured.
    """

    memory: float
    arithmetic: float
    call: float
    exposed: float = 0.0
    correction: float = 1.0

    @property
    def seconds(self) -> float:
        return self.correction * self.uncorrected

    @property
    def uncorrected(self) -> float:
        """Seconds by the roofline alone."""
        return self.call + max(self.memory, self.arithmetic) + self.exposed

    @property
    def limit(self) -> str:
        """What it waits for most: "memory", "arithmetic" or "call"."""
        parts = {"memory": self.memory, "arithmetic": self.arithmetic, "call": self.call}
        return max(parts, key=parts.__getitem__)

    def __str__(self) -> str:
        return (
            f"{self.seconds * 1e3:.3g} ms: memory {self.memory * 1e3:.3g}, arithmetic {self.arithmetic * 1e3:.3g}, "
            f"call {self.call * 1e3:.2g}; bound by {'the call' if self.limit == 'call' else self.limit}"
        )


def work_of(scheme: Scheme, shape: tuple[int, ...], density: float, batch: int, activations: str) -> Work | None:
    """What a product does with a weight of this scheme; None where the layout does not say."""
    return LAYOUTS[scheme.layout].work(scheme, shape, density, batch, activations)


def work_with(w: CompactArray, batch: int, activations: str) -> Work | None:
    """What a product does with this array: its own bytes, and its own kernel."""
    if w.terms:
        first, second = (work_with(term, batch, activations) for term in w.terms)
        return None if first is None or second is None else replace(first, also=second)
    scheme = Scheme.parse(w.scheme)
    if w.kernel(batch, activations) is None:
        steps = steps_of(None, w.nnz, w.size, batch)
        unit = max(scheme.group or matrix_shape(w.shape)[1], 1)
        return Work(w.nbytes, steps, activations, label_of(scheme), codec_of(scheme).bits, unit)
    work = work_of(scheme, w.shape, w.density, batch, activations)
    return None if work is None else replace(work, nbytes=w.nbytes)


def estimate(
    work: Work, batch: int, profile: Profile, *, threads: int | None = None, cold: bool = False
) -> Estimate | None:
    """Seconds of some work; None where the profile knows nothing of a kernel.

    Parameters
    ----------
    threads : int, optional
        By default pumice's.
    cold : bool
        Whether the weights come from DRAM, as when a model that no cache holds is decoded; else from the cache that
        holds them.
    """
    threads = native.get_num_threads() if threads is None else threads
    arithmetic, call, correction = 0.0, 0.0, 1.0
    for step in work.steps:
        rate = profile.nearest(step.kernel, work, threads)
        if rate is None:
            return None
        arithmetic += step.operations / (rate.at(batch) * threads / rate.threads) / 1e9
        call += profile.overheads.get(step.kernel, 0.0)
        if cold and step is work.steps[0]:
            correction = rate.cold_at(work.nbytes, batch)
    memory = work.nbytes / profile.bandwidth(math.inf if cold else work.nbytes, threads) / 1e9
    exposed = EXPOSED * min(memory, arithmetic) if cold else 0.0
    mine = Estimate(memory, arithmetic, call, exposed, correction)
    if work.also is None:
        return mine
    also = estimate(work.also, batch, profile, threads=threads, cold=cold)
    if also is None:
        return None
    both = Estimate(memory + also.memory, arithmetic + also.arithmetic, call + also.call, exposed + also.exposed)
    return replace(both, correction=(mine.seconds + also.seconds) / (mine.uncorrected + also.uncorrected))


def predict(
    scheme: str | Scheme,
    shape: tuple[int, ...],
    density: float,
    batch: int,
    activations: str,
    profile: Profile,
    *,
    threads: int | None = None,
    cold: bool = False,
) -> Estimate | None:
    """Seconds of ``x @ w.T`` for a weight in a scheme, from its shape and density alone.

    Parameters
    ----------
    scheme : str
    shape : tuple of int
        Of the weight.
    density : float
        Stored values / all; matters to sparse layouts only.
    batch : int
        Rows of x.
    activations : {"int16", "int8", "float32"}
    profile : Profile
        Of the machine: `pumice.profile.load_profile`.
    threads, cold
        As in `estimate`.

    Returns
    -------
    Estimate, or None where the layout or the profile does not know

    Examples
    --------
    >>> from pumice.profile import default_profile
    >>> here = default_profile("avx2")
    >>> small, plain = (predict(s, (4096, 4096), 1.0, 1, "int16", here, cold=True) for s in ("int8", "float32"))
    >>> small.seconds < plain.seconds
    True
    """
    work = work_of(Scheme.parse(scheme), shape, density, batch, activations)
    return None if work is None else estimate(work, batch, profile, threads=threads, cold=cold)
