"""Models of the transformers library, made from a config: compact in place, they compute what decoded weights do."""

from __future__ import annotations

import copy

import pytest
import torch

from pumice.torch import CompactEmbedding, CompactLinear, compress_

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
