"""What the commands share: exit codes, arguments and progress."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pumice.checkpoint import Reader, TensorInfo
from pumice.checkpoint.publication import Publication
from pumice.conversion import Progress
from pumice.errors import near, printable

DONE, FAILED, USAGE, BAD_DATA, IO_ERROR, RETRY, INTERRUPTED = 0, 1, 2, 65, 74, 75, 130
EPILOG = "exit codes: 0 done, 1 failed, 2 usage, 65 bad data, 74 I/O error, 75 busy, or --resume, 130 interrupted"


def add_command(
    commands: Any, name: str, text: str, run: Callable[[argparse.Namespace], int], **options: Any
) -> argparse.ArgumentParser:
    """A subcommand, its help and the function that runs it."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, **{"epilog": EPILOG} | options
    )
    command.set_defaults(run=run)
    return command


def add_path(command: argparse.ArgumentParser, name: str = "path") -> None:
    """A checkpoint of any format."""
    command.add_argument(name, help="a weights file, a folder with weights, or a URL of one")


def add_json(command: argparse.ArgumentParser) -> None:
    """For programs."""
    command.add_argument("--json", action="store_true", help="print one JSON object")


def find_tensor(reader: Reader, name: str) -> TensorInfo:
    """What the reader says of a tensor; a ValueError with near names if there is no such."""
    if name not in reader.names():
        raise ValueError(f"tensor: expected one of the checkpoint's, got {name!r}{near(name, reader.names())}")
    return reader.info(name)


def check_output(path: Path, suffix: str, overwrite: bool) -> None:
    """Raise a ValueError or FileExistsError for a file that cannot be written; before the work, not after it."""
    if path.suffix != suffix:
        raise ValueError(f"output: expected a name that ends in {suffix}, got {str(path)!r}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"output: expected a new file, got {str(path)!r}, which is there; or --overwrite")


def publish_file(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file that appears whole or not at all."""
    publication = Publication(path.parent)
    try:
        staged = publication.stage(path.name, fill)
        with publication.exclusive():
            publication.publish([staged], [], whole=False)
            publication.finish()
    finally:
        publication.discard()


class Display:
    """Progress on stderr: to a terminal a bar with rich, plain lines without; else nothing, or with `events` a line of
    JSON a second."""

    def __init__(self, events: bool = False) -> None:
        self._events = events
        self._close: Callable[[], None] = lambda: None

    def __enter__(self) -> Progress | None:
        if not sys.stderr.isatty():
            return _Ticks(_event) if self._events else None
        try:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar
        except ImportError:
            return _Ticks(_line)
        columns = (
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        bar = Bar(*columns, console=Console(stderr=True), transient=True)
        task = bar.add_task("reading", total=None)
        bar.start()
        self._close = bar.stop
        return lambda name, done, total: bar.update(task, description=name, completed=done, total=total, refresh=True)

    def __exit__(self, *error: object) -> None:
        self._close()


class _Ticks:
    """A line a second at most, which `show` makes of (name, bytes done, bytes in all, bytes a second)."""

    def __init__(self, show: Callable[[str, int, int, float], str]) -> None:
        self._show, self._start, self._before, self._next = show, 0.0, 0, 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._next:  # what a run before this one has done says nothing of the speed of this one
            self._before, self._start = done, now
        if now >= self._next or done >= total:
            self._next = now + 1
            speed = (done - self._before) / max(now - self._start, 1e-9)
            print(self._show(name, done, total, speed), file=sys.stderr, flush=True)


def _line(name: str, done: int, total: int, speed: float) -> str:
    left = f"{(total - done) / speed:.0f} s" if speed else "?"
    return f"{done / max(total, 1):4.0%}  {speed / 1e6:.0f} MB/s  {left} left  {printable(name)}"


def _event(name: str, done: int, total: int, speed: float) -> str:
    seconds = round((total - done) / speed, 1) if speed else None
    event = {"event": "progress", "tensor": name, "bytes": done, "total": total}
    return json.dumps(event | {"bytes_per_second": round(speed), "seconds_left": seconds})
