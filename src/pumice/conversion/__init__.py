"""Convert a checkpoint: a plan from headers, chunks that workers encode, shards, one commit (docs/architecture.md)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any

from pumice.checkpoint import Reader, TensorInfo, open_reader, verify
from pumice.checkpoint.compressed_tensors import compressed_tensors_config
from pumice.checkpoint.locations import URL, Location, local, locate
from pumice.checkpoint.publication import refuse_existing
from pumice.checkpoint.writer import MAX_SHARD_SIZE
from pumice.choice import Request
from pumice.conversion.budget import cpus, forecast, workers_within
from pumice.conversion.chunks import Job, Origin, forget
from pumice.conversion.driving import Drive, Progress, Ready, Tally
from pumice.conversion.finished import finished
from pumice.conversion.plan import CHUNK_BYTES, Plan, Step, readable_infos, step_nbytes
from pumice.conversion.shards import Shards
from pumice.conversion.work import Work, is_begun, place_of, restore_sizes
from pumice.errors import PumiceError, ResumeError, ToleranceError
from pumice.model_folder import check_apart, copy_side_file, side_files
from pumice.ops import NONFINITE
from pumice.options import check_choice
from pumice.options import options as products
from pumice.profile import load_profile
from pumice.recipe import Recipe
from pumice.report import Report, TensorReport
from pumice.scheme import AUTO, Scheme
from pumice.statistics import Moments

__all__ = ["CHUNK_BYTES", "Progress", "Tally", "convert", "readable_infos"]

AUTO_ERROR = 0.02  # the largest error of a weight that "auto" chooses by itself


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
    max_error: float | None = None,
    nonfinite: str = "raise",
    dry_run: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    max_shard_size: int = MAX_SHARD_SIZE,
    io: str = "read",
    workers: int | None = None,
    max_memory: int | None = None,
    executor: Executor | None = None,
    task: tuple[int, int] | None = None,
    commit: bool = False,
    work: str | os.PathLike[str] | None = None,
    delete_source: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Convert a checkpoint to compact weights, a row chunk at a time; a weight at a time where methods need all of it.

    Weights of two or more dimensions get the scheme; what no rule finds is copied byte for byte, and what is quantized
    already keeps its codes. The other files of a model folder are copied along. The target appears whole or not at all,
    and its bytes are the same for any number of workers. A conversion that was stopped goes on with `resume`.

    Parameters
    ----------
    source : path
        A weights file, or a folder that holds one or shards and their index; or a URL that fsspec knows, of which each
        byte is read once.
    target : path
        A file that ends in ``.safetensors``, or a folder; or a URL. A folder of a store gets shards first and their
        small index last, before which readers see nothing.
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
    batch, objective
        For ``"auto"``, as in `compress`.
    max_error : float, optional
        The largest error of a weight, ``||w - w'|| / ||w||`` (Frobenius): nothing is written if one exceeds it.
        ``"auto"`` chooses within it, and within 0.02 by default.
    nonfinite : {"raise", "zero"}
        What becomes of NaN and infinity in a weight: the conversion ends with NonFiniteError, or 0 is stored.
    dry_run : bool
        Read headers only, write nothing: the report says what bytes, seconds and memory are to be expected.
    overwrite : bool
        Whether a file, or the weights and files of the same names in a folder, may be replaced.
    resume : bool
        Go on with the conversion to this target that was stopped, if there is one. Where it is complete already, from
        the same source by the same recipe and version, nothing is done, and the report says so (`already_complete`).
    max_shard_size : int
        Bytes of tensors in a file of a folder.
    io : {"read", "mmap"}
        How the source is read. Mapped, its pages count as memory of the process.
    workers : int, optional
        Threads that encode, or how many workers `executor` has; by default one for each CPU.
    max_memory : int, optional
        Bytes that the process may take: with little, fewer threads work. A limit (RLIMIT_AS) counts, too.
    executor : concurrent.futures.Executor, optional
        Who encodes, such as processes or other machines, which must see the same paths.
    task : (int, int), optional
        (i, n): do only the i-th of n shares (from 1) and write no target. Shares may be done in any order, or at once.
    commit : bool
        Put together what tasks have done.
    work : path, optional
        Where a conversion to a URL is kept until it is finished, with room for all of the output; by default the user's
        cache, ``$XDG_CACHE_HOME/pumice``. That of a path is beside it.
    delete_source : bool
        Empty each file of the source once its output is safe, and remove them all at the end: for disks that cannot
        hold both. For safetensors only.
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
    ToleranceError
        Weights exceed `max_error`; what was encoded is kept for a larger one with `resume`.
    BusyError
        Another conversion to this target is at work.
    ResumeError
        An unfinished conversion is there that was not asked for; with `resume`, an unfinished or a finished one of
        another source, recipe or version; with `commit`, one whose tasks are not all done.
    SourceChangedError
        The source changed while it was read.
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
    source, target = locate(source), locate(target)
    single = target.suffix == ".safetensors" and not target.is_dir()
    asked = Recipe.of(
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
    request = Request(batch, objective, AUTO_ERROR if max_error is None else max_error)
    known = str(stats) if isinstance(stats, str | os.PathLike) else stats or {}
    check_choice("nonfinite", nonfinite, NONFINITE)
    job = Job(request, load_profile(), known, seed, asked.options, nonfinite)
    _check_options(max_shard_size, workers, task)
    place = place_of(target, single, None if work is None else local(work, "work"))
    restore_sizes(place)
    with open_reader(source, io=io) as reader:
        check_apart(reader, source, target)
        if delete_source and (reader.format != "safetensors" or isinstance(source, URL)):
            rule = "delete_source: expected a safetensors source on this machine"
            raise PumiceError(f"{rule}, got {reader.format} at {str(source)!r}")
        limit = None if single else max_shard_size
        plan = Plan.of(reader, Origin.of(source, reader, io), asked, job, {"max_shard_size": limit})
        count = workers or cpus()
        if executor is None:
            count = workers_within(plan, count, max_memory)
        if dry_run:
            return forecast(plan, str(source), str(target), count)
        copied, skipped = side_files(reader, source, target)
        going_on = resume or commit or task is not None
        mine = plan.steps if task is None else plan.share(*task)
        if going_on and not is_begun(place):
            tally = Tally(step_nbytes(mine), progress)
            infos = finished(plan, reader, target, mine, overwrite, workers or cpus(), tally)
            if infos is not None:
                reports = tuple(_report(step, infos) for step in mine)
                _check_errors(reports, max_error)
                if delete_source:
                    _check_whole(target)
                    _delete(reader)
                seconds = time.perf_counter() - start
                return Report(str(source), str(target), reports, seconds, (), skipped, already_complete=True)
        if not going_on:
            refuse_existing(target, single, overwrite)
        with Work(place, target, plan.identity, resume=going_on, restart=overwrite, task=task) as begun:
            crew = _Crew(plan, begun, job, executor, count, progress)
            try:
                if task is not None:
                    crew.encode(mine)
                    reports = tuple(_report(step) for step in mine)
                    return Report(str(source), str(begun.path), reports, time.perf_counter() - start)
                shards = Shards(plan, begun, reader, limit, delete_source)
                published = going_on and shards.are_published(target)  # killed just before it would have ended
                if not published:
                    refuse_existing(target, single, overwrite, begun.published)
                    crew.fill(shards, commit)
                reports = tuple(_report(step, shards.infos, shards.output_errors) for step in mine)
                if not published:
                    _check_errors(reports, max_error)
                    config = partial(_config, shards.infos, asked.scheme)
                    attached = {file: partial(copy_side_file, source, file, config) for file in copied}
                    shards.publish(target, overwrite, attached)
            except (PumiceError, ValueError, TypeError) as error:
                if not (going_on or begun.emptied or isinstance(error, ToleranceError)):
                    begun.discard()  # it would end so again
                raise
            if delete_source:
                _delete(reader)
            begun.discard()
    return Report(str(source), str(target), reports, time.perf_counter() - start, copied, skipped)


class _Crew:
    """Who encodes, and for whom."""

    def __init__(
        self,
        plan: Plan,
        work: Work,
        job: Job,
        executor: Executor | None,
        count: int,
        progress: Progress | None,
    ) -> None:
        self._plan, self._work, self._job = plan, work, job
        self._executor, self._count, self._progress = executor, count, progress

    def encode(self, steps: Sequence[Step], ready: Ready = lambda *_: None, done: int = 0) -> None:
        """Encode the chunks of some steps; `done` bytes were encoded before."""
        tally = Tally(done + step_nbytes(steps), self._progress, done)
        pool = self._executor or ThreadPoolExecutor(self._count, "pumice-encode")
        try:
            with products(threads=1):  # of each worker
                Drive(self._plan, self._work, pool, 2 * self._count, ready, tally, self._job).run(steps)
        finally:
            if self._executor is None:
                pool.shutdown(cancel_futures=True)
            forget()

    def fill(self, shards: Shards, commit: bool) -> None:
        """Bring all tensors into shards."""
        missing = shards.missing
        if commit and (left := [step.name for step in missing if not self._work.covers(step, self._plan)]):
            raise ResumeError(
                f"commit: expected the chunks of all tensors, got none or some of {len(left)}: {left[0]!r}"
            )
        try:
            self.encode(missing, shards.add, step_nbytes(self._plan.steps) - step_nbytes(missing))
            shards.close()
        finally:
            shards.abort()


def _check_whole(target: Location) -> None:
    """Raise PumiceError unless the target is as it was written."""
    if not (found := verify(target, io="read")).ok:
        rule = "target: expected one that verifies before its source goes"
        raise PumiceError(f"{rule}, got {'; '.join(map(str, found.errors[:3]))}")


def _delete(reader: Reader) -> None:
    """Remove the source."""
    for file in reader.files:
        file.unlink()


def _report(
    step: Step, infos: Mapping[str, TensorInfo] | None = None, output_errors: Mapping[str, float] | None = None
) -> TensorReport:
    """What became of a tensor, or of those of a task what there is to say before."""
    choice, info = step.choice, step.info if infos is None else infos[step.name]
    chosen = choice.scheme == AUTO and not choice.whole
    error = None if step.copied else info.notes.get("error")
    return TensorReport(
        step.name, info.shape, info.dtype, step.info.nbytes, None if infos is None else info.nbytes,
        error if isinstance(error, float) else None, f"{choice.why}, auto" if chosen else choice.why,
        (output_errors or {}).get(step.name),
    )  # fmt: skip


def _check_options(max_shard_size: int, workers: int | None, task: tuple[int, int] | None) -> None:
    for name, number in (("max_shard_size", max_shard_size), ("workers", workers)):
        if number is not None and number <= 0:
            raise ValueError(f"{name}: expected a positive number, got {number}")
    if task is not None and not 1 <= task[0] <= task[1]:
        raise ValueError(f"task: expected (i, n) with 1 <= i <= n, got {task}")


def _check_errors(reports: Sequence[TensorReport], limit: float | None) -> None:
    """Raise ToleranceError for weights whose errors exceed the limit."""
    broken = [t for t in reports if limit is not None and t.error is not None and t.error > limit]
    if broken:
        worst = sorted(broken, key=lambda t: -(t.error or 0))
        named = ", ".join(f"{t.name} {t.error:.4g} ({t.scheme})" for t in worst)
        raise ToleranceError(
            f"max_error: expected at most {limit:g} of each weight, got more of {len(broken)}: {named}"
        )


def _config(written: Mapping[str, TensorInfo], scheme: Scheme | None, config: dict[str, Any]) -> dict[str, Any]:
    """config.json with what loaders need to know."""
    quantization = compressed_tensors_config(written)
    if quantization is not None:
        return config | {"quantization_config": quantization}
    return config | {"pumice": {"scheme": str(scheme or "recipe")}}
