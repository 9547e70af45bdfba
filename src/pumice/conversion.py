"""Convert a checkpoint: one loop over row chunks, memory near the largest chunk."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pumice.checkpoint import SafetensorsWriter, TensorInfo, Writer, load, open_reader
from pumice.checkpoint.base import Reader, info_of
from pumice.checkpoint.compressed_tensors import compressed_tensors_config
from pumice.checkpoint.dtypes import DTYPES
from pumice.checkpoint.writer import MAX_SHARD_SIZE
from pumice.choice import Request, choose, panel_rows
from pumice.errors import NonFiniteError, PumiceError
from pumice.layouts import LAYOUTS, CompactArray
from pumice.model_folder import check_apart, copy_side_file, side_files
from pumice.ops import compress
from pumice.profile import Profile, load_profile
from pumice.pruning import prune_and_compress
from pumice.recipe import Recipe, Treatment, options_for
from pumice.report import Loss, Report, TensorReport
from pumice.scheme import AUTO, Scheme
from pumice.statistics import CalibrationStats, Moments, moments_of
from pumice.values.base import F32

CHUNK_BYTES = 32 << 20  # of float32 weights that are encoded at a time
Progress = Callable[[str, int, int], None]
"""Called with (name, bytes done, bytes in all) as a conversion goes on."""


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    scheme: str | Scheme | None = None,
    *,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    tensors: Mapping[str, str] | None = None,
    ignore: tuple[str, ...] | list[str] = (),
    keep_embeddings: bool = False,
    group_size_fallback: str | None = None,
    allow_requantize: bool = False,
    prune: str | None = None,
    method: str | None = None,
    stats: Mapping[str, Moments] | str | os.PathLike[str] | None = None,
    seed: int = 0,
    batch: int = 1,
    objective: str = "balanced",
    max_error: float = 0.02,
    dry_run: bool = False,
    overwrite: bool = False,
    max_shard_size: int = MAX_SHARD_SIZE,
    io: str = "mmap",
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Convert a checkpoint to compact weights, a row chunk at a time; a weight at a time where methods need all of it.

    Weights of two or more dimensions get the scheme; what no rule finds is copied byte for byte, and what is quantized
    already keeps its codes. The other files of a model folder are copied along. The target appears whole or not at all.

    Parameters
    ----------
    source : path
        A weights file, or a folder that holds one or shards and their index.
    target : path
        A file that ends in ``.safetensors``, or a folder.
    scheme : str, optional
        Such as ``"int4-g128"``. Embeddings and output heads become per-row int8 under integer schemes. ``"auto"``
        chooses for each weight, which is read once to count and once for each error that is measured.
    recipe : Recipe or path, optional
        Rules in TOML (docs/formats.md); the options here go before them.
    tensors : mapping of regular expression to scheme, optional
    ignore : sequence of regular expressions, optional
    keep_embeddings, group_size_fallback, allow_requantize
        See `Recipe`.
    prune : str, optional
        What is pruned before, ``METHOD[:SPARSITY][:PATTERN]``: ``"wanda:0.5"``, ``"sparsegpt:2:4"``,
        ``"magnitude:0.5:bsr-16x4"``. The pattern is that of the scheme unless it says. SparseGPT with integers prunes
        and quantizes in one sweep.
    method : {"nearest", "absmax", "mse", "percentile", "gptq"}, optional
        How integers are found, as in `compress`. Embeddings and output heads are neither pruned nor given a method
        unless a rule of a recipe says so.
    stats : CalibrationStats or path, optional
        What `calibrate` found, or the file of `pumice calibrate`. The report then says what the output of each layer
        lost.
    seed : int
        Of ``prune="random:..."``.
    batch, objective, max_error
        For ``"auto"``, as in `compress`.
    dry_run : bool
        Read headers only, write nothing.
    overwrite : bool
        Whether a file, or the weights and files of the same names in a folder, may be replaced.
    max_shard_size : int
        Bytes of tensors in a file of a folder.
    io : {"mmap", "read"}
        How the source is read.
    progress : callable, optional
        Called with (name, bytes done, bytes in all).
    **options
        Of the methods, as in `compress` and `pumice.prune`: `act_order`, `damping`.

    Returns
    -------
    Report

    Raises
    ------
    FormatError, NonFiniteError
        The source breaks a rule of its format, or holds NaN or infinity; nothing is written.
    RecipeError, SchemeError
        Rules that cannot be followed.
    ValueError
        Source and target are the same; stats of another shape, or none where a method needs them.
    FileExistsError
        Without `overwrite`: the target is a file, or a folder that is not empty.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np, pumice as pm
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = pm.save(folder / "a.safetensors", {"fc.weight": np.eye(64, dtype="float32")})
    >>> report = pm.convert(folder / "a.safetensors", folder / "b.safetensors", "int8")
    >>> pm.load(folder / "b.safetensors")["fc.weight"]
    <DenseArray int8 (64, 64) 4368 bytes, 8.53 bits per weight>
    """
    start = time.perf_counter()
    source, target = Path(source), Path(target)
    plan = Recipe.of(
        scheme,
        recipe,
        tensors=tensors,
        ignore=ignore,
        keep_embeddings=keep_embeddings,
        group_size_fallback=group_size_fallback,
        allow_requantize=allow_requantize,
        prune=prune,
        method=method,
        options=options,
    )
    known = CalibrationStats.unpack(load(stats)) if isinstance(stats, str | os.PathLike) else stats
    job = _Job(Request(batch, objective, max_error), load_profile(), known or {}, seed, plan.options)
    with open_reader(source, io=io) as reader:
        check_apart(reader, source, target)
        infos = readable_infos(reader)
        choices = plan.plan(infos)
        if dry_run:
            return Report(str(source), str(target), tuple(_forecast(n, i, choices[n]) for n, i in infos.items()))
        copied, skipped = side_files(reader, source, target)
        tally = Tally(sum(info.nbytes for info in infos.values()), progress)
        reports: list[TensorReport] = []
        written: dict[str, TensorInfo] = {}
        with SafetensorsWriter(target, max_shard_size=max_shard_size, overwrite=overwrite) as writer:
            for name, info in infos.items():
                choice = _settled(reader, name, info, choices[name], job)
                report, written[name] = _convert_one(reader, writer, name, info, choice, job, tally)
                reports.append(report)
            for file in copied:
                writer.attach(file, partial(copy_side_file, source, file, partial(_config, written, plan.scheme)))
            writer.commit()
    seconds = time.perf_counter() - start
    return Report(str(source), str(target), tuple(reports), seconds, copied, skipped)


