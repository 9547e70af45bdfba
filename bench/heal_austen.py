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
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from austen_text import novels  # noqa: E402
from train_austen import CONTEXT, CUT, HELD_OUT, Llama, surprise  # noqa: E402

from pumice.torch import DistillationLoss, GradualPruning, prune_  # noqa: E402

MODEL = ROOT / "examples" / "austen"
RUNS = ("dense", "pruned", "hard", "distilled")
SEED, STEPS, BATCH, RATE, WARMUP = 0, 600, 8, 1e-3, 50
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


class Training:
    """One of the four; its state and its curve are files of the work folder."""

    def __init__(self, name: str, work: Path, steps: int, texts: dict[str, Tensor]) -> None:
        self.name, self.work, self.steps, self.texts = name, work, steps, texts
        self.model = start(name)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        norms = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
        self.step, self.seconds, self.curve = 0, 0.0, []
        self.path = work / f"{name}.pt"
        state = torch.load(self.path) if self.path.is_file() else None
        if state is not None:
            if state["steps"] != steps:
                raise SystemExit(f"{self.path}: expected a training of {steps} steps, got {state['steps']}; remove it")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]
        self.after = self.schedule()
        self.loss = self.objective()

    def schedule(self) -> Callable[[], None]:
        """What is to do after each step."""
        if self.name != "pruned":
            return lambda: None
        masks = prune_(self.model, 0.0).hold(self.optimizer)
        gradual = GradualPruning(masks, SPARSITY, end=self.steps // 2, every=EVERY)
        done = min(self.step, self.steps // 2)
        if done:  # zeros have the lowest scores: the masks of before come back from the weights
            masks.prune(gradual.sparsity((done - 1) // EVERY * EVERY if done < self.steps // 2 else done))
        gradual.skip(self.step)
        return gradual.step

    def objective(self) -> Callable[[Tensor, Tensor], Tensor]:
        if self.name in ("dense", "hard"):
            return lambda ids, labels: F.cross_entropy(self.model(ids).flatten(0, 1), labels.flatten())
        teacher = start("dense").eval()
        teacher.load_state_dict(load_file(self.work / "dense.safetensors"))
        loss = DistillationLoss(TEMPERATURE, ALPHA)

        def against(ids: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                logits = teacher(ids)
            return loss(self.model(ids), logits, labels)

        return against

    def one_step(self) -> None:
        """Batches depend on the seed and the step alone."""
        self.model.train()
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + self.step)
        starts = torch.randint(len(self.texts["train"]) - CONTEXT, (BATCH, 1), generator=generator)
        rows = self.texts["train"][starts + torch.arange(CONTEXT + 1)]
        loss = self.loss(rows[:, :-1], rows[:, 1:])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = RATE * min((self.step + 1) / WARMUP, (self.steps - self.step) / (self.steps - WARMUP), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.after()
        self.step += 1

    def run(self) -> None:
        if self.step == 0:
            self.look()
        saved = time.monotonic()
        while self.step < self.steps:
            begun = time.process_time()
            self.one_step()
            self.seconds += time.process_time() - begun
            if self.step % LOOK == 0 or self.step == self.steps:
                self.look()
            if time.monotonic() - saved > 30 or self.step == self.steps:
                self.save()
                saved = time.monotonic()
        self.finish()

    def look(self) -> None:
        value = perplexity(self.model, self.texts["look"])
        self.curve.append((self.step, value))
        print(f"{self.name} step {self.step}: perplexity {value:.3f}, {self.seconds:.0f} s of CPU", flush=True)

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "steps": self.steps}
        scratch = self.path.with_suffix(".new")
        torch.save(state | {"step": self.step, "seconds": self.seconds, "curve": self.curve}, scratch)
        os.replace(scratch, self.path)

    def finish(self) -> None:
        """The weights, and what they are worth on text that nobody looked at."""
        state = {key: value.contiguous() for key, value in self.model.state_dict().items()}
        save_file(state, self.work / f"{self.name}.safetensors")
        zeros = [p.numel() - int(p.count_nonzero()) for n, p in self.model.named_parameters() if "_proj" in n]
        sizes = [p.numel() for n, p in self.model.named_parameters() if "_proj" in n]
        found = {
            "steps": self.steps, "perplexity": perplexity(self.model, self.texts["test"]), "curve": self.curve,
            "seconds": self.seconds, "sparsity": sum(zeros) / sum(sizes), "parameters": sum(sizes),
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        (self.work / f"{self.name}.json").write_text(json.dumps(found))
        print(f"{self.name}: {found['perplexity']:.3f} on chapter 13 and on", flush=True)


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
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("runs", nargs="+", choices=RUNS)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "heal")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    texts = read_texts(options.work)
    for name in options.runs:
        torch.manual_seed(SEED)
        Training(name, options.work, options.steps, texts).run()


if __name__ == "__main__":
    main()
