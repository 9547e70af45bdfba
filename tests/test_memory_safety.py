"""Kernels read and write inside their buffers only: each buffer ends, or starts, at a page that nobody may touch."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import mmap
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pumice as pm
from pumice._core import native
from pumice.scheme import Scheme
from pumice.values.base import codec_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="protects pages with Linux's mprotect")

PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
SHAPES = [(1, 1), (3, 15), (15, 16), (16, 17), (17, 31), (33, 33), (16, 127), (32, 128), (47, 129), (5, 300), (49, 64)]
BATCHES = [1, 2, 3, 5, 7, 8, 12, 13, 16, 33]


class Guarded:
    """Arrays in memory of their own between two forbidden pages."""

    def __init__(self, at_end: bool) -> None:
        self._at_end = at_end
        self._maps: list[mmap.mmap] = []

    def __call__(self, array: NDArray[Any] | None) -> Any:
        if array is None:
            return None
        array = np.ascontiguousarray(array)
        room = -(-max(array.nbytes, 1) // PAGE) * PAGE
        memory = mmap.mmap(-1, room + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in (start, start + PAGE + room):
            assert LIBC.mprotect(page, PAGE, 0) == 0
        self._maps.append(memory)
        offset = PAGE + (room - array.nbytes if self._at_end else 0)
        guarded = np.frombuffer(memory, np.uint8, array.nbytes, offset).view(array.dtype).reshape(array.shape)
        guarded[...] = array
        return guarded


@pytest.fixture(params=[True, False], ids=["ends at a forbidden page", "starts behind one"])
def guarded(request: pytest.FixtureRequest) -> Guarded:
    return Guarded(request.param)


@pytest.fixture(autouse=True, params=[1, 2], ids=["1 thread", "2 threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with pm.options(threads=request.param):
        yield


@cache
def random(shape: tuple[int, ...]) -> NDArray[np.float32]:
    numbers = np.random.default_rng(shape[-1]).standard_normal(shape).astype(np.float32)
    numbers.setflags(write=False)
    return numbers


def test_a_forbidden_page_kills() -> None:
    """The test of the tests: a read one byte too far would end the process."""
    import subprocess

    code = f"""
import sys; sys.path.insert(0, {str(sys.path[0])!r})
import importlib.util, numpy as np
spec = importlib.util.spec_from_file_location("safety", {__file__!r}); m = importlib.util.module_from_spec(spec)
spec.loader.exec_module(m)
a = m.Guarded(True)(np.zeros(100, np.uint8))
print(np.lib.stride_tricks.as_strided(a, (101,)).sum())
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -11