def readable_infos(reader: Reader) -> dict[str, TensorInfo]:
    """All arrays. Raises the reader's FormatError for one of a type that it can only name, as GGUF has them."""
    infos = {name: reader.info(name) for name in reader.names()}
    for name, info in infos.items():
        if not info.compact and info.dtype not in DTYPES:
            reader.array(name)
    return infos


@dataclass(frozen=True)
class _Job:
    """What holds for all weights of a conversion."""

    request: Request
    profile: Profile
    stats: Mapping[str, Moments]
    seed: int
    options: Mapping[str, Any]

    def compact(self, name: str, w: Any, choice: Treatment, scale_dtype: Any) -> CompactArray:
        """Rows of a weight, or all of it where the treatment asks for that. Errors name the weight."""
        assert choice.scheme is not None
        if not choice.whole:
            return compress(w, choice.scheme, scale_dtype=scale_dtype)  # type: ignore[no-any-return]
        own = dict(options_for(choice, self.options))
        stats = {name: self.stats[name]} if name in self.stats else None
        if choice.scheme == AUTO:
            own |= {"batch": self.request.batch, "objective": self.request.objective}
            own |= {"max_error": self.request.max_error}
        if choice.prune is None:
            found = compress({name: w}, choice.scheme, method=choice.method, stats=stats, **own)
        else:
            found = prune_and_compress(
                {name: w}, choice.scheme, choice.prune, method=choice.method, stats=stats, seed=self.seed, **own
            )
        return found[name]  # type: ignore[no-any-return]


