"""Columns stored in another order: every array means the same, whatever its codec or layout."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest

import pumice as pm
from pumice import reference
from pumice._core import native
from pumice.errors import FormatError
from pumice.layouts import CompactArray, PermutedArray, from_parts
from pumice.layouts.permuted import order_of_groups
from pumice.scheme import Scheme
from tests.conformance.tolerances import assert_same_bits, assert_same_parts, product_bound

SCHEMES = [
    "float32",
    "bfloat16",
    "float8-g32",
    "int2-g16",
    "int3-g32-min",
    "int4-g64-asym",
    "int8",
    "csr+int8",
    "bitmask",
]
ROWS, COLS = 40, 300
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def rng(*seed: object) -> np.random.Generator:
    return np.random.default_rng(list(repr(seed).encode()))


PERM = rng("perm").permutation(COLS)


def made(scheme: str, rows: int = ROWS) -> tuple[PermutedArray, np.ndarray]:
    """A permuted array and the weights that it means, decoded by the array below it."""
    stored = pm.compress(rng(scheme).standard_normal((rows, COLS)), scheme)
    w = np.empty((rows, COLS), np.float32)
    w[:, PERM] = stored.to_dense()
    return PermutedArray(stored, PERM), w


@every_scheme
def test_stored_columns_are_found_where_they_belong(scheme: str) -> None:
    array, w = made(scheme)
    np.testing.assert_array_equal(array.to_dense(), w, strict=True)
    np.testing.assert_array_equal(reference.decode(array.parts(), Scheme.parse(scheme), array.shape), w, strict=True)
    ids = np.array([[39, 0], [7, 7]])
    np.testing.assert_array_equal(array.take(ids), w[ids], strict=True)
    np.testing.assert_array_equal(array[-1], w[-1], strict=True)
    np.testing.assert_array_equal(array[3:35].to_dense(), w[3:35], strict=True)
    array.prepack()
    np.testing.assert_array_equal(array.to_dense(), w, strict=True)
    np.testing.assert_array_equal(array.take(ids), w[ids], strict=True)


@every_scheme
def test_products_are_those_of_the_reference_in_every_mode_and_batch(scheme: str) -> None:
    array, w = made(scheme)
    x, bias = rng("x").standard_normal((64, COLS)).astype(np.float32), np.arange(ROWS, dtype=np.float32)
    exact = x.astype(np.float64) @ w.astype(np.float64).T + bias
    size = np.abs(w).astype(np.float64) + np.abs(array.parts().get("min", np.zeros((1, 1)))).max()
    bound = product_bound(x.astype(np.float64), 4 * size, bias, 40)
    parts, parsed = array.parts(), Scheme.parse(scheme)
    integer = reference.LAYOUTS[parsed.layout].integers(array.base.parts(), parsed, ROWS, COLS) is not None
    for prepacked in (False, True):
        if prepacked:
            array.prepack()
        for mode in ("int16", "int8", "float32"):
            want = reference.linear(x, parts, parsed, array.shape, bias, mode)
            for batch in (0, 1, 5, 64):
                y = array.linear(x[:batch], bias, mode)
                if integer and mode != "float32":
                    assert_same_bits(y, want[:batch], (mode, batch))
                else:
                    assert (np.abs(y - exact[:batch]) <= bound[:batch]).all(), (mode, batch)


def test_the_bits_are_the_same_on_every_isa() -> None:
    x = rng("isa").standard_normal((5, COLS)).astype(np.float32)
    array, _ = made("int4-g64-asym")
    before, results = native.get_isa(), []
    for isa in native.isas():
        native.set_isa(isa)
        results.append(x @ array.T)
    native.set_isa(before)
    for result in results:
        assert_same_bits(result, results[0])


@every_scheme
def test_the_other_product_and_the_protocols_see_the_matrix(scheme: str) -> None:
    array, w = made(scheme)
    x = rng("rows").standard_normal((2, 3, ROWS)).astype(np.float32)
    np.testing.assert_allclose(x @ array, x @ w, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(array), w)
    np.testing.assert_array_equal(array.T.to_dense(), w.T)
    assert copy.deepcopy(array) is array
    v = np.ones(COLS, np.float32)
    assert_same_bits(array @ v, array.linear(v))
    out = np.empty((2, ROWS), np.float32)
    assert pm.linear(np.ones((2, COLS)), array, out=out) is out
    np.testing.assert_allclose(out[0], array.linear(v), rtol=1e-5, atol=1e-5)


@every_scheme
def test_parts_pickles_and_files_bring_the_same_array_back(scheme: str) -> None:
    array, w = made(scheme)
    assert array.nbytes == sum(part.nbytes for part in array.parts().values())
    assert array.part_dtype("perm") == "I32"
    file = io.BytesIO()
    pm.save(file, {"w": array, "t": array.T})
    loaded = pm.load(file.getvalue())
    assert loaded.verify().ok
    for again in (
        from_parts(scheme, array.shape, array.parts()),
        pickle.loads(pickle.dumps(array, protocol=5)),
        loaded["w"],
        loaded["t"].T,
    ):
        assert (type(again), again.scheme, again.shape) == (PermutedArray, scheme, array.shape)
        assert_same_parts(again.parts(), array.parts())
        np.testing.assert_array_equal(again.to_dense(), w)


@every_scheme
def test_row_chunks_add_up_and_stack(scheme: str) -> None:
    array, _ = made(scheme, 69)
    chunks = [array[start : start + 32] for start in (0, 32, 64)]
    assert_same_parts(pm.concatenate(chunks).parts(), array.parts())
    written: dict[str, list[np.ndarray]] = {}
    for chunk in chunks:
        counts = {name: sum(map(len, blocks)) for name, blocks in written.items()}
        for name, block in chunk.blocks(counts, array.shape).items():
            written.setdefault(name, []).append(block)
    assert_same_parts({name: np.concatenate(blocks) for name, blocks in written.items()}, array.parts())


def test_other_orders_and_plain_arrays_do_not_stack() -> None:
    array, _ = made("int8")
    with pytest.raises(ValueError, match="^arrays: expected the same order of stored columns, got different"):
        pm.concatenate([array, PermutedArray(array.base, np.arange(COLS))])
    with pytest.raises(ValueError, match="^arrays: expected int8 of shape"):
        pm.concatenate([array, array.base])


def test_columns_cannot_be_cut() -> None:
    array, _ = made("int4-g64-asym")
    with pytest.raises(
        IndexError, match="^index: expected rows only, since columns .* another order, got columns 0:64"
    ):
        array[:, :64]
    assert array[:, :].shape == array.shape


def test_more_dimensions_are_permuted_as_one() -> None:
    w, perm = rng("conv").standard_normal((4, 6, 10)).astype(np.float32), rng("order").permutation(60)
    stored = pm.compress(w.reshape(4, 60)[:, perm].reshape(4, 6, 10), "float32")
    array = PermutedArray(stored, perm)
    np.testing.assert_array_equal(array.to_dense(), w)
    np.testing.assert_array_equal(array.take([3, 1]), w[[3, 1]])
    assert_same_parts(from_parts("float32", w.shape, array.parts()).parts(), array.parts())


def test_a_term_of_a_sum_may_be_permuted() -> None:
    array, w = made("int4-g64-asym")
    other, more = made("csr+int8")
    for a, b, total in ((array, other, w + more), (array, other.base, w + other.base.to_dense())):
        both = a & b
        again = from_parts(both.scheme, both.shape, both.parts())
        assert_same_parts(again.parts(), both.parts())
        np.testing.assert_array_equal(again.to_dense(), total)
        x = rng("sum").standard_normal((3, COLS)).astype(np.float32)
        want = reference.linear(x, both.parts(), Scheme.parse(both.scheme), both.shape)
        assert_same_bits(again.linear(x), want)
        np.testing.assert_array_equal(reference.decode(both.parts(), Scheme.parse(both.scheme), both.shape), total)
    with pytest.raises(TypeError, match="^base: expected an array whose columns are stored, got a sum"):
        PermutedArray(array & other, PERM)
    with pytest.raises(TypeError, match="got a PermutedArray"):
        PermutedArray(array, PERM)


@pytest.mark.parametrize(
    ("perm", "message"),
    [
        (np.arange(15), r"perm: expected integers of shape \(16,\), got int64 of shape \(15,\)"),
        (np.arange(16.0), r"perm: expected integers of shape \(16,\), got float64"),
        (np.arange(16) + 1, "perm: expected columns from 0 to 15, got 16"),
        (np.arange(16) - 1, "perm: expected columns from 0 to 15, got -1"),
        (np.full(16, 2**62), f"perm: expected columns from 0 to 15, got {2**62}"),
        (np.arange(16) // 2 * 2, "perm: expected each column once, got none 1, and another twice"),
    ],
)
def test_what_is_no_permutation_is_refused(perm: Any, message: str) -> None:
    with pytest.raises(FormatError, match="^" + message):
        PermutedArray(pm.compress(np.eye(4, 16), "int8"), perm)


def test_the_part_is_int32_and_copied() -> None:
    array, _ = made("int8")
    parts = array.parts()
    with pytest.raises(FormatError, match="^perm: expected int32, got int64"):
        from_parts("int8", array.shape, parts | {"perm": PERM.astype(np.int64)})
    mine = parts["perm"].copy()
    again = from_parts("int8", array.shape, parts | {"perm": mine})
    mine[:] = 0
    assert_same_parts(again.parts(), parts)


def test_codes_of_another_quantizer_may_come_in_their_order() -> None:
    codes, scales = rng("codes").integers(0, 16, (4, 64)), np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32)
    g_idx = rng("groups").permutation(np.arange(64) // 32)
    perm, group = order_of_groups(g_idx, 2)
    assert perm is not None and group == 32
    array: CompactArray = pm.DenseArray.from_codes(codes[:, perm], scales, bits=4, perm=perm)
    np.testing.assert_array_equal(array.codes(), codes)
    np.testing.assert_array_equal(array.to_dense(), scales[:, g_idx] * (codes - 8.0).astype(np.float32))


@pytest.mark.parametrize(
    ("g_idx", "groups", "message"),
    [
        ([0, 0, 2], 2, "groups from 0 to 1, got 2"),
        ([0, -1, 1], 2, "groups from 0 to 1, got -1"),
        ([0, 1, 1], 2, "as many columns in each group, but fewer in the last, got 1 of group 0 and 2 of group 1"),
        ([0, 0, 1, 2, 2], 3, "as many columns .*, got 2 of group 0 and 1 of group 1"),
        ([0, 0], 2, "as many columns .*, got 2 of group 0 and 0 of group 1"),
        ([0.0, 1.0], 2, "integers of shape"),
        ([[0], [1]], 2, "integers of shape"),
    ],
)
def test_groups_that_no_order_makes_equal_are_refused(g_idx: Any, groups: int, message: str) -> None:
    with pytest.raises(FormatError, match="^g_idx: expected " + message):
        order_of_groups(np.array(g_idx), groups)
