"""What config.json says of our weights, so that compressed-tensors' loaders (vLLM, transformers) read them.

Specification: the ``quantization_config`` of github.com/vllm-project/compressed-tensors, formats ``pack-quantized`` and
``int-quantized``, and its ``sparsity_config`` of before version 0.15.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pumice.checkpoint.base import Json, TensorInfo
from pumice.scheme import Scheme

WEIGHT = ".weight"
PACKED, BYTES = "pack-quantized", "int-quantized"
VERSION = "0.18.0"  # whose packing of 3, 5 and 6 bits this is


@dataclass(frozen=True)
class Group:
    """Weights that are quantized alike: a config group.

    Parameters
    ----------
    format
        `PACKED`, or `BYTES`: signed codes, one a byte.
    group
        Columns that share a scale; None for a scale a row.
    """

    format: str
    bits: int
    group: int | None
    symmetric: bool

    @classmethod
    def of(cls, scheme: Scheme, format: str = PACKED) -> Group:
        """That of an integer scheme."""
        bits = 8 if format == BYTES else int(scheme.values.removeprefix("int"))
        return cls(format, bits, scheme.group, "asym" not in scheme.flags)


def misfit(name: str, info: TensorInfo) -> str | None:
    """Why a compact array is no ``pack-quantized`` weight; None if it is one.

    Examples
    --------
    >>> import pumice
    >>> misfit("fc.weight", TensorInfo((8, 40), "int4-g32", parts={"packed": "I32"}))
    'a short last group'
    """
    scheme = Scheme.parse(info.dtype)
    if not scheme.dense or "packed" not in info.parts:  # of a sum, loaders would read the first term only
        return "not dense integers"
    if "perm" in info.parts:
        return "columns in another order"
    return odd_place(name, info) or ("minima" if "min" in scheme.flags else None)


def odd_place(name: str, info: TensorInfo) -> str | None:
    """Why a weight's name or shape is none that these loaders know; None if it is."""
    if not name.endswith(WEIGHT):
        return f"a name that does not end in {WEIGHT}"
    if len(info.shape) != 2 or info.in_axis != 1:
        return "not a matrix (out_features, in_features)"
    group = Scheme.parse(info.dtype).group
    return "a short last group" if group is not None and info.shape[1] % group else None


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
    if len(schemes) != 1 or any(misfit(name, info) for name, info in compact.items()):
        return None
    ignore = [name for name, info in infos.items() if len(info.shape) == 2 and name not in compact]
    return quantization_config({Group.of(Scheme.parse(schemes.pop())): [*compact]}, ignore)


def quantization_config(
    groups: Mapping[Group, Sequence[str]],
    ignore: Collection[str],
    sparsity: Mapping[str, Json] | None = None,
) -> dict[str, Json]:
    """The settings of all groups.

    Parameters
    ----------
    groups : mapping of Group to names
        The weights of each.
    ignore : collection of str
        Matrices that are not quantized; only weights of modules count.
    sparsity : mapping, optional
        The ``sparsity_config``.
    """
    formats = {group.format for group in groups}
    table: dict[str, Json] = {"quant_method": "compressed-tensors", "version": VERSION}
    if groups:
        table["format"] = formats.pop() if len(formats) == 1 else "mixed-precision"
        table["quantization_status"] = "compressed"
        table["ignore"] = [*_modules(ignore)]
        mixed = table["format"] == "mixed-precision"
        table["config_groups"] = {
            f"group_{i}": _config_group(group, names, mixed) for i, (group, names) in enumerate(groups.items())
        }
    if sparsity is not None:
        table["sparsity_config"] = {**sparsity}
    return table


def _config_group(group: Group, names: Sequence[str], mixed: bool) -> dict[str, Json]:
    weights: dict[str, Json] = {
        "num_bits": group.bits,
        "type": "int",
        "symmetric": group.symmetric,
        "strategy": "channel" if group.group is None else "group",
        "group_size": group.group,
        "dynamic": False,
    }
    targets: dict[str, Json] = {"targets": [*_modules(names)], "weights": weights}
    return targets | ({"format": group.format} if mixed else {})


def _modules(names: Collection[str]) -> list[str]:
    return sorted(name.removesuffix(WEIGHT) for name in names if name.endswith(WEIGHT))
