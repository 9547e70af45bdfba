"""What a conversion did, or a checkpoint holds: a table for people, JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pumice._core import native
from pumice.errors import printable
from pumice.layouts import CompactArray
from pumice.statistics import Moments
from pumice.values.base import F32, Energies

PANEL = 1 << 22  # weights whose errors are made at a time


@dataclass(frozen=True)
class TensorReport:
    """One tensor.

    Attributes
    ----------
    scheme : str
        The scheme now; the dtype for a tensor that is as it was.
    nbytes_before, nbytes_after : int or None
        Stored bytes; None where a dry run cannot know them.
    error : float or None
        ``||w - w'|| / ||w||`` (Frobenius) of a compressed tensor.
    output_error : float or None
        ``||x (w - w')^T|| / ||x w^T||`` over the inputs x of the calibration data, where there is any for the tensor.
    """

    name: str
    shape: tuple[int, ...]
    scheme: str
    nbytes_before: int
    nbytes_after: int | None
    error: float | None = None
    why: str = ""
    output_error: float | None = None

    @property
    def bits_per_weight(self) -> float | None:
        size = math.prod(self.shape)
        return 8 * self.nbytes_after / size if self.nbytes_after is not None and size else None

    @property
    def snr(self) -> float | None:
        """Signal to noise in dB, ``-20 log10(error)``; None for an exact tensor."""
        return -20 * math.log10(self.error) if self.error else None


@dataclass(frozen=True)
class Report:
    """All tensors of a conversion, and its totals; of a dry run `seconds` and `memory` (bytes) are what to expect.
    `already_complete` says that an earlier run has written the target, and this one nothing."""

    source: str
    target: str
    tensors: tuple[TensorReport, ...]
    seconds: float = 0.0
    copied: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    memory: int | None = None
    already_complete: bool = False

    @property
    def nbytes_before(self) -> int:
        return sum(t.nbytes_before for t in self.tensors)

    @property
    def nbytes_after(self) -> int | None:
        sizes = [t.nbytes_after for t in self.tensors if t.nbytes_after is not None]
        return sum(sizes) if len(sizes) == len(self.tensors) else None

    def to_json(self) -> dict[str, Any]:
        """A JSON object: what `pumice convert --json` prints."""
        table = asdict(self)
        for entry, tensor in zip(table["tensors"], self.tensors, strict=True):
            entry |= {"bits_per_weight": tensor.bits_per_weight, "snr": tensor.snr}
        return table | {"nbytes_before": self.nbytes_before, "nbytes_after": self.nbytes_after}

    def __str__(self) -> str:
        rows = [_cells(tensor) for tensor in self.tensors]
        before, after = self.nbytes_before, self.nbytes_after
        size = sum(math.prod(t.shape) for t in self.tensors)
        bits = "" if after is None or not size else f"{8 * after / size:.2f}"
        rows.append(("total", "", "", f"{before:,}", "?" if after is None else f"{after:,}", bits, "", "", ""))
        if all(tensor.output_error is None for tensor in self.tensors):
            return table_of(HEADINGS[:-1], [row[:-1] for row in rows])
        return table_of(HEADINGS, rows)


class Loss:
    """What an array lacks of a weight, and what its layer's output lacks of the calibration data's."""

    def __init__(self, moments: Moments | None = None) -> None:
        self._h = None if moments is None else moments.mean()
        self.energies: tuple[list[float], ...] = ([], [], [], [])
        """Of each row noise and signal, of weights and of outputs. A sum by `math.fsum` depends on no order: the error,
        which is stored, has the same bits however the rows were cut into chunks."""

    @property
    def of_outputs(self) -> bool:
        """Whether outputs count, too."""
        return self._h is not None

    def note(self, energies: Energies) -> None:
        """Rows whose energies are known; those of outputs are not."""
        for all_rows, rows in zip(self.energies, energies, strict=False):
            all_rows.extend(rows.tolist())

    def add(self, chunk: Any, array: CompactArray) -> None:
        """Rows, and what became of them."""
        cols = math.prod(chunk.shape[1:])
        step = max(1, PANEL // max(cols, 1))
        for start in range(0, len(chunk), step):
            exact = np.ascontiguousarray(chunk[start : start + step], np.float32).reshape(-1, cols)
            decoded = np.ascontiguousarray(array.decode_rows(start, start + len(exact)).reshape(exact.shape))
            self.note(native.row_energies(exact, decoded))
            if self._h is not None:
                self.energies[2].extend(_row_energies_of_products(exact - decoded, self._h))
                self.energies[3].extend(_row_energies_of_products(exact, self._h))

    @property
    def error(self) -> float:
        return _ratio(*self.energies[:2])

    @property
    def output_error(self) -> float | None:
        return _ratio(*self.energies[2:]) if self.energies[2] else None


def _ratio(noise: list[float], signal: list[float]) -> float:
    energy = math.fsum(signal)
    return math.sqrt(max(math.fsum(noise), 0.0) / energy) if energy > 0 else 0.0


def _row_energies_of_products(rows: F32, h: F32) -> list[float]:
    """r h r^T of each row."""
    products = np.zeros_like(rows)
    native.add_product(products, rows, h)
    energies: list[float] = (products * rows).sum(axis=1, dtype=np.float64).tolist()
    return energies


HEADINGS = (
    "tensor",
    "shape",
    "scheme",
    "bytes before",
    "bytes after",
    "bits/weight",
    "error",
    "SNR dB",
    "output error",
)


def _cells(t: TensorReport) -> tuple[str, ...]:
    bits, snr = t.bits_per_weight, t.snr
    return (
        t.name,
        "x".join(map(str, t.shape)),
        t.scheme,
        f"{t.nbytes_before:,}",
        "?" if t.nbytes_after is None else f"{t.nbytes_after:,}",
        "" if bits is None else f"{bits:.2f}",
        "" if t.error is None else f"{t.error:.4g}",
        "" if snr is None else f"{snr:.1f}",
        "" if t.output_error is None else f"{t.output_error:.4g}",
    )


def table_of(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 3) -> str:
    """A plain text table; the first `left` columns are flush left, the rest flush right.

    Examples
    --------
    >>> print(table_of(["name", "bytes"], [["fc", "12"]], left=1))
    name  bytes
    fc       12
    """
    lines, table = [], [[printable(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
