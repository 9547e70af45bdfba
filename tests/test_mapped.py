"""Files stay where they are: opening a gigabyte takes milliseconds, and a product with mapped weights copies none."""

from __future__ import annotations

import io
import json
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

import pumice as pm
from pumice.layouts.dense import is_mapped
from tests.fuzz import gguf_bytes as b
from tests.fuzz.torch_bytes import state, tensor

ROWS, COLS = 1 << 16, 1 << 12
GIB = 4 * ROWS * COLS  # of float32


def with_hole(path: Path, head: bytes, hole: int, tail: bytes = b"") -> None:
    """A file with zeros in its middle that take no place on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.seek(hole, io.SEEK_CUR)
        file.write(tail)
        file.truncate()


def header(*names: str) -> bytes:
    """That of a safetensors file with as much for each name, a gigabyte in all."""
    rows = ROWS // len(names)
    spans = {name: [4 * COLS * rows * i, 4 * COLS * rows * (i + 1)] for i, name in enumerate(names)}
    table = {name: {"dtype": "F32", "shape": [rows, COLS], "data_offsets": span} for name, span in spans.items()}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def safetensors(folder: Path) -> Path:
    with_hole(folder / "m.safetensors", header("w"), GIB)
    return folder / "m.safetensors"


def shards(folder: Path) -> Path:
    names = {f"model-{i + 1:05d}-of-00008.safetensors": [f"w{i}.{j}" for j in range(64)] for i in range(8)}
    for file, tensors in names.items():
        with_hole(folder / file, header(*tensors), GIB)  # eight gigabytes
    index = {"weight_map": {tensor: file for file, tensors in names.items() for tensor in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def gguf(folder: Path) -> Path:
    rows = [b.row(f"w{i}", [COLS, ROWS // 512], 0, GIB // 512 * i) for i in range(512)]
    with_hole(folder / "m.gguf", b.file([b.field("general.architecture", b.TEXT, b.text("llama"))], rows), GIB)
    return folder / "m.gguf"


def gguf_blocks(folder: Path) -> Path:
    with_hole(folder / "m.gguf", b.file(rows=[b.row("w", [COLS, 8 * ROWS], b.Q4_0, 0)]), ROWS * COLS // 4 * 18)
    return folder / "m.gguf"


def npy_header() -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (ROWS, COLS)})
    return file.getvalue()


def npy(folder: Path) -> Path:
    with_hole(folder / "w.npy", npy_header(), GIB)
    return folder / "w.npy"


class Hole(io.RawIOBase):
    """What zipfile writes to: the zeros of the member that is about to come are left out."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def flush(self) -> None:
        self._file.flush()

    def write(self, data: Any) -> int:
        if len(data) == 1 << 24:
            self._file.seek(len(data), io.SEEK_CUR)
            return len(data)
        return self._file.write(data)


def zipped(path: Path, small: dict[str, bytes], name: str, head: bytes = b"") -> Path:
    """An archive of zipfile's whose last member is a head and a gigabyte of zeros."""
    zeros = bytes(1 << 24)
    with path.open("wb") as file, zipfile.ZipFile(Hole(file), "w") as archive:
        for member, data in small.items():
            archive.writestr(member, data)
        with archive.open(name, "w", force_zip64=True) as member:
            member.write(head)
            member._crc = 0  # of zeros it would take a second, and nobody asks for it here
            for _ in range(GIB >> 24):
                member.write(zeros)
    return path


def npz(folder: Path) -> Path:
    return zipped(folder / "m.npz", {}, "w.npy", npy_header())


def torch(folder: Path) -> Path:
    pickled = state(w=tensor(shape=(ROWS, COLS), strides=(COLS, 1), count=ROWS * COLS))
    return zipped(folder / "m.pt", {"m/data.pkl": pickled, "m/byteorder": b"little"}, "m/data/0")


@pytest.mark.parametrize("make", [safetensors, shards, gguf, gguf_blocks, npy, npz, torch])
def test_a_gigabyte_is_open_in_less_than_50_ms(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    assert sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path])) > 1e9
    times = []
    for _ in range(3):
        start = time.process_time()
        m = pm.load(path)
        times.append(time.process_time() - start)
    assert min(times) < 0.05
    name = next(iter(m))
    assert m.info(name).shape[1] == COLS
    if make is not gguf_blocks:
        assert is_mapped(m[name])
        assert m[name][-1, -1] == 0


