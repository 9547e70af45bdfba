"""`collect`: what calibration data says of a model, gathered while it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from pumice.keras.compression import kernels
from pumice.keras.layers import patches
from pumice.statistics import CalibrationStats


def collect(model: keras.Model, batches: Iterable[Any], *, match: str = "") -> CalibrationStats:
    """Run a model on data and keep the second moments of what its kernels meet.

    Parameters
    ----------
    model : keras.Model
        Built; it runs eagerly, as for inference, and is not changed.
    batches : iterable
        What the model is called with.
    match : str
        As in `PruneCallback`. Embeddings multiply nothing and have no moments.

    Returns
    -------
    CalibrationStats
        Names are those of the kernels, such as ``dense/kernel``. A convolution meets patches.

    Raises
    ------
    ValueError
        A model that is not built, a pattern that finds no kernel, or no batch.
    NonFiniteError
        An input that is NaN, infinite or above 2^60, with the name of the kernel.

    Examples
    --------
    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    >>> stats = collect(model, [np.ones((16, 8), np.float32)], match="dense")
    >>> len(stats), stats[f"{model.layers[0].name}/kernel"].features
    (2, 8)
    """
    if not model.built:
        raise ValueError("model: expected one that is built (call it, or model.build(shape)), got one that is not")
    found = {name: layer for name, (layer, _) in kernels(model) if re.search(match, name)}
    layers = {name: layer for name, layer in found.items() if not isinstance(layer, keras.layers.Embedding)}
    if not layers:
        raise ValueError(f"match: expected a pattern that finds a kernel of {model.name!r}, got {match!r}")
    stats = CalibrationStats()
    try:
        for name, layer in layers.items():
            object.__setattr__(layer, "call", _watched(stats, name, layer))  # Keras tracks what it is told of
        for batch in batches:
            model(ops.convert_to_tensor(batch) if isinstance(batch, np.ndarray) else batch, training=False)
    finally:
        for layer in layers.values():
            layer.__dict__.pop("call", None)
    if not stats:
        raise ValueError("batches: expected at least one batch, got none")
    return stats


def _watched(stats: CalibrationStats, name: str, layer: Any) -> Callable[..., Any]:
    """`layer.call`, which tells of its input first."""
    call = layer.call

    def watched(x: Any, *arguments: Any, **options: Any) -> Any:
        rows = x
        if not isinstance(layer, keras.layers.Dense):
            keys = ("kernel_size", "strides", "padding", "dilation_rate")
            rows = patches(x, {key: getattr(layer, key) for key in keys})
        stats.update(name, ops.convert_to_numpy(rows))
        return call(x, *arguments, **options)

    return watched
