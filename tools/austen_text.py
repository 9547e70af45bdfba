"""Jane Austen's six novels, out of the Debian package that has them: text of the public domain, nothing else is taken.

The package (r-cran-janeaustenr, of the R package janeaustenr by Julia Silge, who took the texts from Project Gutenberg)
keeps each novel as an R vector of lines in a lazy-load database: values in R's serialization, compressed one by one
(.rdb), and an index of where each lies (.rdx). Format: "R Internals", section 1.8.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import re
import struct
import tarfile
import urllib.request
import zlib
from pathlib import Path
from typing import Any

FILE = "r-cran-janeaustenr_1.0.0-1_all.deb"
SHA256 = "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95"
URLS = (
    f"http://deb.debian.org/debian/pool/main/r/r-cran-janeaustenr/{FILE}",
    f"http://snapshot.debian.org/archive/debian/20250520T000000Z/pool/main/r/r-cran-janeaustenr/{FILE}",
)
INSIDE = "./usr/lib/R/site-library/janeaustenr/data/Rdata"


def novels(folder: Path) -> dict[str, str]:
    """Name -> text, one line a paragraph; the package is kept in the folder."""
    data = deb_data(package(folder))
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(data))) as archive:
        index, values = (archive.extractfile(INSIDE + suffix).read() for suffix in (".rdx", ".rdb"))
    texts = {}
    for name, (offset, length) in Reader(gzip.decompress(index)).value()["variables"].items():
        lines = Reader(zlib.decompress(values[offset + 4 : offset + length])).value()
        texts[name] = paragraphs(lines)
    return texts


def package(folder: Path) -> bytes:
    """The .deb, fetched once and checked."""
    path = folder / FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(fetched())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{path}: expected sha256 {SHA256}, got {found}")
    return path.read_bytes()


def fetched() -> bytes:
    for url in URLS:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return answer.read()
        except OSError as error:
            print(f"{url}: {error}")
    raise SystemExit(f"{FILE}: expected one of its servers to answer; `apt-get download r-cran-janeaustenr` has it too")


def deb_data(deb: bytes) -> bytes:
    """data.tar.xz of a .deb: an ar archive of headers of 60 bytes and members on even offsets."""
    at = 8
    while at < len(deb):
        name, size = deb[at : at + 16].decode().strip(), int(deb[at + 48 : at + 58])
        if name.rstrip("/") == "data.tar.xz":
            return deb[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise SystemExit(f"{FILE}: expected a member data.tar.xz, found none")


class Reader:
    """As much of R's serialization (XDR, versions 2 and 3) as these files use: vectors, names, symbols."""

    NIL, REFERENCE = 254, 255
    SYMBOL, PAIRS, CHARACTERS, LOGICAL, INTEGER, STRINGS, LIST = 1, 2, 9, 10, 13, 16, 19

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.symbols = data, 2, []
        assert data[:2] == b"X\n", "expected XDR"
        version, _, _ = self.integers(3)
        if version == 3:
            self.take(self.integers(1)[0])  # the encoding of strings that say none

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def integers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f">{count}i", self.take(4 * count))

    def value(self) -> Any:
        """Lists with names become dicts."""
        flags = self.integers(1)[0]
        kind, has_attributes, has_tag = flags & 255, flags & 512, flags & 1024
        if kind == self.NIL:
            return None
        if kind == self.REFERENCE:
            return self.symbols[(flags >> 8) - 1]
        if kind == self.SYMBOL:
            self.symbols.append(self.value())
            return self.symbols[-1]
        if kind == self.PAIRS:
            tag = self.value() if has_tag else None
            first, rest = self.value(), self.value()
            return {tag: first} | (rest or {})
        length = self.integers(1)[0]
        if kind == self.CHARACTERS:
            return None if length < 0 else self.take(length).decode("utf-8")
        if kind in (self.LOGICAL, self.INTEGER):
            items: Any = self.integers(length)
        elif kind in (self.STRINGS, self.LIST):
            items = [self.value() for _ in range(length)]
        else:
            raise SystemExit(f"{FILE}: expected vectors of integers, strings and lists, got R type {kind}")
        names = (self.value() or {}).get("names") if has_attributes else None
        return items if names is None else dict(zip(names, items, strict=True))


def paragraphs(lines: list[str]) -> str:
    """Lines of at most 75 characters, blank ones between paragraphs, to one line a paragraph."""
    blocks = "\n".join(lines).split("\n\n")
    joined = (re.sub(r"\s+", " ", block).strip() for block in blocks)
    return "\n".join(block for block in joined if block) + "\n"
