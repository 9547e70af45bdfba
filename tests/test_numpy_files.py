"""NumPy's files and SciPy's: whatever these two write, we read as they do."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import pumice as pm
from pumice.checkpoint import open_reader
from pumice.layouts.dense import is_mapped

GOLDEN = Path(__file__).parent / "golden"


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 5))
    found = {
        "fortran": np.asfortranarray(w), "three": np.asfortranarray(rng.standard_normal((4, 5, 3))),
        "big": w.astype(">f4"), "big_fortran": np.asfortranarray(w.astype(">f8")), "big_int": np.arange(6, dtype=">i8"),
        "bool": w > 0, "scalar": np.array(3.5), "empty": np.zeros((0, 3)), "none": np.zeros(0),
        "complex": w.astype("c8"), "row": w[0], "odd_columns": w[:, ::2],
    }  # fmt: skip
    for code in ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]:
        found[code] = (w * 9).astype(code)
    return found


def same(ours: Any, theirs: np.ndarray[Any, Any]) -> None:
    assert ours.dtype == theirs.dtype.newbyteorder("=")
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("mode", ["mmap", "read"])
def test_npz_holds_what_numpy_put_there(save: Any, mode: str, tmp_path: Path) -> None:
    save(tmp_path / "m.npz", **arrays())
    with open_reader(tmp_path / "m.npz", io=mode) as reader:
        assert set(reader.names()) == set(arrays())
        for name, expected in arrays().items():
            same(reader.array(name), expected)
            assert bytes(reader.raw(name)) == expected.astype(expected.dtype.newbyteorder("<")).tobytes()
            if expected.ndim:
                np.testing.assert_array_equal(reader.rows(name, 0, len(expected)), expected)
                np.testing.assert_array_equal(
                    reader.rows(name, len(expected) // 2, len(expected)), expected[len(expected) // 2 :]
                )


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("name", list(arrays()))
def test_npy_holds_what_numpy_put_there(name: str, version: tuple[int, int], tmp_path: Path) -> None:
    with (tmp_path / "w.npy").open("wb") as file:
        np.lib.format.write_array(file, arrays()[name], version=version)
    m = pm.load(tmp_path / "w.npy")
    assert list(m) == ["w"]
    same(m["w"], arrays()[name])
    same(pm.load((tmp_path / "w.npy").read_bytes())["array"], arrays()[name])


def test_what_is_stored_is_mapped(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.arange(64, dtype=np.uint8), f=np.asfortranarray(np.ones((3, 4), np.uint8)))
    m = pm.load(tmp_path / "m.npz")
    assert is_mapped(m["a"])
    assert is_mapped(m["f"])
    np.save(tmp_path / "w.npy", np.asfortranarray(np.ones((3, 4))))
    assert is_mapped(pm.load(tmp_path / "w.npy")["w"])


def test_the_goldens_stay_readable() -> None:
    same(pm.load(GOLDEN / "numpy.npy")["numpy"], np.load(GOLDEN / "numpy.npy"))
    with np.load(GOLDEN / "numpy.npz") as expected:
        m = pm.load(GOLDEN / "numpy.npz")
        for name in expected:
            same(m[name], expected[name])
    for name in ("csr", "csc", "coo", "bsr"):
        w = pm.load(GOLDEN / f"scipy-{name}.npz")[f"scipy-{name}"]
        np.testing.assert_array_equal(w.to_dense(), sp.load_npz(GOLDEN / f"scipy-{name}.npz").toarray())


def messy(form: str, dtype: str) -> Any:
    """A matrix with unsorted indices, two values in one place, and a stored zero; bsr of 3 x 2 blocks."""
    rng = np.random.default_rng(1)
    if form == "bsr":
        data = (rng.standard_normal((7, 3, 2)) * 9).astype(dtype)
        return sp.bsr_array((data, np.array([4, 1, 1, 0, 3, 2, 2]), np.array([0, 3, 3, 5, 7])), shape=(12, 10))
    row, col = np.array([3, 0, 3, 11, 5, 5, 0]), np.array([9, 2, 9, 0, 7, 1, 1])
    data = np.array([1.25, 2.5, 3, 4, 0, 6.1, 7]).astype(dtype)
    if form == "coo":
        return sp.coo_array((data, (row, col)), shape=(12, 10))
    order = np.argsort(row if form == "csr" else col, kind="stable")
    outer, inner = (row, col) if form == "csr" else (col, row)
    indptr = np.cumsum([0, *np.bincount(outer, minlength=12 if form == "csr" else 10)])
    return (sp.csr_array if form == "csr" else sp.csc_array)((data[order], inner[order], indptr), shape=(12, 10))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "?"])
@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr"])
def test_scipy_matrices_become_the_arrays_that_from_scipy_makes(
    form: str, dtype: str, compressed: bool, tmp_path: Path
) -> None:
    sp.save_npz(tmp_path / "fc.npz", messy(form, dtype), compressed=compressed)
    m = pm.load(tmp_path / "fc.npz")
    assert list(m) == ["fc"]
    layout = pm.BSRArray if form == "bsr" else pm.CSRArray
    expected = layout.from_scipy(sp.load_npz(tmp_path / "fc.npz"))
    assert m.info("fc").dtype == m["fc"].scheme == expected.scheme
    assert {part: m["fc"].part_dtype(part) for part in expected.parts()} == dict(m.info("fc").parts)
    for part, array in expected.parts().items():
        same(m["fc"].parts()[part], array)


def test_scipy_matrices_of_more_columns_than_16_bits_name(tmp_path: Path) -> None:
    matrix = sp.csr_array((np.ones(2), [70000, 3], [0, 1, 2]), shape=(2, 70001))
    sp.save_npz(tmp_path / "w.npz", matrix)
    w = pm.load(tmp_path / "w.npz")["w"]
    assert w.indices.tolist() == [70000, 3]
    assert w.indices.dtype == np.uint32


def scipy_file(**changes: Any) -> bytes:
    """The members of a csr matrix (3, 4), some of them changed."""
    members = {
        "format": b"csr", "shape": np.array([3, 4]), "data": np.arange(1.0, 4),
        "indices": np.array([0, 3, 1], np.int32), "indptr": np.array([0, 2, 2, 3], np.int32),
    }  # fmt: skip
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in (members | changes).items() if value is not None})
    return file.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": np.array([0, 4, 1])}, r"indices in \[0, 4\), got 4 at 1"),
        ({"indices": np.array([0, -1, 1])}, r"indices in \[0, 4\), got -1 at 1"),
        ({"indices": np.array([0, 2**62, 1])}, r"indices in \[0, 4\)"),
        ({"indices": np.array([0.0, 3, 1])}, "3 integers, one for each value"),
        ({"indices": np.array([0, 3])}, "3 integers, one for each value"),
        ({"indptr": np.array([1, 2, 2, 3])}, "a rise from 0 to 3, got 1 to 3"),
        ({"indptr": np.array([0, 2, 2, 4])}, "a rise from 0 to 3, got 0 to 4"),
        ({"indptr": np.array([0, 3, 2, 3])}, "a rise from 0 to 3, got a fall behind 1"),
        ({"indptr": np.array([0, 2, 3])}, "4 integers"),
        ({"shape": np.array([2, 4])}, "3 integers"),
        ({"shape": np.array([-3, 4])}, "a shape of rows and columns"),
        ({"shape": np.array([2**40, 4])}, "a shape of rows and columns"),
        ({"shape": np.array([3, 4, 5])}, "two integers"),
        ({"shape": np.array([3.0, 4])}, "two integers"),
        ({"data": np.ones((3, 1))}, "1 axes"),
        ({"data": np.ones(3, np.complex64)}, "real numbers, got C64"),
        ({"format": b"dia"}, "a matrix in csr, csc, bsr, coo, got dia"),
        ({"format": b"xyz"}, "got xyz"),
        ({"format": np.arange(3)}, "three letters"),
        ({"format": b"coo"}, "the arrays data, row, col, shape of coo"),
        ({"indptr": None}, "the arrays data, indices, indptr, shape of csr"),
        ({"format": b"bsr"}, "3 axes"),
        ({"format": b"bsr", "data": np.ones((3, 2, 2)), "indptr": np.array([0, 3])}, r"whole blocks of \(2, 2\)"),
        ({"format": b"coo", "indices": None, "indptr": None, "coords": np.zeros((3, 3), int)}, "rows and columns, got"),
        ({"format": b"coo", "indices": None, "indptr": None, "coords": np.zeros((2, 4), int)}, "3 integers"),
        ({"format": b"coo", "indices": None, "indptr": None, "coords": np.full((2, 3), 3)}, r"row in \[0, 3\), got 3"),
        ({"format": b"coo", "indices": None, "indptr": None, "coords": np.array(3)}, "rows and columns, got shape"),
        ({"format": b"coo", "indices": None, "indptr": None, "row": np.array([0, 3, 1]), "col": np.arange(3)},
         r"row in \[0, 3\), got 3 at 1"),
    ],
)  # fmt: skip
def test_scipy_matrices_with_wrong_indices_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pm.FormatError, match=message):
        pm.load(scipy_file(**changes))["array"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("dtype", "values"), [("f2", [6e4, 6e4]), ("f8", [1e308, 1e308]), ("f4", [np.inf, -np.inf])])
def test_sums_in_one_place_that_are_not_finite_are_values_and_no_event(dtype: str, values: Any) -> None:
    data, zeros = np.array([*values, 1], dtype), np.array([0, 0, 1])
    blob = scipy_file(format=b"coo", indices=None, indptr=None, data=data, row=zeros, col=zeros)
    w = pm.load(blob)["array"].to_dense()
    assert w[1, 1] == 1
    assert not np.isfinite(w[0, 0])


def test_coo_with_its_coordinates_in_one_array_is_read_as_scipy_reads_it() -> None:
    coords = np.array([[0, 2, 2], [3, 0, 0]])
    blob = scipy_file(format=b"coo", indices=None, indptr=None, coords=coords)
    expected = sp.load_npz(io.BytesIO(blob)).toarray()
    np.testing.assert_array_equal(pm.load(blob)["array"].to_dense(), expected)


def test_columns_that_a_csc_only_claims_cost_nothing() -> None:
    """A fuzzer's find: 2^32 columns were numbered, 32 GB, before anybody looked how many the file has."""
    blob = scipy_file(format=b"csc", shape=np.array([4, 2**32]))
    tracemalloc.start()
    with pytest.raises(pm.FormatError, match="expected 4294967297 integers"):
        pm.load(blob)["array"]
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


