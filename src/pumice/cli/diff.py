"""``pumice diff``: what two checkpoints of any format differ in."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pumice.checkpoint import open_reader
from pumice.cli.common import DONE, FAILED, Display, add_command, add_json, add_path
from pumice.difference import difference

EXITS = (
    "exit codes: 0 the same names, shapes and values (with --max-error: values near enough), 1 they differ, "
    "2 usage, 65 bad data, 74 I/O error, 130 interrupted"
)


def add(commands: Any) -> None:
    """Add the command."""
    text = (
        "compare two checkpoints: names, shapes, schemes, bytes, and the error of b relative to a; in constant memory"
    )
    command = add_command(commands, "diff", text, _diff, epilog=EXITS)
    add_path(command, "a")
    add_path(command, "b")
    command.add_argument("--max-error", metavar="E", type=float, help="of a tensor, relative, that is no difference")
    add_json(command)


def _diff(options: argparse.Namespace) -> int:
    with open_reader(options.a) as a, open_reader(options.b) as b, Display() as progress:
        found = difference(a, b, (str(options.a), str(options.b)), progress)
    print(json.dumps(found.to_json()) if options.json else found)
    return DONE if (found.same if options.max_error is None else found.within(options.max_error)) else FAILED
