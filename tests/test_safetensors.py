"""Files: the safetensors package opens ours, we open its, and nothing that a file says is believed unchecked."""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pumice as pm
from pumice.checkpoint import SafetensorsWriter, TensorInfo

RNG = np.random.default_rng(4)
GOLDEN = Path(__file__).parent / "golden" / "v1.safetensors"
NUMPY_DTYPES = ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]
SCHEMES = ["float16", "bfloat16", "int8", "int4-g32", "int4-g16-asym", "csr", "csr+int8", "bsr-4x4", "bsr-3x5+int8"]


def weights() -> np.ndarray:
    w = np.random.default_rng(5).standard_normal((24, 64)).astype(np.float32)
    return pm.prune(w, 0.6)


def mixed() -> dict[str, Any]:
    state: dict[str, Any] = {f"{scheme}.weight": pm.compress(weights(), scheme) for scheme in SCHEMES}
    state |= {
        "transposed": pm.compress(weights(), "int8").T,
        "conv": pm.compress(weights().reshape(24, 4, 4, 4), "int8"),
    }
    return state | {"bias": np.arange(24.0), "flag": np.array(True), "none": np.zeros((0, 3), np.float16)}


def written(state: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pm.save(file, state, **options)
    return file.getvalue()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, pm.CompactArray):
        return a.scheme == b.scheme and a.shape == b.shape and a.to_dense().tobytes() == b.to_dense().tobytes()
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


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


# Shards.