def test_an_empty_matrix_of_any_width_is_no_bomb() -> None:
    shape = np.array([2**20, 2**30])
    empty = {"data": np.zeros(0), "row": np.zeros(0, int), "col": np.zeros(0, int), "indices": None, "indptr": None}
    with pytest.raises(pm.FormatError, match="a shape of rows and columns"):
        pm.load(scipy_file(format=b"coo", shape=shape, **empty))
    assert pm.load(scipy_file(format=b"coo", shape=np.array([9, 2**30]), **empty))["array"].nnz == 0


def npy(header: str, data: bytes = bytes(24), version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n"


@pytest.mark.parametrize(
    "header",
    [GOOD, GOOD.replace("'", '"'), "{'shape':(2,3),'fortran_order':False,'descr':'<f4'}", GOOD.replace("3,", "3L,")],
)
def test_headers_of_other_writers_are_read(header: str) -> None:
    assert pm.load(npy(header))["array"].shape == (2, 3)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (npy(GOOD, bytes(23)), "24 bytes of <f4 .*, got 23.*truncated"),
        (npy(GOOD, bytes(25)), "24 bytes of <f4 .*, got 25"),
        (npy(GOOD.replace("2, 3", str(2**47))), "bytes of <f4 .*, got 24"),
        (npy(GOOD.replace("2, 3", str(2**62))), r"axes of at most 2\^48"),
        (npy(GOOD.replace("2, 3", "-2, -3")), "descr, fortran_order and shape"),
        (npy(GOOD.replace("2, 3", "1," * 65)), "at most 64 axes"),
        (npy(GOOD.replace("2, 3", "2 3")), "a shape of integers"),
        (npy(GOOD.replace("False", "__import__('os').system('touch ran')")), "descr, fortran_order and shape"),
        (npy(GOOD.replace("<f4", "|O")), "numbers, got an object array.*pickles, which could run code"),
        (npy(GOOD.replace("<f4", "O")), "numbers, got an object array"),
        (npy(GOOD.replace("<f4", "<U1")), "numbers, got dtype '<U1'"),
        (npy(GOOD.replace("<f4", "|V2")), "numbers, got dtype.*which dtype a void is"),
        (npy(GOOD.replace("<f4", "<f16")), "a dtype that safetensors has, got '<f16'"),
        (npy(GOOD.replace("<f4", "<c16")), "a dtype that safetensors has"),
        (npy(GOOD.replace("<f4", "<M8")), "numbers, got dtype '<M8'"),
        (npy(GOOD.replace("'<f4'", "[('a', '<f4')]")), "one number an item, got a structured dtype"),
        (npy(GOOD + " " * 60000), "a header of at most"),
        (npy(GOOD, version=4), "version 1, 2 or 3 of the header, got 4"),
        (npy(GOOD)[:11], "an array of NumPy"),
        (npy(GOOD)[:40], "a header of at most"),
        (npy("{" + "'descr': '<f4' " * 400), "descr, fortran_order and shape"),
    ],
)
def test_headers_that_lie_are_refused_with_the_reason(blob: bytes, message: str) -> None:
    with pytest.raises(pm.FormatError, match=message):
        pm.load(blob)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch ran",)


