"""GGUF: what the gguf package writes we read, to the bit; what no writer makes is refused before it allocates."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

import pumice as pm
from pumice.checkpoint import open_reader

SCHEMES = {
    "Q4_0": "int4-g32", "Q4_1": "int4-g32-min", "Q5_0": "int5-g32", "Q5_1": "int5-g32-min", "Q8_0": "int8-g32",
    "Q2_K": "int2-g16-min", "Q3_K": "int3-g16", "Q4_K": "int4-g32-min", "Q5_K": "int5-g32-min", "Q6_K": "int6-g16",
}  # fmt: skip
HALVES = {  # where the float16 numbers of a block are
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip
PLAIN = {"F32": "f4", "F16": "f2", "F64": "f8", "I8": "i1", "I16": "i2", "I32": "i4", "I64": "i8"}


def random_blocks(kind: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Any bytes, except that the float16 numbers among them are finite."""
    nbytes = gguf.GGML_QUANT_SIZES[Type[kind]][1]
    raw = np.random.default_rng(seed).integers(0, 256, (rows, blocks, nbytes), np.uint8)
    for at in HALVES[kind]:
        high = raw[..., at + 1]
        high[(high & 0x7C) == 0x7C] ^= 0x40  # an exponent of ones is an infinity or a NaN
    return raw.reshape(rows, blocks * nbytes)


