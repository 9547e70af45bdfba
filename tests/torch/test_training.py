"""Training in torch: pruned weights stay 0, quantized weights are those that get stored, students learn."""

from __future__ import annotations

import copy
import functools
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pumice as pm
from pumice.distillation import TopKLogits, distillation_loss
from pumice.torch import DistillationLoss, Distiller, GradualPruning, compress_, prune_, quantize_aware_

ADAM = functools.partial(torch.optim.Adam, lr=0.02)
OPTIMIZERS = [
    functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    functools.partial(torch.optim.AdamW, lr=0.01),
    functools.partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    functools.partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
    functools.partial(torch.optim.Adagrad, lr=0.1),
]


def network(width: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 8))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(32, 16, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.func.__name__)
def test_pruned_weights_and_their_momentum_stay_exactly_zero(optimizer: functools.partial) -> None:
    model = network()
    running = optimizer(model.parameters())
    train(model, running)  # gathers momentum before the mask comes
    masks = prune_(model, 0.5).hold(running)
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    train(model, running)
    for name in masks:
        weight = model.get_parameter(name)
        assert not weight[~masks[name]].any()
        assert (weight != before[name])[masks[name]].any()
        for value in running.state[weight].values():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                assert not value[~masks[name]].any()


def test_masks_are_those_of_pumice_prune() -> None:
    model = network()
    first = model[0].weight.detach().numpy().copy()
    masks = prune_(model, 0.75, match="^0", pattern="bsr-4x4")
    np.testing.assert_array_equal(model[0].weight.detach().numpy(), pm.prune(first, 0.75, pattern="bsr-4x4"))
    assert list(masks) == ["0.weight"]
    np.testing.assert_array_equal(masks.masks["0.weight"], model[0].weight.detach().numpy() != 0)
    assert masks.density == 0.25


def test_a_released_weight_learns_again() -> None:
    model = network()
    optimizer = OPTIMIZERS[0](model.parameters())
    masks = prune_(model, 0.5).hold(optimizer)
    masks.release()
    train(model, optimizer)
    assert model[0].weight[~masks["0.weight"]].any()


def test_gradual_pruning_follows_the_cubic_schedule_and_never_turns_back() -> None:
    model = network()
    masks = prune_(model, 0.0)
    schedule = GradualPruning(masks, 0.8, begin=2, end=12, every=2)
    densities = []
    for _ in range(15):
        schedule.step()
        densities.append(masks.density)
    assert densities[:2] == [1, 1]
    assert all(b <= a for a, b in pairwise(densities))
    expected = 0.8 - 0.8 * (1 - 4 / 10) ** 3  # Zhu and Gupta, equation 1
    assert schedule.sparsity(6) == pytest.approx(expected)
    assert densities[6] == densities[7] == pytest.approx(1 - expected, abs=1e-2)
    assert densities[12] == densities[14] == pytest.approx(0.2, abs=1e-2)


@pytest.mark.parametrize("scheme", ["int8", "int4-g32", "int3-g16-asym", "bitmask+int8", "2:4+int4-g32"])
def test_training_computes_with_the_weights_that_get_stored(scheme: str) -> None:
    model = network()
    if scheme.startswith("2:4"):
        prune_(model, 0.5, pattern="2:4")
    assert quantize_aware_(model, scheme) == {"0.weight": scheme, "2.weight": scheme}
    train(model, ADAM(model.parameters()))
    trained = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    expected = pm.compress(model[0].parametrizations.weight.original.detach().numpy(), scheme)
    compress_(model, scheme)
    assert model[0].array.scheme == scheme
    for layer, weight in zip((model[0], model[2]), trained, strict=True):
        torch.testing.assert_close(layer.weight, weight, rtol=0, atol=0)
    np.testing.assert_array_equal(model[0].array.to_dense(), expected.to_dense())


def test_gradients_pass_straight_through_rounding() -> None:
    model = network()
    x = torch.randn(4, 16)
    quantize_aware_(model, "int4-g32")
    model(x).sum().backward()
    gradient = model[2].parametrizations.weight.original.grad
    plain = network()
    with torch.no_grad():
        for mine, theirs in ((plain[0], model[0]), (plain[2], model[2])):
            mine.weight.copy_(theirs.weight)
    plain(x).sum().backward()
    torch.testing.assert_close(gradient, plain[2].weight.grad)


def test_masks_hold_through_quantization_aware_training() -> None:
    model = network()
    quantize_aware_(model, "bitmask+int8")
    optimizer = ADAM(model.parameters())
    masks = prune_(model, 0.5).hold(optimizer)
    train(model, optimizer)
    compress_(model, "bitmask+int8")
    assert masks.density == 0.5
    assert model[0].array.density <= 0.5


