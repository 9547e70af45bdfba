"""``pumice convert``: a checkpoint to compact weights."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from pumice.checkpoint.writer import MAX_SHARD_SIZE
from pumice.choice import OBJECTIVES
from pumice.cli.common import DONE, EPILOG, RETRY, Display, add_command
from pumice.cli.forward_file import add_set
from pumice.conversion import Progress, convert
from pumice.errors import RecipeError
from pumice.ops import NONFINITE
from pumice.quantization import METHODS
from pumice.recipe import FALLBACKS, KEPT, Recipe
from pumice.report import Report
from pumice.scheme import legal_table


def add(commands: Any) -> None:
    """Add the command."""
    text = "convert a checkpoint to compact weights, in constant memory"
    command = add_command(
        commands,
        "convert",
        text,
        _convert,
        epilog=f"{EPILOG}\n\nschemes:\n{legal_table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("source", metavar="SRC", help="a weights file, a folder with weights, or a URL of one")
    add("target", metavar="DST", help="a file that ends in .safetensors, or a folder; or a URL")
    add("--scheme", metavar="S", help="for weights of two or more dimensions, such as int4-g128; auto chooses for each")
    add("--prune", metavar="METHOD[:SPARSITY][:PATTERN]", help="before that, such as wanda:0.5 or sparsegpt:2:4")
    add("--method", choices=tuple(METHODS), help="how integers are found (default: nearest)")
    add("--stats", metavar="F", type=Path, help="what pumice calibrate found, for wanda, sparsegpt, gptq and mse")
    add("--seed", metavar="N", type=int, default=0, help="of --prune random (default: 0)")
    add_set(command, "of these methods, such as act_order=True")
    add("--objective", choices=OBJECTIVES, default="balanced", help="of auto (default: balanced, time times bytes)")
    add("--batch", metavar="N", type=int, default=1, help="rows of x that auto chooses for (default: 1)")
    add(
        "--max-error",
        metavar="E",
        type=float,
        help="of a weight, relative: write nothing if one exceeds it; auto chooses within it (by default within 0.02)",
    )
    add("--nonfinite", choices=NONFINITE, default="raise", help="what becomes of NaN and infinity (default: raise)")
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
        "--allow-requantize",
        action="store_true",
        help="give weights that are quantized already another scheme (default: they keep their codes)",
    )
    add(
        "--max-shard-size",
        metavar="BYTES",
        type=int,
        default=MAX_SHARD_SIZE,
        help="of the files of a folder (default: 5 GB)",
    )
    add(
        "--resume", action="store_true", help="go on with a conversion that was stopped; done at once if it is complete"
    )
    add("--workers", metavar="N", type=int, help="threads, or workers of the cluster (default: the CPUs)")
    add("--max-memory", metavar="BYTES", type=int, help="that the process may take: with little, fewer threads work")
    add("--task", metavar="I/N", type=_share, help="do only the I-th of N shares, and write no DST; then --commit")
    add("--commit", action="store_true", help="put together what all tasks have done")
    add("--work", metavar="DIR", type=Path, help="for an unfinished conversion to a URL (default: the user's cache)")
    add("--dask", metavar="ADDRESS", help="encode on a Dask cluster, whose workers see the same paths")
    add(
        "--delete-source",
        action="store_true",
        help="empty each file of SRC once its output is safe; remove all at the end",
    )
    add("--overwrite", action="store_true", help="replace what is at DST (default: DST is new, or an empty folder)")
    add("--dry-run", action="store_true", help="read headers only, write nothing")
    add("--json", action="store_true", help="print one JSON object instead of the table; progress as JSON lines")


def _tensor(text: str) -> tuple[str, str]:
    pattern, equals, scheme = text.rpartition("=")
    if not equals or not pattern:
        raise argparse.ArgumentTypeError(f"expected RE=SCHEME, got {text!r}")
    return pattern, scheme


def _share(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise argparse.ArgumentTypeError(f"expected I/N such as 1/16, from 1, got {text!r}")
    return int(i), int(n)


def _convert(options: argparse.Namespace) -> int:
    if options.scheme is None and options.recipe is None and not options.tensor:
        raise RecipeError("--scheme: expected it, --recipe or --tensor, got none of them")
    try:
        with Display(events=options.json) as progress, _cluster(options.dask) as executor:
            report = _run(options, progress, executor)
    except KeyboardInterrupt:
        print("pumice: interrupted; --resume goes on", file=sys.stderr)
        return RETRY
    if options.json:
        print(json.dumps(report.to_json()))
        return DONE
    print(report)
    if kept := sum(t.why.startswith(KEPT) for t in report.tensors):
        print(f"{kept} tensors are quantized already and keep their codes (--allow-requantize)", file=sys.stderr)
    if report.skipped:
        print(f"not copied (other weights): {', '.join(report.skipped)}", file=sys.stderr)
    if options.dry_run:
        memory = (report.memory or 0) / 2**20
        print(f"expected: {report.seconds:.1f} s of encoding, {memory:.0f} MiB of memory", file=sys.stderr)
    elif report.already_complete:
        print(
            f"{report.target}: complete already, from the same source and recipe; nothing was written", file=sys.stderr
        )
    else:
        print(f"{report.target}: written in {report.seconds:.1f} s", file=sys.stderr)
    return DONE


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[Executor | None]:
    """An executor on a Dask cluster, which runs what a lost worker had once more."""
    if address is None:
        yield None
        return
    try:
        from dask.distributed import Client
    except ImportError:
        raise ValueError("--dask: expected dask.distributed, got none: pip install pumice[dask]") from None
    with Client(address) as client:
        yield client.get_executor(pure=False, retries=3)


def _run(options: argparse.Namespace, progress: Progress | None, executor: Executor | None) -> Report:
    return convert(
        options.source,
        options.target,
        options.scheme,
        recipe=None if options.recipe is None else Recipe.load(options.recipe),
        tensors=dict(options.tensor),
        ignore=options.ignore,
        keep_embeddings=options.keep_embeddings,
        group_size_fallback=options.group_size_fallback,
        allow_requantize=options.allow_requantize,
        prune=options.prune,
        method=options.method,
        stats=options.stats,
        seed=options.seed,
        batch=options.batch,
        objective=options.objective,
        max_error=options.max_error,
        nonfinite=options.nonfinite,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
        max_shard_size=options.max_shard_size,
        progress=progress,
        executor=executor,
        resume=options.resume,
        workers=options.workers,
        max_memory=options.max_memory,
        task=options.task,
        commit=options.commit,
        work=options.work,
        delete_source=options.delete_source,
        **dict(options.set),
    )
