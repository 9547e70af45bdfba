"""`export`, and what its formats share: they write arrays that others read, a row chunk at a time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pumice._core import native
from pumice.checkpoint import TensorInfo, Writer, open_reader
from pumice.checkpoint.base import Reader
from pumice.checkpoint.locations import Location, local, locate
from pumice.checkpoint.writer import MAX_SHARD_SIZE
from pumice.conversion import CHUNK_BYTES, Progress, Tally, readable_infos
from pumice.errors import NonFiniteError
from pumice.model_folder import check_apart, side_files
from pumice.options import check_choice
from pumice.report import Report, TensorReport
from pumice.values.base import Array

FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
LARGEST = {"float16": "65504", "bfloat16": "3.39e38"}


@dataclass(frozen=True)
class Job:
    """An export: what is read, and where it goes.

    Parameters
    ----------
    dtype : {"float32", "float16", "bfloat16"}
        Of decoded weights.
    copied : tuple of str
        Files of the source's folder that go along.
    template, allow_rounding, check
        Of ``gguf``.
    """

    reader: Reader
    source: Location
    target: Path
    dtype: str
    overwrite: bool
    max_shard_size: int
    copied: tuple[str, ...]
    tally: Tally
    io: str = "mmap"
    template: Path | None = None
    allow_rounding: bool = False
    check: bool = False

    def into_folder(self, suffix: str = ".safetensors") -> bool:
        """Whether the target is a folder, and not a file, whose name would end in `suffix`."""
        return self.target.is_dir() or self.target.suffix != suffix

    def infos(self) -> dict[str, TensorInfo]:
        """All arrays of the source."""
        return readable_infos(self.reader)

    def done(self, name: str, info: TensorInfo, scheme: str, nbytes: int, why: str = "") -> TensorReport:
        """Count an array as done."""
        self.tally.add(name, info.nbytes)
        return TensorReport(name, info.shape, scheme, info.nbytes, nbytes, why=why)

    def rows(self, name: str, shape: tuple[int, ...]) -> Iterator[Array]:
        """The values of an array, some rows at a time."""
        step = max(1, CHUNK_BYTES // (4 * max(math.prod(shape[1:]), 1)))
        count = shape[0] if shape else 1
        for start in range(0, count, step):
            yield self.reader.rows(name, start, min(start + step, count))

    def decoded(self, name: str, shape: tuple[int, ...]) -> Iterator[Array]:
        """The same in the export's dtype; bfloat16 as patterns."""
        for rows in self.rows(name, shape):
            yield rounded(rows, self.dtype, name)

    def write_decoded(self, writer: Writer, name: str, info: TensorInfo, why: str = "") -> TensorReport:
        """Write an array as a plain tensor of the export's dtype."""
        itemsize = 4 if self.dtype == "float32" else 2
        plain = TensorInfo(info.shape, FLOATS[self.dtype], itemsize * math.prod(info.shape))
        writer.begin(name, plain)
        for rows in self.decoded(name, info.shape):
            writer.write("", rows)
        return self.done(name, info, plain.dtype, plain.nbytes, why)

    def copy(self, writer: Writer, name: str, info: TensorInfo) -> TensorReport:
        """Write a tensor of the source as it is."""
        writer.begin(name, TensorInfo(info.shape, info.dtype, info.nbytes))
        writer.write("", self.reader.raw(name))
        return self.done(name, info, info.dtype, info.nbytes)


def rounded(values: Array, dtype: str, name: str) -> Array:
    """float32 values in a dtype; bfloat16 as patterns. NaN and infinity stay what they are.

    Raises
    ------
    NonFiniteError
        A finite value is beyond the dtype.
    """
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "float32":
        return values
    bits, overflow = native.encode_halves(values.reshape(1, -1), dtype == "bfloat16")
    if overflow >= 0:
        rule = f"values within {dtype} ({LARGEST[dtype]})"
        raise NonFiniteError(f"{name}: expected {rule}, got {values.reshape(-1)[overflow]}; float32 holds it (--dtype)")
    patterns = bits.reshape(values.shape)
    return patterns if dtype == "bfloat16" else patterns.view(np.float16)


FORMATS: dict[str, Callable[[Job], list[TensorReport]]] = {}


def register(name: str) -> Callable[[Callable[[Job], list[TensorReport]]], Callable[[Job], list[TensorReport]]]:
    """Add a format to those of `export`; a decorator of the function that writes it."""

    def add(write: Callable[[Job], list[TensorReport]]) -> Callable[[Job], list[TensorReport]]:
        FORMATS[name] = write
        return write

    return add


