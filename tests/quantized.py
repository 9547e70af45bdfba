"""Golden folders of other quantizers, and what is left of them when something in them is changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

import pumice as pm
from tests.fuzz.mutations import joined, split

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = ("config.json", "quantize_config.json", "quant_config.json")
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip
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
    tensors, config = read_tensors(source / "model.safetensors"), table.get("quantization_config", table)
    change(tensors, config)
    target.mkdir(exist_ok=True)
    (target / "model.safetensors").write_bytes(as_safetensors(tensors))
    (target / place.name).write_text(json.dumps(table))
    return target


def read_tensors(path: Path) -> Tensors:
    """The tensors of a file; the safetensors package has no float8 for NumPy."""
    header, data = split(path.read_bytes()) or ({}, b"")
    header.pop("__metadata__", None)
    tensors = {}
    for name, field in header.items():
        begin, end = field["data_offsets"]
        tensors[name] = np.frombuffer(data[begin:end], DTYPES[field["dtype"]]).reshape(field["shape"])
    return tensors


def as_safetensors(tensors: Tensors) -> bytes:
    """A file of these tensors, as another program writes it."""
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    header, data = {}, b""
    for name, array in tensors.items():
        span = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": span}
        data += array.tobytes()
    return joined(header, data)


def tensor(name: str, make: Callable[[Any], Any]) -> Change:
    return lambda tensors, config: tensors.update({name: make(tensors.get(name))})


def index(at: int, value: int) -> Change:
    """One entry of GPTQ's g_idx."""
    return tensor("fc.g_idx", lambda g_idx: np.where(np.arange(g_idx.size) == at, value, g_idx))


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
