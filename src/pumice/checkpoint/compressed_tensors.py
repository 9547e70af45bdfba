"""What config.json says of our dense integers, so that compressed-tensors' loaders (vLLM, transformers) read them.

Specification: the ``quantization_config`` of github.com/vllm-project/compressed-tensors, format ``pack-quantized``.
"""

from __future__ import annotations

from collections.abc import Mapping

from pumice.checkpoint.base import Json, TensorInfo
from pumice.scheme import Scheme

WEIGHT = ".weight"


def compressed_tensors_config(infos: Mapping[str, TensorInfo]) -> dict[str, Json] | None:
    """The ``quantization_config`` of a checkpoint; None unless all its compact arrays fit one config group.

    Parameters
    ----------
    infos : mapping of str to TensorInfo
        All arrays of the checkpoint, plain ones too.

    Examples
    --------
    >>> import pumice
    >>> config = compressed_tensors_config({"fc.weight": TensorInfo((8, 64), "int4-g32", parts={"packed": "I32"})})
    >>> config["config_groups"]["group_0"]["weights"]["group_size"]
    32
    """
    compact = {name: info for name, info in infos.items() if info.compact}
    schemes = {info.dtype for info in compact.values()}
    plain_rows = all(
        info.in_axis == 1 and name.endswith(WEIGHT) and len(info.shape) == 2 for name, info in compact.items()
    )
    if len(schemes) != 1 or not plain_rows or any("packed" not in info.parts for info in compact.values()):
        return None
    scheme = Scheme.parse(schemes.pop())
    if not scheme.dense:
        return None  # such as a sum, of which these loaders would read the first term only
    if scheme.group is not None and any(info.shape[1] % scheme.group for info in compact.values()):
        return None  # these loaders know no short last group
    if "min" in scheme.flags:
        return None  # and no minima
    bits = int(scheme.values.removeprefix("int"))
    weights: dict[str, Json] = {
        "num_bits": bits,
        "type": "int",
        "symmetric": "asym" not in scheme.flags,
        "strategy": "channel" if scheme.group is None else "group",
        "group_size": scheme.group,
        "dynamic": False,
    }
    targets = sorted(name.removesuffix(WEIGHT) for name in compact)
    ignore = sorted(
        name.removesuffix(WEIGHT)
        for name, info in infos.items()
        if name.endswith(WEIGHT) and len(info.shape) == 2 and name not in compact
    )
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [*ignore],
        "config_groups": {"group_0": {"targets": [*targets], "weights": weights}},
    }
