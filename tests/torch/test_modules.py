"""Compact layers in torch: torch's own results with the decoded weight, as operators, in files, shared and moved."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from safetensors.torch import load_model, save_model
from torch import nn

import pumice as pm
from pumice.torch import CompactConv, CompactEmbedding, CompactLinear, compress_, prune_
from pumice.torch.operators import _slots

SCHEMES = ["float32", "bfloat16", "int8", "int4-g32", "int4-g32-asym", "csr", "bitmask+int8", "bsr-4x4", "2:4+int8"]


def dense(layer: nn.Module) -> torch.Tensor:
    return layer.weight


def small(scheme: str = "") -> nn.Sequential:
    """Two layers, pruned to the pattern of the scheme if it has one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 16, bias=False))
    if scheme.startswith("2:4"):
        prune_(model, 0.5, match=".", pattern="2:4").release()
    return model


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


def close(y: torch.Tensor, exact: torch.Tensor, activations: str) -> None:
    """int16 activations have a relative error of 5e-5 of the largest of 128 columns, int8 of 6e-3 (DESIGN, 6)."""
    scale = float(exact.abs().max())
    torch.testing.assert_close(
        y, exact, rtol=0, atol={"float32": 1e-5, "int16": 5e-4, "int8": 5e-2}[activations] * scale
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("activations", ["float32", "int16", "int8"])
def test_a_linear_layer_computes_with_its_decoded_weight(scheme: str, activations: str) -> None:
    model = small(scheme)
    bias, x = model[0].bias, torch.randn(2, 3, 64)
    compress_(model, scheme, activations=activations)
    layer = model[0]
    assert isinstance(layer, CompactLinear)
    exact = torch.nn.functional.linear(x, dense(layer), bias)
    close(layer(x).detach(), exact.detach(), activations)
    expected = pm.linear(x.numpy(), layer.array, bias.detach().numpy(), activations=activations)
    np.testing.assert_array_equal(layer(x).detach().numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_result_has_the_dtype_of_x(dtype: torch.dtype) -> None:
    model = small()
    compress_(model, "int8")
    x = torch.randn(4, 64).to(dtype)
    assert model[0](x).dtype == dtype
    torch.testing.assert_close(model[0](x).float(), model[0](x.float()).to(dtype).float())


def test_strided_and_empty_x() -> None:
    layer = CompactLinear(pm.compress(np.eye(32, 64, dtype=np.float32), "int8"))
    x = torch.randn(64, 5)
    torch.testing.assert_close(layer(x.T), layer(x.T.contiguous()), rtol=0, atol=0)
    assert layer(torch.empty(0, 64)).shape == (0, 32)
    assert layer(torch.randn(64)).shape == (32,)


def test_memory_is_shared_with_numpy_both_ways() -> None:
    from pumice.torch.operators import as_numpy

    x = torch.randn(3, 8)
    assert np.shares_memory(as_numpy(x), x.numpy())


@pytest.mark.parametrize("name", ["linear", "linear_backward", "rows", "decoded"])
def test_the_operators_keep_the_rules_of_torch_library(name: str) -> None:
    layer = CompactLinear(pm.compress(np.eye(32, 64, dtype=np.float32), "int8"))
    arguments = {
        "linear": (leaf(3, 64), layer._slot.number, 32, leaf(32), "int16"),
        "linear_backward": (torch.randn(3, 32), layer._slot.number, 64),
        "rows": (torch.tensor([[0, 31]]), layer._slot.number, 64),
        "decoded": (layer._slot.number, 32, 64),
    }  # fmt: skip
    operator = getattr(torch.ops.pumice, name).default
    torch.library.opcheck(operator, arguments[name])
    if name == "linear":
        torch.library.opcheck(operator, (torch.randn(3, 64), layer._slot.number, 32, None, "float32"))


def test_gradients_reach_x_and_the_bias() -> None:
    model = small()
    compress_(model, "int8", activations="float32")
    x = torch.randn(5, 64, requires_grad=True)
    y = model[0](x)
    up = torch.randn_like(y)
    (gradient, bias) = torch.autograd.grad(y, [x, model[0].bias], up)
    torch.testing.assert_close(gradient, up @ dense(model[0]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias, up.sum(0))


def test_a_compiled_model_is_one_graph_and_computes_the_same() -> None:
    model = small()
    compress_(model, "int4-g32")
    x = torch.randn(3, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=0)
    other = torch.randn(7, 64)
    torch.testing.assert_close(compiled(other), model(other), rtol=0, atol=0)


def test_a_compiled_graph_goes_on_with_weights_that_are_loaded() -> None:
    model, other = small(), small()
    compress_(model, "int4-g32")
    with torch.no_grad():
        other[0].weight.mul_(2)
    compress_(other, "int8")
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled, x = torch.compile(model, fullgraph=True, backend=graphs), torch.randn(3, 64)
    compiled(x)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(compiled(x), other(x), rtol=0, atol=0)
    assert graphs.frame_count == 1


def test_code_that_reads_the_weight_compiles() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.to(self.fc.weight.dtype)) + x @ self.fc.weight.T

    model, x = Model(), torch.randn(3, 32)
    compress_(model, "int8", activations="float32")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), 2 * x @ model.fc.weight.T)


