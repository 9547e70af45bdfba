"""What every loss is and checks: rows along the leading axes, a mean over those that count, a value and a gradient.

Losses are computed in float64; a gradient has the shape of the student's array, and its dtype if that is a float of 32
bits or more, else float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice.errors import NonFiniteError

F64: TypeAlias = NDArray[np.float64]


class Loss(NamedTuple):
    """The value of a loss, and its gradient with respect to the student's array."""

    value: float
    gradient: NDArray[np.floating[Any]]


class ProjectedLoss(NamedTuple):
    """As `Loss`, with the gradient with respect to the projection as well."""

    value: float
    gradient: NDArray[np.floating[Any]]
    projection_gradient: NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Rows:
    """A student's array as the rows that count, and the way back to its shape."""

    values: F64  # (count, width)
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    counted: NDArray[np.bool_]  # (rows,)

    @property
    def count(self) -> int:
        return len(self.values)

    def gradient(self, rows: F64) -> NDArray[np.floating[Any]]:
        """A gradient of the rows that count as one of the whole array; the others' is 0."""
        whole = np.zeros((len(self.counted), self.shape[-1]), self.dtype)
        whole[self.counted] = rows
        return whole.reshape(self.shape)


def student_rows(student: Any, where: Any, name: str = "student") -> Rows:
    """The rows of the student's array that `where` (leading shape, bool; None: all) lets count."""
    array = floats(name, student)
    lead = array.shape[:-1]
    rows = array.reshape(-1, array.shape[-1])
    if where is None:
        counted = np.ones(len(rows), bool)
    else:
        mask = np.asarray(where)
        if mask.dtype != bool or mask.shape != lead:
            raise ValueError(f"where: expected bool of shape {lead}, got {mask.dtype} of shape {mask.shape}")
        counted = mask.reshape(-1)
    if not counted.any():
        raise ValueError(f"where: expected at least one row that counts, got none of {len(rows)}")
    values = rows[counted].astype(np.float64)
    finite(name, values)
    dtype = array.dtype if array.dtype.kind == "f" and array.dtype.itemsize >= 4 else np.dtype(np.float32)
    return Rows(values, array.shape, dtype.newbyteorder("="), counted)


def like_student(name: str, array: Any, rows: Rows) -> F64:
    """Another array of the student's shape, its rows that count."""
    given = floats(name, array)
    if given.shape[-1] != rows.shape[-1]:
        raise ValueError(f"{name}: expected {rows.shape[-1]} columns (classes) as the student, got {given.shape[-1]}")
    return rows_of(name, given, rows)


def rows_of(name: str, array: NDArray[Any], rows: Rows) -> F64:
    """The rows that count of an array with the leading shape of the student's."""
    if array.shape[:-1] != rows.shape[:-1]:
        raise ValueError(f"{name}: expected rows of shape {rows.shape[:-1]} as the student, got {array.shape[:-1]}")
    values = array.reshape(-1, array.shape[-1])[rows.counted].astype(np.float64)
    finite(name, values)
    return values


def floats(name: str, array: Any) -> NDArray[Any]:
    given = np.asarray(array)
    if given.dtype.kind != "f":
        raise TypeError(f"{name}: expected floating point, got {given.dtype}")
    if given.ndim == 0 or given.shape[-1] == 0:
        raise ValueError(f"{name}: expected shape (..., columns) with at least one column, got {given.shape}")
    return given


def finite(name: str, values: F64) -> None:
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise NonFiniteError(f"{name}: expected finite values, got {bad}")


def check_temperature(temperature: float) -> float:
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature: expected a finite number above 0, got {temperature}")
    return float(temperature)


def log_sum_exp(logits: F64) -> F64:
    """Of each row: (rows, 1). A row of -inf alone gives -inf."""
    top = logits.max(axis=-1, keepdims=True)
    safe = np.where(np.isneginf(top), 0.0, top)
    with np.errstate(divide="ignore"):
        total: F64 = safe + np.log(np.exp(logits - safe).sum(axis=-1, keepdims=True))
    return total
