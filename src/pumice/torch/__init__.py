"""pumice in PyTorch: layers whose weights stay compact, and training that heals what compression broke. Needs torch.

The names end in ``_`` where a model is changed in place, as torch's own do.
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("pumice.torch: expected torch to be installed, got none: pip install torch") from error

from pumice.torch.collecting import collect
from pumice.torch.compression import compress_
from pumice.torch.distilling import DistillationLoss, Distiller
from pumice.torch.masking import GradualPruning, HeldMasks, prune_
from pumice.torch.modules import CompactConv, CompactEmbedding, CompactLinear
from pumice.torch.quantizing import quantize_aware_

__all__ = [
    "CompactConv",
    "CompactEmbedding",
    "CompactLinear",
    "DistillationLoss",
    "Distiller",
    "GradualPruning",
    "HeldMasks",
    "collect",
    "compress_",
    "prune_",
    "quantize_aware_",
]
