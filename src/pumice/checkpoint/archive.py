"""The members of a ZIP archive, as PyTorch and NumPy write them: found by its directory, stored ones read in place.

    | local header, name, extra, data | ... | directory: one record a member | [Zip64 end] | end of the directory |

Specification: PKWARE APPNOTE.TXT 6.3.10. Stricter than it: one disk, no encryption, names once, members that do not
overlap, and no member that grows more than `MAX_RATIO` times. Names are labels here; nothing is ever extracted.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pumice.checkpoint.source import Source
from pumice.errors import FormatError

MAGIC = b"PK\x03\x04"
END, END64, END64_AT = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
END_RECORD = struct.Struct("<4s4H2LH")
END64_RECORD = struct.Struct("<4sQ2H2L4Q")
END64_LOCATOR = struct.Struct("<4sLQL")
RECORD = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
STORED, DEFLATED = 0, 8
ENCRYPTED = 0x2041  # the bits of the flags that say so: 0, 6 and 13
UTF8 = 0x800
MAX_RATIO = 200  # bytes out of one byte; deflate itself could make 1032
CHECKED_AT_ONCE = 16 << 20
CHANGED = "the file was changed"
SMALL = 1 << 20  # what is no larger than this may be packed as tightly as deflate can


def first_name(head: bytes) -> bytes:
    """The name of the first member, from the first bytes of an archive.

    Examples
    --------
    >>> first_name(LOCAL.pack(MAGIC, *[0] * 8, 5, 0) + b"a.npy")
    b'a.npy'
    """
    if len(head) < LOCAL.size:
        return b""
    return head[LOCAL.size : LOCAL.size + LOCAL.unpack_from(head)[-2]]


@dataclass(frozen=True)
class Member:
    """One record of the directory. Its data lies between `header` and `limit`, where the next member starts."""

    name: str
    method: int
    packed: int
    size: int
    crc: int
    header: int
    limit: int = 0


class Archive:
    """An open ZIP archive.

    Raises
    ------
    FormatError
        Names the archive, the member, the broken rule and what was there.

    Examples
    --------
    >>> import io, zipfile
    >>> file = io.BytesIO()
    >>> with zipfile.ZipFile(file, "w") as archive:
    ...     archive.writestr("name", "pumice")
    >>> bytes(Archive(Source(file.getvalue())).view("name", 1, 3))
    b'um'
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.members: dict[str, Member] = {}
        self._inflated: tuple[str, memoryview] | None = None
        begin, records = self._records()
        for member in records:
            if member.name in self.members:
                raise self._error(member.name, "every member once", "a second one of this name")
            self._check(member)
            self.members[member.name] = member
        ordered = sorted(self.members.values(), key=lambda member: member.header)
        limits = [*(member.header for member in ordered[1:]), begin]
        for member, limit in zip(ordered, limits, strict=False):  # of none there is a limit, too
            if member.header + LOCAL.size + member.packed > limit:
                raise self._error(member.name, f"{member.packed} bytes before the next member", "an overlap")
            self.members[member.name] = replace(member, limit=limit)

    def view(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Bytes [start, stop) of a member: a view of the file where it is stored; else of all of it, inflated."""
        member = self.members[name]
        if member.method == DEFLATED:
            return self._inflate(member)[start:stop]
        begin = self._begin(member)
        return self.source.view(begin + start, begin + (member.size if stop is None else stop))

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of a member, `count` at most."""
        member = self.members[name]
        if member.method == STORED:
            return bytes(self.view(name, 0, min(count, member.size)))
        begin = self._begin(member)
        packed = self.source.view(begin, begin + min(member.packed, count + 1024))  # deflate adds 5 bytes a block
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, count)
        except zlib.error as error:
            raise self._error(name, "deflated data", str(error)) from error

    def check(self, members: Mapping[str, str]) -> Iterator[tuple[str | None, FormatError | None]]:
        """Compare every member with its CRC-32: each name of `members`, with what is wrong with the member that holds
        it; and what is wrong with the others."""
        wrong = {name: self._changed(member) for name, member in self.members.items()}
        for name, holder in members.items():
            error = wrong[holder]
            yield name, error and FormatError(self.source.name, name, error.rule, error.got, error.hint)
        others = wrong.keys() - set(members.values())
        yield from ((None, wrong[name]) for name in sorted(others))

    def _changed(self, member: Member) -> FormatError | None:
        crc = 0
        try:
            for start in range(0, member.size, CHECKED_AT_ONCE):
                crc = zlib.crc32(self.view(member.name, start, min(start + CHECKED_AT_ONCE, member.size)), crc)
        except FormatError as error:  # a deflated one is checked when it is inflated
            return error
        rule = f"CRC-32 {member.crc:08x}"
        return None if crc == member.crc else self._error(member.name, rule, f"{crc:08x}", CHANGED)

    def close(self) -> None:
        """Let go of the file; views that were handed out stay valid."""
        self._inflated = None
        self.source.close()

    def _inflate(self, member: Member) -> memoryview:
        """All of a deflated member, checked. The last one is kept, since arrays are read row range by row range."""
        last = self._inflated  # one reference: threads may exchange it meanwhile
        if last is not None and last[0] == member.name:
            return last[1]
        begin = self._begin(member)
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = stream.decompress(self.source.view(begin, begin + member.packed), member.size + 1)
        except zlib.error as error:
            raise self._error(member.name, "deflated data", str(error)) from error
        if len(data) != member.size or not stream.eof:
            got = f"{'more' if len(data) > member.size else len(data)}"
            raise self._error(member.name, f"{member.size} bytes inflated, as the directory says", got)
        if zlib.crc32(data) != member.crc:
            raise self._error(member.name, f"CRC-32 {member.crc:08x}", f"{zlib.crc32(data):08x}", CHANGED)
        view = memoryview(data)
        self._inflated = member.name, view
        return view

    def _begin(self, member: Member) -> int:
        """Where the data starts: only the local header knows how long the fields before it are."""
        header = self.source.view(member.header, member.header + LOCAL.size)
        magic, _, flags, method, *_, name_length, extra_length = LOCAL.unpack(header)
        begin: int = member.header + LOCAL.size + name_length + extra_length
        if magic != MAGIC or method != member.method or flags & ENCRYPTED:
            raise self._error(member.name, "the local header that the directory describes", repr(bytes(header[:10])))
        if begin + member.packed > member.limit:
            raise self._error(member.name, f"{member.packed} bytes before the next member", "an overlap")
        return begin

    def _records(self) -> tuple[int, Iterator[Member]]:
        """Where the directory begins, and its records."""
        count, length, begin = self._end()
        if count > length // RECORD.size:
            raise self._error(None, f"a directory of {count} members", f"{length} bytes")
        return begin, self._members(self.source.view(begin, begin + length), count)

    def _end(self) -> tuple[int, int, int]:
        """The end record: members, bytes of the directory and where it begins."""
        size = self.source.size
        tail_at = max(0, size - END_RECORD.size - 0xFFFF)
        tail = bytes(self.source.view(tail_at, size))
        at = tail.rfind(END)
        if at < 0 or at + END_RECORD.size > len(tail):
            raise self._error(None, "the end record of a ZIP archive", "none", "a truncated copy?")
        _, disk, first, here, count, length, begin, comment = END_RECORD.unpack_from(tail, at)
        if tail_at + at + END_RECORD.size + comment != size:
            raise self._error(None, "nothing after the end of the archive", "bytes that belong to nothing")
        locator = tail_at + at - END64_LOCATOR.size
        if locator >= 0 and bytes(self.source.view(locator, locator + 4)) == END64_AT:
            _, _, record, _ = END64_LOCATOR.unpack(self.source.view(locator, locator + END64_LOCATOR.size))
            found = self.source.view(min(record, size), min(record + END64_RECORD.size, size))
            if len(found) < END64_RECORD.size or found[:4] != END64:
                raise self._error(None, "the Zip64 end record that its locator names", f"byte {record}")
            *_, disk, first, here, count, length, begin = END64_RECORD.unpack(found)
        if disk or first or here != count:
            raise self._error(None, "an archive on one disk", f"disk {disk}")
        if begin + length > tail_at + at:
            raise self._error(
                None, f"a directory within {size} bytes", f"{length} bytes at {begin}", "a truncated copy?"
            )
        return count, length, begin

    def _members(self, directory: memoryview, count: int) -> Iterator[Member]:
        at = 0
        for _ in range(count):
            if at + RECORD.size > len(directory):
                raise self._error(None, f"{count} members in the directory", "fewer")
            fields = RECORD.unpack_from(directory, at)
            magic, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, note_length = fields[:13]
            name_at = at + RECORD.size
            extra_at = name_at + name_length
            at = extra_at + extra_length + note_length
            if magic != b"PK\x01\x02" or at > len(directory):
                raise self._error(None, "a record of the directory", repr(magic))
            try:
                name = bytes(directory[name_at:extra_at]).decode("utf-8" if flags & UTF8 else "cp437")
            except UnicodeDecodeError as error:
                raise self._error(None, "names in UTF-8", repr(bytes(directory[name_at:extra_at]))[:80]) from error
            if flags & ENCRYPTED:
                raise self._error(name, "a member that is not encrypted", "an encrypted one")
            numbers = self._wide(name, bytes(directory[extra_at : extra_at + extra_length]), size, packed, fields[-1])
            yield Member(name, method, numbers[1], numbers[0], crc, numbers[2])

    def _wide(self, name: str, extra: bytes, *numbers: int) -> list[int]:
        """Size, packed size and offset; those that need more than 32 bits stand in the Zip64 field, in this order."""
        if 0xFFFFFFFF not in numbers:
            return list(numbers)
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == 1:
                field = extra[at + 4 : at + 4 + length]
                wide = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
                found = [next(wide, -1) if number == 0xFFFFFFFF else number for number in numbers]
                if -1 not in found:
                    return found
            at += 4 + length
        raise self._error(name, "64-bit sizes in the Zip64 field", "none")

    def _check(self, member: Member) -> None:
        name, size, packed = member.name, member.size, member.packed
        if member.method not in (STORED, DEFLATED):
            raise self._error(name, "a member that is stored or deflated", f"method {member.method}")
        if member.method == STORED and size != packed:
            raise self._error(name, f"{packed} bytes, as they are stored", f"a size of {size}")
        if size > max(MAX_RATIO * packed, SMALL):
            hint = "a bomb? if not, store it without compression"
            raise self._error(name, f"at most {MAX_RATIO} bytes out of one", f"{size} out of {packed}", hint)

    def _error(self, member: str | None, rule: str, got: str, hint: str | None = None) -> FormatError:
        return FormatError(self.source.name, None if member is None else ascii(member)[1:-1], rule, got, hint)
