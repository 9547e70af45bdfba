"""`explain`: how a product is computed here, what it costs, and what would cost less."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pumice._core import native
from pumice.choice import DENSE, PLAIN, Choice
from pumice.costs import Estimate, estimate, predict, work_with
from pumice.layouts import CompactArray, Transposed
from pumice.options import ACTIVATIONS, check_choice, current
from pumice.profile import Profile, load_profile
from pumice.timing import COLD_BYTES, once

RUNS = 5


@dataclass(frozen=True)
class Alternative:
    """Another scheme for the same weight, and what a product with it is expected to take."""

    scheme: str
    expected: Estimate


@dataclass(frozen=True)
class Explanation:
    """How a product is computed. `str` gives it as text.

    Attributes
    ----------
    kernel : str
        The kernel, or "decode + BLAS".
    isa, threads
        What it runs on.
    bytes_moved : int
        Bytes of weights that one product reads.
    seconds : float
        Measured: the median of a few products; weights as warm as they are then, or read from DRAM if `cold`.
    expected : Estimate or None
        The roofline: seconds to read the weights, to compute, of the call. None where the layout or the profile does
        not know the kernel.
    alternatives : tuple of Alternative
        Other schemes for a weight of this shape, fastest first, as the same model has them; float32 is NumPy.
    profile : str
        Where the numbers of the model come from.
    faster : tuple of str
        What would be faster.
    choice : Choice or None
        What ``compress(w, "auto")`` held against each other.
    """

    scheme: str
    shape: tuple[int, ...]
    batch: int
    activations: str
    cold: bool
    kernel: str
    isa: str
    threads: int
    bytes_moved: int
    seconds: float
    expected: Estimate | None
    alternatives: tuple[Alternative, ...]
    profile: str
    faster: tuple[str, ...]
    choice: Choice | None = None

    @property
    def fastest(self) -> Alternative | None:
        """The other scheme that is expected to be fastest."""
        return self.alternatives[0] if self.alternatives else None

    @property
    def numpy_wins(self) -> bool:
        """Whether NumPy is expected to multiply the weights in float32 faster than this scheme."""
        plain = next((a.expected for a in self.alternatives if a.scheme == PLAIN), None)
        return plain is not None and plain.seconds < self._own

    @property
    def _own(self) -> float:
        """Seconds to hold against the model's: its own, or without them what was measured."""
        return self.seconds if self.expected is None else self.expected.seconds

    def __str__(self) -> str:
        speed = self.bytes_moved / self.seconds / 1e9
        where = "from DRAM" if self.cold else "as warm as they are"
        lines = [
            f"{self.scheme} {self.shape}, batch {self.batch}, activations {self.activations}",
            f"kernel   {self.kernel} ({self.isa}, {self.threads} threads)",
            f"reads    {self.bytes_moved:,} bytes of weights; float32 would be {4 * int(np.prod(self.shape)):,}",
            f"time     {self.seconds * 1e3:.3g} ms measured, {speed:.3g} GB/s, weights {where}",
        ]
        lines.append(f"expected {'unknown: no estimate for this kernel' if self.expected is None else self.expected}")
        if self.fastest is not None:
            expected = self.fastest.expected.seconds
            verdict = "faster" if expected < self._own else "no faster"
            name = f"{PLAIN} in NumPy" if self.fastest.scheme == PLAIN else self.fastest.scheme
            lines.append(f"fastest  of the others: {name}, {expected * 1e3:.3g} ms expected, {verdict} than this")
        if self.numpy_wins:
            plain = next(a.expected for a in self.alternatives if a.scheme == PLAIN)
            lines.append(f"float32  NumPy would win: {plain.seconds * 1e3:.3g} ms expected")
        lines += [f"faster   {hint}" for hint in self.faster]
        lines.append(f"profile  {self.profile}")
        return "\n".join(lines if self.choice is None else [*lines, str(self.choice)])


def explain(w: CompactArray, batch: int = 1, activations: str | None = None, *, cold: bool = False) -> Explanation:
    """How ``x @ w.T`` is computed here: kernel, ISA, bytes moved, time measured and expected, what would be faster.

    Parameters
    ----------
    w : CompactArray
        A matrix.
    batch : int
        Rows of x.
    activations : {"int16", "int8", "float32"}, optional
        By default what `options` says.
    cold : bool
        Take the weights from DRAM, as when a model that no cache holds is decoded; else as warm as products in a row
        leave them. Counts for what is measured and for what is expected.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> explained = pm.explain(pm.compress(np.eye(8), "int8"))
    >>> explained.kernel, explained.expected.limit
    ('matmul_int', 'call')
    """
    if not isinstance(w, CompactArray):
        raise TypeError(f"w: expected a CompactArray, got {type(w).__name__}")
    if batch < 1:
        raise ValueError(f"batch: expected at least 1, got {batch}")
    activations = current().activations if activations is None else activations
    check_choice("activations", activations, ACTIVATIONS)
    profile, threads = load_profile(), native.get_num_threads()
    work = work_with(w, batch, activations)
    expected = None if work is None else estimate(work, batch, profile, threads=threads, cold=cold)
    kernel = w.kernel(batch, activations)
    return Explanation(
        w.scheme, w.shape, batch, activations, cold, kernel or "decode + BLAS", native.get_isa(), threads,
        w.nbytes, _measure(w, batch, activations, cold), expected,
        tuple(_alternatives(w, batch, activations, profile, threads, cold)), profile.source,
        tuple(_hints(w, batch, activations)), w.choice,
    )  # fmt: skip


def _measure(w: CompactArray, batch: int, activations: str, cold: bool) -> float:
    """Median seconds of a few products; cold: what is read in between takes the place of the weights."""
    x = np.ones((batch, w.shape[-1]), np.float32)
    w.linear(x, None, activations)
    evict = np.ones(COLD_BYTES // 8 if cold else 0)
    runs = []
    for _ in range(RUNS):
        evict.sum()
        runs.append(once(lambda: w.linear(x, None, activations)))
    return float(np.median(runs))


def _alternatives(
    w: CompactArray, batch: int, activations: str, profile: Profile, threads: int, cold: bool
) -> list[Alternative]:
    """Other schemes for weights as many as these, fastest first."""
    found = []
    for scheme in DENSE:
        if scheme != w.scheme:
            expected = predict(scheme, w.shape, 1.0, batch, activations, profile, threads=threads, cold=cold)
            if expected is not None:
                found.append(Alternative(scheme, expected))
    return sorted(found, key=lambda a: a.expected.seconds)


def _hints(w: CompactArray, batch: int, activations: str) -> Iterable[str]:
    kernel = w.kernel(batch, activations)
    if isinstance(w, Transposed):
        yield "the product with w.T is the fused one; compress(w, scheme, in_axis=0) stores w for this one"
        return
    for other in ACTIVATIONS:
        if kernel is None and w.kernel(batch, other):
            yield f"activations={other!r} has a kernel, {w.kernel(batch, other)}"
    if kernel == "matmul_int" and activations == "int16" and batch > 8:
        yield "activations='int8' needs half the arithmetic, at a relative error of about 6e-3"
