"""all-MiniLM-L6-v2 pruned to 50 % and healed against its own embeddings on text without labels.

    python bench/heal_minilm.py --work build/heal

The 36 matrices are pruned by SparseGPT with moments of 480 sentences, then learn for `STEPS` steps with their masks
held: the loss is 1 - cosine to the float32 embedding and the squared distance of all hidden states. The text is 300
news items (lee_background.cor of gensim) and 2000 sentences of Jane Austen's; what is reported is the mean cosine on
other text: 50 news items (lee.cor) and examples/sentences.txt. Seed 0.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "examples")]

from austen_text import novels  # noqa: E402
from demo_minilm import real_model  # noqa: E402
from fetch import fetch  # noqa: E402
from minilm import pad  # noqa: E402
from wordpiece import WordPiece  # noqa: E402

import pumice as pm  # noqa: E402
from pumice.torch import collect, prune_  # noqa: E402

NEWS_SUMS = {
    "lee.cor": "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
    "lee_background.cor": "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
}
MATRICES = r"encoder\.layer\.\d+\..*dense\.weight|encoder\.layer\.\d+\.attention\.self\."
SEED, STEPS, BATCH, RATE, WARMUP = 0, 300, 16, 5e-4, 15
SPARSITY, CALIBRATION, LONGEST, NOVELS = 0.5, 480, 32, 2000
LOOK = 50


def news() -> Path:
    """The folder with both collections of news."""
    folder = fetch("gensim==4.4.0", "28 MB", "gensim/test/test_data/", "lee-news", NEWS_SUMS, only="lee*.cor")
    if folder is None:
        raise SystemExit("heal_minilm: no network: SKIPPED, nothing was measured")
    return folder


def sentences(text: str) -> list[str]:
    found = re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", text))
    return [s for s in found if len(s.split()) >= 4]


def read_texts(work: Path, tokens: WordPiece) -> dict[str, list[list[int]]]:
    """Token ids of sentences to learn from, and of the two texts to report on."""
    folder, rng = news(), np.random.default_rng(SEED)
    learned = [s for line in (folder / "lee_background.cor").read_text("latin-1").splitlines() for s in sentences(line)]
    prose = [s for text in novels(work).values() for s in sentences(text)]
    learned += [prose[i] for i in rng.permutation(len(prose))[:NOVELS]]
    reported = {
        "50 news items": (folder / "lee.cor").read_text("latin-1").splitlines(),
        "78 sentences": (ROOT / "examples" / "sentences.txt").read_text("utf-8").splitlines(),
    }
    texts = {"learned": [tokens.encode(learned[i], LONGEST) for i in rng.permutation(len(learned))]}
    return texts | {name: [tokens.encode(s) for s in lines] for name, lines in reported.items()}


def batch_of(rows: list[list[int]]) -> dict[str, Tensor]:
    ids, mask = pad(rows)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask).long()}


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens, at length 1."""
    weights = mask[..., None].to(states.dtype)
    return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


@torch.no_grad()
def embeddings(model: nn.Module, rows: list[list[int]]) -> Tensor:
    model.eval()
    found = []
    for i in range(0, len(rows), BATCH):
        batch = batch_of(rows[i : i + BATCH])
        found.append(pooled(model(**batch).last_hidden_state, batch["attention_mask"]))
    return torch.cat(found)


def loss_of(student: Any, teacher: Any, batch: dict[str, Tensor]) -> Tensor:
    """1 - cosine of the embeddings, and how far the hidden states of real tokens are apart."""
    mask = batch["attention_mask"]
    real = mask.bool()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            theirs = teacher(**batch, output_hidden_states=True).hidden_states
        mine = student(**batch, output_hidden_states=True).hidden_states
    apart = sum(F.mse_loss(a[real].float(), b[real].float()) for a, b in zip(mine[1:], theirs[1:], strict=True))
    cosine = (pooled(mine[-1].float(), mask) * pooled(theirs[-1].float(), mask)).sum(-1)
    return (1 - cosine).mean() + apart


