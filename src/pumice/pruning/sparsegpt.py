"""SparseGPT: weights removed column by column, each removal made up for by the columns after it.

Frantar & Alistarh 2023, arXiv:2301.00774; the arithmetic is in `pumice.compensation`.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from pumice.compensation import BLOCK, DAMPING, Sweep, factorize, settled
from pumice.pruning.base import Solved, register_solver
from pumice.pruning.patterns import block_energies, keep_n_of_m, spread
from pumice.pruning.selection import Mask, Rule, keep_highest, removed
from pumice.quantization import Outcome, Task
from pumice.quantization.clipping import nearest
from pumice.quantization.gptq import move_grid
from pumice.statistics import Moments
from pumice.values.base import F32, Arrays

LARGEST = np.finfo(np.float32).max


@register_solver("sparsegpt", needs=("moments",))
def sparsegpt(w: F32, rule: Rule, task: Task | None, *, moments: Moments, damping: float = DAMPING) -> Solved:
    """Remove what costs least once later columns have made up for it, a unit of columns at a time.

    The score of a weight is v^2 D (see `pumice.compensation`), v its value by now. A unit is `BLOCK` columns, M for
    N:M, and for blocks as many whole ones as fit; of each the same share goes, in all exactly floor(sparsity * size).

    Parameters
    ----------
    w : float32 (rows, cols)
    rule : Rule
        With a sparsity or a pattern, and any scope but "global".
    task : Task, optional
        Of `pumice.quantization`: what stays is rounded to its grid in the same sweep.
    damping : float
        As in GPTQ.
    """
    if rule.threshold is not None or rule.scope == "global":
        what = "threshold" if rule.threshold is not None else "scope='global'"
        raise ValueError(f"{what}: expected a sparsity by layer or row for 'sparsegpt', whose scores change as it goes")
    static = None if task is None else nearest(task)
    if w.size == 0:
        return Solved(w, np.ones(w.shape, bool), static, Outcome("sparsegpt", loss=0.0))
    factor = factorize(moments.mean(), damping)
    if task is None or static is None:
        swept = _sweep(w, rule, Sweep(w, factor), None, None)
    else:
        swept = _sweep(w, rule, Sweep(w, factor), task, {name: array.copy() for name, array in static.items()})
    sweep, mask, grid = swept
    fixed, loss, rounded = settled(sweep, w, mask, grid, static)
    return Solved(fixed, mask, grid, Outcome("sparsegpt", loss, factor.damping, factor.attempts, factor.dead, rounded))


def _sweep(
    w: F32, rule: Rule, sweep: Sweep, task: Task | None, grid: Arrays | None
) -> tuple[Sweep, Mask, Arrays | None]:
    """Decide and fix, unit by unit; grids of groups are made when a group is reached."""
    (rows, cols), unit = w.shape, _unit(rule)
    group = cols if task is None else task.group
    bounds = sorted({*range(0, cols, unit), *range(0, cols, group), cols})
    groups = (np.arange(cols) // group).astype(np.int32)
    mask, root = np.ones((rows, cols), bool), np.sqrt(sweep.variance)
    for start, stop in pairwise(bounds):
        if start % unit == 0:
            end = min(start + unit, cols)
            with np.errstate(over="ignore", invalid="ignore"):  # rows that overflow are found by their loss
                scores = np.fmin(np.abs(sweep.current(end)) * root[start:end], LARGEST)  # of NaN, too
            mask[:, start:end] = _decide(rule, scores, start, cols)
        levels = None
        if task is not None and grid is not None:
            if start % group == 0 and task.scheme.group is not None:
                end = min(start + group, cols)
                move_grid(task, grid, start // group, sweep.current(end), mask[:, start:end])
            levels = task.codec.levels(grid)
        sweep.fix(stop, mask[:, start:stop], levels, groups)
    return sweep, mask, grid


def _unit(rule: Rule) -> int:
    """Columns that are decided on together."""
    if rule.kept is not None:
        return rule.kept[1]
    width = rule.blocksize[1] if rule.blocksize is not None else 1
    return max(1, BLOCK // width) * width


def _decide(rule: Rule, scores: F32, start: int, cols: int) -> Mask:
    """True where a weight of this unit stays. Counts are those of all columns so far less those before."""
    if rule.kept is not None:
        return keep_n_of_m(scores, *rule.kept)
    height, width = rule.blocksize or (1, 1)
    energies = scores if rule.blocksize is None else block_energies(scores, rule.blocksize)
    first, last = start // width, -(-min(start + scores.shape[1], cols) // width)
    assert rule.sparsity is not None
    if rule.scope == "row":
        count = removed(rule.sparsity, last) - removed(rule.sparsity, first)
        kept = keep_n_of_m(energies, energies.shape[1] - count, energies.shape[1])
    else:
        size = len(energies)
        count = removed(rule.sparsity, size * last) - removed(rule.sparsity, size * first)
        kept = keep_highest(energies.reshape(-1), count).reshape(energies.shape)
    return kept if rule.blocksize is None else spread(kept, (height, width), scores.shape)
