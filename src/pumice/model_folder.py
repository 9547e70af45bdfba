"""The files beside the weights of a model's folder, which go along when it is converted or exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from pumice.checkpoint.base import Reader, same_file
from pumice.checkpoint.locations import Location, is_within, names_in

WEIGHT_SUFFIXES = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".onnx", ".gguf", ".msgpack", ".tflite", ".npz",
}  # fmt: skip
CONFIG = "config.json"
SETTINGS = {"quantize_config.json", "quant_config.json"}  # of a quantization, beside the weights
QUANTIZED = ("quantization_config", "compression_config", "pumice")  # what config.json says of it


def check_apart(reader: Reader, source: Location, target: Location) -> None:
    """Raise ValueError where writing the target would replace what is read."""
    if same_file(source, target):
        raise ValueError(f"target: expected another path than the source, got {str(target)!r}")
    if any(same_file(target, place) for file in reader.files for place in (file, file.parent)):
        raise ValueError(f"target: expected another place than the source, got {str(target)!r}")


def side_files(reader: Reader, source: Location, target: Location) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The other files of a model folder that go along, and those that do not: weights that are not read here."""
    if not source.is_dir() or (target.suffix in (".safetensors", ".npz", ".gguf") and not target.is_dir()):
        return (), ()
    copied: list[str] = []
    skipped: list[str] = []
    for name in names_in(source):
        path = source / name
        hidden = any(part.startswith(".") for part in Path(name).parts)
        index = name.endswith(".index.json")
        read = any(same_file(path, file) for file in reader.files)
        if hidden or index or is_within(path, target) or not path.is_file() or read:
            continue
        weights = path.suffix in WEIGHT_SUFFIXES or path.name in SETTINGS
        (skipped if weights else copied).append(name)
    return tuple(copied), tuple(skipped)


def copy_side_file(
    source: Location, name: str, config: Callable[[dict[str, Any]], dict[str, Any]], out: IO[bytes]
) -> None:
    """Write one of them. What the model's config.json says of the weights' quantization goes, and `config` adds to the
    rest; one that is no JSON object is copied as it is."""
    if name == CONFIG and (table := _table(source / name)) is not None:
        write_config(config({key: value for key, value in table.items() if key not in QUANTIZED}), out)
        return
    with (source / name).open("rb") as file:
        shutil.copyfileobj(file, out)


def write_config(table: Mapping[str, Any], out: IO[bytes]) -> None:
    """Write config.json."""
    out.write(json.dumps(table, indent=2, ensure_ascii=False).encode() + b"\n")


def _table(path: Location) -> dict[str, Any] | None:
    try:
        table = json.loads(path.read_bytes())
    except ValueError:
        return None
    return table if isinstance(table, dict) else None
