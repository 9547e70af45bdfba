"""Instructions of one ISA must not leak into code that runs on every machine.

Two ways it happens: the linker keeps an AVX-512 copy of an inline function that baseline code also
uses (so ISA objects may hold no weak symbol), or a baseline file gets a wide flag.

`PUMICE_CROSS=aarch64-linux-gnu-` tests what that cross compiler makes (make test-arm).
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
WIDE = {"avx2", "avxvnni", "avx512"} if X86 else {"neon"}

# Of the wide instructions of each ISA: one that must be there, and those that its processors may lack.
SIGNS = {
    "avx2": (r"vpmaddubsw ", r"vpdp|%zmm|%k[0-7]|%[xy]mm(1[6-9]|[23]\d)"),
    "avxvnni": (r"\{vex\} vpdpbusd ", r"^vpdp|%zmm|%k[0-7]|%[xy]mm(1[6-9]|[23]\d)"),
    "avx512": (r"vpdpbusd .*%zmm", r"\{vex\}|\btdp"),
    "neon": (r"sdot\s", r"\b[su]mmla\b|\busdot\b|\bz\d+\.[bhsd]\b"),
}

# Instructions beyond x86-64 v1: VEX and EVEX ones begin with v, then BMI, mask registers, SSSE3 and
# SSE4. Not tzcnt: compilers write bsf that way, which old processors understand.
BEYOND_BASELINE = re.compile(
    r"^(v\w+|andn|bextr|bls(i|r|msk)|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|lzcnt|popcnt|crc32"
    r"|k(mov|or|and|xor|not|shift|unpck)\w+|pabs\w+|pshufb|pmaddubsw|palignr|ph(add|sub)\w+"
    r"|pmov[sz]x\w+|pmulld|pmuldq|p(min|max)(sb|sd|uw|ud)|pinsr[bdq]|pextr[bdq]|pblend\w+"
    r"|blendv?p[sd]|round[sp][sd]|insertps|extractps|ptest|packusdw|pcmp(eqq|gtq))[lqwb]?$"
)


def _cmake_text() -> str:
    text = re.sub(r"#[^\n]*", "", (ROOT / "CMakeLists.txt").read_text())
    return re.sub(r"\s+", " ", text)


def _code_flags(words: str) -> list[str]:
    """The options among `words`, without warnings and CMake's generator expressions."""
    return [word for word in words.split() if re.match(r"-[^W]", word)]


def _isa_flags() -> dict[str, list[str]]:
    """Flags of each ISA file, as CMakeLists.txt gives them to pumice_isa()."""
    found = re.findall(r"\bpumice_isa\((\w+)([^)]*)\)", _cmake_text())
    return {name: _code_flags(words) for name, words in found if name in WIDE or name == "scalar"}


def _core_flags() -> list[str]:
    options = re.search(r"target_compile_options\(pumice_core PRIVATE ([^)]*)\)", _cmake_text())
    assert options is not None
    return _code_flags(options[1])


def _baseline_sources() -> list[Path]:
    folders = ("formats", "dispatch")
    return sorted(path for folder in folders for path in (CSRC / folder).glob("*.cpp"))


def _run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _compile(source: Path, flags: list[str], target: Path) -> Path:
    _run(
        CXX, "-std=c++17", "-fPIC", "-fvisibility=hidden", "-w", "-I", CSRC,
        *_core_flags(), *(f"-DPUMICE_HAS_{name}" for name in _isa_flags()),
        *flags, "-c", source, "-o", target,
    )  # fmt: skip
    return target


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Objects by name: ISA files without optimization, where nothing is inlined away; baseline
    files with it."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs a compiler and binutils; not found: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("objects")
    isas = _isa_flags()
    empty = folder / "empty.cpp"
    empty.touch()
    for isa, flags in isas.items():
        try:
            _compile(empty, flags, folder / "empty.o")
        except AssertionError as error:  # CMake leaves that ISA out
            pytest.skip(f"the compiler cannot build {isa}: {error}")
    jobs = [(isa, CSRC / "isa" / f"{isa}.cpp", [*flags, "-O0"]) for isa, flags in isas.items()]
    jobs += [(path.stem, path, ["-O2"]) for path in _baseline_sources()]
    with ThreadPoolExecutor(2) as pool:
        built = pool.map(lambda job: _compile(job[1], job[2], folder / f"{job[0]}.o"), jobs)
        return dict(zip((name for name, *_ in jobs), built, strict=True))