@pytest.mark.parametrize(
    "scheme",
    [
        "int8",
        "int4",
        "int4-g16",
        "int4-g32-asym",
        "int8-g128-asym",
        "int2-g32",
        "int3-g16",
        "int3",
        "int5-g16",
        "int6-g16",
        "int4-min",
        "int4-g16-min",
        "int8-g32-min",
        "int3-g256-min",
    ],
)
@pytest.mark.parametrize("activations", ["int16", "int8", "float32"])
@pytest.mark.parametrize("prepacked", [False, True], ids=["canonical", "prepacked"])
def test_dense_integer_products(scheme: str, activations: str, prepacked: bool, guarded: Guarded, isa: str) -> None:
    for rows, cols in SHAPES:
        w = pm.compress(random((rows, cols)), scheme)
        if w.kernel(1, activations) is None:
            continue  # decoded for BLAS
        codec, arrays = w._codec, w._form.arrays
        expected = {b: pm.linear(random((b, cols)), w, np.arange(rows), activations=activations) for b in BATCHES}
        form = {name: guarded(array) for name, array in (codec.prepack(arrays, cols) if prepacked else arrays).items()}
        group = codec.group_of(w._scheme, cols)
        for batch in BATCHES:
            y = guarded(np.empty((batch, rows), np.float32))
            view = native.DenseInt(
                form["packed"], form["scale"], form.get("zero_point"), form.get("min"), rows, cols, codec.bits, group
            )
            view.matmul(guarded(random((batch, cols))), y, guarded(np.arange(rows, dtype=np.float32)), activations)
            if activations == "float32":
                np.testing.assert_allclose(y, expected[batch], rtol=1e-4, atol=1e-4)
            else:
                assert y.tobytes() == expected[batch].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_products(dtype: type, guarded: Guarded, isa: str) -> None:
    for rows, cols in SHAPES:
        for depth in (1, 17, 513):
            a, b = random((rows, depth)).astype(dtype), random((depth, cols)).astype(dtype)
            out = guarded(np.zeros((rows, cols)))
            native.add_product(out, guarded(a), guarded(b))
            again = guarded(np.zeros((rows, cols)))
            native.add_product(again, guarded(a.T.copy()).T, guarded(b.T.copy()).T)
            np.testing.assert_array_equal(out, again)
            np.testing.assert_allclose(out, a.astype(np.float64) @ b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_half_products(bfloat16: bool, guarded: Guarded, isa: str) -> None:
    for rows, cols in SHAPES:
        w = pm.compress(random((rows, cols)), "bfloat16" if bfloat16 else "float16")
        bits = guarded(w.parts()[""].view(np.uint16))
        for batch in BATCHES:
            y, x = guarded(np.empty((batch, rows), np.float32)), random((batch, cols))
            native.DenseHalf(bits, bfloat16).matmul(guarded(x), y, guarded(np.ones(rows, np.float32)), "int16")
            np.testing.assert_allclose(y, x @ w.to_dense().T + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["float8", "float8-g16", "float8-g128"])
def test_float8_products(scheme: str, guarded: Guarded, isa: str) -> None:
    for rows, cols in SHAPES:
        w = pm.compress(random((rows, cols)), scheme)
        codes, scales = (guarded(part) for part in (w.codes(), w.parts()["scale"].astype(np.float32)))
        view = native.DenseFloat8(codes, scales, w._codec.group_of(w._scheme, cols))
        for batch in BATCHES:
            y, x = guarded(np.empty((batch, rows), np.float32)), random((batch, cols))
            view.matmul(guarded(x), y, guarded(np.ones(rows, np.float32)), "int16")
            np.testing.assert_allclose(y, x @ w.to_dense().T + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["csr", "csr+float16", "csr+bfloat16", "csr+int8", "csr+int4"])
@pytest.mark.parametrize("wide", [False, True], ids=["uint16 indices", "uint32 indices"])
def test_compressed_rows(scheme: str, wide: bool, guarded: Guarded, isa: str) -> None:
    for rows, cols in SHAPES:
        x = random((40, cols))
        w = pm.compress(pm.prune(random((rows, cols)), 0.6), scheme)
        dense, values = w.to_dense(), w._scheme.values
        indices = guarded(w.indices.astype(np.uint32) if wide else w.indices)
        parts = [guarded(part) for part in (w.indptr, w.data, w._starts, w.scales)]
        weights = parts[0], indices, *parts[1:]
        runs = guarded(native.CompressedRows(*weights, None, rows, cols, values).count_runs())
        for some in (None, runs):
            view = native.CompressedRows(*weights, some, rows, cols, values)
            assert (view.decode_rows(0, rows) == dense).all()
            for batch in (1, 2, 3, 17, 33, 40):
                for activations in ("int16", "float32"):
                    y = guarded(np.empty((batch, rows), np.float32))
                    view.matmul(guarded(x[:batch]), y, guarded(np.ones(rows, np.float32)), activations)
                    np.testing.assert_allclose(y, x[:batch] @ dense.T + 1, rtol=2e-3, atol=2e-3)


def test_compressing_rows(guarded: Guarded) -> None:
    for rows, cols in SHAPES:
        for values in ("float32", "float16", "int8", "int4"):
            dtype = {"int4": "int8"}.get(values, values)
            matrix = guarded((pm.prune(random((rows, cols)), 0.6) * 7).astype(dtype))
            counts = native.count_csr(matrix, values)
            indptr = np.concatenate([[0], np.cumsum(counts)])
            starts = np.concatenate([[0], np.cumsum((counts + 1) // 2)]) if values == "int4" else None
            indices = guarded(np.zeros(indptr[-1], np.uint16))
            size = indptr[-1] if starts is None else starts[-1]
            data = guarded(np.zeros(size, np.uint8 if values == "int4" else dtype))
            native.fill_csr(matrix, values, guarded(indptr), guarded(starts), indices, data)
            row, col = np.nonzero(matrix)
            np.testing.assert_array_equal(indices, col)
            if values != "int4":
                np.testing.assert_array_equal(data, matrix[row, col])


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_rounding_what_is_stored(values: str, guarded: Guarded) -> None:
    bits, middle, dtype = int(values[3:]), 1 << int(values[3:]) - 1, {"int8": np.int8, "int4": np.uint8}[values]
    for rows, cols in SHAPES:
        w = guarded(pm.prune(random((rows, cols)), 0.6))
        for group in (16, max(cols, 1)):
            low, high = native.group_range(w, group)
            scales = guarded(np.maximum(high, -low) / np.float32(-middle))
            codes = (
                native.unpack_codes(native.encode_int(w, scales, None, bits, group), bits, cols).astype(int) - middle
            )
            row, col = np.nonzero(codes)
            room = native.row_offsets(native.count_csr(w, "float32"), values)
            data = guarded(np.zeros(room[-1], dtype))
            bitmask, counts = native.fill_bitmask_codes(w, scales, values, group, guarded(room), data)
            np.testing.assert_array_equal(np.unpackbits(bitmask, axis=1, bitorder="little")[:, :cols], codes != 0)
            np.testing.assert_array_equal(counts, (codes != 0).sum(1))
            ends = native.row_offsets(counts, values)
            if values == "int8":
                np.testing.assert_array_equal(data[: ends[-1]], codes[row, col])
            if group < cols or cols == 0:
                continue
            indptr = native.row_offsets(native.count_csr(w, "float32"), "int8")
            indices, again = guarded(np.zeros(indptr[-1], np.uint16)), guarded(np.zeros(room[-1], dtype))
            starts = guarded(room) if values == "int4" else None
            same = native.fill_csr_codes(w, scales, values, guarded(indptr), starts, indices, again)
            np.testing.assert_array_equal(same, counts)
            np.testing.assert_array_equal(indices[: len(col)], col)
            np.testing.assert_array_equal(again[: ends[-1]], data[: ends[-1]])


@pytest.mark.parametrize(
    ("values", "blocksize"),
    [
        ("int8", (3, 5)),
        *itertools.product(("int8", "int4"), [(1, 2), (4, 4), (16, 1), (16, 16)]),
    ],  # int4: two in a byte
)
def test_rounding_the_blocks_that_are_stored(values: str, blocksize: tuple[int, int], guarded: Guarded) -> None:
    size, bits = blocksize[0] * blocksize[1], int(values[3:])
    for rows, cols in SHAPES:
        w = guarded(pm.prune(random((rows, cols)), 0.9))
        low, high = native.group_range(w, max(cols, 1))
        scales = guarded(4 * np.maximum(high, -low) / np.float32(1 << (bits - 1)))  # so that some are rounded to 0
        rounded = native.encode_int(w, scales, None, bits, max(cols, 1))
        codes = (native.unpack_codes(rounded, bits, cols) - np.uint8(1 << (bits - 1))).view(np.int8)
        indptr, indices, data = native.encode_bsr(codes, blocksize, values)
        room = native.count_bsr(w, blocksize, "float32")
        places = guarded(np.zeros(room[-1], np.uint16))
        blocks = guarded(np.zeros(room[-1] * size // (2 if values == "int4" else 1), data.dtype))
        counts = native.fill_bsr_codes(w, scales, values, blocksize, guarded(room), places, blocks)
        np.testing.assert_array_equal(counts, np.diff(indptr))
        np.testing.assert_array_equal(places[: len(indices)], indices)
        np.testing.assert_array_equal(blocks[: len(data)], data)


@pytest.mark.parametrize(
    "scheme", ["bsr-4x4", "bsr-3x5+int8", "bsr-16x1", "bsr-16x4+int8", "bsr-8x4+int4", "bsr-4x4+float16"]
)
@pytest.mark.parametrize("wide", [False, True], ids=["uint16 indices", "uint32 indices"])
def test_sparse_products(scheme: str, wide: bool, guarded: Guarded, isa: str) -> None:
    for rows, cols in SHAPES:
        w = pm.compress(pm.prune(random((rows, cols)), 0.6), scheme)
        dense = w.to_dense()
        indices = guarded(w.indices.astype(np.uint32) if wide else w.indices)
        blocks, indptr = guarded(w._blocks), guarded(w.indptr)
        scales = guarded(w.scales)
        for batch in BATCHES:
            y, x = guarded(np.empty((batch, rows), np.float32)), random((batch, cols))
            view = native.BlockSparse(indptr, indices, blocks, scales, rows, cols, w.blocksize, w._scheme.values)
            view.matmul(guarded(x), y, guarded(np.ones(rows, np.float32)), "int16")
            np.testing.assert_allclose(y, x @ dense.T + 1, rtol=2e-3, atol=2e-3)
        assert native.check_bsr(indptr, indices, -(-cols // w.blocksize[1])) == ("", -1)


@pytest.mark.parametrize("scheme", ["bitmask", "bitmask+float16", "bitmask+int8-g16", "bitmask+int4", "2:4+int4-g32"])
@pytest.mark.parametrize("prepacked", [False, True], ids=["canonical", "prepacked"])
def test_bitmask_products(scheme: str, prepacked: bool, guarded: Guarded, isa: str) -> None:
    for rows, cols in SHAPES:
        cols = -(-cols // 4) * 4
        pattern = np.tile(np.array([1, 0, 0, 1], np.float32), cols // 4)
        w = pm.compress(random((rows, cols)) * pattern, scheme)
        values, group, arrays = w._scheme.values, w._group, w._form.arrays
        counts = native.count_places(guarded(arrays["bitmask"]), cols)
        offsets = guarded(native.row_offsets(counts, values))
        data, scale = guarded(arrays["data"].reshape(-1)), guarded(arrays.get("scale"))
        view: Any = native.Bitmask(guarded(arrays["bitmask"]), offsets, data, scale, rows, cols, values, group)
        stored = view.scatter(0, rows, cols + 3)
        again = guarded(np.empty(data.shape, np.int8 if values == "int4" else data.dtype))
        signed = (
            stored[:, :cols] if scale is None else (stored[:, :cols] - (8 if values == "int4" else 128)).view(np.int8)
        )
        view.gather(guarded(signed), again)
        assert again.tobytes() == data.tobytes()
        if prepacked and scale is not None:
            masks, starts, codes = view.prepack()
            panels = guarded(w.prepack()._form.arrays["scale"])
            view = native.MaskedInt(guarded(masks), guarded(starts), guarded(codes), panels, rows, cols, values, group)
            assert view.unprepack(0, -(-rows // 16))[2].tobytes() == data.tobytes()
        for batch in BATCHES:
            y, x = guarded(np.empty((batch, rows), np.float32)), random((batch, cols))
            view.matmul(guarded(x), y, guarded(np.ones(rows, np.float32)), "int16")
            np.testing.assert_allclose(y, x @ w.to_dense().T + 1, rtol=2e-3, atol=2e-3)


def test_codecs(guarded: Guarded) -> None:
    for bits in (1, 2, 3, 4, 5, 6, 8):
        for rows, cols in SHAPES:
            codes = np.random.default_rng(bits).integers(0, 2**bits, (rows, cols)).astype(np.uint8)
            packed = guarded(native.pack_codes(guarded(codes), bits))
            assert (native.unpack_codes(packed, bits, cols) == codes).all()
            if bits != 1:
                prepacked = guarded(native.prepack_dense(packed, bits, cols))
                assert (native.unprepack_dense(prepacked, guarded(np.arange(rows)), bits, cols) == packed).all()
            w = guarded(random((rows, cols)))
            for group in (16, 32, max(cols, 1)):
                groups = -(-cols // group)
                low, high = native.group_range(w, group)
                assert (low <= high).all()
                scales, zeros = (
                    guarded(np.full((rows, groups), 0.1, np.float32)),
                    guarded(np.ones((rows, groups), np.uint8)),
                )
                encoded = guarded(native.encode_int(w, scales, zeros, bits, group))
                assert native.decode_int(encoded, scales, zeros, bits, group, cols).shape == (rows, cols)
                encoded = guarded(native.encode_int(w, scales, None, bits, group, guarded(low)))
                assert native.decode_int(encoded, scales, None, bits, group, cols, minima=guarded(low)).shape == w.shape
                patterns = (w.view(np.uint32) >> 16).astype(np.uint16)
                for values, matrix in (("float32", w), ("float16", w.astype(np.float16)), ("bfloat16", patterns)):
                    stored = guarded(matrix)
                    low, high = native.group_range(stored, group, values)
                    assert (low <= high).all()
                    packed, noise, signal = native.encode_int_rows(stored, values, scales, zeros, bits, group)
                    assert (packed.shape, noise.shape, signal.shape) == (encoded.shape, (rows,), (rows,))
            assert native.first_nonfinite(w) == -1


def test_hashes_of_pieces(guarded: Guarded, isa: str) -> None:
    for length in (64, 4096):
        for count in range(10):
            data = np.random.default_rng(count).integers(0, 256, count * length + 13).astype(np.uint8)
            found = native.sha256_pieces(guarded(data), length)
            pieces = [data[i * length : (i + 1) * length] for i in range(count)]
            assert found in (None, b"".join(hashlib.sha256(piece).digest() for piece in pieces))
    with pytest.raises(ValueError, match="length: expected a multiple of 64, got 100"):
        native.sha256_pieces(guarded(data), 100)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_index_checks_agree_with_a_plain_loop(data: st.DataObject) -> None:
    cols = data.draw(st.integers(1, 12))
    rows = data.draw(st.lists(st.lists(st.integers(0, cols + 1), max_size=6), max_size=6))
    if data.draw(st.booleans()):
        rows = [sorted(set(row)) for row in rows]
    indptr = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(rows)))
        indptr[place] += data.draw(st.sampled_from([-1, 1, 2**62, -(2**62)]))
    indices = np.array([i for row in rows for i in row], data.draw(st.sampled_from([np.uint16, np.uint32])))
    rises = indptr[0] == 0 and indptr[-1] == len(indices) and (np.diff(indptr.astype(object)) >= 0).all()
    good = bool(rises) and all(
        all(a < b for a, b in itertools.pairwise(row)) and all(i < cols for i in row)
        for row in (indices[a:b].tolist() for a, b in itertools.pairwise(indptr))
    )
    rule, _ = native.check_bsr(indptr, indices, cols)
    assert (rule == "") == good


@pytest.mark.parametrize("scheme", ["int8", "csr", "csr+int8", "bsr-4x4", "float16", "bitmask", "2:4+int8"])
@pytest.mark.parametrize("shape", [(2**40, 2**40), (2**62, 4), (1, 2**62), (2**31, 2**33)])
def test_shapes_that_no_memory_holds_are_refused(scheme: str, shape: tuple[int, int]) -> None:
    small = pm.compress(np.eye(4), scheme)
    parts = dict(small.parts())
    if "shape" in parts:
        parts["shape"] = np.array(shape)
    with pytest.raises(pm.FormatError, match="expected"):
        pm.from_parts(scheme, shape, parts)


@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (4, 16), (5, 128), (9, 129), (6, 300)])
@pytest.mark.parametrize("kind", ["", "-asym", "-min"])
def test_fixing_columns_and_grid_errors_stay_inside(guarded: Guarded, shape: tuple[int, int], kind: str) -> None:
    (rows, cols), codec = shape, codec_of(Scheme.parse("int4"))
    w, groups = random(shape), -(-cols // 16)
    low, high = native.group_range(w, 16)
    scales, zeros, minima, bits = codec.levels(codec.grid(low, high, Scheme.parse("int4-g16" + kind)))
    levels = guarded(scales), guarded(zeros), guarded(minima), bits
    found = native.grid_errors(
        guarded(w), levels[0], levels[1], bits, 16, levels[2], guarded(np.ones(cols, np.float32))
    )
    assert found.shape == (rows, groups)
    drift, loss = guarded(np.zeros(shape, np.float32)), guarded(np.zeros(rows))
    for first in range(0, cols, 128):
        width = min(128, cols - first)
        keep = guarded((random((rows, width)) > 0).astype(np.uint8))
        errors, factor = (
            guarded(np.zeros((rows, width), np.float32)),
            guarded(np.triu(random((width, width)), 1) / width),
        )
        columns = guarded(np.arange(first, first + width, dtype=np.int32) // 16)
        ones = guarded(np.ones(width, np.float32))
        native.fix(
            guarded(w), drift, errors, first, 0, width, factor.astype(np.float32), ones, loss, keep, levels, columns
        )
        np.testing.assert_array_equal(errors, w[:, first : first + width] - drift[:, first : first + width])
    assert np.isfinite(drift).all() and (loss >= 0).all()
