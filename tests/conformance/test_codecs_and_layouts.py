"""What every scheme promises about storing weights."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from pumice import reference
from pumice.errors import FormatError, NonFiniteError
from pumice.layouts import LAYOUTS, CompactArray, from_parts
from pumice.scheme import Scheme
from pumice.values.base import StoredRows

from .cases import ENCODED_SHAPES, KINDS, column_step, expected_parts, fitted, fitting, row_step, schemes, shapes
from .tolerances import assert_same_parts

every_scheme = pytest.mark.parametrize("scheme", schemes())
every_kind = pytest.mark.parametrize("kind", KINDS)

ROWS, COLS = 64, 300  # of the laws about cutting: two chunks of rows, a ragged last group


def encode(scheme: str, kind: str, rows: int, cols: int) -> CompactArray:
    parsed, cols = Scheme.parse(scheme), fitted(scheme, cols)
    return LAYOUTS[parsed.layout].encode(fitting(scheme, kind, rows, cols), parsed, (rows, cols))


@every_scheme
def test_the_text_of_a_scheme_is_the_scheme(scheme: str) -> None:
    assert str(Scheme.parse(scheme)) == scheme
    assert Scheme.parse(str(Scheme.parse(scheme))) == Scheme.parse(scheme)


@every_kind
@every_scheme
def test_encoding_and_decoding_are_those_of_the_reference(scheme: str, kind: str) -> None:
    parsed = Scheme.parse(scheme)
    for rows, cols in shapes(scheme, ENCODED_SHAPES):
        want = expected_parts(scheme, kind, rows, cols)
        if want is None:
            with pytest.raises(NonFiniteError, match="^w: expected"):
                encode(scheme, kind, rows, cols)
            continue
        array = encode(scheme, kind, rows, cols)
        assert_same_parts(array.parts(), want, (rows, cols))
        decoded = reference.decode(want, parsed, (rows, cols))
        np.testing.assert_array_equal(array.to_dense(), decoded, strict=True)


@pytest.mark.parametrize("values", ["float32", "float16", "bfloat16"])
@every_scheme
def test_rows_of_a_file_are_encoded_as_their_floats_are(scheme: str, values: str, isa: str) -> None:
    """The same parts, and the energies of what is missed and of the rows: sums in 16 chains, as the kernels'."""
    parsed = Scheme.parse(scheme)
    for rows, cols in shapes(scheme, ENCODED_SHAPES):
        w = fitting(scheme, "sparse", rows, cols)
        with np.errstate(over="ignore"):
            stored = bfloat16_bits(w) if values == "bfloat16" else w.astype(values)
        exact = reference_floats(stored)
        array, (noise, signal) = LAYOUTS[parsed.layout].encode_rows(StoredRows(stored, values), parsed, w.shape)
        assert_same_parts(array.parts(), LAYOUTS[parsed.layout].encode(exact, parsed, w.shape).parts())
        np.testing.assert_array_equal(noise, energies(exact - array.to_dense()), strict=True)
        np.testing.assert_array_equal(signal, energies(exact), strict=True)
    broken = np.zeros((4, fitted(scheme, 64)), stored.dtype)
    broken[2, 1] = 0x7F80 if values == "bfloat16" else np.inf
    with pytest.raises(NonFiniteError, match=r"^w: expected finite values, got inf at index \(2, 1\)"):
        LAYOUTS[parsed.layout].encode_rows(StoredRows(broken, values), parsed, broken.shape)


def bfloat16_bits(w: np.ndarray) -> np.ndarray:
    return (w.view(np.uint32) >> 16).astype(np.uint16)


def reference_floats(stored: np.ndarray) -> np.ndarray:
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored.astype(np.float32)


def energies(rows: np.ndarray) -> np.ndarray:
    squares = np.square(rows.astype(np.float64))
    whole = squares.shape[1] // 16 * 16
    chains = np.zeros((len(rows), 16))
    for k in range(0, whole, 16):
        chains += squares[:, k : k + 16]
    total = np.zeros(len(rows))
    for pair in (chains[:, :8] + chains[:, 8:]).T:
        total += pair
    for column in squares[:, whole:].T:
        total += column
    return total


