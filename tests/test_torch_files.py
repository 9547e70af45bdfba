"""PyTorch's files, read without torch. The goldens, and what they hold, are torch's own (golden/make_torch.py)."""

from __future__ import annotations

import io
import json
import pickle
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

import pumice as pm
from pumice.checkpoint import open_reader
from pumice.layouts.dense import is_mapped
from tests.fuzz.torch_bytes import archive, number, state, tensor, text

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("torch-*.pt") if "refused" not in path.stem)
assert len(NAMES) == 7


@pytest.mark.parametrize("io", ["mmap", "read"])
@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_has_the_bytes_that_torch_gives(name: str, io: str) -> None:
    expected = np.load(GOLDEN / f"{name}.npz")
    with open_reader(GOLDEN / f"{name}.pt", io=io) as reader:
        assert set(reader.names()) == set(expected)
        for tensor in reader.names():
            assert bytes(reader.raw(tensor)) == expected[tensor].tobytes(), tensor
            assert reader.info(tensor).nbytes == expected[tensor].nbytes


def test_values_rows_and_dtypes_are_those_of_the_tensors() -> None:
    m, expected = pm.load(GOLDEN / "torch-state.pt"), np.load(GOLDEN / "torch-state.npz")
    assert m.info("bf16").dtype == "BF16"
    assert m.info("f8").dtype == "F8_E4M3"
    assert m["bool"].tolist() == [[True, False, True]]
    assert m["scalar"].shape == ()
    assert float(m["scalar"]) == 3.5
    assert m["empty"].shape == (0, 3)
    assert m["i64"].tolist() == [[-(2**62), 2**62 + 1, 0]]
    bf16 = expected["bf16"].view(np.uint16).astype(np.uint32) << 16
    np.testing.assert_array_equal(m["bf16"].reshape(-1).view(np.uint32), bf16)
    reader = open_reader(GOLDEN / "torch-state.pt")
    whole = expected["transposed"].view(np.float32).reshape(6, 4)
    np.testing.assert_array_equal(reader.rows("transposed", 2, 5), whole[2:5])
    assert reader.rows("f16", 1, 3).dtype == np.float32


def test_tensors_are_views_of_the_mapped_file_whatever_their_strides() -> None:
    m = pm.load(GOLDEN / "torch-state.pt")
    for name in ("f32", "transposed", "permuted", "columns", "shared_tail", "expanded"):
        assert is_mapped(m[name]), name
        assert not m[name].flags.writeable
    assert np.shares_memory(m["shared_head"], m["shared_tail"])
    assert np.shares_memory(m["tied"], m["f32"])
    assert m["transposed"].strides == (4, 24)


@pytest.mark.parametrize("name", ["f32", "transposed", "permuted", "columns", "expanded", "bf16", "scalar", "empty"])
@pytest.mark.parametrize("io", ["mmap", "read"])
def test_rows_are_those_of_the_whole(name: str, io: str) -> None:
    with open_reader(GOLDEN / "torch-state.pt", io=io) as reader:
        whole = np.atleast_1d(reader.array(name))
        for start in range(len(whole) + 1):
            for stop in range(start, len(whole) + 1):
                np.testing.assert_array_equal(reader.rows(name, start, stop), whole[start:stop])


def test_only_the_rows_that_are_asked_for_are_read(tmp_path: Path) -> None:
    blob = archive(state(w=tensor(shape=(5000, 100), strides=(100, 1), count=500000)), _0=bytes(2000000))
    (tmp_path / "m.pt").write_bytes(blob)
    with open_reader(tmp_path / "m.pt", io="read") as reader:
        tracemalloc.start()
        reader.rows("w", 17, 19)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20000


def test_a_training_checkpoint_is_opened_at_its_weights() -> None:
    m = pm.load(GOLDEN / "torch-training.pt")
    assert sorted(m) == ["bias", "weight"]
    assert m.metadata["weights key"] == "model_state_dict"
    assert "optimizer_state_dict" in m.metadata["left out"]


def test_containers_in_containers_become_dotted_names() -> None:
    assert sorted(pm.load(GOLDEN / "torch-nested.pt")) == ["encoder.0.weight", "heads.0", "heads.1.0"]


def test_a_bare_tensor_is_called_like_its_file() -> None:
    assert list(pm.load(GOLDEN / "torch-bare.pt")) == ["torch-bare"]
    assert list(pm.load((GOLDEN / "torch-bare.pt").read_bytes())) == ["tensor"]


def test_deflated_archives_hold_the_same() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(GOLDEN / "torch-state.pt") as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    m, deflated = pm.load(GOLDEN / "torch-state.pt"), pm.load(file.getvalue())
    assert set(deflated) == set(m)
    for name in m:
        assert bytes(deflated.raw(name)) == bytes(m.raw(name))


