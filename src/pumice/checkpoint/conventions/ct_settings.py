"""What the `quantization_config` of compressed-tensors says of weights, and how it agrees with the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pumice.checkpoint.container import Container
from pumice.checkpoint.json_text import is_whole
from pumice.errors import FormatError

METHOD = "compressed-tensors"
FORMATS = (
    "dense", "pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "mixed-precision",
    "sparse-bitmask", "sparse-24-bitmask",
)  # fmt: skip
STRATEGIES = ("tensor", "channel", "group", "block")
GROUPS_CAP = 64  # of a config; real ones have a handful

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How weights are quantized; None is what nobody says. Without a config all but `bits` is None."""

    bits: int
    symmetric: bool | None = None
    strategy: str | None = None
    group: int | None = None
    block: tuple[int, int] | None = None

    def __str__(self) -> str:
        how = {"group": f"groups of {self.group}", "block": f"blocks of {self.block}"}
        strategy = "" if self.strategy is None else ", " + how.get(self.strategy, f"a scale per {self.strategy}")
        symmetry = {None: "", True: ", symmetric", False: ", asymmetric"}[self.symmetric]
        return f"{self.bits} bits{strategy}{symmetry}"


@dataclass(frozen=True)
class Config:
    """The settings of all config groups, and the version of compressed-tensors that wrote them."""

    settings: tuple[Settings, ...] = ()
    version: tuple[int, ...] | None = None


def read_config(container: Container) -> Config:
    """The config of a checkpoint whose tensors look like those of compressed-tensors; empty if there is none.

    `targets` are not asked: they may be regular expressions, which a file must not make us run. The shapes say which
    group's settings a weight has.

    Raises
    ------
    FormatError
        A format that we do not know, or settings that are none.
    """
    table = container.config
    if table.get("quant_method", METHOD) != METHOD or not table:
        return Config()
    where = str(container.files[0].parent / "config.json")
    sparsity = table.get("sparsity_config")
    for holder in (table, sparsity if isinstance(sparsity, dict) else {}):
        form = holder.get("format", "dense")
        if form not in FORMATS:
            hint = "CUDA's order of bits, which nobody ever decoded" if form == "marlin-24" else None
            raise FormatError(where, None, f"a format of {', '.join(FORMATS)}", ascii(form)[:80], hint)
    groups = table.get("config_groups") or {}
    if not isinstance(groups, dict) or len(groups) > GROUPS_CAP:
        raise FormatError(where, None, f"config_groups, at most {GROUPS_CAP}", ascii(groups)[:80], None)
    found = [_settings(group, f"{where}, config_groups") for group in groups.values()]
    return Config(tuple(dict.fromkeys(s for s in found if s is not None)), _version(table.get("version")))


def _settings(group: object, where: str) -> Settings | None:
    """Those of a group's weights; None if these stay as they are."""
    weights = group.get("weights") if isinstance(group, dict) else group
    if weights is None:
        return None
    if not isinstance(weights, Mapping):
        raise FormatError(where, None, "weights with their settings", ascii(weights)[:80], None)
    bits, symmetric = weights.get("num_bits", 8), weights.get("symmetric", True)
    size, block = weights.get("group_size"), weights.get("block_structure")
    strategy = weights.get("strategy") or _implied(size)
    if not is_whole(bits) or not 1 <= bits <= 8:
        raise FormatError(where, None, "num_bits of 1 to 8", ascii(bits)[:80], None)
    if type(symmetric) is not bool:
        raise FormatError(where, None, "symmetric true or false", ascii(symmetric)[:80], None)
    if strategy not in STRATEGIES:
        raise FormatError(where, None, f"a strategy of {', '.join(STRATEGIES)}", ascii(strategy)[:80], None)
    if strategy == "group" and not (is_whole(size) and size):
        raise FormatError(where, None, "a group_size above 0", ascii(size)[:80], None)
    if strategy == "block" and (
        not isinstance(block, list) or len(block) != 2 or not all(is_whole(n) and n for n in block)
    ):
        raise FormatError(where, None, "a block_structure of two sizes", ascii(block)[:80], None)
    group_size = size if strategy == "group" else None
    block_size = (block[0], block[1]) if strategy == "block" and block else None
    return Settings(bits, symmetric, strategy, group_size, block_size)


