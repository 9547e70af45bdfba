"""The grammar of schemes: a layout of values, as text.

A scheme is ``layout``, ``values`` or ``layout+values``; dense and float32 are implied. This module knows no layout and
no codec by name: they declare their grammar with `register_layout` and `register_values`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pumice.errors import SchemeError

MIN_GROUP = 16


@dataclass(frozen=True)
class ValuesGrammar:
    """How a values codec is written: ``name``, ``-gG`` if `group`, then at most one of `flags`."""

    name: str
    group: bool = False
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        flags = "|".join(f"-{flag}" for flag in self.flags)
        return self.name + "[-gG]" * self.group + (f"[{flags}]" if flags else "")


@dataclass(frozen=True)
class LayoutGrammar:
    """How a layout is written, and which values it takes.

    `template` has a ``{}`` for each of its numbers (``"bsr-{}x{}"``); `letters` name them in the table. `values` None
    means every codec with all its options; else the codecs listed, of whose options only ``-gG``, if `group`. `refuses`
    says why a scheme that is written well is not one, if so.
    """

    name: str
    template: str
    letters: tuple[str, ...] = ()
    values: tuple[str, ...] | None = None
    group: bool = False
    refuses: Callable[[Scheme], str | None] = lambda scheme: None

    @property
    def numbers(self) -> int:
        return len(self.letters)

    def takes(self, values: ValuesGrammar) -> bool:
        """Whether the layout stores such values."""
        return self.values is None or values.name in self.values

    def written(self, values: ValuesGrammar) -> str:
        """How such values are written behind ``layout+``."""
        return values.name + "[-gG]" * (values.group and self.group)

    def match(self, text: str) -> tuple[int, ...] | None:
        pattern = re.escape(self.template).replace(r"\{\}", "([1-9][0-9]{0,5})")
        found = re.fullmatch(pattern, text, re.ASCII)
        return tuple(int(n) for n in found.groups()) if found else None


_LAYOUTS: dict[str, LayoutGrammar] = {}
_VALUES: dict[str, ValuesGrammar] = {}


def register_layout(grammar: LayoutGrammar) -> None:
    """Make a layout known to the grammar."""
    _LAYOUTS[grammar.name] = grammar


def register_values(grammar: ValuesGrammar) -> None:
    """Make a values codec known to the grammar."""
    _VALUES[grammar.name] = grammar


def legal_table() -> str:
    """Every legal scheme, one layout a line."""
    lines = [f"{'layout':<10} values"]
    for layout in _LAYOUTS.values():
        values = [str(v) if layout.values is None else layout.written(v) for v in _VALUES.values() if layout.takes(v)]
        lines.append(f"{layout.template.format(*layout.letters):<10} {', '.join(values)}")
    lines.append(f"a scheme is layout+values; dense and float32 are implied; G is a power of two >= {MIN_GROUP}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Scheme:
    """A layout of values.

    Parameters
    ----------
    layout : str
        Name of a registered layout.
    numbers : tuple of int
        The layout's numbers: (R, C) for ``bsr-RxC``, else ().
    values : str
        Name of a registered values codec.
    group : int or None
        Columns that share a scale; None is the whole row.
    flags : tuple of str
        The option of the codec, such as ``"asym"``, if any.

    Examples
    --------
    >>> import pumice
    >>> scheme = Scheme.parse("int4-g128-asym")
    >>> scheme.layout, scheme.values, scheme.group, scheme.flags
    ('dense', 'int4', 128, ('asym',))
    >>> str(Scheme.parse("bsr-4x4+float32"))
    'bsr-4x4'
    """

    layout: str = "dense"
    numbers: tuple[int, ...] = ()
    values: str = "float32"
    group: int | None = None
    flags: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | Scheme) -> Scheme:
        """Read a scheme from text. Raises SchemeError, with the legal table, for anything else."""
        if isinstance(text, Scheme):
            return text
        if not isinstance(text, str):
            raise SchemeError(f"scheme: expected text such as 'int4-g128', got {text!r}")
        left, plus, right = text.partition("+")
        layout = _parse_layout(left)
        if plus and layout is None:
            raise _error(text, f"{left!r} is not a layout")
        name, numbers = layout or ("dense", ())
        if layout is not None and not plus:
            return cls(name, numbers)
        values, group, flags = _parse_values(text, right if plus else left)
        scheme = cls(name, numbers, values, group, flags)
        _check(text, scheme)
        return scheme

    def __str__(self) -> str:
        layout = _LAYOUTS[self.layout].template.format(*self.numbers)
        group = "" if self.group is None else f"-g{self.group}"
        values = self.values + group + "".join(f"-{flag}" for flag in self.flags)
        if self.layout == "dense":
            return values
        return layout if values == "float32" else f"{layout}+{values}"

    @property
    def dense(self) -> bool:
        """Whether every weight is stored."""
        return self.layout == "dense"


def _error(text: str, why: str) -> SchemeError:
    return SchemeError(f"scheme: expected a legal scheme, got {text!r}: {why}\n{legal_table()}")


def _parse_layout(text: str) -> tuple[str, tuple[int, ...]] | None:
    for grammar in _LAYOUTS.values():
        numbers = grammar.match(text)
        if numbers is not None:
            return grammar.name, numbers
    return None


def _parse_values(whole: str, text: str) -> tuple[str, int | None, tuple[str, ...]]:
    name, *options = text.split("-")
    grammar = _VALUES.get(name)
    if grammar is None:
        raise _error(whole, f"{name!r} is neither a layout nor a values codec")
    group: int | None = None
    flags: tuple[str, ...] = ()
    for option in options:
        size = re.fullmatch("g([1-9][0-9]{0,8})", option, re.ASCII)
        if size and grammar.group and group is None and not flags:
            group = int(size[1])
            if group < MIN_GROUP or group & (group - 1):
                raise _error(whole, f"a group must be a power of two >= {MIN_GROUP}, not {group}")
        elif option in grammar.flags and not flags:
            flags = (option,)
        else:
            raise _error(whole, f"{name} has no option {option!r} there; it is written {grammar}")
    return name, group, flags


def _check(text: str, scheme: Scheme) -> None:
    layout = _LAYOUTS[scheme.layout]
    if layout.values is None:
        return
    if scheme.values not in layout.values:
        raise _error(text, f"{scheme.layout} stores {' or '.join(layout.values)}, not {scheme.values}")
    if scheme.flags:
        raise _error(text, f"{scheme.layout} is symmetric, so that a hole is exactly 0: no -{scheme.flags[0]}")
    if scheme.group is not None and not layout.group:
        raise _error(text, f"{scheme.layout} has one symmetric scale per row: no -g{scheme.group}")
    why = layout.refuses(scheme)
    if why:
        raise _error(text, why)
