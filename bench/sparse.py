"""Families of the sparse suites: pumice's layouts, its dense schemes, NumPy, SciPy, torch and MKL on equal weights.

SciPy, torch and MKL multiply by x.T, which they get transposed beforehand, and give y.T.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import weights
from cases import kind_of
from harness import Case, Setting, Skip
from results import NUMPY

CHECKED = 1 << 21  # weights that y is held against
SLICE, GRID_SLICE = 0.03, 0.02  # seconds that a case is timed for, a round: there are many
WARM = 16  # rows that prepare a copy for any larger batch
BOTH = ("int16", "int8")
DENSE = {"int8": BOTH, "int4-g128": BOTH}
BLOCKS = ("16x16", "16x4", "4x4")
MODEL_SCHEMES = ("int8", "int4-g32", "csr", "csr+int8", "bitmask", "bitmask+int8", "bitmask+int4-g32")


def found(setting: Setting) -> dict[str, np.ndarray]:
    return weights.weights(setting.rows, setting.cols, setting.weight)


def facts(setting: Setting) -> dict[str, float]:
    share = weights.sparsity(setting.weight)
    return {} if share is None else {"sparsity": share}


def numpy(setting: Setting) -> Iterator[Case | Skip]:
    ws = list(found(setting).values())
    nbytes = sum(w.nbytes for w in ws)
    copies = [ws, *([w.copy() for w in ws] for _ in range(setting.copies(nbytes) - 1))]
    case = Case(NUMPY, "float32", nbytes // len(ws), copies, _products(ws, lambda x, w: x @ w.T), products=len(ws))
    case.facts = facts(setting) | {"resident": nbytes}
    if setting.weight in weights.SHAPES:
        case.facts["disk"] = disk(found(setting))
    case.exact = (lambda: ws[0]) if len(ws) == 1 else None
    case.checked, case.warm, case.slice = CHECKED, WARM, SLICE
    yield case


def _products(ws: list[np.ndarray], multiply: Callable[[Any, Any], Any]) -> Callable[[np.ndarray], Any]:
    """`prepare` of a case whose copies are lists of matrices: all are multiplied, and the first one's y is given."""

    def prepare(x: np.ndarray) -> Any:
        xs = [np.ascontiguousarray(np.resize(x.T, (w.shape[1], len(x))).T) for w in ws]

        def product(copy: list[Any]) -> Any:
            ys = [multiply(x, w) for x, w in zip(xs, copy, strict=True)]
            return ys[0]

        return product

    return prepare


def pumice(setting: Setting, schemes: dict[str, tuple[str, ...]], weight: str | None = None) -> Iterator[Case]:
    """Every scheme with every mode of activations; ("",) is the only one of float32."""
    import pumice as pm

    pm.set_num_threads(setting.threads)
    named = weights.weights(setting.rows, setting.cols, setting.weight if weight is None else weight)
    for scheme, modes in schemes.items():
        compact = {name: pm.compress(w, scheme) for name, w in named.items()}
        nbytes = sum(c.nbytes for c in compact.values())
        copies = [[_again(c) for c in compact.values()] for _ in range(setting.copies(nbytes))]
        known = facts(setting)
        if setting.weight in weights.SHAPES:
            known["disk"] = disk(compact)
        if setting.weight.startswith("minilm"):
            known["cosine"] = weights.minilm_cosine(dict(compact))
        for mode in modes:
            case = Case(
                f"pumice {scheme}" + (f", {mode} activations" if mode else ""), kind_of(scheme), nbytes // len(named),
                copies, _products(list(named.values()), lambda x, c, mode=mode: c.linear(x, activations=mode or None)),
                products=len(named), facts=dict(known), resident=lambda copies=copies: _resident(copies[0]),
                checked=CHECKED, warm=WARM, slice=SLICE,
            )  # fmt: skip
            if len(named) == 1:
                case.exact = next(iter(compact.values())).to_dense
            yield case


def _again(compact: Any) -> Any:
    import pumice as pm
    from pumice.memory import copied

    return pm.from_parts(compact.scheme, compact.shape, {name: copied(part) for name, part in compact.parts().items()})


def _resident(copy: list[Any]) -> int:
    return sum(c.resident_nbytes for c in copy)


def disk(arrays: dict[str, Any]) -> int:
    """Bytes of a file with these alone."""
    import pumice as pm

    with tempfile.TemporaryDirectory() as folder:
        pm.save(Path(folder) / "w.safetensors", arrays)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


def dense(setting: Setting) -> Iterator[Case | Skip]:
    yield from pumice(setting, DENSE)


def dense_bfloat16(setting: Setting) -> Iterator[Case | Skip]:
    yield from pumice(setting, {"bfloat16": ("",)})


def csr(setting: Setting) -> Iterator[Case | Skip]:
    yield from pumice(setting, {"csr": ("",), "csr+int8": BOTH})


def bsr(setting: Setting) -> Iterator[Case | Skip]:
    layout = setting.weight.split()[0]
    yield from pumice(setting, {layout: ("",), f"{layout}+int8": BOTH})


