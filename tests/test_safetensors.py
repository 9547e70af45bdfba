"""safetensors: the package opens our files, we open its, and what we promise of ours."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import pumice as pm
from pumice.checkpoint import SafetensorsWriter, TensorInfo
from tests.states import SCHEMES, mixed, same, weights, written

RNG = np.random.default_rng(4)
GOLDEN = Path(__file__).parent / "golden" / "v1.safetensors"
NUMPY_DTYPES = ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]


# With the safetensors package as the oracle.


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    state = {d: RNG.integers(0, 2, (3, 5)).astype(d) for d in NUMPY_DTYPES if d != "c8"} | {"0-d": np.array(3.0)}
    pm.save(tmp_path / "a.safetensors", state)
    theirs = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert theirs.keys() == state.keys()
    assert all(same(theirs[name], state[name]) for name in state)


def test_the_package_opens_compact_files_and_sees_the_parts() -> None:
    state = {f"{s}.weight": pm.compress(weights(), s) for s in SCHEMES if s != "bfloat16"}
    theirs = safetensors.numpy.load(written(state))
    assert theirs["int4-g32.weight_packed"].dtype == np.int32
    assert sorted(n for n in theirs if n.startswith("csr.weight")) == [
        "csr.weight_data", "csr.weight_indices", "csr.weight_indptr", "csr.weight_shape",
    ]  # fmt: skip
    assert same(theirs["float16.weight"], weights().astype(np.float16))
    for name, array in state.items():
        for part, stored in array.parts().items():
            assert same(theirs[f"{name}_{part}" if part else name], np.ascontiguousarray(stored))


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_we_read_what_the_package_writes(dtype: str) -> None:
    state = {"a": RNG.integers(0, 2, (3, 4, 5)).astype(dtype), "b": np.zeros((0, 2), dtype), "c": np.ones((), dtype)}
    ours = pm.load(safetensors.numpy.save(state))
    assert all(same(np.asarray(ours[name]), state[name]) for name in state)
    assert not ours["a"].flags.writeable


def test_bfloat16_and_float8_widen_exactly() -> None:
    patterns = np.arange(65536, dtype=np.uint16)
    data = {"bf": ("bfloat16", patterns), "e4m3": ("float8_e4m3fn", np.arange(256, dtype=np.uint8))}
    data |= {"e5m2": ("float8_e5m2", np.arange(256, dtype=np.uint8))}
    blob = safetensors.serialize(
        {
            name: safetensors.TensorSpec(
                dtype=dtype, shape=list(array.shape), data_ptr=array.ctypes.data, data_len=array.nbytes
            )
            for name, (dtype, array) in data.items()
        }
    )
    ours = pm.load(blob)
    assert ours["bf"].tobytes() == (patterns.astype(np.uint32) << 16).view(np.float32).tobytes()
    # e5m2 is the upper half of a float16 (OCP 8-bit floating point specification, 2023).
    halves = (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(ours["e5m2"], halves)
    e4m3 = ours["e4m3"]
    assert (e4m3[0x7E], e4m3[0x01], e4m3[0x08], e4m3[0xB8]) == (448, 2.0**-9, 2.0**-6, -1)
    assert np.flatnonzero(np.isnan(e4m3)).tolist() == [0x7F, 0xFF]
    assert bytes(ours.raw("bf")) == patterns.tobytes()


# What we promise of our own files.


@pytest.mark.parametrize("how", ["mmap", "read", "bytes", "file"])
def test_everything_comes_back(how: str, tmp_path: Path) -> None:
    state = mixed()
    path = tmp_path / "m.safetensors"
    pm.save(path, state, metadata={"note": "here"})
    opened = path.open("rb") if how == "file" else None
    source: Any = opened or (path.read_bytes() if how == "bytes" else path)
    with pm.load(source, io="read" if how == "read" else "mmap") as m:
        assert sorted(m) == sorted(state)
        assert len(m) == len(state)
        assert "nothing" not in m
        assert m.metadata["note"] == "here"
        assert m.info("int4-g32.weight").dtype == "int4-g32"
        kept = {name: m[name] for name in m}
        assert m["int8.weight"] is kept["int8.weight"]
        assert m.verify().ok
    assert all(same(kept[name], state[name]) for name in state)  # after close, too
    if opened:
        opened.close()
    with pytest.raises(KeyError):
        pm.load(path)["nothing"]


def test_data_is_aligned_to_64_bytes() -> None:
    blob = written(mixed())
    length = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8 : 8 + length])
    assert (8 + length) % 64 == 0
    big = [
        e for n, e in header.items() if n != "__metadata__" and (e["data_offsets"][1] - e["data_offsets"][0]) % 64 == 0
    ]
    assert len(big) > 5
    assert all(entry["data_offsets"][0] % 64 == 0 for entry in big)
    assert header["__metadata__"]["format"] == "pt"


def test_the_bytes_depend_on_nothing_but_the_arrays() -> None:
    state = mixed()
    assert written(state) == written(dict(reversed(state.items()))) == written(dict(sorted(state.items())))


def test_any_cut_into_blocks_gives_the_same_bytes() -> None:
    w = RNG.standard_normal((100, 3)).astype(np.float32)
    expected = written({"w": w})
    for step in (1, 7, 100):
        file = io.BytesIO()
        with SafetensorsWriter(file) as writer:
            writer.begin("w", TensorInfo(w.shape, "F32"))
            for start in range(0, 100, step):
                writer.write("", w[start : start + step])
            writer.commit()
        assert file.getvalue() == expected


def test_a_dropped_array_leaves_no_trace() -> None:
    file = io.BytesIO()
    with SafetensorsWriter(file) as writer:
        for name in ("a", "b"):
            writer.begin("b", TensorInfo((2,), "F32"))
            writer.write("", np.full(2, 7, np.float32))
            writer.drop()
            writer.begin(name, TensorInfo((2,), "F32"))
            writer.write("", np.ones(2, np.float32))
        writer.commit()
    assert file.getvalue() == written({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)})


def test_the_golden_file_stays_readable_and_reproducible() -> None:
    blob = GOLDEN.read_bytes()
    assert len(blob) < 50_000
    assert pm.verify(GOLDEN).ok
    golden = pm.load(GOLDEN)
    assert all(same(golden[name], array) for name, array in mixed().items())
    assert written(mixed()) == blob


def test_odd_arrays_are_written_as_they_look(tmp_path: Path) -> None:
    w = RNG.standard_normal((6, 8))
    state = {"big": w.astype(">f4"), "strided": w[::2, ::3], "fortran": np.asfortranarray(w), "scalar": np.float32(2)}
    m = pm.load(written(state))
    for name, array in state.items():
        np.testing.assert_array_equal(m[name], array)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([np.ones(3)], "arrays: expected a mapping"),
        ({"a": "text"}, "a: expected an array, got str"),
        ({"a": None}, "a: expected an array, got NoneType"),
        ({"a": np.array(["x"])}, "a: dtype: expected one of"),
        ({"a": np.ones(2, complex)}, "a: dtype: expected one of"),
        ({3: np.ones(2)}, "arrays: expected names that are str, got 3"),
        ({"\ud800": np.ones(2)}, "name: expected Unicode text"),
        ({"__metadata__": np.ones(2)}, "name: expected names that no other"),
        (
            {"a": pm.compress(np.eye(4), "int8"), "a_packed": np.ones(2)},
            "name: expected names that no other .*'a_packed'",
        ),
    ],
)
def test_what_cannot_be_written_is_named_and_nothing_is_left(state: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        pm.save(tmp_path / "a.safetensors", state)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    pm.save(path, {"a": np.ones(3)})
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        pm.save(path, {"a": np.zeros(3)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_saving_over_a_mapped_file_keeps_what_was_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    state = mixed()
    pm.save(path, state)
    m = pm.load(path, prepack="never")
    kept = {name: m[name] for name in m}
    pm.save(path, kept | {"bias": np.zeros(2)})
    assert all(same(kept[name], state[name]) for name in state)
    assert pm.load(path)["bias"].shape == (2,)


def test_prepack_never_keeps_the_pages_of_the_file(tmp_path: Path) -> None:
    pm.save(tmp_path / "a.safetensors", {"w": pm.compress(weights(), "int8")})
    x = np.ones((2, 64), np.float32)
    never, lazy, eager = (pm.load(tmp_path / "a.safetensors", prepack=p)["w"] for p in ("never", "lazy", "eager"))
    y = x @ never.T
    assert never.resident_nbytes == 0
    assert lazy.resident_nbytes == 0
    assert eager.resident_nbytes > 0
    assert y.tobytes() == (x @ lazy.T).tobytes() == (x @ eager.T).tobytes()
    assert lazy.resident_nbytes > 0
    for wrong in ({"prepack": "maybe"}, {"io": "ftp"}):
        with pytest.raises(ValueError, match="expected one of|expected 'mmap'"):
            pm.load(tmp_path / "a.safetensors", **wrong)


def test_checksums_are_checked_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    pm.save(path, {"a": np.arange(100), "b": np.ones(10)})
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    report = pm.verify(path)
    assert report.bad == ("b",)
    assert "SHA-256" in str(report.errors[0])
    assert pm.load(path)["a"][99] == 99  # loading alone does not read what it is not asked for
    foreign = tmp_path / "foreign.safetensors"
    safetensors.numpy.save_file({"x": np.ones(3)}, foreign)
    assert pm.verify(foreign).unchecked == ("x",)


@pytest.mark.parametrize("error", [errno.EXDEV, errno.ENOSYS, None])
def test_a_kernel_that_copies_nothing_or_in_part_makes_the_same_file(
    error: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {"fc.weight": pm.compress(np.eye(200), "int8"), "bias": np.arange(1000.0)}
    pm.save(tmp_path / "a.safetensors", arrays)
    copied = []

    def copy_file_range(source: int, out: int, count: int, **places: int) -> int:
        copied.append(count)
        if error is not None and len(copied) > 1:
            raise OSError(error, "no")
        return copy(source, out, max(1, count // 2), **places)

    copy = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    pm.save(tmp_path / "b.safetensors", arrays)
    assert len(copied) > 1
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with gzip.open(tmp_path / "c.gz", "wb") as file:  # has a descriptor, and writes something else to it
        pm.save(file, arrays)
    assert gzip.decompress((tmp_path / "c.gz").read_bytes()) == (tmp_path / "a.safetensors").read_bytes()
