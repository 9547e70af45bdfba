"""The binding: every argument is checked, errors name the argument, and the stub lists what exists."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import numpy as np
import pytest

from pumice._core import native

F32 = np.float32
STUB = Path(native.__file__).with_name("native.pyi")


def public_functions():
    return {name for name in dir(native) if callable(getattr(native, name)) and name[0] != "_"}


def test_the_stub_lists_exactly_the_functions_and_classes_that_exist():
    stub = {node.name for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert stub == public_functions() - {"os", "np"}
    assert len(stub) > 10


SIZES = [(1, 1, 1), (12, 32, 16), (13, 33, 17), (25, 15, 512), (40, 70, 1030), (0, 3, 4), (3, 4, 0)]
SUMS = [(np.float32, np.float32), (np.float32, np.float64), (np.float64, np.float64)]  # of operands, and of sums


def strided_as(kind, array):
    """The same numbers, elsewhere in memory."""
    if kind == "every second":
        wide = np.zeros((2 * array.shape[0], 2 * array.shape[1]), array.dtype)
        wide[::2, ::2] = array
        return wide[::2, ::2]
    return np.asarray(array, order=kind)


@pytest.mark.parametrize("kinds", list(itertools.product(["C", "F", "every second"], repeat=2)), ids=" ".join)
@pytest.mark.parametrize(("dtype", "sums"), SUMS, ids=["float32", "float32 into float64", "float64"])
def test_sums_of_products_are_within_their_bound_and_those_of_parts_alone(isa, dtype, sums, kinds):
    rng, unit = np.random.default_rng(3), np.finfo(dtype).eps / 2
    for rows, cols, depth in SIZES:
        a = strided_as(kinds[0], rng.standard_normal((rows, depth)).astype(dtype))
        b = strided_as(kinds[1], rng.standard_normal((depth, cols)).astype(dtype))
        before = rng.standard_normal((rows, cols + 2)).astype(sums)
        out = before.copy()
        native.add_product(out[:, 1:-1], a, b)
        exact = before[:, 1:-1].astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)
        size = abs(before[:, 1:-1]) + abs(a).astype(np.float64) @ abs(b).astype(np.float64)
        assert (abs(out[:, 1:-1] - exact) <= (depth + 3) * unit * size + depth * 1e-15 * size).all()
        np.testing.assert_array_equal(out[:, [0, -1]], before[:, [0, -1]])
        if rows > 2 and cols > 4:
            part = before[1:-1, 3:-2].copy()
            native.add_product(part, a[1:-1], b[:, 2:-1])
            np.testing.assert_array_equal(part, out[1:-1, 3:-2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros((3, 4), F32)}, r"a: expected shape \(2, 4\), got \(3, 4\)"),
        ({"b": np.zeros((4, 4), F32)}, r"b: expected shape \(4, 3\), got \(4, 4\)"),
        ({"b": np.zeros((4, 3))}, "b: expected float32, got float64"),
        ({"a": np.zeros((2, 4)), "b": np.zeros((4, 3))}, "out: expected float64 for such operands, got float32"),
        (
            {"a": np.zeros((2, 4), np.int32), "b": np.zeros((4, 3), np.int32)},
            "a: expected float32 or float64, got int32",
        ),
        ({"out": np.zeros((2, 3), np.float16)}, "out: expected float32 or float64 for such operands, got float16"),
        ({"out": np.zeros((3, 2), F32).T}, "out: expected rows without gaps that may be written to"),
        ({"out": np.broadcast_to(np.zeros((), F32), (2, 3))}, "out: expected rows without gaps that may be written to"),
        ({"out": np.zeros(3, F32)}, "out: expected three matrices, got 1, 2 and 2 dimensions"),
    ],
)
def test_sums_of_products_refuse_what_does_not_fit_and_name_it(change, message):
    arguments = {"out": np.zeros((2, 3), F32), "a": np.zeros((2, 4), F32), "b": np.zeros((4, 3), F32)} | change
    with pytest.raises(ValueError, match=message):
        native.add_product(**arguments)


def dense(rows=3, cols=32, bits=4, group=32):
    packed = np.zeros((rows, 4 * -(-cols * bits // 32)), np.uint8)
    return packed, np.ones((rows, -(-cols // group)), F32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 32), np.float64)}, "x: expected float32, got an array of format 'd'"),
        ({"x": np.zeros((2, 32), ">f4")}, "x: expected float32, got an array of format '>f'"),
        ({"x": np.zeros((4, 32), F32)[::2]}, "not C-contiguous"),
        ({"x": np.zeros((2, 31), F32)}, r"x: expected shape \('batch', 32\), got \(2, 31\)"),
        ({"y": np.zeros((1, 3), F32)}, r"y: expected shape \(2, 3\), got \(1, 3\)"),
        ({"bias": np.zeros(4, F32)}, r"bias: expected shape \(3,\), got \(4,\)"),
        ({"scales": np.ones((3, 2), F32)}, r"scales: expected shape \(3, 1\), got \(3, 2\)"),
        ({"zeros": np.ones((3, 2), np.uint8)}, r"zeros: expected shape \(3, 1\), got \(3, 2\)"),
        ({"minima": np.ones((3, 2), F32)}, r"minima: expected shape \(3, 1\), got \(3, 2\)"),
        ({"minima": np.ones((3, 1), np.float16)}, "minima: expected float32 as scales, got float16"),
        ({"minima": np.ones((3, 1), F32), "zeros": np.ones((3, 1), np.uint8)}, "minima: expected None beside zeros"),
        ({"codes": np.zeros((3, 12), np.uint8)}, r"codes: expected shape \(3, 16\), got \(3, 12\)"),
        ({"bits": 7}, "bits: expected 2, 3, 4, 5, 6 or 8, got 7"),
        ({"group": 0}, "group: expected at least 1, got 0"),
        ({"group": 24}, "group: expected a power of two >= 16"),
        ({"activations": "int9"}, "activations: expected one of int16, int8, float32, got 'int9'"),
    ],
)
def test_a_dense_product_refuses_what_does_not_fit_and_names_it(change, message):
    codes, scales = dense()
    arguments = {
        "x": np.zeros((2, 32), F32), "y": np.zeros((2, 3), F32), "codes": codes, "scales": scales, "zeros": None,
        "minima": None, "bias": None, "bits": 4, "group": 32, "activations": "int16",
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        parts = (arguments[name] for name in ("codes", "scales", "zeros", "minima"))
        w = native.DenseInt(*parts, 3, 32, arguments["bits"], arguments["group"])
        w.matmul(*(arguments[name] for name in ("x", "y", "bias", "activations")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": np.array([0, 1], np.int64)}, r"indptr: expected shape \(3,\), got \(2,\)"),
        ({"indices": np.zeros(2, np.uint16)}, "data: expected 2 blocks of 4 entries, got 4 in all"),
        ({"data": np.zeros((1, 2, 2), np.int8)}, "data: expected float32, got int8"),
        ({"data": np.zeros((1, 2, 2), np.int8), "values": "int8"}, "scales: expected one per row of integers"),
        ({"scales": np.ones(4, F32)}, "scales: expected one per row of integers, and none of float32"),
        ({"blocksize": (2, 0)}, r"blocksize: expected blocks of at least 1 x 1, got \(2, 0\)"),
        ({"blocksize": (1, 3), "values": "int4"}, "blocksize: expected an even number of int4 codes in a block"),
        ({"values": "int5"}, "values: expected one of"),
    ],
)
def test_a_sparse_product_refuses_what_does_not_fit_and_names_it(change, message):
    arguments = {
        "indptr": np.array([0, 1, 1], np.int64),
        "indices": np.zeros(1, np.uint16), "data": np.zeros((1, 2, 2), F32), "scales": None,
        "blocksize": (2, 2), "values": "float32",
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        native.BlockSparse(**arguments, rows=4, cols=6)


def test_a_code_that_does_not_fit_is_named_with_its_index():
    codes = np.zeros((2, 5), np.uint8)
    codes[1, 3] = 16
    with pytest.raises(ValueError, match=r"codes: expected values below 16, got 16 at index \(1, 3\)"):
        native.pack_codes(codes, 4)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("cols", [0, 1, 7, 31, 32, 33, 300])
def test_packed_codes_are_a_little_endian_bit_stream(bits, cols):
    codes = np.random.default_rng((bits, cols)).integers(0, 1 << bits, (3, cols), dtype=np.uint8)
    packed = native.pack_codes(codes, bits)
    stream = np.unpackbits(packed, axis=1, bitorder="little")
    places = 1 << np.arange(bits)
    assert packed.shape == (3, 4 * -(-cols * bits // 32))
    np.testing.assert_array_equal(stream[:, : cols * bits].reshape(3, cols, bits) @ places, codes)
    assert not stream[:, cols * bits :].any()
    np.testing.assert_array_equal(native.unpack_codes(packed, bits, cols), codes)


@pytest.mark.parametrize(
    ("indptr", "indices", "rule", "row"),
    [
        ([0, 2, 3], [0, 4, 1], "", -1),
        ([1, 2, 3], [0, 4, 1], "indptr must rise", 0),
        ([0, 2, 1], [0, 4, 1], "indptr must rise", 1),
        ([0, 2, 4], [0, 4, 1], "indptr must rise", 1),
        ([0, 2, 2], [0, 4, 1], "indptr must rise", 2),
        ([0, 2**62, 3], [0, 4, 1], "indptr must rise", 0),
        ([0, -1, 3], [0, 4, 1], "indptr must rise", 0),
        ([0, 2, 3], [0, 4, 5], "indices must be below", 1),
        ([0, 2, 3], [4, 0, 1], "sorted and unique", 0),
        ([0, 2, 3], [4, 4, 1], "sorted and unique", 0),
        ([0], [], "", -1),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_sparse_structure_is_checked_before_a_kernel_may_trust_it(indptr, indices, rule, row, dtype):
    got, where = native.check_bsr(np.array(indptr, np.int64), np.array(indices, dtype), 5)
    assert (rule in got) if rule else got == ""
    assert where == row


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 1000])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_non_finite_value_is_found_at_every_place(size, bad):
    values = np.full(size, np.finfo(F32).max, F32)
    assert native.first_nonfinite(values) == -1
    for index in sorted({0, size // 2, size - 1} & set(range(size)), reverse=True):
        values[index:] = bad
        assert native.first_nonfinite(values) == index


def test_an_unknown_isa_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=rf"isa: expected one of {', '.join(native.isas())}"):
        native.set_isa("sse9")


def test_thread_counts_below_one_are_refused():
    with pytest.raises(ValueError, match="n: expected at least 1 thread, got 0"):
        native.set_num_threads(0)


# Algorithms.


def block(**change: object) -> dict:
    """Arguments of `fix` for a block of 4 columns behind another of 4."""
    f32 = np.float32
    found = {
        "w": np.ones((3, 8), f32), "drift": np.zeros((3, 8), f32), "errors": np.zeros((3, 4), f32), "first": 4,
        "start": 0, "stop": 4, "factor": np.zeros((4, 4), f32), "variance": np.ones(4, f32), "loss": np.zeros(3),
    }  # fmt: skip
    return found | change


GRID = (np.ones((3, 2), np.float32), None, None, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drift": np.zeros((3, 7), np.float32)}, r"drift: expected shape \(3, 8\), got \(3, 7\)"),
        ({"errors": np.zeros((3, 5), np.float32)}, r"errors: expected shape \(3, 4\)"),
        ({"factor": np.zeros((4, 5), np.float32)}, r"factor: expected shape \(4, 4\)"),
        ({"variance": np.zeros(5, np.float32)}, r"variance: expected shape \(4,\)"),
        ({"loss": np.zeros(2)}, r"loss: expected shape \(3,\)"),
        ({"first": 5}, "start: expected 0 <= start <= stop <= 4 behind a first of 0 to 4, got 0, 4 and 5"),
        ({"start": 3, "stop": 2}, "start: expected 0 <= start <= stop"),
        ({"stop": 5}, "start: expected 0 <= start <= stop"),
        ({"keep": np.ones((3, 3), np.uint8)}, r"keep: expected shape \(3, 4\)"),
        ({"grid": GRID}, "group_of: expected the group of each column beside a grid, got None"),
        ({"grid": GRID, "group_of": np.full(4, 2, np.int32)}, "group_of: expected groups from 0 to 1, got 2"),
        ({"grid": GRID, "group_of": np.zeros(3, np.int32)}, r"group_of: expected shape \(4,\)"),
        ({"grid": (np.ones((2, 2), np.float32), None, None, 4), "group_of": np.zeros(4, np.int32)}, "scales: expected"),
        ({"grid": (*GRID[:3], 9), "group_of": np.zeros(4, np.int32)}, "bits: expected 1 to 8, got 9"),
    ],
)
def test_fix_refuses_what_does_not_fit(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.fix(**block(**change))


def test_fix_takes_what_the_errors_ask_for_and_passes_on_what_is_missed() -> None:
    arguments = block(factor=np.triu(np.full((4, 4), 0.5, np.float32), 1), keep=np.array([[0, 1, 1, 1]] * 3, np.uint8))
    native.fix(**arguments)
    np.testing.assert_array_equal(arguments["drift"][0], [0, 0, 0, 0, 0, 1.5, 1.25, 1.125])
    np.testing.assert_array_equal(arguments["errors"][0], [1, -0.5, -0.25, -0.125])
    np.testing.assert_array_equal(arguments["loss"], [1, 1, 1])


def test_grid_errors_are_those_of_decoding() -> None:
    w = np.random.default_rng(0).standard_normal((5, 37)).astype(np.float32)
    weight = np.linspace(0, 2, 37, dtype=np.float32)
    scales = np.full((5, 3), 0.3, np.float32)
    scales[1, 1] = 0
    decoded = native.decode_int(native.encode_int(w, scales, None, 3, 16), scales, None, 3, 16, 37)
    missed = np.square(w - decoded.astype(np.float64)) * weight
    expected = np.add.reduceat(missed, [0, 16, 32], axis=1)
    np.testing.assert_allclose(native.grid_errors(w, scales, None, 3, 16, weight=weight), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"weight: expected shape \(37,\), got \(36,\)"):
        native.grid_errors(w, scales, None, 3, 16, weight=weight[:36])
