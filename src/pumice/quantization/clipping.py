"""Grids by the range of a group, or by a part of it: rounding to nearest, with weights as they are.

`CLIPS` has the rules by name, for methods that want a grid to work on; each is a method of its own as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from pumice._core import native
from pumice.quantization.base import Method, Outcome, Solution, Task, register
from pumice.values.base import F32, Arrays

STEPS, SMALLEST = 40, 0.4  # `mse` tries the whole range and this share of it, and so many between them

Clip: TypeAlias = Callable[..., Arrays]
CLIPS: dict[str, Clip] = {}


def register_clip(name: str) -> Callable[[Clip], Clip]:
    """Make a function ``(task, **options) -> grid`` known as a rule and as a method; a decorator."""

    def add(clip: Clip) -> Clip:
        CLIPS[name] = clip

        def method(task: Task, **options: Any) -> Solution:
            return task.w, clip(task, **options), Outcome(name)

        method.__wrapped__ = clip  # type: ignore[attr-defined]  # whose options messages name
        register(name)(method)
        return clip

    return add


def _grid(task: Task, low: F32, high: F32) -> Arrays:
    return task.codec.grid(low, high, task.scheme, task.scale_dtype)


@register_clip("nearest")
def nearest(task: Task) -> Arrays:
    """The rule of docs/formats.md: the weight of largest magnitude is on the grid, or the smallest and the largest."""
    return _grid(task, *native.group_range(task.w, task.group))


@register_clip("absmax")
def absmax(task: Task) -> Arrays:
    """Symmetric codes from -(2^(bits-1) - 1) on: +m and -m are both on the grid, m the largest magnitude."""
    low, high = native.group_range(task.w, task.group)
    if task.scheme.flags:
        raise ValueError(f"method: expected another than 'absmax' for {task.scheme}, whose codes are not symmetric")
    half = 2.0 ** (task.codec.bits - 1)
    wide = np.maximum(-low, high).astype(np.float64) * (half / (half - 1))
    largest: F32 = np.minimum(wide, np.finfo(np.float32).max).astype(np.float32)
    return _grid(task, -largest, np.zeros_like(largest))


@register_clip("percentile")
def percentile(task: Task, *, percentile: float = 99.9) -> Arrays:
    """The magnitudes of a group up to this percentile fit the grid; asymmetric grids cut both ends likewise."""
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile: expected a number in (0, 100], got {percentile}")
    low, high = native.group_range(task.w, task.group)
    low, high = low.copy(), high.copy()
    for g in range(low.shape[1]):
        part = task.w[:, g * task.group : (g + 1) * task.group]
        if part.shape[1] == 0:
            continue
        if task.scheme.flags:
            tail = (100 - percentile) / 2
            low[:, g], high[:, g] = np.percentile(part, [tail, 100 - tail], axis=1)
        else:  # with the sign of the largest, which so gets the code 0
            bound = np.percentile(np.abs(part), percentile, axis=1)
            high[:, g] = np.where(high[:, g] > -low[:, g], bound, 0)
            low[:, g] = np.where(high[:, g] > 0, 0, -bound)
    return _grid(task, low, high)


@register_clip("mse")
def mse(task: Task, *, steps: int = STEPS, smallest: float = SMALLEST) -> Arrays:
    """The share of each group's range with the least squared error, weighted by the layer's inputs where moments are
    given: of the whole range, `smallest` of it and `steps` between. Never worse than the default rule."""
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if not 0 < smallest < 1:
        raise ValueError(f"smallest: expected a number in (0, 1), got {smallest}")
    low, high = native.group_range(task.w, task.group)
    best = _grid(task, low, high)
    if best["scale"].dtype == np.float32 and task.scale_dtype is None:
        task = replace(task, scale_dtype=np.float32)
    else:
        task = replace(task, scale_dtype=best["scale"].dtype)
    weight = None if task.moments is None else _importance(task.moments.norms())
    least = _errors(task, best, weight)
    middle = (low.astype(np.float64) + high) / 2 if "min" in task.scheme.flags else np.zeros(low.shape)
    wider = [] if task.scheme.flags else [-1.0]  # the other sign: for symmetric codes only
    for share in np.linspace(1, smallest, steps + 1)[1:]:
        for sign in (1.0, *wider):
            ends = middle + (low - middle) * share, middle + (high - middle) * share
            if sign < 0:
                ends = -ends[1], -ends[0]
            grid = _grid(task, ends[0].astype(np.float32), ends[1].astype(np.float32))
            errors = _errors(task, grid, weight)
            better = errors < least
            least = np.where(better, errors, least)
            best = {name: np.where(better, grid[name], array) for name, array in best.items()}
    return best


def _importance(norms: F32) -> F32:
    """Squares of the norms, the largest 1, so that sums of errors stay within float32."""
    largest = norms.max()
    return np.square(norms / largest) if largest > 0 else np.ones_like(norms)


def _errors(task: Task, grid: Arrays, weight: F32 | None) -> F32:
    scales, zeros, minima, bits = task.codec.levels(grid)
    return native.grid_errors(task.w, scales, zeros, bits, task.group, minima, weight)


__all__ = ["CLIPS", "Clip", "Method", "absmax", "mse", "nearest", "percentile", "register_clip"]
