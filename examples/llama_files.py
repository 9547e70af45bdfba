"""What a LLaMA's checkpoint says beside its weights: sizes, names, text to tokens and back.

Hugging Face's folders say it in config.json and tokenizer.json, GGUF files in their fields. Text needs the package
`tokenizers` (``pip install pumice[examples]``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pumice as pm

# The paper's names: Hugging Face's, GGUF's. {} is the layer.
NAMES = {
    "embedding": ("model.embed_tokens", "token_embd"),
    "norm": ("model.norm", "output_norm"),
    "head": ("lm_head", "output"),
    "attention_norm": ("model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
    "query": ("model.layers.{}.self_attn.q_proj", "blk.{}.attn_q"),
    "key": ("model.layers.{}.self_attn.k_proj", "blk.{}.attn_k"),
    "value": ("model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"),
    "output": ("model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"),
    "ffn_norm": ("model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
    "gate": ("model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"),
    "up": ("model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"),
    "down": ("model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"),
}
BESIDE = ("rotary_emb.inv_freq", "rope_freqs")  # stored by some, and made from the sizes here
# Architecture: whether its GGUF files have query and key rows in the order of the paper's neighbouring pairs.
ARCHITECTURES = {"llama": True, "mistral": True, "qwen2": False}
SYSTEM = "You are a helpful AI assistant."
CONTROL = 3  # tokenizer.ggml.token_type of what is no text
# tokenizer.ggml.pre, how text is cut into words: whether digits stand alone, and a regular expression (None: GPT-2's).
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "gpt-2": (False, None),
    "default": (False, None),
    "smollm": (True, None),
    "llama-bpe": (False, WORDS.format(digits="{1,3}")),
    "qwen2": (False, WORDS.format(digits="")),
}


class Unfit(ValueError):
    """Not a checkpoint that examples/llama.py can run."""


@dataclass(frozen=True)
class Config:
    """The sizes, and the angle by which each pair of coordinates turns from one position to the next."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    epsilon: float
    context: int
    interleaved: bool
    frequencies: NDArray[np.float64]

    @classmethod
    def from_json(cls, config: Mapping[str, Any], gguf_names: bool = False) -> Config:
        """From Hugging Face's config.json."""
        kind = config.get("model_type")
        if kind not in ARCHITECTURES or config.get("hidden_act", "silu") != "silu":
            raise Unfit(f"config.json: expected a model_type of {', '.join(ARCHITECTURES)} with silu, got {kind}")
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        theta = rope.get("rope_theta") or config.get("rope_theta", 10000.0)
        return cls(
            config["num_hidden_layers"],
            heads,
            config.get("num_key_value_heads") or heads,
            size,
            config["rms_norm_eps"],
            min(config["max_position_embeddings"], config.get("sliding_window") or 1 << 62),
            gguf_names and ARCHITECTURES[kind],
            stretched(theta ** (-np.arange(0, size, 2) / size), rope),
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], gguf_names: bool, weights: Mapping[str, Any]) -> Config:
        """From the fields of a GGUF file, and its tensor rope_freqs.weight if it has one."""
        kind = fields["general.architecture"]
        if kind not in ARCHITECTURES:
            raise Unfit(f"general.architecture: expected one of {', '.join(ARCHITECTURES)}, got {kind}")
        of = {name.removeprefix(f"{kind}."): value for name, value in fields.items()}
        heads = of["attention.head_count"]
        size = of.get("attention.key_length") or of["embedding_length"] // heads
        if of.get("rope.dimension_count", size) != size:
            raise Unfit(f"rope.dimension_count: expected {size}, a head's size, got {of['rope.dimension_count']}")
        rope = {"rope_type": of.get("rope.scaling.type", "none"), "factor": of.get("rope.scaling.factor", 1.0)}
        frequencies = of.get("rope.freq_base", 10000.0) ** (-np.arange(0, size, 2) / size)
        return cls(
            of["block_count"],
            heads,
            of.get("attention.head_count_kv", heads),
            size,
            of["attention.layer_norm_rms_epsilon"],
            of["context_length"],
            gguf_names and ARCHITECTURES[kind],
            stretched(frequencies, rope) / weights.get("rope_freqs.weight", 1.0),
        )


