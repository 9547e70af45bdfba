"""Weights that see what they are multiplied with: how a forward that knows nothing of calibration is calibrated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from pumice.layouts import CompactArray, Transposed, from_parts
from pumice.ops import compress
from pumice.options import Options
from pumice.scheme import Scheme
from pumice.statistics import CalibrationStats
from pumice.values.base import F32, Array, Arrays

PLAIN = {np.dtype(np.float32): "float32", np.dtype(np.float16): "float16"}


class Observer:
    """The moments of weights that were met so far, in passes: each takes the next that its memory holds.

    Parameters
    ----------
    memory : int
        Bytes of sums at a time; those of one weight are always taken.

    Attributes
    ----------
    stats : CalibrationStats
        Of this pass.
    left : set of str
        Weights that were met and are for a later pass.
    """

    def __init__(self, memory: int) -> None:
        self.stats, self.left = CalibrationStats(), set[str]()
        self._memory, self._used = memory, 0
        self._done = set[str]()

    def see(self, names: tuple[str, ...], x: Any) -> None:
        """Inputs x (..., features) of the weights of these names, which are multiplied as one."""
        if self._done.issuperset(names) or self.left.issuperset(names):
            return
        if names[0] not in self.stats:
            nbytes = 8 * np.shape(x)[-1] ** 2 if np.ndim(x) else 0
            if self._used and self._used + nbytes > self._memory:
                self.left.update(names)
                return
            self._used += nbytes
        self.stats.update(names, x)

    def next_pass(self) -> None:
        """What was left is taken now, what was taken is done."""
        self._done.update(self.stats)
        self.stats, self.left, self._used = CalibrationStats(), set(), 0


class ObservedArray(CompactArray):
    """A weight that tells an observer the inputs of its products, and is otherwise that weight.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> observer = Observer(1 << 20)
    >>> w = observed("fc.weight", np.eye(2, 3, dtype=np.float32), observer)
    >>> (np.array([1.0, 2.0, 3.0]) @ w.T).tolist(), pm.linear(np.ones((4, 3)), w).shape
    ([1.0, 2.0], (4, 2))
    >>> observer.stats["fc"].count
    5
    """

    def __init__(self, base: CompactArray, names: tuple[str, ...], observer: Observer) -> None:
        super().__init__(base._scheme, base._shape)
        self.base, self._names, self._observer = base, names, observer

    @classmethod
    def encode(cls, w: F32, scheme: Scheme, shape: tuple[int, ...], scale_dtype: Any = None) -> CompactArray:
        raise TypeError("scheme: expected one to compress to, got an observed array, which no scheme names")

    @classmethod
    def from_parts(cls, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Array]) -> CompactArray:
        raise TypeError("parts: expected those of a stored array, got an observed one's")

    @classmethod
    def stack(cls, arrays: Sequence[CompactArray], shape: tuple[int, ...]) -> Self:
        """Of `concatenate`: weights that share their inputs, and one entry of the statistics."""
        some = [a for a in arrays if isinstance(a, cls)]
        bases = [a.base for a in some]
        names = tuple(name for a in some for name in a._names)
        return cls(type(bases[0]).stack(bases, shape), names, some[0]._observer)

    def linear(self, x: Any, bias: Any = None, activations: str | None = None, out: Array | None = None) -> F32:
        """x @ w.T + bias."""
        y = self.base.linear(x, bias, activations, out)  # first: it says better what is wrong with x
        self._observer.see(self._names, x)
        return y

    def _untransposed(self, x: Any) -> F32:
        y = self.base._untransposed(x)
        self._observer.see(self._names, x)
        return y

    def _slice(self, rows: slice, cols: slice) -> CompactArray:
        part = self.base._slice(rows, cols)
        if cols != slice(0, self._cols):
            return part  # the inputs of some columns are not those of the weight
        return type(self)(part, self._names, self._observer)

    def kernel(self, batch: int, activations: str) -> str | None:
        return self.base.kernel(batch, activations)

    def _fused(self, x: F32, y: F32, bias: F32 | None, options: Options, activations: str) -> None:
        raise NotImplementedError  # pragma: no cover - `linear` is the base's

    def decode_rows(self, start: int, stop: int) -> F32:
        return self.base.decode_rows(start, stop)

    def take(self, ids: Any) -> F32:
        return self.base.take(ids)

    def codes(self) -> Array:
        return self.base.codes()

    def parts(self) -> Arrays:
        return self.base.parts()

    @property
    def nbytes(self) -> int:
        return self.base.nbytes

    @property
    def resident_nbytes(self) -> int:
        return self.base.resident_nbytes

    @property
    def nnz(self) -> int:
        return self.base.nnz


def observed(name: str, w: Any, observer: Observer) -> Any:
    """A matrix of weights as one that is observed; anything else as it is."""
    if isinstance(w, Transposed):
        return observed(name, w.T, observer).T
    if isinstance(w, CompactArray):
        return ObservedArray(w, (name,), observer) if w.ndim == 2 else w
    if not isinstance(w, np.ndarray) or w.ndim != 2 or w.dtype.kind != "f":
        return w
    scheme = PLAIN.get(w.dtype)
    base = compress(w, "float32") if scheme is None else from_parts(scheme, w.shape, {"": np.ascontiguousarray(w)})
    return ObservedArray(base, (name,), observer)


class ObservedWeights(Mapping[str, Any]):
    """Weights by name, of which matrices are observed, each once it is asked for. `skip` says of which names none is.

    What else `weights` has (`fields`, `path`) it has, too.
    """

    def __init__(self, weights: Mapping[str, Any], observer: Observer, skip: Any = None) -> None:
        self._weights, self._observer, self._skip = weights, observer, skip

    def __getitem__(self, name: str) -> Any:
        w = self._weights[name]
        return w if self._skip is not None and self._skip(name) else observed(name, w, self._observer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._weights, name)
