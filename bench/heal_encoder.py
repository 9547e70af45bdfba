"""all-MiniLM-L6-v2 in transformers: what bench/heal_minilm.py trains and bench/heal_speed.py times."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

import pumice as pm

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from minilm import BATCH, pad

Rows = Sequence[Sequence[int]]


def encoder_of(folder: Path, file: Path | None = None) -> Any:
    """The model of a folder, with the weights of another file if there is one; in eval mode."""
    model = BertModel(BertConfig.from_json_file(folder / "config.json"))
    weights = pm.load(folder if file is None else file)
    model.load_state_dict({n: torch.from_numpy(np.array(w)) for n, w in weights.items() if not n.endswith("_ids")})
    return model.eval()


def batch_of(rows: Rows) -> dict[str, Tensor]:
    """What the model is called with for token ids."""
    ids, mask = pad(rows)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask).long()}


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens, at length 1."""
    weights = mask[..., None].float()
    return F.normalize((states.float() * weights).sum(1) / weights.sum(1), dim=-1)


@torch.inference_mode()
def embeddings(model: nn.Module, rows: Rows) -> Tensor:
    """Unit vectors (n, width), float32; those of similar length go together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: list[Any] = [None] * len(rows)
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH]
        batch = batch_of([rows[i] for i in some])
        for i, vector in zip(some, pooled(model(**batch).last_hidden_state, batch["attention_mask"]), strict=True):
            found[i] = vector
    return torch.stack(found)
