"""What is timed: families of cases, each a function that yields them. Peers and pumice get the same weights."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, cold_copies

LYRA = Path(__file__).parents[1] / "tests" / "data" / "lyra_conv_to_gates.raw.gz"
N = 4096


def dense_weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((N, N), np.float32) * np.float32(0.02)


def pruned_weight() -> np.ndarray:
    w = dense_weight()
    w[np.random.default_rng(1).random(w.shape) < 0.9] = 0
    return w


def lyra_weight() -> np.ndarray:
    return np.frombuffer(gzip.decompress(LYRA.read_bytes()), "<f4").reshape(3072, 1024)


def _numpy(w: np.ndarray) -> Iterator[Case]:
    yield Case("NumPy float32", w.nbytes, cold_copies(w.nbytes, w.copy), lambda c, x: x @ c.T, w)


def _scipy(w: np.ndarray, blocksize: tuple[int, int] | None = None) -> Iterator[Case]:
    import scipy.sparse as sp

    matrix = sp.csr_array(w)
    if blocksize is not None:
        matrix = matrix.tobsr(blocksize)
    form = matrix.format
    nbytes = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    yield Case(f"SciPy {form} float32", nbytes, cold_copies(nbytes, matrix.copy), lambda c, x: (c @ x.T).T, w)


def _pumice(w: np.ndarray, scheme: str, *modes: str) -> Iterator[Case]:
    import pumice as pm

    compact = pm.compress(w, scheme)
    exact = compact.to_dense()

    def copy() -> Any:
        parts = {name: part.copy() for name, part in compact.parts().items()}
        return pm.from_parts(compact.scheme, compact.shape, parts)

    copies = cold_copies(compact.nbytes, copy)
    for mode in modes:
        name = f"pumice {scheme}" if modes == ("float32",) else f"pumice {scheme}, {mode} activations"
        yield Case(name, compact.nbytes, copies, lambda c, x, mode=mode: c.linear(x, activations=mode), exact)


def dense_numpy() -> Iterator[Case]:
    yield from _numpy(dense_weight())


def dense_int4() -> Iterator[Case]:
    yield from _pumice(dense_weight(), "int4-g128", "int16", "int8")


def dense_int4_g32() -> Iterator[Case]:
    yield from _pumice(dense_weight(), "int4-g32", "int16", "int8")


def dense_int8() -> Iterator[Case]:
    yield from _pumice(dense_weight(), "int8", "int16", "int8")


def csr_numpy() -> Iterator[Case]:
    yield from _numpy(pruned_weight())


def csr_scipy() -> Iterator[Case]:
    yield from _scipy(pruned_weight())


def csr_float32() -> Iterator[Case]:
    yield from _pumice(pruned_weight(), "csr", "float32")


def csr_int8() -> Iterator[Case]:
    yield from _pumice(pruned_weight(), "csr+int8", "int16")


def lyra_numpy() -> Iterator[Case]:
    yield from _numpy(lyra_weight())


def lyra_scipy() -> Iterator[Case]:
    yield from _scipy(lyra_weight())


def lyra_scipy_bsr() -> Iterator[Case]:
    yield from _scipy(lyra_weight(), (4, 4))


def lyra_csr() -> Iterator[Case]:
    yield from _pumice(lyra_weight(), "csr", "float32")


def lyra_csr_int8() -> Iterator[Case]:
    yield from _pumice(lyra_weight(), "csr+int8", "int16")


def lyra_bsr() -> Iterator[Case]:
    yield from _pumice(lyra_weight(), "bsr-4x4", "float32")


def lyra_bsr_int8() -> Iterator[Case]:
    yield from _pumice(lyra_weight(), "bsr-4x4+int8", "int16")
