"""A bit for every weight says whether it is stored; the stored values follow one another. N:M is the regular case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pumice._core import native
from pumice.errors import FormatError, NonFiniteError
from pumice.layouts.base import CompactArray
from pumice.layouts.dense import Form, is_mapped
from pumice.layouts.indexing import take_ids
from pumice.layouts.operands import frozen
from pumice.layouts.registry import register
from pumice.layouts.work import Work, label_of, steps_of
from pumice.options import Options
from pumice.scheme import LayoutGrammar, Scheme
from pumice.values.base import F32, Array, Arrays, check_part, codec_of, grid_of, matrix_shape, stored_dtype
from pumice.values.integer import FLOAT32_KERNEL_BATCH, PANEL, SCALE_DTYPES, Integer, check_scales, to_panels

PANEL_WEIGHTS = 1 << 17  # weights that are encoded at a time
DIRECT = 8  # times as many where nothing but the grid is made of them
VALUES = ("float32", "float16", "bfloat16", "int8", "int4")


class MaskedArray(CompactArray):
    """What bitmask and N:M share.

    Canonical: `bitmask`, uint8 (rows, ceil(cols / 8)), bit c % 8 of byte c // 8 being column c; `data`, the values of
    one row after the other; `scale` of integers. int4 data has two codes in a byte and begins each row with a byte.
    Prepacked, integers only: masks of 16 rows x 4 columns, and the codes in the order of their bits (docs/formats.md).
    """

    def __init__(self, scheme: Scheme, shape: tuple[int, ...], arrays: Arrays) -> None:
        super().__init__(scheme, shape)
        self._codec = codec_of(scheme)
        self._form = Form(arrays)
        self._mapped = arrays if any(map(is_mapped, arrays.values())) else None
        self._keep = False
        counts = native.count_places(arrays["bitmask"], self._cols)
        self._nnz, self._offsets = int(counts.sum()), native.row_offsets(counts, scheme.values)
        self._nbytes = sum(array.nbytes for array in arrays.values()) + 8 * len(shape)

    @classmethod
    def kept(cls, scheme: Scheme) -> tuple[int, int]:
        """(N, M): values that are kept of every so many columns; (0, 1) where it is any number."""
        return 0, 1

    @classmethod
    def _data_shape(cls, scheme: Scheme, rows: int, cols: int, entries: int) -> tuple[int, ...]:
        return (entries,)

    @classmethod
    def encode(
        cls, w: F32, scheme: Scheme, shape: tuple[int, ...], scale_dtype: Any = None, grid: Arrays | None = None
    ) -> Self:
        try:
            arrays = cls._encode(w, scheme, scale_dtype, grid) or cls._encode(w, scheme, np.float32, grid)
        except NonFiniteError:
            codec_of(scheme).encode_sparse(w, scheme)  # names the index in the whole
            raise
        assert arrays is not None  # float32 scales never need wider ones
        return cls(scheme, shape, arrays)

    @classmethod
    def _encode(cls, w: F32, scheme: Scheme, scale_dtype: Any, grid: Arrays | None) -> Arrays | None:
        """The canonical arrays, made panel by panel in place; None where one needs wider scales than the first did."""
        codec, values, (rows, cols) = codec_of(scheme), scheme.values, w.shape
        kept, of = cls.kept(scheme)
        if cols % of:
            raise ValueError(f"w: expected columns in multiples of {of} for {scheme}, got {cols}")
        # What is 0 before rounding is 0 after it.
        most = np.full(rows, cols // of * kept) if kept else native.count_csr(np.ascontiguousarray(w), "float32")
        bitmask = np.empty((rows, -(-cols // 8)), np.uint8)
        data = np.empty(native.row_offsets(most, values)[-1], stored_dtype(scheme))
        scales: list[Array] = []
        scale: Array | None
        direct = kept == 0 and isinstance(codec, Integer)  # only what is not 0 is rounded, in place
        used, step = 0, max(1, PANEL_WEIGHTS * (DIRECT if direct else 1) // max(cols, 1))
        for start in range(0, max(rows, 1), step):
            here = slice(start, start + step)
            panel, grids = np.ascontiguousarray(w[here]), grid_of(grid, start, start + step)
            if direct and isinstance(codec, Integer):
                scale = (grids[0] if grids else codec.grid_for(panel, scheme, scale_dtype))["scale"]
                room, group = native.row_offsets(most[here], values), codec.group_of(scheme, cols)
                places, stored = native.fill_bitmask_codes(
                    panel, scale.astype(np.float32), values, group, room, data[used:]
                )
                used += int(native.row_offsets(stored, values)[-1])
            else:
                rounded, scale = codec.encode_sparse(panel, scheme, scale_dtype, *grids)
                places, stored = native.find_places(rounded, values, kept, of)
                if stored.size and stored.min() < 0:
                    row = int(np.argmin(stored))
                    raise ValueError(
                        f"w: expected at most {kept} values in every {of} columns, got more in row {start + row} "
                        f"from column {-1 - stored[row]} on; prune(w, pattern='{kept}:{of}') makes such weights"
                    )
                used += len(_gathered(rounded, scheme, places, stored, data[used:]))
            bitmask[here] = places
            if scale is not None:
                scales.append(scale)
                if scale.dtype != scales[0].dtype:
                    return None
        data.resize(used, refcheck=False)  # rounding makes more holes
        arrays = {"bitmask": bitmask, "data": data.reshape(cls._data_shape(scheme, rows, cols, used))}
        return arrays | ({"scale": np.concatenate(scales)} if scales else {})

    @classmethod
    def from_parts(cls, scheme: Scheme, shape: tuple[int, ...], parts: Mapping[str, Array]) -> Self:
        rows, cols = matrix_shape(shape)
        kept, of = cls.kept(scheme)
        scaled = scheme.values.startswith("int")
        names = {"bitmask", "data", "shape"} | ({"scale"} if scaled else set())
        if set(parts) != names:
            raise FormatError(None, None, f"the parts {sorted(names)} for {scheme}", sorted(parts))
        if cols % of:
            raise FormatError(None, "shape", f"columns in multiples of {of} for {scheme}", cols)
        check_part(parts, "bitmask", np.uint8, (rows, -(-cols // 8)))
        bitmask = np.array(parts["bitmask"])
        counts = native.count_places(bitmask, cols, kept, of)
        bad = np.flatnonzero(counts < 0)
        if bad.size:
            rule = f"{kept} bits in every {of} columns" if kept else "no bits beyond the columns"
            raise FormatError(None, "bitmask", rule, f"others in row {bad[0]}")
        entries = int(native.row_offsets(counts, scheme.values)[-1])
        check_part(parts, "data", stored_dtype(scheme), cls._data_shape(scheme, rows, cols, entries))
        arrays = {"bitmask": bitmask, "data": np.ascontiguousarray(parts["data"])}
        if scaled:
            groups = 1 if scheme.group is None else max(1, -(-cols // scheme.group))
            check_part(parts, "scale", SCALE_DTYPES, (rows, groups))
            check_scales("scale", parts["scale"])
            arrays["scale"] = np.ascontiguousarray(parts["scale"])
        return cls(scheme, shape, arrays)

    @classmethod
    def stack(cls, arrays: Sequence[CompactArray], shape: tuple[int, ...]) -> Self:
        forms = [a._canonical() for a in arrays if isinstance(a, cls)]
        return cls(arrays[0]._scheme, shape, {name: np.concatenate([f[name] for f in forms]) for name in forms[0]})

    @classmethod
    def work(cls, scheme: Scheme, shape: tuple[int, ...], density: float, batch: int, activations: str) -> Work:
        """What a product does, for the cost model: it reads what is stored and computes as if all were."""
        codec, (rows, cols) = codec_of(scheme), matrix_shape(shape)
        groups = 0 if not scheme.values.startswith("int") else max(1, -(-cols // (scheme.group or max(cols, 1))))
        nbytes = rows * (-(-cols // 8) + density * cols * codec.bits / 8 + groups * (2 if scheme.group else 4))
        steps = steps_of(cls._kernel(scheme, batch, activations), rows * cols, rows * cols, batch)
        return Work(nbytes, steps, activations, label_of(scheme), codec.bits, scheme.group or max(cols, 1))

    @staticmethod
    def _kernel(scheme: Scheme, batch: int, activations: str) -> str | None:
        if not scheme.values.startswith("int"):
            return "matmul_f32_bitmask"
        if activations != "float32":
            return "matmul_int_bitmask"
        return "matmul_f32_int" if batch <= FLOAT32_KERNEL_BATCH else None

    def kernel(self, batch: int, activations: str) -> str | None:
        return self._kernel(self._scheme, batch, activations)

    # Forms.

    def _weights_of(self, arrays: Arrays, rows: int) -> native.Bitmask:
        """The core's view of canonical arrays of `rows` rows."""
        counts = native.count_places(arrays["bitmask"], self._cols)
        offsets = native.row_offsets(counts, self._scheme.values)
        return native.Bitmask(
            arrays["bitmask"],
            offsets,
            arrays["data"].reshape(-1),
            arrays.get("scale"),
            rows,
            self._cols,
            self._scheme.values,
            self._group,
        )

    @property
    def _group(self) -> int:
        return self._scheme.group or max(self._cols, 1)

    def _weights(self, form: Form) -> Any:
        if form.weights is None:  # of threads that race here each makes one, and any will do
            if form.prepacked:
                masks, offsets, data, scale = (form.arrays[name] for name in ("masks", "offsets", "data", "scale"))
                form.weights = native.MaskedInt(
                    masks, offsets, data, scale, self._rows, self._cols, self._scheme.values, self._group
                )
            else:
                form.weights = self._weights_of(form.arrays, self._rows)
        return form.weights

    def _canonical(self) -> Arrays:
        return self._canonical_rows(0, self._rows)

    def _canonical_rows(self, start: int, stop: int) -> Arrays:
        form = self._form
        if form.prepacked and self._mapped is None:
            first, last = start // PANEL, max(-(-stop // PANEL), start // PANEL)
            bitmask, offsets, data = self._weights(form).unprepack(first, last)
            scale = _from_panels(form.arrays["scale"][first:last], len(bitmask))
            start, stop = start - first * PANEL, stop - first * PANEL
            bitmask, scale = bitmask[start:stop], scale[start:stop]
            data = data[offsets[start] : offsets[stop]].view(stored_dtype(self._scheme))
            return {"bitmask": bitmask, "data": self._rows_of_data(data, stop - start), "scale": scale}
        arrays = self._mapped or form.arrays
        if (start, stop) == (0, self._rows):
            return arrays
        data = arrays["data"].reshape(-1)[self._offsets[start] : self._offsets[stop]]
        rows = {name: array[start:stop] for name, array in arrays.items() if name != "data"}
        return rows | {"data": self._rows_of_data(data, stop - start)}

    def _rows_of_data(self, data: Array, rows: int) -> Array:
        return data.reshape(self._data_shape(self._scheme, rows, self._cols, data.size))

    def prepack(self) -> Self:
        form = self._form
        if "scale" in form.arrays and not form.prepacked:
            masks, offsets, data = self._weights(form).prepack()
            scale = to_panels(form.arrays["scale"])
            self._form = Form({"masks": masks, "offsets": offsets, "data": data, "scale": scale}, prepacked=True)
        return self

    def keep_canonical(self) -> Self:
        self._keep = True
        self._form = Form(self._canonical())
        return self

    def _fused(self, x: F32, y: F32, bias: F32 | None, options: Options, activations: str) -> None:
        if not self._keep and options.prepack != "never":
            self.prepack()
        self._weights(self._form).matmul(x, y, bias, activations)

    # Contents.

    def parts(self) -> Arrays:
        parts = {name: frozen(array) for name, array in self._canonical().items()}
        return parts | {"shape": frozen(np.array(self._shape, np.int64))}

    def part_dtype(self, part: str) -> str:
        return self._codec.file_dtypes.get("" if part == "data" else part) or super().part_dtype(part)

    def _scattered(self, arrays: Arrays, rows: int) -> Array:
        """Stored values in their columns: floats as stored, or signed codes (rows, cols)."""
        weights = self._weights_of(arrays, rows)
        if "scale" not in arrays:
            return weights.scatter(0, rows, self._cols)
        codes = weights.scatter(0, rows, self._cols)
        codes -= np.uint8(1 << (self._codec.bits - 1))
        return codes.view(np.int8)

    def _decode(self, arrays: Arrays, rows: int) -> F32:
        if "scale" not in arrays:
            return self._codec.decode_sparse(self._scattered(arrays, rows))
        codes = self._weights_of(arrays, rows).scatter(0, rows, -(-self._cols // 4) * 4)
        codes += np.uint8(128 - (1 << (self._codec.bits - 1)))
        scale = np.ascontiguousarray(arrays["scale"], np.float32)
        return native.decode_int(codes, scale, None, 8, self._group, self._cols)

    def decode_rows(self, start: int, stop: int) -> F32:
        return self._decode(self._canonical_rows(start, stop), stop - start)

    def codes(self) -> Array:
        """The stored integers, signed, 0 where nothing is stored: int8 (rows, cols)."""
        if not self._scheme.values.startswith("int"):
            return super().codes()
        return self._scattered(self._canonical(), self._rows)

    def take(self, ids: Any) -> F32:
        ids = take_ids(ids, self._rows)
        flat = ids.reshape(-1)
        wanted, places = np.unique(flat, return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1) if wanted.size else []
        rows = [self.decode_rows(int(run[0]), int(run[-1]) + 1) for run in runs]
        w = np.concatenate(rows)[places] if rows else np.zeros((0, self._cols), np.float32)
        return w.reshape(*ids.shape, *self._shape[1:])

    def _slice(self, rows: slice, cols: slice) -> Self:
        arrays = self._canonical_rows(rows.start, rows.stop)
        shape = (rows.stop - rows.start, *self._shape[1:])
        if cols == slice(0, self._cols):
            return type(self)(self._scheme, shape, {name: np.ascontiguousarray(a) for name, a in arrays.items()})
        group, of = self._scheme.group or 1, self.kept(self._scheme)[1]
        unit = math.lcm(group, of)
        if any(cut % unit and cut != self._cols for cut in (cols.start, cols.stop)):
            raise IndexError(f"index: expected columns at multiples of {unit}, got {cols.start}:{cols.stop}")
        values = np.ascontiguousarray(self._scattered(arrays, shape[0])[:, cols])
        bitmask, counts = native.find_places(values, self._scheme.values, *self.kept(self._scheme))
        rows_left, cols_left = shape[0], cols.stop - cols.start
        data = _gathered(values, self._scheme, bitmask, counts)
        shaped = data.reshape(self._data_shape(self._scheme, rows_left, cols_left, len(data)))
        cut: Arrays = {"bitmask": bitmask, "data": shaped}
        if "scale" in arrays:
            first, last = (
                (cols.start // group, max(-(-cols.stop // group), cols.start // group + 1))
                if self._scheme.group
                else (0, 1)
            )
            cut["scale"] = np.ascontiguousarray(arrays["scale"][:, first:last])
        return type(self)(self._scheme, (rows_left, cols_left), cut)

    @property
    def bitmask(self) -> NDArray[np.uint8]:
        """uint8 (rows, ceil(cols / 8)), read-only: bit c % 8 of byte c // 8 is set where column c is stored."""
        return frozen(self._canonical()["bitmask"])

    @property
    def data(self) -> Array:
        """The stored values, floats or signed codes (int4: two unsigned ones a byte), read-only."""
        return frozen(self._canonical()["data"])

    @property
    def scales(self) -> Array | None:
        """(rows, groups) of integers, else None; read-only."""
        scale = self._canonical().get("scale")
        return None if scale is None else frozen(scale)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    @property
    def resident_nbytes(self) -> int:
        return sum(array.nbytes for array in self._form.arrays.values() if not is_mapped(array))

    @property
    def nnz(self) -> int:
        return self._nnz


@register
class BitmaskArray(MaskedArray):
    """A bit for every weight, and the values that are not 0: 1 bit per weight more than those.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = pm.compress(np.array([[0.0, 2.0, 0.0], [3.0, 0.0, 4.0]]), "bitmask")
    >>> w.bitmask, w.data
    (array([[2],
           [5]], dtype=uint8), array([2., 3., 4.], dtype=float32))
    """

    grammar = LayoutGrammar("bitmask", "bitmask", values=VALUES, group=True)


def _gathered(
    values: Array, scheme: Scheme, bitmask: NDArray[np.uint8], counts: NDArray[np.int64], room: Array | None = None
) -> Array:
    """The data of a matrix with this bitmask and so many values in each row; at the start of `room`, if given."""
    offsets = native.row_offsets(counts, scheme.values)
    data = np.empty(offsets[-1], stored_dtype(scheme)) if room is None else room[: offsets[-1]]
    native.Bitmask(bitmask, offsets, data, None, len(values), values.shape[1], scheme.values).gather(values, data)
    return data


def _from_panels(scale: Array, rows: int) -> Array:
    """(panels, groups, 16) -> (rows, groups)."""
    return np.ascontiguousarray(scale.swapaxes(1, 2).reshape(-1, scale.shape[1])[:rows])
