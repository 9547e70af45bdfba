"""GPTQ: codes column by column, each rounding made up for by the columns after it.

Frantar, Ashkboos, Hoefler & Alistarh 2022, arXiv:2210.17323; the arithmetic is in `pumice.compensation`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.compensation import DAMPING, Factor, Sweep, factorize
from pumice.options import check_choice
from pumice.quantization.base import Outcome, Solution, Task, register
from pumice.quantization.clipping import CLIPS
from pumice.statistics import Moments
from pumice.values.base import F32, Arrays

# Of weights that a grid is made for, should errors have grown beyond all measure: a range of float32, or, where the
# user wants scales in float16, one whose scales and minima that holds.
BOUND, HALF_BOUND = np.float32(1e37), np.float32(60000)

Order: TypeAlias = NDArray[np.intp]


@register("gptq")
def gptq(
    task: Task,
    *,
    damping: float = DAMPING,
    act_order: bool = False,
    static_groups: bool | None = None,
    clip: str = "nearest",
) -> Solution:
    """Round column by column; what a column then lacks, later columns make up for.

    Parameters
    ----------
    task : Task
        With moments.
    damping : float
        Share of the mean of the diagonal of the moments that is added to it; raised where that is not enough.
    act_order : bool
        Columns of the largest inputs first. With groups, these are static.
    static_groups : bool, optional
        Whether the grids of groups are made from the weights as given, rather than as errors have changed them when
        the group is reached. By default only with `act_order`.
    clip : str
        The rule for grids: a name in `CLIPS`. Other rules than "nearest" need static groups.
    """
    check_choice("clip", clip, tuple(CLIPS))
    moments, grouped = task.known_moments(), task.scheme.group is not None
    if static_groups is None:
        static_groups = act_order or clip != "nearest"
    if grouped and not static_groups and (act_order or clip != "nearest"):
        why = "act_order, which tears groups apart" if act_order else f"clip={clip!r}"
        raise ValueError(f"static_groups: expected True with {why}, got False")
    if task.w.size == 0:
        return task.w, CLIPS[clip](task), Outcome("gptq", loss=0.0)
    order = activation_order(moments) if act_order else None
    factor = factorize(moments.mean(), damping, order)
    static = CLIPS[clip](task)
    sweep, grid = sweep_on_grids(task, factor, order, None if static_groups or not grouped else static, static)
    w, rounded = _rescued(task, sweep, grid, static)
    loss = float(sweep.loss()[~rounded].mean()) if not rounded.all() else None
    count = int(np.count_nonzero(rounded))
    return w, grid, Outcome("gptq", loss, factor.damping, factor.attempts, factor.dead, count)


def activation_order(moments: Moments) -> Order:
    """Columns by falling norm of their inputs, the first of equal ones first."""
    return np.argsort(-moments.norms(), kind="stable")


def sweep_on_grids(
    task: Task, factor: Factor, order: Order | None, moving: Arrays | None, static: Arrays
) -> tuple[Sweep, Arrays]:
    """All columns fixed, and the grid: the static one, or (`moving`) each group's own, made when it is reached."""
    cols = task.w.shape[1]
    groups = np.arange(cols) // task.group if order is None else order // task.group
    groups = groups.astype(np.int32)
    if moving is None:
        sweep = Sweep(task.w, factor, order)
        keep = task.keep if task.keep is None or order is None else task.keep[:, order]
        sweep.fix(cols, keep, task.codec.levels(static), groups)
        return sweep, static
    for dtype in (moving["scale"].dtype, np.float32):
        swept = _sweep_moving(task, factor, groups, {name: a.copy() for name, a in moving.items()}, dtype)
        if swept is not None:
            return swept
    raise AssertionError("float32 scales never need wider ones")


def _sweep_moving(
    task: Task, factor: Factor, groups: NDArray[np.int32], grid: Arrays, dtype: Any
) -> tuple[Sweep, Arrays] | None:
    """None where a grid needs wider scales than `dtype`."""
    sweep, cols = Sweep(task.w, factor), task.w.shape[1]
    grid = {name: a if name == "zero_point" else a.astype(dtype) for name, a in grid.items()}
    if dtype == np.float32:
        task = replace(task, scale_dtype=np.float32)
    for g, start in enumerate(range(0, cols, task.group)):
        stop = min(start + task.group, cols)
        keep = None if task.keep is None else task.keep[:, start:stop]
        part = moved_grid(task, sweep.current(stop), keep)
        if part["scale"].dtype.itemsize > np.dtype(dtype).itemsize:
            return None
        for name, array in part.items():
            grid[name][:, g] = array[:, 0]
        sweep.fix(stop, keep, task.codec.levels(grid), groups)
    return sweep, grid


def moved_grid(task: Task, current: F32, keep: NDArray[np.bool_] | None) -> Arrays:
    """The grid (rows, 1) of a group whose weights have become `current`."""
    bound = HALF_BOUND if task.scale_dtype is not None and np.dtype(task.scale_dtype) == np.float16 else BOUND
    current = np.ascontiguousarray(np.clip(np.nan_to_num(current, nan=0.0), -bound, bound))
    if keep is not None:
        current[~keep] = 0
    return task.codec.grid(*native.group_range(current, current.shape[1]), task.scheme, task.scale_dtype)


def _rescued(
    task: Task, sweep: Sweep, grid: Arrays, static: Arrays
) -> tuple[F32, NDArray[np.bool_]]:
    """The fixed weights; rows whose numbers overflowed as they were, to be rounded to nearest on their static grid."""
    w = sweep.result()
    bad = ~(np.isfinite(sweep.loss()) & np.isfinite(w).all(axis=1))
    if bad.any():
        w[bad] = task.w[bad]
        for name, array in static.items():
            grid[name][bad] = array[bad]
    return w, bad
