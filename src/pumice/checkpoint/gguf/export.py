"""A model's weights in a GGUF file of the same model: keys, tokenizer and order are those of that template."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint.base import Reader, open_reader, same_file
from pumice.checkpoint.gguf.encoding import NUMBERS, Blocks, Encoded, Numbers
from pumice.checkpoint.gguf.names import Place, llama_place
from pumice.checkpoint.gguf.reader import GGUFReader, compact_array
from pumice.checkpoint.gguf.writer import Bytes, Piece, number_field, write_gguf
from pumice.errors import PumiceError

CHUNK = 1 << 22  # weights that are encoded at a time
COPY_AT_ONCE = 4 << 20
FILE_TYPES = {0: 0, 1: 1, 2: 2, 3: 3, 8: 7, 6: 8, 7: 9, 30: 32}  # type of most weights -> llama.cpp's general.file_type
QUANTIZATION_VERSION = 2
NO_WEIGHTS = (".inv_freq",)  # buffers of old checkpoints; llama.cpp computes them

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Exported:
    """What a tensor of the file is.

    Attributes
    ----------
    name
        In the file.
    source
        What the source calls it; None for a tensor of the template that the source lacks.
    shape, before, after
        Its shape, scheme or dtype in the source, type in the file.
    nbytes
        In the file.
    error
        ||w - w'|| / ||w|| of what was rounded; 0.0 where every value is the source's.
    template_error
        The same, of the values in the file from the template's; None without `check`.
    """

    name: str
    source: str | None
    shape: tuple[int, ...]
    before: str
    after: str
    nbytes: int
    error: float = 0.0
    template_error: float | None = None


def export_gguf(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    template: str | os.PathLike[str],
    *,
    allow_rounding: bool = False,
    check: bool = False,
    overwrite: bool = False,
    io: str = "mmap",
    progress: Progress | None = None,
) -> tuple[Exported, ...]:
    """Write a GGUF file with the weights of a checkpoint, and everything else as in another GGUF file of the model.

    Dense integers keep their codes: int2 to int4 become Q4_0, int5 Q5_0, int6 and int8 Q8_0; with ``-min`` Q4_1 and
    Q5_1; with ``-asym`` Q4_1 where float16 holds scale * zero, else the narrowest type that holds code - zero. Plain
    float32, float16 and bfloat16 stay, but vectors become float32. Every value is the source's, or the export is
    refused with the reason.

    Parameters
    ----------
    source : path
        A checkpoint in any format that pumice reads. Its names are GGUF's (``blk.0.attn_q.weight``) or, for LLaMA,
        those of Hugging Face (``model.layers.0.self_attn.q_proj.weight``), of which the rows of queries and keys are
        brought into llama.cpp's order. Each must have a place in the template.
    target : path
        The file to write.
    template : path
        A GGUF file of the same model, with weights of any type. What the source lacks is copied from it.
    allow_rounding : bool
        Whether scales and minima may be rounded to float16, which is all that ggml stores.
    check : bool
        Whether to compare each weight with the template's. One that is further from it than zeros are is refused:
        another model, or rows in another order.
    overwrite : bool
        Whether a file at the target may be replaced.
    io : {"mmap", "read"}
        How source and template are read.
    progress : callable, optional
        Called with (name, bytes done, bytes in all).

    Returns
    -------
    tuple of Exported
        One for each tensor of the file.

    Raises
    ------
    PumiceError
        A weight without a place in the template, or with values that no type of ggml has; nothing is written.
    FormatError
        Source or template break a rule of their format.
    ValueError
        A template that is no GGUF file; a target that is a folder, or one of the other files.
    FileExistsError
        Without `overwrite`: the target exists.
    """
    target = Path(target)
    if target.is_dir():
        raise ValueError(f"target: expected the path of a file, got the folder {str(target)!r}")
    with open_reader(source, io=io) as weights, open_reader(template, io=io) as model:
        if not isinstance(model, GGUFReader):
            raise ValueError(f"template: expected a GGUF file, got {model.format}")
        if any(same_file(target, file) for file in (*weights.files, *model.files)):
            raise ValueError(f"target: expected another file than source and template, got {str(target)!r}")
        if target.exists() and not overwrite:
            raise FileExistsError(f"target: expected a new file, got {str(target)!r}, which exists")
        export = _Export(weights, model, allow_rounding, check, progress)
        write_gguf(target, export.fields(), export.pieces, model.alignment)
        return tuple(export.reports.values())


class _Export:
    """The pieces of the file. Their bytes are made while it is written, one tensor at a time."""

    def __init__(
        self, weights: Reader, model: GGUFReader, allow_rounding: bool, check: bool, progress: Progress | None
    ) -> None:
        self._weights, self._model, self._progress = weights, model, progress
        self._allow_rounding, self._check = allow_rounding, check
        self.reports: dict[str, Exported] = {}
        places = _places(weights, model)
        self.pieces = [self._piece(name, *places.get(name, (None, None))) for name in model.table]
        self._total, self._done = sum(piece.nbytes for piece in self.pieces), 0

    def fields(self) -> list[Bytes]:
        """The template's keys, but for what they say of its types and of its parts."""
        old = self._model.fields
        kinds: Counter[int] = Counter()
        for piece in self.pieces:
            kinds[piece.type_id] += math.prod(piece.shape) if len(piece.shape) > 1 else 0
        numbers = {"general.quantization_version": QUANTIZATION_VERSION}
        if kinds and (most := kinds.most_common(1)[0][0]) in FILE_TYPES:
            numbers["general.file_type"] = FILE_TYPES[most]
        kept = [key for key in old if not key.startswith("split.")]
        fields = [number_field(key, numbers.pop(key)) if key in numbers else old.raw(key) for key in kept]
        return fields + [number_field(key, value) for key, value in numbers.items()]

    def _piece(self, name: str, theirs: str | None, order: NDArray[np.int64] | None) -> Piece:
        tensor = self._model.table[name]
        if theirs is None:
            nbytes = len(self._model.raw(name))  # refuses a type whose size nobody knows
            self.reports[name] = Exported(name, None, tensor.shape, tensor.type_name, tensor.type_name, nbytes)
            return Piece(name, tensor.shape, tensor.type_id, nbytes, partial(self._copied, name))
        info = self._weights.info(theirs)
        if info.shape != tensor.shape:
            raise PumiceError(f"{theirs}: expected shape {tensor.shape} as in the template, got {info.shape}")
        encoded = self._encoded(theirs, order)
        self.reports[name] = Exported(name, theirs, info.shape, info.dtype, encoded.type.name, encoded.nbytes)
        chunks = partial(self._chunks, name, theirs, order)
        return Piece(name, encoded.shape, encoded.type_id, encoded.nbytes, chunks)

    def _encoded(self, theirs: str, order: NDArray[np.int64] | None) -> Encoded:
        info, array = self._weights.info(theirs), self._weights.array(theirs)
        dtype = info.parts.get("", info.dtype)  # compact arrays of plain numbers have one part, themselves
        if dtype in NUMBERS:
            return Numbers(array.to_dense() if info.compact else array, dtype, order)
        if not info.compact:
            raise PumiceError(f"{theirs}: expected dense integers, {', '.join(NUMBERS)}, got {dtype}")
        try:
            return Blocks(array, order, allow_rounding=self._allow_rounding)
        except PumiceError as error:
            raise PumiceError(f"{theirs}: {error}") from error

    def _copied(self, name: str) -> Iterator[Bytes]:
        raw = self._model.raw(name)
        for start in range(0, len(raw), COPY_AT_ONCE):
            yield raw[start : start + COPY_AT_ONCE]
        self._tell(name, len(raw))

    def _chunks(self, name: str, theirs: str, order: NDArray[np.int64] | None) -> Iterator[Bytes]:
        encoded = self._encoded(theirs, order)
        rounding, distance = _Error(), _Error()
        count, step = encoded.shape[0] if encoded.shape else 1, max(1, CHUNK // max(math.prod(encoded.shape[1:]), 1))
        for start in range(0, count, step):
            stop = min(start + step, count)
            rows = encoded.rows(start, stop)
            yield rows.tobytes()
            if encoded.rounded or self._check:
                exact = encoded.exact(start, stop)
                written = exact
                if encoded.rounded:
                    written = compact_array(rows.reshape(-1).view(np.uint8), encoded.type, exact.shape).to_dense()
                    rounding.add(written, exact)
                if self._check:
                    distance.add(written, self._model.rows(name, start, stop))
            self._tell(name, rows.nbytes)
        if self._check and distance.value > 1:
            got = f"one that is {distance.value:.3g} of their size away from them"
            rule = f"{theirs}: expected weights like {name!r} of the template"
            raise PumiceError(f"{rule}, got {got}: another model, or rows in another order?")
        far = distance.value if self._check else None
        self.reports[name] = replace(self.reports[name], error=rounding.value, template_error=far)

    def _tell(self, name: str, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(name, self._done, self._total)


class _Error:
    """||a - b|| / ||b|| of arrays that come in chunks."""

    def __init__(self) -> None:
        self._noise: list[float] = []
        self._signal: list[float] = []

    def add(self, a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
        self._noise.append(float(np.square(a - b, dtype=np.float64).sum()))
        self._signal.append(float(np.square(b, dtype=np.float64).sum()))

    @property
    def value(self) -> float:
        noise, signal = math.fsum(self._noise), math.fsum(self._signal)
        return math.sqrt(noise / signal) if signal else math.inf if noise else 0.0


def _places(weights: Reader, model: GGUFReader) -> dict[str, tuple[str, NDArray[np.int64] | None]]:
    """Name in the template -> name in the source and order of rows. PumiceError for a weight without a place."""
    places: dict[str, tuple[str, NDArray[np.int64] | None]] = {}
    lost = []
    for theirs in weights.names():
        place: Place | None = Place(theirs)
        if theirs not in model.table:
            shape = weights.info(theirs).shape
            llama = model.fields.get("general.architecture") == "llama"
            place = llama_place(theirs, shape[0] if shape else 1, model.fields) if llama else None
        if place is None or place.name not in model.table:
            lost += [] if theirs.endswith(NO_WEIGHTS) else [theirs]
        elif place.name in places:
            raise PumiceError(
                f"source: expected one weight for {place.name!r}, got {places[place.name][0]!r}, {theirs!r}"
            )
        else:
            places[place.name] = theirs, place.order
    if lost:
        names = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise PumiceError(f"source: expected names of the template, or of Hugging Face's LLaMA for it, got {names}")
    if not places:
        raise PumiceError("source: expected weights of the template, got none")
    return places
