"""Reading what `torch.save` writes: a ZIP archive of a pickle and one stored file a storage. Nothing in it is run.

    | <root>/data.pkl: which tensor lies where | <root>/data/0, data/1, ...: storages, 64-byte aligned | version ... |

Format: torch/serialization.py of PyTorch 2.13 (since 1.6). Tensors are views of their storages, in the mapped file:
transposed, sliced and shared ones too. Dicts and lists in dicts become dotted names. A training checkpoint is opened
at its weights, the first of `WEIGHTS_KEYS` that it has; what lies beside them is named in `metadata`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from numpy.typing import NDArray

from pumice.checkpoint import archive
from pumice.checkpoint.archive import Archive
from pumice.checkpoint.base import HEAD, read_head, refuse_non_weights, register
from pumice.checkpoint.container import Container, Entry, Shard
from pumice.checkpoint.container_reader import ContainerReader
from pumice.checkpoint.locations import Location, matching
from pumice.checkpoint.shards import open_folder
from pumice.checkpoint.source import Buffer, Source
from pumice.checkpoint.strided import Strided, bytes_of, check_extent
from pumice.checkpoint.torch_pickle import PICKLE_CAP, Tensor, read_torch_pickle
from pumice.errors import FormatError

SINGLE = "pytorch_model.bin"
SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
WEIGHTS_KEYS = ("state_dict", "model_state_dict", "model")
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that pickles of PyTorch before 1.6 begin with
AGAIN = "load it with torch and save it again, as safetensors or by torch.save"
LEVELS_CAP, VALUES_CAP, NAME_CAP = 32, 1 << 17, 1024  # of the containers, and characters of a name


@dataclass(frozen=True)
class TorchShard(Shard):
    """One file: its archive, and of each tensor where it lies in which member."""

    archive: Archive
    places: Mapping[str, tuple[Strided, str]]

    @classmethod
    def open(cls, origin: Location | Buffer, *, io: str = "mmap") -> Self:
        source = Source(origin, io=io)
        head = bytes(source.view(0, min(HEAD, source.size)))
        refuse_non_weights(head, source.name)
        _refuse_others(head, source.name)
        members = Archive(source)
        root = _root(members)
        saved = _saved(members, root)
        key, rest = _weights_key(saved)
        stem = "tensor" if isinstance(origin, Buffer) else origin.stem
        tensors = _flat(saved if key is None else saved[key], stem, source.name)
        places = {name: (tensor.place, _member(members, root, name, tensor)) for name, tensor in tensors}
        return cls(
            source.name,
            None if isinstance(origin, Buffer) else origin,
            {name: Entry(place.dtype, place.shape, place.nbytes) for name, (place, _) in places.items()},
            {} if key is None else {"weights key": key, "left out": ", ".join(map(str, rest))},
            members,
            places,
        )


class TorchContainer(Container):
    """A file; a folder that holds ``pytorch_model.bin``, shards and their index, or one such file; or bytes."""

    format = "PyTorch"
    shards: tuple[TorchShard, ...]

    @classmethod
    def knows(cls, head: bytes) -> bool:
        if head.startswith(archive.MAGIC):
            return not archive.first_name(head).endswith(b".npy")
        return _is_pickle(head) or _is_tar(head)

    @classmethod
    def holds(cls, folder: Location) -> bool:
        return any(folder.glob("*.bin.index.json")) or bool(_weights_files(folder))

    def __init__(self, path: Location | Buffer, *, io: str = "mmap") -> None:
        if not isinstance(path, Buffer) and path.is_dir():
            self.shards = open_folder(path, _weights_files(path), SINGLE, lambda file: TorchShard.open(file, io=io))
        else:
            self.shards = (TorchShard.open(path, io=io),)
        self._held = {name: shard for shard in self.shards for name in shard.entries}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        self.entry(name)
        shard = self._held[name]
        place, member = shard.places[name]
        part = place if stop is None else place.rows(start, stop)
        try:
            return part.read(partial(shard.archive.view, member))
        except FormatError as error:
            raise FormatError(shard.name, name, error.rule, error.got, error.hint) from error

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        entry = self.entry(name)
        return bytes_of(partial(self.read, name), entry.shape, entry.nbytes, start, stop)

    def check(self) -> Iterator[tuple[str | None, FormatError | None]]:
        for shard in self.shards:
            yield from shard.archive.check({name: member for name, (_, member) in shard.places.items()})

    def close(self) -> None:
        for shard in self.shards:
            shard.archive.close()


@register
class TorchReader(ContainerReader):
    """Reads PyTorch's .pt, .pth and .bin files without torch; opening one reads its pickle and its directory only.

    Parameters
    ----------
    path
        A file; a folder with ``pytorch_model.bin``, or shards and their index; or bytes.
    io
        "mmap" or "read".

    Raises
    ------
    FormatError
        A reference to code; files of PyTorch before 1.6, TorchScript programs and other pickles, by name; storages
        and strides that do not fit the file.
    """

    format = "PyTorch"
    container_type = TorchContainer
    container: TorchContainer


def _is_pickle(head: bytes) -> bool:
    return len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _refuse_others(head: bytes, path: str) -> None:
    """Older formats of PyTorch, and pickles of anything else."""
    rule = "an archive as torch.save writes it since PyTorch 1.6"
    if head.startswith(LEGACY):
        raise FormatError(path, None, rule, "a legacy file, a bare pickle", AGAIN)
    if _is_pickle(head):
        raise FormatError(path, None, rule, "a pickle, which could run code: refused", AGAIN)
    if _is_tar(head):
        raise FormatError(path, None, rule, "a tar archive (PyTorch before 0.1.11?)", AGAIN)


def _root(members: Archive) -> str:
    """The folder within the archive: torch names it after the file."""
    names, path = members.members, members.source.name
    roots = [name.removesuffix("data.pkl") for name in names if name.split("/")[-1] == "data.pkl"]
    if any(name.split("/")[-1] == "constants.pkl" for name in names):
        raise FormatError(path, None, "a state dict", "a TorchScript program", "save its state_dict() instead")
    if len(roots) != 1:
        got = ", ".join(map(ascii, list(names)[:5])) or "nothing"
        raise FormatError(path, None, "an archive of PyTorch (data.pkl) or NumPy (.npy)", f"one of {got}"[:200], None)
    order = f"{roots[0]}byteorder"
    if order in names and members.head(order, 8) != b"little":
        raise FormatError(path, None, "little-endian storages", repr(members.head(order, 8)), AGAIN)
    return roots[0]


def _saved(members: Archive, root: str) -> Any:
    size = members.members[f"{root}data.pkl"].size
    if size > PICKLE_CAP:
        raise FormatError(members.source.name, None, f"a pickle of at most {PICKLE_CAP} bytes", f"{size} bytes", None)
    return read_torch_pickle(members.view(f"{root}data.pkl"), members.source.name)


def _member(members: Archive, root: str, name: str, tensor: Tensor) -> str:
    """The member that is the tensor's storage; the tensor is checked to lie within."""
    storage, path = tensor.storage, members.source.name
    member = f"{root}data/{storage.key}"
    if member not in members.members:
        rule = f"the storage {storage.key[:80]!a}"
        raise FormatError(path, name, rule, "no such file in the archive", "a truncated copy?")
    nbytes = members.members[member].size
    unit = 1 if storage.kind.dtype is None else Strided(storage.kind.dtype, (), ()).itemsize
    if storage.count * unit != nbytes:
        got = f"{storage.count} items of {unit} bytes each"
        raise FormatError(path, name, f"a storage of {nbytes} bytes, as the file has it", got, None)
    check_extent(tensor.place, nbytes, path, name)
    return member


