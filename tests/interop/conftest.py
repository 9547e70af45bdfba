"""Tests with the programs that our files are for: `make interop`. Without them they are no part of the suite."""

from __future__ import annotations

import importlib.util

collect_ignore_glob: list[str] = []
if importlib.util.find_spec("compressed_tensors") is None:
    collect_ignore_glob.append("test_*.py")


def pytest_report_header() -> str | None:
    return "compressed-tensors: not installed, its tests are in make interop" if collect_ignore_glob else None
