"""What two checkpoints of any format differ in: names, shapes, schemes, bytes and values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint import Reader, TensorInfo
from pumice.checkpoint.fingerprint import FINGERPRINT, made_from
from pumice.errors import printable
from pumice.report import table_of

CHUNK_BYTES = 16 << 20  # of float64 values that are compared at a time
SHOWN = 6  # names in a line

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TensorDifference:
    """One name that either checkpoint has.

    Attributes
    ----------
    a, b : TensorInfo or None
        None where it is missing.
    changed : int or None
        Values that differ, a NaN from a NaN not; None where shapes do.
    nonfinite : int
        Of these, places where one of the two is NaN or infinite; the rest makes the error.
    noise, signal : float
        ``||a - b|| ** 2`` and ``||a|| ** 2``.
    same_source : bool or None
        Whether both were made from the same array, or one from the other, by their fingerprints
        (docs/formats.md); None where neither says what it was made from.
    """

    name: str
    a: TensorInfo | None
    b: TensorInfo | None
    changed: int | None = None
    nonfinite: int = 0
    noise: float = field(default=0.0, repr=False)
    signal: float = field(default=0.0, repr=False)
    same_source: bool | None = None

    @property
    def error(self) -> float | None:
        """``||a - b|| / ||a||`` (Frobenius); infinite beside nothing but zeros, None where nothing can be compared."""
        return None if self.changed is None else relative(self.noise, self.signal)

    @property
    def same(self) -> bool:
        """Whether shape and values are equal; the scheme need not be."""
        return self.changed == 0

    @property
    def unchanged(self) -> bool:
        """Whether the scheme is equal, too."""
        return self.same and self.a is not None and self.b is not None and self.a.dtype == self.b.dtype


@dataclass(frozen=True)
class Difference:
    """All names of two checkpoints, sorted."""

    a: str
    b: str
    tensors: tuple[TensorDifference, ...]

    @property
    def same(self) -> bool:
        """Whether both have the same names, shapes and values."""
        return all(t.same for t in self.tensors)

    def within(self, max_error: float) -> bool:
        """Whether names and shapes are the same, and the error of each tensor is at most this."""
        return all(t.error is not None and t.error <= max_error and not t.nonfinite for t in self.tensors)

    @property
    def error(self) -> float:
        """The relative error of all tensors that can be compared, as if they were one."""
        return relative(math.fsum(t.noise for t in self.tensors), math.fsum(t.signal for t in self.tensors))

    @property
    def nbytes(self) -> tuple[int, int]:
        """Stored bytes of each."""
        return sum(t.a.nbytes for t in self.tensors if t.a), sum(t.b.nbytes for t in self.tensors if t.b)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: what `pumice diff --json` prints. Infinite errors are null there, as are unknown ones."""
        return {
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "only_in_a": [t.name for t in self.tensors if t.b is None],
            "only_in_b": [t.name for t in self.tensors if t.a is None],
            "tensors": [_json(t) for t in self.tensors if t.a and t.b],
            "error": _finite(self.error),
            "snr": _finite(decibels(self.error)),
            "nbytes_a": self.nbytes[0],
            "nbytes_b": self.nbytes[1],
        }

    def __str__(self) -> str:
        rows = [_cells(t) for t in self.tensors if not t.unchanged]
        equal = len(self.tensors) - len(rows)
        before, after = self.nbytes
        rows.append(("total", "", "", f"{before:,}", f"{after:,}", "", f"{self.error:.4g}", _snr(self.error)))
        headings = ("tensor", "shape", "scheme", "bytes a", "bytes b", "values differ", "error", "SNR dB")
        title = f"a: {self.a}\nb: {self.b}\n{equal} tensors are the same in both\n"
        return title + self._sources() + table_of(headings, rows)

    def _sources(self) -> str:
        """What is known of where the arrays came from, in a line."""
        known = [t for t in self.tensors if t.same_source is not None]
        others = [t.name for t in known if not t.same_source]
        if not known:
            return ""
        if not others:
            return f"{len(known)} tensors have the same source in both\n"
        named = ", ".join(others[:SHOWN]) + (f" and {len(others) - SHOWN} more" if len(others) > SHOWN else "")
        return printable(f"{len(others)} of {len(known)} tensors come from ANOTHER source: {named}") + "\n"


