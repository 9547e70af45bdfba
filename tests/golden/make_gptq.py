"""Goldens of GPTQ, packed and decoded by the formats' own code; nothing of pumice is imported here.

    python3.11 -m venv V && V/bin/pip install torch==2.13.0 setuptools wheel packaging
    V/bin/pip install numpy safetensors transformers accelerate
    V/bin/pip install --no-build-isolation gptqmodel==7.7.0
    V/bin/pip download --no-deps --no-build-isolation --no-binary :all: auto-gptq==0.7.1
    tar xzf auto_gptq-0.7.1.tar.gz
    V/bin/python tests/golden/make_gptq.py auto_gptq-0.7.1

GPTQModel packs with `TorchLinear.pack_original`, turns zeros of version 2 into version 1 with its own
`convert_gptq_v2_to_v1_format_module`, and decodes with `dequantize_weight` in float32. AutoGPTQ no longer imports
beside today's transformers: its `qlinear_cuda_old.py` is run alone, and decodes by multiplying the identity.

The files here were made with torch 2.14.1, which the second line above may put in the place of 2.13.0.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization.config import FORMAT, QuantizeConfig
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module
from safetensors.torch import save_file

HERE = Path(__file__).parent / "gptq"
EXPECTED: dict[str, np.ndarray] = {}


def weights(rng: np.random.Generator, bits: int, rows: int, cols: int, group: int, g_idx: np.ndarray, sym: bool):
    """Scales of both signs and zeros with 0 and the largest, and the weights that have exactly these codes."""
    groups, top = -(-cols // group), 2**bits - 1
    scales = (rng.choice([-1, 1], (rows, groups)) * rng.uniform(0.01, 0.1, (rows, groups))).astype(np.float16)
    zeros = np.full((rows, groups), 2 ** (bits - 1)) if sym else rng.integers(0, top + 1, (rows, groups))
    if not sym:
        zeros[0, 0], zeros[1, 0] = 0, top
    codes = rng.integers(0, top + 1, (rows, cols))
    codes[0, 0], codes[1, 0] = 0, top
    wide = scales.astype(np.float64)[:, g_idx]
    linear = torch.nn.Linear(cols, rows, bias=False)
    linear.weight.data = torch.from_numpy((wide * (codes - zeros[:, g_idx])).astype(np.float32))
    return linear, torch.from_numpy(scales.astype(np.float32)), torch.from_numpy(zeros.astype(np.float32))


def packed(rng, bits, rows, cols, group, *, sym=False, act=False, version=2, form=FORMAT.GPTQ):
    """(tensors, decoded weight) of one module, by GPTQModel."""
    g_idx = np.arange(cols) // group
    if act:
        g_idx = g_idx[rng.permutation(cols)]
    linear, scales, zeros = weights(rng, bits, rows, cols, group, g_idx, sym)
    module = TorchLinear(
        bits=bits, group_size=group, desc_act=act, sym=sym, in_features=cols, out_features=rows, bias=False,
        pack_dtype=torch.int32, register_buffers=True, format=form,
    )  # fmt: skip
    module.pack_original(linear, scales, zeros, torch.from_numpy(g_idx.astype(np.int32)))
    module.qzero_format(format=2)
    config = QuantizeConfig(bits=bits, group_size=group, sym=sym)
    if version == 1:
        convert_gptq_v2_to_v1_format_module(module, config)
    names = ("qweight", "qzeros", "scales", "g_idx")
    tensors = {name: getattr(module, name).clone().contiguous() for name in names}
    if version == 1:
        convert_gptq_v1_to_v2_format_module(module, bits, torch.int32)
    module.scales = module.scales.float()  # else it decodes in float16
    module.post_init()
    decoded = module.dequantize_weight().T.contiguous().numpy()
    assert decoded.dtype == np.float32 and decoded.shape == (rows, cols)
    return tensors, decoded


def auto_packed(qlinear, rng, bits, rows, cols, group):
    """The same, symmetric and in version 1, by AutoGPTQ."""
    linear, scales, zeros = weights(rng, bits, rows, cols, group, np.arange(cols) // group, True)
    module = qlinear.QuantLinear(bits, group, cols, rows, False, weight_dtype=torch.float16)
    module.pack(linear, scales, zeros, None)
    names = ("qweight", "qzeros", "scales", "g_idx")
    tensors = {name: getattr(module, name).clone().contiguous() for name in names}
    tensors["scales"] = tensors["scales"].half()
    module.scales = module.scales.half().float()
    return tensors, module.forward(torch.eye(cols)).T.contiguous().numpy()


def save(name: str, config: dict, modules: dict, config_file: str = "config.json") -> None:
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{module}.{part}": tensor for module, (found, _) in modules.items() for part, tensor in found.items()}
    save_file(tensors, folder / "model.safetensors")
    table = {"quantization_config": config} if config_file == "config.json" else config
    (folder / config_file).write_text(json.dumps(table, indent=1) + "\n")
    EXPECTED.update({f"{name}/{module}": decoded for module, (_, decoded) in modules.items()})


def config_of(bits: int, group: int, label: str | None = None, **more) -> dict:
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False, **more}
    return config if label is None else config | {"checkpoint_format": label}


def main(auto_gptq: Path) -> None:
    rng = np.random.default_rng(4210)
    for bits in (2, 3, 4, 8):
        for version, label in ((1, "gptq"), (2, "gptq_v2")):
            if version == 2 and bits not in (3, 4):
                continue  # as version 1, but for what that does to zeros
            modules = {"fc": packed(rng, bits, 32, 64, 32, version=version)}
            if bits == 4 or version == 1:
                modules["act"] = packed(rng, bits, 32, 64, 16, act=True, version=version)
            if bits == 4 and version == 2:
                modules["ragged"] = packed(rng, bits, 40, 80, 32, version=version)
                modules["ragged_act"] = packed(rng, bits, 16, 76, 32, act=True, version=version)
                modules["row"] = packed(rng, bits, 24, 40, 40, version=version)
            group = {"group_size": 32, "dynamic": {"+:.*act": {"group_size": 16}, "+:.*row": {"group_size": -1}}}
            save(f"v{version}-{bits}bit", config_of(bits, 32, label) | group, modules)
    symmetric = {"fc": packed(rng, 4, 32, 64, 32, sym=True, version=2)}
    save("sym-v2-named-v1", config_of(4, 32, "gptq", sym=True), symmetric)
    save(
        "sym-v1-named-v2",
        config_of(4, 32, "gptq_v2", sym=True),
        {"fc": packed(rng, 4, 32, 64, 32, sym=True, version=1)},
    )
    mixed = {
        "fc": packed(rng, 4, 32, 64, 32, sym=True, version=1),
        "down": packed(rng, 8, 32, 32, 32, sym=True, version=1),
    }
    dynamic = {"-:.*gate": {}, "+:.*down": {"bits": 8, "group_size": -1}}
    save("sym-dynamic", config_of(4, 32, sym=True, dynamic=dynamic), mixed, "quantize_config.json")
    for bits in (3, 5, 6, 7):
        save(
            f"planes-{bits}bit",
            config_of(bits, 32, "gptq_p"),
            {"fc": packed(rng, bits, 32, 64, 32, form=FORMAT.GPTQ_P)},
        )
    spec = importlib.util.spec_from_file_location(
        "qlinear_cuda_old", auto_gptq / "auto_gptq" / "nn_modules" / "qlinear" / "qlinear_cuda_old.py"
    )
    assert spec is not None and spec.loader is not None
    qlinear = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(qlinear)
    for bits in (2, 3, 4, 8):
        config = {key: value for key, value in config_of(bits, 32, sym=True).items() if key != "quant_method"}
        save(f"autogptq-{bits}bit", config, {"fc": auto_packed(qlinear, rng, bits, 32, 64, 32)}, "quantize_config.json")
    config = config_of(4, 96, sym=True)
    save("group96", config, {"fc": auto_packed(qlinear, rng, 4, 32, 192, 96)})
    np.savez_compressed(HERE / "expected.npz", **EXPECTED)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
