"""`compress`: a copy of a model with compact kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from pumice.checkpoint import TensorInfo
from pumice.conversion.in_memory import ModelWeight, compact_weights
from pumice.keras.layers import CompactConv, CompactDense, CompactEmbedding, CompactLayer
from pumice.layouts import CompactArray, Transposed
from pumice.options import ACTIVATIONS, check_choice
from pumice.recipe import Recipe
from pumice.report import Report
from pumice.scheme import Scheme
from pumice.statistics import Moments


def compress(
    model: keras.Model,
    scheme: str | Scheme | None = None,
    *,
    recipe: Recipe | None = None,
    tensors: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    keep_embeddings: bool = False,
    prune: str | None = None,
    method: str | None = None,
    stats: Mapping[str, Moments] | None = None,
    seed: int = 0,
    activations: str = "int16",
    **options: Any,
) -> tuple[keras.Model, Report]:
    """A copy of a model with compact Dense, Embedding, Conv1D and Conv2D layers.

    The copy predicts, saves as ``.keras`` and loads (import `pumice.keras` before). What happens to which kernel is
    decided by the rules of `pumice.convert`, in which the kernel of a layer is called ``dense_1.weight``, and of one in
    a model within the model ``encoder/dense_1.weight``. Embeddings become per-row int8 under integer schemes, as there.
    Other layers (recurrent ones, attention, convolutions in groups, wrapped layers) stay as they are, and the report
    says so.

    Parameters
    ----------
    model : keras.Model
        Built; Sequential or functional.
    scheme, recipe, tensors, ignore, keep_embeddings, prune, method, seed, **options
        As in `pumice.convert`.
    stats : CalibrationStats, optional
        Of `collect`: for methods that need data. The report then says what the output of each layer lost.
    activations : {"int16", "int8", "float32"}
        Of the products, as in `pumice.linear`.

    Returns
    -------
    model : keras.Model
    report : Report
        Scheme, bytes and error of every kernel.

    Raises
    ------
    ValueError
        A model that is not built, is neither Sequential nor functional, or has no such layer; no moments where a method
        needs them.
    RecipeError, SchemeError, NonFiniteError
        As in `pumice.convert`.

    Examples
    --------
    >>> import keras
    >>> model = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dense(32)])
    >>> compact, report = compress(model, "int8")
    >>> report.nbytes_before, report.nbytes_after
    (8192, 2192)
    """
    check_choice("activations", activations, ACTIVATIONS)
    if not model.built:
        raise ValueError("model: expected one that is built (call it, or model.build(shape)), got one that is not")
    if not _is_model(model):
        raise ValueError(f"model: expected a Sequential or functional model, got a {type(model).__name__}")
    asked = Recipe.of(
        scheme, recipe, tensors=tensors, ignore=ignore, keep_embeddings=keep_embeddings, prune=prune, method=method,
        options=options,
    )  # fmt: skip
    names, weights, layers = {}, {}, {}
    for kernel, (layer, matrix) in kernels(model):
        name = _weight_name(kernel)
        names[name], layers[name] = kernel, layer
        weights[name] = ModelWeight(
            TensorInfo(matrix.shape, "F32", matrix.nbytes), partial(np.asarray, matrix), id(layer)
        )
    if not weights:
        raise ValueError(f"model: expected Dense, Embedding or Conv layers, got {model.name!r} without")
    for name, layer, variable in _others(model, {id(layer) for layer in layers.values()}):
        names[name] = name
        about = TensorInfo(tuple(variable.shape), "F32", 4 * math.prod(variable.shape))
        why = f"of a {type(layer).__name__}"
        weights[name] = ModelWeight(about, partial(ops.convert_to_numpy, variable), id(variable), why)
    known = {_weight_name(kernel): moments for kernel, moments in (stats or {}).items()}
    arrays, reports = compact_weights(weights, asked, known, seed)
    made = {id(layers[name]): array for name, array in arrays.items()}  # names repeat in models within models
    pairs: list[tuple[Any, Any]] = []

    def clone(layer: Any) -> Any:
        new = _clone(layer, made.get(id(layer)), activations)
        pairs.append((layer, new))
        return new

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for layer, new in pairs:
        if id(layer) not in made and getattr(layer, "weights", None):  # operations have none
            new.set_weights(layer.get_weights())
    return copy, Report(model.name, copy.name, tuple(replace(t, name=names[t.name]) for t in reports))


def _weight_name(name: str) -> str:
    """As checkpoints call it, for rules: ``dense/kernel`` is the weight of ``dense``."""
    return name.rpartition("/")[0] + ".weight"


def kernels(model: Any, within: str = "") -> Iterator[tuple[str, tuple[Any, np.ndarray[Any, Any]]]]:
    """(name, (layer, matrix)) of each kernel that a layer here can hold; matrices are (outputs, inputs).

    Models within the model come before the names of their layers: ``encoder/dense/kernel``. What other layers wrap
    is theirs.
    """
    seen: set[int] = set()
    for layer in model.layers:
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if _is_model(layer):
            yield from kernels(layer, f"{within}{layer.name}/")
            continue
        matrix = _matrix(layer)
        if matrix is not None:
            kind = "embeddings" if isinstance(layer, keras.layers.Embedding) else "kernel"
            yield f"{within}{layer.name}/{kind}", (layer, matrix)


def _others(model: Any, held: set[int], within: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, layer, variable) of each matrix that no layer here could hold: it stays, and the report says so."""
    for layer in model.layers:
        if _is_model(layer):
            yield from _others(layer, held, f"{within}{layer.name}/")
        elif id(layer) not in held:
            for variable in getattr(layer, "weights", ()):  # operations have none
                if len(variable.shape) >= 2:
                    yield f"{within}{layer.name}/{variable.path.partition('/')[2] or variable.name}", layer, variable


