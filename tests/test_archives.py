"""ZIP archives: Python's zipfile writes them and says what they hold; others are refused with the reason."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest

import pumice as pm
from pumice.checkpoint.archive import END, END64, END64_AT, RECORD, Archive
from pumice.checkpoint.source import Source

TEXT = b"pumice " * 40


def zipped(method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in (members or {"a": TEXT, "b": TEXT[::-1]}).items():
            archive.writestr(name, data)
    return file.getvalue()


def opened(blob: bytes) -> Archive:
    return Archive(Source(blob))


def patched(blob: bytes, field: int, form: str, value: int, record: int = 0) -> bytes:
    """The archive with one field of a record of its directory changed; `field` counts bytes from its start."""
    at = -1
    for _ in range(record + 1):
        at = blob.index(b"PK\x01\x02", at + 1)
    at += field
    return blob[:at] + struct.pack(form, value) + blob[at + struct.calcsize(form) :]


def with_zip64(blob: bytes) -> bytes:
    """The same archive with its end in the 64-bit records, as PyTorch writes large ones."""
    at = blob.rindex(END)
    _, _, _, count, _, length, begin, _ = struct.unpack("<4s4H2LH", blob[at:])
    record = END64 + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, count, count, length, begin)
    locator = END64_AT + struct.pack("<LQL", 0, at, 1)
    return blob[:at] + record + locator + END + struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("change", [bytes, with_zip64])
def test_members_are_those_of_zipfile(method: int, change: object) -> None:
    assert callable(change)
    blob = change(zipped(method))
    archive = opened(blob)
    with zipfile.ZipFile(io.BytesIO(blob)) as expected:
        assert list(archive.members) == expected.namelist()
        for name in expected.namelist():
            assert bytes(archive.view(name)) == expected.read(name)
            assert bytes(archive.view(name, 5, 9)) == expected.read(name)[5:9]
            assert archive.head(name, 9) == expected.read(name)[:9]


def test_sizes_of_64_bits_and_data_descriptors_are_read() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, archive.open("a", "w", force_zip64=True) as member:
        member.write(TEXT)
    assert bytes(opened(file.getvalue()).view("a")) == TEXT

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        archive.writestr("a", TEXT)
    assert pipe.getvalue()[6] & 8  # the local header leaves the sizes to the descriptor behind the data
    assert bytes(opened(pipe.getvalue()).view("a")) == TEXT


DIRECTORY = {"flags": 8, "method": 10, "crc": 16, "packed": 20, "size": 24, "disk": 34, "header": 42}


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (patched(zipped(), DIRECTORY["flags"], "<H", 1), "a: expected a member that is not encrypted"),
        (patched(zipped(), DIRECTORY["flags"], "<H", 0x2000), "a: expected a member that is not encrypted"),
        (zipped(zipfile.ZIP_BZIP2), "stored or deflated, got method 12"),
        (zipped(zipfile.ZIP_LZMA), "stored or deflated, got method 14"),
        (zipped(zipfile.ZIP_DEFLATED, bomb=bytes(50 << 20)), "bomb: expected at most 200 bytes out of one.*a bomb"),
        (patched(zipped(), DIRECTORY["size"], "<L", 2**31), "280 bytes, as they are stored, got a size of 2147483648"),
        (patched(zipped(zipfile.ZIP_DEFLATED), DIRECTORY["size"], "<L", 281), "281 bytes inflated"),
        (patched(zipped(zipfile.ZIP_DEFLATED), DIRECTORY["size"], "<L", 279), "279 bytes inflated.*got more"),
        (patched(zipped(zipfile.ZIP_DEFLATED), DIRECTORY["crc"], "<L", 7), "CRC-32 00000007"),
        (patched(zipped(zipfile.ZIP_DEFLATED), DIRECTORY["packed"], "<L", 9), "280 bytes inflated"),
        (patched(zipped(), DIRECTORY["header"], "<L", 0, record=1), "before the next member, got an overlap"),
        (patched(zipped(), DIRECTORY["header"], "<L", 1), "the local header that the directory describes"),
        (patched(zipped(), DIRECTORY["header"], "<L", 2**31), "before the next member, got an overlap"),
        (patched(zipped(), DIRECTORY["size"], "<L", 2**32 - 1), "64-bit sizes in the Zip64 field"),
        (zipped().replace(b"b", b"a"), "a: expected every member once"),
        (zipped() + b"x", "nothing after the end of the archive"),
        (zipped()[:-1], "the end record of a ZIP archive|nothing after"),
        (zipped()[:-1] + b"\x05", "nothing after the end|the end record"),
        (zipped().replace(b"PK\x01\x02", b"PK\x01\x03", 1), "a record of the directory"),
        (with_zip64(zipped()).replace(END64, b"PK\x06\x00"), "the Zip64 end record that its locator names"),
        (b"PK\x03\x04" + bytes(100), "the end record of a ZIP archive"),
        (b"", "the end record of a ZIP archive"),
    ],
)  # fmt: skip
def test_archives_that_lie_are_refused_with_the_reason(blob: bytes, message: str) -> None:
    with pytest.raises(pm.FormatError, match=message):
        archive = opened(blob)
        for name in archive.members:
            archive.view(name)


def test_an_end_that_claims_more_than_the_file_is_refused_before_anything_is_made() -> None:
    blob = zipped()
    at = blob.rindex(END)
    for count, length, begin in ((65535, 92, 620), (2, 2**31, 0), (2, 92, 2**31), (2, 10**6, 600)):
        end = END + struct.pack("<4H2LH", 0, 0, count, count, length, begin, 0)
        with pytest.raises(pm.FormatError, match="directory"):
            opened(blob[:at] + end)


def test_an_archive_of_nothing_has_no_members() -> None:
    assert not opened(END + bytes(18)).members
    with pytest.raises(pm.FormatError, match="an archive of PyTorch .* or NumPy .*, got one of nothing"):
        pm.load(b"PK\x03\x04" + END + struct.pack("<4H2LH", 0, 0, 0, 0, 0, 4, 0))


def test_deflated_nonsense_is_refused() -> None:
    blob = zipped(zipfile.ZIP_DEFLATED)
    begin = 30 + 1
    bad = blob[:begin] + b"\xff" * 8 + blob[begin + 8 :]
    with pytest.raises(pm.FormatError, match="deflated data"):
        opened(bad).view("a")
    assert opened(blob).members["a"].crc == zlib.crc32(TEXT)
    assert RECORD.size == 46


def test_every_cut_of_an_archive_is_noticed() -> None:
    file = io.BytesIO()
    np.savez(file, a=np.arange(5.0), b=np.eye(3))
    for size in range(file.getbuffer().nbytes):
        with pytest.raises(pm.FormatError):
            pm.load(file.getvalue()[:size])