def _symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """(type letter, demangled name) of each symbol."""
    found = re.findall(r"^[\da-f ]{16} (\S) (.*)$", _run(NM, "-C", *options, path), re.MULTILINE)
    return [(letter, name) for letter, name in found]


def _disassembly(path: Path) -> list[str]:
    return _run(OBJDUMP, "-d", "-C", "--no-show-raw-insn", path).splitlines()


def _instructions_beyond_baseline(path: Path) -> dict[str, str]:
    """Instruction -> the function where it was first seen."""
    found: dict[str, str] = {}
    function = ""
    for line in _disassembly(path):
        if header := re.match(r"[\da-f]+ <(.*)>:$", line):
            function = header[1]
        code = re.match(r"\s+[\da-f]+:\s+(\S+)(.*)", line)
        if code and (BEYOND_BASELINE.match(code[1]) or re.search(r"%[yz]mm", code[2])):
            found.setdefault(code[1], function)
    return found


def test_every_isa_file_is_in_the_build() -> None:
    files = {path.stem for path in (CSRC / "isa").glob("*.cpp")}
    assert files == {"scalar", *SIGNS}
    assert set(_isa_flags()) == {"scalar", *WIDE}


def test_no_isa_object_has_a_weak_symbol(objects: dict[str, Path]) -> None:
    weak = {isa: [name for letter, name in _symbols(objects[isa]) if letter in "WwVvu"] for isa in _isa_flags()}
    assert weak
    assert not any(weak.values()), weak


def test_every_isa_object_exports_its_table_and_nothing_else(objects: dict[str, Path]) -> None:
    for isa in _isa_flags():
        exported = _symbols(objects[isa], "--defined-only", "--extern-only")
        assert [name for _, name in exported] == [f"pumice::{isa}::kTable"]


@pytest.mark.skipif(not X86, reason="looks for x86 instructions")
def test_baseline_objects_use_plain_x86_64_instructions_only(objects: dict[str, Path]) -> None:
    names = ["scalar", *(path.stem for path in _baseline_sources())]
    assert {"integer", "api", "cpu", "parallel"} <= set(names)
    wide = {name: _instructions_beyond_baseline(objects[name]) for name in names}
    assert not any(wide.values()), wide


@pytest.mark.parametrize("isa", sorted(WIDE))
def test_an_isa_object_uses_its_own_instructions_and_none_of_a_later_one(isa: str, objects: dict[str, Path]) -> None:
    present, absent = SIGNS[isa]
    code = [line.split(":", 1)[1].strip() for line in _disassembly(objects[isa]) if re.match(r"\s+[\da-f]+:", line)]
    assert any(re.search(present, line) for line in code)
    assert [line for line in code if re.search(absent, line)] == []
    assert [line for line in _disassembly(objects["scalar"]) if re.search(present, line)] == []


@pytest.mark.skipif(not X86, reason="looks for x86 instructions")
def test_the_search_for_wide_instructions_finds_those_of_the_wide_objects(
    objects: dict[str, Path],
) -> None:
    for isa in WIDE:
        assert _instructions_beyond_baseline(objects[isa])


def test_the_search_for_weak_symbols_finds_an_inline_function(objects: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "weak.cpp"
    source.write_text("inline int shared(int n) { return n; } int use() { return shared(1); }\n")
    built = _compile(source, ["-O0"], tmp_path / "weak.o")
    assert ("W", "shared(int)") in _symbols(built)
