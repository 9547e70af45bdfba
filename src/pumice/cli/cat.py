"""``pumice cat``: the numbers of a tensor."""

from __future__ import annotations

import argparse
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint import Reader, TensorInfo, open_reader
from pumice.cli.common import DONE, add_command, add_json, add_path, check_output, find_tensor, publish_file

Index = int | slice


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands, "cat", "print the numbers of a tensor, decoded; reads the rows that are asked for", _cat
    )
    add_path(command)
    add = command.add_argument
    add("tensor", help="its name")
    add(
        "--slice",
        metavar="S",
        type=_indices,
        default=(),
        help='as in Python, such as "0:4,:8" (default: all, abridged)',
    )
    add("-o", "--output", metavar="FILE.npy", type=Path, help="write them there, as NumPy does, instead")
    add("--overwrite", action="store_true", help="replace FILE.npy")
    add_json(command)


def _indices(text: str) -> tuple[Index, ...]:
    found: list[Index] = []
    for part in text.split(","):
        try:
            numbers = [int(number) if number.strip() else None for number in part.split(":")]
        except ValueError:
            numbers = []
        if not 1 <= len(numbers) <= 3 or numbers == [None] or (len(numbers) == 3 and numbers[2] == 0):
            raise argparse.ArgumentTypeError(f"expected indices and slices such as 0:4,:8, got {text!r}")
        found.append(slice(*numbers) if len(numbers) > 1 else int(part))
    return tuple(found)


def _cat(options: argparse.Namespace) -> int:
    if options.output is not None:
        check_output(options.output, ".npy", options.overwrite)
    with open_reader(options.path) as reader:
        info = find_tensor(reader, options.tensor)
        values = _read(reader, options.tensor, info, options.slice)
    if options.output is not None:
        publish_file(options.output, partial(_save, values))
    elif options.json:
        table = {"name": options.tensor, "shape": info.shape, "scheme": info.dtype, "values": _plain(values.tolist())}
        print(json.dumps(table))
    else:
        print(f"{options.tensor}: {info.dtype} {info.shape}, {values.shape} of it", file=sys.stderr)
        some = sys.maxsize if options.slice else 1000
        print(np.array2string(values, threshold=some, max_line_width=120, separator=" "))
    return DONE


def _read(reader: Reader, name: str, info: TensorInfo, index: tuple[Index, ...]) -> NDArray[Any]:
    """The part that an index selects; no rows are decoded but those that it touches, and those between."""
    if len(index) > len(info.shape):
        raise ValueError(f"slice: expected at most {len(info.shape)} axes, got {len(index)}")
    for axis, (one, length) in enumerate(zip(index, info.shape, strict=False)):
        if isinstance(one, int) and not -length <= one < length:
            raise ValueError(f"slice: expected an index in [{-length}, {length}) for axis {axis}, got {one}")
    if not info.shape:
        return reader.rows(name, 0, 1).reshape(())
    first = index[0] if index else slice(None)
    one = isinstance(first, int)
    chosen = range(info.shape[0])[slice(first, first + 1 or None) if isinstance(first, int) else first]
    start, stop = (min(chosen), max(chosen) + 1) if chosen else (0, 0)
    rows = reader.rows(name, start, stop)[np.array(chosen, int) - start]
    part: NDArray[Any] = rows[(slice(None), *index[1:])]
    return part[0] if one else part


def _save(values: NDArray[Any], out: IO[bytes]) -> None:
    np.save(out, values, allow_pickle=False)


def _plain(values: Any) -> Any:
    """For JSON, which has no NaN, infinity or complex numbers: those become texts."""
    if isinstance(values, list):
        return [_plain(value) for value in values]
    ordinary = not isinstance(values, complex) and (not isinstance(values, float) or math.isfinite(values))
    return values if ordinary else str(values)
