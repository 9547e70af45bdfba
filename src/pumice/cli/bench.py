"""``pumice bench``: products beside NumPy, and the profile of this machine."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pumice.calibration import calibrate
from pumice.cli.common import DONE, Display, add_command, add_json
from pumice.comparison import compare_with_numpy
from pumice.options import ACTIVATIONS
from pumice.profile import save_profile
from pumice.report import table_of


def add(commands: Any) -> None:
    """Add the command."""
    text = "time products beside NumPy on this machine, or measure the profile that `explain` estimates with"
    command = add_command(commands, "bench", text, _bench)
    add = command.add_argument
    add("--shape", metavar="RxC", type=_shape, default=(4096, 4096), help="of the weight (default: 4096x4096)")
    add("--schemes", metavar="S", nargs="+", default=["int8", "int4-g128"], help="(default: int8 int4-g128)")
    add("--batches", metavar="N", nargs="+", type=int, default=[1, 16, 64], help="rows of x (default: 1 16 64)")
    add("--activations", choices=ACTIVATIONS, help="how x enters integer products (default: int16)")
    add("--rounds", metavar="N", type=int, default=5, help="of which medians are taken (default: 5)")
    add("--hot", action="store_true", help="one copy of each weight (default: copies that no cache holds)")
    add("--calibrate", action="store_true", help="measure this machine's profile instead, and keep it (two minutes)")
    add_json(command)


def _shape(text: str) -> tuple[int, int]:
    rows, x, cols = text.partition("x")
    if not x or not rows.isdecimal() or not cols.isdecimal():
        raise argparse.ArgumentTypeError(f"expected ROWSxCOLS, got {text!r}")
    return int(rows), int(cols)


def _bench(options: argparse.Namespace) -> int:
    if options.calibrate:
        return _calibrate(options.json)
    with Display() as progress:
        found = compare_with_numpy(
            options.shape,
            options.schemes,
            options.batches,
            activations=options.activations,
            cold=not options.hot,
            rounds=options.rounds,
            progress=progress,
        )
    print(json.dumps(found.to_json()) if options.json else found)
    return DONE


def _calibrate(as_json: bool) -> int:
    with Display() as progress:
        profile = calibrate(progress)
    path = save_profile(profile)
    if as_json:
        print(json.dumps(profile.to_json()))
    else:
        sizes = [(f"{b.nbytes:,}", str(b.threads), f"{b.gbytes:.1f}") for b in profile.bandwidths]
        print(table_of(("bytes read over and over", "threads", "GB/s"), sizes, left=0))
        rates = []
        for r in profile.rates:
            gops = ", ".join(f"{batch}: {value:.4g}" for batch, value in r.gops.items())
            rates.append((r.kernel, r.activations, str(r.bits), str(r.unit), str(r.threads), gops))
        print(table_of(("kernel", "activations", "bits", "unit", "threads", "batch: Gop/s"), rates, left=2))
    print(f"{path}: {profile.cpu}, {profile.isa}, {profile.source}", file=sys.stderr)
    return DONE
