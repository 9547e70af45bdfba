"""pumice: pruned and quantized weights at their true size, multiplied on CPU from plain NumPy.

>>> import numpy as np, pumice as pm
>>> w = np.sin(np.arange(64 * 256.0)).reshape(64, 256)
>>> c = pm.compress(w, "int4-g128")
>>> c.nbytes, w.astype("float32").nbytes
(8464, 65536)
>>> (np.ones(256) @ c.T).shape
(64,)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pumice._core.native import get_num_threads, set_num_threads
from pumice.errors import (
    BusyError,
    FormatError,
    FormatWarning,
    NonFiniteError,
    PumiceError,
    RecipeError,
    ResumeError,
    SchemeError,
    SourceChangedError,
    ToleranceError,
)
from pumice.layouts import (
    BitmaskArray,
    BSRArray,
    CompactArray,
    CSRArray,
    DenseArray,
    NMArray,
    PermutedArray,
    SumArray,
    from_parts,
)
from pumice.ops import compress, concatenate, linear, quantize, show_config
from pumice.options import options
from pumice.scheme import Scheme
from pumice.statistics import CalibrationStats, Moments
from pumice.threadpools import register as _register_threadpools

if TYPE_CHECKING:
    from pumice.checkpoint import load, save, verify
    from pumice.conversion import convert
    from pumice.explanation import explain
    from pumice.exporting import export
    from pumice.forwards import calibrate, evaluate
    from pumice.pruning import Masks, cubic_sparsity, prune, sparsify
    from pumice.recipe import Recipe

__version__ = "0.1.0"

# What many programs do without is imported when it is first asked for: more than half of the cost of `import pumice`.
_LATER = {
    "load": "checkpoint",
    "save": "checkpoint",
    "verify": "checkpoint",
    "convert": "conversion",
    "export": "exporting",
    "Recipe": "recipe",
    "calibrate": "forwards",
    "evaluate": "forwards",
    "explain": "explanation",
    "Masks": "pruning",
    "cubic_sparsity": "pruning",
    "prune": "pruning",
    "sparsify": "pruning",
}

_register_threadpools()

__all__ = [
    "BSRArray",
    "BitmaskArray",
    "BusyError",
    "CSRArray",
    "CalibrationStats",
    "CompactArray",
    "DenseArray",
    "FormatError",
    "FormatWarning",
    "Masks",
    "Moments",
    "NMArray",
    "NonFiniteError",
    "PermutedArray",
    "PumiceError",
    "Recipe",
    "RecipeError",
    "ResumeError",
    "Scheme",
    "SchemeError",
    "SourceChangedError",
    "SumArray",
    "ToleranceError",
    "calibrate",
    "compress",
    "concatenate",
    "convert",
    "cubic_sparsity",
    "evaluate",
    "explain",
    "export",
    "from_parts",
    "get_num_threads",
    "linear",
    "load",
    "options",
    "prune",
    "quantize",
    "save",
    "set_num_threads",
    "show_config",
    "sparsify",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'pumice' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"pumice.{_LATER[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
