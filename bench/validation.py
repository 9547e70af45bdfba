"""What trust costs: the checks of every load, and of `verify`, in GB/s. ``python bench/validation.py``"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import numpy as np
from machine import about

import pumice as pm

ROWS, COLS, PER_ROW = 8192, 65536, 8192


def best(run: Callable[[], object], repeat: int = 5) -> float:
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def report(what: str, nbytes: int, seconds: float) -> None:
    print(f"{what:<58}{nbytes / 1e6:>8.0f} MB{seconds * 1e3:>9.1f} ms{nbytes / seconds / 1e9:>8.1f} GB/s", flush=True)


def main() -> None:
    indptr = np.arange(ROWS + 1, dtype=np.int64) * PER_ROW
    one = np.sort(np.random.default_rng(0).choice(COLS, PER_ROW, replace=False)).astype(np.uint16)
    indices = np.tile(one, ROWS)
    data = np.ones(len(indices), np.int8)
    scale = np.ones((ROWS, 1), np.float32)
    parts = {"indptr": indptr, "indices": indices, "data": data, "scale": scale, "shape": np.array([ROWS, COLS])}
    from pumice._core import native

    for threads in (1, pm.get_num_threads()):
        pm.set_num_threads(threads)
        seconds = best(lambda: native.check_bsr(indptr, indices, COLS))
        report(f"csr indices are sorted, unique, in range ({threads} threads)", indices.nbytes, seconds)
    whole = sum(part.nbytes for part in parts.values())
    seconds = best(lambda: pm.from_parts("csr+int8", (ROWS, COLS), parts))
    report("csr+int8 from its parts, index parts copied", whole, seconds)
    w = pm.DenseArray.from_codes(np.zeros((4096, 16384), np.uint8), np.ones((4096, 512), np.float16), bits=4)
    dense = w.parts()
    seconds = best(lambda: pm.from_parts(w.scheme, w.shape, dense))
    report("int4-g32 from its parts: scales are finite", w.nbytes, seconds)
    file = io.BytesIO()
    pm.save(file, {"w": w})
    checkpoint = pm.load(file.getvalue())
    report("verify: SHA-256 and structure", len(file.getvalue()), best(checkpoint.verify))
    print("\n".join(f"{key}: {value}" for key, value in about().items()))


if __name__ == "__main__":
    main()
