"""From chunks to files: shards are put together in the order of the plan, and published together at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from pumice.checkpoint import SafetensorsWriter, TensorInfo, open_reader, verify
from pumice.checkpoint.base import Reader, info_of
from pumice.checkpoint.fingerprint import FINGERPRINT, fingerprint_of, made_from
from pumice.checkpoint.locations import URL, Location
from pumice.checkpoint.publication import (
    INDEX,
    SINGLE,
    Publication,
    Uploads,
    refuse_existing,
    weights_in,
    write_all,
)
from pumice.checkpoint.safetensors import SafetensorsContainer
from pumice.checkpoint.writer import shard_index
from pumice.conversion.chunk_files import ChunkFile, Done
from pumice.conversion.chunks import PANEL_BYTES, check_files
from pumice.conversion.plan import CONVERSION, Plan, Step
from pumice.conversion.work import Work
from pumice.errors import PumiceError
from pumice.recipe import Treatment
from pumice.report import Loss
from pumice.scheme import Scheme

Attach = Mapping[str, Callable[[IO[bytes]], object]]


class Shards:
    """Finished shards in the folder of the work, and the one that is filled.

    Parameters
    ----------
    limit
        Bytes of tensors in a shard; None for one file.
    empty_sources
        Whether a file of the source gives its bytes back to the disk once all that it holds is in finished shards.
    """

    def __init__(self, plan: Plan, work: Work, reader: Reader, limit: int | None, empty_sources: bool) -> None:
        self._plan, self._work, self._reader = plan, work, reader
        self._limit, self._empty = limit, empty_sources
        self._writer: SafetensorsWriter | None = None
        self._nbytes = 0
        self._spent: list[Path] = []  # chunks that are in the shard which is filled
        self.paths: list[Path] = []
        self.infos: dict[str, TensorInfo] = {}
        self.output_errors: dict[str, float] = {}  # of layers
        self._first = 0
        for line in work.shards:
            path = self._path(len(self.paths))
            if line["shard"] != len(self.paths) or not path.is_file() or path.stat().st_size != line["nbytes"]:
                break
            self._count(path)
            self._first = line["stop"]
            self.output_errors |= line["output_errors"]
        self._stop = self._first

    @property
    def missing(self) -> Sequence[Step]:
        """The steps that are in no finished shard."""
        return self._plan.steps[self._first :]

    def are_published(self, target: Location) -> bool:
        """Whether the target consists of them already. Of a store that is not known, only what was uploaded."""
        if isinstance(target, URL):
            return False
        folder, single = (target.parent, True) if self._limit is None else (target, False)
        names = {target.name} if single else weights_in(folder)
        there = {(folder / name).stat().st_ino for name in names if (folder / name).is_file()}
        return not self.missing and bool(self.paths) and all(path.stat().st_ino in there for path in self.paths)

    def add(self, step: Step, chunks: list[Done]) -> None:
        """The next tensor of the plan."""
        if step.copied:
            self._copy(step)
        else:
            self._join(step, chunks)
        self._stop = step.index + 1

    def close(self) -> None:
        """Bring the shard that is filled to the disk; what it was made of goes."""
        if self._writer is None and self.paths:
            return
        writer = self._writer or self._new()
        writer.commit()
        path = self._path(len(self.paths))
        self._count(path)
        line = {"shard": len(self.paths) - 1, "stop": self._stop, "nbytes": path.stat().st_size}
        self._work.note("shard", line | {"output_errors": self.output_errors})
        for chunk in self._spent:
            chunk.unlink(missing_ok=True)
        self._writer, self._nbytes, self._spent = None, 0, []
        if self._empty:
            self._empty_sources(path)

    def abort(self) -> None:
        """Forget the shard that is filled; its chunks stay."""
        if self._writer is not None:
            self._writer.abort()

    def publish(self, target: Location, overwrite: bool, attach: Attach) -> None:
        """Give the shards their names, all at once."""
        single = self._limit is None
        publication = self._publication(target.parent if single else target)
        try:
            beside = [publication.stage(name, fill) for name, fill in attach.items()]
            staged = [publication.adopt(path, target.name if single else SINGLE) for path in self.paths]
            with publication.exclusive():
                refuse_existing(target, single, overwrite, self._work.published)
                if not single and len(staged) >= publication.indexed:
                    names = publication.shard_names(len(staged))
                    text = shard_index((name, _tensors(path)) for name, path in zip(names, self.paths, strict=True))
                    index = publication.stage(INDEX, lambda out: write_all(out, text))
                    staged = [*((path, name) for (path, _), name in zip(staged, names, strict=True)), index]
                self._work.note("publishing", [name for _, name in (*beside, *staged)])
                publication.publish(staged, beside, whole=not single)
                publication.finish()
        except BaseException:
            publication.discard()
            raise

    def _publication(self, folder: Location) -> Publication | Uploads:
        if isinstance(folder, Path):
            return Publication(folder)
        work = self._work
        staged, note = work.path / "staged", partial(work.note, "uploaded")
        return Uploads(folder, staged, work.published, work.uploaded, note)

    def _path(self, number: int) -> Path:
        return self._work.path / f"shard-{number + 1:05d}.safetensors"

    def _count(self, path: Path) -> None:
        with open_reader(path, io="read") as shard:
            self.infos |= {name: shard.info(name) for name in shard.names()}
        self.paths.append(path)

    def _new(self) -> SafetensorsWriter:
        metadata = {CONVERSION: json.dumps(self._plan.provenance, separators=(",", ":"), sort_keys=True)}
        return SafetensorsWriter(self._path(len(self.paths)), metadata=metadata, overwrite=True)

    def _room_for(self, nbytes: int) -> SafetensorsWriter:
        if self._limit is not None and self._nbytes and self._nbytes + nbytes > self._limit:
            self.close()
        self._nbytes += nbytes
        self._writer = self._writer or self._new()
        return self._writer

    def _copy(self, step: Step) -> None:
        reader, name, info = self._reader, step.name, step.info
        if info.compact:
            array = reader.array(name)
            writer = self._room_for(array.nbytes)
            writer.begin(name, info_of(array, info.notes))
            writer.note(**{FINGERPRINT: made_from(reader, name)})
            for part, block in array.parts().items():
                writer.write(part, block)
        elif reader.is_tensor(name):
            writer = self._room_for(info.nbytes)
            writer.begin(name, info)
            for start in range(0, info.nbytes, PANEL_BYTES):
                writer.write("", reader.raw(name, start, min(start + PANEL_BYTES, info.nbytes)))
        else:
            writer = self._room_for(4 * math.prod(info.shape))
            writer.begin(name, info)
            writer.note(**{FINGERPRINT: made_from(reader, name)})
            rows = max(1, PANEL_BYTES // (4 * max(math.prod(info.shape[1:]), 1)))
            count = info.shape[0] if info.shape else 1
            for start in range(0, count, rows):
                writer.write("", reader.rows(name, start, min(start + rows, count)))
        check_files(self._plan.origin.files[i] for i in step.files)

    def _join(self, step: Step, chunks: list[Done]) -> None:
        """The chunks of a tensor, one after the other: blocks that are in their files stay there until the shard is
        written."""
        scheme, in_axis = Scheme.parse(chunks[0].scheme), step.choice.in_axis
        cuts = step.chunks(scheme, self._plan.identity["layout"]["chunk_bytes"])
        writer = self._room_for(sum(done.nbytes for done in chunks))
        writer.begin(step.name, TensorInfo(step.info.shape, str(scheme), parts=chunks[0].dtypes, in_axis=in_axis))
        written: dict[str, int] = {}
        loss, leaves = Loss(), bytearray()
        for done, (start, stop) in zip(chunks, cuts, strict=True):
            path = self._work.chunks / done.key
            file = ChunkFile(path)
            array = file.compact(scheme, (stop - start, *step.stored[1:]))
            for part, block in array.blocks(written, step.stored).items():
                offset = file.offset(block)
                writer.write(part, block, None if offset is None else (path, offset))
                written[part] = written.get(part, 0) + len(block)
            for all_rows, rows in zip(loss.energies, file.energies(), strict=True):
                all_rows += rows
            leaves += file.leaves()
            self._spent.append(path)
        made = {FINGERPRINT: fingerprint_of(bytes(leaves))}
        writer.note(source=step.info.dtype, error=loss.error, **made, **_notes(step.choice))
        if loss.output_error is not None:
            self.output_errors[step.name] = loss.output_error

    def _empty_sources(self, shard: Path) -> None:
        """Take the bytes of each file of the source that is no longer needed; its header stays, for a resume."""
        needed = {i for step in self._plan.steps[self._stop :] for i in step.files}
        spent = [
            file
            for i, file in enumerate(self._plan.origin.files)
            if i not in needed and file[0] not in self._work.emptied
        ]
        if spent and not (report := verify(shard)).ok:
            raise PumiceError(f"target: expected a shard that verifies before its source goes, got {report.errors[:1]}")
        for file, size, _ in spent:
            with open(file, "r+b") as source:
                header = 8 + int.from_bytes(source.read(8), "little")
                self._work.note("emptied", [file, size])
                self._work.emptied[file] = size
                source.truncate(min(header, size))
                source.truncate(size)


def _notes(choice: Treatment) -> dict[str, str]:
    """For the manifest: what was done beside rounding to nearest."""
    notes = {} if choice.prune is None else {"prune": str(choice.prune)}
    return notes if choice.method is None else notes | {"method": choice.method}


def _tensors(path: Path) -> dict[str, int]:
    container = SafetensorsContainer(path, io="read")
    try:
        return {name: entry.nbytes for name, entry in container.entries.items()}
    finally:
        container.close()