@pytest.mark.parametrize("first", [True, False], ids=["compressed, then sent", "sent, then compressed"])
def test_layers_answer_in_the_dtype_that_the_model_is_sent_to(first: bool) -> None:
    model = nn.Sequential(nn.Embedding(16, 32), nn.LayerNorm(32), nn.Linear(32, 8))
    for step in (0, 1) if first else (1, 0):
        if step == 0:
            compress_(model, "int8")
        else:
            model.to(torch.bfloat16)
    assert model(torch.tensor([1, 2])).dtype == model[0].weight.dtype == model[2].weight.dtype == torch.bfloat16
    assert "0._like" not in model.state_dict()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_state_dict_holds_plain_tensors_and_brings_them_back(scheme: str) -> None:
    model, other = small(scheme), nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 16, bias=False))
    compress_(model, scheme)
    compress_(other, "int8")
    state = model.state_dict()
    assert all(type(value) is torch.Tensor for value in state.values())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other[0].array.scheme == model[0].array.scheme
    x = torch.randn(3, 64)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


def test_a_state_dict_that_does_not_fit_is_refused() -> None:
    model = small()
    compress_(model, "int8")
    state = model.state_dict()
    state["0.weight_packed"] = state["0.weight_packed"][:1]
    with pytest.raises(RuntimeError, match="0.weight: packed: expected"):
        model.load_state_dict(state)
    del state["0.weight_scheme"]
    with pytest.raises(RuntimeError, match="Missing key.*0.weight_scheme"):
        model.load_state_dict(state)


def test_copies_and_pickles_live_on_their_own_and_no_longer() -> None:
    gc.collect()
    start = len(_slots)
    model = small()
    compress_(model, "int4-g32")
    x = torch.randn(3, 64)
    y = model(x)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    del model
    gc.collect()
    for other in copies:
        torch.testing.assert_close(other(x), y, rtol=0, atol=0)
    del other
    copies.clear()
    gc.collect()
    assert len(_slots) == start


def test_an_embedding_gives_decoded_rows() -> None:
    model = nn.Sequential(nn.Embedding(50, 32))
    compress_(model, "int4-g32", tensors={"weight": "int4-g32"})
    assert isinstance(model[0], CompactEmbedding)
    ids = torch.tensor([[0, 49, 3]])
    torch.testing.assert_close(model(ids), torch.nn.functional.embedding(ids, dense(model[0])), rtol=0, atol=0)
    with pytest.raises(IndexError):
        model(torch.tensor([50]))


CONVS = [
    (nn.Conv2d(3, 8, 1), (2, 3, 9, 7)),
    (nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 9, 7)),
    (nn.Conv2d(3, 8, (3, 2), padding=(2, 1), dilation=(1, 2), bias=False), (3, 9, 7)),
    (nn.Conv2d(3, 8, 4, padding="same"), (1, 3, 9, 7)),
    (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), (1, 3, 9, 7)),
    (nn.Conv1d(3, 8, 5, stride=2, padding=2), (2, 3, 21)),
    (nn.Conv1d(3, 8, 1), (3, 21)),
    (nn.Conv1d(3, 8, 3, padding="valid"), (2, 3, 21)),
]


@pytest.mark.filterwarnings("ignore:Using padding=.same")
@pytest.mark.parametrize(("conv", "shape"), CONVS, ids=lambda v: str(v))
def test_a_convolution_computes_with_its_decoded_kernel(conv: nn.Module, shape: tuple[int, ...]) -> None:
    model, x = nn.Sequential(copy.deepcopy(conv)), torch.randn(shape)
    compress_(model, "int8", activations="float32")
    assert isinstance(model[0], CompactConv)
    with torch.no_grad():
        conv = copy.deepcopy(conv)
        conv.weight.copy_(dense(model[0]))
        torch.testing.assert_close(model(x), conv(x), rtol=1e-5, atol=1e-5)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lm_head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
        self.lm_head.weight = self.embed.weight
        self.fc = nn.Linear(32, 32)
        self.again = self.fc