class Healing:
    """The student, its masks and how far it has come; its state is a file of the work folder."""

    def __init__(self, options: argparse.Namespace, source: Path) -> None:
        self.o, self.path = options, options.work / "minilm.pt"
        self.texts = read_texts(options.work, WordPiece.load(source / "vocab.txt"))
        config = BertConfig.from_json_file(source / "config.json")
        weights = {
            name: torch.from_numpy(np.array(w)) for name, w in pm.load(source).items() if "position_ids" not in name
        }
        self.teacher, self.student = (
            BertModel(config, add_pooling_layer=True),
            BertModel(config, add_pooling_layer=True),
        )
        for model in (self.teacher, self.student):
            model.load_state_dict(weights)
            model.eval()  # no dropout, for the student neither: it is to be the teacher again
        self.exact = {name: embeddings(self.teacher, rows) for name, rows in self.reported.items()}
        self.facts: dict[str, Any] = {"steps": options.steps, "curve": []}
        state = torch.load(self.path) if self.path.is_file() else None
        if state is None:
            self.prune()
            masks = prune_(self.student, SPARSITY, match=MATRICES)  # half are 0 already: these
        else:
            self.student.load_state_dict(state["model"])
            masks = prune_(self.student, SPARSITY, match=MATRICES)
            self.facts = state["facts"]
        self.student.embeddings.requires_grad_(False)
        learning = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, weight_decay=0.0, fused=True)
        masks.hold(self.optimizer)
        self.step = 0 if state is None else state["step"]
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])

    @property
    def reported(self) -> dict[str, list[list[int]]]:
        return {name: rows for name, rows in self.texts.items() if name != "learned"}

    def prune(self) -> None:
        """By magnitude, to see what that does, then by SparseGPT, to go on from."""
        whole = {name: p.clone() for name, p in self.student.state_dict().items()}
        prune_(self.student, SPARSITY, match=MATRICES).release()
        self.facts["by magnitude"] = self.cosines()
        self.student.load_state_dict(whole)
        begun = time.perf_counter()
        rows = self.texts["learned"][:CALIBRATION]
        stats = collect(
            self.student, (batch_of(rows[i : i + BATCH]) for i in range(0, CALIBRATION, BATCH)), match=MATRICES
        )
        prune_(self.student, SPARSITY, match=MATRICES, method="sparsegpt", stats=stats).release()
        self.facts["by SparseGPT"] = self.cosines()
        print(f"pruned in {time.perf_counter() - begun:.0f} s", self.facts, flush=True)

    def cosines(self) -> dict[str, float]:
        found = {name: embeddings(self.student, rows) for name, rows in self.reported.items()}
        return {name: float((vectors * self.exact[name]).sum(-1).mean()) for name, vectors in found.items()}

    def run(self) -> None:
        saved, rows = time.monotonic(), self.texts["learned"]
        while self.step < self.o.steps:
            rng = np.random.default_rng([SEED, self.step])
            batch = batch_of([rows[i] for i in rng.integers(len(rows), size=BATCH)])
            loss = loss_of(self.student, self.teacher, batch)
            self.optimizer.zero_grad()
            loss.backward()
            rate = RATE * min((self.step + 1) / WARMUP, (self.o.steps - self.step) / (self.o.steps - WARMUP), 1.0)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.step += 1
            if self.step % LOOK == 0 or self.step == self.o.steps:
                self.facts["curve"].append((self.step, self.cosines()))
                print(self.step, float(loss), self.facts["curve"][-1], flush=True)
            if time.monotonic() - saved > 120 or self.step == self.o.steps:
                state = {"model": self.student.state_dict(), "optimizer": self.optimizer.state_dict()}
                torch.save(state | {"step": self.step, "facts": self.facts}, self.path.with_suffix(".new"))
                os.replace(self.path.with_suffix(".new"), self.path)
                saved = time.monotonic()
        self.facts["healed"] = self.cosines()
        arrays = {name: w.numpy() for name, w in self.student.state_dict().items()}
        pm.save(self.o.work / "minilm.safetensors", arrays)
        (self.o.work / "minilm.json").write_text(json.dumps(self.facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "heal")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    source = real_model()
    if source is None:
        raise SystemExit("heal_minilm: no network: SKIPPED, nothing was measured")
    Healing(options, source).run()


if __name__ == "__main__":
    main()
