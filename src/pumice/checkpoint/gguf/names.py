"""The names that Hugging Face's LLaMA has for the tensors of GGUF, and the order of rows that comes with them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INNER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True)
class Place:
    """Where a tensor goes in a GGUF file; `order` has its rows, None for those that stay."""

    name: str
    order: NDArray[np.int64] | None = None


def llama_place(name: str, rows: int, fields: Mapping[str, Any]) -> Place | None:
    """The place of a tensor of Hugging Face's LLaMA; None for another name.

    llama.cpp rotates neighbouring rows of queries and keys, transformers rows that are half a head apart; so within
    each head row i of the first half is followed by row i of the second.

    Parameters
    ----------
    name
        Such as ``model.layers.0.self_attn.q_proj.weight``.
    rows
        Of the tensor.
    fields
        The keys of the GGUF file: the numbers of heads.

    Examples
    --------
    >>> place = llama_place("model.layers.3.self_attn.k_proj.weight", 8, {"llama.attention.head_count": 2})
    >>> place.name, place.order.tolist()
    ('blk.3.attn_k.weight', [0, 2, 1, 3, 4, 6, 5, 7])
    """
    stem, _, kind = name.rpartition(".")
    if stem in OUTER:
        return Place(f"{OUTER[stem]}.{kind}")
    match = LAYER.fullmatch(name)
    if match is None or match[2] not in INNER:
        return None
    inner = INNER[match[2]]
    order = None
    if inner in ("attn_q", "attn_k"):
        heads = fields.get("llama.attention.head_count", 1)
        if inner == "attn_k":
            heads = fields.get("llama.attention.head_count_kv", heads)
        order = _interleaved(rows, heads)
    return Place(f"blk.{match[1]}.{inner}.{match[3]}", order)


def _interleaved(rows: int, heads: int) -> NDArray[np.int64]:
    if type(heads) is not int or heads < 1 or rows % (2 * heads):
        raise ValueError(f"template: expected a number of heads that divides {rows} rows in halves, got {heads}")
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)
