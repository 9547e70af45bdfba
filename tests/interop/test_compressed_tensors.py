"""Our exports, read by compressed-tensors itself: 0.20 for dense weights, versions before 0.15 for sparse ones.

The old versions lie in folders of their own, $PUMICE_OLD_COMPRESSED_TENSORS, divided by colons.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file

import pumice as pm

RNG = np.random.default_rng(4)
OLD = os.environ.get("PUMICE_OLD_COMPRESSED_TENSORS", "").split(os.pathsep)

DECOMPRESS = """
import json, sys, torch
from pathlib import Path
from compressed_tensors import __version__
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import SparsityCompressionConfig
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file, save_file

folder = Path(sys.argv[1])
assert tuple(map(int, __version__.split(".")[:2])) < (0, 15), __version__
config = json.loads((folder / "config.json").read_text())["quantization_config"]["sparsity_config"]
settings = SparsityCompressionConfig.load_from_registry(config["format"], **config)
compressor = BaseCompressor.load_from_registry(settings.format, config=settings)
stored = load_file(folder / "model.safetensors")
weights = {}
for name, values in compressor.decompress(str(folder)):
    scale = stored.get(name + "_scale")
    if name.endswith(".weight"):
        weights[name] = values if scale is None else dequantize(x_q=values, scale=scale.float())
save_file(weights, folder / "decompressed.st")
print(__version__)
"""


def pruned(rows: int, cols: int) -> np.ndarray[Any, Any]:
    return pm.prune(RNG.standard_normal((rows, cols)).astype(np.float32), pattern="2:4")


@pytest.mark.parametrize(
    "scheme",
    ["int2-g16", "int3", "int4-g32", "int4-g32-asym", "int5-asym", "int6-g64-asym", "int8", "int8-asym", "int8-g128"],
)
def test_the_package_decompresses_dense_integers(scheme: str, tmp_path: Path) -> None:
    w = pm.compress(RNG.standard_normal((37, 384)).astype(np.float32), scheme)
    pm.save(tmp_path / "a", {"fc.weight": w})
    (tmp_path / "a" / "config.json").write_text("{}")
    pm.export(tmp_path / "a", tmp_path / "b", "ct")
    table = json.loads((tmp_path / "b" / "config.json").read_text())["quantization_config"]
    table.pop("quant_method")
    config = QuantizationConfig.model_validate(table)
    group = config.config_groups["group_0"]
    assert group.targets == ["fc"]
    state = {name.removeprefix("fc."): t for name, t in load_file(tmp_path / "b" / "model.safetensors").items()}
    state["weight_scale"] = state["weight_scale"].float()
    found = BaseCompressor.get_value_from_registry(config.format).decompress(state, group)
    np.testing.assert_array_equal(found["weight"].numpy(), w.to_dense())


@pytest.mark.parametrize("place", OLD)
@pytest.mark.parametrize("kind", ["sparse-bitmask", "sparse-24-bitmask"])
def test_old_versions_decompress_sparse_weights(kind: str, place: str, tmp_path: Path) -> None:
    assert place, "expected PUMICE_OLD_COMPRESSED_TENSORS, as make interop sets it"
    layouts = ["2:4"] if kind == "sparse-24-bitmask" else ["bitmask", "csr", "bsr-4x4", "2:4"]
    values = ["float32", "float16", "bfloat16", "int8", "int4"]
    schemes = [f"{layout}+{value}" for layout in layouts for value in values]
    w = {f"layer{i}.weight": pm.compress(pruned(24, 64), scheme) for i, scheme in enumerate(schemes)}
    pm.save(tmp_path / "a", w)
    (tmp_path / "a" / "config.json").write_text("{}")
    pm.export(tmp_path / "a", tmp_path / "b", "ct")
    environment = {**os.environ, "PYTHONPATH": place}
    done = subprocess.run(
        [sys.executable, "-c", DECOMPRESS, str(tmp_path / "b")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(tmp_path / "b" / "decompressed.st")
    assert found.keys() == w.keys()
    for name, array in w.items():
        np.testing.assert_array_equal(found[name].to(torch.float32).numpy(), array.to_dense(), err_msg=array.scheme)