def _weights_files(folder: Location) -> list[Location]:
    files = [path for suffix in SUFFIXES for path in matching(folder, f"*{suffix}") if path.is_file()]
    return [path for path in files if TorchContainer.knows(read_head(path))]


def _weights_key(saved: Any) -> tuple[str | None, list[Any]]:
    """The key of a training checkpoint under which its weights are, and the other keys; None if it is no such."""
    if isinstance(saved, dict) and not any(isinstance(value, Tensor) for value in saved.values()):
        for key in WEIGHTS_KEYS:
            if isinstance(saved.get(key), dict) and saved[key]:
                return key, [other for other in saved if other != key]
    return None, []


def _flat(saved: Any, stem: str, path: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors by their dotted names. A container of few bytes may unfold to any number of them: counted."""
    seen: set[str] = set()
    waiting, left = [("", 0, saved)], VALUES_CAP
    while waiting:
        name, level, value = waiting.pop()
        if isinstance(value, Tensor):
            if (name or stem) in seen:
                raise FormatError(path, name, "one tensor of this name", "two", None)
            seen.add(name or stem)
            yield name or stem, value
        elif isinstance(value, dict | list | tuple):
            left -= len(value)
            if left < 0 or level == LEVELS_CAP or len(name) > NAME_CAP:
                rule = f"at most {VALUES_CAP} values in {LEVELS_CAP} levels, names of {NAME_CAP} characters"
                raise FormatError(path, None, rule, "more", "a pickle that unfolds?")
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{name}.{key}" if name else str(key), level + 1, item) for key, item in pairs]
