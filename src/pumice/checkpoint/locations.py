"""Where files are: paths of this machine, and URLs of stores that fsspec knows, which are read by ranges of bytes.

A `URL` has as much of `pathlib.Path` as readers use, so that no reader knows what it reads from.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

URL_START = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]*://")
LOCAL = re.compile(r"(file|local)://")
VERSIONS = ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created")
LISTING = "text/html"  # what a web server calls a folder


def locate(where: str | os.PathLike[str] | URL) -> Location:
    """A path, or a URL such as ``s3://bucket/model`` or ``https://...``; ``file://`` is a path.

    Raises
    ------
    ValueError
        A URL, and fsspec or what it needs for this store is not installed.

    Examples
    --------
    >>> locate("model/a.safetensors"), locate("file:///model")
    (PosixPath('model/a.safetensors'), PosixPath('/model'))
    """
    if isinstance(where, URL):
        return where
    text = os.fspath(where)
    if local := LOCAL.match(text):
        return Path(text[local.end() :])
    return URL.of(text) if URL_START.match(text) else Path(text)


class URL:
    """A file or a folder of a store.

    Parameters
    ----------
    files
        The fsspec file system.
    path
        What the file system calls it.
    text
        The URL.
    """

    def __init__(self, files: Any, path: str, text: str) -> None:
        self._files, self._path, self._text = files, path, text

    @classmethod
    def of(cls, text: str) -> URL:
        """What a URL names; nothing is asked of the store yet."""
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise ValueError(f"path: expected fsspec for {text!r}, got none: pip install pumice[fsspec]") from None
        try:
            files, path = url_to_fs(text)
        except ImportError as error:
            raise ValueError(f"path: expected what fsspec needs for {text!r}, got none: {error}") from None
        except ValueError as error:
            raise ValueError(f"path: expected a URL of a store that fsspec knows, got {text!r}: {error}") from None
        files.invalidate_cache()  # of what an earlier look has found there
        return cls(files, path.rstrip("/"), _edited(text, lambda path: path.rstrip("/")))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self._path).name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self._path).stem

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot."""
        return PurePosixPath(self._path).suffix

    @property
    def parent(self) -> URL:
        """The folder that holds it."""
        return URL(self._files, _parent(self._path), _edited(self._text, _parent))

    def with_name(self, name: str) -> URL:
        """Another file of the same folder."""
        return self.parent / name

    def __truediv__(self, name: str) -> URL:
        text = _edited(self._text, lambda path: f"{path}/{name}" if path else name)
        return URL(self._files, f"{self._path}/{name}", text)

    def exists(self) -> bool:
        """Whether something is there."""
        return self._info() is not None

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        info = self._info()
        return info is not None and (info["type"] == "directory" or str(info.get("mimetype")).startswith(LISTING))

    def is_file(self) -> bool:
        """Whether it is a file."""
        return self.exists() and not self.is_dir()

    def iterdir(self) -> Iterator[URL]:
        """What is in the folder."""
        with _as_os_errors(self):
            names = [PurePosixPath(path.rstrip("/")).name for path in self._files.ls(self._path, detail=False)]
        yield from (self / name for name in names)

    def glob(self, pattern: str) -> Iterator[URL]:
        """What is in the folder under a name of this pattern."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def names(self) -> list[str]:
        """The files in the folder and in its folders, by their paths within."""
        with _as_os_errors(self):
            found = self._files.find(self._path)
        return sorted(path[len(self._path) + 1 :] for path in found if len(path) > len(self._path) + 1)

    def state(self) -> tuple[int, str]:
        """Bytes, and a text that changes with them if the store has one (ETag, time)."""
        self._files.invalidate_cache()
        info = self._info()
        if info is None:
            raise FileNotFoundError(f"path: expected an existing file, got {self._text!r}")
        if not isinstance(info.get("size"), int):
            raise OSError(f"{self._text}: expected a store that says how long files are, got {info.get('size')}")
        return info["size"], next((str(info[key]) for key in VERSIONS if info.get(key)), "")

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop)."""
        with _as_os_errors(self):
            data: bytes = self._files.cat_file(self._path, start=start, end=stop) if start < stop else b""
        if len(data) > stop - start:
            raise OSError(f"{self._text}: expected a store that reads ranges of bytes, got all {len(data)} bytes")
        return data

    def read_bytes(self) -> bytes:
        """All bytes."""
        with _as_os_errors(self):
            data: bytes = self._files.cat_file(self._path)
        return data

    def open(self, mode: str = "rb") -> Any:
        """The file, to be read from its start."""
        with _as_os_errors(self):
            return self._files.open(self._path, mode)

    def upload(self, file: Path) -> None:
        """Write a file of this machine there."""
        with _as_os_errors(self):
            self._files.put_file(str(file), self._path)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file."""
        with contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext(), _as_os_errors(self):
            self._files.rm(self._path)

    def _info(self) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError), _as_os_errors(self):
            info: dict[str, Any] = self._files.info(self._path)
            return info
        return None

    def __fspath__(self) -> str:
        """The URL: whoever takes a path takes this, and `locate` it is again."""
        return self._text

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"URL({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, URL) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


Location: TypeAlias = Path | URL


def local(where: str | os.PathLike[str], argument: str = "target") -> Path:
    """A path; ValueError for a URL."""
    location = locate(where)
    if isinstance(location, URL):
        rule = f"{argument}: expected a path of this machine"
        raise ValueError(f"{rule}, got {str(location)!r} (convert writes to stores)")
    return location


def is_there(where: Location) -> bool:
    """Whether something has this name, be it a link that leads nowhere. Other errors are errors, never "not there"."""
    if isinstance(where, URL):
        return where.exists()
    try:
        os.lstat(where)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def names_in(folder: Location) -> list[str]:
    """The files in a folder and in its folders, by their paths within."""
    if isinstance(folder, URL):
        return folder.names()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def matching(folder: Location, pattern: str) -> list[Location]:
    """What is in a folder under names of a pattern, sorted."""
    found: Iterator[Location] = folder.glob(pattern)
    return sorted(found, key=str)


def state_of(file: Location) -> tuple[int, int | str]:
    """Bytes of a file, and what changes with them: the time of its last change in ns, or what a store says."""
    if isinstance(file, URL):
        return file.state()
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def is_within(where: Location, folder: Location) -> bool:
    """Whether a file or a folder is another one, or in it (links followed)."""
    if isinstance(where, Path) and isinstance(folder, Path):
        return where.resolve().is_relative_to(folder.resolve())
    return where == folder or str(where).startswith(f"{folder}/")


@contextlib.contextmanager
def _as_os_errors(url: URL) -> Iterator[None]:
    """What a store's own library raises, as the OSError that callers expect of files."""
    try:
        yield
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:
        rule = f"{url}: expected the store to answer"
        raise OSError(f"{rule}, got {type(error).__name__}: {error}") from error


def _edited(text: str, edit: Callable[[str], str]) -> str:
    """A URL with another path: of a chain such as ``zip://a::s3://b`` that of the first link which has one."""
    links = text.split("::")
    at = next(i for i, link in enumerate(links) if "://" in link)
    scheme, mark, path = links[at].partition("://")
    return "::".join([*links[:at], scheme + mark + edit(path), *links[at + 1 :]])


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
