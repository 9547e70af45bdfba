"""Goldens of scaled float8, written and decoded by transformers 5.24.0 and torch; nothing of pumice is imported here.

    python3.11 -m venv V && V/bin/pip install torch==2.13.0 numpy safetensors transformers==5.24.0
    V/bin/python tests/golden/make_float8.py

Blocks are those of `Fp8Quantize` and `Fp8Dequantize` (quant_method fp8), which take whole blocks only; blocks that are
cut at the edges are multiplied as DeepSeek's inference/kernel.py does it, by torch. Scales of a row and of the tensor
are torch's own cast and product.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

HERE = Path(__file__).parent / "float8"
FLOAT8 = torch.float8_e4m3fn
EXPECTED: dict[str, np.ndarray] = {}


def weights(rng: np.random.Generator, rows: int, cols: int) -> torch.Tensor:
    spread = np.exp2(rng.uniform(-8, 4, (rows, cols)))
    w = torch.from_numpy((rng.standard_normal((rows, cols)) * spread).astype(np.float32))
    w[0, 0], w[-1, -1] = -0.0, 0.0
    return w


def blocks(w: torch.Tensor, block: int, scale_dtype: torch.dtype | None = None):
    """(tensors, decoded weight) in whole blocks, by transformers."""
    settings = SimpleNamespace(weight_block_size=[block, block], scale_fmt="float")
    quantizer = SimpleNamespace(quantization_config=settings)
    found = Fp8Quantize(quantizer).convert({"fc.weight": w})
    values, scales = found["fc.weight"], found["fc.weight_scale_inv"]
    if scale_dtype is not None:
        scales = scales.to(scale_dtype)
    decoded = Fp8Dequantize(quantizer)._dequantize_one(values, scales, torch.float32)
    return {"weight": values, "weight_scale_inv": scales}, decoded.numpy()


def cut_blocks(w: torch.Tensor, block: int):
    """The same with blocks that are cut at the edges."""
    rows, cols = w.shape
    grid = torch.rand(-(-rows // block), -(-cols // block), generator=torch.Generator().manual_seed(8)) + 0.01
    wide = grid.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :cols]
    values = (w / wide).clamp(-448, 448).to(FLOAT8)
    return {"weight": values, "weight_scale_inv": grid}, (values.float() * wide).numpy()


def scaled(w: torch.Tensor, scale: torch.Tensor):
    """One scale for all, or one a row."""
    wide = scale.float().reshape(-1, 1) if scale.ndim else scale.float()
    values = (w / wide).clamp(-448, 448).to(FLOAT8)
    return {"weight": values, "weight_scale": scale}, (values.float() * wide).numpy()


def save(name: str, config: dict | None, modules: dict) -> None:
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{module}.{part}": tensor for module, (found, _) in modules.items() for part, tensor in found.items()}
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"quantization_config": config}, indent=1) + "\n")
    EXPECTED.update({f"{name}/{module}": decoded for module, (_, decoded) in modules.items()})


def main() -> None:
    rng = np.random.default_rng(834)
    small = {"fc": blocks(weights(rng, 32, 96), 16), "bfloat16": blocks(weights(rng, 16, 48), 16, torch.bfloat16)}
    small["e8m0"] = blocks(weights(rng, 16, 32), 16, torch.float8_e8m0fnu)
    save("blocks16", {"quant_method": "fp8", "weight_block_size": [16, 16]}, small)
    save(
        "blocks48",
        {"quant_method": "fp8", "weight_block_size": [48, 48]},
        {"fc": cut_blocks(weights(rng, 50, 100), 48)},
    )
    save("deepseek", None, {"fc": cut_blocks(weights(rng, 20, 300), 128)})
    others = {
        "scalar": scaled(weights(rng, 8, 24), torch.tensor(0.037)),
        "one": scaled(weights(rng, 8, 24), torch.tensor([0.11])),
        "row": scaled(weights(rng, 12, 24), torch.rand(12) + 0.01),
        "column": scaled(weights(rng, 12, 24), (torch.rand(12, 1) + 0.01).bfloat16()),
    }
    save("weight_scale", {"quant_method": "fp8", "activation_scheme": "static"}, others)
    np.savez_compressed(HERE / "expected.npz", **EXPECTED)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
