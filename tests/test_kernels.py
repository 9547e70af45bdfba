"""The C++ self-test of the kernels, on the objects that test_symbols.py looks into."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pumice._core import native
from tests.objects import CROSS, CSRC, CXX, run


@pytest.mark.skipif(CROSS != "", reason="this machine does not run what the cross compiler makes")
def test_every_kernel_passes_its_self_test_on_every_isa(objects: dict[str, Path], tmp_path: Path) -> None:
    program = tmp_path / "kernel_test"
    source = CSRC / "tests" / "kernel_test.cpp"
    run(
        CXX,
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-I",
        CSRC,
        source,
        *objects.values(),
        "-pthread",
        "-o",
        program,
    )
    done = subprocess.run([program, *native.isas()], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"kernel_test: {' '.join(native.isas())}: ")
