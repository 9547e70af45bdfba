"""Every weight stored, by any values codec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from pumice.layouts.base import CompactArray
from pumice.layouts.indexing import take_ids
from pumice.layouts.operands import frozen
from pumice.layouts.permuted import PermutedArray
from pumice.layouts.registry import register
from pumice.layouts.work import Work, label_of, steps_of
from pumice.memory import Anonymous, mapping_of
from pumice.options import Options
from pumice.scheme import MIN_GROUP, LayoutGrammar, Scheme
from pumice.values.base import F32, Array, Arrays, Energies, StoredRows, Weights, codec_of, grid_of, matrix_shape


class Form:
    """The arrays of a codec, canonical or prepacked, and what multiplies with them; never changed once made."""

    def __init__(self, arrays: Arrays, prepacked: bool = False) -> None:
        self.arrays, self.prepacked = arrays, prepacked
        self.weights: Weights | None = None  # made by the first product


@register
class DenseArray(CompactArray):
    """A weight whose values are all stored: float32, float16, bfloat16, or integer codes with scales.

    Made by `pumice.compress`, by `from_codes`, or from stored parts.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = pm.compress(np.linspace(-1, 1, 256).reshape(4, 64), "int4-g32")
    >>> w
    <DenseArray int4-g32 (4, 64) 160 bytes, 5 bits per weight>
    >>> (np.ones(64) @ w.T).shape
    (4,)
    """

    grammar = LayoutGrammar("dense", "dense")

    def __init__(self, scheme: Scheme, shape: tuple[int, ...], arrays: Arrays) -> None:
        super().__init__(scheme, shape)
        self._codec = codec_of(scheme)
        self._form = Form(arrays)
        # A mapped file stays mapped: it is the canonical form whatever the form in use is.
        self._mapped = arrays if any(map(is_mapped, arrays.values())) else None
        self._keep = False
        self._nbytes = sum(part.nbytes for part in self.parts().values())

    @classmethod
    def encode(
        cls, w: F32, scheme: Scheme, shape: tuple[int, ...], scale_dtype: Any = None, grid: Arrays | None = None
    ) -> Self:
        return cls(scheme, shape, codec_of(scheme).encode(w, scheme, scale_dtype, *grid_of(grid)))

    @classmethod
    def encode_rows(
        cls, rows: StoredRows, scheme: Scheme, shape: tuple[int, ...], scale_dtype: Any = None
    ) -> tuple[Self, Energies]:
        arrays, energies = codec_of(scheme).encode_rows(rows, scheme, scale_dtype)
        return cls(scheme, shape, arrays), energies

    @classmethod
    def from_parts(cls, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Array]) -> Self:
        return cls(scheme, shape, codec_of(scheme).from_parts(parts, scheme, shape))

    @classmethod
    def expected_nbytes(cls, scheme: Scheme, shape: tuple[int, ...]) -> int | None:
        return codec_of(scheme).nbytes(scheme, shape)

    @classmethod
    def work(cls, scheme: Scheme, shape: tuple[int, ...], density: float, batch: int, activations: str) -> Work:
        """What a product does, for the cost model."""
        codec, (rows, cols) = codec_of(scheme), matrix_shape(shape)
        steps = steps_of(codec.kernel(batch, activations), rows * cols, rows * cols, batch)
        unit = scheme.group or max(cols, 1)
        return Work(codec.nbytes(scheme, shape), steps, activations, label_of(scheme), codec.bits, unit)

    @classmethod
    def from_codes(
        cls,
        codes: Any,
        scales: Any,
        zeros: Any = None,
        *,
        minima: Any = None,
        bits: int,
        group: int | None = None,
        shape: tuple[int, ...] | None = None,
        perm: Any = None,
    ) -> CompactArray:
        """Weights that somebody else quantized: ``w = scale * (code - zero)``, or ``scale * code + minimum``.

        Parameters
        ----------
        codes : (rows, cols) integers in [0, 2**bits - 1]
            Unsigned; add ``2**(bits - 1)`` to signed ones.
        scales : (rows,) or (rows, groups) float16 or float32
            Other floats become float32.
        zeros : (rows,) or (rows, groups) integers in [0, 2**bits - 1], optional
            None is the symmetric zero, ``2**(bits - 1)``.
        minima : (rows,) or (rows, groups) floats, optional
            What a code 0 means, instead of zeros. A zero that is a float is the minimum ``-scale * zero``. Stored as
            float16 if scales and minima are, else both as float32.
        bits : int
            Bits of a code; there must be a codec ``int{bits}``.
        group : int, optional
            Columns that share a scale; by default what `scales` implies. One that is no power of two (96) is stored
            as the largest power of two that divides it, with repeated scales.
        shape : tuple of int, optional
            Logical shape of a weight with more than two dimensions.
        perm : (cols,) integers, optional
            The order of the columns of `codes`, if it is not that of the weight: column j of the codes is column
            ``perm[j]`` ("act-order"; ``argsort(g_idx, kind="stable")`` of GPTQ). Then the result is a `PermutedArray`.

        Raises
        ------
        ValueError
            Shapes that disagree, codes and zeros out of range, zeros and minima together, or no permutation.

        Examples
        --------
        >>> import numpy as np
        >>> w = DenseArray.from_codes(np.array([[0, 8, 15]]), np.array([0.5]), bits=4)
        >>> w.to_dense()
        array([[-4. ,  0. ,  3.5]], dtype=float32)
        """
        codes = _whole("codes", codes, bits)
        if codes.ndim != 2:
            raise ValueError(f"codes: expected shape (rows, cols), got {codes.shape}")
        rows, cols = codes.shape
        scales = _floats("scales", scales, rows)
        groups = scales.shape[1]
        if zeros is not None and minima is not None:
            raise ValueError("minima: expected None beside zeros, got an array")
        if zeros is not None:
            zeros = _per_group("zeros", _whole("zeros", zeros, bits), rows)
        if minima is not None:
            minima = _floats("minima", minima, rows)
            wider = np.result_type(scales, minima)
            scales, minima = scales.astype(wider), minima.astype(wider)
        for name, offsets in (("zeros", zeros), ("minima", minima)):
            if offsets is not None and offsets.shape != scales.shape:
                raise ValueError(f"{name}: expected shape {scales.shape} as scales, got {offsets.shape}")
        stored, repeat = _stored_group(cols, groups, group)
        flags = "-asym" if zeros is not None else "-min" if minima is not None else ""
        scheme = Scheme.parse(f"int{bits}" + (f"-g{stored}" if stored else "") + flags)
        codec = codec_of(scheme)
        arrays = codec.pack(codes) | {"scale": scales}
        if zeros is not None:
            arrays["zero_point"] = zeros
        if minima is not None:
            arrays["min"] = minima
        if repeat > 1:
            keep = -(-cols // stored) if stored else 1
            for name in arrays.keys() - {"packed"}:
                arrays[name] = np.repeat(arrays[name], repeat, axis=1)[:, :keep]
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        codec.check(arrays, scheme, rows, cols)
        shape = (rows, cols) if shape is None else tuple(shape)
        if len(shape) < 2 or matrix_shape(shape) != (rows, cols):
            raise ValueError(f"shape: expected one of ({rows}, ...) with {cols} columns, got {shape}")
        array = cls(scheme, shape, arrays)
        return array if perm is None else PermutedArray(array, perm)

    @classmethod
    def stack(cls, arrays: Sequence[CompactArray], shape: tuple[int, ...]) -> Self:
        forms = [a._canonical() for a in arrays if isinstance(a, DenseArray)]
        # Of float16 and float32 scales the wider dtype holds both exactly.
        return cls(arrays[0]._scheme, shape, {name: np.concatenate([f[name] for f in forms]) for name in forms[0]})

    def _canonical(self) -> Arrays:
        form = self._form
        if not form.prepacked:
            return form.arrays
        return self._mapped or self._codec.unprepack(form.arrays, np.arange(self._rows), self._cols)

    def _canonical_rows(self, start: int, stop: int) -> Arrays:
        form = self._form
        if form.prepacked and self._mapped is None:
            return self._codec.unprepack(form.arrays, np.arange(start, stop), self._cols)
        return {name: array[start:stop] for name, array in (self._mapped or form.arrays).items()}

    def parts(self) -> Arrays:
        parts = self._codec.to_parts(self._canonical(), self._shape)
        return {name: frozen(part) for name, part in parts.items()}

    def part_dtype(self, part: str) -> str:
        return self._codec.file_dtypes.get(part) or super().part_dtype(part)

    def decode_rows(self, start: int, stop: int) -> F32:
        return self._codec.decode(self._canonical_rows(start, stop), self._scheme, self._cols)

    def codes(self) -> Array:
        """The stored integers, unpacked: uint8 (rows, cols)."""
        return self._codec.codes(self._canonical(), self._cols)

    def take(self, ids: Any) -> F32:
        ids = take_ids(ids, self._rows)
        flat, form = ids.reshape(-1), self._form
        if form.prepacked:
            arrays = self._codec.unprepack(form.arrays, flat, self._cols)
        else:
            arrays = {name: array[flat] for name, array in form.arrays.items()}
        return self._codec.decode(arrays, self._scheme, self._cols).reshape(*ids.shape, *self._shape[1:])

    def _slice(self, rows: slice, cols: slice) -> Self:
        arrays = self._canonical_rows(rows.start, rows.stop)
        shape = (rows.stop - rows.start, *self._shape[1:])
        if cols != slice(0, self._cols):
            arrays = self._codec.columns(arrays, self._scheme, self._cols, cols.start, cols.stop)
            shape = (shape[0], cols.stop - cols.start)
        return type(self)(self._scheme, shape, arrays)

    def kernel(self, batch: int, activations: str) -> str | None:
        return self._codec.kernel(batch, activations)

    def _fused(self, x: F32, y: F32, bias: F32 | None, options: Options, activations: str) -> None:
        form = self._form
        if self._codec.prepacks and not form.prepacked and not self._keep and options.prepack != "never":
            form = self.prepack()._form
        weights = form.weights
        if weights is None:  # of threads that race here each makes one, and any will do
            weights = form.weights = self._codec.weights(form.arrays, self._scheme, self._rows, self._cols)
        weights.matmul(x, y, bias, activations)

    def prepack(self) -> Self:
        form = self._form
        if self._codec.prepacks and not form.prepacked:
            self._form = Form(self._codec.prepack(form.arrays, self._cols), prepacked=True)
        return self

    def keep_canonical(self) -> Self:
        self._keep = True
        self._form = Form(self._canonical())
        return self

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def resident_nbytes(self) -> int:
        return sum(array.nbytes for array in self._form.arrays.values() if not is_mapped(array))

    @property
    def nnz(self) -> int:
        return self.size


def is_mapped(array: Array) -> bool:
    """Whether an array is a view of a mapped file."""
    mapping = mapping_of(array)
    return mapping is not None and not isinstance(mapping, Anonymous)


def _whole(name: str, values: Any, bits: int) -> Array:
    """Integers in [0, 2**bits - 1] as uint8."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    if not 1 <= bits <= 8:
        raise ValueError(f"bits: expected 1 to 8, got {bits}")
    if array.size and (int(array.min()) < 0 or int(array.max()) >= 2**bits):
        bad = int(array.min()) if int(array.min()) < 0 else int(array.max())
        hint = f" (signed {name}: add {2 ** (bits - 1)})" if bad < 0 else ""
        raise ValueError(f"{name}: expected integers from 0 to {2**bits - 1}, got {bad}{hint}")
    return array.astype(np.uint8)