def difference(a: Reader, b: Reader, names: tuple[str, str], progress: Progress | None = None) -> Difference:
    """Compare two open checkpoints, a chunk of rows at a time.

    Parameters
    ----------
    a, b
        The first is what errors are relative to.
    names
        What they are called in the result.
    progress
        Called with (name, bytes done, bytes in all) of `a`.
    """
    in_a, in_b = set(a.names()), set(b.names())
    total, done, found = sum(a.info(name).nbytes for name in in_a), 0, []
    for name in sorted(in_a | in_b):
        mine, others = (reader.info(name) if name in known else None for reader, known in ((a, in_a), (b, in_b)))
        one = TensorDifference(name, mine, others)
        if mine is not None and others is not None:
            if FINGERPRINT in {*mine.notes, *others.notes}:
                one = replace(one, same_source=made_from(a, name) == made_from(b, name))
            if mine.shape == others.shape:
                one = _compared(a, b, one, mine.shape)
        found.append(one)
        done += one.a.nbytes if one.a is not None else 0
        if progress is not None:
            progress(name, done, total)
    return Difference(*names, tuple(found))


def relative(noise: float, signal: float) -> float:
    """A relative error from squared norms."""
    if not noise:
        return 0.0
    return math.sqrt(noise / signal) if signal else math.inf


def decibels(error: float | None) -> float | None:
    """The signal to noise ratio, None for an exact tensor."""
    return -20 * math.log10(error) if error else None


def _compared(a: Reader, b: Reader, one: TensorDifference, shape: tuple[int, ...]) -> TensorDifference:
    rows = shape[0] if shape else 1
    step = max(1, CHUNK_BYTES // (8 * max(math.prod(shape[1:]), 1)))
    changed, nonfinite, noise, signal = 0, 0, [0.0], [0.0]
    for start in range(0, rows, step):
        x, y = (reader.rows(one.name, start, min(start + step, rows)) for reader in (a, b))
        differ = x != y
        differ &= ~(np.isnan(x) & np.isnan(y))
        finite = np.isfinite(x) & np.isfinite(y)
        changed += int(np.count_nonzero(differ))
        nonfinite += int(np.count_nonzero(differ & ~finite))
        exact = _wide(np.where(finite, x, 0))
        noise.append(_energy(exact - _wide(np.where(finite, y, 0))))
        signal.append(_energy(exact))
    return replace(one, changed=changed, nonfinite=nonfinite, noise=math.fsum(noise), signal=math.fsum(signal))


def _wide(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _energy(values: NDArray[Any]) -> float:
    return float(np.vdot(values, values).real)


def _json(t: TensorDifference) -> dict[str, Any]:
    assert t.a is not None
    assert t.b is not None
    return {
        "name": t.name,
        "shape_a": t.a.shape,
        "shape_b": t.b.shape,
        "scheme_a": t.a.dtype,
        "scheme_b": t.b.dtype,
        "nbytes_a": t.a.nbytes,
        "nbytes_b": t.b.nbytes,
        "changed": t.changed,
        "nonfinite": t.nonfinite,
        "error": _finite(t.error),
        "snr": _finite(decibels(t.error)),
        "same_source": t.same_source,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _snr(error: float | None) -> str:
    snr = decibels(error)
    return "" if snr is None else f"{snr:.1f}"


def _cells(t: TensorDifference) -> tuple[str, ...]:
    infos = [info for info in (t.a, t.b) if info is not None]
    shapes = dict.fromkeys("x".join(map(str, info.shape)) for info in infos)
    schemes = dict.fromkeys(info.dtype for info in infos)
    only = "only in a: " if t.b is None else "only in b: " if t.a is None else ""
    return (
        t.name,
        " -> ".join(shapes),
        only + " -> ".join(schemes),
        f"{t.a.nbytes:,}" if t.a else "",
        f"{t.b.nbytes:,}" if t.b else "",
        "" if t.changed is None else f"{t.changed:,}" + (f" ({t.nonfinite:,} not finite)" if t.nonfinite else ""),
        "" if t.error is None else f"{t.error:.4g}",
        _snr(t.error),
    )
