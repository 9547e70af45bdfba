"""examples/llama.py: its logits are those of transformers, whatever the form of the weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pumice as pm
from tests.llamas import Golden, as_gguf, files, llama

CLOSE = {"rtol": 0, "atol": 1e-4}  # float32 sums of some 50 products of size 1, through two layers


@pytest.fixture(scope="module", params=["plain", "scaled"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(scope="module")
def plain() -> Golden:
    return Golden("plain")


def logits_of(weights: Any, config: Any, ids: list[int], **how: Any) -> Any:
    return llama.Llama(weights, config).forward(ids, llama.Cache(config, len(ids)), every=True, **how)


def test_logits_are_those_of_transformers(golden: Golden) -> None:
    config = files.Config.from_json(golden.json)
    assert len(golden.ids) > 2 * llama.CHUNK  # so that tokens see the keys of chunks before theirs
    np.testing.assert_allclose(logits_of(golden.weights, config, golden.ids), golden.logits, **CLOSE)


def test_the_cache_gives_token_by_token_what_a_prompt_gives_at_once(golden: Golden) -> None:
    config = files.Config.from_json(golden.json)
    model, cache = llama.Llama(golden.weights, config), llama.Cache(config, 150)
    model.forward(golden.ids[:77], cache)
    rest = [model.forward([token], cache) for token in golden.ids[77:]]
    np.testing.assert_allclose(rest, golden.logits[77:], **CLOSE)
    with pytest.raises(ValueError, match="expected at most 0 more tokens, got 1"):
        model.forward([1], cache)


def test_a_gguf_file_s_names_and_order_of_rows_give_the_same_logits(golden: Golden) -> None:
    weights, fields = as_gguf(golden)
    size = golden.json["head_dim"]
    stretch = golden.json["rope_parameters"]
    slow = np.ones(size // 2)
    if stretch["rope_type"] == "llama3":  # the converter stores what the frequencies are divided by
        first = stretch["rope_theta"] ** (-np.arange(0, size, 2) / size)
        slow = (first / files.stretched(first, stretch)).astype(np.float32)
        weights["rope_freqs.weight"] = slow
    config = files.Config.from_fields(fields, True, weights)
    np.testing.assert_allclose(logits_of(weights, config, golden.ids), golden.logits, **CLOSE)
    wrong = logits_of(weights, replace(config, interleaved=False), golden.ids)
    assert np.abs(wrong - golden.logits).max() > 0.1


def test_a_compact_model_gives_the_logits_of_its_decoded_weights(golden: Golden) -> None:
    config = files.Config.from_json(golden.json)
    mixed = {name: "int8" if "q_proj" in name else "int4-g32-min" for name, a in golden.weights.items() if a.ndim == 2}
    for schemes in (dict.fromkeys(mixed, "int8"), dict.fromkeys(mixed, "bitmask+int8"), mixed):
        compact = golden.weights | {name: pm.compress(golden.weights[name], s) for name, s in schemes.items()}
        decoded = {n: a.to_dense() if isinstance(a, pm.CompactArray) else a for n, a in compact.items()}
        model = llama.Llama(compact, config)
        assert len(model.layers[0].qkv.parts) == (3 if schemes is mixed else 1)
        with pm.options(activations="float32"):
            found = model.forward(golden.ids, llama.Cache(config, 150), every=True)
        np.testing.assert_allclose(found, logits_of(decoded, config, golden.ids), **CLOSE)


def test_perplexity_is_that_of_the_golden_logits(plain: Golden) -> None:
    model = llama.Llama(plain.weights, files.Config.from_json(plain.json))
    exact = plain.logits.astype(np.float64)
    surprise = np.log(np.exp(exact).sum(axis=1))[:-1] - exact[np.arange(149), plain.ids[1:]]
    value, scored = llama.perplexity(model, plain.ids, window=150)
    assert scored == 149
    assert value == pytest.approx(np.exp(surprise.mean()), rel=1e-5)
    # The first window of several sees what it saw; the others begin afresh, and a last single token is not scored.
    first, scored = llama.perplexity(model, plain.ids[:101], window=100)
    assert scored == 99
    assert first == pytest.approx(np.exp(surprise[:99].mean()), rel=1e-5)


def test_generation_is_greedy_at_temperature_0_and_repeats_with_its_seed(plain: Golden) -> None:
    config = files.Config.from_json(plain.json)
    model = llama.Llama(plain.weights, config)

    def run(count: int, size: int = 150, **how: Any) -> list[int]:
        return list(llama.generate(model, llama.Cache(config, size), plain.ids[:20], count, **how))

    first = run(5)
    assert first[0] == plain.logits[19].argmax()
    with_them = logits_of(plain.weights, config, plain.ids[:20] + first)
    assert first[1:] == with_them[20:-1].argmax(axis=-1).tolist()
    assert run(8, temperature=1.0, seed=3) == run(8, temperature=1.0, seed=3) != run(8, temperature=1.0, seed=4)
    assert len(run(50, size=25)) == 6  # five fit behind the prompt, and what follows them


def test_draws_have_the_probabilities_of_the_softmax() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    rng = np.random.default_rng(0)
    for temperature in (1.0, 0.5):
        p = np.exp(logits / temperature)
        p /= p.sum()
        counts = np.bincount([llama.draw(logits, temperature, rng) for _ in range(4000)], minlength=3)
        assert (np.abs(counts / 4000 - p) < 5 * np.sqrt(p * (1 - p) / 4000)).all()
    assert llama.draw(logits, 0, rng) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "expected a model_type of llama, mistral, qwen2 with silu, got gpt2"),
        ({"hidden_act": "gelu"}, "with silu"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "expected default, linear or llama3, got yarn"),
    ],
)
def test_what_is_no_llama_by_its_config_is_refused(plain: Golden, change: Any, message: str) -> None:
    with pytest.raises(files.Unfit, match=message):
        files.Config.from_json(plain.json | change)


def test_what_is_no_llama_by_its_tensors_is_refused(plain: Golden) -> None:
    with pytest.raises(files.Unfit, match=r"got also model\.layers\.\{\}\.self_attn\.q_norm"):
        files.names_of(plain.weights | {"model.layers.1.self_attn.q_norm.weight": np.ones(8)})
    without = {n: a for n, a in plain.weights.items() if "up_proj" not in n}
    with pytest.raises(files.Unfit, match=r"got none called model\.layers\.\{\}\.mlp\.up_proj"):
        files.names_of(without)


def test_older_configs_say_the_same(golden: Golden) -> None:
    rope = dict(golden.json["rope_parameters"])
    older = {n: v for n, v in golden.json.items() if n != "rope_parameters"} | {"rope_theta": rope.pop("rope_theta")}
    older["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    one, other = files.Config.from_json(golden.json), files.Config.from_json(older)
    np.testing.assert_array_equal(one.frequencies, other.frequencies)
    assert replace(one, frequencies=None) == replace(other, frequencies=None)


def test_an_interrupted_answer_leaves_the_cache_as_it_was(plain: Golden) -> None:
    config = files.Config.from_json(plain.json)
    model, cache = llama.Llama(plain.weights, config), llama.Cache(config, 150)
    model.forward(plain.ids[:10], cache)
    down, model.layers[1].down.parts[0] = model.layers[1].down.parts[0], (None, None)
    with pytest.raises(TypeError):  # as a KeyboardInterrupt would
        model.forward(plain.ids[10:20], cache)
    model.layers[1].down.parts[0] = down
    np.testing.assert_allclose(model.forward(plain.ids[10:20], cache), plain.logits[19], **CLOSE)
