"""What calibration data says of a model: second moments of the inputs of each layer.

`pumice.calibration` measures the machine; this is about the model. The algorithms take a layer's `Moments` and know
nothing of where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.errors import FormatError, NonFiniteError
from pumice.layouts.operands import as_float32
from pumice.values.base import F32

CHUNK_ROWS = 256  # rows of x whose products are summed in float32 before float64 takes over
PANEL_COLS = 512
LARGEST = 2.0**60  # a magnitude whose square, CHUNK_ROWS times, float32 holds

COUNT, MEAN, ALIASES = ".count", ".mean", "aliases"


class Moments:
    """Mean of x^T x over the inputs x of one layer: (features, features), symmetric.

    Sums of `CHUNK_ROWS` rows are made in float32 and added up in float64, so that memory does not grow with the data
    and, with u = 2^-24, ``|mean - exact| <= (gamma(CHUNK_ROWS) + u) * mean of |x|^T |x|`` however much of it there is.
    Merging in another order differs by no more than that. The bits do not depend on the number of threads, nor on BLAS.

    Parameters
    ----------
    features : int
        Columns of x, and of the weight.

    Examples
    --------
    >>> import numpy as np
    >>> m = Moments(2)
    >>> m.update(np.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> m.mean()
    array([[ 5.,  7.],
           [ 7., 10.]], dtype=float32)
    >>> m.count, m.norms()
    (2, array([2.236068 , 3.1622777], dtype=float32))
    """

    def __init__(self, features: int) -> None:
        if features < 1:
            raise ValueError(f"features: expected at least 1, got {features}")
        self.features, self.count = features, 0
        self._sum: NDArray[np.float64] | None = None  # the upper triangle, by panels of columns
        self._packed: F32 | None = None  # or the mean, as `pack` writes it

    def update(self, x: Any) -> None:
        """Add inputs.

        Parameters
        ----------
        x : array_like (..., features)
            Real numbers; computed in float32.

        Raises
        ------
        ValueError
            The last axis is not `features` long, or there are no rows.
        NonFiniteError
            A number is NaN, infinite, or above 2^60 in magnitude. Nothing of x has been added then.
        """
        array = as_float32("x", x)
        if array.ndim == 0 or array.shape[-1] != self.features:
            raise ValueError(f"x: expected shape (..., {self.features}), got {array.shape}")
        if array.size == 0:
            raise ValueError(f"x: expected at least one row, got shape {array.shape}")
        rows = np.ascontiguousarray(array).reshape(-1, self.features)
        bad = native.first_nonfinite(rows)
        if bad < 0 and max(rows.max(), -rows.min()) > LARGEST:
            bad = int(np.argmax(np.abs(rows)))
        if bad >= 0:
            index = tuple(int(i) for i in np.unravel_index(bad, array.shape))
            raise NonFiniteError(f"x: expected finite values up to 2^60, got {rows.flat[bad]} at index {index}")
        total = self._opened()
        for top in range(0, len(rows), CHUNK_ROWS):
            some = rows[top : top + CHUNK_ROWS]
            for left in range(0, self.features, PANEL_COLS):
                right = left + PANEL_COLS
                native.add_product(total[:right, left:right], some[:, :right].T, some[:, left:right])
        self.count += len(rows)

    def merge(self, other: Moments) -> None:
        """Add what another has seen."""
        if other.features != self.features:
            raise ValueError(f"other: expected {self.features} features, got {other.features}")
        if other.count:
            total = self._opened()
            total += other._opened()
            self.count += other.count

    def mean(self) -> F32:
        """(features, features): the mean of x^T x over all rows. Raises ValueError before the first one."""
        self._check_count()
        mean = np.empty((self.features, self.features), np.float32)
        if self._packed is not None:
            for col, start in enumerate(_starts(self.features)):
                mean[: col + 1, col] = mean[col, : col + 1] = self._packed[start : start + col + 1]
            return mean
        assert self._sum is not None
        for left in range(0, self.features, PANEL_COLS):
            for top in range(0, left + 1, PANEL_COLS):
                rows, cols = slice(top, top + PANEL_COLS), slice(left, left + PANEL_COLS)
                mean[rows, cols] = self._sum[rows, cols] / self.count
                mean[cols, rows] = mean[rows, cols].T
        return mean

    def norms(self) -> F32:
        """(features,): the root mean square of each input."""
        self._check_count()
        if self._packed is not None:
            diagonal = self._packed[_starts(self.features) + np.arange(self.features)]
        else:
            assert self._sum is not None
            diagonal = (np.diagonal(self._sum) / self.count).astype(np.float32)
        norms: F32 = np.sqrt(np.maximum(diagonal, np.float32(0)))
        return norms

    def settle(self) -> None:
        """Keep the mean only, as files have it: a quarter of the memory."""
        self._packed, self._sum = self.pack(), None

    def pack(self) -> F32:
        """The upper triangle of the mean, column after column: (features * (features + 1) / 2,)."""
        if self._packed is not None:
            return self._packed
        mean = self.mean()
        return np.concatenate([mean[: col + 1, col] for col in range(self.features)])

    @classmethod
    def unpack(cls, packed: Any, count: int) -> Self:
        """The inverse of `pack`. Nothing is copied before an update."""
        array = np.asarray(packed)
        features = (int(np.sqrt(8 * array.size + 1)) - 1) // 2
        if array.dtype != np.float32 or array.ndim != 1 or features * (features + 1) // 2 != array.size or not features:
            got = f"{array.dtype} of shape {array.shape}"
            raise FormatError(None, None, "a float32 triangle of n * (n + 1) / 2 numbers", got)
        if count < 1:
            raise FormatError(None, None, "a count of at least 1", count)
        if native.first_nonfinite(np.ascontiguousarray(array)) >= 0:
            raise FormatError(None, None, "finite moments", "a NaN or an infinity")
        moments = cls(features)
        moments.count, moments._packed = count, array
        return moments

    def _opened(self) -> NDArray[np.float64]:
        """The sum, to be added to. From a packed mean: its product with the count, from which it comes back exactly."""
        if self._sum is None:
            if self._packed is None:
                self._sum = np.zeros((self.features, self.features))
            else:
                self._sum = self.mean().astype(np.float64) * self.count
                self._packed = None
        return self._sum

    def _check_count(self) -> None:
        if self.count == 0:
            raise ValueError("stats: expected at least one row of inputs, got none")


def _starts(features: int) -> NDArray[np.int64]:
    """Where each column of a packed triangle begins."""
    cols = np.arange(features, dtype=np.int64)
    return cols * (cols + 1) // 2


class CalibrationStats(Mapping[str, Moments]):
    """`Moments` of the inputs of each layer, by name.

    Names are those of the weights, with or without ``.weight``. Weights that read the same inputs (query, key, value)
    share one entry.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> stats = pm.CalibrationStats()
    >>> x = np.random.default_rng(0).standard_normal((100, 64))
    >>> stats.update(("attention.query", "attention.key"), x)
    >>> stats.update("mlp.up", x @ np.eye(64, 32))
    >>> stats
    <CalibrationStats of 3 layers, 100 rows, 10 KB>

    They are stored as plain arrays:

    >>> import io
    >>> _ = pm.save(file := io.BytesIO(), stats.pack())    # or a path
    >>> again = pm.CalibrationStats.unpack(pm.load(file.getvalue()))
    >>> bool((again["mlp.up"].mean() == stats["mlp.up"].mean()).all())
    True
    """

    def __init__(self) -> None:
        self._layers: dict[str, Moments] = {}

    def update(self, name: str | tuple[str, ...] | list[str], x: Any) -> None:
        """Add inputs x (..., features) of a layer, or of several that share them.

        Raises
        ------
        ValueError, NonFiniteError
            As `Moments.update`, with the name; layers that have not shared their inputs so far.
        """
        names, moments = self._sharing(name)
        if moments is None:
            array = as_float32(f"x of {names[0]!r}", x)
            moments = Moments(array.shape[-1] if array.ndim and array.shape[-1] else 1)
        try:
            moments.update(x)
        except (ValueError, NonFiniteError) as error:
            raise type(error)(f"{names[0]}: {error}") from error
        self._layers.update(dict.fromkeys(names, moments))

    def add(self, name: str | tuple[str, ...] | list[str], moments: Moments) -> None:
        """Add the moments of a layer's inputs, or of several layers' that share them, that were gathered elsewhere.

        Raises
        ------
        ValueError
            As `Moments.merge`; layers that have not shared their inputs so far.
        """
        names, known = self._sharing(name)
        total = Moments(moments.features) if known is None else known
        try:
            total.merge(moments)
        except ValueError as error:
            raise ValueError(f"{names[0]}: {error}") from error
        self._layers.update(dict.fromkeys(names, total))

    def _sharing(self, name: str | tuple[str, ...] | list[str]) -> tuple[tuple[str, ...], Moments | None]:
        """The names, and the moments that all of them have; None if none has any yet."""
        names = (name,) if isinstance(name, str) else tuple(name)
        if not names:
            raise ValueError("name: expected at least one, got none")
        if len({id(self._layers.get(n)) for n in names}) != 1:
            raise ValueError(f"name: expected layers that always share their inputs, got {list(names)}")
        return names, self._layers.get(names[0])

    def merge(self, other: CalibrationStats) -> None:
        """Add what another has seen: of other data, or of other layers."""
        merged: dict[int, Moments] = {}
        for name, theirs in other._layers.items():
            if id(theirs) in merged:
                if self._layers.setdefault(name, merged[id(theirs)]) is not merged[id(theirs)]:
                    raise ValueError(f"other: expected layers that share their inputs as here, got {name!r}")
                continue
            ours = self._layers.setdefault(name, Moments(theirs.features))
            if any(ours is known for known in merged.values()):
                raise ValueError(f"other: expected layers that share their inputs as here, got {name!r}")
            try:
                ours.merge(theirs)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            merged[id(theirs)] = ours

    def adopt(self, other: CalibrationStats) -> None:
        """Take over another's entries, of layers that are none of ours, as they are."""
        twice = [name for name in other._layers if name in self._layers]
        if twice:
            raise ValueError(f"other: expected other layers, got {twice[0]!r} again")
        self._layers.update(other._layers)

    def take(self, names: Iterable[str]) -> CalibrationStats:
        """The entries of these names, which are no longer here."""
        taken = CalibrationStats()
        taken._layers = {name: self._layers.pop(name) for name in names if name in self._layers}
        return taken

    def settle(self) -> None:
        """Keep means only, as files have them: a quarter of the memory."""
        for moments in {id(m): m for m in self._layers.values()}.values():
            moments.settle()

    def pack(self) -> dict[str, NDArray[Any]]:
        """Plain arrays: ``NAME.mean`` (float32, a triangle) and ``NAME.count`` (int64, shape (1,)) of each entry, and
        ``aliases``, JSON in UTF-8: the other names of entries."""
        return dict(packed([self]))

    @classmethod
    def unpack(cls, arrays: Mapping[str, Any]) -> Self:
        """The inverse of `pack`; raises FormatError for what it does not write."""
        stats = cls()
        for key in arrays:
            if key == ALIASES or key.endswith(COUNT):
                continue
            name = key.removesuffix(MEAN)
            if name == key or name + COUNT not in arrays:
                raise FormatError(None, key, "moments: NAME.mean and NAME.count", key)
            count = np.asarray(arrays[name + COUNT])
            if count.dtype != np.int64 or count.shape != (1,):
                raise FormatError(None, name + COUNT, "int64 of shape (1,)", f"{count.dtype} of shape {count.shape}")
            try:
                stats._layers[name] = Moments.unpack(arrays[key], int(count[0]))
            except FormatError as error:
                raise FormatError(None, name, error.rule, error.got) from error
        for alias, owner in _aliases(arrays).items():
            if owner not in stats._layers or alias in stats._layers:
                raise FormatError(None, ALIASES, "other names of entries", f"{alias!r} of {owner!r}")
            stats._layers[alias] = stats._layers[owner]
        return stats

    def __getitem__(self, name: str) -> Moments:
        for known in (name, name.removesuffix(".weight"), name + ".weight"):
            if known in self._layers:
                return self._layers[known]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        some = {id(m): m for m in self._layers.values()}.values()
        size = sum(2 * m.features * (m.features + 1) for m in some)
        rows = max((m.count for m in some), default=0)
        return f"<CalibrationStats of {len(self)} layers, {rows} rows, {size / 1000:.0f} KB>"


def packed(parts: Iterable[CalibrationStats]) -> Iterator[tuple[str, NDArray[Any]]]:
    """`CalibrationStats.pack` of several that have no layer in common, as if they were one: an array at a time."""
    import json

    aliases: dict[str, str] = {}
    for stats in parts:
        first: dict[int, str] = {}
        for name, moments in stats._layers.items():
            owner = first.setdefault(id(moments), name)
            if owner != name:
                aliases[name] = owner
                continue
            yield name + MEAN, moments.pack()
            yield name + COUNT, np.array([moments.count], np.int64)
    yield ALIASES, np.frombuffer(json.dumps(aliases, ensure_ascii=False, sort_keys=True).encode(), np.uint8)


def _aliases(arrays: Mapping[str, Any]) -> dict[str, str]:
    if ALIASES not in arrays:
        return {}
    import json

    try:
        aliases = json.loads(np.asarray(arrays[ALIASES], np.uint8).tobytes())
    except ValueError as error:
        raise FormatError(None, ALIASES, "JSON", str(error)) from error
    if not isinstance(aliases, dict) or not all(isinstance(owner, str) for owner in aliases.values()):
        raise FormatError(None, ALIASES, "an object of strings", repr(aliases)[:80])
    return aliases


Stats: TypeAlias = "Moments | Mapping[Any, Moments] | None"
"""What users give as ``stats``: the moments of one weight, or of each by its key."""


def moments_of(label: str, key: Any, stats: Stats, cols: int) -> Moments | None:
    """The moments of a weight: of a single one (key None), or of the member `key` of a collection.

    Raises
    ------
    TypeError
        Not moments, or a mapping of them.
    ValueError
        None for this member, or of other than `cols` features, or of no inputs yet.
    """
    if stats is None:
        return None
    if isinstance(stats, Moments):
        if key is not None:
            raise TypeError("stats: expected a mapping of Moments for a collection of weights, got Moments")
        found: Any = stats
    elif key is None or not isinstance(stats, Mapping):
        raise TypeError(f"stats: expected Moments for {label}, such as stats['name'], got {type(stats).__name__}")
    else:
        try:
            found = stats[key]
        except KeyError:
            some = ", ".join([*map(str, islice(stats, 3)), *(["..."] if len(stats) > 3 else [])])
            raise ValueError(f"stats: expected moments of {label}, got those of {some or 'none'}") from None
        if not isinstance(found, Moments):
            raise TypeError(f"stats[{key!r}]: expected Moments, got {type(found).__name__}")
    if found.features != cols:
        raise ValueError(f"stats: expected {cols} features as {label} has columns, got {found.features}")
    moments: Moments = found
    moments._check_count()
    return moments
