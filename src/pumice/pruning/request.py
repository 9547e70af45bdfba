"""Pruning as text: METHOD[:SPARSITY][:PATTERN], the same on the command line and in recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pumice.errors import SchemeError
from pumice.options import check_choice
from pumice.pruning.base import PRUNERS
from pumice.pruning.selection import Rule
from pumice.scheme import Scheme


@dataclass(frozen=True)
class Pruning:
    """What is to be pruned how.

    Parameters
    ----------
    method : str
        Of `prune`.
    sparsity : float, optional
        In [0, 1); not needed where the pattern fixes it.
    pattern : str, optional
        Such as ``"2:4"``, ``"bsr-16x4"``.

    Examples
    --------
    >>> Pruning.parse("wanda:0.5")
    Pruning(method='wanda', sparsity=0.5, pattern=None)
    >>> Pruning.parse("sparsegpt:2:4"), str(Pruning.parse("magnitude:0.7:bsr-16x4"))
    (Pruning(method='sparsegpt', sparsity=None, pattern='2:4'), 'magnitude:0.7:bsr-16x4')
    """

    method: str
    sparsity: float | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        check_choice("prune", self.method, tuple(PRUNERS))
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ValueError(f"prune: expected a sparsity in [0, 1), got {self.sparsity:g}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From text; ValueError for what is none."""
        method, _, rest = text.partition(":")
        if not rest:
            return cls(method)
        if _is_pattern(rest):
            return cls(method, None, rest)
        share, _, pattern = rest.partition(":")
        try:
            sparsity = float(share)
        except ValueError:
            raise ValueError(f"prune: expected METHOD[:SPARSITY][:PATTERN], got {text!r}") from None
        return cls(method, sparsity, pattern or None)

    def rule(self, scheme: Scheme) -> Rule:
        """What goes of a weight that gets this scheme, whose own pattern counts unless another is asked for."""
        own = scheme if scheme.pattern else None
        return Rule.of(self.sparsity, None, self.pattern or own, None, PRUNERS[self.method].scope)

    def __str__(self) -> str:
        share = () if self.sparsity is None else (f"{self.sparsity:g}",)
        return ":".join((self.method, *share, *(() if self.pattern is None else (self.pattern,))))


def _is_pattern(text: str) -> bool:
    try:
        return Scheme.parse(text).pattern is not None
    except SchemeError:
        return False
