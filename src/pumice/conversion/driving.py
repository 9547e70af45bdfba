"""Tasks and their results: what is submitted when, to whatever executor, and when a tensor is ready."""

from __future__ import annotations

import contextlib
import os
import queue
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from pumice.conversion.chunk_files import Done
from pumice.conversion.chunks import Choosing, Chunk, Job, run
from pumice.conversion.plan import Plan, Step
from pumice.conversion.work import Work
from pumice.scheme import AUTO, Scheme

Progress = Callable[[str, int, int], None]
"""Called with (name, bytes done, bytes in all) as a conversion goes on."""
Ready = Callable[[Step, list[Done]], None]
"""Called with a tensor and its chunks in order; none if it is copied."""


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


@dataclass
class _Open:
    """A tensor that is being encoded: its chunks by their first row, None while they are at work."""

    step: Step
    scheme: Scheme | None = None
    chunks: dict[int, Done | None] = field(default_factory=dict)
    stops: dict[int, int] = field(default_factory=dict)


class Drive:
    """Encodes tensors and hands those that are ready on, in the order of the plan.

    Parameters
    ----------
    executor, ahead
        Who runs tasks, and how many are submitted at a time.
    ready
        Called in a thread of its own, so that what is ready is written while others are encoded.
    """

    def __init__(
        self,
        plan: Plan,
        work: Work,
        executor: Executor,
        ahead: int,
        ready: Ready,
        tally: Tally,
        job: Job,
    ) -> None:
        self._plan, self._work, self._executor, self._ahead = plan, work, executor, ahead
        self._ready, self._tally, self._job = ready, tally, job
        self._chunk_bytes = plan.identity["layout"]["chunk_bytes"]
        self._todo: deque[tuple[_Open, Chunk | Choosing]] = deque()
        self._running: dict[Future[Any], tuple[_Open, Chunk | Choosing]] = {}
        self._back: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._waiting: deque[_Open] = deque()
        self._written: list[Future[None]] = []

    def run(self, steps: Iterable[Step]) -> None:
        """Do some steps of the plan."""
        with ThreadPoolExecutor(1, "pumice-write") as writer:
            try:
                for step in steps:
                    self._open(step)
                    self._turn(writer, full=len(self._todo) >= self._ahead)
                while self._todo or self._running:
                    self._turn(writer, full=True)
                self._hand_on(writer)
            except BaseException:
                writer.shutdown(cancel_futures=True)
                self._stop()
                raise
            for future in self._written:
                future.result()

    def _turn(self, writer: Executor, full: bool) -> None:
        """Submit what may run; with `full` also wait for a result."""
        while self._todo and len(self._running) < self._ahead:
            opened, task = self._todo.popleft()
            future = self._executor.submit(run, task)
            self._running[future] = opened, task
            future.add_done_callback(self._back.put)
        self._hand_on(writer)
        while self._running and (full or not self._back.empty()):
            self._take(self._back.get())
            full = False

    def _open(self, step: Step) -> None:
        opened = _Open(step)
        self._waiting.append(opened)
        if step.copied:
            return
        scheme = step.choice.scheme
        if scheme == AUTO and not step.choice.whole:
            known = self._work.schemes.get(step.name)
            if known is None:
                task = Choosing(self._plan.origin, step.name, step.info, step.choice.in_axis, self._job.only(step.name))
                self._todo.append((opened, task))
                return
            scheme = Scheme.parse(known)
        assert scheme is not None
        self._todo.extend((opened, task) for task in self._cut(opened, scheme))

    def _cut(self, opened: _Open, scheme: Scheme) -> list[Chunk]:
        """The chunks of a tensor that are not there yet."""
        step, opened.scheme = opened.step, scheme
        opened.stops = dict(step.chunks(scheme, self._chunk_bytes))
        opened.chunks = {
            start: self._work.has(step.key(start, True)) or self._work.has(step.key(start)) for start in opened.stops
        }
        missing = [self._chunk(opened, start) for start, done in opened.chunks.items() if done is None]
        for start, done in opened.chunks.items():
            if done is not None:
                self._count(opened, start)
        return missing or self._narrow(opened)

    def _chunk(self, opened: _Open, start: int, wide: bool = False) -> Chunk:
        step, origin = opened.step, self._plan.origin
        files, choice = tuple(origin.files[i] for i in step.files), replace(step.choice, scheme=opened.scheme)
        return Chunk(
            origin, files, str(self._work.chunks), step.name, step.info, choice, self._job.only(step.name), start,
            opened.stops[start], step.key(start, wide), wide, os.getpid(),
        )  # fmt: skip

    def _take(self, future: Future[Any]) -> None:
        if future.exception() is not None:
            future = self._first_to_fail()
        opened, task = self._running.pop(future)
        result = future.result()
        if isinstance(task, Choosing):
            self._work.note("scheme", [task.name, result])
            self._todo.extendleft((opened, chunk) for chunk in reversed(self._cut(opened, Scheme.parse(result))))
            return
        self._work.finished(result)
        if not task.wide:
            self._count(opened, task.start)
        opened.chunks[task.start] = result
        if None not in opened.chunks.values():
            self._todo.extendleft((opened, chunk) for chunk in self._narrow(opened))

    def _first_to_fail(self) -> Future[Any]:
        """Of all that were submitted, so that the error does not depend on which worker was faster."""
        return next(future for future in self._running if future.exception() is not None)

    def _narrow(self, opened: _Open) -> list[Chunk]:
        """Chunks with float16 scales where others of the tensor need float32: all of one tensor have one dtype."""
        done = {start: chunk for start, chunk in opened.chunks.items() if chunk is not None}
        widest: dict[str, str] = {}
        for chunk in done.values():
            widest |= {part: dtype for part, dtype in chunk.dtypes.items() if dtype == "F32" or part not in widest}
        narrow = [start for start, chunk in done.items() if dict(chunk.dtypes) != widest]
        for start in narrow:
            opened.chunks[start] = None
        return [self._chunk(opened, start, wide=True) for start in narrow]

    def _count(self, opened: _Open, start: int) -> None:
        rows = opened.stops[start] - start
        self._tally.add(opened.step.name, opened.step.info.nbytes * rows // max(opened.step.stored[0], 1))

    def _hand_on(self, writer: Executor) -> None:
        for future in self._written:
            if future.done():
                future.result()
        self._written = [future for future in self._written if not future.done()]
        while self._waiting:
            first = self._waiting[0]
            if not first.step.copied and (first.scheme is None or None in first.chunks.values()):
                return
            self._waiting.popleft()
            chunks = [done for done in first.chunks.values() if done is not None]
            if first.step.copied:
                self._tally.add(first.step.name, first.step.info.nbytes)
            self._written.append(writer.submit(self._ready, first.step, chunks))
            if len(self._written) > self._ahead:  # what waits for a slow disk takes disk itself
                self._written.pop(0).result()

    def _stop(self) -> None:
        """Cancel what waits, and keep what is at work."""
        for future in list(self._running):
            if not future.cancel():
                with contextlib.suppress(BaseException):
                    result = future.result()
                    if isinstance(result, Done):
                        self._work.finished(result)
