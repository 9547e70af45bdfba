"""Golden folders of other quantizers, and what is left of them when something in them is changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

import pumice as pm

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = ("config.json", "quantize_config.json", "quant_config.json")
Tensors: TypeAlias = dict[str, Any]
Change: TypeAlias = Callable[[Tensors, dict[str, Any]], None]


def golden_modules(form: str) -> Iterator[tuple[str, str]]:
    """Folder and module of everything that `tests/golden/make_*.py` has decoded."""
    with np.load(GOLDEN / form / "expected.npz") as expected:
        yield from (tuple(key.split("/")) for key in expected)  # type: ignore[misc]


def expected(form: str, folder: str, module: str = "fc") -> np.ndarray[Any, Any]:
    """What the format's own code decodes."""
    with np.load(GOLDEN / form / "expected.npz") as arrays:
        return arrays[f"{folder}/{module}"]


def copied(golden: str, target: Path, change: Change) -> Path:
    """A copy of a golden folder after a change of its tensors and of its config."""
    source = GOLDEN / golden
    place = next((source / name for name in CONFIGS if (source / name).is_file()), source / "config.json")
    table = json.loads(place.read_text()) if place.is_file() else {}
    tensors, config = load_file(source / "model.safetensors"), table.get("quantization_config", table)
    for name, array in tensors.items():
        if array.dtype == np.uint16:
            tensors[name] = array.view(ml_dtypes.bfloat16)
    change(tensors, config)
    target.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, target / "model.safetensors")
    (target / place.name).write_text(json.dumps(table))
    return target


def tensor(name: str, make: Callable[[Any], Any]) -> Change:
    return lambda tensors, config: tensors.update({name: make(tensors.get(name))})


def without(*names: str) -> Change:
    def change(tensors: Tensors, config: dict[str, Any]) -> None:
        for name in names:
            tensors.pop(name, None)
            config.pop(name, None)

    return change


def config_of(**settings: Any) -> Change:
    return lambda tensors, config: config.update(settings)


def both(*changes: Change) -> Change:
    def change(tensors: Tensors, config: dict[str, Any]) -> None:
        for one in changes:
            one(tensors, config)

    return change


def weights_of(folder: Path, name: str = "fc.weight") -> Any:
    return pm.load(folder)[name]
