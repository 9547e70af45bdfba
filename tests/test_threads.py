"""The thread pool as Python sees it: the same bits, no hang, no idle spinning, settings obeyed."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from pumice._core import native

CSRC = Path(__file__).parents[1] / "csrc"
ROWS, COLS, GROUP = 4096, 1024, 128  # int8: 4 MiB, enough to wake the workers

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets affinity")

# What every script starts with: a product long enough for the pool, and how to count threads.
PRELUDE = """
import os, signal, sys, time
import numpy as np
from pumice._core import native

rng = np.random.default_rng(7)
x = rng.standard_normal((2, 1024), np.float32)
codes = rng.integers(0, 256, (4096, 1024), np.uint8)
scales = np.ones((4096, 1), np.float32)

def product():
    y = np.empty((2, 4096), np.float32)
    native.DenseInt(codes, scales, None, None, 4096, 1024, 8, 1024).matmul(x, y, None, "int16")
    return y

def tasks():
    return len(os.listdir("/proc/self/task"))
"""


def run_script(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `script` in a fresh interpreter; fails if it takes two minutes."""
    inherited = {k: v for k, v in os.environ.items() if k != "PUMICE_NUM_THREADS"}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**inherited, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def output_of(script: str, **environment: str) -> str:
    """What `script` prints when it is run after the prelude."""
    done = run_script(PRELUDE + script, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = native.get_num_threads()
    yield
    native.set_num_threads(before)


def dense_product(bits: int, activations: str, prepacked: bool) -> Callable[[], np.ndarray]:
    rng = np.random.default_rng((bits, prepacked))
    x = rng.standard_normal((3, COLS), np.float32)
    bias = rng.standard_normal(ROWS, np.float32)
    codes = rng.integers(0, 256, (ROWS, COLS * bits // 8), np.uint8)
    scales = rng.standard_normal((ROWS, COLS // GROUP)).astype(np.float16)
    if prepacked:
        codes = native.prepack_dense(codes, bits, COLS)
        panels = scales.reshape(ROWS // 16, 16, COLS // GROUP)
        scales = np.ascontiguousarray(panels.transpose(0, 2, 1))

    def product() -> np.ndarray:
        y = np.full((3, ROWS), np.nan, np.float32)
        native.DenseInt(codes, scales, None, None, ROWS, COLS, bits, GROUP).matmul(x, y, bias, activations)
        return y

    return product


def sparse_product(integers: bool) -> Callable[[], np.ndarray]:
    rng = np.random.default_rng(integers)
    per_row = rng.integers(0, 400, ROWS)
    per_row[: ROWS // 64] = COLS  # a heavy head, then many light and empty rows
    per_row[ROWS // 2 :: 3] = 0
    indptr = np.concatenate([[0], np.cumsum(per_row)]).astype(np.int64)
    indices = np.concatenate(
        [np.sort(rng.permutation(COLS)[:n]) for n in per_row]
    ).astype(np.uint16)  # fmt: skip
    if integers:
        data = rng.integers(-127, 128, indices.size, np.int8)
        scales = rng.standard_normal(ROWS, np.float32)
    else:
        data, scales = rng.standard_normal(indices.size, np.float32), None
    x = rng.standard_normal((3, COLS), np.float32)
    weights = indptr, indices, data, None, scales
    runs = native.CompressedRows(*weights, None, ROWS, COLS, "int8" if integers else "float32").count_runs()

    def product() -> np.ndarray:
        y = np.full((3, ROWS), np.nan, np.float32)
        view = native.CompressedRows(*weights, runs, ROWS, COLS, "int8" if integers else "float32")
        view.matmul(x, y, None, "int16")
        return y

    return product


PRODUCTS: dict[str, Callable[[], Callable[[], np.ndarray]]] = {
    "int8": lambda: dense_product(8, "int16", False),
    "int4": lambda: dense_product(4, "int8", False),
    "int4 float32": lambda: dense_product(4, "float32", False),
    "int8 prepacked": lambda: dense_product(8, "int16", True),
    "int4 prepacked": lambda: dense_product(4, "int16", True),
    "csr float32": lambda: sparse_product(False),
    "csr int8": lambda: sparse_product(True),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    product = PRODUCTS[name]()
    native.set_num_threads(1)
    alone = product()
    assert np.isfinite(alone).all()
    for threads in range(2, 9):
        native.set_num_threads(threads)
        assert native.get_num_threads() == threads
        for _ in range(5):
            assert product().tobytes() == alone.tobytes()


def test_many_python_threads_may_multiply_at_once() -> None:
    products = [make() for make in PRODUCTS.values()]
    expected = [product().tobytes() for product in products]
    native.set_num_threads(4)
    start = Barrier(8)

    def multiply(caller: int) -> bool:
        start.wait(timeout=120)
        order = [(caller + n) % len(products) for n in range(2 * len(products))]
        return all(products[n]().tobytes() == expected[n] for n in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(multiply, range(8)))


def test_fewer_than_one_thread_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"n: expected at least 1 thread, got 0"):
        native.set_num_threads(0)


def test_thread_pool_inspectors_find_the_c_symbols() -> None:
    library = ctypes.CDLL(native.__file__)
    library.pumice_set_num_threads(3)
    assert native.get_num_threads() == 3
    assert library.pumice_get_num_threads() == 3


def test_idle_workers_use_no_processor_time() -> None:
    product = PRODUCTS["int8"]()
    native.set_num_threads(4)
    for _ in range(20):
        product()
    time.sleep(0.01)  # workers spin 0.2 ms at most
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


@linux_only
@pytest.mark.parametrize("threads", [1, 3])
def test_the_environment_sets_the_number_of_threads(threads: int) -> None:
    script = """
before = tasks()
product()
print(native.get_num_threads(), tasks() - before)
"""
    assert output_of(script, PUMICE_NUM_THREADS=str(threads)) == f"{threads} {threads - 1}"


@pytest.mark.parametrize("value", ["0", "-1", "two", "2.5", "1025", " 2", "99999999999999999999"])
def test_a_bad_number_of_threads_in_the_environment_is_an_error(value: str) -> None:
    done = run_script("import pumice._core.native", PUMICE_NUM_THREADS=value)
    assert done.returncode != 0
    message = f"PUMICE_NUM_THREADS: expected an integer from 1 to 1024, got '{value}'"
    assert message in done.stderr


@linux_only
def test_the_affinity_mask_limits_the_threads() -> None:
    script = "print(native.get_num_threads(), len(os.sched_getaffinity(0)))"
    threads, cpus = map(int, output_of(script).split())
    assert 1 <= threads <= cpus  # fewer under a cgroup quota
    pin = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    done = run_script(f"{pin}\n{PRELUDE}\n{script}")
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_an_empty_setting_in_the_environment_is_none() -> None:
    script = "print(native.get_num_threads())"
    assert output_of(script, PUMICE_NUM_THREADS="") == output_of(script)


@linux_only
def test_a_forked_child_multiplies_with_its_own_workers() -> None:
    script = """
expected = product()
for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        before = tasks()
        same = all(np.array_equal(product(), expected) for _ in range(20))
        os._exit(0 if same and before == 1 and tasks() == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(product(), expected)
print("done")
"""
    assert output_of(script, PUMICE_NUM_THREADS="3") == "done"


def test_a_child_forked_while_others_multiply_does_not_hang() -> None:
    script = """
import threading
expected = product()
stop = threading.Event()

def keep_multiplying():
    while not stop.is_set():
        product()

others = [threading.Thread(target=keep_multiplying) for _ in range(2)]
for other in others:
    other.start()
try:
    for _ in range(10):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if np.array_equal(product(), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
finally:
    stop.set()
print("done")
"""
    assert output_of(script, PUMICE_NUM_THREADS="3") == "done"


def test_the_interpreter_exits_while_workers_and_callers_are_busy() -> None:
    script = """
import threading

def keep_multiplying():
    while True:
        product()

for _ in range(2):
    threading.Thread(target=keep_multiplying, daemon=True).start()
time.sleep(0.05)
print("leaving")
"""
    assert output_of(script, PUMICE_NUM_THREADS="4") == "leaving"


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_pool_passes_its_self_test_under_sanitizers(sanitizer: str, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler; c++ not found")

    def build_and_run(name: str, *sources: Path) -> subprocess.CompletedProcess[str]:
        target = tmp_path / name
        flags = ["-std=c++17", "-g", "-O1", f"-fsanitize={sanitizer}", f"-I{CSRC}", "-pthread"]
        command = [compiler, *flags, *map(str, sources), "-o", str(target)]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode != 0:
            return built
        environment = {k: v for k, v in os.environ.items() if k != "PUMICE_NUM_THREADS"}
        return subprocess.run(
            [target],
            env={**environment, "TSAN_OPTIONS": "die_after_fork=0"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() { return 0; }\n")
    if build_and_run("empty", empty).returncode != 0:
        pytest.skip(f"-fsanitize={sanitizer} does not work on this machine")
    dispatch = CSRC / "dispatch"
    done = build_and_run("pool_test", CSRC / "tests/pool_test.cpp", dispatch / "parallel.cpp", dispatch / "cpu.cpp")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "pool_test: 0 failures\n"
