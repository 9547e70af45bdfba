"""The core compiled by hand, once for all tests that look into its objects or link them.

`PUMICE_CROSS=aarch64-linux-gnu-` compiles with that cross compiler (make test-arm).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
CROSS = os.environ.get("PUMICE_CROSS", "")
CXX, NM, OBJDUMP = TOOLS = (f"{CROSS}g++" if CROSS else "c++", f"{CROSS}nm", f"{CROSS}objdump")
X86 = (CROSS or platform.machine()).startswith(("x86_64", "AMD64"))
WIDE = {"avx2", "avxvnni", "avx512", "amx"} if X86 else {"neon"}


def _cmake_text() -> str:
    text = re.sub(r"#[^\n]*", "", (ROOT / "CMakeLists.txt").read_text())
    return re.sub(r"\s+", " ", text)


def _code_flags(words: str) -> list[str]:
    """The options among `words`, without warnings and CMake's generator expressions."""
    return [word for word in words.split() if re.match(r"-[^W]", word)]


def isa_flags() -> dict[str, list[str]]:
    """Flags of each ISA file, as CMakeLists.txt gives them to pumice_isa()."""
    found = re.findall(r"\bpumice_isa\((\w+)([^)]*)\)", _cmake_text())
    return {name: _code_flags(words) for name, words in found if name in WIDE or name == "scalar"}


def _core_flags() -> list[str]:
    options = re.search(r"target_compile_options\(pumice_core PRIVATE ([^)]*)\)", _cmake_text())
    assert options is not None
    return _code_flags(options[1])


def baseline_sources() -> list[Path]:
    folders = ("algorithms", "formats", "dispatch")
    return sorted(path for folder in folders for path in (CSRC / folder).glob("*.cpp"))


def object_name(source: Path) -> str:
    """Of a baseline file: folders share names."""
    return f"{source.parent.name}-{source.stem}"


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compile_object(source: Path, flags: list[str], target: Path) -> Path:
    run(
        CXX, "-std=c++17", "-fPIC", "-fvisibility=hidden", "-w", "-I", CSRC,
        *_core_flags(), *(f"-DPUMICE_HAS_{name}" for name in isa_flags()),
        *flags, "-c", source, "-o", target,
    )  # fmt: skip
    return target


def build_objects(folder: Path) -> dict[str, Path]:
    """Objects by name: ISA files without optimization, where nothing is inlined away; baseline
    files with it."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs a compiler and binutils; not found: {', '.join(missing)}")
    isas = isa_flags()
    empty = folder / "empty.cpp"
    empty.touch()
    for isa, flags in isas.items():
        try:
            compile_object(empty, flags, folder / "empty.o")
        except AssertionError as error:  # CMake leaves that ISA out
            pytest.skip(f"the compiler cannot build {isa}: {error}")
    jobs = [(isa, CSRC / "isa" / f"{isa}.cpp", [*flags, "-O0"]) for isa, flags in isas.items()]
    jobs += [(object_name(path), path, ["-O2"]) for path in baseline_sources()]
    with ThreadPoolExecutor(2) as pool:
        built = pool.map(lambda job: compile_object(job[1], job[2], folder / f"{job[0]}.o"), jobs)
        return dict(zip((name for name, *_ in jobs), built, strict=True))
