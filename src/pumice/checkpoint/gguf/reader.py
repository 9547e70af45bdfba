"""Reading GGUF: one file, the parts of a split one, or bytes in memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pumice import layouts
from pumice.checkpoint.base import LFS_HEAD, Reader, TensorInfo, refuse_non_weights, register
from pumice.checkpoint.dtypes import DTYPES, rows_of, widen
from pumice.checkpoint.gguf.blocks import BlockType
from pumice.checkpoint.gguf.fields import Fields
from pumice.checkpoint.gguf.header import MAGIC, OLD_MAGICS, Header, Tensor, fail, read_header
from pumice.checkpoint.locations import Location, matching
from pumice.checkpoint.source import Buffer, Source
from pumice.errors import FormatError, near
from pumice.scheme import Scheme
from pumice.values.base import codec_of, matrix_shape

PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
CHUNK = 1 << 22  # weights that are unpacked at a time


class GGUFFile:
    """One file: its bytes and its header."""

    def __init__(self, origin: Location | Buffer, *, io: str = "mmap") -> None:
        if sys.byteorder != "little":
            raise NotImplementedError("GGUF: expected a little-endian machine, got a big-endian one")
        self.path = None if isinstance(origin, Buffer) else origin
        self.source = Source(origin, io=io)
        refuse_non_weights(bytes(self.source.view(0, min(len(LFS_HEAD), self.source.size))), self.source.name)
        self.header: Header = read_header(self.source)


@register
class GGUFReader(Reader):
    """Reads GGUF; opening it reads the header only.

    Quantized tensors come back as the integer scheme that has their codes and scales, so that they decode to the
    values of ggml to the bit: Q4_0 as ``int4-g32``, Q4_1 and Q4_K as ``int4-g32-min``, Q5_0 ``int5-g32``, Q5_1 and Q5_K
    ``int5-g32-min``, Q8_0 and Q8_1 ``int8-g32``, Q2_K ``int2-g16-min``, Q3_K ``int3-g16``, Q6_K ``int6-g16``. `info`
    names every other type, which is refused when it is asked for. Names are those of the file
    (``blk.0.attn_q.weight``), shapes have the rows first.

    Parameters
    ----------
    path
        A file, or one part of a split file whose other parts are beside it; a folder that holds one; or bytes.
    io
        "mmap" or "read".

    Raises
    ------
    FormatError
        Names the file, the key or tensor, the broken rule and what was there instead.

    Notes
    -----
    Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing is allocated from a number that was not
    checked against the file's size.
    """

    format = "GGUF"

    @classmethod
    def knows(cls, head: bytes) -> bool:
        return head[:4] in (MAGIC, *OLD_MAGICS)

    @classmethod
    def holds(cls, folder: Location) -> bool:
        return any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors"))

    def __init__(self, path: Location | Buffer, *, io: str = "mmap") -> None:
        if not isinstance(path, Buffer) and path.is_dir():
            path = _only_file(path)
        self._files = _open_parts(GGUFFile(path, io=io), io)
        self._file_of: dict[str, GGUFFile] = {}
        for file in self._files:
            for name in file.header.tensors:
                if name in self._file_of:
                    fail(file.source, name, "a tensor in one part", "two parts that have it")
                self._file_of[name] = file
        self._texts: dict[str, str] | None = None

    @property
    def fields(self) -> Fields:
        """The keys and values as they are: int, float, bool, str, ndarray or tuple of str."""
        return self._files[0].header.fields

    @property
    def metadata(self) -> Mapping[str, str]:
        """The keys whose values are no arrays, as text; `fields` has all, with their types."""
        if self._texts is None:
            self._texts = self.fields.texts()
        return self._texts

    @property
    def files(self) -> tuple[Location, ...]:
        return tuple(file.path for file in self._files if file.path is not None)

    @property
    def table(self) -> Mapping[str, Tensor]:
        """The tensor table, in the order of the file."""
        return {name: file.header.tensors[name] for name, file in self._file_of.items()}

    @property
    def alignment(self) -> int:
        """What offsets are multiples of."""
        return self._files[0].header.alignment

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._file_of))

    def tensor(self, name: str) -> Tensor:
        """What the tensor table says. KeyError for an unknown name."""
        if name not in self._file_of:
            raise KeyError(f"name: expected a tensor of the checkpoint, got {name!r}{near(name, self._file_of)}")
        return self._file_of[name].header.tensors[name]

    def info(self, name: str) -> TensorInfo:
        tensor = self.tensor(name)
        form, nbytes = tensor.type, tensor.end - tensor.begin
        if form is None or form.scheme is None or len(tensor.shape) < 2:
            return TensorInfo(tensor.shape, tensor.type_name, nbytes)
        parts = {"packed": "I32", "scale": form.scale_dtype}
        if form.scheme.endswith("-min"):
            parts["min"] = form.scale_dtype
        return TensorInfo(tensor.shape, form.scheme, nbytes, parts | {"shape": "I64"})

    def array(self, name: str) -> Any:
        tensor = self.tensor(name)
        if tensor.type is not None and tensor.type.dtype is not None:
            return widen(self._plain(name, tensor), tensor.type.dtype)
        return self._compact(name, tensor)

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        tensor = self.tensor(name)
        if tensor.type is None:
            self._refuse(name, tensor)
        end = tensor.end if stop is None else tensor.begin + stop
        return self._file_of[name].source.view(tensor.begin + start, end)

    def stored(self, name: str, start: int, stop: int) -> NDArray[Any] | None:
        tensor = self.tensor(name)
        plain = tensor.type is not None and tensor.type.dtype is not None
        return self._plain(name, tensor, start, stop) if plain else None

    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        tensor = self.tensor(name)
        if tensor.type is None or tensor.type.dtype is None:
            decoded: NDArray[np.float32] = self._compact(name, tensor, start, stop).to_dense()
            return decoded
        return rows_of(self._plain(name, tensor, start, stop), tensor.type.dtype)

    def _bytes(self, name: str, tensor: Tensor, start: int, stop: int | None) -> tuple[Any, tuple[int, ...]]:
        """The bytes of some rows, and the shape that they have."""
        begin, end, shape = tensor.begin, tensor.end, tensor.shape
        if stop is not None and shape:
            row = (end - begin) // max(shape[0], 1)
            begin, end, shape = begin + start * row, begin + stop * row, (stop - start, *shape[1:])
        return np.frombuffer(self._file_of[name].source.view(begin, end), np.uint8), shape

    def _plain(self, name: str, tensor: Tensor, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        assert tensor.type is not None and tensor.type.dtype is not None
        flat, shape = self._bytes(name, tensor, start, stop)
        dtype = DTYPES[tensor.type.dtype].numpy
        assert dtype is not None
        if flat.ctypes.data % dtype.itemsize:
            flat = flat.copy()
            flat.setflags(write=False)
        values: NDArray[Any] = flat.view(dtype).reshape(shape)
        return values

    def _compact(self, name: str, tensor: Tensor, start: int = 0, stop: int | None = None) -> Any:
        form = tensor.type
        if form is None or form.scheme is None or len(tensor.shape) < 2:
            self._refuse(name, tensor)
        flat, shape = self._bytes(name, tensor, start, stop)
        try:
            return compact_array(flat, form, shape)
        except FormatError as error:
            where = self._file_of[name].source.name
            raise FormatError(where, name, error.rule, error.got, error.hint) from error

    def _refuse(self, name: str, tensor: Tensor) -> NoReturn:
        where, got, hint = self._file_of[name].source, tensor.type_name, None
        if tensor.type is not None and tensor.type.scheme is not None:
            fail(where, name, f"two or more dimensions for {got}", f"shape {tensor.shape}")
        if tensor.type is None:
            hint = "written by a newer ggml?" if got.startswith("type ") else "removed from the format: convert it anew"
        fail(where, name, "a type of numbers, Q4_0 to Q8_1 or Q2_K to Q6_K", got, hint)

    def close(self) -> None:
        for file in self._files:
            file.source.close()


def compact_array(flat: NDArray[np.uint8], form: BlockType, shape: tuple[int, ...]) -> layouts.CompactArray:
    """The array of which these are the bytes; `CHUNK` weights are unpacked at a time."""
    assert form.scheme is not None and form.decode is not None and form.record is not None
    scheme = Scheme.parse(form.scheme)
    codec, rows, cols = codec_of(scheme), *matrix_shape(shape)
    arrays = {
        part: np.empty(size, _stored(form, dtype)) for part, (dtype, size) in codec.form(scheme, rows, cols).items()
    }
    blocks = flat.view(form.record).reshape(rows, cols // form.weights)
    step = max(1, CHUNK // max(cols, 1))
    for a in range(0, rows if cols else 0, step):
        b = min(a + step, rows)
        decoded = form.decode(blocks[a:b].reshape(-1))
        decoded |= codec.pack(decoded.pop("codes").reshape(b - a, cols))
        for part, values in decoded.items():
            arrays[part][a:b] = values.reshape(b - a, -1)
    return layouts.from_parts(scheme, shape, codec.to_parts(arrays, shape))


def _stored(form: BlockType, dtype: Any) -> Any:
    """The dtype of an array of the codec, which may leave the choice of that of scales."""
    return DTYPES[form.scale_dtype].numpy if isinstance(dtype, tuple) else dtype


def _only_file(folder: Location) -> Location:
    """The one model of a folder: a file, or the first part of one that is split."""
    files = matching(folder, "*.gguf")
    models = {match[1] if (match := PART.fullmatch(file.name)) else file.name for file in files}
    if len(models) != 1:
        got = ", ".join(file.name for file in files[:8])
        raise FormatError(str(folder), None, "one GGUF model", got, "give the path of one file")
    return files[0]


def _open_parts(file: GGUFFile, io: str) -> tuple[GGUFFile, ...]:
    """All parts of a split file, in their order; the file itself if it is whole."""
    count = _whole(file, "split.count", 1)
    if count <= 1:
        return (file,)
    match = PART.fullmatch(file.path.name) if file.path is not None else None
    if file.path is None or match is None or int(match[3]) != count:
        rule = f"a part of {count} to be called NAME-00001-of-{count:05d}.gguf"
        fail(file.source, "split.count", rule, "bytes" if file.path is None else repr(file.path.name))
    parts = []
    for number in range(count):
        path = file.path.with_name(f"{match[1]}-{number + 1:05d}-of-{count:05d}.gguf")
        if not path.is_file():
            rule = f"part {number + 1} of {count}, {path.name!r}, beside it"
            fail(file.source, None, rule, "no such file", "copy or download it again")
        part = file if path.name == file.path.name else GGUFFile(path, io=io)
        found = _whole(part, "split.no", number), _whole(part, "split.count", 1)
        if found != (number, count):
            rule = f"part {number} of {count}, as its name says"
            fail(part.source, "split.no", rule, f"part {found[0]} of {found[1]}")
        parts.append(part)
    tensors = sum(len(part.header.tensors) for part in parts)
    if _whole(parts[0], "split.tensors.count", tensors) != tensors:
        said = parts[0].header.fields["split.tensors.count"]
        fail(parts[0].source, "split.tensors.count", f"{tensors} tensors, as the parts have", f"{said}")
    return tuple(parts)


def _whole(file: GGUFFile, key: str, default: int) -> int:
    value = file.header.fields.get(key, default)
    if type(value) is not int:
        fail(file.source, key, "a whole number", type(value).__name__)
    return value