@dataclass
class Tally:
    """Bytes of the source that are done."""

    total: int
    progress: Progress | None
    done: int = 0

    def add(self, name: str, nbytes: int) -> None:
        self.done += nbytes
        if self.progress is not None:
            self.progress(name, self.done, self.total)


def _settled(reader: Reader, name: str, info: TensorInfo, choice: Treatment, job: _Job) -> Treatment:
    """The choice with a scheme in the place of `AUTO`, made in passes over row panels; what is pruned waits."""
    if choice.scheme != AUTO or choice.whole:
        return choice
    stored = info.shape if choice.in_axis == 1 else info.shape[::-1]

    def panels() -> Iterator[F32]:
        for start, _, chunk in _chunks(reader, name, info, choice.in_axis, panel_rows(math.prod(stored[1:]))):
            with np.errstate(over="ignore"):  # the encoder reports it
                matrix = np.ascontiguousarray(_finite(chunk, start, choice.in_axis), np.float32)
            yield matrix.reshape(len(matrix), math.prod(stored[1:]))

    try:
        scheme = choose(stored, panels, job.request, job.profile).scheme
    except NonFiniteError as error:
        raise NonFiniteError(f"{name}: {error}") from error
    return replace(choice, scheme=Scheme.parse(scheme), why=f"{choice.why}, auto")


class _WiderScales(Exception):
    """A chunk needs float32 scales, and those before it were written as float16."""


def _convert_one(
    reader: Reader, writer: Writer, name: str, info: TensorInfo, choice: Treatment, job: _Job, tally: Tally
) -> tuple[TensorReport, TensorInfo]:
    as_it_is = not choice.whole
    if choice.scheme is None or (
        as_it_is and info.compact and info.dtype == str(choice.scheme) and info.in_axis == choice.in_axis
    ):
        return _copy(reader, writer, name, info, choice, tally)
    done = tally.done
    for scale_dtype in (None, np.float32):
        tally.done = done
        try:
            return _encode(reader, writer, name, info, choice, job, tally, scale_dtype)
        except _WiderScales:
            writer.drop()
        except NonFiniteError as error:
            raise NonFiniteError(f"{name}: {error}") from error
    raise AssertionError("float32 scales never need wider ones")


