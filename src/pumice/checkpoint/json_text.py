"""JSON from untrusted files: strict and bounded."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NoReturn

from pumice.errors import FormatError

DIGITS_CAP = 1000  # of the integers of a config; Python itself stops at 4300
NUMBER_CAP = 1 << 48  # no offset or dimension of a real file is larger; NumPy cannot hold much more


def parse_json(text: bytes, path: str, *, floats: bool = False, constants: bool = False) -> dict[str, Any]:
    """A JSON object, without what JSON leaves open: duplicate keys, and by default floats, huge integers and the
    constants NaN and Infinity, which configs of models have in places that nobody here looks at."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise FormatError(path, ascii(twice)[1:-1], "every key once", "a duplicate key", None)
        return table

    def whole(digits: str) -> int:
        if len(digits) > (DIGITS_CAP if constants else 20):
            raise FormatError(path, None, "integers below 2^48", f"{digits[:20]}...", None)
        return int(digits)

    def refuse(literal: str) -> NoReturn:
        raise FormatError(path, None, "integers only", literal[:20], None)

    try:
        table = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=unique,
            parse_int=whole,
            parse_float=float if floats else refuse,
            parse_constant=float if constants else refuse,
        )
    except UnicodeDecodeError as error:
        raise FormatError(path, None, "UTF-8 text", f"byte {error.start} is not", None) from error
    except json.JSONDecodeError as error:
        raise FormatError(path, None, "JSON", f"{error.msg} at {error.pos}", None) from error
    except RecursionError as error:
        raise FormatError(path, None, "JSON of a few levels", "deep nesting", None) from error
    if not isinstance(table, dict):
        raise FormatError(path, None, "a JSON object", type(table).__name__, None)
    return table


def is_whole(value: object) -> bool:
    """Whether a JSON value is an integer in [0, 2^48]; bool is not."""
    return type(value) is int and 0 <= value <= NUMBER_CAP


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON's escapes allow half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
