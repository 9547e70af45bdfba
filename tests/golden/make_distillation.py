"""Golden losses and gradients of distillation, by torch's own functions and autograd (torch 2.13.0).

pip install torch==2.13.0 && python tests/golden/make_distillation.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

TEMPERATURE, ALPHA = 3.0, 0.25


def main() -> None:
    torch.manual_seed(0)
    student = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    teacher = 3 * torch.randn(5, 7, dtype=torch.float64)
    labels = torch.tensor([0, 6, 3, 3, 1])
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, 6, dtype=torch.float64)
    projection = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)

    def soft() -> torch.Tensor:
        log_q, log_p = (F.log_softmax(z / TEMPERATURE, dim=-1) for z in (student, teacher))
        return TEMPERATURE**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    def hard() -> torch.Tensor:
        return F.cross_entropy(student, labels)

    found = {"labels": labels, "target": target, "teacher": teacher}
    found |= {"student": student, "hidden": hidden, "projection": projection}
    losses = {
        "soft": (soft, student),
        "hard": (hard, student),
        "both": (lambda: ALPHA * hard() + (1 - ALPHA) * soft(), student),
        "logit": (lambda: F.mse_loss(student, teacher), student),
        "cosine": (lambda: 1 - F.cosine_similarity(student, teacher, dim=-1).mean(), student),
        "state": (lambda: F.mse_loss(F.linear(hidden, projection), target), hidden),
        "projection": (lambda: F.mse_loss(F.linear(hidden, projection), target), projection),
    }
    for name, (loss, leaf) in losses.items():
        value = loss()
        found[f"{name}_loss"] = value
        (found[f"{name}_gradient"],) = torch.autograd.grad(value, leaf)
    path = Path(__file__).with_name("distillation.npz")
    np.savez(path, **{name: tensor.detach().numpy() for name, tensor in found.items()})
    print(path, torch.__version__)


if __name__ == "__main__":
    main()
