"""``pumice inspect``: what a checkpoint holds."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from pumice.checkpoint import open_reader
from pumice.cli.common import DONE, add_command, add_json, add_path
from pumice.report import table_of


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, "inspect", "list the tensors of a checkpoint; reads headers only", _inspect)
    add_path(command)
    add_json(command)


def _inspect(options: argparse.Namespace) -> int:
    with open_reader(options.path) as reader:
        infos = {name: reader.info(name) for name in reader.names()}
    if options.json:
        tensors = [
            {"name": name, "shape": i.shape, "scheme": i.dtype, "nbytes": i.nbytes, **i.notes}
            for name, i in infos.items()
        ]
        print(json.dumps({"path": str(options.path), "tensors": tensors}))
        return DONE
    rows = []
    for name, info in infos.items():
        size = math.prod(info.shape)
        bits = f"{8 * info.nbytes / size:.2f}" if size else ""
        error = info.notes.get("error")
        known = f"{error:.4g}" if isinstance(error, int | float) else ""
        rows.append((name, "x".join(map(str, info.shape)), info.dtype, f"{info.nbytes:,}", bits, known))
    rows.append(("total", "", "", f"{sum(info.nbytes for info in infos.values()):,}", "", ""))
    print(table_of(("tensor", "shape", "scheme", "bytes", "bits/weight", "error"), rows))
    return DONE
