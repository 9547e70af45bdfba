"""``pumice eval``: how good a model is."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pumice.checkpoint import load
from pumice.cli.common import DONE, Display, add_command, add_json, add_path
from pumice.cli.forward_file import add_forward, load_forward
from pumice.forwards import evaluate
from pumice.options import ACTIVATIONS
from pumice.options import options as with_options


def add(commands: Any) -> None:
    """Add the command."""
    text = (
        "perplexity, of a forward whose pieces give the surprises of tokens (vectors of -log p), or the cosine to a "
        "reference, of one whose pieces give vectors (matrices)"
    )
    command = add_command(commands, "eval", text, _eval)
    add_path(command)
    add_forward(command, None)
    add = command.add_argument
    add("--reference", metavar="PATH", help="weights to compare with, in the same forward")
    add("--activations", choices=ACTIVATIONS, default="int16", help="how x enters integer products (default: int16)")
    add_json(command)


def _eval(options: argparse.Namespace) -> int:
    forward = load_forward(options.forward)
    with Display() as progress, with_options(activations=options.activations):
        found = evaluate(
            load(options.path),
            forward,
            options.data,
            reference=None if options.reference is None else load(options.reference),
            samples=options.samples,
            seed=options.seed,
            progress=progress,
            **dict(options.set),
        )
    print(json.dumps({"path": str(options.path)} | found.to_json()) if options.json else found)
    return DONE