def _implied(size: object) -> str:
    """The strategy where none is named."""
    return "tensor" if size is None else "channel" if size == -1 else "group"


def _version(text: object) -> tuple[int, ...] | None:
    numbers = str(text).split(".")[:2]
    return (
        tuple(map(int, numbers)) if len(numbers) == 2 and all(n.isdecimal() and len(n) < 6 for n in numbers) else None
    )


def choose(settings: Sequence[Settings], plan: Callable[[Settings], T], where: str, name: str) -> T:
    """What `plan` makes of the settings that fit a weight; `plan` raises FormatError for those that do not.

    Raises
    ------
    FormatError
        None fit, or several do and lead to different weights.
    """
    plans: dict[T, Settings] = {}
    errors: list[tuple[Settings, FormatError]] = []
    for one in settings:
        try:
            plans.setdefault(plan(one), one)
        except FormatError as error:
            errors.append((one, error))
    # Asymmetric settings fit where there are zero points: then they are what is meant, and never wrong.
    plans = {one: of for one, of in plans.items() if of.symmetric is False} or plans
    if len(plans) == 1:
        return next(iter(plans))
    if plans:
        both = " or ".join(map(str, plans.values()))
        raise FormatError(where, name, "a config.json that says how it is quantized", f"what may be {both}", None)
    if len(errors) == 1:
        one, only = errors[0]
        hint = only.hint if one.strategy is None else f"config.json says {one}"
        raise FormatError(where, name, only.rule, only.got, hint)
    got = "; ".join(f"{one}: {misfit.rule}, got {misfit.got}" for one, misfit in errors[:8])
    raise FormatError(where, name, "settings of config.json that fit", got, None)


@dataclass(frozen=True)
class Grid:
    """How scales lie on a matrix: one for every `rows` rows and `group` columns (None: all)."""

    rows: int
    group: int | None

    def per_row(self, scales: Any, rows: int) -> Any:
        """(rows, groups), from the tensor as it is stored."""
        flat = (
            scales.reshape(1, 1) if scales.size == 1 else scales.reshape(-1, 1 if scales.ndim < 2 else scales.shape[-1])
        )
        return flat if self.rows == 1 else flat.repeat(self.rows, axis=0)[:rows]


def grid_of(settings: Settings, scale: tuple[int, ...], rows: int, cols: int) -> Grid:
    """Where the scales of a (rows, cols) matrix are, from the shape of their tensor.

    Raises
    ------
    FormatError
        It is not the shape that the settings say; without settings, one that no strategy has.
    """
    size = settings.group or cols
    groups = -(-cols // size)
    high, wide = settings.block or (1, 1)
    expected = {
        "tensor": ((), (1,), (1, 1)),
        "channel": ((rows, 1), (rows,)),
        "group": ((rows, groups), *([(rows,)] if groups == 1 else [])),
        "block": ((-(-rows // high), -(-cols // wide)),),
    }
    if settings.strategy is not None:
        if scale not in expected[settings.strategy]:
            rule = " or ".join(map(str, expected[settings.strategy]))
            raise FormatError(None, None, f"scales of shape {rule} for {rows} rows and {cols} columns", f"{scale}")
        return {
            "tensor": Grid(rows, None),
            "channel": Grid(1, None),
            "group": Grid(1, size if groups > 1 else None),
            "block": Grid(high, wide if wide < cols else None),
        }[settings.strategy]
    if scale in expected["channel"]:
        return Grid(1, None)
    if scale in expected["tensor"]:
        return Grid(rows, None)
    if len(scale) == 2 and scale[0] == rows and scale[1] and cols % scale[1] == 0:
        return Grid(1, cols // scale[1])
    rule = f"scales for the matrix, each row or equal groups of {rows} rows and {cols} columns"
    raise FormatError(None, None, rule, f"scales of shape {scale}", "a config.json that tells more?")
