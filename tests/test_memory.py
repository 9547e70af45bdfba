"""Memory for weights: where it begins, who shares it, and when it goes."""

import gc
import itertools
import os
import threading

import numpy as np
import pytest

import pumice as pm
from pumice import memory
from pumice.layouts.dense import is_mapped

needs_huge_pages = pytest.mark.skipif(not memory.AVAILABLE, reason="huge pages on request are Linux's")


@pytest.mark.parametrize("shape", [0, 1, (0, 3), (64 << 10) - 1, 64 << 10, (3, 100_003), 16 << 20, (16 << 20) + 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.uint64])
def test_arrays_are_whole_writable_and_apart(shape, dtype):
    arrays = [memory.empty(shape, dtype) for _ in range(3)]
    for i, array in enumerate(arrays):
        assert array.shape == (shape if isinstance(shape, tuple) else (shape,)) and array.dtype == dtype
        assert array.flags.c_contiguous and array.flags.writeable
        assert array.nbytes < memory.SMALL or not memory.AVAILABLE or array.ctypes.data % memory.LINE == 0
        array[...] = i + 1
    assert all((array == i + 1).all() for i, array in enumerate(arrays))


def test_copies_have_what_was_copied():
    w = np.arange(300 * 401, dtype=np.int64).reshape(300, 401)
    copy = memory.copied(w.T, np.uint32)
    assert copy.dtype == np.uint32 and copy.flags.c_contiguous
    np.testing.assert_array_equal(copy, w.T)


def _mapped_kilobytes(word: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith(word)).split()[1])


@needs_huge_pages
def test_memory_goes_with_the_last_array_in_it():
    before = _mapped_kilobytes("VmSize:")
    kept = [memory.empty(memory.BLOCK // 4, np.uint8) for _ in range(40)]  # ten blocks
    assert _mapped_kilobytes("VmSize:") - before >= 9 * (memory.BLOCK >> 10)
    del kept
    gc.collect()
    assert _mapped_kilobytes("VmSize:") - before <= 2 * (memory.BLOCK + memory.HUGE_PAGE) >> 10  # the open one


@needs_huge_pages
def test_what_is_not_written_takes_no_memory():
    before = _mapped_kilobytes("VmRSS:")
    large = memory.empty(1 << 30, np.uint8)
    assert _mapped_kilobytes("VmRSS:") - before < 64 << 10
    del large


@needs_huge_pages
def test_what_is_cut_off_goes_back_and_the_rest_stays():
    neighbours = [memory.empty(200_000, np.uint8) for _ in range(2)]
    room = memory.empty((14, 1 << 20), np.uint8)
    after = memory.empty(200_000, np.uint8)
    for array in (*neighbours, room, after):
        array[...] = 5
    before = _mapped_kilobytes("VmRSS:")
    kept = memory.shrunk(room, 3)
    del room
    assert before - _mapped_kilobytes("VmRSS:") >= 10 << 10
    assert kept.shape == (3, 1 << 20)
    assert all((array == 5).all() for array in (*neighbours, kept, after))
    assert memory.shrunk(kept, 0).size == 0


def test_small_arrays_are_cut_off_in_place():
    array = memory.empty((100, 7), np.float32)
    array[...] = 3
    kept = memory.shrunk(array, 20)
    assert kept.shape == (20, 7)
    assert kept.flags.owndata
    assert (kept == 3).all()


@needs_huge_pages
def test_codes_that_are_rounded_to_0_take_no_memory():
    rng = np.random.default_rng(0)
    w = rng.uniform(-1, 1, (2048, 4096)).astype(np.float32)
    w[:, 64:] *= 1e-3  # 0 in int4
    pm.compress(w[:64], "csr+int4")
    before = _mapped_kilobytes("VmRSS:")
    compact = pm.compress(w, "csr+int4")
    assert compact.density < 0.02
    assert _mapped_kilobytes("VmRSS:") - before < (compact.nbytes >> 10) + 2 * (memory.HUGE_PAGE >> 10) + 1024


def test_threads_never_share_a_byte():
    found: list[np.ndarray] = []

    def take(mark: int) -> None:
        for _ in range(50):
            array = memory.empty(100_000, np.uint8)
            array[:] = mark
            found.append(array)

    threads = [threading.Thread(target=take, args=(mark,)) for mark in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 400 and all((array == array[0]).all() for array in found)
    starts = sorted(array.ctypes.data for array in found)
    assert all(b - a >= 100_000 for a, b in itertools.pairwise(starts))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_takes_memory_whatever_its_parent_held():
    with memory._blocks._lock:  # as another thread might at that moment
        child = os.fork()
        if not child:
            memory.empty(1 << 20, np.uint8)[:] = 1
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("scheme", ["csr", "csr+int4", "bsr-16x4+int8", "bitmask+int8", "int4-g128", "bfloat16"])
def test_its_arrays_are_resident_not_mapped(scheme):
    w = pm.prune(np.random.default_rng(0).standard_normal((512, 1024), np.float32), 0.5, pattern="bsr-16x4")
    compact = pm.compress(w, scheme)
    compact.linear(np.ones((1, 1024), np.float32))
    assert not any(map(is_mapped, compact.parts().values()))
    stored = sum(part.nbytes for name, part in compact.parts().items() if name != "shape")
    assert compact.resident_nbytes >= 0.9 * stored
