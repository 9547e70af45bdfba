"""Tests of the torch bridge: `make test-torch`. Without torch they are no part of the suite, and say so."""

from __future__ import annotations

import importlib.util

collect_ignore_glob: list[str] = []
if importlib.util.find_spec("torch") is None:
    collect_ignore_glob.append("test_*.py")


def pytest_report_header() -> str | None:
    return "torch: not installed, its tests are in make test-torch" if collect_ignore_glob else None
