"""Models of the transformers library, made from a config: compact in place, they compute what decoded weights do."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import pumice as pm
from pumice.torch import CompactEmbedding, CompactLinear, collect, compress_, prune_, quantize_aware_

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=None, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def decoded(model: torch.nn.Module, compact: torch.nn.Module) -> torch.nn.Module:
    """The model with the weights that the compact one stores."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, layer in compact.named_modules():
            if isinstance(layer, CompactLinear | CompactEmbedding):
                twin.get_submodule(name).weight.copy_(layer.weight)
    return twin


def test_a_language_model_runs_compact_with_its_head_tied() -> None:
    model = llama()
    compact = copy.deepcopy(model)
    report = compress_(compact, "int4-g32", activations="float32")
    assert compact.lm_head.array is compact.model.embed_tokens.array
    assert report.nbytes_after < 0.25 * report.nbytes_before  # int8 embeddings, int4 else, norms are not listed
    ids = torch.randint(0, 128, (2, 9))
    with torch.no_grad():
        exact = decoded(model, compact)(ids).logits
        torch.testing.assert_close(compact(ids).logits, exact, rtol=1e-4, atol=1e-4)


def test_generation_is_that_of_the_decoded_model() -> None:
    model = llama()
    compact = copy.deepcopy(model)
    compress_(compact, "int8", activations="float32")
    ids = torch.randint(0, 128, (1, 5))
    kwargs = {"max_new_tokens": 8, "do_sample": False}
    torch.testing.assert_close(compact.generate(ids, **kwargs), decoded(model, compact).generate(ids, **kwargs))


def test_an_encoder_runs_compact() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    model = transformers.BertModel(config).eval()
    compact = copy.deepcopy(model)
    compress_(compact, "int8")
    ids = torch.randint(0, 100, (3, 11))
    with torch.no_grad():
        exact = decoded(model, compact)(ids).last_hidden_state
        found = compact(ids).last_hidden_state
    cosine = torch.nn.functional.cosine_similarity(found.flatten(0, 1), exact.flatten(0, 1))
    assert cosine.min() > 0.9999


def gpt2() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64, eos_token_id=None, bos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def test_gpt2_whose_matrices_lie_the_other_way_runs_compact() -> None:
    model, ids = gpt2(), torch.randint(0, 128, (2, 9))
    compact = copy.deepcopy(model)
    report = compress_(compact, "int8", activations="float32")
    assert all(tensor.scheme == "int8" for tensor in report.tensors)
    name = "transformer.h.1.mlp.c_fc"
    w = model.get_submodule(name).weight.detach().numpy()
    expected = pm.compress(w, "int8", in_axis=0)
    np.testing.assert_array_equal(compact.get_submodule(name).array.to_dense(), expected.to_dense().T)
    for layer in model.modules():
        if type(layer).__name__ == "Conv1D":
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(pm.compress(layer.weight.numpy(), "int8", in_axis=0).to_dense()))
    for name in ("wte", "wpe"):
        table = model.get_submodule(f"transformer.{name}").weight
        with torch.no_grad():
            table.copy_(torch.from_numpy(pm.compress(table.numpy(), "int8").to_dense()))
    with torch.no_grad():
        torch.testing.assert_close(compact(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_gpt2_is_pruned_and_trained_along_its_inputs() -> None:
    model, ids = gpt2().train(), torch.randint(0, 128, (2, 9))
    stats = collect(model, [ids])
    name = "transformer.h.0.mlp.c_fc.weight"
    w = np.ascontiguousarray(model.get_parameter(name).detach().numpy().T)
    expected = pm.prune(w, method="sparsegpt", pattern="2:4", stats=stats[name])
    masks = prune_(model, match=r"c_\w+\.weight", method="sparsegpt", pattern="2:4", stats=stats)
    quantize_aware_(model, "2:4+int8", ignore=["wte", "wpe", "lm_head"])
    optimizer = torch.optim.AdamW(model.parameters())
    masks.hold(optimizer)
    kept = model.transformer.h[0].mlp.c_fc.parametrizations.weight.original
    np.testing.assert_array_equal(kept.detach().numpy(), expected.T)
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    assert not kept[~masks[name]].any()
    trained = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    compress_(model, "2:4+int8", ignore=["wte", "wpe", "lm_head"])
    torch.testing.assert_close(model.transformer.h[0].mlp.c_fc.weight, trained.T, rtol=0, atol=0)


def test_embeddings_that_scale_or_count_for_themselves_stay() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "max_position_embeddings": 64}
    ids = {"input_ids": torch.randint(1, 128, (2, 9))}
    opt = transformers.OPTConfig(
        hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=64, **sizes
    )
    gemma = transformers.Gemma3TextConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, eos_token_id=None, bos_token_id=0, pad_token_id=0, **sizes,
    )  # fmt: skip
    for model in (transformers.OPTForCausalLM(opt).eval(), transformers.Gemma3ForCausalLM(gemma).eval()):
        compact = copy.deepcopy(model)
        report = compress_(compact, "int8", activations="float32")
        assert any(tensor.why.endswith("whose forward is its own") for tensor in report.tensors)
        with torch.no_grad():
            exact = decoded(model, compact)(**ids).logits
            torch.testing.assert_close(compact(**ids).logits, exact, rtol=1e-4, atol=1e-4)


def test_a_model_that_reads_the_dtype_of_its_weights_compiles_whole() -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=128, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    compress_(model, "int8", activations="float32")
    ids = torch.randint(1, 128, (2, 9))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        inputs = {"input_ids": ids, "decoder_input_ids": ids, "use_cache": False}
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-4)