def test_shards_have_an_index_and_old_shards_go(tmp_path: Path) -> None:
    state = {f"w{i}": RNG.standard_normal(100) for i in range(6)}
    pm.save(tmp_path / "m", state, max_shard_size=2000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4800
    assert sorted(index["weight_map"]) == sorted(state)
    assert sorted({*index["weight_map"].values()}) == sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert all(same(pm.load(tmp_path / "m")[n], a) for n, a in state.items())
    pm.save(tmp_path / "m", state)
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["model.safetensors"]


def test_the_parts_of_an_array_stay_together(tmp_path: Path) -> None:
    pm.save(tmp_path, {f"w{i}": pm.compress(weights(), "csr") for i in range(4)}, max_shard_size=1)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for i in range(4):
        assert len({file for name, file in index.items() if name.startswith(f"w{i}_")}) == 1


def sharded(tmp_path: Path) -> Path:
    pm.save(tmp_path / "m", {f"w{i}": np.ones(100) for i in range(5)}, max_shard_size=1700)
    return tmp_path / "m"


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(pm.FormatError, match=r"shard 2 of 3, 'model-00002-of-00003.safetensors'.*no such file"):
        pm.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["weight_map"].update(w0="../m/model-00001-of-00003.safetensors"), "a file name without folders"),
        (lambda t: t["weight_map"].update(w0="/etc/passwd"), "a file name without folders"),
        (lambda t: t["weight_map"].update(w0=3), "a file name without folders"),
        (
            lambda t: t["weight_map"].update(w0="model-00002-of-00003.safetensors"),
            "no such tensor|the file that holds it",
        ),
        (lambda t: t["weight_map"].update(w9="model-00002-of-00003.safetensors"), "no such tensor there"),
        (lambda t: t["weight_map"].pop("w0"), "expected"),
        (lambda t: t.pop("weight_map"), "a weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    edit_index(folder, change)
    with pytest.raises(pm.FormatError, match=message):
        pm.load(folder)


# What is no weights file at all.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", r"a Git LFS pointer.*git lfs pull"),
        (b"\x80\x02}q\x00.", "a pickle, which could run code|at least 8 bytes"),
        (b"PK\x03\x04" + bytes(100), "the end record of a ZIP archive|a header of"),
        (b"abc", "a known format|at least 8 bytes"),
    ],
)
def test_other_files_are_refused_with_the_reason(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for source in (path, tmp_path):
        with pytest.raises(pm.FormatError, match=message):
            pm.load(source)


def test_folders_without_one_set_of_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(pm.FormatError, match=r"a folder with weights, got config\.json"):
        pm.load(tmp_path)
    for name in ("a", "b"):
        pm.save(tmp_path / f"{name}.safetensors", {"x": np.ones(2)})
    with pytest.raises(pm.FormatError, match=r"got a\.safetensors, b\.safetensors \(give the path of one file\)"):
        pm.load(tmp_path)
    (tmp_path / "shards").mkdir()
    pm.save(tmp_path / "shards" / "model-00001-of-00002.safetensors", {"x": np.ones(2)})
    with pytest.raises(pm.FormatError, match="one weights file"):
        pm.load(tmp_path / "shards")  # a shard alone, without its index, is not the model
    with pytest.raises(FileNotFoundError, match="path: expected an existing file or folder"):
        pm.load(tmp_path / "nothing")
    with pytest.raises(pm.FormatError, match="a file or folder"):
        pm.load("/dev/null")
    with pytest.raises(TypeError, match="source: expected a path, bytes or a binary file, got int"):
        pm.load(3)
    with pytest.raises(TypeError, match="a binary file, got one that reads str"):
        pm.load(io.StringIO("x"))


# Files that lie.


def crafted(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"1234567", "at least 8 bytes"),
        (struct.pack("<Q", 1 << 63) + b"{}", "a header of at most 100000000 bytes"),
        (struct.pack("<Q", 50_000_000) + b"{}", "a header of 50000000 bytes, got a file of 10 bytes"),
        (crafted(b"[]"), "starts with '{'"),
        (crafted(b" {}"), "starts with '{'"),
        (crafted(b'{"a":'), "JSON"),
        (crafted(b'{"a\xff":1}'), "UTF-8"),
        (crafted(b"{" + b'"a":{' * 100_000), "a few levels"),
        (
            crafted(b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", bytes(8)),
            "every key once",
        ),
        (crafted({"a": entry()}, bytes(7)), "expected 8 bytes of data, got 7 bytes"),
        (crafted({"a": entry()}, bytes(9)), "expected 8 bytes of data, got 9 bytes"),
        (crafted({"a": entry(offsets=(0, 4))}, bytes(4)), "expected 4 bytes, as data_offsets says, got F32"),
        (crafted({"a": entry(offsets=(8, 0))}, bytes(8)), "data_offsets says"),
        (crafted({"a": entry(offsets=(4, 12))}, bytes(12)), "a hole"),
        (crafted({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "an overlap"),
        (crafted({"a": entry(shape=(2**63,))}, bytes(8)), "a shape of at most 64 integers"),
        (crafted({"a": entry(shape=(2**40, 2**40))}, bytes(8)), "too many"),
        (crafted({"a": entry(shape=(0, 2**47, 2**47), offsets=(0, 0))}), "too many"),
        (crafted({"a": entry(shape=(-1, -2))}, bytes(8)), "a shape of"),
        (crafted({"a": entry(shape=(True, 2))}, bytes(8)), "a shape of"),
        (crafted({"a": entry(shape=(2.0,))}, bytes(8)), "integers only"),
        (crafted({"a": entry(shape=[1] * 65, offsets=(0, 4))}, bytes(4)), "at most 64"),
        (crafted({"a": entry(shape="22")}, bytes(8)), "a shape of"),
        (crafted({"a": entry(offsets=(0, 8, 8))}, bytes(8)), "two offsets"),
        (crafted({"a": entry(offsets=(0, True))}, bytes(8)), "two offsets"),
        (
            crafted(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,' + b"9" * 5000 + b"]}}", bytes(8)),
            "integers below",
        ),
        (crafted({"a": entry(dtype="F31")}, bytes(8)), "a dtype of .* got 'F31'"),
        (crafted({"a": entry(dtype=["F32"])}, bytes(8)), "a dtype of"),
        (crafted({"a": entry() | {"x": 1}}, bytes(8)), "the fields data_offsets, dtype, shape"),
        (crafted({"a": {"dtype": "F32"}}, bytes(8)), "the fields"),
        (crafted({"a": 3}, bytes(8)), "the fields"),
        (crafted({"__metadata__": {"a": 1}}), "text for 'a'"),
        (crafted({"__metadata__": []}), "an object"),
        (crafted(b'{"\\ud800":' + json.dumps(entry()).encode() + b"}", bytes(8)), "a name in Unicode"),
    ],
)
def test_a_header_that_lies_is_refused(blob: bytes, message: str) -> None:
    with pytest.raises(pm.FormatError, match=message):
        pm.load(blob)


def manifest(change: Callable[[dict[str, Any]], None], scheme: str = "csr") -> bytes:
    """A good file whose manifest was changed by somebody who also fixed the sizes."""
    blob = written({"w": pm.compress(weights(), scheme)})
    length = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8 : 8 + length])
    table = json.loads(header["__metadata__"]["pumice.manifest"])
    change(table["arrays"]["w"])
    header["__metadata__"]["pumice.manifest"] = json.dumps(table)
    return crafted(header, blob[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(scheme="csr+int8"), "w: expected the parts"),
        (lambda a: a.update(scheme="int99"), "legal scheme"),
        (lambda a: a.update(scheme=4), "a scheme"),
        (lambda a: a.update(shape=[24, 63]), r"int64 \[24, 63\]"),
        (lambda a: a.update(shape=[48, 32]), r"int64 \[48, 32\]"),
        (lambda a: a.update(shape=[24]), "a shape of 2 to 64"),
        (lambda a: a.update(shape=[24, True]), "a shape of 2 to 64"),
        (lambda a: a["parts"].pop("indptr"), "w: expected the parts"),
        (lambda a: a["parts"].update(indptr="w_indices"), "parts named array_part"),
        (lambda a: a.update(parts={}), "named parts"),
        (lambda a: a.update(in_axis=2), "in_axis 0 or 1"),
        (lambda a: a.update(sha256={"w_data": "00"}), "SHA-256 digests"),
    ],
)
def test_a_manifest_that_lies_is_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(pm.FormatError, match=message):
        pm.load(manifest(change))["w"]


