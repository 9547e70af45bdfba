"""Which tensor gets which scheme: rules, and sensible defaults behind them."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pumice.checkpoint import TensorInfo
from pumice.errors import RecipeError, near
from pumice.scheme import AUTO, MIN_GROUP, Scheme, parse_request
from pumice.values import codec_of

KEYS = {
    "rule": list, "scheme": str, "keep_embeddings": bool, "group_size_fallback": str, "allow_requantize": bool,
}  # fmt: skip
KEPT = "kept: already"  # begins the reason why a weight stays quantized as it is
FALLBACKS = ("adjust", "error", "ignore")
TABLE = re.compile(r"embed|\bwte\b|\bwpe\b|(^|\.)shared\.weight$")  # of embeddings, whose rows are looked up
EMBEDDING = re.compile(rf"{TABLE.pattern}|lm_head|^output\.weight$")
STAYS = re.compile(r"norm|\brouter\b|(^|\.)gate\.weight$", re.IGNORECASE)
EMBEDDING_SCHEME = Scheme(values="int8")


@dataclass(frozen=True)
class Rule:
    """What happens to the tensors whose name `match` finds; `scheme` None leaves them as they are."""

    match: str
    scheme: Scheme | None
    in_axis: int = 1
    origin: str = "rule"

    def __post_init__(self) -> None:
        try:
            re.compile(self.match)
        except re.error as error:
            raise RecipeError(f"{self.origin}: expected a regular expression, got {self.match!r}: {error}") from error

    def finds(self, name: str) -> bool:
        return re.search(self.match, name) is not None


@dataclass(frozen=True)
class Treatment:
    """What happens to one tensor: a scheme (None: it is copied byte for byte; `AUTO`: the best for it), and why."""

    scheme: Scheme | None
    why: str
    in_axis: int = 1


@dataclass(frozen=True)
class Recipe:
    """Rules, first match first, and what the rest gets.

    Parameters
    ----------
    rules : tuple of Rule
    scheme : Scheme or None
        For weights of two or more dimensions that no rule finds; None leaves them as they are.
    keep_embeddings : bool
        Leave embeddings and output heads as they are; by default they become per-row int8 under integer schemes.
    group_size_fallback : {"adjust", "error", "ignore"} or None
        For columns that are no multiple of the group: the largest smaller group that divides them (or the whole row),
        an error, or no compression. None stores a short last group, which pumice reads and other loaders may not.
    allow_requantize : bool
        Whether weights that are integers or float8 already get another scheme, which errs twice; by default they keep
        their codes.

    Examples
    --------
    >>> import pumice
    >>> recipe = Recipe.parse('''
    ... scheme = "int4-g32"
    ... [[rule]]
    ... match = "attention"
    ... scheme = "int8"
    ... ''')
    >>> str(recipe.scheme), recipe.rules[0].match
    ('int4-g32', 'attention')
    """

    rules: tuple[Rule, ...] = ()
    scheme: Scheme | None = None
    keep_embeddings: bool = False
    group_size_fallback: str | None = None
    allow_requantize: bool = False

    def __post_init__(self) -> None:
        if self.group_size_fallback not in (None, *FALLBACKS):
            rule = f"one of {', '.join(FALLBACKS)}"
            raise RecipeError(f"group_size_fallback: expected {rule}, got {self.group_size_fallback!r}")

    @classmethod
    def parse(cls, text: str, origin: str = "recipe") -> Self:
        """Read a recipe from TOML."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{origin}: expected TOML, got an error: {error}") from error
        _check_keys(table, KEYS, origin)
        scheme = table.get("scheme")
        return cls(
            tuple(_rule(entry, f"{origin}, rule {i}") for i, entry in enumerate(table.get("rule", []), 1)),
            None if scheme is None else parse_request(scheme),
            table.get("keep_embeddings", False),
            table.get("group_size_fallback"),
            table.get("allow_requantize", False),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a recipe from a TOML file."""
        try:
            text = Path(path).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: expected UTF-8 text, got byte {error.start} that is not") from error
        return cls.parse(text, str(path))

    @classmethod
    def of(
        cls, scheme: str | Scheme | None, recipe: Recipe | str | os.PathLike[str] | None = None, **options: Any
    ) -> Recipe:
        """What a call asks for: a recipe, or the path of one, with the call's scheme and options before it.

        Raises ValueError where neither a scheme nor a rule is given.
        """
        base = recipe if isinstance(recipe, Recipe) else cls() if recipe is None else cls.load(recipe)
        asked = base.with_options(scheme, **options)
        if asked.scheme is None and not asked.rules:
            raise ValueError("scheme: expected a scheme, a recipe or tensors, got none")
        return asked

    def with_options(
        self,
        scheme: str | Scheme | None = None,
        *,
        tensors: Mapping[str, str] | None = None,
        ignore: Sequence[str] = (),
        keep_embeddings: bool = False,
        group_size_fallback: str | None = None,
        allow_requantize: bool = False,
    ) -> Self:
        """This recipe with options of a call or a command line before it: tensors, then ignore, then its own rules."""
        explicit = [Rule(m, parse_request(s), origin="--tensor") for m, s in (tensors or {}).items()]
        ignored = [Rule(m, None, origin="--ignore") for m in ignore]
        return replace(
            self,
            rules=(*explicit, *ignored, *self.rules),
            scheme=self.scheme if scheme is None else parse_request(scheme),
            keep_embeddings=self.keep_embeddings or keep_embeddings,
            group_size_fallback=group_size_fallback or self.group_size_fallback,
            allow_requantize=self.allow_requantize or allow_requantize,
        )

    def plan(self, infos: Mapping[str, TensorInfo]) -> dict[str, Treatment]:
        """What happens to each tensor. Raises RecipeError for a pattern that finds none."""
        for rule in self.rules:
            candidates = [n for n, info in infos.items() if rule.scheme is None or _is_weight(info)]
            if not any(map(rule.finds, candidates)):
                raise RecipeError(_nothing_found(rule, candidates))
        choices = {name: self._kept(info, self._choice(name, info)) for name, info in infos.items()}
        return {name: self._fitted(name, infos[name], choice) for name, choice in choices.items()}

    def _choice(self, name: str, info: TensorInfo) -> Treatment:
        if not _is_weight(info):
            return Treatment(None, f"{len(info.shape)}-D {info.dtype}")
        for rule in self.rules:
            if rule.finds(name):
                return Treatment(rule.scheme, f"{rule.origin} {rule.match!r}", rule.in_axis)
        if self.scheme is None or not name.endswith("weight"):
            return Treatment(None, "no rule")
        if STAYS.search(name):
            return Treatment(None, "norm or router")
        if EMBEDDING.search(name) and (self.scheme == AUTO or codec_of(self.scheme).bits <= 8):
            return Treatment(None if self.keep_embeddings else EMBEDDING_SCHEME, "embedding")
        if EMBEDDING.search(name) and (self.keep_embeddings or not self.scheme.dense):
            return Treatment(None, "embedding")
        return Treatment(self.scheme, "default")

    def _kept(self, info: TensorInfo, choice: Treatment) -> Treatment:
        """The choice, unless it would round again what was rounded before."""
        quantized = info.compact and codec_of(Scheme.parse(info.dtype)).bits <= 8
        if choice.scheme is None or not quantized or self.allow_requantize or str(choice.scheme) == info.dtype:
            return choice
        return Treatment(None, f"{KEPT} {info.dtype}")

    def _fitted(self, name: str, info: TensorInfo, choice: Treatment) -> Treatment:
        """The choice with a group that fits the columns, as `group_size_fallback` says."""
        scheme, fallback = choice.scheme, self.group_size_fallback
        if scheme is None or scheme.group is None or fallback is None:
            return choice
        cols = _cols(info.shape, choice.in_axis)
        if cols % scheme.group == 0:
            return choice
        if fallback == "error":
            raise RecipeError(f"{name}: expected columns in multiples of {scheme.group} for {scheme}, got {cols}")
        if fallback == "ignore":
            return replace(choice, scheme=None, why=f"{cols} columns do not fit {scheme}")
        group = cols & -cols
        fitted = replace(scheme, group=group if group >= MIN_GROUP else None)
        return replace(choice, scheme=fitted, why=f"{cols} columns do not fit {scheme}")


def _is_weight(info: TensorInfo) -> bool:
    """Real numbers in two dimensions or more."""
    return len(info.shape) >= 2 and (info.compact or info.dtype[0] == "F" or info.dtype == "BF16")


def _cols(shape: Sequence[int], in_axis: int) -> int:
    if in_axis == 0:
        return shape[0]
    cols = 1
    for length in shape[1:]:
        cols *= length
    return cols


def _check_keys(table: Mapping[str, Any], legal: Mapping[str, type], origin: str) -> None:
    for key, value in table.items():
        if key not in legal:
            raise RecipeError(f"{origin}: expected the keys {', '.join(legal)}, got {key!r}{near(key, legal)}")
        if type(value) is not legal[key]:
            raise RecipeError(f"{origin}: expected {legal[key].__name__} for {key!r}, got {value!r}")


def _rule(entry: Any, origin: str) -> Rule:
    if not isinstance(entry, dict):
        raise RecipeError(f"{origin}: expected a [[rule]] table, got {entry!r}")
    _check_keys(entry, {"match": str, "scheme": str, "ignore": bool, "in_axis": int}, origin)
    if "match" not in entry:
        raise RecipeError(f"{origin}: expected the key 'match', got {', '.join(entry) or 'nothing'}")
    if ("scheme" in entry) == entry.get("ignore", False):
        raise RecipeError(f'{origin}: expected one of scheme = "..." and ignore = true, got {entry}')
    in_axis = entry.get("in_axis", 1)
    if in_axis not in (0, 1):
        raise RecipeError(f"{origin}: expected in_axis 0 or 1, got {in_axis}")
    scheme = parse_request(entry["scheme"]) if "scheme" in entry else None
    return Rule(entry["match"], scheme, in_axis, origin)


def _nothing_found(rule: Rule, names: Iterable[str]) -> str:
    what = "a name" if rule.scheme is None else "the name of a weight of two or more dimensions"
    hint = near(rule.match, names, 0.3)
    return f"{rule.origin}: expected a pattern that finds {what}, got {rule.match!r}{hint}"
