"""What is to be done: a list of tensors and their chunks, from the headers alone, the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pumice.checkpoint import TensorInfo
from pumice.checkpoint.base import Reader
from pumice.checkpoint.conventions.manifest import tensor_name
from pumice.checkpoint.dtypes import DTYPES
from pumice.checkpoint.locations import locate
from pumice.choice import Request
from pumice.conversion.chunks import Job, Origin, chunk_rows
from pumice.errors import PumiceError
from pumice.ops import compress
from pumice.recipe import Recipe, Treatment
from pumice.scheme import AUTO, Scheme
from pumice.statistics import Moments

CONVERSION = "conversion"  # the text entry of the target that says how it was made
CHUNK_BYTES = 32 << 20  # of float32 weights in a chunk: what a worker loses when it is killed


@dataclass(frozen=True)
class Step:
    """One tensor, and what becomes of it. `index` numbers the steps of a plan."""

    index: int
    name: str
    info: TensorInfo
    choice: Treatment
    files: tuple[int, ...]
    """Which files of the source hold it."""

    @property
    def copied(self) -> bool:
        """Whether it stays as it is."""
        choice, info = self.choice, self.info
        same = info.compact and info.dtype == str(choice.scheme) and info.in_axis == choice.in_axis
        return choice.scheme is None or (same and not choice.whole)

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of the matrix as it will be stored."""
        return self.info.shape if self.choice.in_axis == 1 else self.info.shape[::-1]

    def chunks(self, scheme: Scheme, nbytes: int) -> list[tuple[int, int]]:
        """The row ranges that are encoded one by one."""
        rows = self.stored[0]
        step = max(rows, 1) if self.choice.whole else chunk_rows(scheme, self.stored, nbytes)
        return [(start, min(start + step, rows)) for start in range(0, max(rows, 1), step)]

    def key(self, start: int, wide: bool = False) -> str:
        """The name of a chunk, and of its file."""
        return f"{self.index:06d}-{start}{'-wide' * wide}"


@dataclass(frozen=True)
class Plan:
    """All tensors in the order in which they are read, and what identifies the conversion."""

    origin: Origin
    steps: tuple[Step, ...]
    identity: Mapping[str, Any]

    @classmethod
    def of(cls, reader: Reader, origin: Origin, recipe: Recipe, job: Job, layout: Mapping[str, Any]) -> Plan:
        """Plan a conversion; `layout` is what else decides on the bytes of the target."""
        from pumice import __version__

        infos = readable_infos(reader)
        choices = recipe.plan(infos)
        places = {file: i for i, file in enumerate(reader.files)}
        held = {name: tuple(sorted(places[file] for file in reader.files_of(name))) for name in infos}
        names = sorted(infos, key=lambda name: (held[name][-1:], name))  # a file of the source after the other
        steps = tuple(Step(i, name, infos[name], choices[name], held[name]) for i, name in enumerate(names))
        _check_names(steps)
        listing = json.dumps([[n, infos[n].dtype, infos[n].shape, infos[n].nbytes] for n in sorted(infos)])
        auto = any(choice.scheme == AUTO for choice in choices.values())
        asked = recipe_table(recipe) | {"seed": job.seed} | (_request_table(job.request) if auto else {})
        if job.nonfinite != "raise":
            asked["nonfinite"] = job.nonfinite
        identity = {
            "version": __version__,
            "source": {file: list(state) for file, *state in origin.files},
            "tensors": hashlib.sha256(listing.encode()).hexdigest(),
            "recipe": asked,
            "stats": digest_of(job.stats),
            "layout": {**layout, "chunk_bytes": CHUNK_BYTES},
        }
        return cls(origin, steps, json.loads(json.dumps(identity, default=str)))

    def share(self, i: int, n: int) -> tuple[Step, ...]:
        """The steps of task i of n (from 1): the largest first, each to the task that has the least."""
        loads = [0] * n
        mine: list[Step] = []
        for step in sorted(self.steps, key=lambda s: (-s.info.nbytes, s.index)):
            task = loads.index(min(loads))
            loads[task] += step.info.nbytes
            if task == i - 1:
                mine.append(step)
        return tuple(sorted(mine, key=lambda s: s.index))

    @property
    def provenance(self) -> dict[str, Any]:
        """What the target says of how it was made, as JSON; no times, so that two runs give the same bytes."""
        table = {key: self.identity[key] for key in ("version", "tensors", "recipe", "stats")}
        table["source_bytes"] = sum(size for _, size, _ in self.origin.files)
        return table | {"max_shard_size": self.identity["layout"]["max_shard_size"]}


def recipe_table(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON."""
    table = asdict(recipe)
    table["scheme"] = None if recipe.scheme is None else str(recipe.scheme)
    rules = [[r.match, None if r.scheme is None else str(r.scheme), r.in_axis, r.prune, r.method] for r in recipe.rules]
    return table | {"rules": rules}


def _request_table(request: Request) -> dict[str, Any]:
    return {"batch": request.batch, "objective": request.objective, "max_error": request.max_error}


def digest_of(stats: Mapping[str, Moments] | str) -> str | None:
    """SHA-256 of the statistics; None without any."""
    if isinstance(stats, str):
        with locate(stats).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for name in sorted(stats):
        whole.update(name.encode() + stats[name].pack().tobytes())
    return whole.hexdigest() if stats else None


def readable_infos(reader: Reader) -> dict[str, TensorInfo]:
    """All arrays. Raises the reader's FormatError for one of a type that it can only name, as GGUF has them."""
    infos = {name: reader.info(name) for name in reader.names()}
    for name, info in infos.items():
        if not info.compact and info.dtype not in DTYPES:
            reader.array(name)
    return infos


def step_nbytes(steps: Iterable[Step]) -> int:
    """Bytes of the source."""
    return sum(step.info.nbytes for step in steps)


def _check_names(steps: Sequence[Step]) -> None:
    """Raise PumiceError where a part of one tensor would be called as another tensor is."""
    owner: dict[str, str] = {}
    for step in steps:
        parts: Iterable[str] = step.info.parts or ("",)
        if not step.copied and step.choice.scheme != AUTO:
            parts = _parts(step)
        for name in {step.name, *(tensor_name(step.name, part) for part in parts)}:
            if owner.setdefault(name, step.name) != step.name:
                rule = "name: expected names that no other tensor or part has"
                raise PumiceError(f"{rule}, got {name!r}, which both {owner[name]!r} and {step.name!r} need")


def _parts(step: Step) -> tuple[str, ...]:
    """What a row of the tensor is stored as."""
    return tuple(compress(np.zeros((1, *step.stored[1:]), np.float32), step.choice.scheme or "float32").parts())