# Products.


def anonymous() -> int:
    """Bytes of memory that no file holds."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("Anonymous:")))


W = np.random.default_rng(0).standard_normal((1024, 4096)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((1, 4096)).astype(np.float32)


def multiplied(path: Path, name: str) -> tuple[int, Any]:
    """Bytes that reading a weight and multiplying with it took: the least of three, as allocators keep what is free."""
    with pm.load(path, prepack="never") as m:
        X @ m[name].T  # what the first product makes once, such as threads
    taken = []
    for _ in range(3):
        with pm.load(path, prepack="never") as m:
            before = anonymous()
            w = m[name]
            X @ w.T
            taken.append(anonymous() - before)
    return min(taken), w


@pytest.mark.parametrize(
    "scheme",
    ["float32", "float16", "bfloat16", "float8-g128", "int8", "int8-g128", "int4-g128", "int4-g128-asym",
     "int3-g128-min", "bitmask+int8", "bitmask+float16", "2:4+int8", "csr", "csr+int8", "bsr-4x4", "bsr-16x4+int8"],
)  # fmt: skip
def test_products_with_our_files_copy_places_at_most(scheme: str, tmp_path: Path) -> None:
    """Indices and bitmasks are copied before they are checked, since they say where kernels read; values never are."""
    pm.save(tmp_path / "m.safetensors", {"w": pm.compress(pm.prune(W, pattern="2:4"), scheme)})
    taken, w = multiplied(tmp_path / "m.safetensors", "w")
    parts = w.parts()
    places = sum(parts.pop(name).nbytes for name in ("indptr", "indices", "bitmask") if name in parts)
    large = [part for part in parts.values() if part.nbytes > w.nbytes // 8]
    assert large
    assert all(map(is_mapped, large))
    assert taken < places + w.nbytes // 8
    assert w.resident_nbytes <= places + w.nbytes // 8


@pytest.mark.parametrize("scheme", ["int4-g128", "int8", "bitmask+float16", "float8"])
def test_products_with_the_files_of_compressed_tensors_copy_nothing(scheme: str, tmp_path: Path) -> None:
    pm.save(tmp_path / "a.safetensors", {"fc.weight": pm.compress(pm.prune(W, pattern="2:4"), scheme)})
    if scheme == "float8":
        with pm.load(tmp_path / "a.safetensors") as m:
            parts = {"fc.weight": m.raw("fc.weight"), "fc.weight_scale": m.raw("fc.weight_scale")}
            (tmp_path / "b.safetensors").write_bytes(foreign(parts))
    else:
        pm.export(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "ct")
    assert "pumice.manifest" not in pm.load(tmp_path / "b.safetensors").metadata
    taken, w = multiplied(tmp_path / "b.safetensors", "fc.weight")
    assert w.scheme == scheme
    assert taken < w.nbytes // 4  # of bitmask+float16, 10 % is the bitmask


def foreign(parts: dict[str, memoryview]) -> bytes:
    """A file of float8 and its scales, as another program writes it."""
    first, second = map(len, parts.values())
    table = {
        "fc.weight": {"dtype": "F8_E4M3", "shape": list(W.shape), "data_offsets": [0, first]},
        "fc.weight_scale": {"dtype": "F32", "shape": [len(W), 1], "data_offsets": [first, first + second]},
    }
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts.values())


@pytest.mark.parametrize("form", ["npy", "npz", "pt", "gguf", "safetensors"])
def test_products_with_plain_arrays_copy_nothing(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"w.{form}"
    if form == "npy":
        np.save(path, W)
    elif form == "npz":
        np.savez(path, w=W)
    elif form == "pt":
        from tests.fuzz.torch_bytes import archive

        pickled = state(w=tensor(shape=W.shape, strides=(W.shape[1], 1), count=W.size))
        path.write_bytes(archive(pickled, _0=W.tobytes()))
    elif form == "gguf":
        path.write_bytes(b.file(rows=[b.row("w", W.shape[::-1], 0, 0)], data=W.tobytes()))
    else:
        pm.save(path, {"w": W})
    taken, w = multiplied(path, "w")
    assert is_mapped(w)
    assert taken < w.nbytes // 4
    np.testing.assert_array_equal(w, W)
