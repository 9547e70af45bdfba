"""Forks, spawned processes, a million calls, and memory that runs out: no hang, no leak, no crash."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pumice as pm

HERE = Path(__file__).parent
Count = Callable[[str, object], None]


def weights() -> pm.CompactArray:
    w = np.random.default_rng(1).standard_normal((512, 1024)).astype(np.float32)
    return pm.compress(w, "int8")


X = np.random.default_rng(2).standard_normal((64, 1024)).astype(np.float32)


def forked_product(w: pm.CompactArray, expected: bytes) -> bool:
    """Whether a child multiplies as its parent does; False if it hangs."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # a child that hangs is killed by it
        code = 1
        try:
            code = 0 if (X @ w.T).tobytes() == expected else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return status == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_500_forks_after_a_threaded_product_all_multiply(threads: int, count: Count) -> None:
    w = weights()
    expected = (X @ w.T).tobytes()
    for turn in range(500):
        assert forked_product(w, expected), f"fork {turn}"
        if turn % 50 == 0:
            assert (X @ w.T).tobytes() == expected
    count(f"forks after products with {threads} threads", 500)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forks_while_another_thread_multiplies(count: Count) -> None:
    w = weights()
    expected = (X @ w.T).tobytes()
    over = threading.Event()

    def multiply() -> None:
        while not over.is_set():
            X @ w.T

    other = threading.Thread(target=multiply)
    other.start()
    try:
        for turn in range(100):
            assert forked_product(w, expected), f"fork {turn}"
    finally:
        over.set()
        other.join()
    count("forks amid products", 100)


def spawned(w: pm.CompactArray) -> bytes:
    return bytes((X @ w.T).tobytes())


def test_spawned_processes_get_weights_by_pickle_and_multiply() -> None:
    w = weights()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        results = pool.map_async(spawned, [w] * 8).get(timeout=120)
    assert set(results) == {(X @ w.T).tobytes()}


@pytest.mark.parametrize("python_threads", [8])
def test_products_of_many_threads_at_once_have_the_same_bits(python_threads: int, long: bool, count: Count) -> None:
    each = 20_000 if long else 1_000
    w = pm.prune(np.random.default_rng(3).standard_normal((96, 256)).astype(np.float32), 0.5)
    schemes = ("int8", "int4-g32", "csr", "csr+int8", "bsr-4x4", "float16")
    arrays = [pm.compress(w, scheme) for scheme in schemes]
    xs = [X[:rows, :256] for rows in (1, 3, 17)]
    expected = {(a, b): (x @ w.T).tobytes() for a, w in enumerate(arrays) for b, x in enumerate(xs)}
    fresh = [pm.compress(w, scheme) for scheme in schemes]  # not prepacked: the first products race
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for a, b in zip(rng.integers(0, len(fresh), each), rng.integers(0, len(xs), each), strict=True):
            if (xs[b] @ fresh[a].T).tobytes() != expected[a, b]:
                wrong.append((a, b))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(python_threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=600)
        assert not worker.is_alive(), "a product hangs"
    assert wrong == []
    count("threads x products", f"{python_threads} x {each}")


# Leaks. In a process of its own, where nothing else grows.

LEAKS = """
import gc, io, os, pickle, sys
import numpy as np
import pumice as pm

w = pm.prune(np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32), 0.5)
x = np.ones((2, 64), np.float32)
out = np.empty((2, 48), np.float32)
arrays = {s: pm.compress(w, s) for s in ("int8", "int4-g32", "float16", "csr", "csr+int8", "bsr-4x4")}
file = io.BytesIO()
pm.save(file, arrays)
blob = file.getvalue()
bad = blob[:-1]

def products():
    for a in arrays.values():
        np.matmul(x, a.T, out=out)
        x @ a.T

def errors():
    a = arrays["int8"]
    for call in (lambda: x @ a, lambda: pm.load(bad), lambda: a == 1, lambda: pm.compress(w, "no")):
        try:
            call()
        except Exception:
            pass

def loads():
    with pm.load(blob) as m:
        for name in m:
            x @ m[name].T

def objects():
    for a in arrays.values():
        a[4:8].to_dense()
        pickle.loads(pickle.dumps(a, 5))
        a.T, a.nbytes, repr(a)

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

JOBS = {"products": (products, 12), "errors": (errors, 4), "loads": (loads, 1), "objects": (objects, 6)}
job, each = JOBS[sys.argv[1]]
turns = int(sys.argv[2]) // each
for _ in range(max(turns // 10, 200)):
    job()
before = resident()
for _ in range(turns):
    job()
print(turns * each, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("job", "calls"), [("products", 1_000_000), ("errors", 20_000), ("loads", 2_000), ("objects", 30_000)]
)
def test_memory_is_flat_over_many_calls(job: str, calls: int, long: bool, count: Count) -> None:
    calls = 1_000_000 if long and job != "loads" else calls * (50 if long else 1)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", LEAKS, job, str(calls)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000, check=True)
    made, growth = map(int, done.stdout.split())
    count(f"{job} without a leak", f"{made} calls, {growth >> 10} KiB of growth")
    assert growth < 1 << 20


# Memory that runs out.


def test_every_allocation_that_fails_is_a_memory_error(faults: Path, count: Count) -> None:
    environment = os.environ | {"LD_PRELOAD": str(faults), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, HERE / "allocating.py", faults]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    count("allocations that fail", done.stdout.strip())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS")
def test_a_product_works_without_a_thread_to_be_had(faults: Path) -> None:
    code = (
        "import ctypes, sys, numpy as np, pumice as pm\n"
        "w = pm.compress(np.random.default_rng(0).standard_normal((2048, 2048)).astype('f4'), 'int8')\n"
        "x = np.ones((64, 2048), 'f4')\n"
        "pm.set_num_threads(1); expected = (x @ w.T).tobytes()\n"
        "pm.set_num_threads(4)\n"
        "shim = ctypes.CDLL(sys.argv[1]); shim.faults_arm_threads(1)\n"
        "assert (x @ w.T).tobytes() == expected\n"
        "assert shim.faults_arm_threads(0) > 0, 'no thread was asked for'\n"
        "assert (x @ w.T).tobytes() == expected\n"
    )
    environment = os.environ | {"LD_PRELOAD": str(faults), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code, faults], env=environment, check=True, timeout=120)
