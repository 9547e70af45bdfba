"""Layers whose kernel is a CompactArray: they compute what Keras' own compute with the decoded kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from pumice.layouts import CompactArray, from_parts
from pumice.ops import linear


def _call_numpy(run: Callable[..., Any], x: Any, shape: tuple[int | None, ...], dtype: str) -> Any:
    """run(ndarray) -> ndarray from within a model, whatever its backend: eagerly, or as a node of its graph."""
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        y = tf.numpy_function(run, [x], dtype)
        y.set_shape(shape)
        return y
    if backend == "jax":
        import jax

        known = tuple(x.shape[i] if length is None else length for i, length in enumerate(shape))
        return jax.pure_callback(run, jax.ShapeDtypeStruct(known, dtype), x, vmap_method="sequential")
    return ops.convert_to_tensor(run(ops.convert_to_numpy(x)))


class CompactLayer(keras.layers.Layer):  # type: ignore[misc]
    """What the layers share: one compact matrix (outputs, inputs), saved as its parts.

    Weights are fixed: gradients do not pass.
    """

    def __init__(
        self, array: CompactArray | None = None, *, scheme: str = "", shape: Sequence[int] = (), **options: Any
    ):
        options.setdefault("trainable", False)
        super().__init__(**options)
        self.scheme = scheme if array is None else array.scheme
        self.matrix_shape = tuple(shape if array is None else array.shape)
        self.array = array

    @property
    def matrix(self) -> CompactArray:
        if self.array is None:
            raise ValueError(f"{self.name}: expected weights that are loaded, got none yet")
        return self.array

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scheme": self.scheme, "shape": list(self.matrix_shape)}

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        for part, stored in self.matrix.parts().items():
            store[f"matrix_{part}"] = np.asarray(stored)

    def load_own_variables(self, store: Any) -> None:
        saved = {key: store[key] for key in list(store.keys())}  # an open group of HDF5 is no mapping
        parts = {key.removeprefix("matrix_"): np.asarray(v) for key, v in saved.items() if key.startswith("matrix_")}
        rest = {key: value for key, value in saved.items() if not key.startswith("matrix_")}
        super().load_own_variables(rest)
        self.array = from_parts(self.scheme, self.matrix_shape, parts)


class _Product(CompactLayer):
    """A layer that multiplies, adds a bias and applies a function."""

    def __init__(
        self, array: CompactArray | None = None, *, bias: Any = None, use_bias: bool = False, activation: Any = None,
        product: str = "int16", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(array, **options)
        self.use_bias = use_bias or bias is not None
        self.activation = keras.activations.get(activation)
        self.product = product
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.matrix_shape[0],), name="bias", trainable=False)
            if bias is not None:
                self.bias.assign(bias)

    def _multiply(self, x: Any) -> Any:
        matrix, product = self.matrix, self.product
        shape = (*x.shape[:-1], self.matrix_shape[0])
        y = _call_numpy(lambda a: linear(np.asarray(a), matrix, activations=product), x, shape, "float32")
        y = ops.cast(y, self.compute_dtype)
        if self.use_bias:
            y = y + ops.cast(self.bias, self.compute_dtype)
        return self.activation(y)

    def get_config(self) -> dict[str, Any]:
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "use_bias": self.use_bias, "activation": activation, "product": self.product}


@keras.saving.register_keras_serializable("pumice")
class CompactDense(_Product):
    """`keras.layers.Dense` with a compact kernel."""

    def call(self, x: Any) -> Any:
        return self._multiply(x)

    def compute_output_shape(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (*shape[:-1], self.matrix_shape[0])


def patches(x: Any, conv: Mapping[str, Any]) -> Any:
    """What each output of a convolution is a product with: (batch, height, width, kernel sizes * channels).

    A line is a plane of height 1.
    """
    line = len(conv["kernel_size"]) == 1
    plane = ops.expand_dims(x, 1) if line else x
    lift = (lambda pair: (1, *pair)) if line else tuple
    size, strides, rates = (lift(conv[key]) for key in ("kernel_size", "strides", "dilation_rate"))
    if conv["padding"] == "causal":
        plane = ops.pad(plane, [[0, 0], [0, 0], [rates[1] * (size[1] - 1), 0], [0, 0]])
    padding = "valid" if conv["padding"] == "causal" else conv["padding"]
    rate = rates[0] if rates[0] == rates[1] or not line else rates[1]
    return ops.image.extract_patches(
        plane, size, strides=strides, dilation_rate=rate, padding=padding, data_format="channels_last"
    )


@keras.saving.register_keras_serializable("pumice")
class CompactConv(_Product):
    """`keras.layers.Conv1D` or `Conv2D` of one group, channels last: patches of x are rows of a product."""

    def __init__(self, array: CompactArray | None = None, *, conv: Mapping[str, Any], **options: Any) -> None:
        super().__init__(array, **options)
        self.conv = dict(conv)  # kernel_size, strides, padding, dilation_rate

    def call(self, x: Any) -> Any:
        y = self._multiply(patches(x, self.conv))
        return ops.squeeze(y, 1) if len(self.conv["kernel_size"]) == 1 else y

    def compute_output_shape(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        lengths = []
        keys = ("kernel_size", "strides", "dilation_rate")
        for n, k, s, d in zip(shape[1:-1], *(self.conv[key] for key in keys), strict=True):
            span = 1 if self.conv["padding"] != "valid" else d * (k - 1) + 1
            lengths.append(None if n is None else (n - span) // s + 1)
        return (shape[0], *lengths, self.matrix_shape[0])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "conv": self.conv}


@keras.saving.register_keras_serializable("pumice")
class CompactEmbedding(CompactLayer):
    """`keras.layers.Embedding` with a compact table."""

    def __init__(self, array: CompactArray | None = None, *, mask_zero: bool = False, **options: Any) -> None:
        super().__init__(array, **options)
        self.mask_zero = self.supports_masking = mask_zero

    def call(self, ids: Any) -> Any:
        matrix = self.matrix
        shape = (*ids.shape, self.matrix_shape[1])
        rows = _call_numpy(lambda a: matrix.take(np.asarray(a).astype(np.int64)), ids, shape, "float32")
        return ops.cast(rows, self.compute_dtype)

    def compute_mask(self, ids: Any, mask: Any = None) -> Any:
        return ops.not_equal(ids, 0) if self.mask_zero else None

    def compute_output_shape(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (*shape, self.matrix_shape[1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mask_zero": self.mask_zero}
