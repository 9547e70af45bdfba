"""Trains examples/austen: a small LLaMA on five novels by Jane Austen, tried on the sixth.

    python3 -m venv /tmp/v && /tmp/v/bin/pip install torch==2.13.0 && /tmp/v/bin/pip install tokenizers safetensors
    /tmp/v/bin/python tools/train_austen.py --work /tmp/austen --out examples/austen

torch first, and this version: on PyPI it is the CPU build. The work folder holds the text and, every minute, the state
of the training: the same command goes on from there, to the same weights as if it had not been interrupted. Between
machines the weights differ by rounding, the perplexity in its third digit or later.

Of Persuasion, which the training never sees, the first twelve chapters are to choose recipes by and the others to
report: the excerpt is of these.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from austen_text import novels, package
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

HELD_OUT = "persuasion"
CUT = "\nChapter 13\n"
EXCERPT = 60_000  # characters, and on to the end of the paragraph
VOCABULARY, CONTEXT = 1024, 256
WIDTH, INNER, LAYERS, HEADS, KV_HEADS = 256, 640, 4, 4, 2
HEAD = WIDTH // HEADS
EPSILON, THETA = 1e-5, 10000.0
PROCESSES = 2  # each takes its part of a batch, on one thread: on two cores faster than one process on two threads
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": EPSILON,
    "rope_theta": THETA,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "float16",
}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.k_proj = nn.Linear(WIDTH, KV_HEADS * HEAD, bias=False)
        self.v_proj = nn.Linear(WIDTH, KV_HEADS * HEAD, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD, WIDTH, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, dim=1) for t in (rotated(k, turns), v))
        mixed = F.scaled_dot_product_attention(rotated(q, turns), k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.up_proj = nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(WIDTH, EPSILON)
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(WIDTH, EPSILON)
        self.mlp = MLP()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), turns))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Decoder(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block(dropout) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(ids.shape[1]), THETA ** (-torch.arange(0, HEAD, 2) / HEAD)).repeat(1, 2)
        x = self.dropout(self.embed_tokens(ids))
        for layer in self.layers:
            x = layer(x, (angles.cos(), angles.sin()))
        return self.norm(x)


class Llama(nn.Module):
    """Hugging Face's LlamaForCausalLM in shape and in the names of its tensors; the embedding is its head too."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.model = Decoder(dropout)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if into_stream else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.model(ids), self.model.embed_tokens.weight)


