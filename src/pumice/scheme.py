"""The grammar of schemes: a layout of values, as text.

A scheme is ``layout``, ``values`` or ``layout+values``; dense and float32 are implied. ``a&b`` is the sum of two. This
module knows no layout and no codec by name: they declare their grammar with `register_layout` and `register_values`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from pumice.errors import SchemeError

MIN_GROUP = 16
SUM = "sum"  # the layout of schemes that have terms


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
class Pattern:
    """Which zeros a layout stores without waste, on the matrix (rows, cols).

    Parameters
    ----------
    blocksize : (R, C) or None
        Weights that are 0 together: rows and columns of a block.
    kept : (N, M) or None
        At most N weights of every M along a row are not 0.
    """

    blocksize: tuple[int, int] | None = None
    kept: tuple[int, int] | None = None


@dataclass(frozen=True)
class LayoutGrammar:
    """How a layout is written, and which values it takes.

    `template` has a ``{}`` for each of its numbers (``"bsr-{}x{}"``); `letters` name them in the table and say
    what they mean: R rows by C columns of a block, N kept of every M. `values` None means every codec with all its
    options; else the codecs listed, of whose options only ``-gG``, if `group`. `refuses` says why a scheme that is
    written well is not one, if so.
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

    def pattern(self, numbers: tuple[int, ...]) -> Pattern | None:
        """Which zeros the layout stores without waste; None where any are as good as others."""
        if self.letters == ("R", "C"):
            return Pattern(blocksize=(numbers[0], numbers[1]))
        return Pattern(kept=(numbers[0], numbers[1])) if self.letters == ("N", "M") else None

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
    lines.append("a&b is the sum of two schemes, such as int4-g128&csr; compress and convert also take auto")
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
    terms : tuple of Scheme
        The two schemes of a sum, whose layout is ``"sum"`` and whose values are those of the first; else ().

    Examples
    --------
    >>> import pumice
    >>> scheme = Scheme.parse("int4-g128-asym")
    >>> scheme.layout, scheme.values, scheme.group, scheme.flags
    ('dense', 'int4', 128, ('asym',))
    >>> str(Scheme.parse("bsr-4x4+float32")), str(Scheme.parse("int4-g128 & csr"))
    ('bsr-4x4', 'int4-g128&csr')
    """

    layout: str = "dense"
    numbers: tuple[int, ...] = ()
    values: str = "float32"
    group: int | None = None
    flags: tuple[str, ...] = ()
    terms: tuple[Scheme, ...] = ()

    @classmethod
    def parse(cls, text: str | Scheme) -> Scheme:
        """Read a scheme from text. Raises SchemeError, with the legal table, for anything else."""
        if isinstance(text, Scheme):
            return text
        if not isinstance(text, str):
            raise SchemeError(f"scheme: expected text such as 'int4-g128', got {text!r}")
        if "&" in text:
            return _parse_sum(text)
        left, plus, right = text.partition("+")
        layout = _parse_layout(left)
        if plus and layout is None:
            raise _error(text, f"{left!r} is not a layout")
        name, numbers = layout or ("dense", ())
        if layout is not None and not plus:
            scheme = cls(name, numbers)
            _check(text, scheme)
            return scheme
        values, group, flags = _parse_values(text, right if plus else left)
        scheme = cls(name, numbers, values, group, flags)
        _check(text, scheme)
        return scheme

    @classmethod
    def sum(cls, first: Scheme, second: Scheme) -> Scheme:
        """The scheme ``first&second``."""
        for term in (first, second):
            if term.terms:
                raise SchemeError(f"scheme: expected a sum of two schemes, got the sum {term} as one of them")
        return cls(SUM, (), first.values, first.group, first.flags, (first, second))

    def __str__(self) -> str:
        if self.terms:
            return "&".join(map(str, self.terms))
        if self.layout == "auto":
            return "auto"
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

    @property
    def pattern(self) -> Pattern | None:
        """Which zeros the layout stores without waste; None where any are as good as others.

        Examples
        --------
        >>> import pumice
        >>> Scheme.parse("bsr-16x4+int8").pattern
        Pattern(blocksize=(16, 4), kept=None)
        """
        return None if self.layout not in _LAYOUTS else _LAYOUTS[self.layout].pattern(self.numbers)


AUTO = Scheme("auto")
"""Not a scheme but a request for one: what compress and convert make of the text "auto"."""


def parse_request(text: str | Scheme) -> Scheme:
    """`Scheme.parse`, and `AUTO` for ``"auto"``."""
    return AUTO if text == "auto" else Scheme.parse(text)


def _error(text: str, why: str) -> SchemeError:
    return SchemeError(f"scheme: expected a legal scheme, got {text!r}: {why}\n{legal_table()}")


def _parse_sum(text: str) -> Scheme:
    terms = [term.strip(" ") for term in text.split("&")]
    if len(terms) != 2:
        raise _error(text, f"a sum has two terms, not {len(terms)}")
    return Scheme.sum(*map(Scheme.parse, terms))


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