def _copy(
    reader: Reader, writer: Writer, name: str, info: TensorInfo, choice: Treatment, tally: Tally
) -> tuple[TensorReport, TensorInfo]:
    before = info.nbytes
    if info.compact:
        array = reader.array(name)
        info = info_of(array, info.notes)
        writer.begin(name, info)
        for part, block in array.parts().items():
            writer.write(part, block)
    elif reader.is_tensor(name):
        writer.begin(name, info)
        writer.write("", reader.raw(name))
    else:
        info = replace(info, nbytes=4 * math.prod(info.shape))
        writer.begin(name, info)
        for _, _, rows in _chunks(
            reader, name, info, 1, max(1, CHUNK_BYTES // (4 * max(math.prod(info.shape[1:]), 1)))
        ):
            writer.write("", rows)
    tally.add(name, before)
    return TensorReport(name, info.shape, info.dtype, before, info.nbytes, why=choice.why), info


def _encode(
    reader: Reader, writer: Writer, name: str, info: TensorInfo, choice: Treatment, job: _Job, tally: Tally,
    scale_dtype: Any,
) -> tuple[TensorReport, TensorInfo]:  # fmt: skip
    assert choice.scheme is not None
    stored = info.shape if choice.in_axis == 1 else info.shape[::-1]
    written: dict[str, int] = {}
    loss = Loss(moments_of(name, name, job.stats, math.prod(stored[1:])) if name in job.stats else None)
    dtypes: dict[str, str] = {}
    nbytes, scheme = 0, str(choice.scheme)
    step = max(stored[0], 1) if choice.whole else _chunk_rows(choice.scheme, stored)
    for start, stop, chunk in _chunks(reader, name, info, choice.in_axis, step):
        array = job.compact(name, _finite(chunk, start, choice.in_axis), choice, scale_dtype)
        found = {part: array.part_dtype(part) for part in array.parts()}
        if not dtypes:
            dtypes, scheme = found, array.scheme
            writer.begin(name, TensorInfo(info.shape, scheme, parts=dtypes, in_axis=choice.in_axis))
        elif found != dtypes:
            # Every chunk of one array has the same dtypes; float32 holds what float16 does.
            raise _WiderScales if scale_dtype is None else AssertionError(found)
        for part, block in array.blocks(written, stored).items():
            writer.write(part, block)
            written[part] = written.get(part, 0) + len(block)
            nbytes += block.nbytes
        loss.add(chunk, array)
        tally.add(name, info.nbytes * (stop - start) // max(stored[0], 1))
    writer.note(source=info.dtype, error=loss.error, **_notes(choice))
    report = TensorReport(name, info.shape, scheme, info.nbytes, nbytes, loss.error, choice.why, loss.output_error)
    return report, TensorInfo(info.shape, scheme, nbytes, dtypes, choice.in_axis)


def _notes(choice: Treatment) -> dict[str, str]:
    """For the manifest: what was done beside rounding to nearest."""
    notes = {} if choice.prune is None else {"prune": str(choice.prune)}
    return notes if choice.method is None else notes | {"method": choice.method}


def _chunk_rows(scheme: Scheme, stored: tuple[int, ...]) -> int:
    """Rows that are encoded at a time."""
    unit = LAYOUTS[scheme.layout].chunk_rows(scheme)
    return max(1, CHUNK_BYTES // (4 * max(math.prod(stored[1:]), 1)) // unit) * unit


def _chunks(reader: Reader, name: str, info: TensorInfo, in_axis: int, step: int) -> Iterator[tuple[int, int, Any]]:
    """(start, stop, rows) of the matrix as it will be stored, `step` rows at a time."""
    whole = None
    shape = info.shape
    if in_axis == 0:
        if len(shape) != 2:
            raise PumiceError(f"{name}: expected two dimensions for in_axis=0, got shape {shape}")
        whole, shape = reader.rows(name, 0, shape[0]), shape[::-1]
    for start in range(0, max(shape[0], 1), step):
        stop = min(start + step, shape[0])
        yield start, stop, reader.rows(name, start, stop) if whole is None else whole[:, start:stop].T


def _finite(chunk: Any, start: int, in_axis: int) -> Any:
    """The chunk, or NonFiniteError with the index in the whole tensor."""
    bad = np.flatnonzero(~np.isfinite(chunk))
    if bad.size:
        index = [int(i) for i in np.unravel_index(bad[0], chunk.shape)]
        index[0] += start
        value = chunk.reshape(-1)[bad[0]]
        raise NonFiniteError(f"expected finite values, got {value} at index {tuple(index if in_axis else index[::-1])}")
    return chunk


def _config(written: Mapping[str, TensorInfo], scheme: Scheme | None, config: dict[str, Any]) -> dict[str, Any]:
    """config.json with what loaders need to know."""
    quantization = compressed_tensors_config(written)
    if quantization is not None:
        return config | {"quantization_config": quantization}
    return config | {"pumice": {"scheme": str(scheme or "recipe")}}


def _forecast(name: str, info: TensorInfo, choice: Treatment) -> TensorReport:
    if choice.scheme is None:
        return TensorReport(name, info.shape, info.dtype, info.nbytes, info.nbytes, why=choice.why)
    stored = info.shape if choice.in_axis == 1 else info.shape[::-1]
    after = None if choice.scheme == AUTO else LAYOUTS[choice.scheme.layout].expected_nbytes(choice.scheme, stored)
    return TensorReport(name, info.shape, str(choice.scheme), info.nbytes, after, why=choice.why)
