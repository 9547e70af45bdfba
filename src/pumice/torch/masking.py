"""Pruned weights that stay pruned while the rest is trained on, and pruning little by little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pumice.pruning import Masks, cubic_sparsity, prune
from pumice.pruning.base import PRUNERS
from pumice.statistics import CalibrationStats
from pumice.torch.layers import dense, in_axis, info, matching, parameter


class HeldMasks:
    """Which weights of a model are kept; the others stay exactly 0 through every step of an optimiser.

    A mask stops the gradient of what it removes, and after each step of the optimisers that `hold` was told of, the
    weights and everything in the optimiser's state that has their shape (momentum, averages) are 0 there again: for
    optimisers that move weights without a gradient, or that had gathered momentum before the mask came.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    >>> masks = prune_(model, 0.5)
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> masks = masks.hold(optimizer)
    >>> model(torch.ones(1, 8)).sum().backward()
    >>> _ = optimizer.step()
    >>> masks.density, int((model[0].weight != 0).sum())
    (0.5, 16)
    """

    def __init__(self, layers: Mapping[str, nn.Module], how: Mapping[str, Any]) -> None:
        self._how = dict(how)
        self._parameters = {name: parameter(layer) for name, layer in layers.items()}
        self._axes = {name: in_axis(layer) for name, layer in layers.items()}
        self._masks = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in self._parameters.items()}
        self._handles: list[Any] = [
            p.register_hook(lambda gradient, name=name: gradient * self._masks[name].to(gradient.dtype))
            for name, p in self._parameters.items()
            if p.requires_grad
        ]

    def prune(self, sparsity: float | None) -> None:
        """Prune further, by the method and pattern of `prune_`: what is 0 has the lowest score and stays so."""
        weights = {name: dense(p, self._axes[name]) for name, p in self._parameters.items()}
        pruned, masks = prune(weights, sparsity, return_mask=True, **self._how)
        for name, mask in masks.items():
            turned = self._axes[name] == 0
            if PRUNERS[self._how["method"]].solve is not None:  # what stays has changed, too
                with torch.no_grad():
                    w = torch.from_numpy(pruned[name])
                    self._parameters[name].copy_(w.T if turned else w)
            kept = torch.from_numpy(mask.copy())  # pumice's are read-only
            self._masks[name] = (kept.T if turned else kept) & self._masks[name]
        self.apply()

    @torch.no_grad()
    def apply(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Set what is pruned to 0: the weights, and of an optimiser the state of their shape."""
        for name, p in self._parameters.items():
            mask = self._masks[name]
            p.masked_fill_(~mask, 0)
            state = {} if optimizer is None else optimizer.state.get(p, {})
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    value.masked_fill_(~mask, 0)

    def hold(self, optimizer: torch.optim.Optimizer) -> HeldMasks:
        """Apply the masks after every step of an optimiser; returns itself."""
        self.apply(optimizer)
        self._handles.append(optimizer.register_step_post_hook(lambda optimizer, *_: self.apply(optimizer)))
        return self

    def release(self) -> None:
        """Let all weights learn again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """The masks: what a training that is taken up again needs beside the model's state and the optimiser's."""
        return {name: mask.clone() for name, mask in self._masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Hold the masks of `state_dict` from now on; raises ValueError for those of other weights."""
        for name in {**self._masks, **state}:
            mine, theirs = (_described(masks.get(name)) for masks in (self._masks, state))
            if mine != theirs:
                raise ValueError(f"state: expected {mine} of {name!r}, got {theirs}")
        self._masks = {name: state[name].clone() for name in self._masks}
        self.apply()

    @property
    def masks(self) -> Masks:
        """The masks as `pumice.Masks`, which combine and go to files."""
        return Masks({name: mask.numpy() for name, mask in self._masks.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Any:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def density(self) -> float:
        """Share of the masked layers' weights that is kept."""
        return sum(int(m.sum()) for m in self._masks.values()) / sum(m.numel() for m in self._masks.values())

    def __repr__(self) -> str:
        return f"<HeldMasks of {len(self)} weights, density {self.density:.4g}>"


def _described(mask: Tensor | None) -> str:
    return "no mask" if mask is None else f"a mask {mask.dtype} {tuple(mask.shape)}"


def prune_(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    match: str | Sequence[str] | None = None,
    method: str = "magnitude",
    pattern: str | None = None,
    scope: str | None = None,
    stats: CalibrationStats | None = None,
    seed: int = 0,
) -> HeldMasks:
    """Prune a model in place, and keep it pruned.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU.
    sparsity : float in [0, 1), or None
        None for a pattern that fixes it, such as ``"2:4"``.
    match : str or sequence of str, optional
        Regular expressions that find the names of weights; by default all of Linear and Conv layers but output heads.
    method, pattern, scope, seed
        As in `pumice.prune`.
    stats : CalibrationStats, optional
        Of `collect`: for ``"wanda"`` and ``"sparsegpt"``.

    Returns
    -------
    HeldMasks
        Call ``hold(optimizer)`` before training on.

    Raises
    ------
    ValueError
        A pattern that finds no weight, a sparsity out of range, no moments of a weight where the method needs them,
        a weight on another device.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    >>> prune_(model, 0.75, pattern="bsr-4x1")
    <HeldMasks of 1 weights, density 0.25>
    """
    how = {"method": method, "pattern": pattern, "scope": scope, "stats": stats, "seed": seed}
    layers = matching(model, match)
    for name, layer in layers.items():
        info(name, parameter(layer))  # raises where a weight is none that we can read
    masks = HeldMasks(layers, how)
    try:
        masks.prune(sparsity)
    except Exception:
        masks.release()
        raise
    return masks


class GradualPruning:
    """Prune in small steps while training: the cubic schedule of Zhu and Gupta 2017 (arXiv:1710.01878).

    ``sparsity(t) = final + (initial - final) * (1 - (t - begin) / (end - begin))^3``

    Parameters
    ----------
    masks : HeldMasks
        Held by the optimiser.
    final : float
        Sparsity from step `end` on.
    begin, end : int
        Steps between which sparsity grows.
    every : int
        Steps from one pruning to the next.
    initial : float
        Sparsity at step `begin`.

    Examples
    --------
    >>> import torch
    >>> masks = prune_(torch.nn.Sequential(torch.nn.Linear(16, 8)), 0.0)
    >>> schedule = GradualPruning(masks, 0.75, end=10)
    >>> for step in range(11):
    ...     schedule.step()
    >>> masks.density
    0.25
    """

    def __init__(
        self, masks: HeldMasks, final: float, *, end: int, begin: int = 0, every: int = 1, initial: float = 0.0
    ) -> None:
        if not 0 <= initial <= final < 1:
            raise ValueError(f"final: expected 0 <= initial <= final < 1, got initial {initial}, final {final}")
        if not 0 <= begin < end or every < 1:
            raise ValueError(f"end: expected 0 <= begin < end and every >= 1, got {begin}, {end}, {every}")
        self.masks, self.final, self.initial = masks, final, initial
        self.begin, self.end, self.every = begin, end, every
        self._step = 0

    def sparsity(self, step: int) -> float:
        """What the schedule asks for at a step, counted from 0."""
        return cubic_sparsity(step, final=self.final, initial=self.initial, start=self.begin, stop=self.end)

    def state_dict(self) -> dict[str, int]:
        """How many steps it has seen; the masks have a state of their own."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a `state_dict`."""
        self._step = state["step"]

    def step(self) -> None:
        """Call once for each step of the optimiser."""
        t, self._step = self._step, self._step + 1
        due = t == self.end or (self.begin <= t < self.end and (t - self.begin) % self.every == 0)
        if due:
            self.masks.prune(self.sparsity(t))