def test_the_loss_is_that_of_numpy() -> None:
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(2, 5, 7), torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    labels[0, 2] = -100
    z = student.clone().requires_grad_()
    loss = DistillationLoss(temperature=3.0, alpha=0.25)(z, teacher, labels)
    loss.backward()
    where = (labels != -100).numpy()
    expected = distillation_loss(
        student.numpy(), teacher.numpy(), labels.numpy(), temperature=3.0, alpha=0.25, where=where
    )
    assert loss.item() == pytest.approx(expected.value, rel=1e-5)
    np.testing.assert_allclose(z.grad.numpy(), expected.gradient, atol=1e-6)
    whole = TopKLogits.of(teacher.numpy(), 7, temperature=3.0)
    z2 = student.clone().requires_grad_()
    cached = DistillationLoss(temperature=3.0, alpha=0.25)(z2, whole, labels)
    cached.backward()
    assert cached.item() == pytest.approx(expected.value, rel=1e-5)
    np.testing.assert_allclose(z2.grad.numpy(), expected.gradient, atol=1e-6)


def test_a_student_learns_from_its_teacher_and_leaves_it_alone() -> None:
    teacher = network(64)
    before = {name: p.clone() for name, p in teacher.state_dict().items()}
    torch.manual_seed(3)
    student = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    distiller = Distiller(student, teacher, ADAM, DistillationLoss(alpha=0.0), hidden={"1": "1"}, hidden_weight=0.1)
    batches = [(torch.randn(64, 16), torch.randint(0, 8, (64,))) for _ in range(4)]
    seen = []
    history = distiller.fit(batches, epochs=30, on_step=lambda n, loss: seen.append((n, loss)))
    assert len(history) == len(seen) == 120
    assert np.mean(history[-8:]) < 0.3 * np.mean(history[:4])
    assert all(torch.equal(p, before[name]) for name, p in teacher.state_dict().items())
    assert not teacher.training
    assert distiller.projections["0"].weight.shape == (64, 16)


def test_a_student_learns_from_cached_logits() -> None:
    teacher, student, x = network(64), network(8), torch.randn(64, 16)
    cached = TopKLogits.of(teacher(x).detach().numpy(), 3, temperature=2.0)
    distiller = Distiller(student, None, ADAM, DistillationLoss(temperature=2.0, alpha=0.0))
    losses = [distiller.step(x, teacher_logits=cached) for _ in range(80)]
    assert losses[-1] < 0.3 * losses[0]


def test_mappings_tuples_and_objects_with_logits_serve_as_models() -> None:
    class Output:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Output:
            return Output(self.inner(x))

    distiller = Distiller(Model(), Model(), ADAM, DistillationLoss(alpha=0.0))
    x = torch.randn(4, 16)
    assert distiller.step({"x": x}) == pytest.approx(0, abs=1e-6)
    assert distiller.step((x, torch.ones(4))) == pytest.approx(0, abs=1e-2)


def begun(optimizer: functools.partial) -> dict[str, Any]:
    """What a training that prunes and quantizes consists of."""
    model = network()
    quantize_aware_(model, "bitmask+int8")
    running = optimizer(model.parameters())
    masks = prune_(model, 0.0).hold(running)
    return {"model": model, "optimizer": running, "masks": masks, "schedule": GradualPruning(masks, 0.75, end=8)}


def go_on(parts: dict[str, Any], steps: range) -> None:
    for step in steps:
        parts["optimizer"].zero_grad()
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(step))
        parts["model"](x).square().mean().backward()
        parts["optimizer"].step()
        parts["schedule"].step()