def bitmask(setting: Setting) -> Iterator[Case | Skip]:
    modes = {"bitmask+int8": BOTH, "bitmask+int4-g128": BOTH, "bitmask": ("",), "bitmask+bfloat16": ("",)}
    yield from pumice(setting, modes)


def two_of_four(setting: Setting) -> Iterator[Case | Skip]:
    if weights.sparsity(setting.weight) == 0.5:
        yield from pumice(setting, {"2:4+int8": BOTH, "2:4+int4-g128": BOTH}, "2:4")


def grid(setting: Setting) -> Iterator[Case | Skip]:
    """Every layout at one sparsity, each on weights with the zeros that it is for; an error of a part of the rows."""
    share = setting.weight.split()[1]
    one = ("int16",)
    cases = [
        *pumice(setting, {"int8": one, "int4-g128": one}),
        *pumice(setting, {"csr": ("",), "csr+int8": one, "bitmask": ("",), "bitmask+int8": one}),
        *pumice(setting, {"bitmask+int4-g128": one}),
    ]
    if share == "0.5":
        cases += pumice(setting, {"2:4+int8": one, "2:4+int4-g128": one}, "2:4")
    for block in BLOCKS:
        schemes = {f"bsr-{block}": ("",)} | ({"bsr-16x4+int8": one} if block == "16x4" else {})
        cases += pumice(setting, schemes, f"bsr-{block} {share}")
    for case in cases:
        case.checked, case.slice = 1 << 19, GRID_SLICE
    yield from cases


def real(setting: Setting) -> Iterator[Case | Skip]:
    """A trained network in the schemes that are for it."""
    if setting.weight.startswith("minilm"):
        pruned_schemes = MODEL_SCHEMES if weights.sparsity(setting.weight) else MODEL_SCHEMES[:2]
        yield from pumice(setting, {s: ("int16",) if "int" in s else ("",) for s in pruned_schemes})
        return
    modes = {"csr": ("",), "csr+int8": BOTH, "bitmask": ("",), "bitmask+int8": BOTH}
    yield from pumice(setting, {"int8": BOTH, "int4-g128": BOTH, **modes, "bsr-4x4": ("",), "bsr-4x4+int8": BOTH})


def real_numpy(setting: Setting) -> Iterator[Case | Skip]:
    for case in numpy(setting):
        assert isinstance(case, Case)
        if setting.weight.startswith("minilm"):
            case.facts["cosine"] = weights.minilm_cosine(found(setting))
        yield case


# Peers.


def _sparse_case(setting: Setting, name: str, build: Callable[[Any], Any], prepare: Any, block: Any) -> Case:
    import scipy.sparse as sp

    (w,) = found(setting).values()
    matrix = sp.csr_matrix(w) if block is None else sp.bsr_matrix(w, blocksize=block)
    nbytes = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    copies = [build(matrix.copy()) for _ in range(setting.copies(nbytes))]
    known = facts(setting) | {"resident": nbytes}
    return Case(
        name, "float32", nbytes, copies, prepare, lambda: w, facts=known, checked=CHECKED, warm=WARM, slice=SLICE
    )


def _transposed(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.T)


def scipy(setting: Setting) -> Iterator[Case | Skip]:
    def prepare(x: np.ndarray) -> Any:
        t = _transposed(x) if len(x) > 1 else x[0]
        return lambda c: (c @ t).T.reshape(len(x), -1)

    block = weights.blocksize(setting.weight)
    for form in [None, block] if setting.weight.startswith("lyra") else [block]:
        yield _sparse_case(setting, f"SciPy {'csr' if form is None else 'bsr'} float32", lambda m: m, prepare, form)


def torch(setting: Setting) -> Iterator[Case | Skip]:
    import torch

    torch.set_num_threads(setting.threads)
    torch.set_grad_enabled(False)

    def build(m: Any) -> Any:
        parts = (torch.from_numpy(part) for part in (m.indptr, m.indices, m.data))
        return torch.sparse_csr_tensor(*parts, m.shape)

    def prepare(x: np.ndarray) -> Any:
        t = _transposed(x)
        return lambda c: (c @ torch.from_numpy(t)).T

    yield _sparse_case(setting, "torch csr float32", build, prepare, None)


def mkl(setting: Setting) -> Iterator[Case | Skip]:
    """As sparse_dot_mkl calls it, a handle for every product; and a handle that is kept and optimized."""
    block = weights.blocksize(setting.weight) if setting.weight.startswith("bsr") else None
    name = "MKL csr" if block is None else "MKL bsr"
    if block is not None and block[0] != block[1]:
        yield Skip(name, f"expected square blocks, got {block[0]} x {block[1]}")
        return
    os.environ.setdefault("MKL_RT", str(next((Path(sys.prefix) / "lib").glob("libmkl_rt.so*"), "")))
    import sparse_dot_mkl

    def prepare(x: np.ndarray) -> Any:
        t = _transposed(x) if len(x) > 1 else x[0]
        return lambda c: sparse_dot_mkl.dot_product_mkl(c, t).T.reshape(len(x), -1)

    yield _sparse_case(setting, name, lambda m: m, prepare, block)
    kept = _sparse_case(setting, f"{name}, kept handle", _Handle, lambda x: _optimized(x, setting.rows), block)
    kept.warm = None  # a handle is optimized for a batch
    yield kept


