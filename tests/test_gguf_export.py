"""Export to GGUF: the gguf package reads the values of our arrays to the bit, or nothing is written and it says why."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import pumice as pm
from pumice.checkpoint import open_reader
from pumice.cli import main
from pumice.report import TensorReport

RNG = np.random.default_rng(12)
COLS = 128


def export_gguf(source: Path, target: Path, model: Path, **options: Any) -> tuple[TensorReport, ...]:
    return pm.export(source, target, "gguf", template=model, **options).tensors


def weights(rows: int = 16, cols: int = COLS) -> np.ndarray:
    return RNG.standard_normal((rows, cols)).astype(np.float32)


def template(path: Path, tensors: dict[str, np.ndarray], *, heads: int = 4, heads_kv: int = 2, **options: Any) -> Path:
    """A model by the gguf package."""
    writer = gguf.GGUFWriter(path, options.pop("arch", "llama"), **options)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads_kv)
    writer.add_token_list(["<s>", "é", "b"])
    writer.add_float32("some.number", 1e-5)
    writer.add_custom_alignment(64)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def values_of(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Name -> type and values, by the gguf package."""
    return {
        t.name: (t.tensor_type.name, np.asarray(gguf.quants.dequantize(t.data, t.tensor_type), np.float32))
        for t in gguf.GGUFReader(path).tensors
    }


def exported(folder: Path, array: Any, **options: Any) -> tuple[str, np.ndarray]:
    """Type and values of one array that went through a file."""
    pm.save(folder / "s.safetensors", {"w": array})
    template(folder / "t.gguf", {"w": np.zeros(array.shape, np.float32)})
    export_gguf(folder / "s.safetensors", folder / "o.gguf", folder / "t.gguf", overwrite=True, **options)
    return values_of(folder / "o.gguf")["w"]


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("int4-g32", "Q4_0"), ("int4-g64", "Q4_0"), ("int3-g32", "Q4_0"), ("int2-g128", "Q4_0"), ("int4-g512", "Q4_0"),
        ("int5-g32", "Q5_0"), ("int6-g64", "Q8_0"), ("int8-g32", "Q8_0"), ("int4-g32-asym", "Q5_0"),
        ("int2-g32-asym", "Q4_0"), ("int4-g32-min", "Q4_1"), ("int3-g64-min", "Q4_1"), ("int5-g32-min", "Q5_1"),
        ("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cols", [128, 160])
def test_the_gguf_package_reads_our_values_to_the_bit(tmp_path: Path, scheme: str, kind: str, cols: int) -> None:
    w = pm.compress(weights(cols=cols), scheme)
    found, values = exported(tmp_path, w)
    assert found == kind
    assert values.tobytes() == w.to_dense().tobytes()


def test_zeros_become_minima_where_float16_holds_them(tmp_path: Path) -> None:
    codes, zeros = RNG.integers(0, 16, (8, 64)), RNG.integers(0, 16, (8, 2))
    w = pm.DenseArray.from_codes(codes, np.exp2(RNG.integers(-6, 3, (8, 2))).astype(np.float16), zeros, bits=4)
    kind, values = exported(tmp_path, w)
    assert kind == "Q4_1"
    np.testing.assert_array_equal(values, w.to_dense())


