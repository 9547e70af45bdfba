"""How ``@`` and `numpy.matmul` reach the two products of an array: x @ w.T and x @ w."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from pumice.layouts.operands import as_array, check_out
from pumice.values.base import F32, Array


class Operators(ABC):
    """What stands on either side of ``@``; every other ufunc is refused."""

    __array_priority__ = 20.0  # `scipy_sparse @ w` and the like come here

    @abstractmethod
    def linear(self, x: Any, bias: Any = None, activations: str | None = None, out: Array | None = None) -> F32:
        """x @ w.T + bias for x (..., cols): float32 (..., rows)."""

    @abstractmethod
    def _untransposed(self, x: Any) -> F32:
        """x @ w for x (..., rows): float32 (..., cols)."""

    def __matmul__(self, x: Any) -> F32:  # w @ x
        return swapped(self.linear, x)

    def __rmatmul__(self, x: Any) -> F32:  # x @ w
        return self._untransposed(x)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if ufunc is not np.matmul or method != "__call__":
            name = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
            raise TypeError(f"np.{name}: expected ndarrays, got compact weights, which only np.matmul takes")
        (out,) = kwargs.pop("out", (None,))
        if kwargs:
            raise TypeError(f"np.matmul: expected no option but out for compact weights, got {', '.join(kwargs)}")
        left, right = inputs
        return right._right_of(left, out) if isinstance(right, Operators) else left._left_of(right, out)

    def _right_of(self, x: Any, out: Array | None) -> F32:
        """x @ w."""
        return into(out, self._untransposed(x))

    def _left_of(self, x: Any, out: Array | None) -> F32:
        """w @ x."""
        return into(out, self @ x)


def into(out: Array | None, y: F32) -> F32:
    """y, in `out` if there is one."""
    if out is None:
        return y
    check_out(out, y.shape)
    out[...] = y
    return out


def swapped(product: Any, x: Any) -> F32:
    """w @ x for x (..., cols, n) or (cols,), from a product that takes rows."""
    array = as_array("x", x)
    if array.ndim < 2:
        return product(array)  # type: ignore[no-any-return]
    return np.swapaxes(product(np.swapaxes(array, -1, -2)), -1, -2)