def _floats(name: str, values: Any, rows: int) -> Array:
    """One float16 or float32 number per row and group."""
    array = _per_group(name, np.asarray(values), rows)
    if array.dtype.kind != "f":
        raise TypeError(f"{name}: expected floating point, got {array.dtype}")
    return array if array.dtype.newbyteorder("=") == np.float16 else array.astype(np.float32)


def _per_group(name: str, array: Array, rows: int) -> Array:
    wide = array[:, None] if array.ndim == 1 else array
    if wide.ndim != 2 or wide.shape[0] != rows or wide.shape[1] == 0:
        raise ValueError(f"{name}: expected shape ({rows},) or ({rows}, groups), got {array.shape}")
    return wide


def _stored_group(cols: int, groups: int, group: int | None) -> tuple[int | None, int]:
    """The power of two that a scheme can name (None: the whole row), and how often each scale is repeated for it."""
    if group is None and groups > 1:
        powers = (MIN_GROUP << i for i in range(32))
        group = next((g for g in powers if -(-cols // g) == groups), None)
        if group is None and cols % groups == 0:
            group = cols // groups
    if group is None and groups == 1:
        return None, 1
    if group is None or group < 1 or max(1, -(-cols // group)) != groups:
        raise ValueError(f"group: expected one that makes {groups} groups of {cols} columns, got {group}")
    stored = group & -group
    if stored < MIN_GROUP:
        raise ValueError(f"group: expected a multiple of {MIN_GROUP}, got {group}")
    return stored, group // stored
