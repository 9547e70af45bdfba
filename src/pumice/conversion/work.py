"""The folder of an unfinished conversion, beside the target: its lock, its journal, its chunks and finished shards.

A journal is lines of ``crc32 json``, the first of which says what is converted; a line that was cut short ends it. What
it lists is trusted only as far as the files are there, and a chunk only if its checksum holds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import weakref
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

from pumice.checkpoint.locations import URL, Location
from pumice.checkpoint.publication import NO_LOCKS, write_all
from pumice.conversion.chunk_files import Done, read_done
from pumice.conversion.plan import Plan, Step
from pumice.errors import BusyError, ResumeError
from pumice.profile import cache_folder
from pumice.scheme import AUTO, Scheme

FOLDER = ".pumice-convert"
SHOWN = 6  # differences in a message
Table = Mapping[str, Any]
_locks: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()


def _close_locks() -> None:
    for lock in list(_locks):
        lock.close()


# An executor's processes outlive a conversion that is killed: they must not hold its locks, or nobody could go on.
os.register_at_fork(after_in_child=_close_locks)


def place_of(target: Location, single: bool, work: Path | None) -> Path:
    """Where the unfinished conversion to a target is: beside it; of a store in `work`, or else in the user's cache."""
    if isinstance(target, URL):
        name = hashlib.sha256(str(target).encode()).hexdigest()[:12]
        return (work or cache_folder()) / f"{FOLDER[1:]}-{name}"
    if work is not None:
        raise ValueError(f"work: expected none for a target on this machine, which has it beside it, got {str(work)!r}")
    return target.with_name(f".{target.name}{FOLDER}") if single else target / FOLDER


