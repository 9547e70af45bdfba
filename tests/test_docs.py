"""Every example in a docstring and in the documentation runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import pumice

ROOT = Path(__file__).parents[1]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
BRIDGES = (
    "pumice.torch",
    "pumice.keras",
    "pumice.sklearn",
)  # what they need is not installed here: their own tests run their examples
MODULES = [
    "pumice",
    *(
        found.name
        for found in pkgutil.walk_packages(pumice.__path__, "pumice.", onerror=lambda name: None)
        if not found.name.endswith("__main__") and not found.name.startswith(BRIDGES)
    ),
]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=FLAGS)
    assert result.failed == 0


def test_enough_of_the_modules_have_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(name) for name in MODULES]
    count = sum(bool(test.examples) for module in modules for test in finder.find(module))
    assert count >= 25


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages_say_what_is_so(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples may write files
    assert doctest.testfile(str(page), module_relative=False, optionflags=FLAGS).failed == 0


def test_files_and_commands_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = 0
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        text = page.read_text()
        for path in re.findall(r"`((?:docs|bench|examples|csrc|tests|tools)/[\w./-]+)`", text):
            if re.search("NAME|ISA", path):
                continue  # a pattern
            assert (ROOT / path).exists(), f"{page.name}: {path}"
            named += 1
        for line in re.findall(r"(?:^|`)make ([a-z -]+)", text, re.MULTILINE):
            for target in line.split():
                assert target in targets, f"{page.name}: make {target}"
                named += 1
    assert named > 30


@pytest.mark.parametrize("name", sorted(set(pumice.__all__)))
def test_public_functions_and_classes_have_an_example(name: str) -> None:
    value = getattr(pumice, name)
    if isinstance(value, type) and issubclass(value, Exception):
        return
    documented = doctest.DocTestFinder().find(value, name) if hasattr(value, "__module__") else []
    native = getattr(value, "__module__", "").startswith("pumice._core") or type(value).__name__.startswith("cython")
    abstract = value is pumice.CompactArray
    assert native or abstract or any(test.examples for test in documented), f"{name} has no example"


def test_each_cell_of_formats_in_and_out_names_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "formats-in-out.md").read_text()
    body, list_of_tests = text.split("\n## Tests\n")
    named = dict(re.findall(r"^- ([\w-]+): `(tests/[\w/]+\.py::test_\w+)`$", list_of_tests, re.MULTILINE))
    assert len(named) == list_of_tests.count("::") > 25
    used = set(re.findall(r"\[([a-z][\w-]+)\]", body))
    assert used == set(named)
    for place in named.values():
        path, _, test = place.partition("::")
        assert re.search(rf"^    *def {test}\(|^def {test}\(", (ROOT / path).read_text(), re.MULTILINE), place
    rows = [line.strip("|").split("|") for line in body.splitlines() if line.startswith("|") and "---" not in line]
    assert len(rows) > 12
    for cells in rows:
        if cells[0].strip() in ("format", "what"):
            continue
        backed = cells[-1:] if len(cells) == 3 else cells[1:]
        for cell in backed:
            assert cell.strip() in ("-", "no") or re.search(r"\[[a-z][\w-]+\]", cell), f"{cells[0]}: {cell}"
