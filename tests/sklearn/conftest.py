"""Tests of the scikit-learn bridge: `make test-sklearn`. Without it they are no part of the suite, and say so."""

from __future__ import annotations

import importlib.util

collect_ignore_glob: list[str] = []
if importlib.util.find_spec("sklearn") is None:
    collect_ignore_glob.append("test_*.py")


def pytest_report_header() -> str | None:
    return "scikit-learn: not installed, its tests are in make test-sklearn" if collect_ignore_glob else None
