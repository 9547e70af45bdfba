"""What pumice raises. Messages read ``<argument>: expected <rule>, got <value>``."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any


class PumiceError(ValueError):
    """Base of all errors that pumice defines."""


class SchemeError(PumiceError):
    """A scheme that the grammar does not allow. The message prints the legal table."""


class RecipeError(PumiceError):
    """A recipe, or options that make one, that cannot be followed."""


class NonFiniteError(PumiceError):
    """A weight holds a NaN or an infinity."""


class BusyError(PumiceError):
    """Another conversion writes to the same place."""


class ResumeError(PumiceError):
    """An unfinished conversion that is there cannot go on so: its source, recipe or version was another."""


class SourceChangedError(PumiceError):
    """A file that is converted changed, or vanished, while it was read."""


class ToleranceError(PumiceError):
    """Weights err more than was allowed."""


class FormatError(PumiceError):
    """A file, or the parts of an array, that break a rule of their format.

    Parameters
    ----------
    path : str or path, optional
        The file; None for parts that did not come from one.
    tensor : str, optional
        The tensor or part.
    rule : str
        What was expected.
    got : object, optional
        What was found.
    hint : str, optional
        What to do about it.

    Examples
    --------
    >>> print(FormatError("m.safetensors", "fc.weight", "48 bytes of data", 40, "was the download cut short?"))
    m.safetensors: fc.weight: expected 48 bytes of data, got 40 (was the download cut short?)
    """

    def __init__(
        self,
        path: str | PathLike[str] | None,
        tensor: str | None,
        rule: str,
        got: Any = None,
        hint: str | None = None,
    ) -> None:
        self.path, self.tensor, self.rule, self.got, self.hint = path, tensor, rule, got, hint
        where = "".join(f"{place}: " for place in (path, tensor) if place is not None)
        found = "" if got is None else f", got {got}"
        super().__init__(printable(f"{where}expected {rule}{found}" + (f" ({hint})" if hint else "")))

    def __reduce__(self) -> tuple[Any, ...]:
        return FormatError, (self.path, self.tensor, self.rule, self.got, self.hint)


class FormatWarning(UserWarning):
    """A file that contradicts itself, or that other readers read differently; it says how it was read."""


def printable(text: str) -> str:
    """Text of a file as it may go to a terminal: what is no line of characters, as escapes.

    Examples
    --------
    >>> print(printable("fc\\x1b[2J\\nweight Größe"))
    fc\\x1b[2J\\nweight Größe
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def near(name: str, names: Iterable[str], cutoff: float = 0.7) -> str:
    """For messages about an unknown name: the known ones that may have been meant, at least as like it as `cutoff` in
    [0, 1]; empty if there is none.

    Examples
    --------
    >>> near("fc.wieght", ["fc.weight", "fc.bias"])
    " (near: 'fc.weight')"
    """
    import difflib  # here, since only mistakes need it

    known = list(names)
    found = (
        difflib.get_close_matches(name, known, 3, cutoff) or [other for other in known if name and name in other][:3]
    )
    return f" (near: {', '.join(map(repr, found))})" if found else ""
