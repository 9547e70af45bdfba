"""float8 in blocks: `weight` F8_E4M3 (out, in) and `weight_scale_inv`.

    weight[o, i] * weight_scale_inv[o / block rows, i / block columns]    blocks, whole or cut at the edges
    weight[o, i] * weight_scale_inv                                       one scale, of shape () or (1,)
    weight[o, i] * weight_scale_inv[o]                                    one a row, of shape (out,) or (out, 1)

In spite of its name values are multiplied by it. Other scales, such as `input_scale`, stay tensors of their own.
Weights with a `weight_scale` are those of compressed-tensors' `float-quantized`.

Specification: github.com/deepseek-ai/DeepSeek-V3 (inference/kernel.py); `quant_method: fp8` of transformers and vLLM.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial

from pumice.checkpoint.container import Container
from pumice.checkpoint.conventions.base import Convention, Found, modules, register
from pumice.checkpoint.conventions.scaled import Scaled
from pumice.checkpoint.conventions.settings import as_text, refusal
from pumice.checkpoint.dtypes import widen
from pumice.layouts import CompactArray
from pumice.values.base import F32

BLOCK = (128, 128)  # where no config says
SCALE_DTYPES = ("F32", "F16", "BF16", "F8_E8M0")


@register
class Float8Blocks(Convention):
    name = "float8_blocks"

    def find(self, container: Container, free: Collection[str]) -> Iterator[Found]:
        for prefix in modules(free, "weight", "weight_scale_inv"):
            weight = container.entry(prefix + "weight")
            if weight.dtype == "F8_E4M3" and len(weight.shape) == 2:
                yield _found(container, prefix + "weight")


def _found(container: Container, name: str) -> Found:
    entry, scale = container.entry(name), container.entry(name + "_scale_inv")
    if 0 in entry.shape or scale.dtype not in SCALE_DTYPES:
        got = f"{scale.dtype} of shape {list(scale.shape)} for a weight of {list(entry.shape)}"
        raise refusal(container, name + "_scale_inv", f"scales of {', '.join(SCALE_DTYPES)}", got)
    semantics = container.config.get("weight_scale_semantics")
    if semantics == "inverse":
        raise refusal(container, name + "_scale_inv", "scales that values are multiplied by", "inverse ones")
    scaled = _blocks(container, name, (entry.shape[0], entry.shape[1]))
    info = scaled.info(entry.nbytes + scale.nbytes)
    return Found(name, info, (name, name + "_scale_inv"), partial(read_blocks, container, name, scaled))


def _blocks(container: Container, name: str, shape: tuple[int, int]) -> Scaled:
    """The blocks of a weight of this shape: the shape of the scales tells, together with the config."""
    (rows, cols), have = shape, container.entry(name + "_scale_inv").shape
    if have in ((), (1,)):
        return Scaled(shape, rows, None)
    if have in ((rows,), (rows, 1)):
        return Scaled(shape, 1, None)
    claimed = container.config.get("weight_block_size")
    height, width = BLOCK
    if isinstance(claimed, list) and len(claimed) == 2 and all(type(n) is int and n > 0 for n in claimed):
        height, width = claimed
    if have != (-(-rows // height), -(-cols // width)):
        said = f"weight_block_size {as_text([claimed])} of the config" if claimed is not None else f"blocks of {BLOCK}"
        rule = f"one scale, one a row, or one a block, as {said} has it"
        raise refusal(container, name + "_scale_inv", rule, f"shape {list(have)} for a weight of {list(shape)}")
    return Scaled(shape, height, width)


def read_blocks(container: Container, name: str, scaled: Scaled) -> CompactArray | F32:
    """The weight, with its own codes."""
    scale = name + "_scale_inv"
    return scaled.array(container.read(name), widen(container.read(scale), container.entry(scale).dtype))
