"""LLaMA (arXiv:2302.13971) in plain NumPy and pumice, with grouped queries (arXiv:2305.13245) and a cache.

    python examples/llama.py MODEL                                  # chat on the terminal
    python examples/llama.py MODEL --prompt "The sea is" --tokens 40
    python examples/llama.py MODEL --perplexity FILE

MODEL is a checkpoint that `pumice.load` opens: a folder with config.json and tokenizer.json, or a GGUF file. One that
was converted from a GGUF file has no fields of its own: ``--like FILE.gguf`` says where they are.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from llama_files import Config, Text, beside, names_of, open_checkpoint
from numpy.typing import NDArray

import pumice as pm

F32 = NDArray[np.float32]
CHUNK = 64  # tokens of a prompt that go through the layers together: what they make stays in a near cache
WINDOW = 512  # tokens of a text that its perplexity sees at a time


class Linear:
    """x @ w.T + b for one weight, or for several that share x: one product where their schemes agree."""

    def __init__(self, weights: Sequence[Any], biases: Sequence[Any]) -> None:
        self.parts = [(joined(weights), None if biases[0] is None else np.concatenate(biases))]
        if self.parts[0][0] is None:
            self.parts = list(zip(weights, biases, strict=True))

    def __call__(self, x: F32) -> F32:
        products = [pm.linear(x, w, b) for w, b in self.parts]
        return products[0] if len(products) == 1 else np.concatenate(products, axis=-1)


def joined(weights: Sequence[Any]) -> Any:
    """The rows of all weights in one; None where they differ in scheme."""
    if len(weights) == 1:
        return weights[0]
    if all(isinstance(w, np.ndarray) for w in weights):
        return np.concatenate(weights)
    if len({getattr(w, "scheme", None) for w in weights}) == 1:
        return pm.concatenate(weights)
    return None


@dataclass(frozen=True)
class Layer:
    attention_norm: F32
    qkv: Linear
    output: Linear
    ffn_norm: F32
    gate_up: Linear
    down: Linear


class Cache:
    """Keys and values of the tokens so far, and what rotates the next ones."""

    def __init__(self, config: Config, size: int) -> None:
        shape = (config.layers, config.kv_heads, size, config.head_size)
        self.keys, self.values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.turns = np.exp(1j * np.outer(np.arange(size), config.frequencies)).astype(np.complex64)
        self.size, self.length = size, 0


class Llama:
    """A decoder over any checkpoint whose tensors have the names of `llama_files`."""

    def __init__(self, weights: Any, config: Config) -> None:
        self.config, (name_of, _) = config, names_of(weights)

        def get(name: str, kind: str = "weight") -> Any:
            array = weights[f"{name}.{kind}"]
            return array if isinstance(array, pm.CompactArray) else np.asarray(array, np.float32)

        def linear(layer: int, *parts: str) -> Linear:
            names = [name_of(part, layer) for part in parts]
            biased = f"{names[0]}.bias" in weights
            return Linear([get(n) for n in names], [get(n, "bias") if biased else None for n in names])

        self.embedding, self.norm = get(name_of("embedding")), get(name_of("norm"))
        tied = f"{name_of('head')}.weight" not in weights
        self.head = self.embedding if tied else get(name_of("head"))
        self.layers = [
            Layer(
                get(name_of("attention_norm", i)),
                linear(i, "query", "key", "value"),
                linear(i, "output"),
                get(name_of("ffn_norm", i)),
                linear(i, "gate", "up"),
                linear(i, "down"),
            )
            for i in range(config.layers)
        ]

    def forward(self, ids: Sequence[int], cache: Cache, every: bool = False) -> F32:
        """Logits (vocabulary,) of what follows the ids; with `every`, (tokens, vocabulary) after each of them."""
        if cache.length + len(ids) > cache.size:
            raise ValueError(f"ids: expected at most {cache.size - cache.length} more tokens, got {len(ids)}")
        with np.errstate(over="ignore"):  # exp(-x) of a gate that is shut
            chunks = [self._hidden(np.asarray(ids[i : i + CHUNK]), cache) for i in range(0, len(ids), CHUNK)]
        x = np.concatenate(chunks) if every else chunks[-1][-1]
        return pm.linear(rms_norm(x, self.norm, self.config.epsilon), self.head)

    def _hidden(self, ids: NDArray[np.int64], cache: Cache) -> F32:
        """x (tokens, width) after the last layer."""
        epsilon, start, stop = self.config.epsilon, cache.length, cache.length + len(ids)
        x = self.embedding.take(ids) if isinstance(self.embedding, pm.CompactArray) else self.embedding[ids]
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            q, k, v = self._split(layer.qkv(rms_norm(x, layer.attention_norm, epsilon)), cache.turns[start:stop])
            keys[:, start:stop], values[:, start:stop] = k, v
            x += layer.output(attention(q, keys[:, :stop], values[:, :stop]))
            x += layer.down(swiglu(layer.gate_up(rms_norm(x, layer.ffn_norm, epsilon))))
        cache.length = stop
        return x

    def _split(self, qkv: F32, turns: NDArray[np.complex64]) -> tuple[F32, F32, F32]:
        """Rotated queries and keys, and values, each (its heads, tokens, head size)."""
        heads, shared = self.config.heads, self.config.kv_heads
        all_heads = qkv.reshape(len(qkv), -1, self.config.head_size).swapaxes(0, 1)
        rotate(all_heads[: heads + shared], turns, self.config.interleaved)
        return all_heads[:heads], all_heads[heads : heads + shared], all_heads[heads + shared :]


def rms_norm(x: F32, weight: F32, epsilon: float) -> F32:
    """x over its root mean square, times the weight (arXiv:1910.07467)."""
    mean = np.vecdot(x, x)[..., None] / np.float32(x.shape[-1])
    x = x / np.sqrt(mean + np.float32(epsilon))
    x *= weight
    return x


def rotate(x: F32, turns: NDArray[np.complex64], interleaved: bool) -> None:
    """Rotary positions (arXiv:2104.09864) in place: pairs of coordinates as complex numbers, turned.

    Pairs are neighbours in the paper and in GGUF files, and lie half a head apart in Hugging Face's.
    """
    if interleaved:
        pairs = x.view(np.complex64)
        pairs *= turns
        return
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * turns
    x[..., :half], x[..., half:] = turned.real, turned.imag


def attention(q: F32, keys: F32, values: F32) -> F32:
    """softmax(q k^T / sqrt(d)) v for the last tokens (heads, tokens, d): (tokens, heads * d).

    Each token sees those up to itself; each key and value serves a group of heads.
    """
    heads, tokens, size = q.shape
    shared, length, _ = keys.shape
    grouped = (q * np.float32(size**-0.5)).reshape(shared, -1, size)
    scores = (grouped @ keys.swapaxes(1, 2)).reshape(heads, tokens, length)
    if tokens > 1:
        scores[:, :, length - tokens :] += np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    mixed = (scores.reshape(shared, -1, length) @ values).reshape(heads, tokens, size)
    mixed /= total
    return mixed.swapaxes(0, 1).reshape(tokens, heads * size)


def swiglu(gate_up: F32) -> F32:
    """silu(gate) * up (arXiv:2002.05202), of the two side by side."""
    half = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :half], gate_up[..., half:]
    x = np.negative(gate)
    np.exp(x, out=x)
    x += 1
    np.divide(gate, x, out=x)
    x *= up
    return x


def draw(logits: F32, temperature: float, rng: np.random.Generator) -> int:
    """A token from softmax(logits / temperature), by the Gumbel trick; the likeliest at temperature 0."""
    if temperature:
        logits = logits / np.float32(temperature) - np.log(rng.standard_exponential(logits.shape, np.float32))
    return int(logits.argmax())


def generate(
    model: Llama, cache: Cache, ids: Sequence[int], count: int, temperature: float = 0, seed: int | None = None
) -> Iterator[int]:
    """Up to `count` tokens after the ids, as long as the cache has room."""
    rng = np.random.default_rng(seed)
    for _ in range(min(count, cache.size - cache.length - len(ids) + 1)):
        token = draw(model.forward(ids, cache), temperature, rng)
        yield token
        ids = [token]


def perplexity(model: Llama, ids: Sequence[int], window: int = WINDOW) -> tuple[float, int]:
    """exp of the mean surprise of a text's tokens, and how many were scored.

    The text is cut into windows that see nothing of each other; the first token of each is not scored.
    """
    if len(ids) < 2:
        raise ValueError(f"text: expected at least two tokens, got {len(ids)}")
    found = np.concatenate([surprises(model, ids[i : i + window]) for i in range(0, len(ids) - 1, window)])
    return float(np.exp(found.mean())), len(found)


def surprises(model: Llama, ids: Sequence[int]) -> NDArray[np.float64]:
    """-log p of each token but the first, which has nothing before it."""
    logits = model.forward(ids[:-1], Cache(model.config, len(ids)), every=True)
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(logits, np.asarray(ids[1:])[:, None], axis=-1)[:, 0]
    return np.log(np.exp(logits).sum(axis=-1, dtype=np.float64)) - chosen


def forward(
    weights: Any, data: Path, *, like: str | None = None, window: int = WINDOW, encoding: str = "utf-8"
) -> list[Callable[[], NDArray[np.float64]]]:
    """For `pumice calibrate` and `pumice eval`: the surprises of a text, a window of its tokens a piece."""
    config, text = beside(weights, Path(like or weights.path))
    model, ids = Llama(weights, config), text.encode(data.read_text(encoding))
    window = min(window, config.context)
    return [partial(surprises, model, ids[i : i + window]) for i in range(0, len(ids) - 1, window)]


def say(model: Llama, cache: Cache, text: Text, ids: Sequence[int], options: argparse.Namespace) -> list[int]:
    """Print what follows the ids as it comes, and how fast it came; returns tokens that the cache does not hold yet."""
    start, times, token = time.perf_counter(), [], None
    stream = text.stream()
    for token in generate(model, cache, ids, options.tokens, options.temperature, options.seed):
        times.append(time.perf_counter())
        if token in text.ends:
            break
        print(stream(token), end="", flush=True)
    print()
    if len(times) > 1:
        prompt, rest = times[0] - start, (times[-1] - times[0]) / (len(times) - 1)
        print(f"[{len(ids)} tokens in {prompt:.2f} s, then {1 / rest:.1f} tokens/s]", file=sys.stderr)
    return [] if token is None or token in text.ends else [token]


def chat(model: Llama, cache: Cache, text: Text, options: argparse.Namespace) -> None:
    """Questions from the terminal until it ends; without chat tokens each line is continued instead."""
    left: list[int] = []
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        ids = left + text.chat(line, first=cache.length == 0)
        if cache.length + len(ids) >= cache.size:
            print("[the cache is full: starting again]", file=sys.stderr)
            cache.length = 0
            ids = text.chat(line, first=True)[: cache.size - 1]
        try:
            left = say(model, cache, text, ids, options)
        except KeyboardInterrupt:  # enough of this answer
            print()
            left = []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--like", type=Path, help="where config and tokenizer are, if not in MODEL")
    parser.add_argument("--prompt", help="continue this text")
    parser.add_argument("--perplexity", type=Path, metavar="FILE", help="score this text")
    parser.add_argument("--encoding", default="utf-8", help="of that text (utf-8)")
    parser.add_argument("--tokens", type=int, default=200, help="at most so many at a time (200)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: always the likeliest token (0.7)")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--context", type=int, default=2048, help="tokens that the cache holds (2048)")
    parser.add_argument("--activations", choices=("int16", "int8", "float32"), default="int16")
    options = parser.parse_args(arguments)
    try:
        weights, config, text = open_checkpoint(options.model, options.like)
        model = Llama(weights, config)
        with pm.options(activations=options.activations):
            run(model, text, options)
    except (OSError, ImportError, ValueError) as error:  # among these pumice's and Unfit
        hint = "; pip install 'pumice[examples]'" if isinstance(error, ImportError) else ""
        print(f"llama: {error}{hint}", file=sys.stderr)
        return 1
    return 0


def run(model: Llama, text: Text, options: argparse.Namespace) -> None:
    """What the command line asks for."""
    cache = Cache(model.config, min(options.context, model.config.context))
    if options.perplexity is not None:
        window = min(WINDOW, cache.size)
        ids = text.encode(options.perplexity.read_text(options.encoding))
        value, scored = perplexity(model, ids, window)
        print(f"perplexity {value:.3f} of {scored} tokens in windows of {window}")
    elif options.prompt is not None:
        ids = text.encode(options.prompt)
        if not 0 < len(ids) <= cache.size:
            raise ValueError(f"prompt: expected 1 to {cache.size} tokens (--context), got {len(ids)}")
        print(options.prompt, end="", flush=True)
        say(model, cache, text, ids, options)
    else:
        chat(model, cache, text, options)


if __name__ == "__main__":
    sys.exit(main())
