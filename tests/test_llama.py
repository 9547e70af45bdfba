"""examples/llama.py: its logits are those of transformers (tests/golden/make_llama.py), whatever the weights' form; and
what it says on the terminal."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pumice as pm

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
CLOSE = {"rtol": 0, "atol": 1e-4}  # float32 sums of some 50 products of size 1, through two layers


@pytest.fixture(scope="module")
def llama() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "examples"))
    yield importlib.import_module("llama")
    sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def files(llama: Any) -> Any:
    return sys.modules["llama_files"]


class Golden:
    """A small model by transformers: weights, sizes, and the logits after each of 150 tokens."""

    def __init__(self, name: str) -> None:
        folder = GOLDEN / f"llama-{name}"
        self.weights = dict(pm.load(folder / "model.safetensors"))
        self.json = json.loads((folder / "config.json").read_text())
        expected = pm.load(folder / "expected.safetensors")
        self.ids, self.logits = expected["ids"].tolist(), expected["logits"]


@pytest.fixture(scope="module", params=["plain", "scaled"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(scope="module")
def plain() -> Golden:
    return Golden("plain")


def logits_of(llama: Any, weights: Any, config: Any, ids: list[int], **how: Any) -> Any:
    return llama.Llama(weights, config).forward(ids, llama.Cache(config, len(ids)), every=True, **how)


def test_logits_are_those_of_transformers(llama: Any, files: Any, golden: Golden) -> None:
    config = files.Config.from_json(golden.json)
    assert len(golden.ids) > 2 * llama.CHUNK  # so that tokens see the keys of chunks before theirs
    np.testing.assert_allclose(logits_of(llama, golden.weights, config, golden.ids), golden.logits, **CLOSE)


def test_the_cache_gives_token_by_token_what_a_prompt_gives_at_once(llama: Any, files: Any, golden: Golden) -> None:
    config = files.Config.from_json(golden.json)
    model, cache = llama.Llama(golden.weights, config), llama.Cache(config, 150)
    model.forward(golden.ids[:77], cache)
    rest = [model.forward([token], cache) for token in golden.ids[77:]]
    np.testing.assert_allclose(rest, golden.logits[77:], **CLOSE)
    with pytest.raises(ValueError, match="expected at most 0 more tokens, got 1"):
        model.forward([1], cache)


def as_gguf(files: Any, golden: Golden) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model as llama.cpp's converter writes it: other names, and rows in the order of neighbouring pairs."""
    names = {both[0]: both[1] for both in files.NAMES.values()}
    weights = {}
    for name, array in golden.weights.items():
        layer = next((part for part in name.split(".") if part.isdigit()), "")
        stem, _, kind = name.replace(f".{layer}.", ".{}.").rpartition(".")
        heads = {"q_proj": 4, "k_proj": 2}.get(stem.rpartition(".")[2])
        if heads:
            pairs = array.reshape(heads, 2, -1, *array.shape[1:])
            array = np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(array.shape))
        weights[f"{names[stem].format(layer)}.{kind}"] = array
    fields = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": golden.json["head_dim"],
        "llama.attention.layer_norm_rms_epsilon": golden.json["rms_norm_eps"],
        "llama.embedding_length": 32,
        "llama.context_length": 256,
        "llama.rope.freq_base": golden.json["rope_parameters"]["rope_theta"],
    }
    return weights, fields