@every_scheme
def test_parts_make_the_same_array_again(scheme: str) -> None:
    for rows, cols in shapes(scheme, ENCODED_SHAPES):
        array = encode(scheme, "sparse", rows, cols)
        again = from_parts(scheme, array.shape, array.parts())
        assert type(again) is type(array)
        assert (again.scheme, again.shape) == (scheme, (rows, cols))
        assert_same_parts(again.parts(), array.parts())
        np.testing.assert_array_equal(again.to_dense(), array.to_dense(), strict=True)


@every_scheme
def test_parts_that_do_not_fit_are_refused(scheme: str) -> None:
    array = encode(scheme, "sparse", 33, 129)
    parts = array.parts()
    bad = [parts | {"surplus": np.zeros(1)}]
    for name, part in parts.items():
        bad.append({other: parts[other] for other in parts if other != name})
        if name != "shape":
            bad.append(parts | {name: part.astype(np.complex64)})
            bad.append(parts | {name: part[:-1]})
            bad.append(parts | {name: part[..., None]})
    for wrong in bad:
        with pytest.raises(FormatError, match="expected"):
            from_parts(scheme, array.shape, wrong)


@every_scheme
def test_a_pickled_array_comes_back_the_same(scheme: str) -> None:
    array = encode(scheme, "sparse", 17, 33)
    again = pickle.loads(pickle.dumps(array, protocol=5))
    assert (type(again), again.scheme, again.shape) == (type(array), scheme, array.shape)
    assert_same_parts(again.parts(), array.parts())


@every_scheme
def test_the_bytes_are_the_sum_of_the_parts_and_what_the_formula_says(scheme: str) -> None:
    for kind in ("sparse", "large"):
        array = encode(scheme, kind, 33, 129)
        assert array.nbytes == sum(part.nbytes for part in array.parts().values())
        assert array.bits_per_weight == 8 * array.nbytes / array.size
        formula = type(array).expected_nbytes(Scheme.parse(scheme), array.shape)
        assert formula is not None or not Scheme.parse(scheme).dense
        if kind == "large" and formula is not None:  # no scale is too small for float16
            assert array.nbytes == formula


@every_scheme
def test_take_gives_decoded_rows_in_any_order(scheme: str) -> None:
    array = encode(scheme, "sparse", 33, 129)
    ids = np.array([[32, 0, 7], [7, 16, 15]])
    np.testing.assert_array_equal(array.take(ids), array.to_dense()[ids], strict=True)
    np.testing.assert_array_equal(array.take(np.zeros(0, np.int64)), array.to_dense()[:0], strict=True)
    np.testing.assert_array_equal(array[5], array.to_dense()[5], strict=True)
    array.prepack()
    np.testing.assert_array_equal(array.take(ids), array.to_dense()[ids], strict=True)


