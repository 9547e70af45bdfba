"""float8 weights with scales: `weight` F8_E4M3 (out, in) and `weight_scale_inv`, or `weight_scale`.

    weight[o, i] * scale[o / block rows, i / block columns]        blocks, whole or cut at the edges
    weight[o, i] * scale                                           one scale, of shape () or (1,)
    weight[o, i] * scale[o]                                        one a row, of shape (out,) or (out, 1)

In spite of its name `weight_scale_inv` is what values are multiplied by. Scales of other files, such as `input_scale`,
stay tensors of their own.

Specification: github.com/deepseek-ai/DeepSeek-V3 (inference/kernel.py); `quant_method: fp8` of transformers and vLLM.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pumice import layouts
from pumice.checkpoint.base import TensorInfo
from pumice.checkpoint.container import Container
from pumice.checkpoint.conventions.base import Convention, Found, modules, register
from pumice.checkpoint.conventions.grouped import Grouping, scales_of
from pumice.checkpoint.conventions.settings import as_text, refusal
from pumice.layouts import CompactArray

BLOCK = (128, 128)  # where no config says
SCALE_DTYPES = ("F32", "F16", "BF16", "F8_E8M0")
SUFFIXES = ("weight_scale_inv", "weight_scale")


@register
class Float8Blocks(Convention):
    name = "float8_blocks"

    def find(self, container: Container, free: Collection[str]) -> Iterator[Found]:
        for suffix in SUFFIXES:
            for prefix in modules(free, "weight", suffix):
                weight = container.entry(prefix + "weight")
                if weight.dtype == "F8_E4M3" and len(weight.shape) == 2:
                    yield _found(container, prefix + "weight", prefix + suffix)


@dataclass(frozen=True)
class Blocks:
    """Rows and columns that share a scale."""

    rows: int
    cols: int


def _found(container: Container, weight: str, scale: str) -> Found:
    shape = container.entry(weight).shape
    if 0 in shape or container.entry(scale).dtype not in SCALE_DTYPES:
        entry = container.entry(scale)
        got = f"{entry.dtype} of shape {list(entry.shape)} for a weight of {list(shape)}"
        raise refusal(container, scale, f"scales of {', '.join(SCALE_DTYPES)}", got)
    if container.config.get("weight_scale_semantics", "scale") == "inverse":
        raise refusal(container, scale, "scales that values are multiplied by", "weight_scale_semantics 'inverse'")
    blocks = _blocks(container, scale, (shape[0], shape[1]))
    groups = -(-shape[1] // blocks.cols)
    grouping = Grouping.of((container.where(scale), scale), "float8", shape[1], groups, blocks.cols)
    parts = {"": "F8_E4M3", "scale": container.entry(scale).dtype}
    nbytes = container.entry(weight).nbytes + container.entry(scale).nbytes
    info = TensorInfo(shape, grouping.scheme, nbytes, parts)
    return Found(weight, info, (weight, scale), lambda: read_blocks(container, weight, scale, blocks, grouping))


def _blocks(container: Container, scale: str, shape: tuple[int, int]) -> Blocks:
    """The blocks of a weight of this shape: the shape of the scales tells, together with the config."""
    (rows, cols), have = shape, container.entry(scale).shape
    if have in ((), (1,)):
        return Blocks(rows, cols)
    if have in ((rows,), (rows, 1)):
        return Blocks(1, cols)
    claimed = container.config.get("weight_block_size")
    legal = isinstance(claimed, list) and len(claimed) == 2 and all(type(n) is int and n > 0 for n in claimed)
    height, width = claimed if legal and isinstance(claimed, list) else BLOCK
    if have == (-(-rows // height), -(-cols // width)):
        return Blocks(height, width)
    said = f"weight_block_size {as_text([claimed])} of the config" if claimed is not None else f"blocks of {BLOCK}"
    rule = f"one scale, one a row, or one for each block as {said} says"
    raise refusal(container, scale, rule, f"shape {list(have)} for a weight of {list(shape)}")


def read_blocks(container: Container, weight: str, scale: str, blocks: Blocks, grouping: Grouping) -> CompactArray:
    """The weight, with its own codes; a scale of several rows is repeated."""
    codes: Any = container.read(weight)
    rows, cols = codes.shape
    scales = scales_of(container, scale).reshape(-(-rows // blocks.rows), -1)
    by_row = grouping.repeated(scales[np.arange(rows) // blocks.rows], cols)
    return layouts.from_parts(grouping.scheme, (rows, cols), {"": codes, "scale": by_row})
