"""Files that appear whole or not at all: staged under hidden names, renamed at the end, swept after a crash.

Each writer lists what must not outlive it in a *ledger*, the hidden file ``.pumice.TOKEN.tmp``, before the name is
there, and holds the ledger locked. One rule cleans up behind a commit, an error and a writer that was killed (its lock
is free): what the ledger lists goes, except for what the folder's weights consist of at that moment.

A reader goes from ``model.safetensors``, else from the index. So one rename, or one removal, of these is the moment at
which new weights replace the old; shards never take a name that is there, so an old index never meets new shards.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO

from pumice.checkpoint.locations import URL, Location, is_there, names_in

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

LEDGER = re.compile(r"\.pumice\.([0-9a-f]{12})\.tmp")
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}

Staged = tuple[Path, str]
"""Where a file is, and the name in the folder that it is to get."""


def refuse_existing(place: Location, single: bool, overwrite: bool, own: Collection[str] = ()) -> None:
    """Raise FileExistsError where a file, or a folder that is not empty, would be replaced unasked. Files that are the
    caller's `own`, of a publication that was stopped, may be there."""
    if overwrite or not place.exists():
        return
    if single:
        got = "a file"
    else:
        others = (name for name in names_in(place) if name not in own)
        visible = next((name for name in others if not any(part.startswith(".") for part in Path(name).parts)), None)
        if visible is None:
            return
        got = f"a folder that holds {visible!r}"
    rule = "expected a new path or an empty folder unless overwrite=True (--overwrite)"
    raise FileExistsError(f"target: {rule}, got {got} at {str(place)!r}")


class Publication:
    """The files of one writer, on their way to one folder."""

    indexed = 2  # so many files of weights get an index

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: list[Path] = []
        self._ledger: IO[bytes] | None = None
        self._token = secrets.token_hex(6)
        try:
            self._make(folder)
            with self.exclusive():
                sweep(folder)
                self._ledger = self._ledger_path.open("xb", buffering=0)
                _lock(self._ledger.fileno(), fcntl.LOCK_EX)
        except BaseException:
            self.discard()
            raise

    def stage(self, name: str, fill: Callable[[IO[bytes]], object]) -> Staged:
        """Have `fill` write the file `name` under a temporary name, and bring it to the disk."""
        place = self.folder / name
        self._make(place.parent)
        path = place.with_name(f".{place.name}.{secrets.token_hex(3)}.{self._token}.tmp")
        self._list(path, None)
        with path.open("xb") as out:
            fill(out)
            out.flush()
            os.fsync(out.fileno())
        return path, name

    def adopt(self, path: Path, name: str) -> Staged:
        """Stage a finished file, which keeps its own name where links can be made: a kill while files are published
        must not cost it."""
        place = self.folder / name
        staged = place.with_name(f".{place.name}.{secrets.token_hex(3)}.{self._token}.tmp")
        self._list(staged, None)
        try:
            os.link(path, staged)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            os.replace(path, staged)
        return staged, name

    def publish(self, weights: list[Staged], beside: list[Staged], *, whole: bool) -> None:
        """Give staged files their names, within `exclusive`: those `beside` the weights first.

        `weights` is one file, or shards (of `shard_names`) and then their index. If they are the `whole` weights of
        the folder, those of before are to go.
        """
        last, name = weights[-1]
        for old in sorted(weights_in(self.folder)) if whole else ():
            self._list(self.folder / old, _inode(self.folder / old) or 0)
        for path, final in beside:
            os.replace(path, self.folder / final)
        if name == INDEX:
            for path, final in weights:
                self._list(self.folder / final, _inode(path))
            for path, final in weights[:-1]:
                os.replace(path, self.folder / final)
        if beside or name == INDEX:  # what the last rename makes visible must be there after a power cut, too
            sync_folders({(self.folder / final).parent for _, final in beside} | {self.folder})
        os.replace(last, self.folder / name)
        if name == INDEX:
            (self.folder / SINGLE).unlink(missing_ok=True)
        sync_folders({self.folder})

    def shard_names(self, count: int) -> list[str]:
        """Names for the shards, to be chosen within `exclusive`."""
        return shard_names(self.folder, count)

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """No other writer sweeps the folder, chooses names or publishes meanwhile."""
        return _locked(self.folder)

    def finish(self) -> None:
        """After `publish`, within `exclusive`: remove what the new files replace. The writer's work is done."""
        self._made = []
        self.discard(locked=True)

    def discard(self, locked: bool = False) -> None:
        """Remove what this writer has left; what resists is left to the next writer's sweep."""
        if self._ledger is not None:
            with contextlib.suppress(OSError), contextlib.nullcontext() if locked else self.exclusive():
                _clean(self._ledger_path)
            with contextlib.suppress(OSError):
                self._ledger.close()
            self._ledger = None
        for made in reversed(self._made):
            with contextlib.suppress(OSError):  # somebody may have put something there
                made.rmdir()
        self._made = []

    @property
    def _ledger_path(self) -> Path:
        return self.folder / f".pumice.{self._token}.tmp"

    def _list(self, path: Path, inode: int | None) -> None:
        assert self._ledger is not None
        write_all(self._ledger, json.dumps([str(path.relative_to(self.folder)), inode]).encode() + b"\n")

    def _make(self, folder: Path) -> None:
        missing = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._made.append(path)


