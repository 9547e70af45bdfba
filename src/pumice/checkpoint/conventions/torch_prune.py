"""`torch.nn.utils.prune` keeps ``X_orig`` and ``X_mask`` instead of ``X``, until `prune.remove`: X is their product."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint.base import TensorInfo
from pumice.checkpoint.container import Container
from pumice.checkpoint.conventions.base import Convention, Found, register
from pumice.checkpoint.dtypes import widen
from pumice.errors import FormatError
from pumice.pruning.masks import masked_pairs

FLOATS = ("F64", "F32", "F16", "BF16")


@register
class TorchPrune(Convention):
    """The pairs of floating-point tensors of one shape, a mask in the dtype of its weights, as torch makes it."""

    name = "torch.prune"

    def find(self, container: Container, free: Collection[str]) -> Iterator[Found]:
        for name, (original, mask) in masked_pairs(free).items():
            weights, kept = container.entry(original), container.entry(mask)
            if weights.dtype not in FLOATS:
                continue
            if kept.shape != weights.shape or kept.dtype not in (weights.dtype, "BOOL", "F32", "U8"):
                rule = f"a mask of shape {weights.shape} for {original!r}"
                raise FormatError(container.where(mask), mask, rule, f"{kept.dtype} {kept.shape}", None)
            info = TensorInfo(weights.shape, weights.dtype, weights.nbytes, notes={"mask": mask})
            yield Found(name, info, (original, mask), partial(_product, container, original, mask))


def _product(container: Container, original: str, mask: str) -> NDArray[Any]:
    """In the stored dtype, BF16 as patterns. The mask is of ones and zeros, so nothing is rounded; 0 * NaN is NaN."""
    dtype = container.entry(original).dtype
    weights, kept = widen(container.read(original), dtype), widen(container.read(mask), container.entry(mask).dtype)
    if not ((kept == 0) | (kept == 1)).all():
        raise FormatError(container.where(mask), mask, "a mask of zeros and ones", "other values", None)
    product: NDArray[Any] = np.asarray(weights * kept.astype(weights.dtype))
    if dtype == "BF16":
        return (product.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return product
