"""Makes torch-*.pt by PyTorch's own torch.save, each with the bytes of its tensors as torch sees them in torch-*.npz.

Run it with torch 2.13.0 (CPU) and NumPy: python tests/golden/make_torch.py
The files in the tree were made with torch 2.13.0+cpu and Python 3.11.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import prune

HERE = Path(__file__).parent


def keep(name: str, saved: object, tensors: dict[str, torch.Tensor], **options: object) -> None:
    """One golden: what is saved, and what each of its tensors holds, row by row."""
    torch.save(saved, HERE / f"torch-{name}.pt", **options)
    whole = {key: t.detach().contiguous().reshape(-1).view(torch.uint8).numpy() for key, t in tensors.items()}
    np.savez(HERE / f"torch-{name}.npz", **whole)


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    noted = torch.nn.Parameter(torch.randn(4))
    noted.note = "an attribute"
    w = torch.randn(5, 7)
    shared = torch.arange(24, dtype=torch.float32)
    return {
        "f64": torch.randn(3, 2, dtype=torch.float64),
        "f32": w,
        "f16": torch.randn(3, 5).half(),
        "bf16": torch.randn(5, 3).bfloat16(),
        "f8": torch.randn(2, 9).to(torch.float8_e4m3fn),
        "f8_e5m2": torch.randn(4, 3).to(torch.float8_e5m2),
        "i64": torch.tensor([[-(2**62), 2**62 + 1, 0]]),
        "i32": torch.arange(-3, 3, dtype=torch.int32),
        "i16": torch.arange(4, dtype=torch.int16) - 2,
        "i8": torch.arange(-128, 128, dtype=torch.int8)[::3],
        "u8": torch.arange(256, dtype=torch.uint8),
        "u16": torch.tensor([1, 65535], dtype=torch.uint16),
        "bool": torch.tensor([[True, False, True]]),
        "c64": torch.randn(3, dtype=torch.complex64),
        "transposed": torch.randn(4, 6).T,
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "columns": torch.randn(6, 8)[1:5, 2:7:2],
        "shared_head": shared[:12].view(3, 4),
        "shared_tail": shared[8:],
        "tied": w,
        "expanded": torch.randn(3, 1).expand(3, 4),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "parameter_with_state": noted,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "specials": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    }


def main() -> None:
    tensors = state()
    keep("state", OrderedDict(tensors), tensors)
    keep("protocol4", tensors, tensors, pickle_protocol=4)
    linear = torch.nn.Linear(3, 2)
    keep("module-state", linear.state_dict(), dict(linear.state_dict()))
    optimizer = torch.optim.Adam(linear.parameters())
    linear(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    training = {
        "epoch": 3,
        "model_state_dict": linear.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "loss": [0.5, 0.25],
        "done": {1, 2},
        "note": b"bytes",
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "dtype": torch.float32,
    }
    keep("training", training, dict(linear.state_dict()))
    nested = {"encoder": {"0": {"weight": linear.weight}}, "heads": [linear.bias, (linear.weight,)], "epoch": 1}
    names = {"encoder.0.weight": linear.weight, "heads.0": linear.bias, "heads.1.0": linear.weight}
    keep("nested", nested, names)
    keep("bare", linear.weight.detach(), {"torch-bare": linear.weight})
    pruned = torch.nn.Linear(16, 12)
    prune.l1_unstructured(pruned, "weight", amount=0.6)
    with torch.no_grad():
        pruned.weight_orig[0, :2] = torch.tensor([float("nan"), -0.0])
        pruned.weight_mask[0, :2] = 0
    product = pruned.weight_orig * pruned.weight_mask
    keep("pruned", pruned.state_dict(), {"weight": product, "bias": pruned.bias})
    # Refused ones.
    torch.save(linear, HERE / "torch-refused-module.pt")
    torch.save({"w": linear.weight}, HERE / "torch-refused-legacy.pt", _use_new_zipfile_serialization=False)
    torch.jit.script(linear).save(str(HERE / "torch-refused-script.pt"))
    torch.save({"w": torch.eye(3).to_sparse_csr()}, HERE / "torch-refused-sparse.pt")
    torch.save({"w": torch.randn(3, dtype=torch.complex64).conj()}, HERE / "torch-refused-conjugated.pt")
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
