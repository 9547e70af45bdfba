"""Calibration in torch: moments are those of what layers read, and Wanda and SparseGPT prune by them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import pumice as pm
from pumice.recipe import Recipe
from pumice.torch import collect, compress_, prune_, quantize_aware_

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8))


def mean_of(rows: torch.Tensor) -> np.ndarray:
    wide = rows.reshape(-1, rows.shape[-1]).double().numpy()
    return wide.T @ wide / len(wide)


def close(moments: pm.Moments, rows: torch.Tensor) -> None:
    exact = mean_of(rows)
    np.testing.assert_allclose(moments.mean(), exact, rtol=0, atol=1e-5 * exact.max())


def test_moments_are_those_of_what_layers_read_in_eval_mode() -> None:
    model = network().train()
    x = torch.randn(3, 40, 16)
    stats = collect(model, list(x))
    with torch.no_grad():
        close(stats["0.weight"], x)
        close(stats["3"], model[1](model[0](x)))
    assert stats["0"].count == 120
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_names_are_those_of_the_checkpoint_and_layers_that_read_one_tensor_share_an_entry() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        eos_token_id=None, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    stats = collect(model, [{"input_ids": torch.randint(0, 64, (2, 9))}])
    assert set(stats) == {name for name in model.state_dict() if name.endswith("_proj.weight")}
    layer = "model.layers.1."
    assert stats[layer + "self_attn.q_proj"] is stats[layer + "self_attn.v_proj"]
    assert stats[layer + "mlp.gate_proj"] is stats[layer + "mlp.up_proj"]
    assert stats[layer + "self_attn.o_proj"] is not stats[layer + "self_attn.q_proj"]
    assert stats[layer + "mlp.down_proj"].features == 48


def test_layers_that_part_ways_have_entries_of_their_own() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, alone: bool) -> torch.Tensor:
            y = self.a(x)
            if not alone:
                y = y + self.b(x)
            x.mul_(3)  # the same object, other numbers
            return y + self.a(x)

    x = torch.randn(10, 4)
    stats = collect(Model(), [(x.clone(), False), (2 * x, True)])
    close(stats["a"], torch.cat([x, 3 * x, 2 * x, 6 * x]))
    close(stats["b"], x)


def test_rows_that_the_attention_mask_leaves_out_do_not_count() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    stats = collect(Model(), [{"x": x, "attention_mask": mask}])
    assert stats["fc"].count == 3
    close(stats["fc"], x[mask.bool()])


@pytest.mark.parametrize("conv", [nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Conv1d(3, 4, 5, padding="same")], ids=str)
def test_a_convolution_reads_patches(conv: nn.Module) -> None:
    x = torch.randn(2, 3, *[8] * (conv.weight.dim() - 2))
    moments = collect(nn.Sequential(conv), [x, x[0]])["0"]
    flat = conv.weight.detach().flatten(1).double()
    with torch.no_grad():
        y = conv(x) - conv.bias.reshape(-1, *[1] * (x.dim() - 2))
    outputs = y.movedim(1, -1).flatten(0, -2).double()
    weighted = outputs.square().sum(0) + outputs[: len(outputs) // 2].square().sum(0)  # x[0] is the first half
    energy = (flat @ torch.from_numpy(moments.mean()).double() * flat).sum(1) * moments.count
    torch.testing.assert_close(energy, weighted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_a_model_is_pruned_as_its_checkpoint_would_be(method: str, pattern: str | None) -> None:
    model = network()
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    stats = collect(model, [torch.randn(200, 16) * torch.linspace(0.1, 3, 16)])
    weights = {name: state[name] for name in ("0.weight", "3.weight")}
    expected = pm.prune(weights, 0.5, method=method, pattern=pattern, stats=stats)
    masks = prune_(model, 0.5, method=method, pattern=pattern, stats=stats)
    for name, w in expected.items():
        np.testing.assert_array_equal(model.get_parameter(name).detach().numpy(), w)
        np.testing.assert_array_equal(masks[name].numpy(), w != 0)
    assert masks.density == 0.5


def test_compress_follows_methods_as_its_checkpoint_would_be_converted() -> None:
    model = network()
    stats = collect(model, [torch.randn(200, 16) * torch.linspace(0.1, 3, 16)])
    exact = {name: model.get_parameter(name).detach().numpy().copy() for name in stats}
    plain = copy.deepcopy(model)
    nearest = compress_(plain, "int4-g32", stats=stats)
    report = compress_(model, "int4-g32", method="gptq", damping=0.02, stats=stats)
    for before, after in zip(nearest.tensors, report.tensors, strict=True):
        assert after.output_error < before.output_error
        expected = pm.compress(exact[after.name], "int4-g32", method="gptq", damping=0.02, stats=stats[after.name])
        np.testing.assert_array_equal(
            model.get_submodule(after.name.removesuffix(".weight")).array.codes(), expected.codes()
        )


def test_compress_prunes_and_quantizes_in_one_sweep() -> None:
    model = network()
    stats = collect(model, [torch.randn(200, 16)])
    w = model[0].weight.detach().numpy().copy()
    rules = Recipe.parse("scheme = 'int8'\n[[rule]]\nmatch = '^0'\nscheme = 'bitmask+int8'\nprune = 'sparsegpt:0.5'")
    compress_(model, recipe=rules, stats=stats)
    expected = pm.sparsify(w, "bitmask+int8", 0.5, method="sparsegpt", stats=stats["0"])
    np.testing.assert_array_equal(model[0].array.to_dense(), expected.to_dense())
    assert model[3].array.scheme == "int8"


def test_what_sparsegpt_prunes_stays_zero_while_the_rest_learns() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    masks = prune_(model, 0.75, method="sparsegpt", stats=collect(model, [torch.randn(200, 16)])).hold(optimizer)
    for _ in range(3):
        model(torch.randn(8, 16)).square().sum().backward()
        optimizer.step()
    assert not model[0].weight[~masks["0.weight"]].any()


def test_layers_that_train_quantized_are_collected_under_their_names() -> None:
    model = network()
    quantize_aware_(model, "int8")
    assert list(collect(model, [torch.randn(4, 16)])) == ["0.weight", "3.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_dtypes_are_collected_in_float32(dtype: torch.dtype) -> None:
    model, x = network().to(dtype), torch.randn(20, 16).to(dtype)
    close(collect(model, [x])["0"], x)
    masks = prune_(model, 0.5, method="wanda", stats=collect(model, [x]))
    assert model[0].weight.dtype == dtype
    assert masks.density == 0.5


def test_what_does_not_fit_is_refused_and_leaves_no_hooks() -> None:
    model = network()
    with pytest.raises(ValueError, match="batches: expected at least one batch that reaches a layer, got none"):
        collect(model, [])
    with pytest.raises(ValueError, match="match: expected a pattern that finds the name of a weight, got 'fc'"):
        collect(model, [torch.randn(4, 16)], match="fc")
    with pytest.raises(ValueError, match="match: expected Linear layers and convolutions of one group, got an Embed"):
        collect(nn.Sequential(nn.Embedding(4, 4)), [torch.tensor([1])], match="0")
    with pytest.raises(pm.NonFiniteError, match=r"^0.weight: x: expected finite values .* got nan at index \(2, 3\)"):
        x = torch.randn(4, 16)
        x[2, 3] = torch.nan
        collect(model, [x])
    with pytest.raises(ValueError, match="0.weight: expected a weight on the CPU, got one on meta"):
        collect(nn.Sequential(nn.Linear(4, 4, device="meta")), [torch.randn(4, 4)])
    assert not any(module._forward_pre_hooks for module in model.modules())
    whole = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"stats: expected moments of .*0.weight.* for this method, got None"):
        prune_(model, 0.5, method="wanda")
    with pytest.raises(ValueError, match=r"stats: expected moments of .*3.weight"):
        prune_(model, 0.5, method="sparsegpt", stats=collect(model, [torch.randn(4, 16)], match="^0"))
    with pytest.raises(ValueError, match="method: expected one of .*, got 'obs'"):
        prune_(model, 0.5, method="obs")
    with pytest.raises(ValueError, match=r"stats: expected moments of .*0.weight"):
        compress_(model, "int4-g32", method="gptq")
    with pytest.raises(pm.RecipeError, match=r"options: expected those of the methods .*, got 'dampnig'"):
        compress_(model, "int4-g32", method="gptq", dampnig=0.1)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)
