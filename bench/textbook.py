"""The four small programs of every textbook, and what pumice does with the same input: prints JSON (bench/heal.py).

    KERAS_BACKEND=torch python bench/textbook.py

The data are the 1797 digits of 8 x 8 pixels that scikit-learn carries, the network 64-512-512-10. Seed 0.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from sklearn.datasets import load_digits

import pumice as pm
import pumice.keras as pk

THRESHOLDS = (0.0, 0.01, 0.02, 0.04, 0.06)
EPOCHS, STUDENT_EPOCHS = 20, 80


def arrays() -> dict[str, Any]:
    """Program 1: thresholds on a dict of arrays. Zeros alone save nothing."""
    rng = np.random.default_rng(0)
    weights = {f"layer{i}.weight": rng.standard_normal((512, 512)).astype(np.float32) for i in range(4)}
    rows = []
    for threshold in (0.5, 1.0, 1.5, 2.0):
        by_hand = {name: np.where(np.abs(w) < threshold, np.float32(0), w) for name, w in weights.items()}
        begun = time.perf_counter()
        compact = pm.sparsify(weights, "bitmask", threshold=threshold)
        seconds = time.perf_counter() - begun
        same = all(np.array_equal(compact[name].to_dense(), w) for name, w in by_hand.items())
        assert same, "expected the zeros of the textbook"
        rows.append(
            {
                "threshold": threshold,
                "zeros": float(np.mean([np.mean(w == 0) for w in by_hand.values()])),
                "before": sum(w.nbytes for w in by_hand.values()),
                "after": sum(w.resident_nbytes for w in compact.values()),
                "ms": 1e3 * seconds,
            }
        )
    return {"rows": rows}


def fixed_point() -> dict[str, Any]:
    """Program 2: rounding to multiples of 2^-bits, kept in float32, beside codes with scales."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((512, 512)).astype(np.float32) * np.float32(0.05)
    rows = []
    for bits, scheme in ((8, "int8"), (4, "int4-g32")):
        by_hand = np.round(w * 2**bits) / np.float32(2**bits)
        begun = time.perf_counter()
        c = pm.compress(w, scheme)
        rows.append(
            {
                "bits": bits,
                "scheme": scheme,
                "ms": 1e3 * (time.perf_counter() - begun),
                "before": by_hand.nbytes,
                "after": c.nbytes,
                "error by hand": relative(by_hand, w),
                "error": relative(c.to_dense(), w),
            }
        )
    return {"rows": rows}


def relative(found: Any, exact: Any) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def digits() -> tuple[Any, Any, Any, Any]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = (data.data[order] / 16).astype(np.float32), data.target[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def network(width: int, layers: int) -> Any:
    hidden = [keras.layers.Dense(width, activation="relu") for _ in range(layers)]
    return keras.Sequential([keras.layers.Input((64,)), *hidden, keras.layers.Dense(10)])


def fit(model: Any, x: Any, y: Any, **options: Any) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=64, verbose=0, **options)


def accuracy(model: Any, x: Any, y: Any) -> float:
    return float(np.mean(np.asarray(model.predict(x, verbose=0)).argmax(axis=1) == y))


def student(teacher: Any, data: tuple[Any, Any, Any, Any]) -> dict[str, Any]:
    """Program 3: a teacher teaches a student of a few units, then the student is compressed."""
    x, y, test, right = data
    few, names = 100, y[:100]  # labels are few, the teacher has an opinion on every digit
    rows = [{"model": "teacher", "accuracy": accuracy(teacher, test, right), "bytes": size(teacher)}]
    keras.utils.set_random_seed(1)
    alone = network(16, 1)
    first = alone.get_weights()
    fit(alone, x[:few], names, epochs=STUDENT_EPOCHS * len(x) // few)
    rows.append({"model": "student, 100 labels", "accuracy": accuracy(alone, test, right), "bytes": size(alone)})
    taught = network(16, 1)
    taught.set_weights(first)
    distiller = pk.Distiller(taught, teacher, temperature=2.0, alpha=0.0)
    fit(distiller, x, y, epochs=STUDENT_EPOCHS)
    rows.append(
        {
            "model": "student, the teacher's opinion of 1200",
            "accuracy": accuracy(taught, test, right),
            "bytes": size(taught),
        }
    )
    compact, report = pk.compress(taught, "int8")
    rows.append({"model": "the same, int8", "accuracy": accuracy(compact, test, right), "bytes": report.nbytes_after})
    return {"rows": rows}


def size(model: Any) -> int:
    """Bytes of the kernels in float32."""
    return sum(int(np.prod(w.shape)) * 4 for w in model.weights if len(w.shape) > 1)


def threshold(model: Any, data: tuple[Any, Any, Any, Any]) -> dict[str, Any]:
    """Program 4: small weights of a Keras model become 0; its file and memory do not notice, the compact one's do."""
    _, _, test, right = data
    rows = []
    for limit in THRESHOLDS:
        copy = network(512, 2)  # not compiled: no optimiser's state goes to its file
        copy.set_weights([np.where(np.abs(w) < limit, 0, w) if w.ndim > 1 else w for w in model.get_weights()])
        zeros = float(np.mean(np.concatenate([w.ravel() for w in copy.get_weights() if w.ndim > 1]) == 0))
        begun = time.perf_counter()
        compact, _ = pk.compress(copy, "bitmask+int8")
        seconds = time.perf_counter() - begun
        held = [pk.get_matrix(layer) for layer in compact.layers]
        test_outputs = [np.asarray(m.predict(test, verbose=0)) for m in (copy, compact)]
        rows.append(
            {
                "threshold": limit,
                "zeros": zeros,
                "file before": on_disk(copy),
                "file": on_disk(compact),
                "memory before": size(copy),
                "memory": sum(m.resident_nbytes for m in held),
                "accuracy before": accuracy(copy, test, right),
                "accuracy": accuracy(compact, test, right),
                "error": relative(test_outputs[1], test_outputs[0]),
                "ms": 1e3 * seconds,
            }
        )
        gc.collect()
    return {"rows": rows}


def on_disk(model: Any) -> int:
    """Bytes of the .keras file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.stat().st_size


def main() -> None:
    keras.utils.set_random_seed(0)
    data = digits()
    teacher = network(512, 2)
    fit(teacher, data[0], data[1], epochs=EPOCHS)
    found = {"arrays": arrays(), "fixed point": fixed_point(), "threshold": threshold(teacher, data)}
    found["student"] = student(teacher, data)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