@pytest.mark.parametrize("stop", [4, 10], ids=["while it prunes", "after"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.func.__name__)
def test_a_training_that_is_taken_up_again_ends_as_if_it_had_not_stopped(
    optimizer: functools.partial, stop: int, tmp_path: Path
) -> None:
    whole, stopped, again = (begun(optimizer) for _ in range(3))
    go_on(whole, range(12))
    go_on(stopped, range(stop))
    torch.save({name: part.state_dict() for name, part in stopped.items()}, tmp_path / "state.pt")
    go_on(again, range(20, 23))  # whatever it was before
    for name, state in torch.load(tmp_path / "state.pt", weights_only=True).items():
        again[name].load_state_dict(state)
    assert again["masks"].density == stopped["masks"].density < 1
    go_on(again, range(stop, 12))
    for name, exact in whole["model"].state_dict().items():
        torch.testing.assert_close(again["model"].state_dict()[name], exact, rtol=0, atol=0)
    for name in whole["masks"]:
        mask = whole["masks"][name]
        assert torch.equal(again["masks"][name], mask)
        assert not again["model"].get_parameter(name.replace("weight", "parametrizations.weight.original"))[~mask].any()
    assert again["masks"].density == 0.25
    for parts in (whole, again):
        compress_(parts["model"], "bitmask+int8")
    for name, stored in whole["model"].state_dict().items():
        assert torch.equal(again["model"].state_dict()[name], stored)


def test_a_distiller_goes_on_from_its_state() -> None:
    batches = [(torch.randn(8, 16), torch.randint(0, 8, (8,))) for _ in range(6)]

    def made() -> Distiller:
        teacher = network(64)
        return Distiller(network(8), teacher, ADAM, DistillationLoss(), hidden={"1": "1"})

    torch.manual_seed(5)
    whole = made()
    whole.fit(batches[:3])
    state = copy.deepcopy(whole.state_dict())
    expected = whole.fit(batches[3:])
    again = made()
    again.load_state_dict(state)
    assert again.fit(batches[3:]) == expected


def test_masks_of_other_weights_are_refused() -> None:
    masks = prune_(network(), 0.5)
    for changed, message in [
        ({"0.weight": None}, r"expected a mask torch.bool \(32, 16\) of '0.weight', got no mask"),
        ({"1.weight": torch.ones(2, 2)}, r"expected no mask of '1.weight', got a mask torch.float32 \(2, 2\)"),
        ({"2.weight": torch.ones(8, 1) > 0}, r"\(8, 32\) of '2.weight', got a mask torch.bool \(8, 1\)"),
    ]:
        state = {name: mask for name, mask in (masks.state_dict() | changed).items() if mask is not None}
        with pytest.raises(ValueError, match=f"state: .*{message}"):
            masks.load_state_dict(state)
    assert masks.density == 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_logits_of_other_dtypes_are_compared_in_float32_at_least(dtype: torch.dtype) -> None:
    student, teacher = torch.randn(4, 50).to(dtype), torch.randn(4, 50)
    loss = DistillationLoss(alpha=0.0)
    exact = loss(student.double(), teacher.to(dtype).double())
    torch.testing.assert_close(loss(student, teacher.to(dtype)).double(), exact, rtol=1e-5, atol=0)


def test_what_does_not_fit_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"match: expected a pattern .* got '3.weight' \(near"):
        prune_(model, 0.5, match="3.weight")
    with pytest.raises(ValueError, match=r"sparsity: expected a number in \[0, 1\), got 1.5"):
        prune_(model, 1.5)
    with pytest.raises(ValueError, match="model: expected Linear or Conv layers"):
        prune_(nn.ReLU(), 0.5)
    with pytest.raises(ValueError, match="0.weight: expected a weight on the CPU, got one on meta"):
        prune_(nn.Sequential(nn.Linear(4, 4, device="meta")), 0.5)
    with pytest.raises(TypeError, match="0.weight: expected one of .*, got torch.complex64"):
        prune_(nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64)), 0.5)
    with pytest.raises(ValueError, match="final: expected 0 <= initial <= final < 1"):
        GradualPruning(prune_(model, 0.0), 1.5, end=3)
    with pytest.raises(ValueError, match="end: expected 0 <= begin < end"):
        GradualPruning(prune_(model, 0.0), 0.5, begin=3, end=3)
    with pytest.raises(ValueError, match="scheme: expected one that is fixed"):
        quantize_aware_(model, "auto")
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0, got 0"):
        DistillationLoss(temperature=0)
    with pytest.raises(ValueError, match="alpha: expected a number from 0 to 1, got -1"):
        DistillationLoss(alpha=-1)
    loss = DistillationLoss()
    with pytest.raises(ValueError, match="labels: expected some, since alpha is 0.1"):
        loss(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"teacher: expected logits \(1, 2\) as the student, got \(1, 3\)"):
        loss(torch.zeros(1, 2), torch.zeros(1, 3), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels: expected shape \(1,\) as the student's rows, got \(2,\)"):
        loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="labels: expected at least one that counts, got -100 alone"):
        loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([-100]))
    for teacher in (torch.zeros(1, 2, device="meta"), torch.zeros(1, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match="teacher: expected floating-point logits on cpu as the student, got"):
            loss(torch.zeros(1, 2), teacher, torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="hidden: expected a module of Sequential, got 'nothing'"):
        Distiller(model, network(), ADAM, hidden={"nothing": "0"})
    with pytest.raises(ValueError, match="teacher_logits: expected logits"):
        Distiller(model, None, ADAM).step(torch.zeros(1, 16))