def written(
    path: Path, tensors: dict[str, tuple[np.ndarray, str]], fields: dict[str, Any] | None = None, version: int = 3
) -> Path:
    """A file by the gguf package: name -> (values or bytes of blocks, type). It writes version 3, unless it is told."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (fields or {}).items():
        writer.add_key_value(key, value[0], gguf.GGUFValueType[value[1]])
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=None if kind in PLAIN else Type[kind])
    with mock.patch.object(gguf.gguf_writer, "GGUF_VERSION", version):
        writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# With the gguf package as the oracle.


@pytest.mark.parametrize("kind", SCHEMES)
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_random_blocks_decode_to_the_bits_of_the_gguf_package(
    tmp_path_factory: pytest.TempPathFactory, kind: str, rows: int, blocks: int, seed: int
) -> None:
    raw = random_blocks(kind, rows, blocks, seed)
    path = written(tmp_path_factory.mktemp("gguf") / "a.gguf", {"w": (raw, kind)})
    with pm.load(path) as m:
        w = m["w"]
        assert w.scheme == SCHEMES[kind]
        assert w.to_dense().tobytes() == gguf.quants.dequantize(raw, Type[kind]).tobytes()


@pytest.mark.parametrize("kind", SCHEMES)
def test_rows_read_only_their_own_blocks(tmp_path: Path, kind: str) -> None:
    raw = random_blocks(kind, 7, 2, 1)
    with open_reader(written(tmp_path / "a.gguf", {"w": (raw, kind)}), io="read") as reader:
        theirs = gguf.quants.dequantize(raw, Type[kind])
        assert reader.rows("w", 2, 5).tobytes() == theirs[2:5].tobytes()
        assert reader.rows("w", 7, 7).shape == (0, theirs.shape[1])
        asked: list[tuple[int, int]] = []
        source = reader._file_of["w"].source
        view = source.view
        source.view = lambda start, stop: asked.append((start, stop)) or view(start, stop)
        reader.rows("w", 3, 4)
        tensor = reader.tensor("w")
        row = (tensor.end - tensor.begin) // 7
        assert asked == [(tensor.begin + 3 * row, tensor.begin + 4 * row)]


@pytest.mark.parametrize("kind", SCHEMES)
def test_info_says_what_the_array_turns_out_to_be(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "a.gguf", {"w": (random_blocks(kind, 3, 2, 2), kind)})
    with pm.load(path) as m:
        info, w = m.info("w"), m["w"]
        assert (info.shape, info.dtype) == (w.shape, w.scheme)
        assert info.parts == {part: w.part_dtype(part) for part in w.parts()}
        assert info.nbytes == len(m.raw("w")) == random_blocks(kind, 3, 2, 2).nbytes


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_numbers_are_read_as_they_are(tmp_path: Path, kind: str) -> None:
    data = np.random.default_rng(3).integers(-100, 100, (3, 5)).astype(PLAIN[kind])
    path = written(tmp_path / "a.gguf", {"w": (data, kind), "v": (data[0], kind)})
    with pm.load(path) as m:
        assert m.info("w").dtype == kind
        for name, theirs in (("w", data), ("v", data[0])):
            assert (m[name].dtype, m[name].tobytes()) == (theirs.dtype, theirs.tobytes())
    with open_reader(path) as reader:
        assert reader.rows("w", 1, 3).dtype == (np.float32 if kind == "F16" else data.dtype)
        np.testing.assert_array_equal(reader.rows("w", 1, 3), data[1:3])


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    path = written(tmp_path / "a.gguf", {"w": (patterns.view(np.uint8), "BF16")})
    theirs = gguf.quants.dequantize(patterns.view(np.uint8), Type.BF16)
    with pm.load(path) as m:
        assert m.info("w").dtype == "BF16"
        assert m["w"].tobytes() == theirs.tobytes()
    with open_reader(path) as reader:
        assert reader.rows("w", 3, 9).tobytes() == theirs[3:9].tobytes()


def test_stacked_experts_keep_their_three_dimensions(tmp_path: Path) -> None:
    raw = random_blocks("Q4_K", 12, 2, 4)
    path = written(tmp_path / "a.gguf", {"w": (raw.reshape(3, 4, -1), "Q4_K")})
    with pm.load(path) as m:
        assert m["w"].shape == (3, 4, 512)
        assert m["w"].to_dense().tobytes() == gguf.quants.dequantize(raw, Type.Q4_K).tobytes()
    with open_reader(path) as reader:
        assert reader.rows("w", 1, 2).tobytes() == gguf.quants.dequantize(raw[4:8], Type.Q4_K).tobytes()


def test_a_large_tensor_is_unpacked_in_pieces(tmp_path: Path) -> None:
    raw = random_blocks("Q4_1", 1100, 128, 5)  # more than CHUNK weights
    with pm.load(written(tmp_path / "a.gguf", {"w": (raw, "Q4_1")})) as m:
        assert m["w"].to_dense().tobytes() == gguf.quants.dequantize(raw, Type.Q4_1).tobytes()


FIELDS = {
    "a.u8": (255, "UINT8"), "a.i8": (-3, "INT8"), "a.u16": (65535, "UINT16"), "a.i16": (-300, "INT16"),
    "a.u32": (2**32 - 1, "UINT32"), "a.i32": (-(2**31), "INT32"), "a.f32": (1e-5, "FLOAT32"), "a.f64": (0.1, "FLOAT64"),
    "a.u64": (2**64 - 1, "UINT64"), "a.i64": (-(2**63), "INT64"), "a.yes": (True, "BOOL"),
    "a.text": ("Größe 𝛑", "STRING"), "a.none": ("", "STRING"), "a.texts": (["<s>", "", "é"], "ARRAY"),
    "a.scores": ([0.5, -1.0], "ARRAY"), "a.types": ([1, 2, 3], "ARRAY"), "a.flags": ([True, False], "ARRAY"),
}  # fmt: skip


@pytest.mark.parametrize("version", [2, 3])
def test_keys_and_values_are_those_of_the_gguf_package(tmp_path: Path, version: int) -> None:
    path = written(tmp_path / "a.gguf", {}, FIELDS, version)
    theirs = gguf.GGUFReader(path)
    assert theirs.fields["GGUF.version"].contents() == version
    with open_reader(path) as reader:
        assert [f"GGUF.{k}" for k in ("version", "tensor_count", "kv_count")] + list(reader.fields) == list(
            theirs.fields
        )
        for key, value in reader.fields.items():
            same = theirs.fields[key].contents()
            if isinstance(value, np.ndarray):
                assert not value.flags.writeable
                assert value.tolist() == same
            elif isinstance(value, tuple):
                assert list(value) == same
            else:
                assert (type(value), value) == (type(same), same)
        assert reader.fields["a.flags"].dtype == bool
        assert reader.metadata["a.f32"] == "1e-05"
        assert reader.metadata["a.yes"] == "true"
        assert reader.metadata["general.architecture"] == "llama"
        assert "a.texts" not in reader.metadata
    assert reader.fields["a.texts"] == ("<s>", "", "é")  # after close, too


def test_version_2_differs_in_its_number_alone_and_holds_the_same(tmp_path: Path) -> None:
    tensors = {kind: (random_blocks(kind, 3, 2, 9), kind) for kind in SCHEMES}
    tensors["norm"] = np.arange(6, dtype=np.float32).reshape(2, 3), "F32"
    path, newer = (written(tmp_path / f"{version}.gguf", tensors, FIELDS, version) for version in (2, 3))
    blob = newer.read_bytes()
    assert path.read_bytes() == blob[:4] + struct.pack("<I", 2) + blob[8:]
    with pm.load(path) as m:
        for theirs in gguf.GGUFReader(path).tensors:
            values = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
            assert np.asarray(m[theirs.name]).tobytes() == values.tobytes()
        assert m.keys() == tensors.keys()


def test_a_long_vocabulary_is_skipped_and_read(tmp_path: Path) -> None:
    tokens = [f"token {i} " + "x" * (i % 50) for i in range(60000)]  # longer than the window that is looked at first
    path = written(tmp_path / "a.gguf", {"w": (np.ones((2, 2), np.float32), "F32")}, {"t": (tokens, "ARRAY")})
    for io in ("mmap", "read"):
        with open_reader(path, io=io) as reader:
            assert reader.fields["t"] == tuple(tokens)
            np.testing.assert_array_equal(reader.array("w"), np.ones((2, 2)))


def test_types_that_are_not_decoded_are_named_and_refused_when_asked_for(tmp_path: Path) -> None:
    raw = np.zeros((2, 18), np.uint8)
    path = written(tmp_path / "a.gguf", {"codebook": (raw, "IQ4_NL"), "w": (random_blocks("Q4_0", 2, 1, 0), "Q4_0")})
    with pm.load(path) as m:
        assert (m.info("codebook").dtype, m.info("codebook").shape) == ("IQ4_NL", (2, 32))
        assert m["w"].shape == (2, 32)
        assert bytes(m.raw("codebook")) == raw.tobytes()
        with pytest.raises(pm.FormatError, match="codebook: expected a type of numbers, Q4_0 to .*, got IQ4_NL"):
            m["codebook"]


@pytest.mark.parametrize("act", ["convert", "export"])
def test_a_model_with_types_that_are_not_decoded_is_not_converted(tmp_path: Path, act: str) -> None:
    raw = np.zeros((2, 18), np.uint8)
    path = written(tmp_path / "a.gguf", {"w": (random_blocks("Q4_0", 2, 1, 0), "Q4_0"), "x.weight": (raw, "IQ4_NL")})
    with pytest.raises(pm.FormatError, match="x.weight: expected a type of numbers, .*, got IQ4_NL"):
        if act == "convert":
            pm.convert(path, tmp_path / "out", "int8")
        else:
            pm.export(path, tmp_path / "out", "dense")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", SCHEMES)
def test_convert_keeps_the_codes_of_a_gguf_file(tmp_path: Path, kind: str) -> None:
    raw = random_blocks(kind, 40, 1, 8)
    path = written(tmp_path / "a.gguf", {"x.weight": (raw, kind), "norm": (np.ones(3, np.float32), "F32")})
    report = pm.convert(path, tmp_path / "a.safetensors", "int8")
    assert [tensor.scheme for tensor in report.tensors] == ["F32", SCHEMES[kind]]
    with pm.load(tmp_path / "a.safetensors") as m:
        assert m.verify().ok
        assert m["x.weight"].to_dense().tobytes() == gguf.quants.dequantize(raw, Type[kind]).tobytes()


def test_verify_says_that_gguf_has_no_checksums(tmp_path: Path) -> None:
    raw = random_blocks("Q4_0", 2, 1, 0)
    path = written(tmp_path / "a.gguf", {"w": (raw, "Q4_0"), "norm": (np.ones(3, np.float32), "F32")})
    report = pm.verify(path)
    assert (report.ok, report.tensors, report.unchecked) == (True, 0, ("norm", "w"))
    raw[0, 1] = 0x7C
    written(path, {"w": (raw, "Q4_0")})
    assert pm.verify(path).bad == ("w",)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", SCHEMES)
def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path, kind: str) -> None:
    for at in HALVES[kind]:
        raw = random_blocks(kind, 2, 1, 0)
        raw[1] = 0  # integers that an infinity times 0 makes a NaN of
        raw[1, at : at + 2] = 0x00, 0x7C
        with (
            pm.load(written(tmp_path / "a.gguf", {"w": (raw, kind)})) as m,
            pytest.raises(pm.FormatError, match="w: .*finite"),
        ):
            m["w"]


@pytest.mark.parametrize("kind", ["Q4_0", "F32"])
def test_tensors_without_rows_are_read(tmp_path: Path, kind: str) -> None:
    data = np.zeros((0, 18), np.uint8) if kind == "Q4_0" else np.zeros((0, 32), np.float32)
    with pm.load(written(tmp_path / "a.gguf", {"w": (data, kind)})) as m:
        assert m["w"].shape == (0, 32)


def test_products_are_those_of_the_same_weights_in_safetensors(tmp_path: Path) -> None:
    raw = random_blocks("Q6_K", 16, 1, 6)
    x = np.random.default_rng(7).standard_normal((3, 256)).astype(np.float32)
    with pm.load(written(tmp_path / "a.gguf", {"w": (raw, "Q6_K")})) as m:
        pm.save(tmp_path / "a.safetensors", {"w": m["w"]})
        with pm.load(tmp_path / "a.safetensors") as ours:
            assert (x @ ours["w"].T).tobytes() == (x @ m["w"].T).tobytes()
