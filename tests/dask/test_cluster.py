"""A Dask cluster of several processes, one of which is killed midway, writes the bytes of a serial conversion.

Run by `make test-dask`: dask.distributed is no part of the light tests.
"""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from dask.distributed import Client, LocalCluster

import pumice as pm
from pumice.cli import main
from pumice.conversion import plan

pytestmark = pytest.mark.filterwarnings("default")


def digest(target: Path) -> str:
    files = sorted(path for path in target.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1 << 18)
    rng = np.random.default_rng(0)
    weights = {f"l{i}.weight": rng.standard_normal((2048, 512)).astype(np.float16) for i in range(12)}
    pm.save(tmp_path / "source", weights | {"bias": np.zeros(9)})
    pm.convert(tmp_path / "source", tmp_path / "serial", "int4-g128", workers=1)
    return tmp_path / "source"


def test_a_cluster_that_loses_a_worker_writes_the_bytes_of_a_serial_conversion(source: Path) -> None:
    with LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        pids = client.run(os.getpid)
        seen: list[str] = []

        def kill_one(name: str, done: int, total: int) -> None:
            seen.append(name)
            if len(seen) == 10:
                os.kill(next(iter(pids.values())), signal.SIGKILL)

        executor = client.get_executor(pure=False, retries=3)
        pm.convert(source, source.with_name("t"), "int4-g128", executor=executor, workers=4, progress=kill_one)
        after = client.run(os.getpid)
    assert len(seen) > 20
    assert next(iter(pids.values())) not in after.values()
    assert digest(source.with_name("t")) == digest(source.with_name("serial"))


def test_the_command_line_takes_the_address_of_a_cluster(source: Path) -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        command = ["convert", str(source), str(source.with_name("t")), "--scheme", "int4-g128"]
        assert main([*command, "--dask", cluster.scheduler_address]) == 0
    assert digest(source.with_name("t")) == digest(source.with_name("serial"))