def export(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    format: str,
    *,
    dtype: str = "float32",
    overwrite: bool = False,
    max_shard_size: int = MAX_SHARD_SIZE,
    template: str | os.PathLike[str] | None = None,
    allow_rounding: bool = False,
    check: bool = False,
    io: str = "mmap",
    progress: Progress | None = None,
) -> Report:
    """Write a checkpoint for other programs. The target appears whole or not at all.

    Parameters
    ----------
    source : path
        A checkpoint in any format that pumice reads.
    target : path
        ``dense``, ``ct``: a file that ends in ``.safetensors``, or a folder. ``npz``: a file that ends in ``.npz``, or
        a folder. ``gguf``: a file that ends in ``.gguf``.
    format : {"dense", "ct", "npz", "gguf"}
        ``dense``: plain safetensors, every weight decoded.

        ``ct``: compressed-tensors, which transformers and vLLM load. Dense integers keep their codes as
        ``pack-quantized``; sparse weights become ``sparse-bitmask`` or, if all are 2:4, ``sparse-24-bitmask``, which
        its versions before 0.15 load; what has no place there is decoded.

        ``npz``: one archive for `numpy.load` with every array decoded. Into a folder, each csr and bsr weight becomes a
        file of its own for `scipy.sparse.load_npz`, and ``dense.npz``, which appears last, holds the rest.

        ``gguf``: llama.cpp's format, as the `template` has it. Dense integers keep their codes, plain tensors their
        values, and what ggml cannot hold is refused (docs/gguf.md).
    dtype : {"float32", "float16", "bfloat16"}
        Of what is decoded; ``dense`` and ``npz`` also write other floating-point tensors in it.
    overwrite : bool
        Whether a file, or the weights and files of the same names in a folder, may be replaced.
    max_shard_size : int
        Bytes of tensors in a file of a folder.
    template : path, optional
        For ``gguf``: a GGUF file of the same model, with weights of any type. Keys, tokenizer and what the source lacks
        are copied from it. The source's names are its own, or those of Hugging Face's LLaMA for such a model.
    allow_rounding : bool
        For ``gguf``: whether scales and minima may be rounded to float16, which is all that ggml stores.
    check : bool
        For ``gguf``: whether to compare each weight with the template's, and refuse one that is further from it than
        zeros are: another model, or rows in another order.
    io : {"mmap", "read"}
        How files are read.
    progress : callable, optional
        Called with (name, bytes done, bytes in all).

    Returns
    -------
    Report
        `why` says what could not be kept as it was.

    Raises
    ------
    FormatError
        The source breaks a rule of its format; nothing is written.
    NonFiniteError
        A value is beyond `dtype`.
    ValueError
        Another format or dtype, or source and target are the same; for ``gguf`` also a weight without a place in the
        template, or with values that no type of ggml has (PumiceError).
    FileExistsError
        Without `overwrite`: the target is a file, or a folder that is not empty.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pumice as pm
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = pm.save(folder / "a.safetensors", {"fc.weight": pm.compress(np.eye(64), "int4-g32")})
    >>> report = pm.export(folder / "a.safetensors", folder / "b.npz", "npz")
    >>> bool((np.load(folder / "b.npz")["fc.weight"] == np.eye(64)).all())
    True
    """
    start = time.perf_counter()
    check_choice("format", format, tuple(FORMATS))
    check_choice("dtype", dtype, tuple(FLOATS))
    if format != "gguf" and (template is not None or allow_rounding or check):
        raise ValueError(f"template, allow_rounding, check: expected none of them for {format}, got some")
    source, target = locate(source), local(target)
    with open_reader(source, io=io) as reader:
        check_apart(reader, source, target)
        copied, skipped = side_files(reader, source, target)
        total = sum(reader.info(name).nbytes for name in reader.names())
        place = None if template is None else local(template, "template")
        tally = Tally(total, progress)
        job = Job(
            reader, source, target, dtype, overwrite, max_shard_size, copied, tally, io, place, allow_rounding, check
        )
        tensors = FORMATS[format](job)
    seconds = time.perf_counter() - start
    return Report(str(source), str(target), tuple(tensors), seconds, job.copied, skipped)


def is_float(dtype: str) -> bool:
    """Whether `Reader.rows` gives a plain tensor of this dtype as float32."""
    return dtype in ("F32", "F16", "BF16") or dtype.startswith("F8")
