"""NumPy's archives, and SciPy's: arrays that `numpy.load` and `scipy.sparse.load_npz` read.

Formats: numpy.lib.format, version 1.0, in a ZIP archive; scipy/sparse/_matrix_io.py.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Mapping
from functools import partial
from typing import IO, Any

import numpy as np

from pumice.checkpoint import TensorInfo
from pumice.checkpoint.dtypes import DTYPES
from pumice.checkpoint.publication import Publication, Staged, refuse_existing
from pumice.exporting.base import Job, is_float, register, rounded
from pumice.report import TensorReport
from pumice.scheme import Scheme
from pumice.values.base import Array

SUFFIX, REST = ".npz", "dense.npz"
OLDEST = (1980, 1, 1, 0, 0, 0)  # of a ZIP entry: the same arrays make the same bytes


@register("npz")
def write_npz(job: Job) -> list[TensorReport]:
    """Write one archive, or a folder with a file for each csr and bsr weight and one for the rest."""
    if job.dtype == "bfloat16":
        raise ValueError("dtype: expected float32 or float16, which NumPy has, got 'bfloat16'")
    infos = job.infos()
    single = not job.into_folder(SUFFIX)
    sparse = [] if single else [name for name, info in infos.items() if info.compact and _is_scipy(info)]
    files = [_file_name(name) for name in sparse]
    if len({REST, *files}) <= len(files):
        raise ValueError(f"names: expected those that make different files, got {', '.join(sorted(files))[:200]}")
    refuse_existing(job.target, single, job.overwrite)
    publication = Publication(job.target.parent if single else job.target)
    reports: dict[str, TensorReport] = {}
    try:
        staged: list[Staged] = []
        for name in sparse:
            staged.append(publication.stage(_file_name(name), partial(_write_scipy, job, name, infos[name], reports)))
        rest = {name: info for name, info in infos.items() if name not in sparse}
        place = job.target.name if single else REST
        staged.append(publication.stage(place, partial(_write_archive, job, rest, reports)))
        with publication.exclusive():
            refuse_existing(job.target, single, job.overwrite)
            publication.publish(staged[-1:], staged[:-1], whole=False)
            publication.finish()
    except BaseException:
        publication.discard()
        raise
    return [reports[name] for name in infos]


def _is_scipy(info: TensorInfo) -> bool:
    """Whether SciPy has such a matrix: its blocks are whole."""
    scheme = Scheme.parse(info.dtype)
    blocksize = (1, 1) if scheme.layout == "csr" else scheme.numbers if scheme.layout == "bsr" else None
    if blocksize is None or len(info.shape) != 2 or info.in_axis != 1:
        return False
    return all(length % size == 0 for length, size in zip(info.shape, blocksize, strict=True))


def _file_name(name: str) -> str:
    """The file of a weight; a name with folders in it stays in one."""
    return name.replace("/", "_").replace("\\", "_") + SUFFIX


def _write_archive(job: Job, infos: Mapping[str, TensorInfo], reports: dict[str, TensorReport], out: IO[bytes]) -> None:
    """Every array, decoded."""
    with zipfile.ZipFile(out, "w") as archive:
        for name, info in infos.items():
            if info.compact or is_float(info.dtype):
                dtype, blocks = np.dtype(job.dtype), job.decoded(name, info.shape)
            else:
                stored = DTYPES[info.dtype].numpy
                if stored is None:
                    raise ValueError(f"{name}: expected a dtype that NumPy has, got {info.dtype}")
                dtype, blocks = stored, job.rows(name, info.shape)
            _write_member(archive, name, dtype, info.shape, blocks)
            nbytes = dtype.itemsize * math.prod(info.shape)
            reports[name] = job.done(name, info, dtype.name, nbytes)


def _write_member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], blocks: Iterable[Array]
) -> None:
    with archive.open(zipfile.ZipInfo(name + ".npy", OLDEST), "w", force_zip64=True) as member:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        for block in blocks:
            member.write(np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8).data)


def _write_scipy(job: Job, name: str, info: TensorInfo, reports: dict[str, TensorReport], out: IO[bytes]) -> None:
    """One matrix, with its values decoded."""
    array = job.reader.array(name)
    data, indices, indptr = array.scipy_arrays()
    kind = "csr" if data.ndim == 1 else "bsr"
    members = {
        "indices": indices,
        "indptr": indptr,
        "format": np.array(kind.encode()),
        "shape": np.array(array.shape, np.int64),
        "data": rounded(data, job.dtype, name),
        "_is_array": np.array(True),
    }
    with zipfile.ZipFile(out, "w") as archive:
        for member, value in members.items():
            _write_member(archive, member, value.dtype, value.shape, [value])
    nbytes = sum(value.nbytes for value in members.values())
    reports[name] = job.done(name, info, kind, nbytes)