@every_scheme
def test_slices_of_rows_and_of_whole_groups_are_slices_of_the_weights(scheme: str) -> None:
    array, parsed = encode(scheme, "sparse", ROWS, COLS), Scheme.parse(scheme)
    w = array.to_dense()
    height, width = row_step(parsed), column_step(parsed)
    for step in {height, 16 // np.gcd(16, height) * height}:
        for rows in (slice(0, step), slice(step, 2 * step), slice(step, None), slice(0, 0)):
            np.testing.assert_array_equal(array[rows].to_dense(), w[rows], strict=True)
    for cols in (slice(0, width), slice(width, 2 * width), slice(width, None)):
        cut = array[:, cols]
        np.testing.assert_array_equal(cut.to_dense(), w[:, cols], strict=True)
        assert_same_parts(from_parts(cut.scheme, cut.shape, cut.parts()).parts(), cut.parts())


@every_scheme
def test_slices_of_the_prepacked_form_are_those_of_the_canonical_one(scheme: str) -> None:
    array, height = encode(scheme, "normal", ROWS, COLS), row_step(Scheme.parse(scheme))
    plain = array[3 * height : 5 * height].parts()
    array.prepack()
    assert_same_parts(array[3 * height : 5 * height].parts(), plain)


@every_scheme
def test_cutting_through_a_group_or_a_block_is_refused(scheme: str) -> None:
    array, parsed = encode(scheme, "normal", ROWS, COLS), Scheme.parse(scheme)
    if column_step(parsed) > 1:
        with pytest.raises(IndexError, match="^index: expected columns at multiples of"):
            array[:, 1:]
    if row_step(parsed) > 1:
        with pytest.raises(IndexError, match="^index: expected rows at multiples of"):
            array[1:]


@every_scheme
def test_stacked_slices_are_the_whole(scheme: str) -> None:
    array = encode(scheme, "sparse", ROWS, COLS)
    cut = 2 * row_step(Scheme.parse(scheme))
    again = type(array).stack([array[:cut], array[cut:]], array.shape)
    assert_same_parts(again.parts(), array.parts())


@every_scheme
def test_blocks_of_row_chunks_add_up_to_the_parts_of_the_whole(scheme: str) -> None:
    parsed = Scheme.parse(scheme)
    layout = LAYOUTS[parsed.layout]
    step = layout.chunk_rows(parsed)
    rows = 2 * step + 5
    cols = fitted(scheme, COLS)
    w = fitting(scheme, "sparse", rows, cols)
    whole = layout.encode(w, parsed, (rows, cols))
    scale_dtype = whole.parts()["scale"].dtype if "scale" in whole.parts() else None  # one for the whole tensor
    written: dict[str, list[np.ndarray]] = {}
    for start in range(0, rows, step):
        chunk = layout.encode(w[start : start + step], parsed, (min(step, rows - start), cols), scale_dtype)
        counts = {name: sum(map(len, blocks)) for name, blocks in written.items()}
        for name, block in chunk.blocks(counts, (rows, cols)).items():
            written.setdefault(name, []).append(block)
    assert_same_parts({name: np.concatenate(blocks) for name, blocks in written.items()}, whole.parts())


@every_scheme
def test_prepacking_changes_nothing_that_can_be_seen(scheme: str) -> None:
    for rows, cols in shapes(scheme, ENCODED_SHAPES):
        array = encode(scheme, "normal", rows, cols)
        parts, w = array.parts(), array.to_dense()
        array.prepack()
        assert_same_parts(array.parts(), parts)
        np.testing.assert_array_equal(array.to_dense(), w, strict=True)
        assert array.nbytes == sum(part.nbytes for part in parts.values())
        array.keep_canonical()
        assert_same_parts(array.parts(), parts)


@every_scheme
def test_weights_of_more_dimensions_keep_their_shape(scheme: str) -> None:
    w = fitting(scheme, "normal", 16, 300)
    parsed = Scheme.parse(scheme)
    array = LAYOUTS[parsed.layout].encode(w, parsed, (16, 10, 30))
    flat = LAYOUTS[parsed.layout].encode(w, parsed, (16, 300))
    np.testing.assert_array_equal(array.to_dense(), flat.to_dense().reshape(16, 10, 30), strict=True)
    assert_same_parts(array.parts(), reference.encode(w.reshape(16, 10, 30).copy(), parsed))
    assert_same_parts(from_parts(scheme, (16, 10, 30), array.parts()).parts(), array.parts())


@every_scheme
def test_empty_weights_are_legal(scheme: str) -> None:
    for rows, cols in ((0, fitted(scheme, 32)), (3, 0)):
        parsed = Scheme.parse(scheme)
        array = LAYOUTS[parsed.layout].encode(np.zeros((rows, cols), np.float32), parsed, (rows, cols))
        assert_same_parts(array.parts(), reference.encode(np.zeros((rows, cols), np.float32), parsed), (rows, cols))
        assert array.to_dense().shape == (rows, cols)
        y = array.linear(np.ones((2, cols), np.float32), np.arange(rows))
        np.testing.assert_array_equal(y, np.tile(np.arange(rows, dtype=np.float32), (2, 1)))