def test_tied_weights_stay_tied_and_are_stored_once() -> None:
    model = Tied()
    report = compress_(model, "int4-g32")
    assert model.embed.array is model.lm_head.array
    assert model.fc.array is model.again.array
    assert report.nbytes_after == model.embed.array.nbytes + model.fc.array.nbytes
    schemes = {tensor.name: tensor.scheme for tensor in report.tensors}
    assert schemes == {
        "embed.weight": "int8",
        "lm_head.weight": "int8",
        "fc.weight": "int4-g32",
        "again.weight": "int4-g32",
    }


def test_tied_weights_are_saved_once_and_tied_when_they_are_loaded() -> None:
    torch.manual_seed(0)
    model, other = Tied(), Tied()
    compress_(model, "int8")
    compress_(other, "int4-g32")
    state = model.state_dict()
    assert state["embed.weight_packed"] is state["lm_head.weight_packed"]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    for again in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.embed.array is again.lm_head.array
        torch.testing.assert_close(again.lm_head.weight, model.embed.weight, rtol=0, atol=0)
    other.embed.tie(CompactEmbedding(pm.compress(np.eye(64, 32, dtype=np.float32), "int8")))
    assert other.embed.array is not other.lm_head.array
    with pytest.raises(ValueError, match=r"other: expected a weight of shape \(64, 32\), got \(32, 32\)"):
        other.embed.tie(other.fc)


def test_safetensors_saves_and_loads_a_tied_model(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    compress_(model, "int8")
    compress_(other, "int8")
    save_model(model, str(tmp_path / "model.safetensors"))
    assert load_model(other, tmp_path / "model.safetensors") == (set(), [])
    torch.testing.assert_close(other.lm_head.weight, model.lm_head.weight, rtol=0, atol=0)


def test_weights_that_share_one_which_stays_stay_too() -> None:
    for rules in ({"ignore": ["lm_head"]}, {"ignore": ["embed"]}):
        model = Tied()
        report = compress_(model, "int8", **rules)
        assert [type(layer) for layer in (model.embed, model.lm_head)] == [nn.Embedding, nn.Linear]
        assert model.embed.weight is model.lm_head.weight
        assert report.nbytes_before == 4 * (64 + 32) * 32
        assert sorted(tensor.why.partition(":")[0] for tensor in report.tensors)[-1] == "shared"


def test_subclasses_with_a_forward_of_their_own_stay() -> None:
    class Twice(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    class Named(nn.Linear):
        pass

    model = nn.Sequential(Twice(32, 32), Named(32, 32), nn.Linear(32, 32))
    model[2].forward = lambda x: x
    report = compress_(model, "int8")
    assert [type(layer) for layer in model] == [Twice, CompactLinear, nn.Linear]
    assert report.tensors[0].why == "a Twice, whose forward is its own"


def test_matrices_of_other_modules_stay_and_the_report_says_so() -> None:
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x = torch.randn(2, 5, 32)
    exact = model(x)
    report = compress_(model, "int8")
    assert {t.name: t.why for t in report.tensors if t.scheme == "F32"} == {
        "self_attn.in_proj_weight": "of a MultiheadAttention"
    }
    assert report.nbytes_before == 4 * (4 * 32 * 32 + 2 * 32 * 64)
    torch.testing.assert_close(model(x), exact, rtol=0, atol=0.1)


def test_what_no_layer_computes_stays_and_the_report_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Linear(8, 8), nn.Embedding(8, 8, max_norm=1.0))
    report = compress_(model, "int8", tensors={"^2": "int8"})
    assert [type(layer).__name__ for layer in model] == ["Conv2d", "CompactLinear", "Embedding"]
    assert [t.why for t in report.tensors][::2] == ["a convolution in 2 groups", "an embedding with max_norm"]


def test_rules_are_those_of_convert_and_errors_leave_the_model_as_it_was() -> None:
    model = small()
    with pytest.raises(pm.RecipeError, match="near: '0.weight'"):
        compress_(model, "int8", tensors={"0.wieght": "int4-g32"})
    with pytest.raises(ValueError, match="scheme: expected a scheme, a recipe or tensors, got none"):
        compress_(model)
    with pytest.raises(ValueError, match="model: expected a module that holds layers, got a Linear itself"):
        compress_(model[0], "int8")
    with pytest.raises(ValueError, match="model: expected Linear, Embedding or Conv layers, got a GELU without"):
        compress_(model[1], "int8")
    with torch.no_grad():
        model[2].weight[3, 4] = torch.nan
    with pytest.raises(pm.NonFiniteError, match=r"2.weight: .*\(3, 4\)"):
        compress_(model, "int8")
    assert [type(layer) for layer in model] == [nn.Linear, nn.GELU, nn.Linear]
    compress_(model, "int8", ignore=["^2"])
    assert isinstance(model[2], nn.Linear)
    meta = nn.Sequential(nn.Linear(4, 4, device="meta"))
    with pytest.raises(ValueError, match="0.weight: expected a weight on the CPU, got one on meta"):
        compress_(meta, "int8")
