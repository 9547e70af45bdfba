"""The house: imports go one way, production never needs the reference, and names are used once."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pumice

SOURCE = Path(__file__).parents[1] / "src" / "pumice"

# Each entry may import itself and what stands before it; sets stand side by side and do not know each other.
LAYERS: list[set[str]] = [
    {"errors", "memory"},
    {"_core"},
    {"options", "scheme", "threadpools", "profile", "timing"},
    {"values"},
    {"layouts"},
    {"members", "costs", "statistics", "compensation"},
    {"choice", "quantization"},
    {"ops"},
    {"explanation", "calibration", "observation"},
    {"pruning", "distillation"},
    {"checkpoint"},
    {"report"},
    {"recipe", "comparison", "difference", "survey", "model_folder"},
    {"conversion", "forwards"},
    {"exporting", "page"},
    {"cli"},
    {"torch", "keras", "sklearn"},  # bridges: imported by nobody
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def files() -> list[Path]:
    found = sorted(SOURCE.rglob("*.py"))
    assert len(found) > 20
    return found


def unit(path: Path) -> str:
    """The part of the house that a file belongs to."""
    top = path.relative_to(SOURCE).parts[0]
    return top.removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Parts of the house that a file imports, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
            module = node.module or ""
            names = [f"pumice.{a.name}" for a in node.names] if module == "pumice" else [module]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "pumice" and name != "pumice.__version__":
                yield name.split(".")[1] if "." in name else "__init__"


def test_every_file_belongs_to_a_layer() -> None:
    known = RANK.keys() | {"__init__", "reference"}
    assert {unit(path) for path in files()} <= known


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    here = unit(path)
    for there in imported(path):
        if here == "__init__":
            assert there != "reference"
        elif here == "reference":
            assert there in {"errors", "scheme", "reference"}, f"{path} imports {there}"
        else:
            assert there in RANK, f"{path} imports pumice.{there}, which is in no layer"
            assert here == there or RANK[there] < RANK[here], f"{path} ({here}) imports {there}"


def test_functions_and_packages_never_share_a_name() -> None:
    for name in pumice.__all__:
        value = getattr(pumice, name)
        assert not (callable(value) and (SOURCE / name).is_dir()), name


def test_everything_public_is_there_and_documented() -> None:
    for name in pumice.__all__:
        assert (getattr(pumice, name).__doc__ or "").strip(), name


def test_importing_pumice_needs_numpy_and_nothing_else() -> None:
    code = (
        "import sys; import numpy; before = set(sys.modules); import pumice;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(' '.join(sorted(new - set(sys.stdlib_module_names))))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(found) <= {"numpy", "pumice", "cython_runtime", "threadpoolctl"} | {
        m for m in found if m.startswith("_cython")
    }


def test_the_reference_is_never_imported_by_production() -> None:
    code = "import sys, pumice, pumice.cli; print([m for m in sys.modules if 'reference' in m and 'pumice' in m])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_what_many_do_without_is_not_imported_with_pumice() -> None:
    """It doubled the time that `import pumice` takes. threadpoolctl, where it is installed, imports what it likes."""
    code = (
        "import sys; sys.modules['threadpoolctl'] = None; import numpy; before = set(sys.modules); import pumice;"
        "print(*set(sys.modules) - before)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    libraries = "asyncio concurrent difflib hashlib json logging pathlib pickle shutil subprocess tempfile"
    ours = "checkpoint cli conversion distillation exporting explanation forwards pruning recipe"
    assert not set(found) & {*libraries.split(), *(f"pumice.{name}" for name in ours.split())}


def test_what_has_to_do_with_files_is_imported_when_it_is_asked_for() -> None:
    seen = "'pumice.checkpoint' in sys.modules"
    code = f"import sys, pumice; before = {seen}; pumice.load; print(before, {seen})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found == ["False", "True"]
    assert set(pumice.__all__) <= set(dir(pumice))
    with pytest.raises(AttributeError, match="module 'pumice' has no attribute 'nothing'"):
        pumice.nothing  # noqa: B018
