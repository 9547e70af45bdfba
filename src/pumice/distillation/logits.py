"""Losses over logits: soft targets and hard labels (Hinton, Vinyals and Dean 2015, arXiv:1503.02531), logit matching
(Ba and Caruana 2014, arXiv:1312.6184)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pumice.distillation.base import (
    F64,
    Loss,
    Rows,
    check_temperature,
    like_student,
    log_sum_exp,
    student_rows,
)
from pumice.distillation.teachers import TopKLogits


def soft_target_loss(student: Any, teacher: Any, *, temperature: float = 1.0, where: Any = None) -> Loss:
    """How far the student's softened probabilities are from the teacher's.

    ``T^2 * mean over rows of KL(softmax(teacher / T) || softmax(student / T))``. The factor keeps gradients of one
    size whatever T is (Hinton et al. 2015, section 2.1); against their cross-entropy the teacher's own entropy is left
    out, so that equal logits give 0. Gradient: ``T * (q - p) / rows``.

    Parameters
    ----------
    student : (..., classes) floats
        Logits.
    teacher : (..., classes) floats, or TopKLogits of the same rows
        Logits. Of cached ones, what is not among the k largest counts as one class, for the student too: the loss is at
        most the full one.
    temperature : float
        T, above 0.
    where : (...) bool, optional
        Rows that count; by default all. (Leave out padding: ``where=ids != pad``.)

    Returns
    -------
    Loss
        Value and gradient with respect to `student`.

    Raises
    ------
    ValueError
        Shapes or classes that differ, a temperature that is not above 0, or no row that counts.
    NonFiniteError
        Logits that are NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> loss = soft_target_loss(np.zeros((1, 2)), np.array([[np.log(3), 0.0]]))
    >>> round(loss.value, 4), loss.gradient
    (0.1308, array([[-0.25,  0.25]]))
    """
    t = check_temperature(temperature)
    rows = student_rows(student, where)
    z = rows.values / t
    log_q = z - log_sum_exp(z)
    if isinstance(teacher, TopKLogits):
        value, slope = _against_top_k(log_q, teacher, rows, t)
    else:
        v = like_student("teacher", teacher, rows) / t
        log_p = v - log_sum_exp(v)
        p = np.exp(log_p)
        value, slope = float((p * (log_p - log_q)).sum()), np.exp(log_q) - p
    return Loss(t * t * value / rows.count, rows.gradient(slope * (t / rows.count)))


def _against_top_k(log_q: F64, teacher: TopKLogits, rows: Rows, t: float) -> tuple[float, F64]:
    """KL over k classes and the rest as one, summed over rows, and its derivative by the student's logits / T."""
    teacher.check(rows.shape, t)
    k = teacher.ids.shape[-1]
    ids = teacher.ids.reshape(-1, k)[rows.counted].astype(np.int64)
    top = teacher.logits.reshape(-1, k)[rows.counted].astype(np.float64) / t
    rest = teacher.rest.reshape(-1, 1)[rows.counted].astype(np.float64)
    total = log_sum_exp(np.concatenate([top, rest], axis=1))
    log_p, log_p_rest = top - total, (rest - total)[:, 0]
    p, p_rest = np.exp(log_p), np.exp(log_p_rest)

    q = np.exp(log_q)
    others = log_q.copy()
    np.put_along_axis(others, ids, -np.inf, axis=1)
    log_q_rest = log_sum_exp(others)[:, 0]
    value = (p * (log_p - np.take_along_axis(log_q, ids, axis=1))).sum()
    some = p_rest > 0  # where all classes are cached there is no rest
    value += (p_rest[some] * (log_p_rest[some] - log_q_rest[some])).sum()
    share = np.zeros(len(q))
    share[some] = np.exp(log_p_rest[some] - log_q_rest[some])
    slope = q * (1.0 - share[:, None])
    np.put_along_axis(slope, ids, np.take_along_axis(q, ids, axis=1) - p, axis=1)
    return float(value), slope


def hard_label_loss(student: Any, labels: Any, *, where: Any = None) -> Loss:
    """Cross-entropy with the right classes: the mean over rows of ``-log softmax(student)[label]``.

    Parameters
    ----------
    student : (..., classes) floats
        Logits.
    labels : (...) integers in [0, classes - 1]
        Those of rows that do not count may be anything.
    where : (...) bool, optional
        Rows that count; by default all.

    Returns
    -------
    Loss

    Raises
    ------
    ValueError
        Labels of another shape than the student's rows, or out of range.

    Examples
    --------
    >>> import numpy as np
    >>> loss = hard_label_loss(np.zeros((1, 4)), np.array([2]))
    >>> round(loss.value, 4), loss.gradient
    (1.3863, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    rows = student_rows(student, where)
    given = np.asarray(labels)
    if given.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, got {given.dtype}")
    if given.shape != rows.shape[:-1]:
        raise ValueError(f"labels: expected shape {rows.shape[:-1]} as the student's rows, got {given.shape}")
    classes, ids = rows.shape[-1], given.reshape(-1)[rows.counted].astype(np.int64)
    if ids.min() < 0 or ids.max() >= classes:
        bad = ids[(ids < 0) | (ids >= classes)][0]
        raise ValueError(f"labels: expected integers from 0 to {classes - 1}, got {bad}")
    log_q = rows.values - log_sum_exp(rows.values)
    at = np.arange(rows.count), ids
    slope = np.exp(log_q)
    slope[at] -= 1.0
    return Loss(float(-log_q[at].mean()), rows.gradient(slope / rows.count))


def distillation_loss(
    student: Any, teacher: Any, labels: Any, *, temperature: float = 2.0, alpha: float = 0.1, where: Any = None
) -> Loss:
    """Soft targets and hard labels together: ``alpha * hard_label_loss + (1 - alpha) * soft_target_loss``.

    Parameters
    ----------
    student, teacher, labels, temperature, where
        As in `soft_target_loss` and `hard_label_loss`. The hard labels meet the student at temperature 1.
    alpha : float
        Share of the hard labels, from 0 to 1.

    Returns
    -------
    Loss

    Examples
    --------
    >>> import numpy as np
    >>> student, teacher = np.zeros((1, 2)), np.array([[2.0, 0.0]])
    >>> round(distillation_loss(student, teacher, np.array([0]), temperature=1.0, alpha=0.5).value, 4)
    0.5105
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha}")
    hard = hard_label_loss(student, labels, where=where)
    soft = soft_target_loss(student, teacher, temperature=temperature, where=where)
    gradient = hard.gradient * alpha + soft.gradient * (1 - alpha)
    return Loss(alpha * hard.value + (1 - alpha) * soft.value, gradient.astype(hard.gradient.dtype, copy=False))


def logit_loss(student: Any, teacher: Any, *, where: Any = None) -> Loss:
    """Logit matching: the mean over rows and classes of ``(student - teacher)^2``.

    At a high temperature `soft_target_loss` tends to half of it, once each row of logits has mean 0 (Hinton et al.,
    section 2.1).

    Parameters
    ----------
    student, teacher : (..., classes) floats
    where : (...) bool, optional
        Rows that count; by default all.

    Returns
    -------
    Loss

    Examples
    --------
    >>> import numpy as np
    >>> logit_loss(np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]]))
    Loss(value=2.0, gradient=array([[ 0., -2.]]))
    """
    rows = student_rows(student, where)
    difference = rows.values - like_student("teacher", teacher, rows)
    return Loss(float(np.square(difference).mean()), rows.gradient(difference * (2.0 / difference.size)))
