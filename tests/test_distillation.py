"""Losses of distillation: torch's values and gradients, finite differences, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp, rel_entr, softmax

import pumice as pm
from pumice.distillation import (
    TopKLogits,
    cache_logits,
    cosine_loss,
    distillation_loss,
    hard_label_loss,
    hidden_state_loss,
    logit_loss,
    soft_target_loss,
)

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.standard_normal((2, 3, 6)), 2 * RNG.standard_normal((2, 3, 6))
LABELS = RNG.integers(0, 6, (2, 3))
WHERE = np.array([[True, False, True], [False, True, True]])
LOSSES: dict[str, Callable[..., Any]] = {
    "soft": lambda z, **o: soft_target_loss(z, TEACHER, temperature=2.5, **o),
    "hard": lambda z, **o: hard_label_loss(z, LABELS, **o),
    "both": lambda z, **o: distillation_loss(z, TEACHER, LABELS, temperature=2.5, alpha=0.3, **o),
    "logit": lambda z, **o: logit_loss(z, TEACHER, **o),
    "cosine": lambda z, **o: cosine_loss(z, TEACHER, **o),
    "state": lambda z, **o: hidden_state_loss(z, TEACHER[..., :4], np.ones((4, 6)), **o),
    "top k": lambda z, **o: soft_target_loss(z, TopKLogits.of(TEACHER, 3, temperature=2.5), temperature=2.5, **o),
}
# Of sums of a few dozen terms in float64.
CLOSE = 1e-13


def test_losses_and_gradients_are_those_of_torch() -> None:
    with np.load(Path(__file__).parent / "golden" / "distillation.npz") as golden:
        g = dict(golden)
    found = {
        "soft": soft_target_loss(g["student"], g["teacher"], temperature=3.0),
        "hard": hard_label_loss(g["student"], g["labels"]),
        "both": distillation_loss(g["student"], g["teacher"], g["labels"], temperature=3.0, alpha=0.25),
        "logit": logit_loss(g["student"], g["teacher"]),
        "cosine": cosine_loss(g["student"], g["teacher"]),
        "state": hidden_state_loss(g["hidden"], g["target"], g["projection"]),
    }
    for name, loss in found.items():
        np.testing.assert_allclose(loss.value, g[f"{name}_loss"], rtol=CLOSE)
        np.testing.assert_allclose(loss.gradient, g[f"{name}_gradient"], rtol=0, atol=CLOSE)
    np.testing.assert_allclose(found["state"].projection_gradient, g["projection_gradient"], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_differences_of_values(name: str) -> None:
    loss = LOSSES[name]
    gradient = loss(STUDENT, where=WHERE).gradient
    step = 1e-5  # central: the error is of the order step^2 times the third derivative, below 1
    for index in np.ndindex(STUDENT.shape):
        moved = np.zeros_like(STUDENT)
        moved[index] = step
        slope = (loss(STUDENT + moved, where=WHERE).value - loss(STUDENT - moved, where=WHERE).value) / (2 * step)
        assert gradient[index] == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_that_do_not_count_change_nothing(name: str) -> None:
    loss = LOSSES[name]
    disturbed = STUDENT.copy()
    disturbed[~WHERE] = np.nan
    plain, other = loss(STUDENT, where=WHERE), loss(disturbed, where=WHERE)
    assert plain.value == other.value
    np.testing.assert_array_equal(plain.gradient, other.gradient)
    assert not plain.gradient[~WHERE].any()
    everything = loss(STUDENT)
    assert everything.value == loss(STUDENT, where=np.ones_like(WHERE)).value != plain.value


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("given", "expected"), [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), (">f4", "f4"), (">f8", "f8")]
)
def test_a_gradient_has_the_shape_and_dtype_of_the_student(name: str, given: str, expected: str) -> None:
    loss = LOSSES[name](STUDENT.astype(given))
    assert (loss.gradient.dtype, loss.gradient.shape) == (np.dtype(expected), STUDENT.shape)
    fortran = LOSSES[name](np.asfortranarray(STUDENT))
    np.testing.assert_array_equal(fortran.gradient, LOSSES[name](STUDENT).gradient)


def test_soft_targets_are_the_divergence_that_scipy_computes() -> None:
    p, q = softmax(TEACHER / 4, axis=-1), softmax(STUDENT / 4, axis=-1)
    expected = 16 * rel_entr(p, q).sum(axis=-1).mean()
    assert soft_target_loss(STUDENT, TEACHER, temperature=4.0).value == pytest.approx(expected, rel=1e-12)
    assert soft_target_loss(TEACHER, TEACHER, temperature=4.0).value == 0


def test_at_a_high_temperature_soft_targets_become_half_of_logit_matching() -> None:
    student, teacher = (z - z.mean(axis=-1, keepdims=True) for z in (STUDENT, TEACHER))
    t = 1e3
    limit = logit_loss(student, teacher).value / 2
    assert soft_target_loss(student, teacher, temperature=t).value == pytest.approx(limit, rel=10 / t)


def test_logits_of_any_size_overflow_nowhere() -> None:
    huge = np.array([[1e30, -1e30, 0.0]])
    for loss in (soft_target_loss(huge, -huge), hard_label_loss(huge, np.array([1])), cosine_loss(huge, -huge)):
        assert np.isfinite(loss.value)
        assert np.isfinite(loss.gradient).all()


def test_cached_logits_of_all_classes_are_the_teacher_itself() -> None:
    full = soft_target_loss(STUDENT, TEACHER.astype(np.float32), temperature=2.0)
    cached = soft_target_loss(STUDENT, TopKLogits.of(TEACHER.astype(np.float32), 6, temperature=2.0), temperature=2.0)
    assert cached.value == pytest.approx(full.value, rel=CLOSE)
    np.testing.assert_allclose(cached.gradient, full.gradient, rtol=0, atol=CLOSE)


def test_fewer_cached_logits_never_make_the_loss_larger() -> None:
    values = [soft_target_loss(STUDENT, TopKLogits.of(TEACHER, k)).value for k in range(1, 7)]
    assert all(a <= b + 1e-7 for a, b in pairwise(values))  # rest is stored as float32
    assert values[0] < values[-1]


def test_cached_logits_weigh_the_rest_at_their_temperature() -> None:
    kept = TopKLogits.of(TEACHER, 2, temperature=3.0)
    order = np.argsort(-TEACHER, axis=-1)
    np.testing.assert_array_equal(kept.ids, order[..., :2])
    rest = logsumexp(np.take_along_axis(TEACHER, order[..., 2:], axis=-1) / 3, axis=-1)
    np.testing.assert_allclose(kept.rest, rest, rtol=1e-6)


def test_a_teacher_is_asked_batch_by_batch_and_kept_in_a_file() -> None:
    batches = [RNG.standard_normal((n, 4)) for n in (3, 1, 2)]
    w = RNG.standard_normal((9, 4))
    kept = cache_logits(lambda x: x @ w.T, iter(batches), 3, temperature=2.0)
    file = io.BytesIO()
    pm.save(file, kept.arrays())
    again = TopKLogits.from_arrays(pm.load(file.getvalue()))
    x, student = np.concatenate(batches), RNG.standard_normal((6, 9))
    whole = soft_target_loss(student, TopKLogits.of(x @ w.T, 3, temperature=2.0), temperature=2.0)
    assert soft_target_loss(student, again, temperature=2.0).value == whole.value
    part = soft_target_loss(student[2:4], again[2:4], temperature=2.0)
    np.testing.assert_allclose(part.gradient, whole.gradient[2:4] * 3, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soft_target_loss(STUDENT, TEACHER[..., :5]), "teacher: expected 6 columns .* got 5"),
        (lambda: soft_target_loss(STUDENT, TEACHER[:1]), r"teacher: expected rows of shape \(2, 3\).* got \(1, 3\)"),
        (lambda: soft_target_loss(STUDENT, TEACHER, temperature=0), "temperature: expected .* above 0, got 0"),
        (lambda: soft_target_loss(STUDENT, TEACHER, temperature=np.inf), "temperature: expected .* got inf"),
        (lambda: soft_target_loss(STUDENT, TopKLogits.of(TEACHER, 2)[:1]), "teacher: expected rows of shape"),
        (lambda: soft_target_loss(STUDENT[..., :5], TopKLogits.of(TEACHER, 2)), "teacher: expected 5 columns"),
        (lambda: soft_target_loss(STUDENT, TopKLogits.of(TEACHER, 2), temperature=2), "temperature: expected 1.0.* 2"),
        (lambda: distillation_loss(STUDENT, TEACHER, LABELS, alpha=1.5), "alpha: expected .* 0 to 1, got 1.5"),
        (lambda: hard_label_loss(STUDENT, LABELS + 1), "labels: expected integers from 0 to 5, got"),
        (lambda: hard_label_loss(STUDENT, LABELS[0]), r"labels: expected shape \(2, 3\)"),
        (lambda: hard_label_loss(STUDENT, LABELS, where=~(WHERE | True)), "where: expected at least one row"),
        (lambda: hard_label_loss(STUDENT, LABELS, where=WHERE[0]), r"where: expected bool of shape \(2, 3\)"),
        (lambda: cosine_loss(STUDENT * 0, TEACHER), "student: expected rows other than zero"),
        (lambda: hidden_state_loss(STUDENT, TEACHER, np.ones((6, 5))), r"projection: expected shape \(6, 6\)"),
        (lambda: TopKLogits.of(TEACHER, 7), r"k: expected 1 to 6 \(classes\), got 7"),
        (lambda: cache_logits(lambda x: x, [], 1), "batches: expected at least one"),
        (lambda: cache_logits(lambda x: x, [np.ones((1, 3)), np.ones((1, 4))], 1), "teacher: expected logits .* 1"),
        (lambda: logit_loss(np.float64(1), np.float64(1)), r"student: expected shape \(\.\.\., columns\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(pm.NonFiniteError, match="student: expected finite values, got nan"):
        logit_loss(np.array([[np.nan]]), np.array([[1.0]]))
    with pytest.raises(pm.NonFiniteError, match="teacher: expected finite values, got inf"):
        logit_loss(np.array([[1.0]]), np.array([[np.inf]]))
    with pytest.raises(TypeError, match="labels: expected integers, got float64"):
        hard_label_loss(STUDENT, LABELS.astype(float))
    with pytest.raises(TypeError, match="student: expected floating point, got int64"):
        hard_label_loss(LABELS, LABELS[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.array([[0, 9]])}, "classes from 0 to 5"),
        ({"ids": np.array([[1, 1]])}, "each class once"),
        ({"ids": np.array([[0.0, 1.0]])}, "integers"),
        ({"logits": np.array([[np.nan, 1.0]])}, "finite logits"),
        ({"rest": np.array([[1.0]])}, "integers"),
        ({"about": np.array([6.5, 1.0])}, "number of classes"),
    ],
)
def test_cached_logits_that_break_a_rule_are_refused(change: dict[str, Any], message: str) -> None:
    arrays = TopKLogits.of(TEACHER[0, :1], 2).arrays()
    with pytest.raises(pm.FormatError, match=message):
        TopKLogits.from_arrays(arrays | change)
    with pytest.raises(pm.FormatError, match="none called 'rest'"):
        TopKLogits.from_arrays({name: value for name, value in arrays.items() if name != "rest"})
