"""AWQ, version GEMM: `qweight`, `qzeros` and `scales` of a module are its `weight`.

    qweight   I32 (in, out / 8)        codes of 4 bits
    qzeros    I32 (groups, out / 8)    zeros, likewise
    scales    F16, BF16 or F32 (groups, out)

    weight[o, i] = scales[i / group, o] * (code[i, o] - zero[i / group, o])

The eight fields of a word, lowest bits first, belong to the outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight.

Specification: the packing of github.com/casper-hansen/AutoAWQ (0.2.9), `WQLinear_GEMM`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint.container import Container
from pumice.checkpoint.conventions.affine import Affine
from pumice.checkpoint.conventions.base import Convention, Found, modules, register
from pumice.checkpoint.conventions.settings import as_text, matrix, method_of, refusal, said
from pumice.checkpoint.dtypes import widen
from pumice.layouts import CompactArray
from pumice.values.base import F32

FIELDS = 8  # of a word
OUTPUT_OF_FIELD = (0, 2, 4, 6, 1, 3, 5, 7)
PARTS = ("qweight", "qzeros", "scales")


@register
class AWQ(Convention):
    name = "awq"

    def find(self, container: Container, free: Collection[str]) -> Iterator[Found]:
        prefixes = list(modules(free, *PARTS))
        method = method_of(container.config) if prefixes else ""
        if method not in ("awq", None):
            return
        for prefix in prefixes:
            weight, scales = (container.entry(prefix + part).shape for part in ("qweight", "scales"))
            if method == "awq" or (len(weight) == len(scales) == 2 and FIELDS * weight[1] == scales[1]):
                yield _found(container, prefix)


def _found(container: Container, prefix: str) -> Found:
    tensors = tuple(prefix + part for part in PARTS)
    _check_config(container, tensors[0])
    weight = matrix(container, tensors[0], ("I32",))
    zeros = matrix(container, tensors[1], ("I32",))
    scales = matrix(container, tensors[2], ("F16", "BF16", "F32"))
    (cols, words), (groups, rows) = weight.shape, scales.shape
    if FIELDS * words != rows or zeros.shape != (groups, words):
        got = f"qweight {list(weight.shape)}, scales {list(scales.shape)}, qzeros {list(zeros.shape)}"
        rule = "qweight (in, out / 8), scales (groups, out) and qzeros (groups, out / 8), as AWQ has them"
        raise refusal(container, tensors[2], rule, got, "these are the shapes of GPTQ" if words == rows else None)
    claimed = said(container.config, "group_size", "q_group_size")
    group = cols // groups
    if groups * group != cols or (claimed and group not in [cols if size == -1 else size for size in claimed]):
        rule = (
            f"groups of {as_text(claimed)} columns, as the config says" if claimed else "groups of equally many columns"
        )
        raise refusal(container, tensors[2], rule, f"{groups} groups of {cols} columns")
    half = container.entry(tensors[2]).dtype == "F16"
    affine = Affine((rows, cols), 4, None if groups == 1 else group, True, half)
    info = affine.info(sum(container.entry(name).nbytes for name in tensors))
    return Found(prefix + "weight", info, tensors, partial(read_module, container, prefix, affine))


def _check_config(container: Container, tensor: str) -> None:
    """Other bits and versions have other orders, which no two of their kernels share."""
    bits = said(container.config, "bits", "w_bit")
    if bits and bits != [4]:
        raise refusal(container, tensor, "AWQ of 4 bits", f"{as_text(bits)}, as the config says")
    versions = said(container.config, "version", "checkpoint_format", "format")
    if any(not isinstance(version, str) or version.lower() != "gemm" for version in versions):
        raise refusal(container, tensor, "AWQ of version gemm", as_text(versions), "export it as gemm")


def read_module(container: Container, prefix: str, affine: Affine) -> CompactArray | F32:
    """The weight of a module, with its own codes, scales and zeros."""
    codes, zeros = (by_output(container.read(prefix + part)) for part in ("qweight", "qzeros"))
    scales = widen(container.read(prefix + "scales"), container.entry(prefix + "scales").dtype)
    return affine.array(codes, scales.T, zeros)


def by_output(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """(n, out / 8) words -> (out, n) codes.

    Examples
    --------
    >>> by_output(np.array([[0x75316420]], np.int32)).T
    array([[0, 1, 2, 3, 4, 5, 6, 7]], dtype=uint8)
    """
    columns = np.ascontiguousarray(words.T).view(np.uint32)
    codes = np.empty((len(columns), FIELDS, len(words)), np.uint8)
    for field, output in enumerate(OUTPUT_OF_FIELD):
        codes[:, output] = (columns >> np.uint32(4 * field)) & np.uint32(15)
    return codes.reshape(-1, len(words))
