"""GPTQ: codes column by column, each rounding made up for by the columns after it.

Frantar, Ashkboos, Hoefler & Alistarh 2022, arXiv:2210.17323; the arithmetic is in `pumice.compensation`.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.compensation import DAMPING, Factor, Sweep, factorize, settled
from pumice.options import check_choice
from pumice.quantization.base import Outcome, Solution, Task, register
from pumice.quantization.clipping import CLIPS
from pumice.statistics import Moments
from pumice.values.base import F32, Arrays

BOUND, HALF_BOUND = 1e37, 30000.0  # of what a moved grid reaches, should errors have grown beyond all measure

Order: TypeAlias = NDArray[np.intp]


@register("gptq")
def gptq(
    task: Task,
    *,
    damping: float = DAMPING,
    act_order: bool = True,
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
        Columns of the largest inputs first, while the others can still make up for them. The codes are stored in the
        order of the weight all the same. With groups, these are static.
    static_groups : bool, optional
        Whether the grids of groups are made from the weights as given, rather than as errors have changed them when
        the group is reached. By default with `act_order`, and with a `clip` that asks for it.
    clip : str
        The rule for grids: a name in `CLIPS`. Other rules than "nearest" need static groups.
    """
    check_choice("clip", clip, tuple(CLIPS))
    moments, grouped = task.known_moments(), task.scheme.group is not None
    if static_groups is None:
        static_groups = act_order or clip != "nearest"
    if grouped and not static_groups and (act_order or clip != "nearest"):
        why = "act_order=True, which tears groups apart" if act_order else f"clip={clip!r}"
        raise ValueError(f"static_groups: expected True with {why}, got False")
    if task.w.size == 0:
        return task.w, CLIPS[clip](task), Outcome("gptq", loss=0.0)
    order = activation_order(moments) if act_order else None
    factor = factorize(moments.mean(), damping, order)
    static = CLIPS[clip](task)
    sweep, grid = _swept(task, factor, order, static, grouped and not static_groups)
    w, loss, rounded = settled(sweep, task.w, task.keep, grid, static)
    return w, grid, Outcome("gptq", loss, factor.damping, factor.attempts, factor.dead, rounded)


def activation_order(moments: Moments) -> Order:
    """Columns by falling norm of their inputs, the first of equal ones first."""
    return np.argsort(-moments.norms(), kind="stable")


def _swept(task: Task, factor: Factor, order: Order | None, static: Arrays, moving: bool) -> tuple[Sweep, Arrays]:
    """All columns fixed, and the grid: the static one, or each group's own, made when it is reached."""
    cols = task.w.shape[1]
    groups: NDArray[np.int32] = ((np.arange(cols) if order is None else order) // task.group).astype(np.int32)
    if not moving:
        sweep = Sweep(task.w, factor, order)
        keep = task.keep if task.keep is None or order is None else task.keep.take(order, axis=1)
        sweep.fix(cols, keep, task.codec.levels(static), groups)
        return sweep, static
    sweep, grid = Sweep(task.w, factor), {name: array.copy() for name, array in static.items()}
    for g, start in enumerate(range(0, cols, task.group)):
        stop = min(start + task.group, cols)
        keep = None if task.keep is None else task.keep[:, start:stop]
        move_grid(task, grid, g, sweep.current(stop), keep)
        sweep.fix(stop, keep, task.codec.levels(grid), groups)
    return sweep, grid


def move_grid(task: Task, grid: Arrays, g: int, current: F32, keep: NDArray[np.bool_] | None) -> None:
    """Make the grid of group g anew, for weights that have become `current`; its dtype stays."""
    dtype, bound = grid["scale"].dtype, BOUND
    if dtype == np.float16:
        bound = HALF_BOUND if "min" in grid else HALF_BOUND * 2 ** (task.codec.bits - 1)
    current = np.ascontiguousarray(np.clip(np.nan_to_num(current, nan=0.0), -bound, bound), np.float32)
    if keep is not None:
        current[~keep] = 0
    for name, array in task.codec.grid(*native.group_range(current, current.shape[1]), task.scheme, dtype).items():
        grid[name][:, g] = array[:, 0]
