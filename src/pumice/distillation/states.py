"""Losses over hidden states and embeddings: matching through a projection (Romero et al. 2015, arXiv:1412.6550; Jiao
et al. 2020, arXiv:1909.10351) and by direction (Sanh et al. 2019, arXiv:1910.01108)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pumice.distillation.base import (
    Loss,
    ProjectedLoss,
    finite,
    floats,
    like_student,
    rows_of,
    student_rows,
)


def hidden_state_loss(student: Any, teacher: Any, projection: Any, *, where: Any = None) -> ProjectedLoss:
    """Hidden states of unequal width: the mean over rows and columns of ``(student @ projection.T - teacher)^2``.

    Parameters
    ----------
    student : (..., width) floats
    teacher : (..., teacher_width) floats
    projection : (teacher_width, width) floats
        A weight as checkpoints store it; it learns with the student.
    where : (...) bool, optional
        Rows that count; by default all.

    Returns
    -------
    ProjectedLoss
        Value and the gradients with respect to `student` and `projection`. States of equal width need no projection:
        `logit_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> loss = hidden_state_loss(np.array([[1.0, 1.0]]), np.array([[3.0]]), np.array([[1.0, 0.0]]))
    >>> loss.value, loss.gradient, loss.projection_gradient
    (4.0, array([[-4.,  0.]]), array([[-4., -4.]]))
    """
    rows = student_rows(student, where)
    given = floats("teacher", teacher)
    w = floats("projection", projection)
    if w.shape != (given.shape[-1], rows.shape[-1]):
        shape = (given.shape[-1], rows.shape[-1])
        raise ValueError(f"projection: expected shape {shape} (teacher's width, student's width), got {w.shape}")
    wide = w.astype(np.float64)
    finite("projection", wide)
    difference = rows.values @ wide.T - rows_of("teacher", given, rows)
    slope = difference * (2.0 / difference.size)
    dtype = w.dtype.newbyteorder("=") if w.dtype.itemsize >= 4 else np.dtype(np.float32)
    projected = (slope.T @ rows.values).astype(dtype)
    return ProjectedLoss(float(np.square(difference).mean()), rows.gradient(slope @ wide), projected)


def cosine_loss(student: Any, teacher: Any, *, where: Any = None) -> Loss:
    """By direction alone: the mean over rows of ``1 - cos(student, teacher)``.

    Parameters
    ----------
    student, teacher : (..., width) floats
        Hidden states or embeddings; rows of zeros have no direction and are refused.
    where : (...) bool, optional
        Rows that count; by default all.

    Returns
    -------
    Loss

    Examples
    --------
    >>> import numpy as np
    >>> cosine_loss(np.array([[2.0, 0.0]]), np.array([[0.0, 3.0]]))
    Loss(value=1.0, gradient=array([[ 0. , -0.5]]))
    """
    rows = student_rows(student, where)
    other = like_student("teacher", teacher, rows)
    lengths = {}
    for name, values in (("student", rows.values), ("teacher", other)):
        lengths[name] = np.sqrt(np.square(values).sum(axis=1, keepdims=True))
        if not lengths[name].all():
            raise ValueError(f"{name}: expected rows other than zero, got one of zeros")
    u, v = rows.values / lengths["student"], other / lengths["teacher"]
    cosine = (u * v).sum(axis=1, keepdims=True)
    slope = (cosine * u - v) / (lengths["student"] * rows.count)
    return Loss(float(1.0 - cosine.mean()), rows.gradient(slope))
