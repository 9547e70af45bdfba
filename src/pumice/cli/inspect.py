"""``pumice inspect``: what a checkpoint of any format holds."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from pumice.checkpoint import Reader, TensorInfo, open_reader
from pumice.checkpoint.fingerprint import sources_of
from pumice.cli.common import DONE, add_command, add_json, add_path
from pumice.errors import printable
from pumice.report import table_of

SHOWN = 20  # entries of the metadata for people, and characters of each
WIDTH = 80


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, "inspect", "list the tensors of a checkpoint; reads headers only", _inspect)
    add_path(command)
    add_json(command)


def _inspect(options: argparse.Namespace) -> int:
    with open_reader(options.path) as reader:
        infos = {name: reader.info(name) for name in reader.names()}
        if options.json:
            print(
                json.dumps(
                    {"path": str(options.path), **_facts(reader), "tensors": [*map(_json, infos, infos.values())]}
                )
            )
            return DONE
        print(f"{options.path}: {_title(reader)}, {len(infos)} tensors")
        if made_from := sources_of(reader):
            print(f"  made from arrays of the fingerprint {made_from}")
        texts = {key: text for key, text in reader.metadata.items() if not key.startswith("pumice.")}
    for key, text in list(texts.items())[:SHOWN]:
        print(printable(f"  {key}: {text if len(text) <= WIDTH else text[:WIDTH] + '...'}"))
    if len(texts) > SHOWN:
        print(f"  ... and {len(texts) - SHOWN} more (--json)")
    rows = [(name, *_cells(info)) for name, info in infos.items()]
    size, nbytes = sum(math.prod(i.shape) for i in infos.values()), sum(i.nbytes for i in infos.values())
    rows.append(("total", f"{size:,} values", "", f"{nbytes:,}", f"{8 * nbytes / size:.2f}" if size else "", ""))
    print(table_of(("tensor", "shape", "scheme", "bytes", "bits/weight", "error"), rows))
    return DONE


def _facts(reader: Reader) -> dict[str, Any]:
    facts = {"format": reader.format, "conventions": dict(reader.conventions), "metadata": dict(reader.metadata)}
    return facts | {"made_from": sources_of(reader)}


def _title(reader: Reader) -> str:
    """Format and conventions in one line."""
    found = ", ".join(f"{count} by {name}" for name, count in reader.conventions.items())
    return f"{reader.format} ({found})" if found else reader.format


def _json(name: str, info: TensorInfo) -> dict[str, Any]:
    size = math.prod(info.shape)
    bits = 8 * info.nbytes / size if size else None
    own = {"name": name, "shape": info.shape, "scheme": info.dtype, "nbytes": info.nbytes, "bits_per_weight": bits}
    return own | dict(info.notes)


def _cells(info: TensorInfo) -> tuple[str, ...]:
    size, error = math.prod(info.shape), info.notes.get("error")
    return (
        "x".join(map(str, info.shape)),
        info.dtype,
        f"{info.nbytes:,}",
        f"{8 * info.nbytes / size:.2f}" if size else "",
        f"{error:.4g}" if isinstance(error, int | float) else "",
    )