def test_folders_open_at_pytorch_model_bin_or_at_the_shards_of_an_index(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes((GOLDEN / "torch-module-state.pt").read_bytes())
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(archive(state(head=tensor())))
    (tmp_path / "training_args.bin").write_bytes(pickle.dumps({"lr": 1}))
    first, second = (f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2))
    index = {"metadata": {"total_size": 1.0}, "weight_map": {"weight": first, "bias": first, "head": second}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    m = pm.load(tmp_path)
    assert sorted(m) == ["bias", "head", "weight"]
    np.testing.assert_array_equal(m["head"], np.arange(6.0).reshape(2, 3))
    for tensors, message in (
        ({"weight": first, "bias": first, "head": "../" + second}, "a file name without folders.*hostile"),
        ({"weight": first, "bias": first, "head": "/etc/passwd"}, "a file name without folders"),
        ({"weight": first, "bias": first, "head": "pytorch_model-00003-of-00003.bin"}, "shard 3 of 3.*no such file"),
        ({"weight": first, "bias": first, "other": second}, "other: expected a tensor of"),
        ({"weight": first, "head": second}, "bias: expected an index that names it"),
    ):
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": tensors}))
        with pytest.raises(pm.FormatError, match=message):
            pm.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes((GOLDEN / "torch-bare.pt").read_bytes())
    assert list(pm.load(tmp_path)) == ["pytorch_model"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("legacy", "since PyTorch 1.6, got a legacy file.*load it with torch and save it again"),
        ("script", "got a TorchScript program.*save its state_dict"),
        ("module", "a reference to code, 'torch.nn.modules.linear.Linear'.*nothing in a file is run"),
        ("sparse", "a reference to code, 'torch._utils._rebuild_sparse_tensor'"),
        ("conjugated", "a tensor without flags, got one that is conjugated"),
    ],
)
def test_what_torch_wrote_and_is_not_read_is_refused_by_its_name(name: str, message: str) -> None:
    path = GOLDEN / f"torch-refused-{name}.pt"
    for source in (path, path.read_bytes()):
        with pytest.raises(pm.FormatError, match=message):
            pm.load(source)


def lists(levels: int) -> bytes:
    """Ten times the list before, over and over: 10 ** levels values out of a few bytes each."""
    return b"]" + b"".join(b"q%c]" % i + b"(" + b"h%c" % i * 10 + b"e" for i in range(levels))


