"""pumice in Keras 3, on any backend: compact layers, masks that hold while training, and a distiller. Needs keras.

Kernels are (inputs, outputs) in Keras: the axis of the inputs is known by the layer, never guessed.
"""

from __future__ import annotations

try:
    import keras as _keras  # noqa: F401
except ImportError as error:
    raise ImportError("pumice.keras: expected keras to be installed, got none: pip install keras") from error

from pumice.keras.collecting import collect
from pumice.keras.compression import compress, get_matrix
from pumice.keras.layers import CompactConv, CompactDense, CompactEmbedding
from pumice.keras.training import Distiller, PruneCallback

__all__ = [
    "CompactConv",
    "CompactDense",
    "CompactEmbedding",
    "Distiller",
    "PruneCallback",
    "collect",
    "compress",
    "get_matrix",
]
