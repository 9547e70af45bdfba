"""The results of bench/quality.py as tables and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparse_tables import table


def blocks(found: dict[str, Any]) -> dict[str, str]:
    return {}


def draw(found: dict[str, Any], path: Path) -> None:
    pass