def _is_model(layer: Any) -> bool:
    return isinstance(layer, keras.Sequential | keras.src.models.functional.Functional)


def _matrix(layer: Any) -> np.ndarray[Any, Any] | None:
    if isinstance(layer, keras.layers.Embedding):
        return np.ascontiguousarray(ops.convert_to_numpy(layer.embeddings.value), np.float32)
    plain = type(layer) in (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)
    if (
        not plain
        or getattr(layer, "groups", 1) != 1
        or getattr(layer, "data_format", "channels_last") != "channels_last"
    ):
        return None
    kernel = ops.convert_to_numpy(layer.kernel.value).astype(np.float32)
    return np.ascontiguousarray(kernel.reshape(-1, kernel.shape[-1]).T)


def _clone(layer: Any, array: CompactArray | None, activations: str) -> Any:
    if array is None:
        return layer.__class__.from_config(layer.get_config())
    if isinstance(layer, keras.layers.Embedding):
        return CompactEmbedding(array, name=layer.name, mask_zero=layer.mask_zero, dtype=layer.dtype_policy)
    bias = np.array(ops.convert_to_numpy(layer.bias)) if layer.use_bias else None  # a copy: JAX gives buffers away
    shared = {
        "name": layer.name, "bias": bias, "activation": layer.activation,
        "product": activations, "dtype": layer.dtype_policy,
    }  # fmt: skip
    if isinstance(layer, keras.layers.Dense):
        return CompactDense(array, **shared)
    keys = ("kernel_size", "strides", "padding", "dilation_rate")
    conv = {key: list(v) if isinstance(v := getattr(layer, key), tuple) else v for key in keys}
    return CompactConv(array, conv=conv, **shared)


def get_matrix(layer: Any) -> CompactArray | Transposed:
    """The compact weight of a layer made by `compress`, as Keras orders its axes: (inputs, outputs)."""
    if not isinstance(layer, CompactLayer):
        raise TypeError(f"layer: expected one made by pumice.keras.compress, got {type(layer).__name__}")
    return layer.matrix if isinstance(layer, CompactEmbedding) else layer.matrix.T
