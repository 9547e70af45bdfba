"""A teacher that was asked before: its largest logits, kept instead of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pumice.distillation.base import check_temperature, finite, floats, log_sum_exp
from pumice.errors import FormatError

PARTS = ("ids", "logits", "rest", "about")


@dataclass(frozen=True)
class TopKLogits:
    """The k largest logits of each row, and what the others weigh together.

    Six bytes a kept logit instead of two or four for each class: of 50,000 classes, k = 64 takes a 250th. `arrays` and
    `from_arrays` carry it through `pumice.save` and `pumice.load`; rows are indexed as an array's are.

    Parameters
    ----------
    ids : (..., k) integers
        Classes, each once in a row.
    logits : (..., k) float32
        Their logits.
    rest : (...) float32
        ``log(sum(exp(logit / T)))`` over all other classes; -inf if there are none.
    classes : int
    temperature : float
        T of `rest`, and the only one that the logits can be used at.

    Examples
    --------
    >>> import io
    >>> import numpy as np, pumice as pm
    >>> from pumice.distillation import TopKLogits, soft_target_loss
    >>> teacher = TopKLogits.of(np.array([[4.0, 1.0, 0.0, 0.0]]), k=2)
    >>> file = io.BytesIO()
    >>> pm.save(file, teacher.arrays())
    ()
    >>> again = TopKLogits.from_arrays(pm.load(file.getvalue()))
    >>> again.ids, again.classes
    (array([[0, 1]], dtype=int32), 4)
    >>> round(soft_target_loss(np.array([[4.0, 1.0, -8.0, 0.5]]), again).value, 4)
    0.0006
    """

    ids: NDArray[np.integer[Any]]
    logits: NDArray[np.float32]
    rest: NDArray[np.float32]
    classes: int
    temperature: float = 1.0

    @classmethod
    def of(cls, logits: Any, k: int, *, temperature: float = 1.0) -> Self:
        """Keep the k largest of (..., classes) logits; of equal ones those of the lower classes."""
        t = check_temperature(temperature)
        given = floats("logits", logits)
        classes = given.shape[-1]
        if not 1 <= k <= classes:
            raise ValueError(f"k: expected 1 to {classes} (classes), got {k}")
        wide = given.astype(np.float64)
        finite("logits", wide)
        ids = np.argsort(-wide, axis=-1, kind="stable")[..., :k].astype(np.int32)
        others = wide / t
        np.put_along_axis(others, ids.astype(np.int64), -np.inf, axis=-1)
        top = np.take_along_axis(wide, ids.astype(np.int64), axis=-1)
        rest = log_sum_exp(others)[..., 0]
        return cls(ids, top.astype(np.float32), rest.astype(np.float32), classes, t)

    def __getitem__(self, rows: Any) -> Self:
        """Some of the rows."""
        return type(self)(self.ids[rows], self.logits[rows], self.rest[rows], self.classes, self.temperature)

    def __len__(self) -> int:
        return len(self.ids)

    def check(self, shape: tuple[int, ...], temperature: float) -> None:
        """Raise ValueError unless a student of this shape can learn from it at this temperature."""
        if self.classes != shape[-1]:
            raise ValueError(f"teacher: expected {shape[-1]} columns (classes) as the student, got {self.classes}")
        if self.ids.shape[:-1] != shape[:-1]:
            raise ValueError(f"teacher: expected rows of shape {shape[:-1]} as the student, got {self.ids.shape[:-1]}")
        if self.temperature != temperature:
            raise ValueError(f"temperature: expected {self.temperature}, of the cached logits, got {temperature}")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What a file needs of it: `ids`, `logits`, `rest`, and `about` (classes and temperature)."""
        about = np.array([self.classes, self.temperature], np.float64)
        return {"ids": self.ids, "logits": self.logits, "rest": self.rest, "about": about}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """The inverse of `arrays`; raises FormatError for what does not fit together."""
        missing = [part for part in PARTS if part not in arrays]
        if missing:
            raise FormatError(None, None, f"the arrays {', '.join(PARTS)}", f"none called {missing[0]!r}", None)
        ids, logits, rest, about = (np.asarray(arrays[part]) for part in PARTS)
        if ids.dtype.kind not in "iu" or ids.ndim < 1 or logits.shape != ids.shape or rest.shape != ids.shape[:-1]:
            got = f"{ids.dtype} {ids.shape}, {logits.shape} and {rest.shape}"
            raise FormatError(None, "ids", "integers (..., k), logits (..., k) and rest (...)", got, None)
        if about.shape != (2,) or not np.isfinite(about).all() or about[0] != int(about[0]) or about[1] <= 0:
            raise FormatError(None, "about", "the number of classes and a temperature above 0", str(about), None)
        classes = int(about[0])
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= classes):
            raise FormatError(None, "ids", f"classes from 0 to {classes - 1}", f"{ids.min()} to {ids.max()}", None)
        ordered = np.sort(ids, axis=-1)
        if (ordered[..., 1:] == ordered[..., :-1]).any():
            raise FormatError(None, "ids", "each class once in a row", "one twice", None)
        if not np.isfinite(logits).all() or np.isnan(rest).any() or np.isposinf(rest).any():
            raise FormatError(None, "logits", "finite logits, and rest finite or -inf", "others", None)
        return cls(ids, logits.astype(np.float32), rest.astype(np.float32), classes, float(about[1]))


def cache_logits(
    teacher: Callable[[Any], Any], batches: Iterable[Any], k: int, *, temperature: float = 1.0
) -> TopKLogits:
    """Ask a teacher once: its k largest logits for every batch, rows under rows.

    Parameters
    ----------
    teacher : callable
        From a batch to logits (rows, ..., classes).
    batches : iterable
        What the teacher takes, one after the other; one batch of logits is in memory at a time.
    k : int
        Logits that are kept of a row.
    temperature : float
        At which the student will learn.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.eye(8)
    >>> teacher = cache_logits(lambda x: x @ w.T, (np.ones((3, 8)) for _ in range(2)), k=4)
    >>> teacher.logits.shape
    (6, 4)
    """
    kept: list[TopKLogits] = []
    for number, batch in enumerate(batches):
        some = TopKLogits.of(teacher(batch), k, temperature=temperature)
        if kept and (some.classes, some.ids.shape[1:]) != (kept[0].classes, kept[0].ids.shape[1:]):
            expected = (*kept[0].ids.shape[1:-1], kept[0].classes)
            got = (*some.ids.shape[1:-1], some.classes)
            raise ValueError(
                f"teacher: expected logits of shape (rows, *{expected}), got (rows, *{got}) at batch {number}"
            )
        kept.append(some)
    if not kept:
        raise ValueError("batches: expected at least one, got none")
    parts = ([getattr(some, name) for some in kept] for name in ("ids", "logits", "rest"))
    ids, logits, rest = (np.concatenate(part) for part in parts)
    return TopKLogits(ids, logits, rest, kept[0].classes, kept[0].temperature)
