"""What the machine can do at all: bytes read and operations computed by plain C++ loops, timed in the same rounds."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, Setting, Skip
from machine import cold_bytes
from results import FLOAT_PEAK, INT8_PEAK, PROBE, READ

HOT = 4 << 20  # bytes that the read loop reads
STEPS = 1 << 19  # about a millisecond
SOURCE = Path(__file__).with_name("probes.cpp")


def probes(setting: Setting) -> Iterator[Case | Skip]:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        yield Skip(READ, "no C++ compiler")
        return
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "probes.so"
        done = subprocess.run(
            [*compiler.split(), *flags, str(SOURCE), "-o", str(library)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            yield Skip(READ, f"{compiler} failed: {(done.stderr.splitlines() or ['no message'])[0]}")
            return
        loaded = ctypes.CDLL(str(library))
    nbytes, threads = HOT if setting.hot else cold_bytes(), setting.threads
    buffer = np.ones(nbytes // 8, np.uint64)

    def read(x: np.ndarray) -> Any:
        return lambda c: loaded.read_all(ctypes.c_void_p(c.ctypes.data), ctypes.c_long(c.size), threads)

    yield Case(READ, PROBE, nbytes, [buffer], read)
    for name, loop in ((INT8_PEAK, loaded.int8_peak), (FLOAT_PEAK, loaded.float32_peak)):
        loop.restype = ctypes.c_double
        operations = float(loop(ctypes.c_long(0), threads)) * STEPS
        if not operations:
            yield Skip(name, "no such loop for this CPU")
            continue

        def compute(x: np.ndarray, loop: Any = loop) -> Any:
            return lambda c: loop(ctypes.c_long(STEPS), threads)

        yield Case(name, PROBE, 0, [None], compute, operations=operations)