def test_object_arrays_are_refused_and_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for save in (np.save, np.savez):
        file = io.BytesIO()
        save(file, np.array([Evil()], object))
        with pytest.raises(pm.FormatError, match="an object array.*pickles, which could run code"):
            pm.load(file.getvalue())
    assert not (tmp_path / "ran").exists()


def test_an_archive_of_nothing_holds_nothing() -> None:
    file = io.BytesIO()
    np.savez(file)
    assert list(pm.load(file.getvalue())) == list(np.load(io.BytesIO(file.getvalue()))) == []


def test_other_members_are_refused() -> None:
    blob = scipy_file().replace(b"indptr.npy", b"indptr.txt")
    with pytest.raises(pm.FormatError, match=r"indptr.txt: expected members that end in .npy"):
        pm.load(blob)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_verify_checks_what_the_archive_has_checksums_of(save: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    save(path, a=np.random.default_rng(0).standard_normal(400), b=np.eye(3))
    report = pm.verify(path)
    assert (report.ok, report.tensors, report.unchecked) == (True, 2, ())
    blob = bytearray(path.read_bytes())
    blob[2000] ^= 4
    path.write_bytes(blob)
    report = pm.verify(path)
    assert report.bad == ("a",)
    assert report.tensors == 1
    np.save(tmp_path / "w.npy", np.eye(3))
    assert pm.verify(tmp_path / "w.npy").unchecked == ("w",)


def test_convert_and_sparsify_take_them(tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    np.savez(tmp_path / "m.npz", **{"fc.weight": w, "fc.bias": w[0]})
    pm.convert(tmp_path / "m.npz", tmp_path / "m.safetensors", "int8")
    m = pm.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(m["fc.weight"].to_dense(), pm.compress(w, "int8").to_dense())
    np.testing.assert_array_equal(m["fc.bias"], w[0])
    sp.save_npz(tmp_path / "fc.weight.npz", messy("csr", "f4"))
    pm.convert(tmp_path / "fc.weight.npz", tmp_path / "s.safetensors", "csr")
    expected = sp.load_npz(tmp_path / "fc.weight.npz").toarray()
    np.testing.assert_array_equal(pm.load(tmp_path / "s.safetensors")["fc.weight"].to_dense(), expected)
