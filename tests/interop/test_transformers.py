"""A LLaMA converted by pumice, loaded by transformers with compressed-tensors and run: our numbers are theirs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

import pumice as pm

SHAPE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
IDS = torch.arange(12)[None] * 7 % 96


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
    return folder


def run(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits  # type: ignore[no-any-return]


def load(folder: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers and torch warn of themselves
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)


def decoded(folder: Path) -> Any:
    """The model with the weights as pumice decodes them."""
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    weights = {n: w.to_dense() if isinstance(w, pm.CompactArray) else w for n, w in pm.load(folder).items()}
    model.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in weights.items()})
    return model


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g128", "int8", "int3-g32", "int5-g32", "int6-g64"])
def test_a_converted_model_runs_in_transformers_with_our_weights(scheme: str, source: Path, tmp_path: Path) -> None:
    pm.convert(source, tmp_path / "small", scheme, keep_embeddings=True)
    model = load(tmp_path / "small")
    logits = run(model)
    assert torch.equal(logits, run(decoded(tmp_path / "small")))
    compact = pm.load(tmp_path / "small")
    for name in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.k_proj"):
        linear = model.get_submodule(name)
        w = compact[name + ".weight"]
        assert w.scheme == scheme
        assert np.array_equal(linear.weight.detach().numpy(), w.to_dense())
        x = np.random.default_rng(1).standard_normal((5, w.shape[1])).astype(np.float32)
        theirs = linear(torch.from_numpy(x)).detach().numpy()
        ours = pm.linear(x, w, activations="float32")
        # Both sum in float32 in an order of their own: docs/formats.md, "bounded", for each.
        bound = 2 * (w.shape[1] + 3) * 2.0**-24 * (np.abs(x) @ np.abs(w.to_dense()).T)
        assert (np.abs(ours - theirs) <= bound).all()


@pytest.mark.parametrize("scheme", ["int4-g32", "int8"])
def test_an_export_runs_where_the_conversion_mixes_schemes(scheme: str, source: Path, tmp_path: Path) -> None:
    pm.convert(source, tmp_path / "small", scheme)
    report = pm.export(tmp_path / "small", tmp_path / "ct", "ct")
    why = {tensor.name: tensor.why for tensor in report.tensors}
    assert why["model.embed_tokens.weight"].startswith("decoded: an embedding")
    assert "lm_head.weight_packed" in load_file(tmp_path / "ct" / "model.safetensors")
    assert torch.equal(run(load(tmp_path / "ct")), run(decoded(tmp_path / "small")))


@pytest.mark.parametrize("scheme", ["int4-g32-asym", "int8-asym"])
def test_asymmetric_weights_load_with_dequantize(scheme: str, source: Path, tmp_path: Path) -> None:
    """Without it compressed-tensors 0.20 does not load asymmetric weights in transformers, its own included: it makes
    room for zero points that are not packed."""
    pm.convert(source, tmp_path / "small", scheme, keep_embeddings=True)
    model = load(tmp_path / "small", quantization_config=CompressedTensorsConfig(dequantize=True))
    want = run(decoded(tmp_path / "small"))
    # It multiplies in the dtype of the scales: float16 rounds each weight by 2^-11.
    assert (run(model) - want).abs().max() <= (0 if scheme == "int8-asym" else 2.0**-10) * want.abs().max()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_dense_export_is_a_model_again(dtype: str, source: Path, tmp_path: Path) -> None:
    pm.convert(source, tmp_path / "small", "int4-g32")
    pm.export(tmp_path / "small", tmp_path / "dense", "dense", dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert model.dtype == getattr(torch, dtype)
    want = decoded(tmp_path / "small").to(getattr(torch, dtype)).state_dict()
    for name, w in model.state_dict().items():
        assert torch.equal(w, want[name]), name
