"""Austen pruned to 70 %, and half as deep, each healed by distillation beside a rival of as many steps.

    python bench/heal_austen.py dense pruned hard distilled --work build/heal

Four trainings of `STEPS` steps of 8 windows of 256 tokens of the five novels, from examples/austen, seed 0:

dense      trained on as it is: the rival of `pruned`, then its teacher and that of `distilled`
pruned     gradually, by magnitude, to 70 % over the first half of the steps, against hard labels and the teacher
hard       layers 1 and 3 alone, against hard labels
distilled  the same layers against hard labels and the teacher

All have the same batches, rate and optimiser. A training that was interrupted goes on from where it was.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from heal_training import ROOT, SEED, Training, parser_of
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(ROOT / "tools"))

from austen_text import novels
from train_austen import CONTEXT, CUT, HELD_OUT, Llama, surprise

from pumice.torch import DistillationLoss, GradualPruning, prune_

MODEL = ROOT / "examples" / "austen"
RUNS = ("dense", "pruned", "hard", "distilled")
STEPS, BATCH, RATE, WARMUP = 600, 8, 1e-3, 50
SPARSITY, EVERY = 0.7, 10
TEMPERATURE, ALPHA = 1.0, 0.3  # perplexity is asked for at temperature 1
KEPT_LAYERS = (0, 2)
LOOK, WINDOWS = 50, 16  # after so many steps so many windows of chapters 1 to 12 are scored


class Student(Llama):
    """With products in bfloat16 while it learns."""

    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            logits = super().forward(ids)
        return logits.float()


def start(name: str) -> Student:
    """The shipped weights, of all layers or of every second."""
    model = Student(0.0)
    model.load_state_dict({key: value.float() for key, value in load_file(MODEL / "model.safetensors").items()})
    if name in ("hard", "distilled"):
        model.model.layers = nn.ModuleList(model.model.layers[i] for i in KEPT_LAYERS)
    return model


def train(name: str, options: argparse.Namespace, texts: dict[str, Tensor]) -> None:
    """One of the four, from where it was; its weights and what they are worth on text that nobody looked at."""
    training = Training(name, options)
    model = start(name)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
    if name == "pruned":
        masks = prune_(model, 0.0).hold(optimizer)
        schedule = GradualPruning(masks, SPARSITY, end=options.steps // 2, every=EVERY)
        parts |= {"masks": masks, "schedule": schedule}
    against = objective(name, options.work)

    def loss(step: int) -> Tensor:
        model.train()
        ids, labels = batch_of(texts["train"], step)
        return against(model(ids), ids, labels)

    look = lambda: perplexity(model, texts["look"])  # noqa: E731
    training.run(parts, loss, look, rate=RATE, warmup=WARMUP, every=LOOK)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, options.work / f"{name}.safetensors")
    pruned = [p for n, p in model.named_parameters() if "_proj" in n]
    size = sum(p.numel() for p in pruned)
    zeros = size - sum(int(p.count_nonzero()) for p in pruned)
    training.finish(perplexity=perplexity(model, texts["test"]), sparsity=zeros / size, parameters=size)


def batch_of(train: Tensor, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
    starts = torch.randint(len(train) - CONTEXT, (BATCH, 1), generator=generator)
    rows = train[starts + torch.arange(CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:]


def objective(name: str, work: Path) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss of logits that are for ids and labels."""
    if name in ("dense", "hard"):
        return lambda logits, ids, labels: F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    teacher = start("dense").eval()
    teacher.load_state_dict(load_file(work / "dense.safetensors"))
    loss = DistillationLoss(TEMPERATURE, ALPHA)

    def against(logits: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            theirs = teacher(ids)
        return loss(logits, theirs, labels)

    return against


def perplexity(model: nn.Module, ids: Tensor) -> float:
    model.eval()
    total, count = surprise(model, ids)
    return math.exp(total / count)


def read_texts(work: Path) -> dict[str, Tensor]:
    """Token ids to learn from, to look at meanwhile, and to report."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    texts = novels(work)
    look, _, _ = texts.pop(HELD_OUT).partition(CUT)
    train = [i for text in texts.values() for i in [0, *tokenizer.encode(text).ids]]
    test = tokenizer.encode((MODEL / "held_out.txt").read_text("utf-8")).ids
    seen = tokenizer.encode(look).ids[: WINDOWS * CONTEXT]
    return {"train": torch.tensor(train), "look": torch.tensor(seen), "test": torch.tensor(test)}


def main() -> None:
    parser = parser_of(__doc__, STEPS)
    parser.add_argument("runs", nargs="+", choices=RUNS)
    options = parser.parse_args()
    texts = read_texts(options.work)
    for name in options.runs:
        train(name, options, texts)


if __name__ == "__main__":
    main()
