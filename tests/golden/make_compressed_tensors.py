"""Makes tests/golden/compressed_tensors/ with the package itself; the tests read what it wrote, and need neither.

    python -m venv ct && ct/bin/pip install torch==2.13.0 && ct/bin/pip install compressed-tensors==0.20.0
    ct/bin/python tests/golden/make_compressed_tensors.py            # what 0.20 writes
    ct/bin/pip install compressed-tensors==0.12.2
    ct/bin/python tests/golden/make_compressed_tensors.py            # what 0.12 wrote

A folder each: model.safetensors and config.json as the package writes them, and in the former two tensors more:
`stored`, what the package makes of the weight, in the dtype of its scales; `exact`, the same with its scales widened
to float32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import compressed_tensors
import torch
from compressed_tensors.config import SparsityCompressionConfig
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
)
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from safetensors.torch import save_file

PLACE = Path(__file__).parent / "compressed_tensors"
NEW = not hasattr(compressed_tensors, "BitmaskCompressor")  # from 0.15 on
ROWS = 7  # no multiple of 8: packed zero points have padding
random = torch.Generator().manual_seed(20)

# name: (format, (rows, cols), dtype of the scales, settings)
NOW: dict[str, tuple[str, tuple[int, ...], torch.dtype, dict[str, Any]]] = {
    "pack-4-group": ("pack-quantized", (ROWS, 96), torch.bfloat16, {"num_bits": 4, "group_size": 32}),
    "pack-4-group-asym": (
        "pack-quantized", (ROWS, 96), torch.float16, {"num_bits": 4, "group_size": 32, "symmetric": False},
    ),
    "pack-4-group-96": ("pack-quantized", (ROWS, 192), torch.bfloat16, {"num_bits": 4, "group_size": 96}),
    "pack-4-group-8": ("pack-quantized", (ROWS, 24), torch.float32, {"num_bits": 4, "group_size": 8}),
    "pack-4-channel-asym": (
        "pack-quantized", (ROWS, 37), torch.bfloat16, {"num_bits": 4, "strategy": "channel", "symmetric": False},
    ),
    "pack-4-tensor": ("pack-quantized", (ROWS, 37), torch.float32, {"num_bits": 4, "strategy": "tensor"}),
    "pack-8-channel": ("pack-quantized", (ROWS, 50), torch.bfloat16, {"num_bits": 8, "strategy": "channel"}),
    "pack-2-group": ("pack-quantized", (ROWS, 64), torch.float16, {"num_bits": 2, "group_size": 16}),
    "pack-1-channel": ("pack-quantized", (ROWS, 45), torch.bfloat16, {"num_bits": 1, "strategy": "channel"}),
    "pack-3-group-asym": (
        "pack-quantized", (ROWS, 64), torch.bfloat16, {"num_bits": 3, "group_size": 32, "symmetric": False},
    ),
    "pack-3-narrow": ("pack-quantized", (ROWS, 20), torch.bfloat16, {"num_bits": 3, "strategy": "channel"}),
    "pack-5-channel-asym": (
        "pack-quantized", (ROWS, 45), torch.float16, {"num_bits": 5, "strategy": "channel", "symmetric": False},
    ),
    "pack-6-group": ("pack-quantized", (ROWS, 64), torch.bfloat16, {"num_bits": 6, "group_size": 32}),
    "pack-7-channel-asym": (
        "pack-quantized", (ROWS, 45), torch.bfloat16, {"num_bits": 7, "strategy": "channel", "symmetric": False},
    ),
    "pack-4-stack": ("pack-quantized", (3, 5, 64), torch.bfloat16, {"num_bits": 4, "group_size": 32}),
    "int-channel": ("int-quantized", (ROWS, 37), torch.bfloat16, {"num_bits": 8, "strategy": "channel"}),
    "int-tensor-asym": (
        "int-quantized", (ROWS, 37), torch.float32, {"num_bits": 8, "strategy": "tensor", "symmetric": False},
    ),
    "int-group-asym": (
        "int-quantized", (ROWS, 96), torch.float16, {"num_bits": 8, "group_size": 32, "symmetric": False},
    ),
    "int-block": (
        "int-quantized", (ROWS, 80), torch.bfloat16, {"num_bits": 8, "strategy": "block", "block_structure": [4, 32]},
    ),
    "naive-4-channel": ("naive-quantized", (ROWS, 37), torch.bfloat16, {"num_bits": 4, "strategy": "channel"}),
    "float-tensor": (
        "float-quantized", (ROWS, 37), torch.float32, {"num_bits": 8, "type": "float", "strategy": "tensor"},
    ),
    "float-channel": (
        "float-quantized", (ROWS, 37), torch.bfloat16, {"num_bits": 8, "type": "float", "strategy": "channel"},
    ),
    "float-group": ("float-quantized", (ROWS, 96), torch.float16, {"num_bits": 8, "type": "float", "group_size": 32}),
    "float-block": (
        "float-quantized", (ROWS, 80), torch.float32,
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [4, 32]},
    ),
}  # fmt: skip

THEN: dict[str, tuple[str, tuple[int, ...], torch.dtype, dict[str, Any]]] = {
    "old-pack-4-group": NOW["pack-4-group"],
    "old-pack-4-act-order": (
        "pack-quantized", (ROWS, 96), torch.bfloat16, {"num_bits": 4, "group_size": 32, "actorder": "group"},
    ),
    "old-pack-3-group-asym": NOW["pack-3-group-asym"],
    "old-pack-3-narrow": NOW["pack-3-narrow"],
    "old-pack-5-channel-asym": NOW["pack-5-channel-asym"],
    "old-pack-6-group": NOW["pack-6-group"],
    "old-pack-7-channel-asym": NOW["pack-7-channel-asym"],
}  # fmt: skip

# name: (format, cols, dtype of the values, settings of the quantization before)
SPARSE: dict[str, tuple[str, int, torch.dtype, dict[str, Any] | None]] = {
    "sparse-float32": ("sparse-bitmask", 37, torch.float32, None),
    "sparse-bfloat16": ("sparse-bitmask", 64, torch.bfloat16, None),
    "sparse-24-float16": ("sparse-24-bitmask", 44, torch.float16, None),
    "sparse-24-bfloat16": ("sparse-24-bitmask", 64, torch.bfloat16, None),
    "sparse-int": ("sparse-bitmask", 37, torch.bfloat16, {"num_bits": 8, "strategy": "channel"}),
    "sparse-int-asym": (
        "sparse-bitmask",
        37,
        torch.bfloat16,
        {"num_bits": 8, "strategy": "channel", "symmetric": False},
    ),
    "sparse-float8": ("sparse-bitmask", 37, torch.bfloat16, {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "sparse-24-int": ("sparse-24-bitmask", 44, torch.bfloat16, {"num_bits": 8, "strategy": "channel"}),
    "sparse-24-int-tensor": ("sparse-24-bitmask", 44, torch.float32, {"num_bits": 8, "strategy": "tensor"}),
    "sparse-24-int-group": ("sparse-24-bitmask", 192, torch.bfloat16, {"num_bits": 8, "group_size": 96}),
    "sparse-24-float8": (
        "sparse-24-bitmask",
        44,
        torch.bfloat16,
        {"num_bits": 8, "type": "float", "strategy": "channel"},
    ),
}


def scales_of(shape: tuple[int, ...], args: QuantizationArgs, dtype: torch.dtype) -> torch.Tensor:
    """Scales of either sign and many magnitudes, as many as the settings want."""
    *rows, cols = shape
    if args.strategy == "block":
        size = tuple(-(-n // b) for n, b in zip(shape, args.block_structure, strict=True))
    else:
        size = {"tensor": (1,), "channel": (*rows, 1), "group": (*rows, cols // (args.group_size or 1))}[args.strategy]
    scales = torch.exp(torch.randn(size, generator=random) * 2 - 4)
    signs = torch.where(torch.rand(size, generator=random) < 0.4, -1.0, 1.0)
    return (scales * signs if args.type == "int" else scales).to(dtype)


def weight_of(shape: tuple[int, ...], scale: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    """Weights that reach both ends of the codes of every scale, and beyond."""
    reach = 2.0 ** (args.num_bits - 1) if args.type == "int" else 448.0
    spread = scale.float()
    if args.strategy == "group":
        spread = spread.repeat_interleave(args.group_size, dim=-1)
    if args.strategy == "block":
        high, wide = args.block_structure
        spread = spread.repeat_interleave(high, 0)[: shape[0]].repeat_interleave(wide, 1)[:, : shape[1]]
    weight = torch.randn(shape, generator=random) * reach / 2 * spread
    weight[..., 0] = 3 * reach * spread[..., 0]
    weight[..., 1] = -3 * reach * spread[..., 1 if spread.shape[-1] > 1 else 0]
    return weight.to(scale.dtype)


def quantized(name: str, form: str, shape: tuple[int, ...], dtype: torch.dtype, settings: dict[str, Any]) -> None:
    args = QuantizationArgs(**settings)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    scale = scales_of(shape, args, dtype)
    state = {"weight": weight_of(shape, scale, args), "weight_scale": scale}
    zeros = None
    if not args.symmetric:
        zeros = torch.randint(-(2 ** (args.num_bits - 1)), 2 ** (args.num_bits - 1), scale.shape, generator=random)
        zeros = zeros.to(torch.int8)
        zeros.view(-1)[0] = -(2 ** (args.num_bits - 1))  # both ends
        zeros.view(-1)[-1] = 2 ** (args.num_bits - 1) - 1
        state["weight_zero_point"] = zeros
    order = None
    if args.actorder is not None:
        order = torch.arange(shape[1], dtype=torch.int32)[torch.randperm(shape[1], generator=random)] // args.group_size
        state["weight_g_idx"] = order.to(torch.int32)
    extra = {"g_idx": order} if order is not None else {}
    codes = quantize(x=state["weight"], scale=scale, zero_point=zeros, args=args, dtype=args.pytorch_dtype(), **extra)
    found = compressed(form, state, scheme)
    expected = [
        dequantize(x_q=codes, scale=s, zero_point=zeros, args=args, **extra) for s in (scale, scale.to(torch.float32))
    ]
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=form, quantization_status=QuantizationStatus.COMPRESSED
    )
    write(name, {f"fc.{key}": value for key, value in found.items()}, expected, config.model_dump())


def compressed(form: str, state: dict[str, torch.Tensor], scheme: QuantizationScheme) -> dict[str, torch.Tensor]:
    """The tensors of a module as the package writes them."""
    if NEW:
        from compressed_tensors.compressors import BaseCompressor

        return dict(BaseCompressor.get_value_from_registry(form).compress(state, scheme))
    from compressed_tensors.compressors import BaseCompressor

    compressor = BaseCompressor.load_from_registry(form, config=None)
    found = compressor.compress({f"fc.{key}": value for key, value in state.items()}, {"fc": scheme})
    return {key.removeprefix("fc."): value for key, value in found.items()}


def sparse(name: str, form: str, cols: int, dtype: torch.dtype, settings: dict[str, Any] | None) -> None:
    from compressed_tensors.compressors import BaseCompressor

    weight = torch.randn((ROWS, cols), generator=random).to(dtype)
    if form == "sparse-bitmask":
        weight[torch.rand(weight.shape, generator=random) < 0.6] = 0
        weight[3] = 0
    else:
        fours = weight.view(-1, 4)
        fours.scatter_(1, torch.rand(fours.shape, generator=random).topk(2, dim=1).indices, 0)
        weight[2, :8] = 0  # places that hold zeros
    config: dict[str, Any] = {}
    state, scheme, zeros = {"fc.weight": weight}, None, None
    if settings is not None:
        args = QuantizationArgs(**settings)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        scale = scales_of((ROWS, cols), args, dtype).abs()
        reach = 60.0 if args.type == "int" else 300.0
        spread = scale.float() if args.strategy != "group" else scale.float().repeat_interleave(args.group_size, dim=1)
        state = {"fc.weight": (weight.float() * reach * spread).to(dtype), "fc.weight_scale": scale}
        if not args.symmetric:
            zeros = torch.randint(-128, 128, scale.shape, generator=random).to(torch.int8)
            state["fc.weight_zero_point"] = zeros
        inner = "float-quantized" if args.type == "float" else "int-quantized"
        state = BaseCompressor.load_from_registry(inner, config=None).compress(state, {"fc": scheme})
        config = QuantizationConfig(
            config_groups={"group_0": scheme}, format=inner, quantization_status=QuantizationStatus.COMPRESSED
        ).model_dump()
    structure = "2:4" if form == "sparse-24-bitmask" else "unstructured"
    settings_of = SparsityCompressionConfig.load_from_registry(form, sparsity_structure=structure, targets=["Linear"])
    compressor = BaseCompressor.load_from_registry(form, config=settings_of)
    found = compressor.compress(state)
    names = [key for key in ("shape", "compressed", "bitmask", "row_offsets") if f"fc.{key}" in found]
    values = compressor.decompress_weight({key: found[f"fc.{key}"] for key in names})
    expected = [values, values.float()]
    if scheme is not None:
        both = (scale, scale.float())
        expected = [dequantize(x_q=values, scale=s, zero_point=zeros, args=scheme.weights) for s in both]
    write(name, found, expected, config | {"sparsity_config": settings_of.model_dump()})


def write(name: str, state: dict[str, torch.Tensor], expected: list[torch.Tensor], config: dict[str, Any]) -> None:
    folder = PLACE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors = {key: value.contiguous() for key, value in state.items()}
    tensors |= {"stored": expected[0].clone(), "exact": expected[1].float().clone()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"quant_method": "compressed-tensors", "version": compressed_tensors.__version__} | config
    text = json.dumps({"quantization_config": config}, indent=1, sort_keys=True, default=str)
    (folder / "config.json").write_text(text + "\n")


if __name__ == "__main__":
    print(f"compressed-tensors {compressed_tensors.__version__}")
    for case, values in (NOW if NEW else THEN).items():
        quantized(case, *values)
    if not NEW:
        for case, rest in SPARSE.items():
            sparse(case, *rest)
