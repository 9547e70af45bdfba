"""The registry of quantization methods, and what they are given and give back.

A method chooses a *grid*, the numbers that the codes of each group stand for, and weights; each weight is then stored
as the nearest number of its grid, in whatever layout. One that only chooses the grid hands the weights back as they
are. What a method hands back on its grid is stored exactly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice.errors import SchemeError
from pumice.options import check_choice
from pumice.scheme import AUTO, Scheme
from pumice.statistics import Moments
from pumice.values.base import F32, Arrays, codec_of
from pumice.values.integer import Integer


@dataclass(frozen=True)
class Task:
    """A weight to quantize.

    Attributes
    ----------
    w : float32 (rows, cols)
        Finite; never written to.
    scheme : Scheme
        Of integer values.
    moments : Moments or None
        Of the layer's inputs.
    scale_dtype : dtype or None
        Of the scales, where the user asked for one.
    keep : bool (rows, cols) or None
        False where a sparse layout has a hole: such a weight stays 0.
    name : str
        For messages.
    """

    w: F32
    scheme: Scheme
    moments: Moments | None = None
    scale_dtype: Any = None
    keep: NDArray[np.bool_] | None = None
    name: str = "w"

    @property
    def codec(self) -> Integer:
        codec = codec_of(self.scheme)
        assert isinstance(codec, Integer)  # `quantize_matrix` saw to it
        return codec

    @property
    def group(self) -> int:
        """Columns of a group."""
        return self.codec.group_of(self.scheme, self.w.shape[1])

    def known_moments(self) -> Moments:
        """The moments, which the method cannot do without."""
        if self.moments is None:
            raise ValueError(f"stats: expected moments of the inputs of {self.name} for this method, got None")
        return self.moments


@dataclass(frozen=True)
class Outcome:
    """What a method did.

    Attributes
    ----------
    method : str
    loss : float or None
        Mean squared error of an output of the layer on the calibration data, with the damped moments.
    damping : float or None
        What was added to the diagonal of the moments, as a share of its mean.
    attempts : int
        Factorizations of the moments: 2 where float32 was not enough, more where the damping was raised.
    dead : int
        Inputs that are always 0.
    rounded : int
        Rows that were rounded to nearest because the method's numbers overflowed.
    """

    method: str
    loss: float | None = None
    damping: float | None = None
    attempts: int = 0
    dead: int = 0
    rounded: int = 0


Solution: TypeAlias = tuple[F32, Arrays, Outcome]
"""Weights, the grid that they are stored on, and what was done."""
Method: TypeAlias = Callable[..., Solution]

METHODS: dict[str, Method] = {}


def register(name: str) -> Callable[[Method], Method]:
    """Make a function ``(task, **options) -> Solution`` known as a method of `compress`; a decorator."""

    def add(method: Method) -> Method:
        METHODS[name] = method
        return method

    return add


def options_of(method: str) -> list[str]:
    """What may be said to a method."""
    return list(inspect.signature(METHODS[method]).parameters)[1:]


def has_integers(scheme: Scheme) -> bool:
    """Whether a scheme has one grid of integers: what methods of quantization are for."""
    return scheme != AUTO and not scheme.terms and isinstance(codec_of(scheme), Integer)


def quantize_matrix(task: Task, method: str, options: Mapping[str, Any]) -> Solution:
    """Weights on a grid, by a method.

    Raises
    ------
    SchemeError
        The scheme has no integer values.
    ValueError
        An unknown method, or options that it does not have; moments of another shape, or none where they are needed.
    """
    check_choice("method", method, tuple(METHODS))
    if not has_integers(task.scheme):
        raise SchemeError(f"scheme: expected integer values for method {method!r}, got {str(task.scheme)!r}")
    known = options_of(method)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"{unknown[0]}: expected an option of {method!r} ({', '.join(known) or 'none'})")
    return METHODS[method](task, **options)
