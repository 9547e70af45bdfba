"""Tests on a Dask cluster: `make test-dask`. Without dask.distributed they are no part of the suite, and say so."""

from __future__ import annotations

import importlib.util

collect_ignore_glob: list[str] = []
if importlib.util.find_spec("distributed") is None:
    collect_ignore_glob.append("test_*.py")


def pytest_report_header() -> str | None:
    return "dask.distributed: not installed, its tests are in make test-dask" if collect_ignore_glob else None
