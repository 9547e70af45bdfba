"""Goldens of AWQ (version GEMM), packed and decoded by AutoAWQ 0.2.9; nothing of pumice is imported here.

python3.11 -m venv V && V/bin/pip install torch==2.13.0 setuptools wheel packaging
V/bin/pip install numpy safetensors transformers accelerate
V/bin/pip install --no-deps --no-build-isolation autoawq==0.2.9
V/bin/python tests/golden/make_awq.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from awq.modules.linear.gemm import WQLinear_GEMM
from awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import save_file

HERE = Path(__file__).parent / "awq"
EXPECTED: dict[str, np.ndarray] = {}


def packed(rng: np.random.Generator, rows: int, cols: int, group: int):
    """(tensors, decoded weight) of one module: scales of both signs, zeros with 0 and 15."""
    groups = cols // group
    scales = (rng.choice([-1, 1], (groups, rows)) * rng.uniform(0.01, 0.1, (groups, rows))).astype(np.float16)
    zeros = rng.integers(0, 16, (groups, rows))
    zeros[0, 0], zeros[0, 1] = 0, 15
    codes = rng.integers(0, 16, (cols, rows))
    by_column = np.arange(cols) // group
    wide = scales.astype(np.float64)[by_column]
    linear = torch.nn.Linear(cols, rows, bias=False)
    linear.weight.data = torch.from_numpy((wide * (codes - zeros[by_column])).T.astype(np.float32))
    given = torch.from_numpy(scales.astype(np.float32)), torch.from_numpy(zeros.astype(np.float32))
    module = WQLinear_GEMM.from_linear(linear, 4, group, scales=given[0], zeros=given[1])
    tensors = {name: getattr(module, name).contiguous() for name in ("qweight", "qzeros", "scales")}
    decoded = dequantize_gemm(module.qweight, module.qzeros, module.scales.float(), 4, group)
    return tensors, decoded.T.contiguous().numpy()


def save(name: str, config_file: str, config: dict, modules: dict) -> None:
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{module}.{part}": tensor for module, (found, _) in modules.items() for part, tensor in found.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / config_file).write_text(json.dumps(config, indent=1) + "\n")
    EXPECTED.update({f"{name}/{module}": decoded for module, (_, decoded) in modules.items()})


def main() -> None:
    rng = np.random.default_rng(307)
    settings = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    modules = {"fc": packed(rng, 32, 64, 32), "wide": packed(rng, 64, 32, 32)}
    save("transformers", "config.json", {"quantization_config": settings}, modules)
    settings = {"zero_point": True, "q_group_size": 16, "w_bit": 4, "version": "GEMM"}
    save("autoawq", "quant_config.json", settings, {"fc": packed(rng, 32, 48, 16)})
    np.savez_compressed(HERE / "expected.npz", **EXPECTED)


if __name__ == "__main__":
    main()
