"""compressed-tensors: dense integers as ``pack-quantized``, sparse weights as versions before 0.15 wrote them.

What the tensors hold say `pumice.checkpoint.conventions.compressed_tensors` and `sparse_bitmask`, which read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from pumice.checkpoint import SafetensorsWriter, TensorInfo
from pumice.checkpoint.base import Json, info_of
from pumice.checkpoint.compressed_tensors import BYTES, WEIGHT, Group, misfit, odd_place, quantization_config
from pumice.conversion import CHUNK_BYTES
from pumice.exporting.base import Job, register, rounded
from pumice.layouts import LAYOUTS, CompactArray, from_parts
from pumice.model_folder import CONFIG, copy_side_file, write_config
from pumice.recipe import TABLE
from pumice.report import TensorReport
from pumice.scheme import Scheme
from pumice.values.base import Array

DATA = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "int4": "I8"}


@register("ct")
def write_ct(job: Job) -> list[TensorReport]:
    """Write each weight as compressed-tensors has it, and decoded where it has no place for it."""
    infos, reports = job.infos(), []
    sparse = {name: Scheme.parse(info.dtype) for name, info in infos.items() if _is_sparse(name, info)}
    kind = _Sparse24 if sparse and all(s.numbers == (2, 4) for s in sparse.values()) else _SparseBitmask
    groups: dict[Group, list[str]] = {}
    # Without a manifest: what the tensors are, their names say.
    with SafetensorsWriter(
        job.target, max_shard_size=job.max_shard_size, overwrite=job.overwrite, manifest=False
    ) as writer:
        for name, info in infos.items():
            if not info.compact:
                if job.reader.is_tensor(name):
                    reports.append(job.copy(writer, name, info))
                else:
                    reports.append(job.write_decoded(writer, name, info))
                continue
            array = job.reader.array(name)
            why = None if name in sparse else _misfit(name, info_of(array))
            if why is not None:
                reports.append(job.write_decoded(writer, name, info, f"decoded: {why}"))
                continue
            if name in sparse:
                nbytes, group = kind(writer, name, array).write(), _group_of(sparse[name], BYTES)
            else:
                nbytes, group = _write_parts(writer, name, array), _group_of(Scheme.parse(array.scheme))
            if group is not None:
                groups.setdefault(group, []).append(name)
            reports.append(job.done(name, info, array.scheme, nbytes))
        config = _quantization(infos, groups, kind.config(sparse) if sparse else None)
        for file in job.copied:
            writer.attach(file, partial(copy_side_file, job.source, file, lambda rest: rest | config))
        if config and CONFIG not in job.copied and job.into_folder():
            writer.attach(CONFIG, partial(write_config, config))
        writer.commit()
    return reports


def _misfit(name: str, info: TensorInfo) -> str | None:
    """Why a weight has to be decoded, if so."""
    if TABLE.search(name):
        return "an embedding, which transformers and vLLM look up in plain tables"
    return misfit(name, info)


def _is_sparse(name: str, info: TensorInfo) -> bool:
    """Whether a weight goes to one of the sparse formats."""
    if not info.compact or "perm" in info.parts:
        return False
    scheme = Scheme.parse(info.dtype)
    return (
        not scheme.dense
        and not scheme.terms
        and scheme.values in DATA
        and not TABLE.search(name)
        and odd_place(name, info) is None
    )


def _group_of(scheme: Scheme, *form: str) -> Group | None:
    """The config group of integers; None of floats."""
    return Group.of(scheme, *form) if scheme.values.startswith("int") else None


def _quantization(
    infos: Mapping[str, TensorInfo], groups: Mapping[Group, list[str]], sparsity: Mapping[str, Json] | None
) -> dict[str, Any]:
    """What config.json gets."""
    if not groups and sparsity is None:
        return {}
    quantized = {name for names in groups.values() for name in names}
    ignore = [name for name, info in infos.items() if len(info.shape) == 2 and name not in quantized]
    ordered = dict(sorted(groups.items(), key=lambda item: -len(item[1])))  # some loaders take the first for all
    return {"quantization_config": quantization_config(ordered, ignore, sparsity)}


def _write_parts(writer: SafetensorsWriter, name: str, array: CompactArray) -> int:
    """Write the parts of a dense array, which are the tensors of ``pack-quantized``."""
    for part, block in array.parts().items():
        _write(writer, f"{name}_{part}", array.part_dtype(part), block)
    return array.nbytes


def _write(writer: SafetensorsWriter, name: str, dtype: str, block: Array) -> int:
    writer.begin(name, TensorInfo(block.shape, dtype, block.nbytes))
    writer.write("", block)
    return block.nbytes


class _SparseBitmask:
    """A weight as ``sparse-bitmask``: what is not 0, row after row."""

    format, structure = "sparse-bitmask", "unstructured"
    shape: tuple[int, ...] = (2,)

    def __init__(self, writer: SafetensorsWriter, name: str, array: CompactArray) -> None:
        self.writer, self.prefix, self.array = writer, name.removesuffix("weight"), array
        self.scheme = Scheme.parse(array.scheme)
        self.scale = array.parts().get("scale")

    @classmethod
    def config(cls, names: Mapping[str, object]) -> dict[str, Json]:
        """The ``sparsity_config``."""
        targets: list[Json] = [*sorted(name.removesuffix(WEIGHT) for name in names)]
        return {"format": cls.format, "sparsity_structure": cls.structure, "targets": targets, "ignore": []}

    def write(self) -> int:
        """Write its tensors; returns their bytes. Which places have values is seen before the values are written."""
        rows, cols = self.array.shape
        shape = np.array(self.array.shape, np.int64).reshape(self.shape)
        nbytes = _write(self.writer, self.prefix + "shape", "I64", shape)
        bitmask_shape = (rows, -(-cols // 8))
        self.writer.begin(self.prefix + "bitmask", TensorInfo(bitmask_shape, "U8"))
        counts = []
        for values, start in self._panels():
            places = self._places(values, start)
            counts.append(places.sum(axis=1, dtype=np.int64))
            self.writer.write("", np.packbits(places, axis=1, bitorder="little"))
        per_row = np.concatenate(counts)
        nbytes += rows * bitmask_shape[1] + self._write_offsets(per_row)
        dtype = DATA[self.scheme.values]
        self.writer.begin(self.prefix + "compressed", TensorInfo(self._values_shape(per_row), dtype))
        for values, start in self._panels():
            stored = values[self._places(values, start)]
            self.writer.write("", stored)
            nbytes += stored.nbytes
        if self.scale is not None:
            kind = "F16" if self.scale.dtype == np.float16 else "F32"
            nbytes += _write(self.writer, self.prefix + "weight_scale", kind, self.scale)
        return nbytes

    def _panels(self) -> Iterator[tuple[Array, int]]:
        """(rows as stored, first row): float patterns, or signed codes."""
        array = self.array
        if self.scale is not None:  # codes are what scales of 1 make of them
            parts = array.parts() | {"scale": np.ones_like(self.scale)}
            array = from_parts(array.scheme, array.shape, parts)
        unit = LAYOUTS[self.scheme.layout].chunk_rows(self.scheme)
        step = max(1, CHUNK_BYTES // (4 * max(array.shape[1], 1)) // unit) * unit
        for start in range(0, array.shape[0], step):
            rows = array[start : start + step].to_dense()
            yield (rows.astype(np.int8) if self.scale is not None else rounded(rows, self.scheme.values, "")), start

    def _places(self, values: Array, start: int) -> Array:
        """Which values are stored."""
        magnitude = values & np.uint16(0x7FFF) if self.scheme.values == "bfloat16" else values
        places: Array = magnitude != 0
        return places

    def _values_shape(self, counts: Array) -> tuple[int, ...]:
        return (int(counts.sum()),)

    def _write_offsets(self, counts: Array) -> int:
        return _write(self.writer, self.prefix + "row_offsets", "I64", np.cumsum(counts) - counts)


class _Sparse24(_SparseBitmask):
    """A weight as ``sparse-24-bitmask``: two of every four, zeros among them where there are fewer."""

    format, structure = "sparse-24-bitmask", "2:4"
    shape = (2, 1)

    def _places(self, values: Array, start: int) -> Array:
        bitmask = self.array.parts()["bitmask"][start : start + len(values)]
        return np.unpackbits(bitmask, axis=1, count=values.shape[1], bitorder="little").astype(bool)

    def _values_shape(self, counts: Array) -> tuple[int, ...]:
        rows, cols = self.array.shape
        return rows, cols // 2

    def _write_offsets(self, counts: Array) -> int:
        return 0
