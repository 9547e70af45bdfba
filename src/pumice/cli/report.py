"""``pumice report``: one page about a checkpoint, to look at."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pumice import __version__
from pumice.checkpoint import open_reader
from pumice.cli.common import DONE, Display, add_command, add_json, add_path, check_output, publish_file
from pumice.difference import difference
from pumice.page import page
from pumice.survey import Survey, survey


def add(commands: Any) -> None:
    """Add the command."""
    text = (
        "write a page about a checkpoint of any format: bytes and error by layer, histograms, where the zeros are; "
        "reads all values, in constant memory"
    )
    command = add_command(commands, "report", text, _report)
    add_path(command)
    add = command.add_argument
    add("-o", "--output", metavar="FILE.html", type=Path, help="the page (default: report.html; none with --json)")
    add("--against", metavar="ORIGINAL", help="measure errors against this checkpoint")
    add("--overwrite", action="store_true", help="replace FILE.html")
    add_json(command)


def _report(options: argparse.Namespace) -> int:
    output = options.output or (None if options.json else Path("report.html"))
    if output is not None:
        check_output(output, ".html", options.overwrite)
    with open_reader(options.path) as reader, Display() as progress:
        found = survey(reader, str(options.path), progress)
        if options.against is not None:
            with open_reader(options.against) as original:
                differs = difference(original, reader, (str(options.against), str(options.path)), progress)
            found = _measured(found, {t.name: (t.error, t.a.nbytes if t.a else None) for t in differs.tensors})
    if output is not None:
        text = page(found, __version__).encode()
        publish_file(output, lambda out: out.write(text))
    print(json.dumps(found.to_json()) if options.json else f"{output}: {len(found.tensors)} arrays")
    return DONE


def _measured(found: Survey, known: dict[str, tuple[float | None, int | None]]) -> Survey:
    """The survey with errors and bytes of the checkpoint that it is compared with."""
    tensors = []
    for t in found.tensors:
        error, before = known[t.name]
        tensors.append(replace(t, error=error, nbytes_before=t.nbytes_before if before is None else before))
    return replace(found, tensors=tuple(tensors))
