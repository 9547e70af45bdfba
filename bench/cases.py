"""pumice and NumPy, dense: families of cases, each a function of a setting. All of them get the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from harness import Case, Setting, Skip
from results import NUMPY
from weights import normal


def dense_weight(setting: Setting) -> np.ndarray:
    return normal(setting.rows, setting.cols)


def kind_of(scheme: str) -> str:
    """What peers of a scheme store."""
    return next((kind for kind in ("int4", "int8") if kind in scheme), "16-bit" if "float16" in scheme else "float32")


def _numpy(w: np.ndarray, setting: Setting) -> Iterator[Case]:
    copies = [w, *(w.copy() for _ in range(setting.copies(w.nbytes) - 1))]
    yield Case(NUMPY, "float32", w.nbytes, copies, lambda x: lambda c: x @ c.T, lambda: w)


def _pumice(w: np.ndarray, setting: Setting, scheme: str, *modes: str) -> Iterator[Case]:
    import pumice as pm
    from pumice.memory import copied

    compact = pm.compress(w, scheme)
    pm.set_num_threads(setting.threads)

    def copy() -> Any:
        parts = {name: copied(part) for name, part in compact.parts().items()}
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
