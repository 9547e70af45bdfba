"""Checking a checkpoint against its own checksums and the rules of every array in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pumice.checkpoint.base import Reader, open_reader
from pumice.checkpoint.container import Container, Shard
from pumice.checkpoint.container_reader import ContainerReader
from pumice.checkpoint.conventions.manifest import header_digest_holds, read_manifest
from pumice.checkpoint.safetensors import SafetensorsShard
from pumice.errors import FormatError

HASH_AT_ONCE = 16 << 20


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes
    ----------
    tensors
        Tensors whose bytes equal their checksum.
    unchecked
        Names of tensors without a checksum (safetensors that pumice did not write; ZIP archives have their own).
    errors
        One FormatError for each bad tensor, array or header.
    """

    path: str
    tensors: int
    unchecked: tuple[str, ...]
    errors: tuple[FormatError, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.errors

    @property
    def bad(self) -> tuple[str, ...]:
        """Names of the bad tensors and arrays, once each."""
        return tuple(dict.fromkeys(error.tensor for error in self.errors if error.tensor))


def verify(path: str | os.PathLike[str], *, io: str = "mmap") -> VerifyReport:
    """Check every SHA-256 and the structure of every array.

    Parameters
    ----------
    path
        A weights file, or a folder that holds one or shards and their index.
    io
        "mmap" or "read".

    Returns
    -------
    VerifyReport
        `ok`, and one error for each bad tensor.

    Raises
    ------
    FormatError
        The file cannot even be opened: header, index or manifest are broken.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from pumice.checkpoint import save
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "m.safetensors"
    >>> _ = save(path, {"bias": np.zeros(3, np.float32)})
    >>> verify(path).ok
    True
    """
    with open_reader(path, io=io) as reader:
        return verify_reader(reader, str(path))


def verify_reader(reader: Reader, path: str) -> VerifyReport:
    """`verify` for a checkpoint that is open."""
    errors: list[FormatError] = []
    unchecked: list[str] = []
    checked = 0
    if isinstance(reader, ContainerReader):
        for shard in reader.container.shards:
            digests = read_manifest(shard).sha256
            found = list(_changed(reader.container, shard, digests))
            errors += found
            with_digest = digests.keys() & shard.entries.keys()
            checked += len(with_digest - {error.tensor for error in found})
            unchecked += shard.entries.keys() - with_digest
        own = list(reader.container.check())
        errors += [error for _, error in own if error]
        checked += sum(name is not None and error is None for name, error in own)
        unchecked = sorted(set(unchecked) - {name for name, _ in own})
    else:
        unchecked += reader.names()
    for name in reader.names():
        if not reader.info(name).compact:
            continue
        try:
            reader.array(name)
        except FormatError as error:
            errors.append(error)
    return VerifyReport(path, checked, tuple(sorted(unchecked)), tuple(errors))


def _changed(container: Container, shard: Shard, digests: Mapping[str, str]) -> Iterator[FormatError]:
    """The header and the tensors of a file that are not what their SHA-256 says."""
    # Any of our entries will do: a changed bit may have renamed one of them.
    ours = any(key.startswith("pumice.") for key in shard.metadata)
    if isinstance(shard, SafetensorsShard) and ours and not header_digest_holds(shard.metadata, shard.text):
        rule = "a header of the SHA-256 that it states"
        yield FormatError(shard.name, None, rule, "another", "the file was changed")
    for tensor, digest in sorted(digests.items()):
        if tensor not in shard.entries:
            yield FormatError(shard.name, tensor, "the tensor that the manifest lists", "no such tensor")
            continue
        size = shard.entries[tensor].nbytes
        got = hashlib.sha256()
        for begin in range(0, size, HASH_AT_ONCE):
            got.update(container.raw(tensor, begin, min(begin + HASH_AT_ONCE, size)))
        if got.hexdigest() != digest:
            hint = "the file was changed"
            yield FormatError(shard.name, tensor, f"SHA-256 {digest[:16]}...", got.hexdigest()[:16], hint)