@pytest.mark.parametrize(
    ("scheme", "part", "change", "message"),
    [
        ("csr", "indptr", lambda a: a.__setitem__(1, -1), "indptr must rise"),
        ("csr", "indptr", lambda a: a.__setitem__(0, 1), "indptr must rise"),
        ("csr", "indptr", lambda a: a.__setitem__(-1, 2**60), "indptr must rise"),
        ("csr", "indices", lambda a: a.__setitem__(-1, 64), "below the number of columns"),
        ("csr", "indices", lambda a: a.__setitem__(slice(0, 2), a[1::-1]), "sorted and unique"),
        ("csr", "indices", lambda a: a.__setitem__(1, a[0]), "sorted and unique"),
        ("bsr-4x4", "indices", lambda a: a.__setitem__(-1, 16), "below the number of columns"),
        ("csr+int8", "scale", lambda a: a.__setitem__(3, np.nan), "finite scales"),
        ("int8", "scale", lambda a: a.__setitem__(3, np.inf), "finite scales"),
        ("int8", "shape", lambda a: a.__setitem__(0, 25), "int64"),
    ],
)
def test_parts_that_break_a_rule_are_refused(
    scheme: str, part: str, change: Callable[[Any], None], message: str
) -> None:
    w = pm.compress(weights(), scheme)
    parts = {name: np.array(array) for name, array in w.parts().items()}
    change(parts[part])
    with pytest.raises(pm.FormatError, match=message):
        pm.from_parts(w.scheme, w.shape, parts)


def small() -> bytes:
    return written(
        {"w": pm.compress(weights()[:4, :32], "csr+int8"), "v": pm.compress(weights()[:4, :32], "int4-g16-asym")}
    )


def test_a_file_cut_anywhere_is_refused() -> None:
    blob = small()
    for length in range(len(blob)):
        with pytest.raises(pm.FormatError):
            pm.load(blob[:length])


def test_every_flipped_bit_is_found() -> None:
    blob = bytearray(small())
    for i in range(len(blob)):
        blob[i] ^= 1 << i % 8
        try:
            with pm.load(bytes(blob)) as m:
                found = not m.verify().ok
        except (pm.FormatError, pm.SchemeError):
            found = True
        assert found, f"byte {i}"
        blob[i] ^= 1 << i % 8


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_bytes_that_change_at_random_raise_or_load(data: st.DataObject) -> None:
    blob = bytearray(small())
    for _ in range(data.draw(st.integers(1, 8))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        m = pm.load(bytes(blob))
        for name in m:
            if isinstance(m[name], pm.CompactArray):
                m[name].to_dense()
    except (pm.PumiceError, NotImplementedError):
        pass


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
