"""The command line: ``pumice convert | inspect | verify``, the same as ``python -m pumice``."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pumice import __version__
from pumice.checkpoint import open_reader, verify
from pumice.checkpoint.writer import MAX_SHARD_SIZE
from pumice.conversion import Progress, convert
from pumice.errors import FormatError, NonFiniteError, RecipeError, SchemeError
from pumice.recipe import FALLBACKS, Recipe
from pumice.report import table_of
from pumice.scheme import legal_table

DONE, FAILED, USAGE, BAD_DATA, IO_ERROR, INTERRUPTED = 0, 1, 2, 65, 74, 130
EPILOG = "exit codes: 0 done, 1 failed, 2 usage, 65 bad data, 74 I/O error, 130 interrupted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except (SchemeError, RecipeError) as error:
        return _fail(error, USAGE)
    except (FormatError, NonFiniteError) as error:
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
    _add_convert(commands)
    for name, run, text in (
        ("inspect", _inspect, "list the tensors of a checkpoint; reads headers only"),
        ("verify", _verify, "check every checksum and the structure of every array"),
    ):
        command = commands.add_parser(name, help=text, description=text, epilog=EPILOG)
        command.add_argument("path", type=Path, help="a weights file, or a folder with weights")
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.set_defaults(run=run)
    return parser


def _add_convert(commands: Any) -> None:
    text = "convert a checkpoint to compact weights, in constant memory"
    command = commands.add_parser(
        "convert",
        help=text,
        description=text,
        epilog=f"{EPILOG}\n\nschemes:\n{legal_table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("source", metavar="SRC", type=Path, help="a weights file, or a folder with weights")
    add("target", metavar="DST", type=Path, help="a file that ends in .safetensors, or a folder")
    add("--scheme", metavar="S", help="for weights of two or more dimensions, such as int4-g128")
    add("--recipe", metavar="F", type=Path, help="rules in TOML")
    add(
        "--tensor",
        metavar="RE=S",
        type=_tensor,
        action="append",
        default=[],
        help="a scheme for the names that RE finds",
    )
    add("--ignore", metavar="RE", action="append", default=[], help="leave the names that RE finds as they are")
    add("--keep-embeddings", action="store_true", help="leave embeddings and output heads as they are (default: int8)")
    add(
        "--group-size-fallback",
        choices=FALLBACKS,
        help="for columns that are no multiple of the group (default: a short last group)",
    )
    add(
        "--max-shard-size",
        metavar="BYTES",
        type=int,
        default=MAX_SHARD_SIZE,
        help="of the files of a folder (default: 5 GB)",
    )
    add("--overwrite", action="store_true", help="replace what is at DST (default: DST is new, or an empty folder)")
    add("--dry-run", action="store_true", help="read headers only, write nothing")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    command.set_defaults(run=_convert)


def _tensor(text: str) -> tuple[str, str]:
    pattern, equals, scheme = text.rpartition("=")
    if not equals or not pattern:
        raise argparse.ArgumentTypeError(f"expected RE=SCHEME, got {text!r}")
    return pattern, scheme


def _convert(options: argparse.Namespace) -> int:
    if options.scheme is None and options.recipe is None and not options.tensor:
        raise RecipeError("--scheme: expected it, --recipe or --tensor, got none of them")
    with _Display() as progress:
        report = convert(
            options.source,
            options.target,
            options.scheme,
            recipe=None if options.recipe is None else Recipe.load(options.recipe),
            tensors=dict(options.tensor),
            ignore=options.ignore,
            keep_embeddings=options.keep_embeddings,
            group_size_fallback=options.group_size_fallback,
            overwrite=options.overwrite,
            dry_run=options.dry_run,
            max_shard_size=options.max_shard_size,
            progress=progress,
        )
    if options.json:
        print(json.dumps(report.to_json()))
        return DONE
    print(report)
    if report.skipped:
        print(f"not copied (other weights): {', '.join(report.skipped)}", file=sys.stderr)
    if not options.dry_run:
        print(f"{report.target}: written in {report.seconds:.1f} s", file=sys.stderr)
    return DONE


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


def _fail(error: object, code: int) -> int:
    print(f"pumice: {error}", file=sys.stderr)
    return code


class _Display:
    """Progress on stderr, to a terminal only: a bar with rich, plain lines without."""

    def __init__(self) -> None:
        self._close: Callable[[], None] = lambda: None

    def __enter__(self) -> Progress | None:
        if not sys.stderr.isatty():
            return None
        try:
            from rich.console import Console
            from rich.progress import Progress as Bar
        except ImportError:
            return _Lines()
        bar = Bar(console=Console(stderr=True), transient=True)
        task = bar.add_task("reading", total=None)
        bar.start()
        self._close = bar.stop
        return lambda name, done, total: bar.update(task, description=name, completed=done, total=total)

    def __exit__(self, *error: object) -> None:
        self._close()


class _Lines:
    """A line a second at most."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next or done >= total:
            self._next = now + 1
            print(f"{done / max(total, 1):4.0%}  {name}", file=sys.stderr)
