"""all-MiniLM-L6-v2 pruned to 50 % and healed against its own embeddings on text without labels.

    python bench/heal_minilm.py --work build/heal

SparseGPT prunes the 36 matrices, layer after layer: each by the moments of what it reads once those before it are
pruned. What is left learns for `STEPS` steps with the masks held: the loss is 1 - cosine to the float32 embedding and
the squared distance of all hidden states. The text is 300 news items (lee_background.cor of gensim), a hundred articles
of Wikipedia and some of Jane Austen's prose, in passages of one to six sentences; what is reported is the mean cosine
on other text: 50 news items (lee.cor) and examples/sentences.txt. Seed 0.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heal_encoder import batch_of, embeddings, encoder_of, pooled
from heal_training import ROOT, SEED, Training, parser_of
from sources import articles, news
from torch import Tensor
from torch.nn import functional as F

sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "examples")]

from austen_text import novels  # noqa: E402
from demo_minilm import read_page, real_model  # noqa: E402
from wordpiece import WordPiece  # noqa: E402

import pumice as pm  # noqa: E402
from pumice.torch import HeldMasks, collect, prune_  # noqa: E402

LAYERS = 6
MATRICES = r"encoder\.layer\.{}\..*dense\.weight|encoder\.layer\.{}\.attention\.self\."
STEPS, BATCH, RATE, WARMUP, LOOK = 400, 16, 5e-4, 50, 100
SPARSITY, CALIBRATION = 0.5, 256  # passages
SENTENCES, LONGEST, PROSE = 6, 128, 3000  # of a passage, its tokens, and paragraphs of the novels
POOL = 8  # batches' worth of passages that are drawn at a time: a batch is of similar lengths


def read_texts(work: Path, tokens: WordPiece) -> dict[str, list[list[int]]]:
    """Token ids of passages to learn from, and of the two texts to report on."""
    folder, wikipedia, rng = news(), articles(), np.random.default_rng(SEED)
    if folder is None or wikipedia is None:
        raise SystemExit("heal_minilm: no network: SKIPPED, nothing was measured")
    prose = [line for text in novels(work).values() for line in text.splitlines()]
    paragraphs = [*(folder / "lee_background.cor").read_text("latin-1").splitlines(), *wikipedia]
    paragraphs += [prose[i] for i in rng.permutation(len(prose))[:PROSE]]
    learned = [passage for paragraph in paragraphs for passage in passages(paragraph, rng)]
    reported = {
        "50 news items": (folder / "lee.cor").read_text("latin-1").splitlines(),
        "78 sentences": read_page(),
    }
    texts = {"learned": [tokens.encode(learned[i], LONGEST) for i in rng.permutation(len(learned))]}
    return texts | {name: [tokens.encode(line) for line in lines] for name, lines in reported.items()}


def passages(paragraph: str, rng: np.random.Generator) -> list[str]:
    """A paragraph in pieces of one to `SENTENCES` sentences, each of four words or more."""
    sentences = re.split(r"(?<=[.!?])\s+", paragraph.strip())
    found, at = [], 0
    while at < len(sentences):
        count = int(rng.integers(1, SENTENCES + 1))
        found.append(" ".join(sentences[at : at + count]))
        at += count
    return [passage for passage in found if len(passage.split()) >= 4]


def drawn(rows: list[list[int]], step: int) -> dict[str, Tensor]:
    """The batch of a step: neighbours by length among some that are drawn."""
    rng = np.random.default_rng([SEED, step])
    some = sorted((rows[i] for i in rng.integers(len(rows), size=POOL * BATCH)), key=len)
    start = BATCH * int(rng.integers(POOL))
    return batch_of(some[start : start + BATCH])


def loss_of(student: Any, teacher: Any, batch: dict[str, Tensor]) -> Tensor:
    """1 - cosine of the embeddings, and how far the hidden states of real tokens are apart."""
    mask = batch["attention_mask"]
    real = mask.bool()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            theirs = teacher(**batch, output_hidden_states=True).hidden_states
        mine = student(**batch, output_hidden_states=True).hidden_states
    apart = sum(F.mse_loss(a[real].float(), b[real].float()) for a, b in zip(mine[1:], theirs[1:], strict=True))
    cosine = (pooled(mine[-1], mask) * pooled(theirs[-1], mask)).sum(-1)
    return (1 - cosine).mean() + apart


def pruned(student: Any, passages: list[list[int]]) -> None:
    """By SparseGPT, a layer after the other."""
    batches = [batch_of(passages[i : i + BATCH]) for i in range(0, len(passages), BATCH)]
    for layer in range(LAYERS):
        match = MATRICES.format(layer, layer)
        with torch.autocast("cpu", torch.bfloat16):
            stats = collect(student, batches, match=match)
        prune_(student, SPARSITY, match=match, method="sparsegpt", stats=stats).release()


def held(student: Any, sparsity: float) -> HeldMasks:
    """All 36 matrices pruned by magnitude: to what is 0 already, that adds nothing."""
    return prune_(student, sparsity, match=MATRICES.format(r"\d+", r"\d+"))


def main() -> None:
    options = parser_of(__doc__, STEPS).parse_args()
    training = Training("minilm", options)
    source = real_model()
    if source is None:
        raise SystemExit("heal_minilm: no network: SKIPPED, nothing was measured")
    texts = read_texts(options.work, WordPiece.load(source / "vocab.txt"))
    teacher, student = encoder_of(source), encoder_of(source)  # no dropout, for the student neither
    reported = {name: rows for name, rows in texts.items() if name != "learned"}
    exact = {name: embeddings(teacher, rows) for name, rows in reported.items()}

    def cosines() -> dict[str, float]:
        found = {name: embeddings(student, rows) for name, rows in reported.items()}
        return {name: float((vectors * exact[name]).sum(-1).mean()) for name, vectors in found.items()}

    if training.fresh:
        held(student, SPARSITY).release()
        training.notes["by magnitude"] = cosines()
        student.load_state_dict(teacher.state_dict())
        pruned(student, texts["learned"][:CALIBRATION])
        training.notes["by SparseGPT"] = cosines()
    student.embeddings.requires_grad_(False)
    learning = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, weight_decay=0.0, fused=True)
    parts = {
        "model": student,
        "optimizer": optimizer,
        "masks": held(student, SPARSITY if training.fresh else 0.0).hold(optimizer),
    }
    training.run(
        parts, lambda step: loss_of(student, teacher, drawn(texts["learned"], step)), cosines,
        rate=RATE, warmup=WARMUP, every=LOOK,
    )  # fmt: skip
    pm.save(options.work / "minilm.safetensors", {name: w.numpy() for name, w in student.state_dict().items()})
    training.finish(healed=cosines(), passages=len(texts["learned"]))


if __name__ == "__main__":
    main()
