"""Which tensor gets which scheme: rules, and sensible defaults behind them."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from pumice.checkpoint import TensorInfo
from pumice.errors import RecipeError, near
from pumice.options import check_choice
from pumice.pruning import PRUNERS, Pruning
from pumice.quantization import METHODS, has_integers, options_of
from pumice.scheme import AUTO, MIN_GROUP, Scheme, parse_request
from pumice.values import codec_of

KEYS = {
    "rule": list, "scheme": str, "prune": str, "method": str, "options": dict, "keep_embeddings": bool,
    "group_size_fallback": str, "allow_requantize": bool,
}  # fmt: skip
RULE_KEYS = {"match": str, "scheme": str, "prune": str, "method": str, "ignore": bool, "in_axis": int}
NOTHING, NEAREST = "none", "nearest"  # of prune and of method: what weights get without either
KEPT = "kept: already"  # begins the reason why a weight stays quantized as it is
FALLBACKS = ("adjust", "error", "ignore")
TABLE = re.compile(r"embed|\bwte\b|\bwpe\b|(^|\.)shared\.weight$")  # of embeddings, whose rows are looked up
EMBEDDING = re.compile(rf"{TABLE.pattern}|lm_head|^output\.weight$")
STAYS = re.compile(r"norm|\brouter\b|(^|\.)gate\.weight$", re.IGNORECASE)
EMBEDDING_SCHEME = Scheme(values="int8")


@dataclass(frozen=True)
class Rule:
    """What happens to the tensors whose name `match` finds; `scheme` None leaves them as they are.

    `prune` and `method` as in `Recipe`; None is what the recipe says.
    """

    match: str
    scheme: Scheme | None
    in_axis: int = 1
    origin: str = "rule"
    prune: str | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        _check_methods(self.origin, self.prune, self.method)
        try:
            re.compile(self.match)
        except re.error as error:
            raise RecipeError(f"{self.origin}: expected a regular expression, got {self.match!r}: {error}") from error

    def finds(self, name: str) -> bool:
        return re.search(self.match, name) is not None


@dataclass(frozen=True)
class Treatment:
    """What happens to one tensor: a scheme (None: it is copied byte for byte; `AUTO`: the best for it), and why; what
    is pruned before, and the method of quantization, if it is not the default one."""

    scheme: Scheme | None
    why: str
    in_axis: int = 1
    prune: Pruning | None = None
    method: str | None = None

    @property
    def whole(self) -> bool:
        """Whether it takes all rows at a time."""
        return self.prune is not None or self.method is not None


@dataclass(frozen=True)
class Recipe:
    """Rules, first match first, and what the rest gets.

    Parameters
    ----------
    rules : tuple of Rule
    scheme : Scheme or None
        For weights of two or more dimensions that no rule finds; None leaves them as they are.
    prune : str or None
        What is pruned before: ``METHOD[:SPARSITY][:PATTERN]``, as `Pruning` reads it, or ``"none"``.
    method : str or None
        How integers are found, as in `compress`. `prune` and `method` hold for weights of the scheme and of rules that
        do not say otherwise, but never for embeddings and output heads that no rule names one for.
    options : mapping
        Of these methods, such as ``{"act_order": True}``.
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
    prune: str | None = None
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_methods("recipe", self.prune, self.method)
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
            table.get("prune"),
            table.get("method"),
            table.get("options", {}),
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
        prune: str | None = None,
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
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
            prune=prune or self.prune,
            method=method or self.method,
            options={**self.options, **(options or {})},
        )

    def without_methods(self) -> Self:
        """This recipe, where only its schemes can be followed. Raises RecipeError if it asks for more."""
        said = [(self.prune, self.method), *((rule.prune, rule.method) for rule in self.rules)]
        for prune, method in said:
            got = _pruning(prune) or _method(method)
            if got is None:
                continue
            raise RecipeError(f"recipe: expected neither prune nor method, which pumice.convert follows, got '{got}'")
        return self

    def plan(self, infos: Mapping[str, TensorInfo]) -> dict[str, Treatment]:
        """What happens to each tensor. Raises RecipeError for a pattern that finds none."""
        for rule in self.rules:
            candidates = [n for n, info in infos.items() if rule.scheme is None or _is_weight(info)]
            if not any(map(rule.finds, candidates)):
                raise RecipeError(_nothing_found(rule, candidates))
        choices = {name: self._kept(info, self._choice(name, info)) for name, info in infos.items()}
        self._check_options(choices.values())
        return {name: self._fitted(name, infos[name], choice) for name, choice in choices.items()}

    def _choice(self, name: str, info: TensorInfo) -> Treatment:
        if not _is_weight(info):
            return Treatment(None, f"{len(info.shape)}-D {info.dtype}")
        for rule in self.rules:
            if rule.finds(name):
                return self._ruled(rule, bool(EMBEDDING.search(name)))
        if self.scheme is None or not name.endswith("weight"):
            return Treatment(None, "no rule")
        if STAYS.search(name):
            return Treatment(None, "norm or router")
        if EMBEDDING.search(name) and (self.scheme == AUTO or codec_of(self.scheme).bits <= 8):
            return Treatment(None if self.keep_embeddings else EMBEDDING_SCHEME, "embedding")
        if EMBEDDING.search(name):
            kept = self.keep_embeddings or not self.scheme.dense
            return Treatment(None if kept else self.scheme, "embedding" if kept else "default")
        if self.scheme == AUTO and _method(self.method) is not None:
            raise RecipeError(f"method: expected none with 'auto', which rounds to nearest, got {self.method!r}")
        return Treatment(self.scheme, "default", 1, _pruning(self.prune), _method(self.method))

    def _ruled(self, rule: Rule, embedding: bool) -> Treatment:
        """What a rule says, and where it says nothing of methods, what the recipe says and the scheme can take."""
        why = f"{rule.origin} {rule.match!r}"
        if rule.scheme is None:
            return Treatment(None, why, rule.in_axis)
        prune, method = rule.prune, rule.method
        if not embedding:
            prune = self.prune if prune is None else prune
            method = self.method if method is None and has_integers(rule.scheme) else method
        return Treatment(rule.scheme, why, rule.in_axis, _pruning(prune), _method(method))

    def _check_options(self, treatments: Iterable[Treatment]) -> None:
        known: dict[str, None] = {}
        for one in treatments:
            known |= dict.fromkeys(options_for(one, self.options, every=True))
        for name in self.options:
            if name not in known:
                raise RecipeError(
                    f"options: expected those of the methods ({', '.join(known) or 'none'}), got {name!r}"
                )

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


