"""GGUF: a model's weights in a file of llama.cpp, whose keys, tokenizer and order are those of a template."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint import GGUFReader, open_reader
from pumice.checkpoint.base import Reader, same_file
from pumice.checkpoint.gguf.encoding import NUMBERS, Blocks, Encoded, Numbers
from pumice.checkpoint.gguf.names import Place, llama_place
from pumice.checkpoint.gguf.reader import compact_array
from pumice.checkpoint.gguf.writer import Bytes, Piece, number_field, write_gguf
from pumice.checkpoint.publication import refuse_existing
from pumice.errors import PumiceError
from pumice.exporting.base import Job, register
from pumice.report import TensorReport

CHUNK = 1 << 22  # weights that are encoded at a time
COPY_AT_ONCE = 4 << 20
FILE_TYPES = {0: 0, 1: 1, 2: 2, 3: 3, 8: 7, 6: 8, 7: 9, 30: 32}  # type of most weights -> llama.cpp's general.file_type
QUANTIZATION_VERSION = 2
NO_WEIGHTS = (".inv_freq",)  # buffers of old checkpoints; llama.cpp computes them


@register("gguf")
def write(job: Job) -> list[TensorReport]:
    """Write the template with the source's weights in their places."""
    if job.template is None:
        raise ValueError("template: expected a GGUF file of the same model, got None")
    if job.dtype != "float32":
        raise ValueError(f"dtype: expected 'float32' for gguf, which decodes nothing, got {job.dtype!r}")
    if job.target.suffix != ".gguf" or job.target.is_dir():
        raise ValueError(f"target: expected a file that ends in .gguf, got {str(job.target)!r}")
    with open_reader(job.template, io=job.io) as model:
        if not isinstance(model, GGUFReader):
            raise ValueError(f"template: expected a GGUF file, got {model.format}")
        if any(same_file(job.target, file) for file in model.files):
            raise ValueError(f"target: expected another file than the template, got {str(job.target)!r}")
        refuse_existing(job.target, True, job.overwrite)
        export = _Export(job, model)
        write_gguf(job.target, export.fields(), export.pieces, model.alignment)
        return list(export.reports.values())


class _Export:
    """The pieces of the file. Their bytes are made while it is written, one tensor at a time."""

    def __init__(self, job: Job, model: GGUFReader) -> None:
        self._job, self._weights, self._model = job, job.reader, model
        self.reports: dict[str, TensorReport] = {}
        places = _places(self._weights, model)
        self.pieces = [self._piece(name, *places.get(name, (None, None))) for name in model.table]

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
            self.reports[name] = TensorReport(
                name, tensor.shape, tensor.type_name, nbytes, nbytes, why="the template's"
            )
            return Piece(name, tensor.shape, tensor.type_id, nbytes, partial(self._copied, name))
        info = self._weights.info(theirs)
        if info.shape != tensor.shape:
            raise PumiceError(f"{theirs}: expected shape {tensor.shape} as in the template, got {info.shape}")
        encoded = self._encoded(theirs, order)
        why = "" if theirs == name else f"{theirs} of the source"
        self.reports[name] = TensorReport(name, info.shape, encoded.type.name, info.nbytes, encoded.nbytes, why=why)
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
            return Blocks(array, order, allow_rounding=self._job.allow_rounding)
        except PumiceError as error:
            raise PumiceError(f"{theirs}: {error}") from error

    def _copied(self, name: str) -> Iterator[Bytes]:
        raw = self._model.raw(name)
        for start in range(0, len(raw), COPY_AT_ONCE):
            yield raw[start : start + COPY_AT_ONCE]

    def _chunks(self, name: str, theirs: str, order: NDArray[np.int64] | None) -> Iterator[Bytes]:
        encoded = self._encoded(theirs, order)
        rounding, distance = _Error(), _Error()
        count, step = encoded.shape[0] if encoded.shape else 1, max(1, CHUNK // max(math.prod(encoded.shape[1:]), 1))
        for start in range(0, count, step):
            stop = min(start + step, count)
            rows = encoded.rows(start, stop)
            yield rows.tobytes()
            if encoded.rounded or self._job.check:
                exact = encoded.exact(start, stop)
                written = exact
                if encoded.rounded:
                    written = compact_array(rows.reshape(-1).view(np.uint8), encoded.type, exact.shape).to_dense()
                    rounding.add(written, exact)
                if self._job.check:
                    distance.add(written, self._model.rows(name, start, stop))
        self._job.tally.add(theirs, self._weights.info(theirs).nbytes)
        report = self.reports[name]
        if encoded.rounded:
            report = replace(report, error=rounding.value)
        if self._job.check:
            if distance.value > 1:
                rule = f"{theirs}: expected weights like the template's {name!r}"
                got = f"some that are {distance.value:.3g} of their size away"
                raise PumiceError(f"{rule}, got {got}: another model, or rows in another order?")
            far = f"{distance.value:.3g} from the template's"
            report = replace(report, why=f"{report.why}, {far}" if report.why else far)
        self.reports[name] = report


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