class _Handle:
    """An MKL handle, optimized for each batch when it is first seen."""

    def __init__(self, matrix: Any) -> None:
        from sparse_dot_mkl import _mkl_interface as interface

        self.matrix = matrix
        self.handle = interface._create_mkl_sparse(matrix)[0]
        self.batches: set[int] = set()

    def optimize(self, batch: int) -> None:
        if batch in self.batches:
            return
        from sparse_dot_mkl import _mkl_interface as interface

        self.batches.add(batch)
        library = ctypes.CDLL(os.environ["MKL_RT"])
        descriptor = interface.matrix_descr()
        if batch == 1:
            library.mkl_sparse_set_mv_hint(self.handle, 10, descriptor, 1000)
        else:
            library.mkl_sparse_set_mm_hint(self.handle, 10, descriptor, 101, batch, 1000)
        library.mkl_sparse_optimize(self.handle)


def _optimized(x: np.ndarray, rows: int) -> Any:
    from sparse_dot_mkl import _mkl_interface as interface

    batch = len(x)
    t = _transposed(x) if batch > 1 else x[0]
    descriptor = interface.matrix_descr()
    as_float, shape = ctypes.POINTER(ctypes.c_float), (101, t, batch, batch)

    def product(c: _Handle) -> np.ndarray:
        c.optimize(batch)
        y = np.empty((rows, batch), np.float32)
        out = y.ctypes.data_as(as_float)
        if batch == 1:
            status = interface.MKL._mkl_sparse_s_mv(10, 1.0, c.handle, descriptor, t, 0.0, y.reshape(-1))
        else:
            status = interface.MKL._mkl_sparse_s_mm(10, 1.0, c.handle, descriptor, *shape, 0.0, out, batch)
        if status:
            raise RuntimeError(f"MKL: status {status}")
        return y.T

    return product


def scipy_real(setting: Setting) -> Iterator[Case | Skip]:
    """Of the matrices that are sparse enough for SciPy to be a choice."""
    if setting.weight.startswith("lyra"):
        yield from scipy(setting)


# From dense to sparse.

ROWS_FIRST = 64  # converted before a peak is taken
CONVERTED = {
    "random": ("csr", "csr+int8", "bitmask", "bitmask+int8", "bitmask+int4-g128"),
    "2:4": ("2:4", "2:4+int8", "2:4+int4-g128"),
}


def _conversion(setting: Setting, name: str, kind: str, convert: Callable[[Any], Any], size: Callable) -> Case:
    """Of the whole matrix; the peak is taken first, in a process of its own, before any memory was used and freed."""
    (w,) = found(setting).values()
    nbytes, peak = _peak(lambda: size(convert(w)), lambda: convert(w[:ROWS_FIRST].copy()))
    copies = [w, *(w.copy() for _ in range(setting.copies(w.nbytes) - 1))]

    def prepare(x: np.ndarray) -> Any:
        def product(c: np.ndarray) -> None:
            convert(c)

        return product

    return Case(name, kind, nbytes, copies, prepare, facts=facts(setting) | {"peak": peak / nbytes})


def _peak(run: Callable[[], int], first: Callable[[], object]) -> tuple[int, int]:
    """What `run` gives in a child, and by how much that child's resident memory grew at its highest.

    `first` runs before: a library's own code, once for all conversions, is not memory of this one.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            first()
            getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # memory that was freed must not pass for no memory
            Path("/proc/self/clear_refs").write_text("5")
            before = _status("VmRSS")
            result = run()
            os.write(write, f"{result} {_status('VmHWM') - before}".encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read().split()
    os.waitpid(child, 0)
    if len(answer) != 2:
        raise RuntimeError("the conversion failed in a child process")
    return int(answer[0]), int(answer[1])


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


def convert(setting: Setting) -> Iterator[Case | Skip]:
    import pumice as pm

    kind = setting.weight.split()[0]
    for scheme in CONVERTED.get(kind, (kind, f"{kind}+int8")):
        name = f"pumice {scheme}"
        yield _conversion(setting, name, kind_of(scheme), lambda w, s=scheme: pm.compress(w, s), lambda c: c.nbytes)


def convert_scipy(setting: Setting) -> Iterator[Case | Skip]:
    import scipy.sparse as sp

    def size(m: Any) -> int:
        return int(m.data.nbytes + m.indices.nbytes + m.indptr.nbytes)

    yield _conversion(setting, "SciPy csr_array(w)", "float32", sp.csr_array, size)
    block = weights.blocksize(setting.weight)
    if block is not None:
        name = f"SciPy bsr_array(w, {block})"
        yield _conversion(setting, name, "float32", lambda w: sp.bsr_array(w, blocksize=block), size)