BILLIONS = b"\x80\x02" + lists(20) + b"."
COPIES = b"\x80\x02]q\x00(" + b"N" * 9000 + b"e0](" + b"ctorch\nSize\nh\x00\x85R" * 9000 + b"e."
DEEP = b"\x80\x02" + b"]" * 4000 + tensor() + b"a" * 4000 + b"."


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02cos\nsystem\n" + text("touch ran") + b"\x85R.", "a reference to code, 'os.system'.*refused"),
        (b"\x80\x02cposix\nsystem\n" + text("touch ran") + b"\x85R.", "a reference to code, 'posix.system'"),
        (b"\x80\x04" + b"\x8c\x08builtins\x8c\x04eval\x93" + text("1") + b"\x85R.", "'builtins.eval'"),
        (b"\x80\x02ctorch.serialization\nload\n" + text("x") + b"\x85R.", "'torch.serialization.load'"),
        (b"\x80\x02(" + text("touch ran") + b"ios\nsystem\n.", "instructions that build containers, got 'i'"),
        (b"\x80\x02(cos\nsystem\n" + text("x") + b"o.", "'os.system'"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "instructions that build containers"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "attributes of an OrderedDict only"),
        (b"\x80\x02Kx)R.", "a call of a known function, got one of int"),
        (b"\x80\x02]" + text("x") + b"K\x01s.", "keys and values for a dict"),
        (b"\x80\x02})K\x01s.", "keys that are text or numbers, got tuple"),
        (b"\x80\x02}" + number(2**80) + b"K\x01s.", "keys that are text or numbers"),
        (b"\x80\x02B\xff\xff\xff\xff", "a whole pickle"),
        (b"\x80\x02X\xff\xff\xff\xff", "a whole pickle"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "text in UTF-8"),
        (b"\x80\x02" + b"(" * 100000 + b"t" * 100001, "a whole pickle"),
        (b"\x80\x02h\x07.", "a whole pickle"),
        (b"", "a whole pickle"),
        (BILLIONS, "at most .* values in .* levels.*unfolds"),
        (state(w=tensor(count=7)), "w: expected a storage of 24 bytes, as the file has it, got 7 items of 4 bytes"),
        (state(w=tensor(count=2**47)), "a storage of 24 bytes"),
        (state(w=tensor(kind="HalfStorage")), "a storage of 24 bytes.*6 items of 2 bytes"),
        (state(w=tensor(key="../0")), "no such file in the archive"),
        (state(w=tensor(shape=(3, 3))), "items within the 24 bytes of the storage"),
        (state(w=tensor(offset=1)), "items within the 24 bytes"),
        (state(w=tensor(strides=(4, 1))), "items within the 24 bytes"),
        (state(w=tensor(strides=(-3, 1))), r"sizes, strides and an offset in \[0, 2\^48\]"),
        (state(w=tensor(shape=(-2, 3))), r"sizes, strides and an offset in \[0, 2\^48\]"),
        (state(w=tensor(offset=-1)), r"sizes, strides and an offset"),
        (state(w=tensor(shape=(2**40, 3), strides=(0, 1))), "at most 200 bytes out of one.*a bomb"),
        (state(w=tensor(shape=(2**47, 2**47), strides=(0, 0))), "a shape that fits the address space"),
        (state(w=tensor(shape=(1,) * 65, strides=(1,) * 65)), "at most 64 axes"),
        (state(w=tensor(shape=(2, 3), strides=(1,))), "a stride for each axis"),
        (state(w=tensor(kind="QInt8Storage")), "'torch.QInt8Storage'"),
        (state(**{"w.x": tensor(), "w": b"}" + text("x") + tensor() + b"s"}), "one tensor of this name, got two"),
    ],
)  # fmt: skip
def test_pickles_that_lie_or_attack_are_refused_with_the_reason(
    pickled: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pm.FormatError, match=message):
        pm.load(archive(pickled))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (COPIES, "items that calls copy"),
        (DEEP, "levels"),
        (state(w=tensor(count=2**47)), "a storage of 24 bytes"),
        (state(w=tensor(shape=(2**40, 3), strides=(0, 1))), "a bomb"),
    ],
)
def test_bombs_take_neither_time_nor_memory(pickled: bytes, message: str) -> None:
    blob = archive(pickled)
    start = time.thread_time()
    tracemalloc.start()
    with pytest.raises(pm.FormatError, match=message):
        pm.load(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 << 20
    assert time.thread_time() - start < 5


def test_a_memo_of_large_numbers_costs_nothing() -> None:
    tracemalloc.start()
    m = pm.load(
        archive(b"\x80\x02}r\xff\xff\xff\x7fj\xff\xff\xff\x7f0.")
    )  # Python's own takes 16 bytes for each number below
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(m) == 0
    assert peak < 1 << 20


def test_a_storage_that_is_no_number_of_bool_is_refused_when_it_is_read() -> None:
    m = pm.load(archive(state(w=tensor(kind="BoolStorage")), _0=bytes([0, 1, 2, 1, 1, 1])))
    with pytest.raises(pm.FormatError, match="w: expected BOOL bytes of 0 or 1, got 2"):
        m["w"]


def test_big_endian_files_are_refused() -> None:
    blob = archive(state(w=tensor())).replace(b"little", b"big\0\0\0")
    with pytest.raises(pm.FormatError, match="little-endian storages"):
        pm.load(blob)


def test_other_archives_and_pickles_are_refused_by_their_content(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("config.json", "{}")
        members.writestr("model.weights.h5", "x")
    for blob, message in (
        (file.getvalue(), "an archive of PyTorch .* or NumPy .*, got one of 'config.json', 'model.weights.h5'"),
        (pickle.dumps([1], 4), "got a pickle, which could run code: refused"),
        (bytes(257) + b"ustar\0" + bytes(300), "got a tar archive"),
    ):
        (tmp_path / "model.pt").write_bytes(blob)
        for source in (blob, tmp_path / "model.pt", tmp_path):
            with pytest.raises(pm.FormatError, match=message):
                pm.load(source)


def test_every_cut_of_a_file_is_noticed() -> None:
    blob = (GOLDEN / "torch-module-state.pt").read_bytes()
    for size in range(len(blob)):
        with pytest.raises(pm.FormatError):
            pm.load(blob[:size])


def test_verify_checks_what_the_archive_has_checksums_of(tmp_path: Path) -> None:
    path, blob = tmp_path / "m.pt", bytearray((GOLDEN / "torch-state.pt").read_bytes())
    path.write_bytes(blob)
    report = pm.verify(path)
    assert report.ok
    assert (report.tensors, report.unchecked) == (26, ())
    with open_reader(path) as reader:
        at = blob.index(bytes(reader.raw("shared_head")))
    blob[at + 40] ^= 1  # of both tensors that share the storage
    path.write_bytes(blob)
    report = pm.verify(path)
    assert set(report.bad) == {"shared_head", "shared_tail"}
    assert report.tensors == 24
    assert "CRC-32" in str(report.errors[0])
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        assert archive.testzip() is not None  # zipfile thinks so, too


def test_convert_reads_them(tmp_path: Path) -> None:
    pm.convert(GOLDEN / "torch-nested.pt", tmp_path / "m.safetensors", "int8")
    m, source = pm.load(tmp_path / "m.safetensors"), pm.load(GOLDEN / "torch-nested.pt")
    assert m["encoder.0.weight"].scheme == "int8"
    np.testing.assert_array_equal(m["heads.0"], source["heads.0"])
