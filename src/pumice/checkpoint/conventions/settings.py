"""What the config beside the weights says of a quantization; nobody has checked it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pumice.checkpoint.container import Container, Entry
from pumice.errors import FormatError


def method_of(config: Mapping[str, Any]) -> str | None:
    """The name of the method, such as "gptq"; None where the config does not say."""
    method = config.get("quant_method", config.get("method"))
    return method if isinstance(method, str) else None


def said(config: Mapping[str, Any], *keys: str) -> list[Any]:
    """What the config says under the first of these keys that it has, and its `dynamic` table for some modules.

    Which modules those are its regular expressions say, and nothing in a file is ever run: what is said of any module
    may hold for each.

    Examples
    --------
    >>> said({"bits": 4, "dynamic": {"+:.*down.*": {"bits": 8}, "-:.*gate.*": {}}}, "bits")
    [4, 8]
    """
    overrides = config.get("dynamic")
    tables = [config, *(overrides.values() if isinstance(overrides, Mapping) else ())]
    found = []
    for table in tables:
        key = next((key for key in keys if isinstance(table, Mapping) and table.get(key) is not None), None)
        if key is not None and table[key] not in found:
            found.append(table[key])
    return found


def as_text(values: list[Any]) -> str:
    """Values of a config for an error, however long they are.

    Examples
    --------
    >>> as_text([4, "x" * 100])
    "4 or 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
    """
    return " or ".join(ascii(value)[:39] for value in values[:4])


def refusal(container: Container, tensor: str, rule: str, got: Any, hint: str | None = None) -> FormatError:
    """The error of one tensor."""
    return FormatError(container.where(tensor), tensor, rule, got, hint)


def matrix(container: Container, tensor: str, dtypes: tuple[str, ...]) -> Entry:
    """A tensor of two dimensions, neither of them 0, in one of these dtypes; FormatError for another."""
    entry = container.entry(tensor)
    if entry.dtype not in dtypes or len(entry.shape) != 2 or 0 in entry.shape:
        rule = f"{' or '.join(dtypes)} of two dimensions"
        raise refusal(container, tensor, rule, f"{entry.dtype} of shape {list(entry.shape)}")
    return entry
