"""``pumice verify``: are the files as they were written?"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pumice.checkpoint import verify
from pumice.cli.common import BAD_DATA, DONE, add_command, add_json, add_path


def add(commands: Any) -> None:
    """Add the command."""
    command = add_command(commands, "verify", "check every checksum and the structure of every array", _verify)
    add_path(command)
    add_json(command)


def _verify(options: argparse.Namespace) -> int:
    report = verify(options.path)
    if options.json:
        errors = [str(error) for error in report.errors]
        table = {"path": report.path, "ok": report.ok, "tensors": report.tensors}
        print(json.dumps(table | {"unchecked": list(report.unchecked), "errors": errors}))
    else:
        for error in report.errors:
            print(error, file=sys.stderr)
        unchecked = f", {len(report.unchecked)} without a checksum" if report.unchecked else ""
        print(f"{report.path}: {'good' if report.ok else 'BAD'}: {report.tensors} tensors match{unchecked}")
    return DONE if report.ok else BAD_DATA
