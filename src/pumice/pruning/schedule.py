"""How sparsity rises while a model is trained on."""

from __future__ import annotations

from pumice.pruning.selection import check_sparsity


def cubic_sparsity(step: float, *, final: float, stop: float, initial: float = 0.0, start: float = 0.0) -> float:
    """The sparsity to prune to at a step of gradual pruning: fast at first, slowly at the end.

    ``final + (initial - final) * (1 - (step - start) / (stop - start))^3`` between start and stop, `initial` before and
    `final` after (Zhu & Gupta 2017, arXiv:1710.01878).

    Parameters
    ----------
    step : number
        Of training.
    final, initial : float in [0, 1)
    start, stop : number
        Steps at which pruning begins and ends.

    Raises
    ------
    ValueError
        A sparsity out of range, or stop <= start.

    Examples
    --------
    >>> [round(cubic_sparsity(step, final=0.8, stop=100), 3) for step in (0, 10, 50, 100, 150)]
    [0.0, 0.217, 0.7, 0.8, 0.8]
    """
    for name, value in (("final", final), ("initial", initial)):
        check_sparsity(name, value)
    if not stop > start:
        raise ValueError(f"stop: expected a step after start, {start}, got {stop}")
    if step <= start:
        return initial
    if step >= stop:
        return final
    return final + (initial - final) * (1 - (step - start) / (stop - start)) ** 3
