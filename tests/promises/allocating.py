"""Run by test_processes.py with faults.so preloaded: each job meets a failure of each of its allocations in turn.

A job then raises MemoryError (or the system's ENOMEM), or does without; and works the next time. Watched are pumice's
own allocations, and those of arrays: NumPy itself crashes when a buffer of its iterators can't be had (2.4), so what
others ask for is watched from a size that these don't have. OpenBLAS ends the process, so what multiplies with it stays
out: float32, and halves in large batches.
"""

from __future__ import annotations

import ctypes
import errno
import io
import itertools
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pumice as pm

AT_LEAST = 70_000  # bytes
SCHEMES = ("float16", "bfloat16", "int8", "int4-g32", "int4-g16-asym", "int4-g16-min", "csr", "csr+int8", "bsr-4x4")


def jobs(folder: Path) -> dict[str, Callable[[], Any]]:
    w = pm.prune(np.random.default_rng(0).standard_normal((768, 1024)).astype(np.float32), 0.5)
    x = np.random.default_rng(1).standard_normal((33, 1024)).astype(np.float32)
    few = x[:2]
    arrays = {scheme: pm.compress(w, scheme) for scheme in SCHEMES}
    path = folder / "m.safetensors"
    pm.save(path, arrays)
    blob = path.read_bytes()
    pickled = pickle.dumps(arrays["int8"], 5)

    def loaded(source: Any, **options: Any) -> Callable[[], Any]:
        def job() -> Any:
            with pm.load(source, **options) as m:
                return [few @ m[name].T for name in m]

        return job

    work: dict[str, Callable[[], Any]] = {
        "map": loaded(path),
        "read": loaded(path, io="read", prepack="never"),
        "bytes": loaded(blob, prepack="eager"),
        "save": lambda: pm.save(io.BytesIO(), arrays),
        "verify": lambda: [pm.verify(path).ok],
        "unpickle": lambda: [x @ pickle.loads(pickled).T],
    }
    for scheme in SCHEMES:
        work[f"compress {scheme}"] = lambda scheme=scheme: [pm.compress(w, scheme).to_dense()]
        batch = few if "float" in scheme else x
        work[f"product {scheme}"] = lambda scheme=scheme, batch=batch: [batch @ arrays[scheme].T]
        if "int" in scheme:
            work[f"int8 product {scheme}"] = lambda scheme=scheme: [pm.linear(x, arrays[scheme], activations="int8")]
    return work


def attempt(job: Callable[[], Any]) -> Any:
    """What a job returns; None when memory ran out."""
    try:
        return job()
    except MemoryError:
        return None
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        return None
    except SystemError as error:  # NumPy 2.4's reductions return NULL and set no exception
        if "without exception set" not in str(error) and "without setting an exception" not in str(error):
            raise
        return None


def content(result: Any) -> bytes:
    return b"".join(np.asarray(part).tobytes() for part in result)


def each_fails(job: Callable[[], Any], shim: ctypes.CDLL, at_least: int, lasts: int) -> int:
    """Make each allocation of a job fail in turn; returns how many."""
    expected = content(job())
    for nth in itertools.count():
        shim.faults_arm_memory(nth, at_least, lasts)
        try:
            result = attempt(job)
        finally:
            made = shim.faults_disarm_memory()
        assert result is None or content(result) == expected, f"allocation {nth}: a wrong result"
        result = None
        assert content(job()) == expected, f"allocation {nth}: the next call is wrong"
        if made <= nth:
            return nth
    raise AssertionError("unreachable")


def main(shim: ctypes.CDLL) -> None:
    shim.faults_arm_memory.argtypes = [ctypes.c_long, ctypes.c_size_t, ctypes.c_int]
    shim.faults_disarm_memory.restype = ctypes.c_long
    with tempfile.TemporaryDirectory() as folder:
        met = 0
        for name, job in jobs(Path(folder)).items():
            print(f"in {name}", file=sys.stderr)
            met += sum(each_fails(job, shim, AT_LEAST, lasts) for lasts in (0, 1))
    print(met)


if __name__ == "__main__":
    main(ctypes.CDLL(sys.argv[1]))
