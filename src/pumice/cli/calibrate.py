"""``pumice calibrate``: what the layers of a model read, for the algorithms that need to know."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pumice.checkpoint import SafetensorsWriter, TensorInfo, load
from pumice.checkpoint.dtypes import dtype_name
from pumice.cli.common import DONE, Display, add_command, add_json, add_path
from pumice.cli.forward_file import add_forward, load_forward
from pumice.forwards import MEMORY, SAMPLES, passes
from pumice.report import table_of
from pumice.statistics import CalibrationStats, packed


def add(commands: Any) -> None:
    """Add the command."""
    text = (
        "run a forward and keep the second moments of each layer's inputs, for convert --stats: in one pass over the "
        "data if they fit into --memory, else in several, as many layers a pass as fit"
    )
    command = add_command(commands, "calibrate", text, _calibrate)
    add_path(command)
    add_forward(command, SAMPLES)
    add = command.add_argument
    add("-o", "--output", metavar="F", type=Path, required=True, help="a file that ends in .safetensors")
    add("--merge", metavar="F", type=Path, help="add to what an earlier run found, of other data or other layers")
    add("--memory", metavar="BYTES", type=int, default=MEMORY, help="of sums at a time (default: 4 GiB)")
    add("--overwrite", action="store_true", help="replace what is at F")
    add_json(command)


def _calibrate(options: argparse.Namespace) -> int:
    if options.output.suffix != ".safetensors":
        raise ValueError(f"output: expected a name that ends in .safetensors, got {str(options.output)!r}")
    start = time.perf_counter()
    forward = load_forward(options.forward)
    earlier = CalibrationStats() if options.merge is None else CalibrationStats.unpack(load(options.merge, io="read"))
    layers: dict[str, tuple[int, int]] = {}
    with SafetensorsWriter(options.output, overwrite=options.overwrite) as writer, Display() as progress:
        found = passes(
            load(options.path),
            forward,
            options.data,
            samples=options.samples,
            seed=options.seed,
            memory=options.memory,
            progress=progress,
            **dict(options.set),
        )
        for name, array in packed(_noted(_merged(found, earlier), layers)):
            writer.begin(name, TensorInfo(array.shape, dtype_name(array.dtype), array.nbytes))
            writer.write("", array)
        writer.commit()
    seconds = time.perf_counter() - start
    if options.json:
        some = [{"name": name, "features": n, "rows": rows} for name, (n, rows) in layers.items()]
        print(json.dumps({"path": str(options.output), "seconds": seconds, "layers": some}))
        return DONE
    print(table_of(("layer", "inputs", "rows"), [(n, f"{f:,}", f"{r:,}") for n, (f, r) in layers.items()], left=1))
    print(f"{options.output}: written in {seconds:.1f} s", file=sys.stderr)
    return DONE


def _merged(parts: Iterator[CalibrationStats], earlier: CalibrationStats) -> Iterator[CalibrationStats]:
    """Each part with what is known of its layers; at last the layers that are in none."""
    for part in parts:
        known = earlier.take(part)
        if known:
            part.merge(known)
            part.settle()
        yield part
    if earlier:
        yield earlier


def _noted(parts: Iterator[CalibrationStats], layers: dict[str, tuple[int, int]]) -> Iterator[CalibrationStats]:
    for part in parts:
        layers |= {name: (moments.features, moments.count) for name, moments in part.items()}
        yield part
