"""Bytes of a file, mapped or read on demand, or of a store's; every range is checked against the file's size."""

from __future__ import annotations

import mmap
import os
import stat
import weakref
from typing import NoReturn, TypeAlias

import numpy as np

from pumice.checkpoint.locations import URL, Location
from pumice.errors import FormatError

Buffer: TypeAlias = bytes | bytearray | memoryview

READ_AT_ONCE = 1 << 30  # Linux ends one read at 2 GiB - 4 KiB
NEAR = 1 << 16  # bytes of a store that one request brings at least: headers are read in small pieces


_mapped: weakref.WeakKeyDictionary[mmap.mmap, tuple[int, int]] = weakref.WeakKeyDictionary()  # device and inode


def is_mapped(fd: int) -> bool:
    """Whether an open file is one that some `Source`, or a view of it, still maps."""
    status = os.fstat(fd)
    return (status.st_dev, status.st_ino) in set(_mapped.values())


class Source:
    """An immutable run of bytes: a file (``io="mmap"`` or ``"read"``), a file of a store, whose ranges are asked for as
    they are needed, or a buffer in memory.

    Examples
    --------
    >>> bytes(Source(b"pumice").view(1, 3))
    b'um'
    """

    def __init__(self, origin: Location | Buffer, *, io: str = "mmap") -> None:
        self._fd = -1
        self._url: URL | None = None
        self._near = 0, b""  # of a store: where what came last begins
        self._buffer: memoryview | None = None
        if isinstance(origin, Buffer):
            self.name = "<memory>"
            self._buffer = memoryview(origin).cast("B").toreadonly()
            self.size = len(self._buffer)
            return
        self.name = str(origin)
        if isinstance(origin, URL):
            self._url, (self.size, _) = origin, origin.state()
            return
        # O_NONBLOCK: opening a pipe must fail below, not wait for a writer.
        fd = os.open(origin, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(self.name, None, "a regular file", "something else", None)
            self.size = status.st_size
            if io == "read" or self.size == 0:
                self._fd, fd = fd, -1
            else:
                mapping = mmap.mmap(fd, self.size, access=mmap.ACCESS_READ)
                _mapped[mapping] = status.st_dev, status.st_ino
                self._buffer = memoryview(mapping)
        finally:
            if fd >= 0:
                os.close(fd)

    def view(self, start: int, stop: int) -> memoryview:
        """Bytes [start, stop), read-only: a view of the mapping, or a copy with ``io="read"`` and of a store."""
        if not 0 <= start <= stop <= self.size:
            raise FormatError(self.name, None, f"bytes within 0..{self.size}", f"{start}..{stop}", "a truncated file?")
        if self._buffer is not None:
            return self._buffer[start:stop]
        if self._url is not None:
            return self._ranged(self._url, start, stop)
        if self._fd < 0:
            raise ValueError(f"source: expected an open file, got {self.name!r} after close()")
        copy = np.empty(stop - start, np.uint8).data
        done = 0
        while done < len(copy):
            count = os.preadv(self._fd, [copy[done : done + READ_AT_ONCE]], start + done)
            if count == 0:
                self._fail_short(start + done)
            done += count
        return copy.toreadonly()

    def _ranged(self, url: URL, start: int, stop: int) -> memoryview:
        begin, data = self._near  # one reference: threads may exchange it meanwhile
        if not begin <= start <= stop <= begin + len(data):
            begin, data = start, url.read(start, max(stop, min(start + NEAR, self.size)))
            if len(data) < stop - start:
                self._fail_short(start + len(data))
            if stop - start < NEAR:
                self._near = begin, data
        return memoryview(data)[start - begin : stop - begin]

    def _fail_short(self, size: int) -> NoReturn:
        raise FormatError(self.name, None, f"{self.size} bytes", f"{size} bytes", "cut while open?")

    def close(self) -> None:
        """Let go of the file; views that were handed out keep the mapping alive until they die."""
        self._buffer = self._url = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)