class Work:
    """The folder, opened and locked.

    Parameters
    ----------
    path
        Where it is.
    target
        What is to be written.
    identity
        What is converted, and how: JSON. An unfinished conversion goes on only with the same.
    resume
        Whether to go on with what is there.
    restart
        Whether what is there may be removed.
    task
        (i, n) of many that work side by side; each has a journal of its own.

    Raises
    ------
    BusyError
        Another conversion has it.
    ResumeError
        What is there is something else, or was not asked for.
    """

    def __init__(
        self,
        path: Path,
        target: Location,
        identity: Table,
        *,
        resume: bool,
        restart: bool,
        task: tuple[int, int] | None = None,
    ) -> None:
        self.path, self.target = path, target
        self.chunks = self.path / "chunks"
        self._made = [path for path in (self.path, *self.path.parents) if not path.exists()][1:]
        self._gone = self.path.with_name(self.path.name + ".gone")
        shutil.rmtree(self._gone, ignore_errors=True)  # of one that was stopped while it removed its own
        self._lock = self._locked(shared=task is not None)
        self._journal: IO[bytes] | None = None
        self.done: dict[str, Done] = {}
        self.schemes: dict[str, str] = {}
        self.shards: list[dict[str, Any]] = []
        self.emptied: dict[str, int] = {}
        self.published: set[str] = set()  # names of files that may be there from a publication that was stopped
        self.uploaded: set[str] = set()  # and of those that surely are
        name = "journal" if task is None else f"journal.{task[0]}-of-{task[1]}"
        try:
            if task is not None:
                self._own = self._take(self.path / f"lock.{task[0]}-of-{task[1]}", shared=False)
            journals = sorted(self.path.glob("journal*"))
            if journals and not resume and task is None:
                if not restart:
                    hint = "resume=True (--resume) to go on with it, or overwrite=True (--overwrite) to start anew"
                    raise ResumeError(f"target: expected {hint}, got an unfinished conversion at {str(self.path)!r}")
                self._empty()
                journals = []
            known = [self._read(journal, identity) for journal in journals]
            if any(known):
                self._find()
            self._write_to(self.path / name, identity)
        except BaseException:
            self.close()
            raise

    def note(self, kind: str, value: Any) -> None:
        """Append a line, and bring it to the disk."""
        assert self._journal is not None
        write_all(self._journal, _line([kind, value]))
        os.fdatasync(self._journal.fileno())

    def finished(self, done: Done) -> None:
        """Note a chunk."""
        self.done[done.key] = done
        self.note("chunk", asdict(done))

    def has(self, key: str) -> Done | None:
        """A chunk that is there, whole."""
        done = self.done.get(key)
        return done if done is not None and read_done(self.chunks / key) == done else None

    def covers(self, step: Step, plan: Plan) -> bool:
        """Whether all chunks of a tensor are noted."""
        chosen = step.choice.scheme == AUTO and not step.choice.whole
        known = self.schemes.get(step.name) if chosen else step.choice.scheme
        if step.copied or known is None:
            return step.copied
        cuts = step.chunks(
            known if isinstance(known, Scheme) else Scheme.parse(known), plan.identity["layout"]["chunk_bytes"]
        )
        return all(step.key(start) in self.done or step.key(start, True) in self.done for start, _ in cuts)

    def discard(self) -> None:
        """Remove everything, and the folders that were made for it. A stop meanwhile leaves no half of it that could be
        taken for an unfinished conversion."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, self._gone)
        shutil.rmtree(self._gone, ignore_errors=True)
        for folder in self._made:
            with contextlib.suppress(OSError):  # somebody may have put something there
                folder.rmdir()
        self.close()

    def close(self) -> None:
        """Let go of it, for others to go on."""
        for file in (self._journal, self._lock, getattr(self, "_own", None)):
            if file is not None:
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _locked(self, shared: bool) -> IO[bytes]:
        while True:
            self.chunks.mkdir(parents=True, exist_ok=True)
            lock = self._take(self.path / "lock", shared)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(self.path / "lock")):
                    return lock
            lock.close()  # of a conversion that has just ended, and removed its folder

    def _take(self, path: Path, shared: bool) -> IO[bytes]:
        lock = path.open("a+b", buffering=0)
        _locks.add(lock)
        try:
            fcntl.flock(lock.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return lock
            lock.seek(0)
            owner = lock.read().decode(errors="replace") or "another process"
            lock.close()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                rule = f"target: expected no other conversion into {str(self.target)!r}"
                raise BusyError(f"{rule}, got {owner}, which is at work") from None
            raise
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        return lock

    def _empty(self) -> None:
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        self.chunks.mkdir()

    def _read(self, journal: Path, identity: Table) -> bool:
        """Take over what is noted; whether that is of this conversion, and not nothing."""
        lines = list(_lines(journal.read_bytes()))
        if lines and lines[0][0] == "conversion":
            was = lines[0][1]
            self.emptied |= dict(value for kind, value in lines if kind == "emptied")
            now = {
                f: [s[0], was["source"].get(f, s)[1]] if f in self.emptied else s for f, s in identity["source"].items()
            }
            check_same(was, {**identity, "source": now}, f"the conversion that {str(self.path)!r} has begun")
        for kind, value in lines:
            if kind == "chunk":
                self.done[value["key"]] = Done(**value)
            elif kind == "scheme":
                self.schemes[value[0]] = value[1]
            elif kind == "shard":
                self.shards.append(value)
            elif kind == "publishing":
                self.published.update(value)
            elif kind == "uploaded":
                self.uploaded.add(value)
        return bool(lines)

    def _find(self) -> None:
        """Chunks that were finished, but not noted before a stop."""
        for path in self.chunks.iterdir():
            if path.name not in self.done and path.suffix != ".tmp" and (done := read_done(path)) is not None:
                self.done[path.name] = done

    def _write_to(self, journal: Path, identity: Table) -> None:
        data = journal.read_bytes() if journal.exists() else b""
        self._journal = journal.open("ab", buffering=0)
        whole = sum(len(line) for line in _whole(data))
        if whole < len(data):
            self._journal.truncate(whole)
        if not whole:
            self.note("conversion", identity)


def is_begun(path: Path) -> bool:
    """Whether an unfinished conversion is there."""
    return any(path.glob("journal*"))


def check_same(before: Table, now: Table, which: str) -> None:
    """Raise ResumeError, which says `which` conversion was expected and what differs, unless both tables are equal."""
    if different := list(_differences(before, now)):
        more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise ResumeError(f"resume: expected {which}, got another one: {'; '.join(different[:SHOWN])}{more}")


def restore_sizes(path: Path) -> None:
    """Give files of the source that a kill met while they were emptied their sizes back, so that they can be opened."""
    for journal in path.glob("journal*"):
        for kind, value in _lines(journal.read_bytes()):
            if kind == "emptied" and os.path.getsize(value[0]) < value[1]:
                os.truncate(value[0], value[1])


def _line(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _whole(data: bytes) -> Iterator[bytes]:
    """The lines before the first that is broken."""
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(line[9:-1]):
            return
        yield line


def _lines(data: bytes) -> Iterator[tuple[str, Any]]:
    for line in _whole(data):
        kind, value = json.loads(line[9:])
        yield kind, value


def _differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{where}{', ' if where else ''}{key}")
    elif before != now:
        yield f"{where} was {json.dumps(before)}, is {json.dumps(now)}"
