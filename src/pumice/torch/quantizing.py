"""Quantization-aware training: layers compute with the weights that will be stored, gradients pass straight through
(Bengio, Leonard and Courville 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pumice.ops import compress
from pumice.recipe import Recipe
from pumice.scheme import Scheme
from pumice.torch.layers import Trained, dense, in_axis, info, parameter, weighty


class _Rounded(torch.autograd.Function):
    """compress and decode; the derivative is taken to be 1."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scheme: str, axis: int) -> Tensor:
        return torch.from_numpy(compress(dense(weight), scheme, in_axis=axis).to_dense()).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None, None


class StraightThrough(Trained):
    """A parametrization: the weight as a scheme stores it."""

    def __init__(self, scheme: Scheme, axis: int = 1) -> None:
        super().__init__()
        self.scheme, self.axis = str(scheme), axis

    def forward(self, weight: Tensor) -> Tensor:
        rounded: Tensor = _Rounded.apply(weight, self.scheme, self.axis)  # type: ignore[no-untyped-call]
        return rounded

    def extra_repr(self) -> str:
        return self.scheme


def quantize_aware_(
    model: nn.Module,
    scheme: str | Scheme | None = None,
    *,
    recipe: Recipe | None = None,
    tensors: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    keep_embeddings: bool = False,
) -> dict[str, str]:
    """Let a model compute with the weights that `compress_` with the same rules will store: to the bit.

    Train on as usual; `compress_` ends it. Masks of `prune_` hold through it.

    Parameters
    ----------
    model : torch.nn.Module
    scheme, recipe, tensors, ignore, keep_embeddings
        As in `pumice.convert`; ``"auto"`` is not for training.

    Returns
    -------
    dict of str to str
        Name of a weight -> its scheme.

    Examples
    --------
    >>> import torch
    >>> from pumice.torch import compress_
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 4))
    >>> quantize_aware_(model, "int4-g32")
    {'0.weight': 'int4-g32'}
    >>> trained = model[0].weight.detach().clone()
    >>> _ = compress_(model, "int4-g32")
    >>> torch.equal(trained, model[0].weight)
    True
    """
    plan = Recipe.of(scheme, recipe, tensors=tensors, ignore=ignore, keep_embeddings=keep_embeddings).without_methods()
    layers = dict(weighty(model))
    treatments = plan.plan({name: info(name, parameter(layer), in_axis(layer)) for name, layer in layers.items()})
    found = {name: t.scheme for name, t in treatments.items() if t.scheme is not None}
    auto = next((name for name, s in found.items() if str(s) == "auto"), None)
    if auto is not None:
        raise ValueError(f"scheme: expected one that is fixed while {auto} learns, got 'auto'")
    if not found:
        raise ValueError("scheme: expected rules that find a weight, got none")
    for name, chosen in found.items():
        if not parametrize.is_parametrized(layers[name], "weight"):  # a layer in two places comes twice
            rounded = StraightThrough(chosen, in_axis(layers[name]))
            parametrize.register_parametrization(layers[name], "weight", rounded)
    return {name: str(chosen) for name, chosen in found.items()}