class Uploads:
    """The same for a folder of a store, which cannot rename: parts first, one small index last. Until that is there, or
    has replaced the one before, readers see nothing of them.

    Parameters
    ----------
    folder
        Where the files go.
    scratch
        A folder of this machine for what is staged.
    own
        Names that an earlier try has chosen; some of these files may be there.
    uploaded
        Those of them that are there whole.
    note
        Called with each name that is there from now on.
    """

    indexed = 1

    def __init__(
        self, folder: URL, scratch: Path, own: Collection[str], uploaded: Collection[str], note: Callable[[str], None]
    ) -> None:
        self.folder, self._scratch, self._own, self._uploaded, self._note = folder, scratch, own, uploaded, note

    def stage(self, name: str, fill: Callable[[IO[bytes]], object]) -> Staged:
        """Have `fill` write a file that will be called so."""
        path = self._scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            fill(out)
        return path, name

    def adopt(self, path: Path, name: str) -> Staged:
        """Stage a finished file."""
        return path, name

    def publish(self, weights: list[Staged], beside: list[Staged], *, whole: bool) -> None:
        """As `Publication.publish`. Of the weights of before, what the new index no longer names goes after it."""
        old = weights_in(self.folder) if whole else set()
        for path, name in (*beside, *weights):
            there = self.folder / name
            if name not in self._uploaded or not there.exists():
                there.upload(path)
                self._note(name)
        for name in sorted(old - {name for _, name in weights}, key=lambda name: name != SINGLE):
            (self.folder / name).unlink(missing_ok=True)

    def shard_names(self, count: int) -> list[str]:
        """Names for the shards: those of an earlier try, so that it leaves nothing behind."""
        return shard_names(self.folder, count, self._own)

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Stores have no locks."""
        return contextlib.nullcontext()

    def finish(self) -> None:
        """Nothing is left to do."""

    def discard(self) -> None:
        """What is uploaded stays, for a resume."""


def shard_names(folder: Location, count: int, own: Collection[str] = ()) -> list[str]:
    """Hugging Face's names; with a number behind "model" where one of them is taken by what is not the caller's own."""
    for stem in itertools.chain(["model"], (f"model-{turn}" for turn in itertools.count(2))):
        names = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        if all(name in own or not is_there(folder / name) for name in names):
            return names
    raise AssertionError("there is always a free name")


def sweep(folder: Path) -> None:
    """Remove what dead writers of this user have left in a folder; those that live keep theirs."""
    for path in [path for path in folder.iterdir() if LEDGER.fullmatch(path.name)]:
        with contextlib.suppress(OSError), path.open("rb") as ledger:
            if os.fstat(ledger.fileno()).st_uid == os.geteuid():
                fcntl.flock(ledger.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it lives
                _clean(path)


def write_all(out: IO[bytes], data: bytes | memoryview) -> None:
    """Write everything, also to a raw file, which may take less than it is given."""
    view = memoryview(data).cast("B")
    while view:
        count = out.write(view)
        if not isinstance(count, int) or not 0 < count <= len(view):
            raise BlockingIOError(errno.EAGAIN, f"target: expected a file that takes {len(view)} bytes, got {count}")
        view = view[count:]


def _clean(ledger: Path) -> None:
    """The one rule: what the ledger lists goes, unless it is in use or no longer the file that was meant."""
    folder = ledger.parent
    used = weights_in(folder)
    for name, inode in _listed(ledger):
        if name not in used and inode in (None, _inode(folder / name)):
            (folder / name).unlink(missing_ok=True)
    ledger.unlink()


def _listed(ledger: Path) -> Iterator[tuple[str, int | None]]:
    """What a ledger may list: own temporary files without an inode, files of the folder with theirs."""
    for line in ledger.read_bytes().splitlines():
        with contextlib.suppress(ValueError, TypeError):  # cut short by a kill: then its file was never made
            name, inode = json.loads(line)
            own = Path(name).name.endswith(ledger.name.removeprefix(".pumice")) and ".." not in Path(name).parts
            if (own and not Path(name).is_absolute()) if inode is None else _is_weights(name):
                yield name, inode


def weights_in(folder: Location) -> set[str]:
    """The names of the files that a reader of the folder goes to; without the shards if the index is broken."""
    if is_there(folder / SINGLE):
        return {SINGLE}
    try:
        names = {INDEX, *json.loads((folder / INDEX).read_bytes())["weight_map"].values()}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return {INDEX}
    return {name for name in names if _is_weights(name)}


def _is_weights(name: object) -> bool:
    """Whether a writer could have written weights, or their index, of that name into the folder."""
    return isinstance(name, str) and Path(name).name == name and name.endswith((".safetensors", INDEX))


def _inode(path: Path) -> int | None:
    """None where nothing is; other errors are errors, never "not there"."""
    try:
        return os.lstat(path).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(fd, fcntl.LOCK_EX)
        yield
    finally:
        _lock(fd, fcntl.LOCK_UN)  # closing is not enough: a child that was forked meanwhile has it, too
        os.close(fd)


def _lock(fd: int, how: int) -> None:
    try:
        fcntl.flock(fd, how)
    except OSError as error:
        if error.errno not in NO_LOCKS:  # a file system without locks never lets `sweep` take one, either
            raise


def sync_folders(folders: Iterable[Path]) -> None:
    """Bring the names in some folders to the disk."""
    for folder in sorted(folders):
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
