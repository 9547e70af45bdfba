"""examples/llama.py on the terminal: text to tokens and back, completion, chat, perplexity, GGUF files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import pumice as pm
from tests.llamas import GOLDEN, Golden, as_gguf, files, llama


@pytest.fixture(scope="module")
def plain() -> Golden:
    return Golden("plain")


MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "1 2"]


@pytest.fixture(scope="module")
def tokenizers() -> Any:
    return pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'pumice[test]'")


@pytest.fixture(scope="module")
def text_of(tokenizers: Any) -> Any:
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


def test_a_chat_is_chatml_where_the_marks_exist(text_of: Any) -> None:
    text = text_of()
    shown = text.tokenizer.decode(text.chat("the", first=True), skip_special_tokens=False)
    assert shown == (
        f"<|im_start|>system\n{files.SYSTEM}<|im_end|>\n<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    )
    shown = text.tokenizer.decode(text.chat("t", first=False), skip_special_tokens=False)
    assert shown == "<|im_end|>\n<|im_start|>user\nt<|im_end|>\n<|im_start|>assistant\n"


def test_a_tokenizer_that_is_not_byte_level_bpe_is_refused(text_of: Any) -> None:
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


def test_a_converted_folder_runs_by_itself(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pm.convert(folder, tmp_path / "int8", "int8")
    assert pm.load(tmp_path / "int8")["model.layers.0.mlp.up_proj.weight"].scheme == "int8"
    assert llama.main([str(tmp_path / "int8"), "--prompt", "w1", "--tokens", "4", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("w1w")


def test_what_cannot_be_run_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_gguf_file_brings_its_sizes_and_its_tokenizer(
    tokenizers: Any, plain: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, told = as_gguf(plain)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:92]  # of them "a" to "z"
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, value in told.items():
        if isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*MARKS, *letters, "ab"])
    writer.add_token_types([3] * 3 + [1] * 93)
    writer.add_token_merges(["a b"])
    for name, array in weights.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened, config, text = files.open_checkpoint(tmp_path / "m.gguf")
    found = llama.Llama(opened, config).forward(plain.ids, llama.Cache(config, 150), every=True)
    np.testing.assert_allclose(found, plain.logits, rtol=0, atol=1e-4)
    assert pieces(text, "abc") == ["ab", "c"]
    assert llama.main([str(tmp_path / "m.gguf"), "--prompt", "sea", "--tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("sea")
