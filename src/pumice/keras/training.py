"""Training around compression: pruning that holds through `fit`, and a student that learns from a teacher."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from pumice.keras.compression import kernels
from pumice.pruning import prune
from pumice.pruning.base import PRUNERS
from pumice.pruning.schedule import cubic_sparsity
from pumice.pruning.selection import check_sparsity
from pumice.statistics import CalibrationStats


class PruneCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Prunes kernels while a model is fitted, and holds what is pruned at exactly 0, optimiser slots included.

    Parameters
    ----------
    sparsity : float in [0, 1)
        In the end.
    stop : int
        Step (batch) at which it is reached, rising from `start` on as `pumice.pruning.cubic_sparsity` says; 0: at once.
    start, every : int
        Steps: where pruning begins, and from one pruning to the next.
    match : str
        Regular expression that finds kernels by their path, such as ``"dense"``.
    pattern, method, scope
        As in `pumice.prune`, of the matrices (outputs, inputs).
    stats : CalibrationStats, optional
        Of `pumice.keras.collect`: for ``"wanda"`` and ``"sparsegpt"``.

    Examples
    --------
    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(4)])
    >>> model.compile("sgd", "mse")
    >>> _ = model.fit(np.ones((4, 8)), np.ones((4, 4)), verbose=0, callbacks=[PruneCallback(0.75)])
    >>> int((model.layers[0].get_weights()[0] == 0).sum())
    24
    """

    def __init__(
        self, sparsity: float, *, stop: int = 0, start: int = 0, every: int = 1, match: str = "",
        pattern: str | None = None, method: str = "magnitude", scope: str | None = None,
        stats: CalibrationStats | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_sparsity("sparsity", sparsity)
        if not 0 <= start <= stop or every < 1:
            raise ValueError(f"stop: expected 0 <= start <= stop and every >= 1, got {start}, {stop}, {every}")
        self.sparsity, self.start, self.stop, self.every, self.match = sparsity, start, stop, every, match
        self._how: dict[str, Any] = {"pattern": pattern, "method": method, "scope": scope, "stats": stats}
        self.masks: dict[str, np.ndarray[Any, Any]] = {}
        self._step = 0

    def on_train_begin(self, logs: Any = None) -> None:
        found = [name for name, _ in kernels(self.model) if re.search(self.match, name)]
        if not found:
            raise ValueError(
                f"match: expected a pattern that finds a kernel of {self.model.name!r}, got {self.match!r}"
            )

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        due = self._step == self.stop or (
            self.start <= self._step < self.stop and (self._step - self.start) % self.every == 0
        )
        if due:
            at = self.sparsity
            if self.stop > self.start:
                at = cubic_sparsity(self._step, final=self.sparsity, start=self.start, stop=self.stop)
            self._prune(at)
        self._step += 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._hold()

    def _chosen(self) -> dict[str, tuple[Any, np.ndarray[Any, Any]]]:
        return {name: found for name, found in kernels(self.model) if re.search(self.match, name)}

    def _prune(self, sparsity: float) -> None:
        chosen = self._chosen()
        pruned, masks = prune({name: w for name, (_, w) in chosen.items()}, sparsity, return_mask=True, **self._how)
        for name, mask in masks.items():
            if PRUNERS[self._how["method"]].solve is not None:  # what stays has changed, too
                variable, turned = _variable(chosen[name][0], pruned[name])
                variable.assign(turned)
            self.masks[name] = mask & self.masks.get(name, np.True_)
        self._hold()

    def _hold(self) -> None:
        if not self.masks:
            return
        for name, (layer, _) in self._chosen().items():
            variable, mask = _variable(layer, self.masks[name])
            keep = ops.convert_to_tensor(mask.astype(np.float32))
            variable.assign(variable * ops.cast(keep, variable.dtype))
            for slot in self._slots(variable):
                slot.assign(slot * ops.cast(keep, slot.dtype))

    def _slots(self, variable: Any) -> Iterator[Any]:
        """The optimiser's variables that belong to a weight: its path is in theirs."""
        optimizer = getattr(self.model, "optimizer", None)
        for slot in [] if optimizer is None else optimizer.variables:
            if slot.path.split("/", 1)[-1].startswith(variable.path.replace("/", "_")) and slot.shape == variable.shape:
                yield slot


def _variable(layer: Any, matrix: np.ndarray[Any, Any]) -> tuple[Any, np.ndarray[Any, Any]]:
    """The weight of a layer, and a matrix (outputs, inputs) in its shape."""
    if isinstance(layer, keras.layers.Embedding):
        return layer.embeddings, matrix
    return layer.kernel, matrix.T.reshape(layer.kernel.shape)


class Distiller(keras.Model):  # type: ignore[misc]
    """Fits a student to labels and to a teacher.

    The loss is ``alpha * (what was compiled) + (1 - alpha) * T^2 * KL(teacher || student)``, as in
    `pumice.distillation.distillation_loss`.

    Parameters
    ----------
    student, teacher : keras.Model
        Give logits of equal shape; models that end in a softmax are refused. The teacher is not trained: its
        `trainable` becomes False.
    temperature : float
        T, above 0.
    alpha : float
        Share of the hard labels, from 0 to 1. At 0 neither labels nor a compiled loss are needed.

    Examples
    --------
    >>> import keras, numpy as np
    >>> keras.utils.set_random_seed(0)
    >>> teacher, student = (keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(4)]) for _ in range(2))
    >>> distiller = Distiller(student, teacher, alpha=0.0)
    >>> distiller.compile(keras.optimizers.Adam(0.05))
    >>> x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    >>> losses = distiller.fit(x, epochs=60, verbose=0).history["loss"]
    >>> losses[-1] < 0.05 * losses[0]
    True
    """

    def __init__(
        self, student: Any, teacher: Any, *, temperature: float = 2.0, alpha: float = 0.1, **options: Any
    ) -> None:
        super().__init__(**options)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature: expected a finite number above 0, got {temperature}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: expected a number from 0 to 1, got {alpha}")
        for name, model in (("student", student), ("teacher", teacher)):
            if _ends_in_softmax(model):
                rule = "a model that gives logits"
                raise ValueError(f"{name}: expected {rule}, got {model.name!r}, which ends in a softmax")
        self.student, self.teacher, self.temperature, self.alpha = student, teacher, temperature, alpha
        teacher.trainable = False

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.student(x, training=training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        hard = 0.0
        if self.alpha:
            hard = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        z = ops.stop_gradient(self.teacher(x, training=False))
        if tuple(z.shape[1:]) != tuple(y_pred.shape[1:]):
            raise ValueError(f"teacher: expected logits {tuple(y_pred.shape)} as the student, got {tuple(z.shape)}")
        t = self.temperature
        log_p, log_q = ops.log_softmax(z / t, axis=-1), ops.log_softmax(y_pred / t, axis=-1)
        soft = t * t * ops.mean(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1))
        return self.alpha * hard + (1 - self.alpha) * soft


def _ends_in_softmax(model: Any) -> bool:
    last = model.layers[-1] if getattr(model, "layers", None) else None
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax
