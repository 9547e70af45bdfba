"""How products are computed: options that a `with` block sets for the products inside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from pumice._core import native

ACTIVATIONS = ("int16", "int8", "float32")
PREPACK = ("lazy", "eager", "never")


@dataclass(frozen=True)
class Options:
    """The options in force.

    activations : "int16", "int8" or "float32"
        How x enters a product with integer weights (docs/formats.md, "Activations").
    prepack : "lazy", "eager" or "never"
        Whether the first product may reorder the weights for the kernels.
    """

    activations: str = "int16"
    prepack: str = "lazy"

    def __post_init__(self) -> None:
        check_choice("activations", self.activations, ACTIVATIONS)
        check_choice("prepack", self.prepack, PREPACK)


def check_choice(name: str, got: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `got` is one of `choices`."""
    if got not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {got!r}")


_current: ContextVar[Options] = ContextVar("pumice_options", default=Options())  # noqa: B039 - frozen


def current() -> Options:
    """The options in force here."""
    return _current.get()


@contextmanager
def options(
    *, activations: str | None = None, prepack: str | None = None, threads: int | None = None
) -> Iterator[Options]:
    """Set options for the products in a `with` block, in this thread or task.

    Parameters
    ----------
    activations : {"int16", "int8", "float32"}, optional
        How x enters products with integer weights: two int8 digits (relative error about 5e-5), one (6e-3), or as it
        is.
    prepack : {"lazy", "eager", "never"}, optional
        Whether a product may reorder the weights for the kernels.
    threads : int, optional
        Threads of a product. The pool is shared: this one holds for the whole process while the block runs.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = pm.compress(np.eye(4, 32), "int8")
    >>> with pm.options(activations="float32"):
    ...     y = np.ones(32) @ w.T
    >>> y
    array([1., 1., 1., 1.], dtype=float32)
    """
    chosen = {"activations": activations, "prepack": prepack}
    token = _current.set(replace(_current.get(), **{k: v for k, v in chosen.items() if v is not None}))
    before = native.get_num_threads()
    try:
        if threads is not None:
            native.set_num_threads(threads)
        yield _current.get()
    finally:
        _current.reset(token)
        if threads is not None:
            native.set_num_threads(before)
