"""``pumice export``: a checkpoint for other programs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pumice.checkpoint.writer import MAX_SHARD_SIZE
from pumice.cli.common import DONE, Display, add_command, add_json
from pumice.exporting import export
from pumice.exporting.base import FLOATS

TEXTS = {
    "dense": "plain safetensors, every weight decoded",
    "ct": "compressed-tensors, which transformers and vLLM load",
    "npz": "archives that numpy.load and scipy.sparse.load_npz read",
}


def add(commands: Any) -> None:
    """Add the command."""
    text = "write a checkpoint for other programs"
    formats = commands.add_parser("export", help=text, description=text).add_subparsers(required=True, metavar="FORMAT")
    for name, about in TEXTS.items():
        command = add_command(formats, name, about, _export)
        suffix = ".npz" if name == "npz" else ".safetensors"
        add_option = command.add_argument
        add_option("source", metavar="SRC", type=Path, help="a weights file, or a folder with weights")
        add_option("target", metavar="DST", type=Path, help=f"a file that ends in {suffix}, or a folder")
        dtypes = [dtype for dtype in FLOATS if name != "npz" or dtype != "bfloat16"]
        add_option("--dtype", choices=dtypes, default="float32", help="of what is decoded (default: float32)")
        if name != "npz":
            add_option("--max-shard-size", metavar="BYTES", type=int, default=MAX_SHARD_SIZE, help="(default: 5 GB)")
        add_option("--overwrite", action="store_true", help="replace what is at DST")
        add_json(command)
        command.set_defaults(format=name)


def _export(options: argparse.Namespace) -> int:
    shards = {} if options.format == "npz" else {"max_shard_size": options.max_shard_size}
    with Display() as progress:
        report = export(
            options.source,
            options.target,
            options.format,
            dtype=options.dtype,
            overwrite=options.overwrite,
            progress=progress,
            **shards,
        )
    if options.json:
        print(json.dumps(report.to_json()))
        return DONE
    print(report)
    for tensor in report.tensors:
        if tensor.why:
            print(f"{tensor.name}: {tensor.why}", file=sys.stderr)
    print(f"{report.target}: written in {report.seconds:.1f} s", file=sys.stderr)
    return DONE