def stretched(frequencies: NDArray[np.float64], rope: Mapping[str, Any]) -> NDArray[np.float64]:
    """Frequencies of rotary positions for contexts longer than the model first saw."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind in ("default", "none"):
        return frequencies
    if kind == "linear":
        return frequencies / rope["factor"]
    if kind != "llama3":
        raise Unfit(f"rope_type: expected default, linear or llama3, got {kind}")
    # Turns within the first context: those of few are slowed down by the factor, those of many are not.
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / rope["factor"])


def names_of(weights: Mapping[str, Any]) -> tuple[Callable[..., str], bool]:
    """From the paper's names (and a layer) to this checkpoint's, and whether those are GGUF's.

    Raises Unfit for tensors that a LLaMA does not have, and without those that it has.
    """
    gguf = f"{NAMES['embedding'][1]}.weight" in weights
    known = {re.sub(r"\.\d+\.", ".{}.", name.rpartition(".")[0]) for name in weights}
    ours = {name: both[gguf] for name, both in NAMES.items()}
    strange = sorted(name for name in known - set(ours.values()) if not name.endswith(BESIDE))
    missing = sorted(set(ours.values()) - known - {ours["head"]})
    if strange or missing:
        wrong = f"also {', '.join(strange[:5])}" if strange else f"none called {', '.join(missing[:5])}"
        raise Unfit(f"model: expected the tensors of a LLaMA, got {wrong}")
    return lambda name, layer=None: ours[name].format(layer), gguf


class Text:
    """Text to tokens and back, and the form of a chat."""

    def __init__(self, tokenizer: Any, first: Sequence[int], ends: set[int | None]) -> None:
        self.tokenizer, self.first = tokenizer, list(first)
        self.turns = all(tokenizer.token_to_id(mark) is not None for mark in ("<|im_start|>", "<|im_end|>"))
        self.ends = ends | {tokenizer.token_to_id("<|im_end|>")} - {None}

    @classmethod
    def from_json(cls, path: Path, config: Mapping[str, Any]) -> Text:
        """From a tokenizer.json, and what config.json says about the end."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
        end = config.get("eos_token_id")
        return cls(tokenizer, tokenizer.encode("").ids, set(end if isinstance(end, list) else [end]))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Text:
        """From the fields of a GGUF file: byte-level BPE."""
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

        of = {name.removeprefix("tokenizer.ggml."): value for name, value in fields.items()}
        kind, split = of["model"], of.get("pre", "default")
        if kind != "gpt2" or split not in SPLITS:
            raise Unfit(
                f"tokenizer.ggml: expected model gpt2 with pre of {', '.join(SPLITS)}, got {kind} with {split}; "
                "--like FOLDER takes a folder with tokenizer.json"
            )
        digits, pattern = SPLITS[split]
        vocabulary = {token: i for i, token in enumerate(of["tokens"])}
        merges = [tuple(merge.split(" ")) for merge in of["merges"]]
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split == "llama-bpe"))
        steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
        if pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        tokenizer.decoder = decoders.ByteLevel()
        marks = [token for token, kind in zip(of["tokens"], of["token_type"], strict=True) if kind == CONTROL]
        tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
        first = [of["bos_token_id"]] if of.get("add_bos_token", False) else []
        return cls(tokenizer, first, {of.get("eos_token_id")})

    def encode(self, text: str) -> list[int]:
        """What a text begins with, and its tokens."""
        return [*self.first, *self._ids(text)]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def chat(self, line: str, first: bool) -> list[int]:
        """The next turn of a chat, as ChatML where the tokenizer knows its marks, else the line alone."""
        if not self.turns:
            return self.encode(line) if first else self._ids(f"\n{line}")
        before = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n" if first else "<|im_end|>\n"
        ids = self._ids(f"{before}<|im_start|>user\n{line}<|im_end|>\n<|im_start|>assistant\n")
        return [*self.first, *ids] if first else ids

    def stream(self) -> Callable[[int], str]:
        """A function from the next token to the text that it completes, which may be none."""
        from tokenizers.decoders import DecodeStream

        decoder = DecodeStream(skip_special_tokens=True)
        return lambda token: decoder.step(self.tokenizer, token) or ""


def open_checkpoint(model: Path, like: Path | None = None) -> tuple[Mapping[str, Any], Config, Text]:
    """The weights; sizes and text from beside them, or from another folder or GGUF file."""
    weights = pm.load(model)
    return weights, *beside(weights, like or model)


def beside(weights: Mapping[str, Any], told: Path) -> tuple[Config, Text]:
    """Sizes and text from a folder or GGUF file."""
    gguf_names = names_of(weights)[1]
    try:
        if told.is_dir() and (told / "config.json").is_file():
            config = json.loads((told / "config.json").read_text("utf-8"))
            return Config.from_json(config, gguf_names), Text.from_json(told / "tokenizer.json", config)
        fields = pm.load(told).fields
        if "general.architecture" not in fields:
            raise Unfit(f"{told}: expected a folder with config.json or a GGUF file; --like PATH says where one is")
        return Config.from_fields(fields, gguf_names, weights), Text.from_fields(fields)
    except KeyError as error:
        raise Unfit(f"{told}: expected the entry {error}, got none") from None
