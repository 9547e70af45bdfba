"""Keras models with compact layers, masks that hold through fit, and a student that learns."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import pumice as pm
from pumice.keras import (
    CompactConv,
    CompactDense,
    CompactEmbedding,
    Distiller,
    PruneCallback,
    collect,
    compress,
    get_matrix,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras and torch with NumPy 2

RNG = np.random.default_rng(0)
X = RNG.standard_normal((256, 32)).astype(np.float32)
Y = (X[:, :4].sum(axis=1) > 0).astype(np.int64)
CONVS = [
    layers.Conv2D(8, 3, padding="same", activation="relu"),
    layers.Conv2D(8, (3, 2), strides=2, use_bias=False),
    layers.Conv2D(8, 3, dilation_rate=2),
    layers.Conv1D(8, 5, strides=2, padding="same"),
    layers.Conv1D(8, 3, padding="causal", dilation_rate=2),
    layers.Conv1D(8, 1),
]


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((32,)), layers.Dense(48, activation="relu"), layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def decoded(model: keras.Model, compact: keras.Model) -> keras.Model:
    """A copy of the model with the weights that the compact one stores."""
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    for layer in twin.layers:
        new = compact.get_layer(layer.name)
        if isinstance(new, CompactEmbedding):
            layer.embeddings.assign(new.matrix.to_dense())
        elif isinstance(new, CompactDense | CompactConv):
            layer.kernel.assign(new.matrix.to_dense().T.reshape(layer.kernel.shape))
    return twin


@pytest.mark.parametrize("scheme", ["float32", "int8", "int4-g32", "csr", "bitmask+int8", "bsr-4x4"])
def test_dense_layers_compute_with_their_decoded_kernels(scheme: str) -> None:
    model = network()
    compact, report = compress(model, scheme, activations="float32")
    assert [type(layer) for layer in compact.layers] == [CompactDense, CompactDense]
    np.testing.assert_allclose(compact.predict(X, verbose=0), decoded(model, compact).predict(X, verbose=0), atol=1e-4)
    assert [t.name for t in report.tensors] == [f"{layer.name}/kernel" for layer in model.layers]
    first = compact.layers[0]
    expected = pm.compress(model.layers[0].get_weights()[0], scheme, in_axis=0)
    np.testing.assert_array_equal(get_matrix(first).to_dense(), expected.to_dense())


@pytest.mark.parametrize("conv", CONVS, ids=lambda c: str(c.get_config()["kernel_size"]) + c.padding)
def test_convolutions_compute_with_their_decoded_kernels(conv: layers.Layer) -> None:
    shape = (13, 3) if isinstance(conv, layers.Conv1D) else (13, 11, 3)
    model = keras.Sequential([layers.Input(shape), conv.__class__.from_config(conv.get_config())])
    x = RNG.standard_normal((4, *shape)).astype(np.float32)
    compact, _ = compress(model, "int8", activations="float32")
    assert isinstance(compact.layers[0], CompactConv)
    assert compact.output_shape == model.output_shape
    np.testing.assert_allclose(compact.predict(x, verbose=0), decoded(model, compact).predict(x, verbose=0), atol=1e-4)


def test_embeddings_and_functional_models() -> None:
    ids = layers.Input((7,), dtype="int32")
    x = layers.Embedding(50, 32, mask_zero=True)(ids)
    x = layers.GlobalAveragePooling1D()(x)
    y = layers.add([layers.Dense(32)(x), x])
    model = keras.Model(ids, layers.Dense(3, activation="softmax")(layers.LayerNormalization()(y)))
    compact, report = compress(model, "int4-g32", activations="float32")
    assert {t.scheme for t in report.tensors} == {"int8", "int4-g32"}
    batch = RNG.integers(0, 50, (5, 7))
    np.testing.assert_allclose(
        compact.predict(batch, verbose=0), decoded(model, compact).predict(batch, verbose=0), atol=1e-5
    )
    assert report.nbytes_after < 0.35 * report.nbytes_before


def test_a_compact_model_is_saved_small_and_loaded(tmp_path: Path) -> None:
    model = network()
    compact, _ = compress(model, "int4-g32")
    compact.save(tmp_path / "compact.keras")
    again = keras.models.load_model(tmp_path / "compact.keras", compile=False)
    np.testing.assert_array_equal(again.predict(X, verbose=0), compact.predict(X, verbose=0))
    assert again.layers[0].matrix.scheme == "int4-g32"


def test_rules_are_those_of_convert() -> None:
    model = network()
    names = [layer.name for layer in model.layers]
    compact, report = compress(model, "int8", ignore=[names[1]])
    assert [type(layer) for layer in compact.layers] == [CompactDense, layers.Dense]
    np.testing.assert_array_equal(compact.layers[1].get_weights()[0], model.layers[1].get_weights()[0])
    assert report.tensors[1].scheme == "F32"
    with pytest.raises(pm.RecipeError, match="--tensor: expected a pattern that finds"):
        compress(model, "int8", tensors={"nothing": "int8"})


@pytest.mark.parametrize(
    "optimizer", [keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.1, momentum=0.9)], ids=["adam", "sgd"]
)
def test_pruned_kernels_and_their_slots_stay_zero_through_fit(optimizer: keras.Optimizer) -> None:
    model = network()
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = PruneCallback(0.75, stop=10)
    history = model.fit(X, Y, batch_size=32, epochs=4, verbose=0, callbacks=[callback])
    for layer in model.layers:
        kernel = layer.get_weights()[0]
        assert np.count_nonzero(kernel == 0) == int(0.75 * kernel.size)
        slots = list(callback._slots(layer.kernel))
        assert slots
        for slot in slots:
            assert not keras.ops.convert_to_numpy(slot.value)[kernel == 0].any()
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_patterns_lie_along_the_inputs() -> None:
    model = network()
    model.fit(X, Y, batch_size=64, verbose=0, callbacks=[PruneCallback(0.5, pattern="2:4", match=model.layers[0].name)])
    compact, _ = compress(model, tensors={model.layers[0].name: "2:4+int8"})
    assert compact.layers[0].matrix.scheme == "2:4+int8"
    assert compact.layers[0].matrix.density <= 0.5


def test_a_student_learns_from_its_teacher() -> None:
    teacher = network()
    teacher.fit(X, Y, epochs=12, batch_size=32, verbose=0)
    before = teacher.get_weights()
    keras.utils.set_random_seed(1)
    student = keras.Sequential([layers.Input((32,)), layers.Dense(8, activation="relu"), layers.Dense(2)])
    distiller = Distiller(student, teacher, temperature=3.0, alpha=0.1)
    distiller.compile(keras.optimizers.Adam(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = distiller.fit(X, Y, epochs=12, batch_size=32, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]
    agree = np.mean(student.predict(X, verbose=0).argmax(1) == teacher.predict(X, verbose=0).argmax(1))
    assert agree > 0.9
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_teachers_opinion_needs_no_labels() -> None:
    teacher = network()
    keras.utils.set_random_seed(1)
    student = keras.Sequential([layers.Input((32,)), layers.Dense(2)])
    distiller = Distiller(student, teacher, alpha=0.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    history = distiller.fit(X, epochs=12, batch_size=32, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


def test_layers_that_stay_are_in_the_report() -> None:
    model = keras.Sequential(
        [
            layers.Input((7, 8)),
            layers.Dense(16),
            layers.Bidirectional(layers.LSTM(4)),
            layers.Reshape((8, 1)),
            layers.Conv1D(4, 3, groups=1),
            layers.Conv1DTranspose(2, 3),
        ]
    )
    compact, report = compress(model, "int8")
    stay = {t.name: t.why for t in report.tensors if t.scheme == "F32"}
    assert set(stay.values()) == {"of a Bidirectional", "of a Conv1DTranspose"}
    assert len(stay) == 5  # kernel and recurrent kernel, each way
    matrices = [w for w in model.get_weights() if w.ndim > 1]
    assert report.nbytes_before == sum(w.nbytes for w in matrices)
    x = RNG.standard_normal((3, 7, 8)).astype(np.float32)
    np.testing.assert_allclose(compact.predict(x, verbose=0), model.predict(x, verbose=0), atol=0.05)


def test_weight_lists_take_an_explicit_axis() -> None:
    model = network()
    small = pm.compress(model.get_weights(), "int8", in_axis=0)
    assert small[1] is not None
    assert small[0].shape == (32, 48)
    y = np.maximum(X @ small[0] + small[1], 0) @ small[2] + small[3]
    np.testing.assert_allclose(y, model.predict(X, verbose=0), atol=0.05)


def test_what_does_not_fit_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match="model: expected one that is built"):
        compress(keras.Sequential([layers.Dense(3)]), "int8")
    with pytest.raises(ValueError, match="scheme: expected a scheme, a recipe or tensors, got none"):
        compress(model)
    with pytest.raises(ValueError, match="model: expected Dense, Embedding or Conv layers, got 'bare' without"):
        compress(keras.Sequential([layers.Input((3,)), layers.ReLU()], name="bare"), "int8")
    for last in (layers.Dense(2, activation="softmax"), layers.Softmax()):
        ended = keras.Sequential([layers.Input((2,)), last], name="ended")
        for pair, name in (((model, ended), "teacher"), ((ended, model), "student")):
            with pytest.raises(ValueError, match=f"{name}: expected a model that gives logits, got 'ended', which"):
                Distiller(*pair)
    with pytest.raises(ValueError, match=r"sparsity: expected a number in \[0, 1\), got 2"):
        PruneCallback(2)
    with pytest.raises(ValueError, match="stop: expected 0 <= start <= stop"):
        PruneCallback(0.5, start=3, stop=1)
    with pytest.raises(ValueError, match="match: expected a pattern that finds a kernel"):
        model.fit(X, Y, verbose=0, callbacks=[PruneCallback(0.5, match="nothing")])
    with pytest.raises(ValueError, match="temperature: expected"):
        Distiller(model, model, temperature=-1)
    with pytest.raises(ValueError, match="alpha: expected"):
        Distiller(model, model, alpha=2)
    wide = keras.Sequential([layers.Input((32,)), layers.Dense(3)])
    distiller = Distiller(model, wide)
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="teacher: expected logits"):
        distiller.fit(X, Y, verbose=0)
    kernel = np.full((32, 48), 1.0)
    kernel[3, 4] = np.nan
    model.layers[0].set_weights([kernel, np.zeros(48)])
    with pytest.raises(pm.NonFiniteError, match=rf"{model.layers[0].name}.weight: .* got nan at index \(4, 3\)"):
        compress(model, "int8")
    with pytest.raises(TypeError, match="layer: expected one made by pumice.keras.compress"):
        get_matrix(model.layers[0])


@pytest.mark.parametrize("name", ["collecting", "compression", "layers", "training"])
def test_docstring_examples_run(name: str) -> None:
    module = importlib.import_module(f"pumice.keras.{name}")
    assert doctest.testmod(module).failed == 0


def nested() -> keras.Model:
    """Two models within a model, whose layers have equal names and shapes."""
    keras.utils.set_random_seed(0)
    parts = [
        keras.Sequential([layers.Input((32,)), layers.Dense(32, name="dense"), layers.LayerNormalization()], name=name)
        for name in ("first", "second")
    ]
    x = layers.Input((32,))
    y = layers.Dense(32, name="dense")(parts[1](parts[0](x)))
    model = keras.Model(x, layers.TimeDistributed(layers.Dense(3), name="each")(layers.Reshape((4, 8))(y)))
    for variable in model.weights:
        variable.assign(RNG.standard_normal(variable.shape))  # layers of one name differ, norms and biases are not 0
    return model


def test_layers_of_one_name_in_nested_models_keep_their_own_kernels() -> None:
    model = nested()
    compact, report = compress(model, "float32", activations="float32")
    assert [t.name for t in report.tensors[:3]] == ["first/dense/kernel", "second/dense/kernel", "dense/kernel"]
    assert [t.why for t in report.tensors[3:]] == ["of a TimeDistributed"]
    np.testing.assert_allclose(compact.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-4, atol=1e-2)
    assert isinstance(compact.get_layer("second").get_layer("dense"), CompactDense)
    compact, report = compress(model, "int8", tensors={"^second/": "int4-g32"})
    assert [t.scheme for t in report.tensors] == ["int8", "int4-g32", "int8", "F32"]


def test_moments_are_those_of_what_kernels_meet() -> None:
    model = nested()
    stats = collect(model, [X[:100], X[100:]])
    assert set(stats) == {"first/dense/kernel", "second/dense/kernel", "dense/kernel"}
    met = np.asarray(model.get_layer("first").predict(X, verbose=0), np.float64)
    exact = met.T @ met / len(met)
    np.testing.assert_allclose(stats["second/dense/kernel"].mean(), exact, rtol=0, atol=1e-4 * exact.max())
    np.testing.assert_allclose(model.predict(X, verbose=0), model.predict(X, verbose=0))
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


def test_a_convolution_meets_patches() -> None:
    model = keras.Sequential([layers.Input((9, 7, 3)), layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False)])
    x = RNG.standard_normal((4, 9, 7, 3)).astype(np.float32)
    (moments,) = collect(model, [x]).values()
    kernel = model.layers[0].get_weights()[0].reshape(-1, 5).astype(np.float64)
    energy = np.square(np.asarray(model.predict(x, verbose=0), np.float64)).sum(axis=(0, 1, 2))
    found = np.einsum("io,ij,jo->o", kernel, moments.mean(), kernel) * moments.count
    np.testing.assert_allclose(found, energy, rtol=1e-4)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_methods_that_need_data_prune_kernels_by_it(method: str) -> None:
    model = network()
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    first = model.layers[0].get_weights()[0].copy()
    stats = collect(model, [X * np.linspace(0.1, 3, 32, dtype=np.float32)])
    callback = PruneCallback(0.5, method=method, stats=stats)
    model.fit(X, Y, verbose=0, callbacks=[callback])
    name = f"{model.layers[0].name}/kernel"
    expected = pm.prune(np.ascontiguousarray(first.T), 0.5, method=method, stats=stats[name])
    np.testing.assert_array_equal(model.layers[0].get_weights()[0].T, expected)
    np.testing.assert_array_equal(callback.masks[name], expected != 0)


def test_compress_follows_methods_by_data() -> None:
    model = network()
    stats = collect(model, [X * np.linspace(0.1, 3, 32, dtype=np.float32)])
    _, nearest = compress(model, "int4-g32", stats=stats)
    compact, report = compress(model, "int4-g32", method="gptq", stats=stats)
    for layer, new, before, after in zip(model.layers, compact.layers, nearest.tensors, report.tensors, strict=True):
        assert after.name == f"{layer.name}/kernel"
        assert after.output_error < before.output_error or layer is model.layers[-1]
        w = np.ascontiguousarray(layer.get_weights()[0].T)
        expected = pm.compress(w, "int4-g32", method="gptq", stats=stats[after.name])
        np.testing.assert_array_equal(new.matrix.codes(), expected.codes())
    by_data, plain = (sum(t.output_error for t in r.tensors) for r in (report, nearest))
    assert by_data < plain  # in all: a head of two rows alone may err more
    compact, _ = compress(model, "bitmask+int8", prune="sparsegpt:0.5", stats=stats)
    first = f"{model.layers[0].name}/kernel"
    w = np.ascontiguousarray(model.layers[0].get_weights()[0].T)
    expected = pm.sparsify(w, "bitmask+int8", 0.5, method="sparsegpt", stats=stats[first])
    np.testing.assert_array_equal(compact.layers[0].matrix.to_dense(), expected.to_dense())
    with pytest.raises(ValueError, match=rf"stats: expected moments of .*{model.layers[0].name}"):
        compress(model, "int4-g32", method="gptq")


def test_what_cannot_be_collected_is_refused() -> None:
    with pytest.raises(ValueError, match="model: expected one that is built"):
        collect(keras.Sequential([layers.Dense(3)]), [X])
    with pytest.raises(ValueError, match="batches: expected at least one batch, got none"):
        collect(network(), [])
    with pytest.raises(ValueError, match="match: expected a pattern that finds a kernel of .*, got 'conv'"):
        collect(network(), [X], match="conv")
    model, x = network(), X.copy()
    x[3, 4] = np.nan
    with pytest.raises(pm.NonFiniteError, match=r"/kernel: x: expected finite values .* got nan at index \(3, 4\)"):
        collect(model, [x])
    assert not any("call" in vars(layer) for layer in model.layers)
    with pytest.raises(ValueError, match="stats: expected moments of the inputs of .* for this method, got None"):
        model.fit(X, Y, verbose=0, callbacks=[PruneCallback(0.5, method="wanda")])
