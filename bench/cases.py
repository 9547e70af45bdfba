"""pumice, NumPy and SciPy: families of cases, each a function of a setting. All of them get the same weights."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, Setting, Skip
from results import NUMPY

LYRA = Path(__file__).parents[1] / "tests" / "data" / "lyra_conv_to_gates.raw.gz"


def dense_weight(setting: Setting) -> np.ndarray:
    w = np.random.default_rng(0).standard_normal((setting.rows, setting.cols), np.float32)
    w *= np.float32(0.02)
    return w


def pruned_weight(setting: Setting) -> np.ndarray:
    w = dense_weight(setting)
    w[np.random.default_rng(1).random(w.shape) < 0.9] = 0
    return w


def lyra_weight(setting: Setting) -> np.ndarray:
    return np.frombuffer(gzip.decompress(LYRA.read_bytes()), "<f4").reshape(setting.rows, setting.cols)


def kind_of(scheme: str) -> str:
    """What peers of a scheme store."""
    return next((kind for kind in ("int4", "int8") if kind in scheme), "16-bit" if "float16" in scheme else "float32")


def _numpy(w: np.ndarray, setting: Setting) -> Iterator[Case]:
    copies = [w, *(w.copy() for _ in range(setting.copies(w.nbytes) - 1))]
    yield Case(NUMPY, "float32", w.nbytes, copies, lambda x: lambda c: x @ c.T, lambda: w)


def _scipy(w: np.ndarray, setting: Setting, blocksize: tuple[int, int] | None = None) -> Iterator[Case]:
    import scipy.sparse as sp

    matrix = sp.csr_array(w)
    if blocksize is not None:
        matrix = matrix.tobsr(blocksize)
    form = matrix.format
    nbytes = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    copies = [matrix.copy() for _ in range(setting.copies(nbytes))]
    yield Case(f"SciPy {form} float32", "float32", nbytes, copies, lambda x: lambda c: (c @ x.T).T, lambda: w)


def _pumice(w: np.ndarray, setting: Setting, scheme: str, *modes: str) -> Iterator[Case]:
    import pumice as pm

    compact = pm.compress(w, scheme)
    pm.set_num_threads(setting.threads)

    def copy() -> Any:
        parts = {name: part.copy() for name, part in compact.parts().items()}
        return pm.from_parts(compact.scheme, compact.shape, parts)

    copies = [copy() for _ in range(setting.copies(compact.nbytes))]
    for mode in modes:
        name = f"pumice {scheme}" if modes == ("float32",) else f"pumice {scheme}, {mode} activations"

        def prepare(x: np.ndarray, mode: str = mode) -> Any:
            return lambda c: c.linear(x, activations=mode)

        yield Case(name, kind_of(scheme), compact.nbytes, copies, prepare, compact.to_dense)


def dense_numpy(setting: Setting) -> Iterator[Case | Skip]:
    yield from _numpy(dense_weight(setting), setting)


def dense_int4(setting: Setting) -> Iterator[Case | Skip]:
    yield from _pumice(dense_weight(setting), setting, "int4-g128", "int16", "int8")


def dense_int4_g32(setting: Setting) -> Iterator[Case | Skip]:
    yield from _pumice(dense_weight(setting), setting, "int4-g32", "int16", "int8")


def dense_int8(setting: Setting) -> Iterator[Case | Skip]:
    yield from _pumice(dense_weight(setting), setting, "int8", "int16", "int8")


def dense_bfloat16(setting: Setting) -> Iterator[Case | Skip]:
    yield from _pumice(dense_weight(setting), setting, "bfloat16", "float32")


def csr_numpy(setting: Setting) -> Iterator[Case | Skip]:
    yield from _numpy(pruned_weight(setting), setting)


def csr_scipy(setting: Setting) -> Iterator[Case | Skip]:
    yield from _scipy(pruned_weight(setting), setting)


def csr_float32(setting: Setting) -> Iterator[Case | Skip]:
    yield from _pumice(pruned_weight(setting), setting, "csr", "float32")


def csr_int8(setting: Setting) -> Iterator[Case | Skip]:
    yield from _pumice(pruned_weight(setting), setting, "csr+int8", "int16")


def lyra_numpy(setting: Setting) -> Iterator[Case | Skip]:
    yield from _numpy(lyra_weight(setting), setting)


def lyra_scipy(setting: Setting) -> Iterator[Case | Skip]:
    yield from _scipy(lyra_weight(setting), setting)


def lyra_scipy_bsr(setting: Setting) -> Iterator[Case | Skip]:
    yield from _scipy(lyra_weight(setting), setting, (4, 4))


def lyra_csr(setting: Setting) -> Iterator[Case | Skip]:
    yield from _pumice(lyra_weight(setting), setting, "csr", "float32")


def lyra_csr_int8(setting: Setting) -> Iterator[Case | Skip]:
    yield from _pumice(lyra_weight(setting), setting, "csr+int8", "int16")


def lyra_bsr(setting: Setting) -> Iterator[Case | Skip]:
    yield from _pumice(lyra_weight(setting), setting, "bsr-4x4", "float32")


def lyra_bsr_int8(setting: Setting) -> Iterator[Case | Skip]:
    yield from _pumice(lyra_weight(setting), setting, "bsr-4x4+int8", "int16")
