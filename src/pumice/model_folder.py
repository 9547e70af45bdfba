"""The files beside the weights of a model's folder, which go along when it is converted or exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

WEIGHT_SUFFIXES = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".onnx", ".gguf", ".msgpack", ".tflite", ".npz",
}  # fmt: skip
SETTINGS = {"quantize_config.json", "quant_config.json"}  # of a quantization, beside the weights
QUANTIZED = ("quantization_config", "compression_config", "pumice")  # what config.json says of it


def side_files(source: Path, target: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The other files of a model folder that go along, and those that do not: weights of other formats."""
    if not source.is_dir() or (target.suffix in (".safetensors", ".npz", ".gguf") and not target.is_dir()):
        return (), ()
    copied: list[str] = []
    skipped: list[str] = []
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        hidden = any(part.startswith(".") for part in name.parts)
        within = target.resolve() in (path.resolve(), *path.resolve().parents)
        if hidden or within or not path.is_file():
            continue
        weights = path.suffix in WEIGHT_SUFFIXES or path.name.endswith(".index.json") or path.name in SETTINGS
        (skipped if weights else copied).append(str(name))
    return tuple(copied), tuple(name for name in skipped if not name.endswith(".safetensors"))


def copy_side_file(source: Path, name: str, config: Callable[[dict[str, Any]], dict[str, Any]], out: IO[bytes]) -> None:
    """Write one of them. What the model's config.json says of the weights' quantization goes, and `config` adds to the
    rest; one that is no JSON object is copied as it is."""
    if name == "config.json" and (table := _table(source / name)) is not None:
        rest = {key: value for key, value in table.items() if key not in QUANTIZED}
        out.write(json.dumps(config(rest), indent=2, ensure_ascii=False).encode() + b"\n")
        return
    with (source / name).open("rb") as file:
        shutil.copyfileobj(file, out)


def _table(path: Path) -> dict[str, Any] | None:
    try:
        table = json.loads(path.read_bytes())
    except ValueError:
        return None
    return table if isinstance(table, dict) else None