def rotated(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions, pairs half a head apart."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = turns
    return (x * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)


def trained_tokenizer(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # all bytes: any text has tokens
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


@torch.no_grad()
def surprise(model: Llama, ids: Tensor) -> tuple[float, int]:
    """The sum over all tokens (in nats) and their number, in windows whose first token is not scored."""
    total = 0.0
    whole = len(ids) // CONTEXT * CONTEXT
    parts = [*ids[:whole].view(-1, CONTEXT).split(16), ids[None, whole:]]
    count = sum(part.shape[0] * max(part.shape[1] - 1, 0) for part in parts)
    for part in parts:
        if part.shape[1] > 1:
            logits = model(part[:, :-1]).float()
            total += F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
    return total, count


class Training:
    """Steps of AdamW; what has been done so far is in `state.pt` of the work folder."""

    def __init__(self, options: argparse.Namespace, train: Tensor, valid: Tensor) -> None:
        self.o, self.train, self.valid = options, train, valid
        torch.manual_seed(options.seed)
        self.model = Llama(options.dropout)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        norms = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "weight_decay": options.decay}, {"params": norms, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
        self.step, self.seconds = 0, 0.0
        self.recipe = {k: v for k, v in vars(options).items() if k not in ("work", "out")}
        self.path = options.work / "state.pt"
        if self.path.is_file():
            self.resume(torch.load(self.path))

    def resume(self, state: dict[str, Any]) -> None:
        if state["recipe"] != self.recipe:
            raise SystemExit(f"{self.path}: expected a training by {self.recipe}, got {state['recipe']}; remove it")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"going on from step {self.step}")

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "recipe": self.recipe}
        scratch = self.path.with_suffix(".new")
        torch.save(state | {"step": self.step, "seconds": self.seconds}, scratch)
        os.replace(scratch, self.path)

    def rate(self) -> float:
        """Up in 100 steps, level, and down to 0 in the last 30 %."""
        return self.o.rate * min(1.0, (self.step + 1) / 100, (self.o.steps - self.step) / (0.3 * self.o.steps))

    def one_step(self) -> float:
        """Batch and dropout depend on seed and step alone, so that going on later changes nothing."""
        seed, rank = self.o.seed * 1_000_003 + self.step, dist.get_rank()
        torch.manual_seed(seed)
        starts = torch.randint(len(self.train) - CONTEXT, (self.o.batch, 1))[rank::PROCESSES]
        rows = self.train[starts + torch.arange(CONTEXT + 1)]
        torch.manual_seed(seed * PROCESSES + rank)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.o.bfloat16):
            logits = self.model(rows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.average_gradients()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def average_gradients(self) -> None:
        gradients = [p.grad for p in self.model.parameters()]
        mean = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(mean)
        for g, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            torch.div(part.view_as(g), PROCESSES, out=g)

    def run(self) -> None:
        """All steps that are left; the first process reports and saves."""
        first, saved, mean = dist.get_rank() == 0, time.monotonic(), None
        if first:
            print(f"{sum(p.numel() for p in self.model.parameters()):,} parameters, {self.o.steps} steps", flush=True)
        while self.step < self.o.steps:
            before = time.process_time()
            loss = self.one_step()
            self.seconds += time.process_time() - before
            mean = loss if mean is None else 0.98 * mean + 0.02 * loss
            if first and (self.step % 500 == 0 or self.step == self.o.steps):
                self.report(mean)
            if first and (time.monotonic() - saved > 60 or self.step == self.o.steps):
                self.save()
                saved = time.monotonic()

    def report(self, mean: float) -> None:
        self.model.eval()
        total, count = surprise(self.model, self.valid)
        self.model.train()
        print(f"step {self.step}: {mean:.3f}, held out {total / count:.4f}, {self.seconds:.0f} s", flush=True)


def write(out: Path, tokenizer: Tokenizer, model: Llama, excerpt: str) -> dict[str, Any]:
    """The folder, in float16; and what it does on the excerpt, computed in float32."""
    out.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(halves, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "held_out.txt").write_text(excerpt, "utf-8")
    model.load_state_dict({name: tensor.float() for name, tensor in halves.items()})
    ids = tokenizer.encode(excerpt).ids
    total, count = surprise(model.eval(), torch.tensor(ids))
    size = sum(len(tokenizer.id_to_token(token)) for i, token in enumerate(ids) if i % CONTEXT)  # a letter is a byte
    return {"tokens": count, "perplexity": math.exp(total / count), "bits per byte": total / math.log(2) / size}


def work(rank: int, options: argparse.Namespace) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    texts = novels(options.work)
    valid, _, test = texts.pop(HELD_OUT).partition(CUT)
    tokenizer = trained_tokenizer("".join(texts.values()))
    stream = [i for text in texts.values() for i in [0, *tokenizer.encode(text).ids]]
    held_out = torch.tensor(tokenizer.encode(valid).ids)
    if rank == 0:
        print(f"{len(stream):,} tokens of {sum(map(len, texts.values())):,} characters; held out {len(held_out):,}")
    meeting = f"file://{(options.work / 'meeting').resolve()}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES, timeout=timedelta(hours=1))
    training = Training(options, torch.tensor(stream), held_out)
    training.run()
    if rank == 0:
        test = CUT.strip() + "\n" + test
        excerpt = test[: test.index("\n", EXCERPT) + 1]
        print(json.dumps(write(options.out, tokenizer, training.model, excerpt)))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True, help="products in bfloat16")
    options = parser.parse_args()
    package(options.work)
    (options.work / "meeting").unlink(missing_ok=True)
    mp.spawn(work, (options,), PROCESSES)


if __name__ == "__main__":
    main()