@pytest.mark.parametrize("low", [0, 100])
def test_int8_with_zeros_is_exported_where_its_codes_fit(tmp_path: Path, low: int) -> None:
    codes, zeros = RNG.integers(low, 200, (4, 32)), np.full((4, 1), 128)
    w = pm.DenseArray.from_codes(codes, np.ones((4, 1), np.float16), zeros, bits=8, group=32)
    assert exported(tmp_path, w)[1].tobytes() == w.to_dense().tobytes()
    far = pm.DenseArray.from_codes(codes, np.ones((4, 1), np.float16), zeros - 1, bits=8, group=32)
    with pytest.raises(pm.PumiceError, match="w: expected zeros for which Q8_0 holds code - zero, got 127 to 128"):
        exported(tmp_path, far)


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4-asym", "int4-min"])
def test_float32_scales_are_rounded_on_request_only(tmp_path: Path, scheme: str) -> None:
    w = pm.compress(weights(), scheme)
    with pytest.raises(pm.PumiceError, match=r"w: scale: expected float16 numbers, got .* in row 0 .*allow_rounding"):
        exported(tmp_path, w)
    assert not (tmp_path / "o.gguf").exists()
    _, values = exported(tmp_path, w, allow_rounding=True)
    parts, exact = w.parts(), w.to_dense()
    size = parts["scale"] * w.codes() + abs(parts["min"]) if "min" in parts else abs(exact)  # each term errs by 2^-12
    assert (abs(values - exact) <= 2**-11 * size).all()
    report = export_gguf(
        tmp_path / "s.safetensors", tmp_path / "o.gguf", tmp_path / "t.gguf", allow_rounding=True, overwrite=True
    )
    noise = np.linalg.norm(values.astype(float) - exact) / np.linalg.norm(exact.astype(float))
    assert noise > 0
    assert report[0].error == pytest.approx(noise)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (lambda: pm.compress(weights(), "int4-g16"), "w: expected groups in multiples of 32, got int4-g16"),
        (
            lambda: pm.compress(weights(cols=48), "int4-g32"),
            r"w: expected columns in multiples of 32, got shape \(16, 48",
        ),
        (lambda: pm.compress(weights(), "csr+int8"), r"w: expected dense integers, such as int4-g32, got csr\+int8"),
        (
            lambda: pm.compress(weights(), "int4-g32&csr"),
            "w: expected dense integers, such as int4-g32, got int4-g32&csr",
        ),
        (lambda: pm.compress(weights(), "int8-g32").T, "w: expected dense integers"),
        (
            lambda: pm.compress(weights(), "int6-g32-min"),
            "w: expected codes of at most 5 bits beside minima, got int6-g32-min",
        ),
        (lambda: np.zeros((4, 32), np.int64), "w: expected dense integers, F32, F16, BF16, got I64"),
        (
            lambda: pm.DenseArray.from_codes(np.zeros((2, 32), int), np.full((2, 1), 7e4, np.float32), bits=4),
            "w: scale: expected float16 numbers, got 70000.0 in row 0",
        ),
    ],
)
def test_what_ggml_has_no_type_for_is_refused(tmp_path: Path, array: Callable[[], Any], message: str) -> None:
    for options in ({"allow_rounding": True}, {}):
        with pytest.raises(pm.PumiceError, match=message):
            exported(tmp_path, array(), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.safetensors", "t.gguf"]


# The template.


def test_keys_stay_byte_for_byte_but_for_the_types(tmp_path: Path) -> None:
    big, small = weights(), weights(4, 32)
    template(tmp_path / "t.gguf", {"big": big, "norm": np.ones(32, np.float32), "small": small})
    pm.save(tmp_path / "s.safetensors", {"big": pm.compress(big, "int8-g32")})
    report = export_gguf(tmp_path / "s.safetensors", tmp_path / "o.gguf", tmp_path / "t.gguf")
    assert [(r.name, r.scheme, r.why) for r in report] == [
        ("big", "Q8_0", ""), ("norm", "F32", "the template's"), ("small", "F32", "the template's"),
    ]  # fmt: skip
    before, after = gguf.GGUFReader(tmp_path / "t.gguf"), gguf.GGUFReader(tmp_path / "o.gguf")
    assert after.alignment == 64
    assert all(t.data_offset % 64 == 0 for t in after.tensors)
    new = {key: field.contents() for key, field in after.fields.items() if not key.startswith("GGUF.")}
    old = {key: field.contents() for key, field in before.fields.items() if not key.startswith("GGUF.")}
    assert new == old | {"general.file_type": gguf.LlamaFileType.MOSTLY_Q8_0, "general.quantization_version": 2}
    with open_reader(tmp_path / "t.gguf") as mine, open_reader(tmp_path / "o.gguf") as theirs:
        for key in old.keys() - {"general.file_type"}:
            assert mine.fields.raw(key) == theirs.fields.raw(key)
    assert values_of(tmp_path / "o.gguf")["small"][1].tobytes() == small.tobytes()


def test_the_same_weights_make_the_same_bytes(tmp_path: Path) -> None:
    template(tmp_path / "t.gguf", {"w": weights()})
    pm.save(tmp_path / "s.safetensors", {"w": pm.compress(weights(), "int4-g32")})
    blobs = []
    for name, io in (("a.gguf", "mmap"), ("b.gguf", "read")):
        export_gguf(tmp_path / "s.safetensors", tmp_path / name, tmp_path / "t.gguf", io=io)
        blobs.append((tmp_path / name).read_bytes())
    assert blobs[0] == blobs[1]


def test_a_split_template_makes_one_file(tmp_path: Path) -> None:
    tensors = {f"w{i}": weights() for i in range(5)}
    template(tmp_path / "t.gguf", tensors, split_max_tensors=2)
    pm.save(tmp_path / "s.safetensors", {n: pm.compress(w, "int8-g32") for n, w in tensors.items()})
    export_gguf(tmp_path / "s.safetensors", tmp_path / "out" / "o.gguf", tmp_path / "t-00001-of-00003.gguf")
    with open_reader(tmp_path / "out" / "o.gguf") as reader:
        assert list(reader.names()) == list(tensors)
        assert not [key for key in reader.fields if key.startswith("split.")]


def test_a_template_of_version_2_makes_the_same_file(tmp_path: Path) -> None:
    newer = template(tmp_path / "3.gguf", {"w": weights(), "norm": np.ones(8, np.float32)})
    older, blob = tmp_path / "2.gguf", newer.read_bytes()
    older.write_bytes(blob[:4] + struct.pack("<I", 2) + blob[8:])
    pm.save(tmp_path / "s.safetensors", {"w": pm.compress(weights(), "int8-g32")})
    for model in (older, newer):
        export_gguf(tmp_path / "s.safetensors", tmp_path / f"from-{model.name}", model)
    assert (tmp_path / "from-2.gguf").read_bytes() == (tmp_path / "from-3.gguf").read_bytes()


def test_plain_vectors_become_float32(tmp_path: Path) -> None:
    norm = RNG.standard_normal(8).astype(np.float16)
    template(tmp_path / "t.gguf", {"norm": np.zeros(8, np.float32), "scalar": np.zeros((1,), np.float32)})
    pm.save(tmp_path / "s.safetensors", {"norm": norm, "scalar": np.ones(1, np.float32)})
    export_gguf(tmp_path / "s.safetensors", tmp_path / "o.gguf", tmp_path / "t.gguf")
    kind, values = values_of(tmp_path / "o.gguf")["norm"]
    assert (kind, values.tolist()) == ("F32", norm.tolist())


HF_NAMES = [
    "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
    *(f"model.layers.1.{inner}.weight" for inner in (
        "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
        "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    )),
]  # fmt: skip


def permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's convert_hf_to_gguf.py orders the rows of queries and keys."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


@pytest.mark.parametrize("scheme", [None, "int8-g32"])
def test_llama_under_its_hugging_face_names_lands_where_llama_cpp_has_it(tmp_path: Path, scheme: str | None) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    exact = {name: weights() if "norm" not in name else weights()[0] for name in HF_NAMES}
    state = {n: w if scheme is None or w.ndim == 1 else pm.compress(w, scheme) for n, w in exact.items()}
    pm.save(tmp_path / "s.safetensors", state | {"model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(4)})
    theirs = {names.get_name(n, (".weight",)): n for n in HF_NAMES}
    assert None not in theirs
    heads = {"attn_q": 4, "attn_k": 2}
    orders = {n: next((heads[part] for part in heads if part in n), None) for n in theirs}
    model = {n: exact[hf] if orders[n] is None else permuted(exact[hf], orders[n]) for n, hf in theirs.items()}
    template(tmp_path / "t.gguf", {n: w + 0.01 for n, w in model.items()})
    report = export_gguf(tmp_path / "s.safetensors", tmp_path / "o.gguf", tmp_path / "t.gguf", check=True)
    why = {r.name: r.why.removesuffix(" from the template's").split(" of the source, ") for r in report}
    assert {name: hf for name, (hf, _) in why.items()} == theirs
    assert all(0 < float(far) < 0.1 for _, far in why.values())
    for name, (_, values) in values_of(tmp_path / "o.gguf").items():
        dense = state[theirs[name]]
        dense = dense if isinstance(dense, np.ndarray) else dense.to_dense()
        assert values.tobytes() == (dense if orders[name] is None else permuted(dense, orders[name])).tobytes()


def test_biases_of_queries_are_ordered_like_their_rows(tmp_path: Path) -> None:
    bias = np.arange(16, dtype=np.float32)
    template(tmp_path / "t.gguf", {"blk.0.attn_q.bias": bias})
    pm.save(tmp_path / "s.safetensors", {"model.layers.0.self_attn.q_proj.bias": bias})
    export_gguf(tmp_path / "s.safetensors", tmp_path / "o.gguf", tmp_path / "t.gguf")
    assert values_of(tmp_path / "o.gguf")["blk.0.attn_q.bias"][1].tolist() == permuted(bias, 4).tolist()


def test_check_refuses_rows_in_another_order_and_leaves_nothing(tmp_path: Path) -> None:
    w = weights()
    template(tmp_path / "t.gguf", {"w": w})
    pm.save(tmp_path / "s.safetensors", {"w": pm.compress(w[::-1], "int4-g32")})
    export_gguf(tmp_path / "s.safetensors", tmp_path / "o.gguf", tmp_path / "t.gguf")
    before = (tmp_path / "o.gguf").read_bytes()
    with pytest.raises(pm.PumiceError, match="w: expected weights like the template's 'w', got some that are 1.4"):
        export_gguf(tmp_path / "s.safetensors", tmp_path / "o.gguf", tmp_path / "t.gguf", check=True, overwrite=True)
    assert (tmp_path / "o.gguf").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.gguf", "s.safetensors", "t.gguf"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"x": np.ones(3)}, "source: expected names of the template, or of Hugging Face's LLaMA for it, got x"),
        ({f"x{i}": np.ones(3) for i in range(7)}, "got x0, x1, x2, x3, x4 and 2 more"),
        ({"model.norm.weight": np.ones(3)}, "source: expected names of the template.* got model.norm.weight"),
        ({"w": np.ones((2, 3))}, r"w: expected shape \(16, 128\) as in the template, got \(2, 3\)"),
        ({"token_embd.weight": weights(), "model.embed_tokens.weight": weights()}, "source: expected one weight for"),
        (
            {"model.layers.0.self_attn.q_proj.weight": np.ones((9, 2))},
            "template: expected a number of heads that divides 9",
        ),
        ({}, "source: expected weights of the template, got none"),
    ],
)
def test_sources_that_do_not_fit_the_template_are_refused(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    template(tmp_path / "t.gguf", {"w": weights(), "token_embd.weight": weights()})
    pm.save(tmp_path / "s.safetensors", state)
    with pytest.raises(ValueError, match=message):
        export_gguf(tmp_path / "s.safetensors", tmp_path / "o.gguf", tmp_path / "t.gguf")


def test_hugging_face_names_are_for_llama_alone(tmp_path: Path) -> None:
    template(tmp_path / "t.gguf", {"output_norm.weight": np.ones(32, np.float32)}, arch="gemma")
    pm.save(tmp_path / "s.safetensors", {"model.norm.weight": np.ones(32, np.float32)})
    with pytest.raises(pm.PumiceError, match="expected names of the template"):
        export_gguf(tmp_path / "s.safetensors", tmp_path / "o.gguf", tmp_path / "t.gguf")


def test_paths_that_would_lose_something_are_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "s.safetensors", tmp_path / "o.gguf"
    model = template(tmp_path / "t.gguf", {"w": weights()})
    pm.save(source, {"w": pm.compress(weights(), "int4-g32")})
    with pytest.raises(ValueError, match="target: expected another file than the template"):
        export_gguf(source, model, model, overwrite=True)
    with pytest.raises(ValueError, match="target: expected another path than the source"):
        export_gguf(model, model, model, overwrite=True)
    with pytest.raises(ValueError, match="template: expected a GGUF file, got safetensors"):
        export_gguf(source, out, source)
    with pytest.raises(ValueError, match="target: expected a file that ends in .gguf, got"):
        export_gguf(source, tmp_path / "folder", model)
    out.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="target: expected a new path .*--overwrite.*, got a file at"):
        export_gguf(source, out, model)
    assert out.read_bytes() == b"mine"


def test_options_are_for_the_formats_that_have_them(tmp_path: Path) -> None:
    model = template(tmp_path / "t.gguf", {"w": weights()})
    pm.save(tmp_path / "s.safetensors", {"w": weights()})
    with pytest.raises(ValueError, match="template: expected a GGUF file of the same model, got None"):
        pm.export(tmp_path / "s.safetensors", tmp_path / "o.gguf", "gguf")
    with pytest.raises(ValueError, match="dtype: expected 'float32' for gguf"):
        pm.export(tmp_path / "s.safetensors", tmp_path / "o.gguf", "gguf", template=model, dtype="float16")
    with pytest.raises(ValueError, match="template, allow_rounding, check: expected none of them for npz"):
        pm.export(tmp_path / "s.safetensors", tmp_path / "o.npz", "npz", template=model)


def test_the_command_line_exports_and_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = template(tmp_path / "t.gguf", {"w": weights(), "norm": np.ones(3, np.float32)})
    pm.save(tmp_path / "s.safetensors", {"w": pm.compress(weights(), "int8")})
    command = ["export", "gguf", str(tmp_path / "s.safetensors"), str(tmp_path / "o.gguf"), "--template", str(model)]
    assert main(command) == 1
    assert "w: scale: expected float16 numbers" in capsys.readouterr().err
    assert main([*command, "--allow-rounding"]) == 0
    out, err = capsys.readouterr()
    assert "Q8_0" in out
    assert "norm: the template's" in err
    assert main([*command, "--allow-rounding"]) == 2
    assert main([*command, "--allow-rounding", "--overwrite", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [t["scheme"] for t in table["tensors"]] == ["Q8_0", "F32"]
    assert 0 < table["tensors"][0]["error"] < 2**-11
    with pytest.raises(SystemExit):
        main(command[:4])


def test_a_gguf_file_is_a_source_too(tmp_path: Path) -> None:
    """int8 codes go from one file of llama.cpp to another, and to safetensors and back."""
    model = template(tmp_path / "t.gguf", {"w": weights(), "norm": np.ones(3, np.float32)})
    pm.save(tmp_path / "s.safetensors", {"w": pm.compress(weights(), "int8-g32")})
    export_gguf(tmp_path / "s.safetensors", tmp_path / "a.gguf", model)
    export_gguf(tmp_path / "a.gguf", tmp_path / "b.gguf", model)
    pm.convert(tmp_path / "a.gguf", tmp_path / "c.safetensors", "int4-g32")
    export_gguf(tmp_path / "c.safetensors", tmp_path / "c.gguf", tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()


@pytest.mark.parametrize("check", [False, True])
def test_memory_stays_near_a_chunk(tmp_path: Path, check: bool) -> None:
    w = pm.compress(RNG.standard_normal((512, 1024), np.float32), "int4-g128")
    pm.save(tmp_path / "s.safetensors", {"w": pm.concatenate([w] * 32)})  # 67 MB as float32
    template(tmp_path / "t.gguf", {"w": np.tile(w.to_dense().astype(np.float16), (32, 1))})
    script = f"""
import resource, sys
import pumice as pm
folder = sys.argv[1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pm.export(folder + "/s.safetensors", folder + "/o.gguf", "gguf", template=folder + "/t.gguf", check={check})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (tmp_path / "o.gguf").stat().st_size > 9_000_000
    mapped = (9 + 34 * check) << 10  # KiB: the source, and the template where it is read
    assert int(done.stdout) < mapped + (40 << 10)
