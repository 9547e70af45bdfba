"""Fingerprints: what an array was made from, as a hash that several workers compute a part of each.

The fingerprint of an array is the SHA-256 of the SHA-256s of its leaves: `LEAF` bytes each of a tensor as the file has
it, in C order, the last one shorter; of an array that consists of several tensors, the leaves of one after the other.
So it depends on the stored bytes alone, and not on who has read them in which pieces. A manifest says of an array that
was encoded from which `fingerprint` it was made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pumice._core import native
from pumice.checkpoint.base import Reader
from pumice.checkpoint.source import Buffer

FINGERPRINT = "fingerprint"  # the note that holds it
LEAF = 1 << 20
PIECE = 4 * LEAF  # read at a time


def leaves_from(begin: int, end: int) -> range:
    """The leaves that begin in bytes [begin, end) of a tensor.

    Examples
    --------
    >>> leaves_from(0, 10), leaves_from(10, LEAF), leaves_from(10, 2 * LEAF + 1)
    (range(0, 1), range(1, 1), range(1, 3))
    """
    return range(-(-begin // LEAF), -(-end // LEAF))


def hash_leaves(data: Buffer) -> bytes:
    """The SHA-256s of the leaves that lie side by side in `data`."""
    if not LEAF % 64 and (whole := native.sha256_pieces(data, LEAF)) is not None:
        rest = data[len(data) // LEAF * LEAF :]
        return whole + hashlib.sha256(rest).digest() if rest else whole
    return b"".join(hashlib.sha256(data[i : i + LEAF]).digest() for i in range(0, len(data), LEAF))


class Leaves:
    """The SHA-256s of the leaves that begin in bytes [begin, end) of `nbytes`, which come in order.

    Attributes
    ----------
    at, end : int
        The first byte that is needed next, and the end of what is needed: the last leaf may end beyond `end`.

    Examples
    --------
    >>> leaves = Leaves(0, 3, 8)
    >>> leaves.add(0, b"pumice"), leaves.at, leaves.end
    (None, 6, 8)
    >>> leaves.add(0, b"pumice.."), leaves.digests == hash_leaves(b"pumice..")
    (None, True)
    """

    def __init__(self, begin: int, end: int, nbytes: int) -> None:
        some = leaves_from(begin, end)
        self.at, self.end = (some.start * LEAF, min(some.stop * LEAF, nbytes)) if some else (0, 0)
        self.digests = b""
        self._begun = hashlib.sha256()  # of the leaf that `at` is in

    def add(self, offset: int, data: Buffer) -> None:
        """Bytes from `offset` on, of which those that are known, or not needed, are skipped."""
        data = memoryview(data)[max(self.at - offset, 0) : max(self.end - offset, 0)]
        while data:
            inside, whole = self.at % LEAF, len(data) // LEAF * LEAF
            piece = data[:whole] if whole and not inside else data[: LEAF - inside]
            self.at += len(piece)
            if whole and not inside:
                self.digests += hash_leaves(piece)
            else:
                self._begun.update(piece)
                if self.at == self.end or self.at % LEAF == 0:
                    self.digests += self._begun.digest()
                    self._begun = hashlib.sha256()
            data = data[len(piece) :]


def leaves_of(reader: Reader, name: str) -> bytes:
    """The SHA-256s of all leaves of an array."""
    return b"".join(map(hash_leaves, _pieces(reader, name)))


def fingerprint_of(leaves: bytes) -> str:
    """The fingerprint of an array with these leaves."""
    return hashlib.sha256(leaves).hexdigest()


def fingerprint(reader: Reader, name: str) -> str:
    """The fingerprint of an array as it is stored.

    Examples
    --------
    >>> import io, hashlib, numpy as np, pumice as pm
    >>> from pumice.checkpoint import SafetensorsReader
    >>> file = io.BytesIO()
    >>> _ = pm.save(file, {"bias": np.zeros(3, np.float32)})
    >>> leaf = hashlib.sha256(bytes(12)).digest()
    >>> fingerprint(SafetensorsReader(file.getvalue()), "bias") == hashlib.sha256(leaf).hexdigest()
    True
    """
    return fingerprint_of(leaves_of(reader, name))


def made_from(reader: Reader, name: str) -> str:
    """The fingerprint of what an array was made from: what its file says; its own, if that says nothing."""
    said = reader.info(name).notes.get(FINGERPRINT)
    return said if isinstance(said, str) else fingerprint(reader, name)


def sources_of(reader: Reader) -> str | None:
    """One hash of what all arrays were made from; None if no array says so."""
    said = {name: reader.info(name).notes.get(FINGERPRINT) for name in reader.names()}
    lines = [f"{name} {text}\n" for name, text in sorted(said.items()) if text is not None]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else None


def _pieces(reader: Reader, name: str) -> Iterator[Buffer]:
    """The bytes of an array, cut at ends of leaves. Those of several tensors come whole: as long is what they make."""
    tensors = reader.tensors(name)
    if tensors != (name,):
        yield from map(reader.raw, tensors)
        return
    nbytes = reader.info(name).nbytes
    for start in range(0, nbytes, PIECE):
        yield reader.raw(name, start, min(start + PIECE, nbytes))
