"""A language model in half its bytes and fewer: what each scheme does to its perplexity, and a paragraph from int4.

The model is in examples/austen, trained on five novels by Jane Austen; the text that is scored is of the sixth.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from demo_shared import HERE, bytes_on_disk, converted, main, measured, plot, table
from fetch import say
from llama import Cache, Llama, generate, perplexity
from llama_files import open_checkpoint

import pumice as pm

MODEL = HERE / "austen"
SCHEMES = ("int8", "int5-g32", "int4-g32", "int3-g32", "int2-g32")
SPEAKS = "int4-g32"
PROMPT = "It was a fine morning, and"
TOKENS, SEED, TEMPERATURE = 200, 0, 0.7
COLUMNS = {
    "bytes on disk": ("disk", ",d"),
    "resident bytes": ("resident", ",d"),
    "tokens/s": ("speed", ".0f"),
    "perplexity": ("perplexity", ".3f"),
    "change": ("change", "+.2%"),
}


def measure(folder: Path) -> dict[str, Any]:
    """The perplexity of the held-out text, a paragraph and its speed, from one file."""
    weights, config, text = open_checkpoint(folder)
    model = Llama(weights, config)
    windows = int(os.environ.get("PUMICE_DEMO_WINDOWS", "0"))
    ids = text.encode((MODEL / "held_out.txt").read_text("utf-8"))[: windows * config.context or None]
    value, scored = perplexity(model, ids, config.context)
    start = time.perf_counter()
    prompt = text.encode(PROMPT)
    tokens = list(generate(model, Cache(config, config.context), prompt, TOKENS, TEMPERATURE, SEED))
    return {
        "disk": bytes_on_disk(folder),
        "resident": resident_nbytes(model),
        "speed": len(tokens) / (time.perf_counter() - start),
        "perplexity": value,
        "scored": scored,
        "paragraph": text.tokenizer.decode([*prompt, *tokens]),
    }


def resident_nbytes(model: Llama) -> int:
    """Bytes of the weights as the model holds them: what is not compact, in float32."""
    products = (p for i in model.layers for p in (i.qkv, i.output, i.gate_up, i.down))
    arrays: list[Any] = [model.embedding, model.norm, *(w for product in products for w, _ in product.parts)]
    arrays += [norm for layer in model.layers for norm in (layer.attention_norm, layer.ffn_norm)]
    return sum(a.resident_nbytes if isinstance(a, pm.CompactArray) else np.asarray(a).nbytes for a in arrays)


def run() -> None:
    """Convert, score and speak."""
    results = {}
    for scheme, folder in {"float16": MODEL, **converted(MODEL, SCHEMES)}.items():
        say(f"scoring held-out text with {scheme} ...")
        results[scheme] = measured(__file__, folder)
    for result in results.values():
        result["change"] = result["perplexity"] / results["float16"]["perplexity"] - 1
    scored = results["float16"]["scored"]
    print(f"\nfrom {SPEAKS}, at temperature {TEMPERATURE}:\n\n{results[SPEAKS]['paragraph']}")
    print(f"\nMODEL: examples/austen, {scored:,} tokens scored\n\n{table(results, COLUMNS)}")
    plot(
        results,
        "perplexity",
        "perplexity of held-out text",
        "a small LLaMA on Jane Austen",
        "size_against_perplexity.png",
    )


if __name__ == "__main__":
    main(measure, run)
