"""The command line: ``pumice convert | inspect | verify | explain | bench``, the same as ``python -m pumice``."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pumice import __version__
from pumice.calibration import calibrate
from pumice.checkpoint import load, open_reader, verify
from pumice.checkpoint.writer import MAX_SHARD_SIZE
from pumice.choice import OBJECTIVES, PLAIN
from pumice.comparison import compare_with_numpy
from pumice.conversion import Progress, convert
from pumice.errors import FormatError, NonFiniteError, RecipeError, SchemeError
from pumice.explanation import Explanation, explain
from pumice.layouts import CompactArray
from pumice.ops import compress
from pumice.options import ACTIVATIONS
from pumice.profile import save_profile
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
    _add_explain(commands)
    _add_bench(commands)
    return parser


def _add_explain(commands: Any) -> None:
    text = "how products with the matrices of a checkpoint are computed here, what they take, what would be faster"
    command = commands.add_parser("explain", help=text, description=text, epilog=EPILOG)
    add = command.add_argument
    add("path", type=Path, help="a weights file, or a folder with weights")
    add("tensor", nargs="?", help="one of them, in full (default: a line for each matrix)")
    add("--batch", metavar="N", type=int, default=1, help="rows of x (default: 1)")
    add("--activations", choices=ACTIVATIONS, help="how x enters integer products (default: int16)")
    add("--cold", action="store_true", help="weights from DRAM, as when a large model is decoded (default: warm)")
    add("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_explain)


def _add_bench(commands: Any) -> None:
    text = "time products beside NumPy on this machine, or measure the profile that `explain` estimates with"
    command = commands.add_parser("bench", help=text, description=text, epilog=EPILOG)
    add = command.add_argument
    add("--shape", metavar="RxC", type=_shape, default=(4096, 4096), help="of the weight (default: 4096x4096)")
    add("--schemes", metavar="S", nargs="+", default=["int8", "int4-g128"], help="(default: int8 int4-g128)")
    add("--batches", metavar="N", nargs="+", type=int, default=[1, 16, 64], help="rows of x (default: 1 16 64)")
    add("--activations", choices=ACTIVATIONS, help="how x enters integer products (default: int16)")
    add("--rounds", metavar="N", type=int, default=5, help="of which medians are taken (default: 5)")
    add("--hot", action="store_true", help="one copy of each weight (default: copies that no cache holds)")
    add("--calibrate", action="store_true", help="measure this machine's profile instead, and keep it (20 seconds)")
    add("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_bench)


def _shape(text: str) -> tuple[int, int]:
    rows, x, cols = text.partition("x")
    if not x or not rows.isdecimal() or not cols.isdecimal():
        raise argparse.ArgumentTypeError(f"expected ROWSxCOLS, got {text!r}")
    return int(rows), int(cols)


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
    add("--scheme", metavar="S", help="for weights of two or more dimensions, such as int4-g128; auto chooses for each")
    add("--objective", choices=OBJECTIVES, default="balanced", help="of auto (default: balanced, time times bytes)")
    add("--batch", metavar="N", type=int, default=1, help="rows of x that auto chooses for (default: 1)")
    add("--max-error", metavar="E", type=float, default=0.02, help="of a weight, relative, for auto (default: 0.02)")
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
            batch=options.batch,
            objective=options.objective,
            max_error=options.max_error,
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


def _explain(options: argparse.Namespace) -> int:
    weights = load(options.path)
    if options.tensor is not None and options.tensor not in weights:
        raise ValueError(f"tensor: expected one of the checkpoint's, got {options.tensor!r}")
    names = list(weights) if options.tensor is None else [options.tensor]
    found: dict[str, Explanation] = {}
    for name in names:
        w = weights[name]
        if len(w.shape) != 2 or not all(w.shape):
            continue
        w = w if isinstance(w, CompactArray) else compress({name: w}, PLAIN)[name]
        if isinstance(w, CompactArray):  # integers and the like are no weights
            found[name] = explain(w, options.batch, options.activations, cold=options.cold)
    if options.tensor is not None and not found:
        raise ValueError(f"tensor: expected a matrix of weights, got {options.tensor!r}")
    if options.json:
        print(json.dumps({"path": str(options.path), "tensors": [{"name": n} | asdict(e) for n, e in found.items()]}))
    elif options.tensor is not None:
        print(found[options.tensor])
    else:
        headings = ("tensor", "shape", "scheme", "kernel", "bytes", "ms", "expected", "bound by", "fastest other")
        print(table_of(headings, [(name, *_cells(e)) for name, e in found.items()], left=4))
        for profile in {e.profile: None for e in found.values()}:
            print(f"expected: {profile}", file=sys.stderr)
    return DONE


def _cells(e: Explanation) -> tuple[str, ...]:
    expected = ("?", "?") if e.expected is None else (f"{e.expected.seconds * 1e3:.3g}", e.expected.limit)
    other = "" if e.fastest is None else f"{e.fastest.scheme} {e.fastest.expected.seconds * 1e3:.3g}"
    return (
        "x".join(map(str, e.shape)), e.scheme, e.kernel, f"{e.bytes_moved:,}", f"{e.seconds * 1e3:.3g}", *expected,
        f"{other} (NumPy)" if e.fastest is not None and e.fastest.scheme == PLAIN else other,
    )  # fmt: skip


def _bench(options: argparse.Namespace) -> int:
    if options.calibrate:
        return _calibrate(options.json)
    with _Display() as progress:
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
    with _Display() as progress:
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
