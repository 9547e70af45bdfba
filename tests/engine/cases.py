"""A checkpoint of all kinds of weights, a conversion of it, and ways to stop and to change it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pumice as pm

RNG = np.random.default_rng(5)
RECIPE = (
    'scheme = "int4-g32"\n[[rule]]\nmatch = "sparse"\nscheme = "csr+int8"\n[[rule]]\nmatch = "auto"\nscheme = "auto"'
)


def state() -> dict[str, np.ndarray]:
    sparse = pm.prune(RNG.standard_normal((256, 64)).astype(np.float32), 0.8)
    wide = RNG.standard_normal((256, 64)).astype(np.float16)
    wide[200] *= np.float16(1e-3)
    wide[200] *= np.float16(1e-3)  # its float16 scales would be subnormal
    plain = {f"l{i}.weight": RNG.standard_normal((256, 64)).astype(np.float16) for i in range(4)}
    return plain | {
        "sparse.weight": sparse,
        "wide.weight": wide,
        "auto.weight": RNG.standard_normal((64, 64)).astype(np.float32),
        "bias": RNG.standard_normal(256),
    }


def convert(source: Path, target: Path, **options: Any) -> pm.Report:
    options = {"recipe": pm.Recipe.parse(RECIPE), "max_shard_size": 20_000} | options
    return pm.convert(source, target, **options)


def digest(target: Path) -> str:
    files = sorted(path for path in target.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


class Stop(KeyboardInterrupt):
    pass


def after(count: int, then: Callable[[], object]) -> Callable[[str, int, int], None]:
    """A progress that does something at its n-th call."""
    seen: Iterator[int] = iter(range(10**9))

    def progress(*call: object) -> None:
        if next(seen) == count:
            then()

    return progress


def stop() -> None:
    raise Stop


def changed_version(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(pm, "__version__", "99")
    return {}


def changed_content(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    with pm.checkpoint.open_reader(source) as reader:
        file = reader.files_of("l1.weight")[0]
    data = file.read_bytes()
    status = file.stat()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return {}
