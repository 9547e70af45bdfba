"""Run by bench/conversion.py: one conversion to int4-g128 by threads, processes or Dask. Prints one JSON object.

    python bench/conversion_worker.py threads|processes|dask COUNT SOURCE TARGET

`dask` starts a cluster of COUNT processes of one thread each, and kills one of them when a third is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

import pumice as pm

SCHEME = "int4-g128"
Progress = Callable[[str, int, int], None]


@contextlib.contextmanager
def cluster(count: int, killed: list[int]) -> Iterator[tuple[Executor, Progress]]:
    """An executor on a Dask cluster, and a progress that kills one of its workers, whose process goes to `killed`."""
    from dask.distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None) as workers,
        Client(workers) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))

        def kill(name: str, done: int, total: int) -> None:
            if not killed and done > total / 3:
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

        yield client.get_executor(pure=False, retries=3), kill


def main() -> None:
    way, count, source, target = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    killed: list[int] = []
    with contextlib.ExitStack() as stack:
        executor: Executor | None = None
        progress: Progress | None = None
        if way == "dask":
            executor, progress = stack.enter_context(cluster(count, killed))
        start = time.perf_counter()
        if way == "processes":
            executor = stack.enter_context(ProcessPoolExecutor(count))
        pm.convert(source, target, SCHEME, workers=count, executor=executor, progress=progress)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "killed": len(killed)}))


if __name__ == "__main__":
    main()
