"""`collect`: what calibration data says of a model, gathered by hooks while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pumice.errors import NonFiniteError
from pumice.statistics import CalibrationStats, Moments
from pumice.torch.layers import call, dense, info, matching, parameter
from pumice.torch.modules import patches

MASK = "attention_mask"


def collect(model: nn.Module, batches: Iterable[Any], *, match: str | Sequence[str] | None = None) -> CalibrationStats:
    """Run a model on data and keep the second moments of what its layers read.

    The names are those of the weights in the model's state dict, so that the result serves `prune_`, and `pumice.prune`
    and `pumice.compress` on a checkpoint of the model. Layers that always read the same tensor one after the other
    (query, key and value) share one entry. A convolution reads patches, rows of (in_channels * kernel_size).

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU; in eval mode meanwhile, without gradients. Nothing of it changes.
    batches : iterable of Tensor, tuple or mapping
        What the model is called with: a tensor, arguments, or keywords. Where keywords have an ``attention_mask``
        (batch, length), rows that it leaves out do not count.
    match : str or sequence of str, optional
        As in `prune_`: which Linear and Conv layers.

    Returns
    -------
    CalibrationStats

    Raises
    ------
    ValueError
        No batch, a pattern that finds no weight, a convolution in groups or an embedding that was asked for, weights
        on another device.
    NonFiniteError
        An input that is NaN, infinite or above 2^60, with the name of the layer.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    >>> stats = collect(model, [torch.randn(100, 16), torch.randn(50, 16)])
    >>> list(stats), stats["2.weight"].count
    (['0.weight', '2.weight'], 150)
    >>> from pumice.torch import prune_
    >>> prune_(model, 0.5, method="sparsegpt", stats=stats)
    <HeldMasks of 2 weights, density 0.5>
    """
    layers = {name: layer for name, layer in matching(model, match).items() if _collectable(name, layer, match)}
    for name, layer in layers.items():
        info(name, parameter(layer))
    gathering = _Gathering()
    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: gathering.see(name, layer, inputs[0]))
        for name, layer in layers.items()
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                mask = batch.get(MASK) if isinstance(batch, Mapping) else None
                gathering.rows = None if mask is None else mask.bool()
                call(model, batch)
                gathering.flush()
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    stats = gathering.stats(layers)
    if not stats:
        raise ValueError("batches: expected at least one batch that reaches a layer, got none")
    return stats


def _collectable(name: str, layer: nn.Module, match: Any) -> bool:
    """Whether a layer multiplies rows by its weight; one that was asked for must."""
    if isinstance(layer, nn.Embedding):
        problem = "an Embedding"
    elif getattr(layer, "groups", 1) != 1:
        problem = f"{name}, a convolution in {layer.groups} groups"
    else:
        return True
    if match is not None:
        raise ValueError(f"match: expected Linear layers and convolutions of one group, got {problem}")
    return False


class _Gathering:
    """Moments by the layers that read a tensor together: those that meet it one after the other."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None  # those that count, (batch, length)
        self._moments: dict[tuple[str, ...], Moments] = {}
        self._names: list[str] = []
        self._last: tuple[Tensor, int, Moments] | None = None  # what they read, its version, and its moments

    def see(self, name: str, layer: Any, x: Tensor) -> None:
        """A layer is about to read x, which may change in place as soon as it has."""
        version = 0 if x.is_inference() else x._version
        unfolds = isinstance(layer, nn.Conv1d | nn.Conv2d)
        known = self._last is not None and self._last[0] is x and self._last[1] == version
        if unfolds or not known or name in self._names:
            self.flush()
            batched = x if x.dim() == layer.weight.dim() or not unfolds else x[None]
            rows = patches(batched, layer).transpose(1, 2) if unfolds else self._counted(x)
            self._last = x, version, _moments(name, rows)
        self._names.append(name)
        if unfolds:
            self.flush()

    def flush(self) -> None:
        """Keep the moments of the last tensor, under the names of all that read it."""
        if self._last is not None:
            (_, _, moments), names = self._last, tuple(self._names)
            self._last, self._names = None, []
            self._moments.setdefault(names, Moments(moments.features)).merge(moments)

    def _counted(self, x: Tensor) -> Tensor:
        return x[self.rows] if self.rows is not None and x.shape[:-1] == self.rows.shape else x

    def stats(self, layers: Iterable[str]) -> CalibrationStats:
        """An entry for the layers that were always together, of all their inputs."""
        sharing: dict[tuple[tuple[str, ...], ...], list[str]] = {}
        for name in layers:
            groups = tuple(group for group in self._moments if name in group)
            if groups:  # else it never ran
                sharing.setdefault(groups, []).append(name)
        stats = CalibrationStats()
        for groups, names in sharing.items():
            for group in groups:
                stats.add(names, self._moments[group])
        return stats


def _moments(name: str, rows: Tensor) -> Moments:
    moments = Moments(rows.shape[-1])
    try:
        moments.update(dense(rows))
    except (ValueError, NonFiniteError) as error:
        raise type(error)(f"{name}: {error}") from error
    return moments
