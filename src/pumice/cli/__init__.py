"""The command line, ``pumice COMMAND``, the same as ``python -m pumice``. One file a command, one import line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pumice import __version__
from pumice.cli import bench, calibrate, cat, convert, diff, eval, explain, export, inspect, report, verify
from pumice.cli.common import BAD_DATA, EPILOG, FAILED, INTERRUPTED, IO_ERROR, RETRY, USAGE
from pumice.errors import (
    BusyError,
    FormatError,
    NonFiniteError,
    RecipeError,
    ResumeError,
    SchemeError,
    SourceChangedError,
    ToleranceError,
)

COMMANDS = (
    convert,
    calibrate,
    eval,
    export,
    inspect,
    report,
    cat,
    diff,
    verify,
    explain,
    bench,
)  # in the order of the help


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except BusyError as error:
        return _fail(error, RETRY)
    except (SchemeError, RecipeError, ResumeError) as error:
        return _fail(error, USAGE)
    except (FormatError, NonFiniteError, SourceChangedError, ToleranceError) as error:
        return _fail(error, BAD_DATA)
    except FileExistsError as error:
        return _fail(error, USAGE)
    except OSError as error:
        return _fail(error, IO_ERROR)
    except (ValueError, TypeError, MemoryError) as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted; the target is as it was", INTERRUPTED)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pumice", epilog=EPILOG, description="Pruned and quantized weights at their true size, on CPU."
    )
    parser.add_argument("--version", action="version", version=f"pumice {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


def _fail(error: object, code: int) -> int:
    print(f"pumice: {error}", file=sys.stderr)
    return code
