"""What the trainings of bench/heal_austen.py and bench/heal_minilm.py share: options, and steps that can be stopped."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
SEED = 0
SAVE_SECONDS = 60


def parser_of(page: str | None, steps: int) -> argparse.ArgumentParser:
    """The options of a training; `page` is what its script says of itself."""
    parser = argparse.ArgumentParser(description=str(page).split("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "heal")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--threads", type=int, default=2)
    return parser


class Training:
    """Steps of an optimiser that go on from where they were stopped, to the same weights: what is random depends on the
    seed and the step alone.

    `notes` are what there is to say of it: steps, threads, seconds of CPU, the curve, and what its script adds. State
    and notes are files of the work folder, NAME.pt and NAME.json.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        options.work.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(options.threads)
        torch.manual_seed(SEED)
        self.name, self.work, self.steps = name, options.work, options.steps
        self._path = options.work / f"{name}.pt"
        self._state = torch.load(self._path) if self._path.is_file() else None
        self.notes: dict[str, Any] = {"steps": options.steps, "threads": options.threads, "seconds": 0.0, "curve": []}
        self._step = 0
        if self._state is not None:
            self._step, self.notes = self._state["step"], self._state["notes"]
            if self.notes["steps"] != self.steps:
                rule = f"a training of {self.steps} steps"
                raise SystemExit(f"{self._path}: expected {rule}, got one of {self.notes['steps']}; remove it")

    @property
    def fresh(self) -> bool:
        return self._state is None

    def run(
        self, parts: Mapping[str, Any], loss: Callable[[int], Tensor], look: Callable[[], Any],
        *, rate: float, warmup: int, every: int,
    ) -> None:  # fmt: skip
        """Train to the end.

        `parts` have a state each: "model", "optimizer", and what else the training needs, such as "masks" and a
        "schedule" that takes steps. `loss(step)` is that of a batch; `look()` goes into the curve after each `every`
        steps. The rate rises for `warmup` steps, then falls to 0, both in a line.
        """
        for name, state in (self._state or {"parts": {}})["parts"].items():
            parts[name].load_state_dict(state)
        if self.fresh:
            self._look(look)
        model, optimizer = parts["model"], parts["optimizer"]
        saved = time.monotonic()
        while self._step < self.steps:
            begun = time.process_time()
            optimizer.zero_grad()
            loss(self._step).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            fall = (self.steps - self._step) / (self.steps - warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate * min((self._step + 1) / warmup, fall, 1.0)
            optimizer.step()
            if "schedule" in parts:
                parts["schedule"].step()
            self._step += 1
            self.notes["seconds"] += time.process_time() - begun
            last = self._step == self.steps
            if self._step % every == 0 or last:
                self._look(look)
            if time.monotonic() - saved > SAVE_SECONDS or last:
                self._save(parts)
                saved = time.monotonic()

    def _look(self, look: Callable[[], Any]) -> None:
        self.notes["curve"].append((self._step, look()))
        print(
            f"{self.name} step {self._step}: {self.notes['curve'][-1][1]}, {self.notes['seconds']:.0f} s of CPU",
            flush=True,
        )

    def _save(self, parts: Mapping[str, Any]) -> None:
        state = {"parts": {name: part.state_dict() for name, part in parts.items()}, "step": self._step}
        scratch = self._path.with_suffix(".new")
        torch.save(state | {"notes": self.notes}, scratch)
        os.replace(scratch, self._path)

    def finish(self, **found: Any) -> None:
        """Write the notes, with what was found in the end."""
        (self.work / f"{self.name}.json").write_text(json.dumps(self.notes | found))
