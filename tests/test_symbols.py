"""The core's objects: instructions of one ISA must not leak into code that runs on every machine, and kernels work.

Two ways it happens: the linker keeps an AVX-512 copy of an inline function that baseline code also
uses (so ISA objects may hold no weak symbol), or a baseline file gets a wide flag. That the kernels
work, the C++ self-test says, linked with the same objects.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pumice._core import native
from tests.objects import (
    CROSS,
    CSRC,
    CXX,
    NM,
    OBJDUMP,
    WIDE,
    X86,
    baseline_sources,
    build_objects,
    compile_object,
    isa_flags,
    object_name,
    run,
)

# Of the wide instructions of each ISA: one that must be there, and those that its processors may lack.
SIGNS = {
    "avx2": (r"vpmaddubsw ", r"vpdp|%zmm|%k[0-7]|%[xy]mm(1[6-9]|[23]\d)"),
    "avxvnni": (r"\{vex\} vpdpbusd ", r"^vpdp|%zmm|%k[0-7]|%[xy]mm(1[6-9]|[23]\d)"),
    "avx512": (r"vpdpbusd .*%zmm", r"\{vex\}|\btdp"),
    "amx": (r"\btdpbsud ", r"\{vex\}|\btdpfp16ps"),
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


def _symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """(type letter, demangled name) of each symbol."""
    found = re.findall(r"^[\da-f ]{16} (\S) (.*)$", run(NM, "-C", *options, path), re.MULTILINE)
    return [(letter, name) for letter, name in found]


def _disassembly(path: Path) -> list[str]:
    return run(OBJDUMP, "-d", "-C", "--no-show-raw-insn", path).splitlines()


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
    assert set(isa_flags()) == {"scalar", *WIDE}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The core's objects by name; half a minute, so compiled once."""
    return build_objects(tmp_path_factory.mktemp("objects"))


def test_no_isa_object_has_a_weak_symbol(objects: dict[str, Path]) -> None:
    weak = {isa: [name for letter, name in _symbols(objects[isa]) if letter in "WwVvu"] for isa in isa_flags()}
    assert weak
    assert not any(weak.values()), weak


def test_every_isa_object_exports_its_table_and_nothing_else(objects: dict[str, Path]) -> None:
    for isa in isa_flags():
        exported = _symbols(objects[isa], "--defined-only", "--extern-only")
        assert [name for _, name in exported] == [f"pumice::{isa}::kTable"]


@pytest.mark.skipif(not X86, reason="looks for x86 instructions")
def test_baseline_objects_use_plain_x86_64_instructions_only(objects: dict[str, Path]) -> None:
    names = ["scalar", *map(object_name, baseline_sources())]
    assert {"algorithms-compensation", "formats-integer", "dispatch-dense", "dispatch-cpu", "dispatch-parallel"} <= set(
        names
    )
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
    built = compile_object(source, ["-O0"], tmp_path / "weak.o")
    assert ("W", "shared(int)") in _symbols(built)


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
