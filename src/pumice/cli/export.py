"""``pumice export``: a checkpoint for other programs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pumice.checkpoint.writer import MAX_SHARD_SIZE
from pumice.cli.common import DONE, Display, add_command, add_json
from pumice.errors import printable
from pumice.exporting import export
from pumice.exporting.base import FLOATS

TEXTS = {
    "dense": "plain safetensors, every weight decoded",
    "ct": "compressed-tensors, which transformers and vLLM load",
    "gguf": "llama.cpp's format, in the place of the weights of a GGUF file of the same model",
    "npz": "archives that numpy.load and scipy.sparse.load_npz read",
}
SUFFIXES = {
    "dense": ".safetensors, or a folder",
    "ct": ".safetensors, or a folder",
    "gguf": ".gguf",
    "npz": ".npz, or a folder",
}


def add(commands: Any) -> None:
    """Add the command."""
    text = "write a checkpoint for other programs"
    formats = commands.add_parser("export", help=text, description=text).add_subparsers(required=True, metavar="FORMAT")
    for name, about in TEXTS.items():
        command = add_command(formats, name, about, _export)
        option = command.add_argument
        option("source", metavar="SRC", help="a weights file, a folder with weights, or a URL of one")
        option("target", metavar="DST", help=f"a file that ends in {SUFFIXES[name]}")
        if name == "gguf":
            _add_template(option)
        else:
            dtypes = [dtype for dtype in FLOATS if name != "npz" or dtype != "bfloat16"]
            option("--dtype", choices=dtypes, default="float32", help="of what is decoded (default: float32)")
        if name in ("dense", "ct"):
            option("--max-shard-size", metavar="BYTES", type=int, default=MAX_SHARD_SIZE, help="(default: 5 GB)")
        option("--overwrite", action="store_true", help="replace what is at DST")
        add_json(command)
        command.set_defaults(format=name)


def _add_template(option: Any) -> None:
    option("--template", metavar="F", type=Path, required=True, help="a GGUF file of the same model, of any type")
    option("--allow-rounding", action="store_true", help="round scales that are no float16 (default: refuse)")
    option("--check", action="store_true", help="refuse weights that are nothing like the template's")


def _export(options: argparse.Namespace) -> int:
    names = ("dtype", "max_shard_size", "template", "allow_rounding", "check")
    some = {name: getattr(options, name) for name in names if hasattr(options, name)}
    with Display() as progress:
        report = export(
            options.source,
            options.target,
            options.format,
            overwrite=options.overwrite,
            progress=progress,
            **some,
        )
    if options.json:
        print(json.dumps(report.to_json()))
        return DONE
    print(report)
    for tensor in report.tensors:
        if tensor.why:
            print(printable(f"{tensor.name}: {tensor.why}"), file=sys.stderr)
    print(f"{report.target}: written in {report.seconds:.1f} s", file=sys.stderr)
    return DONE
