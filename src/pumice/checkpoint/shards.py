"""Folders of weights: their one file, or the shards that an index names. Hugging Face's rules, for all formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pumice.checkpoint.base import LFS_HEAD, refuse_non_weights
from pumice.checkpoint.container import Shard
from pumice.checkpoint.header import HEADER_CAP
from pumice.checkpoint.json_text import parse_json
from pumice.checkpoint.locations import Location, matching
from pumice.checkpoint.source import Source
from pumice.errors import FormatError

PART = re.compile(r".*-(\d{5})-of-(\d{5})\.\w+")
S = TypeVar("S", bound=Shard)


def open_folder(
    folder: Location, files: Sequence[Location], single: str, open_one: Callable[[Location], S]
) -> tuple[S, ...]:
    """Open what a folder holds.

    Parameters
    ----------
    folder
        Whose weights are wanted.
    files
        All files of the format in it.
    single
        What the one file is called by those who write such folders; the index adds ``.index.json``.
    open_one
        Opens one file.

    Raises
    ------
    FormatError
        More than one file or index that could be meant; an index that is wrong.
    """
    index = folder / f"{single}.index.json"
    indexes = matching(folder, f"*{Path(single).suffix}.index.json")
    if folder / single in files:  # as transformers does, it goes before an index
        return (open_one(folder / single),)
    if index in indexes or len(indexes) == 1:
        return _open_index(index if index in indexes else indexes[0], open_one)
    if not indexes and len(files) == 1 and not _is_part(files[0].name):
        return (open_one(files[0]),)
    got = ", ".join(path.name for path in (indexes or files)[:8])
    rule = f"{single}, one index or one weights file"
    raise FormatError(str(folder), None, rule, got, "give the path of one file")


def _is_part(name: str) -> bool:
    return PART.fullmatch(name) is not None


def _open_index(index: Location, open_one: Callable[[Location], S]) -> tuple[S, ...]:
    where = str(index)
    source = Source(index, io="read")
    refuse_non_weights(bytes(source.view(0, min(len(LFS_HEAD), source.size))), where)
    if source.size > HEADER_CAP:
        raise FormatError(where, None, f"at most {HEADER_CAP} bytes", f"{source.size} bytes", None)
    table = parse_json(bytes(source.view(0, source.size)), where, floats=True)
    source.close()
    shard_names = table.get("weight_map")
    if not isinstance(shard_names, dict) or not shard_names:
        raise FormatError(where, None, "a weight_map of tensors to files", ascii(shard_names)[:80], None)
    files = _shard_files(index, shard_names)
    shards = {file: open_one(index.parent / file) for file in files}
    for tensor, file in shard_names.items():
        if tensor not in shards[file].entries:
            raise FormatError(where, tensor, f"a tensor of {file!r}", "no such tensor there", None)
    for file, shard in shards.items():
        for tensor in shard.entries:
            if tensor not in shard_names:
                raise FormatError(where, tensor, "an index that names it", f"none, and it is in {file!r}", None)
            if shard_names[tensor] != file:
                got = f"{shard_names[tensor]!r}"
                raise FormatError(where, tensor, f"the file that holds it, {file!r}", got, None)
    return tuple(shards.values())


def _shard_files(index: Location, shard_names: Mapping[str, object]) -> list[str]:
    """The files of an index, each a plain name (links are followed) and there."""
    for tensor, file in shard_names.items():
        plain = isinstance(file, str) and file not in ("", ".", "..") and not set(file) & set("/\\\0")
        if not plain:
            rule = "a file name without folders"
            raise FormatError(str(index), tensor, rule, ascii(file)[:80], "a hostile index?")
    files = sorted({str(file) for file in shard_names.values()})
    for file in files:
        if not (index.parent / file).is_file():
            match = PART.fullmatch(file)
            which = f"shard {int(match[1])} of {int(match[2])}" if match else "a shard"
            hint = "copy or download it again"
            raise FormatError(str(index), None, f"{which}, {file!r}, beside the index", "no such file", hint)
    return files
