"""What is removed together and how much, the same for all methods: the lowest scores go first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice.errors import SchemeError
from pumice.options import check_choice
from pumice.pruning.patterns import block_energies, keep_n_of_m, spread
from pumice.scheme import Scheme

Weights: TypeAlias = NDArray[np.floating[Any]]
Mask: TypeAlias = NDArray[np.bool_]

SCOPES = ("layer", "row", "global")


def check_sparsity(name: str, value: float) -> None:
    """Raise ValueError unless it is a share that leaves something."""
    if not 0 <= value < 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value}")


@dataclass(frozen=True)
class Rule:
    """Which scores go.

    Attributes
    ----------
    sparsity, threshold : float or None
        One of them, but for N:M.
    grid : Scheme or None
        The scheme of a pattern.
    scope : {"layer", "row", "global"}
    """

    sparsity: float | None
    threshold: float | None
    grid: Scheme | None
    scope: str

    @classmethod
    def of(
        cls,
        sparsity: float | None,
        threshold: float | None,
        pattern: str | Scheme | None,
        scope: str | None,
        usual: str,
    ) -> Rule:
        """The rule that arguments of `prune` make; `usual` is the method's own scope."""
        grid = None if pattern is None else Scheme.parse(pattern)
        if grid is not None and grid.pattern is None:
            raise SchemeError(f"pattern: expected a layout with one, such as '2:4' or 'bsr-16x4', got {str(grid)!r}")
        fixed = grid is not None and grid.pattern is not None and grid.pattern.kept is not None
        rule = cls(sparsity, threshold, grid, scope or ("layer" if fixed else usual))
        rule._check()
        return rule

    @property
    def kept(self) -> tuple[int, int] | None:
        """(N, M)."""
        return None if self.grid is None or self.grid.pattern is None else self.grid.pattern.kept

    @property
    def blocksize(self) -> tuple[int, int] | None:
        """(R, C)."""
        return None if self.grid is None or self.grid.pattern is None else self.grid.pattern.blocksize

    def _check(self) -> None:
        sparsity, threshold, scope = self.sparsity, self.threshold, self.scope
        check_choice("scope", scope, SCOPES)
        if self.kept is not None:
            fixed = 1 - self.kept[0] / self.kept[1]
            if threshold is not None or scope != "layer":
                raise ValueError(
                    f"pattern: expected neither threshold nor scope with {self.grid}, which fixes what is removed"
                )
            if sparsity is not None and not math.isclose(sparsity, fixed):
                raise ValueError(f"sparsity: expected None or {fixed:g}, which {self.grid} fixes, got {sparsity}")
            return
        if (sparsity is None) == (threshold is None):
            raise ValueError(f"sparsity: expected it or threshold, one of them, got {sparsity} and {threshold}")
        if sparsity is not None:
            check_sparsity("sparsity", sparsity)
        if threshold is not None and not 0 <= threshold < math.inf:
            raise ValueError(f"threshold: expected a finite number >= 0, got {threshold}")

    def check_columns(self, name: str, cols: int) -> None:
        """Raise ValueError unless the pattern divides the columns."""
        if self.kept is not None and cols % self.kept[1]:
            raise ValueError(f"{name}: expected columns in multiples of {self.kept[1]} for {self.grid}, got {cols}")

    def masks(self, scores: Mapping[Any, Weights]) -> dict[Any, Mask]:
        """True where a weight stays, for each array of scores."""
        if self.grid is None:
            return self._keep(scores)
        matrices = {key: score.reshape(len(score), math.prod(score.shape[1:])) for key, score in scores.items()}
        if self.kept is not None:
            masks = {key: keep_n_of_m(matrix, *self.kept) for key, matrix in matrices.items()}
        else:
            assert self.blocksize is not None
            by_mean = self.threshold is not None
            energies: dict[Any, Weights] = {
                key: block_energies(m, self.blocksize, by_mean) for key, m in matrices.items()
            }
            kept = self._keep(energies, squared=True)
            masks = {key: spread(kept[key], self.blocksize, matrix.shape) for key, matrix in matrices.items()}
        return {key: mask.reshape(scores[key].shape) for key, mask in masks.items()}

    def _keep(self, scores: Mapping[Any, Weights], squared: bool = False) -> dict[Any, Mask]:
        if self.threshold is not None:
            limit = self.threshold**2 if squared else self.threshold
            return {key: score >= limit for key, score in scores.items()}
        sparsity = self.sparsity
        assert sparsity is not None  # `_check` saw to it
        if self.scope == "layer":
            return {key: _keep_share(score.reshape(-1), sparsity).reshape(score.shape) for key, score in scores.items()}
        if self.scope == "row":
            masks = {}
            for key, score in scores.items():
                rows = score.reshape(len(score), math.prod(score.shape[1:]))
                masks[key] = np.array([_keep_share(row, sparsity) for row in rows], bool).reshape(score.shape)
            return masks
        if not scores:
            return {}
        kept = _keep_share(np.concatenate([score.reshape(-1) for score in scores.values()]), sparsity)
        ends = np.cumsum([score.size for score in scores.values()])[:-1]
        pieces = np.split(kept, ends)
        return {key: piece.reshape(score.shape) for (key, score), piece in zip(scores.items(), pieces, strict=True)}


def removed(sparsity: float, size: int) -> int:
    """How many of `size` go: one product, one rounding, the same wherever it is asked."""
    return math.floor(sparsity * size)


def _keep_share(scores: Weights, sparsity: float) -> Mask:
    return keep_highest(scores, removed(sparsity, scores.size))


def keep_highest(scores: Weights, count: int) -> Mask:
    """False for the `count` lowest scores (n,), the lowest index first on ties."""
    mask = np.ones(scores.shape, bool)
    if count <= 0:
        return mask
    limit = np.partition(scores, count - 1)[count - 1]
    mask[scores < limit] = False
    ties = np.flatnonzero(scores == limit)
    mask[ties[: count - int(np.count_nonzero(scores < limit))]] = False
    return mask