def options_for(treatment: Treatment, options: Mapping[str, Any], every: bool = False) -> Mapping[str, Any]:
    """Those of the options that the methods of a treatment have; with `every`, all that they have, if only None."""
    pruner = None if treatment.prune is None else PRUNERS[treatment.prune.method]
    joint = pruner is not None and pruner.solve is not None and treatment.method in (None, "gptq")
    names = [] if treatment.method is None or joint else options_of(treatment.method)
    names += [] if pruner is None else pruner.option_names()
    return {name: options.get(name) for name in names if every or name in options}


def _check_methods(origin: str, prune: str | None, method: str | None) -> None:
    try:
        _pruning(prune)
        if method is not None:
            check_choice("method", method, tuple(METHODS))
    except ValueError as error:
        raise RecipeError(f"{origin}: {error}") from error


def _pruning(text: str | None) -> Pruning | None:
    return None if text in (None, NOTHING) else Pruning.parse(text)


def _method(name: str | None) -> str | None:
    return None if name == NEAREST else name


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
    _check_keys(entry, RULE_KEYS, origin)
    if "match" not in entry:
        raise RecipeError(f"{origin}: expected the key 'match', got {', '.join(entry) or 'nothing'}")
    if ("scheme" in entry) == entry.get("ignore", False):
        raise RecipeError(f'{origin}: expected one of scheme = "..." and ignore = true, got {entry}')
    in_axis = entry.get("in_axis", 1)
    if in_axis not in (0, 1):
        raise RecipeError(f"{origin}: expected in_axis 0 or 1, got {in_axis}")
    scheme = parse_request(entry["scheme"]) if "scheme" in entry else None
    return Rule(entry["match"], scheme, in_axis, origin, entry.get("prune"), entry.get("method"))


def _nothing_found(rule: Rule, names: Iterable[str]) -> str:
    what = "a name" if rule.scheme is None else "the name of a weight of two or more dimensions"
    hint = near(rule.match, names, 0.3)
    return f"{rule.origin}: expected a pattern that finds {what}, got {rule.match!r}{hint}"
