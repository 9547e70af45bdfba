"""Knowledge distillation: what a student loses against its teacher, as value and gradient, in plain NumPy."""

from __future__ import annotations

from pumice.distillation.base import Loss, ProjectedLoss
from pumice.distillation.logits import distillation_loss, hard_label_loss, logit_loss, soft_target_loss
from pumice.distillation.states import cosine_loss, hidden_state_loss
from pumice.distillation.teachers import TopKLogits, cache_logits

__all__ = [
    "Loss",
    "ProjectedLoss",
    "TopKLogits",
    "cache_logits",
    "cosine_loss",
    "distillation_loss",
    "hard_label_loss",
    "hidden_state_loss",
    "logit_loss",
    "soft_target_loss",
]
