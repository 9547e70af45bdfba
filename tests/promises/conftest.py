"""What the promises share: the long versions, the fault injector, and counts for docs/promises.md."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LONG = os.environ.get("PUMICE_LONG", "") not in ("", "0")


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fault injector, compiled."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the fault injector wraps glibc's calls")
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert compiler, "expected a C++ compiler, which the build needs, too"
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", HERE / "faults.cpp", "-o", library, "-ldl"], check=True)
    return library


@pytest.fixture
def count(record_testsuite_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """Say how often something was tried; shown with -s."""

    def say(what: str, number: object) -> None:
        record_testsuite_property(what, number)
        print(f"\nPROMISE {what}: {number}", flush=True)

    return say


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether to run the long version (make promises)."""
    return LONG