def test_a_gguf_file_s_names_and_order_of_rows_give_the_same_logits(llama: Any, files: Any, golden: Golden) -> None:
    weights, fields = as_gguf(files, golden)
    size = golden.json["head_dim"]
    stretch = golden.json["rope_parameters"]
    slow = np.ones(size // 2)
    if stretch["rope_type"] == "llama3":  # the converter stores what the frequencies are divided by
        first = stretch["rope_theta"] ** (-np.arange(0, size, 2) / size)
        slow = (first / files.stretched(first, stretch)).astype(np.float32)
        weights["rope_freqs.weight"] = slow
    config = files.Config.from_fields(fields, True, weights)
    np.testing.assert_allclose(logits_of(llama, weights, config, golden.ids), golden.logits, **CLOSE)
    wrong = logits_of(llama, weights, replace(config, interleaved=False), golden.ids)
    assert np.abs(wrong - golden.logits).max() > 0.1


def test_a_compact_model_gives_the_logits_of_its_decoded_weights(llama: Any, files: Any, golden: Golden) -> None:
    config = files.Config.from_json(golden.json)
    mixed = {name: "int8" if "q_proj" in name else "int4-g32-min" for name, a in golden.weights.items() if a.ndim == 2}
    for schemes in (dict.fromkeys(mixed, "int8"), dict.fromkeys(mixed, "bitmask+int8"), mixed):
        compact = golden.weights | {name: pm.compress(golden.weights[name], s) for name, s in schemes.items()}
        decoded = {n: a.to_dense() if isinstance(a, pm.CompactArray) else a for n, a in compact.items()}
        model = llama.Llama(compact, config)
        assert len(model.layers[0].qkv.parts) == (3 if schemes is mixed else 1)
        with pm.options(activations="float32"):
            found = model.forward(golden.ids, llama.Cache(config, 150), every=True)
        np.testing.assert_allclose(found, logits_of(llama, decoded, config, golden.ids), **CLOSE)


def test_perplexity_is_that_of_the_golden_logits(llama: Any, files: Any, plain: Golden) -> None:
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


def test_generation_is_greedy_at_temperature_0_and_repeats_with_its_seed(llama: Any, files: Any, plain: Golden) -> None:
    config = files.Config.from_json(plain.json)
    model = llama.Llama(plain.weights, config)

    def run(count: int, size: int = 150, **how: Any) -> list[int]:
        return list(llama.generate(model, llama.Cache(config, size), plain.ids[:20], count, **how))

    first = run(5)
    assert first[0] == plain.logits[19].argmax()
    with_them = logits_of(llama, plain.weights, config, plain.ids[:20] + first)
    assert first[1:] == with_them[20:-1].argmax(axis=-1).tolist()
    assert run(8, temperature=1.0, seed=3) == run(8, temperature=1.0, seed=3) != run(8, temperature=1.0, seed=4)
    assert len(run(50, size=25)) == 6  # five fit behind the prompt, and what follows them


def test_draws_have_the_probabilities_of_the_softmax(llama: Any) -> None:
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
def test_what_is_no_llama_by_its_config_is_refused(files: Any, plain: Golden, change: Any, message: str) -> None:
    with pytest.raises(files.Unfit, match=message):
        files.Config.from_json(plain.json | change)


def test_what_is_no_llama_by_its_tensors_is_refused(files: Any, plain: Golden) -> None:
    with pytest.raises(files.Unfit, match=r"got also model\.layers\.\{\}\.self_attn\.q_norm"):
        files.names_of(plain.weights | {"model.layers.1.self_attn.q_norm.weight": np.ones(8)})
    without = {n: a for n, a in plain.weights.items() if "up_proj" not in n}
    with pytest.raises(files.Unfit, match=r"got none called model\.layers\.\{\}\.mlp\.up_proj"):
        files.names_of(without)


def test_older_configs_say_the_same(files: Any, golden: Golden) -> None:
    rope = dict(golden.json["rope_parameters"])
    older = {n: v for n, v in golden.json.items() if n != "rope_parameters"} | {"rope_theta": rope.pop("rope_theta")}
    older["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    one, other = files.Config.from_json(golden.json), files.Config.from_json(older)
    np.testing.assert_array_equal(one.frequencies, other.frequencies)
    assert replace(one, frequencies=None) == replace(other, frequencies=None)


MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "1 2"]


@pytest.fixture(scope="module")
def tokenizers() -> Any:
    return pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'pumice[test]'")


@pytest.fixture(scope="module")
def text_of(files: Any, tokenizers: Any) -> Any:
    """A tokenizer from the fields of a GGUF file, with changes."""
    return lambda **changes: files.Text.from_fields(fields(tokenizers, **changes))


def fields(tokenizers: Any, **changes: Any) -> dict[str, Any]:
    """The text fields of a GGUF file: three marks, all bytes, four merges."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*MARKS, *letters, *(merge.replace(" ", "") for merge in MERGES)]
    found = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": np.array([3] * 3 + [1] * (len(tokens) - 3)),
        "merges": MERGES,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "add_bos_token": False,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in (found | changes).items()}


def pieces(text: Any, line: str) -> list[str]:
    return [text.tokenizer.id_to_token(i) for i in text.encode(line)]


def test_text_becomes_the_tokens_that_the_merges_make(text_of: Any) -> None:
    text = text_of()
    assert pieces(text, "the the t") == ["the", "Ġthe", "Ġ", "t"]
    assert pieces(text, "12") == ["1", "2"]  # smollm: digits stand alone
    assert pieces(text_of(pre="default"), "12") == ["12"]
    assert pieces(text_of(pre="qwen2"), "12") == ["1", "2"]
    assert pieces(text_of(pre="llama-bpe"), "1212") == [
        "12",
        "1",
        "2",
    ]  # of three digits at most
    assert pieces(text_of(add_bos_token=True), "the") == ["<|im_start|>", "the"]
    assert text.ends == {2}


@pytest.mark.parametrize("pre", ["smollm", "default", "qwen2", "llama-bpe"])
def test_a_stream_gives_back_the_text_and_never_half_a_character(text_of: Any, pre: str) -> None:
    text = text_of(pre=pre)
    line = "the café\n\n  says: 水 🙂 don't 1234"
    stream = text.stream()
    given = [stream(token) for token in text.encode(line)]
    assert "".join(given) == line
    assert all("\ufffd" not in part for part in given)


def test_a_chat_is_chatml_where_the_marks_exist(files: Any, text_of: Any) -> None:
    text = text_of()
    shown = text.tokenizer.decode(text.chat("the", first=True), skip_special_tokens=False)
    assert shown == (
        f"<|im_start|>system\n{files.SYSTEM}<|im_end|>\n<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    )
    shown = text.tokenizer.decode(text.chat("t", first=False), skip_special_tokens=False)
    assert shown == "<|im_end|>\n<|im_start|>user\nt<|im_end|>\n<|im_start|>assistant\n"


def test_a_tokenizer_that_is_not_byte_level_bpe_is_refused(files: Any, text_of: Any) -> None:
    for changes in ({"model": "llama"}, {"pre": "strange"}):
        with pytest.raises(files.Unfit, match=r"expected model gpt2 with pre of gpt-2, .*--like FOLDER"):
            text_of(**changes)


@pytest.fixture
def folder(tmp_path: Path, tokenizers: Any) -> Path:
    """The golden model with a tokenizer of 96 words: w0, w1, ..."""
    path = tmp_path / "model"
    shutil.copytree(GOLDEN / "llama-plain", path)
    (path / "expected.safetensors").unlink()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(path / "tokenizer.json"))
    return path


def said(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def test_a_prompt_is_continued_by_the_likeliest_words(
    llama: Any,
    plain: Golden,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompt = said(plain.ids[:20])
    assert llama.main([str(folder), "--prompt", prompt, "--tokens", "3", "--temperature", "0"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"{prompt}w{plain.logits[19].argmax()} w")
    assert "20 tokens in " in shown.err


def test_a_text_is_scored(
    llama: Any,
    plain: Golden,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text").write_text(said(plain.ids))
    assert llama.main([str(folder), "--perplexity", str(tmp_path / "text")]) == 0
    exact = plain.logits.astype(np.float64)
    surprise = np.log(np.exp(exact).sum(axis=1))[:-1] - exact[np.arange(149), plain.ids[1:]]
    assert capsys.readouterr().out == f"perplexity {np.exp(surprise.mean()):.3f} of 149 tokens in windows of 256\n"


def test_a_chat_goes_on_from_its_cache(
    llama: Any,
    plain: Golden,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = iter([said(plain.ids[:10]), said(plain.ids[10:15])])

    def answer(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    options = [str(folder), "--tokens", "2", "--temperature", "0"]
    assert llama.main(options) == 0
    first, second = capsys.readouterr().out.strip().splitlines()
    said_first = [int(word[1:]) for word in first.split()]
    weights, config, _ = llama.open_checkpoint(folder)
    both = plain.ids[:10] + said_first + plain.ids[10:15]
    model = llama.Llama(weights, config)
    again = list(llama.generate(model, llama.Cache(config, 64), both, 2))
    assert second == said(again)


def test_a_folder_converted_from_gguf_takes_sizes_and_text_from_elsewhere(
    llama: Any,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = tmp_path / "small.safetensors"
    pm.convert(folder / "model.safetensors", small, "int8")
    assert llama.main([str(small), "--prompt", "w1"]) == 1
    assert "--like PATH says where one is" in capsys.readouterr().err
    assert llama.main([str(small), "--like", str(folder), "--prompt", "w1", "--tokens", "4", "--seed", "1"]) == 0
    assert len(capsys.readouterr().out.split()) >= 4


def test_a_converted_folder_runs_by_itself(
    llama: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pm.convert(folder, tmp_path / "int8", "int8")
    assert pm.load(tmp_path / "int8")["model.layers.0.mlp.up_proj.weight"].scheme == "int8"
    assert llama.main([str(tmp_path / "int8"), "--prompt", "w1", "--tokens", "4", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("w1w")


def test_what_cannot_be_run_is_one_line(llama: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def complaint(*options: str) -> str:
        assert llama.main(list(options)) == 1
        return capsys.readouterr().err

    assert complaint(str(folder), "--prompt", "") == "llama: prompt: expected 1 to 256 tokens (--context), got 0\n"
    assert complaint(str(folder), "--prompt", said([1] * 9), "--context", "8").endswith("got 9\n")
    (folder / "short").write_text("w1")
    assert complaint(str(folder), "--perplexity", str(folder / "short")).endswith(
        "expected at least two tokens, got 1\n"
    )
    assert complaint(str(folder / "nothing")).startswith("llama: path: expected an existing file or folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert complaint(str(folder)).startswith("llama: config.json: expected a model_type of llama")
    del config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    assert complaint(str(folder)).endswith("expected the entry 'num_hidden_layers', got none\n")


def test_an_interrupted_answer_leaves_the_cache_as_it_was(llama: Any, files: Any, plain: Golden) -> None:
    config = files.Config.from_json(plain.json)
    model, cache = llama.Llama(plain.weights, config), llama.Cache(config, 150)
    model.forward(plain.ids[:10], cache)
    down, model.layers[1].down.parts[0] = model.layers[1].down.parts[0], (None, None)
    with pytest.raises(TypeError):  # as a KeyboardInterrupt would
        model.forward(plain.ids[10:20], cache)
    model.layers[1].down.parts[0] = down
    np.testing.assert_allclose(model.forward(plain.ids[10:20], cache), plain.logits[19], **CLOSE)
