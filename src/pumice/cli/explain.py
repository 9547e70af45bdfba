"""``pumice explain``: how products are computed here, and what would be faster."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from pumice.checkpoint import load
from pumice.choice import PLAIN
from pumice.cli.common import DONE, add_command, add_json, add_path
from pumice.errors import near
from pumice.explanation import Explanation, explain
from pumice.layouts import CompactArray
from pumice.ops import compress
from pumice.options import ACTIVATIONS
from pumice.report import table_of


def add(commands: Any) -> None:
    """Add the command."""
    text = "how products with the matrices of a checkpoint are computed here, what they take, what would be faster"
    command = add_command(commands, "explain", text, _explain)
    add_path(command)
    add = command.add_argument
    add("tensor", nargs="?", help="one of them, in full (default: a line for each matrix)")
    add("--batch", metavar="N", type=int, default=1, help="rows of x (default: 1)")
    add("--activations", choices=ACTIVATIONS, help="how x enters integer products (default: int16)")
    add("--cold", action="store_true", help="weights from DRAM, as when a large model is decoded (default: warm)")
    add_json(command)


def _explain(options: argparse.Namespace) -> int:
    weights = load(options.path)
    if options.tensor is not None and options.tensor not in weights:
        raise ValueError(
            f"tensor: expected one of the checkpoint's, got {options.tensor!r}{near(options.tensor, weights)}"
        )
    names = list(weights) if options.tensor is None else [options.tensor]
    found: dict[str, Explanation] = {}
    for name in names:
        w = weights[name]
        if len(w.shape) != 2 or not all(w.shape):
            continue
        w = w if isinstance(w, CompactArray) else compress({name: w}, PLAIN)[name]
        if isinstance(w, CompactArray):  # integers and the like are no weights
            found[name] = explain(w, options.batch, options.activations, cold=options.cold)
    if options.tensor is not None and not found:
        raise ValueError(f"tensor: expected a matrix of weights, got {options.tensor!r}")
    if options.json:
        print(json.dumps({"path": str(options.path), "tensors": [{"name": n} | asdict(e) for n, e in found.items()]}))
    elif options.tensor is not None:
        print(found[options.tensor])
    else:
        headings = ("tensor", "shape", "scheme", "kernel", "bytes", "ms", "expected", "bound by", "fastest other")
        print(table_of(headings, [(name, *_cells(e)) for name, e in found.items()], left=4))
        for profile in {e.profile: None for e in found.values()}:
            print(f"expected: {profile}", file=sys.stderr)
    return DONE


def _cells(e: Explanation) -> tuple[str, ...]:
    expected = ("?", "?") if e.expected is None else (f"{e.expected.seconds * 1e3:.3g}", e.expected.limit)
    other = "" if e.fastest is None else f"{e.fastest.scheme} {e.fastest.expected.seconds * 1e3:.3g}"
    return (
        "x".join(map(str, e.shape)), e.scheme, e.kernel, f"{e.bytes_moved:,}", f"{e.seconds * 1e3:.3g}", *expected,
        f"{other} (NumPy)" if e.fastest is not None and e.fastest.scheme == PLAIN else other,
    )  # fmt: skip
