"""Tests of the Keras bridge: `make test-keras`, on the torch backend. Without Keras they are no part of the suite."""

from __future__ import annotations

import importlib.util
import os

collect_ignore_glob: list[str] = []
if importlib.util.find_spec("keras") is None:
    collect_ignore_glob.append("test_*.py")
else:
    os.environ.setdefault("KERAS_BACKEND", "torch")


def pytest_report_header() -> str | None:
    if collect_ignore_glob:
        return "keras: not installed, its tests are in make test-keras"
    return f"keras on {os.environ['KERAS_BACKEND']}"
