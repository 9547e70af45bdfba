"""Seeds and mutations for the readers: bytes that change, headers that lie, parts that are exchanged."""

from __future__ import annotations

import io
import json
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pumice as pm

sys.path.insert(0, str(Path(__file__).parent))  # for those who import this as tests.fuzz.mutations
import archives
from gguf_bytes import model as gguf_model

SCHEMES = [
    "float32", "float16", "bfloat16", "float8-g16", "int8", "int4-g32", "int4-g16-asym", "int3-g16-min", "csr",
    "csr+int8", "csr+int4", "csr+bfloat16", "bsr-4x4", "bsr-3x5+int8", "bitmask", "bitmask+int4-g16", "2:4+int8",
    "int4-g32&csr+int8",
]  # fmt: skip
GOLDEN = Path(__file__).parents[1] / "golden"
FOREIGN = [
    "compressed_tensors/pack-4-group-asym", "compressed_tensors/pack-4-stack", "compressed_tensors/pack-8-channel",
    "compressed_tensors/pack-7-channel-asym", "compressed_tensors/int-group-asym", "compressed_tensors/float-channel",
    "compressed_tensors/sparse-float32", "compressed_tensors/sparse-int-asym", "compressed_tensors/sparse-24-int",
    "gptq/autogptq-4bit", "gptq/planes-3bit", "gptq/v1-2bit", "awq/autoawq", "float8/weight_scale", "float8/deepseek",
]  # fmt: skip
NUMBERS = [
    0,
    1,
    -1,
    2,
    7,
    8,
    15,
    16,
    63,
    64,
    255,
    256,
    2**31 - 1,
    2**31,
    2**32,
    2**47,
    2**48,
    2**53,
    2**62,
    2**63,
    2**64,
    10**30,
]
VALUES: list[Any] = [
    None,
    True,
    False,
    "",
    "F32",
    "csr",
    "int4-g32",
    "int4&csr",
    "../x",
    "\x00",
    "\ud800",
    [],
    {},
    [[]],
    1.0,
    -0.0,
    1e308,
    "9" * 50,
]


def saved(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pm.save(file, arrays)
    return file.getvalue()


def seeds() -> list[bytes]:
    """A small file of each scheme, one of all of them, plain ones, and those of other formats and conventions."""
    w = pm.prune(np.random.default_rng(0).standard_normal((12, 32)).astype(np.float32), pattern="2:4")
    compact = {scheme: pm.compress(w, scheme) for scheme in SCHEMES}
    files = [saved({"w": array, "b": np.arange(3.0)}) for array in compact.values()]
    files.append(saved(compact | {"t": compact["int8"].T}))
    files.append(saved({"a": np.zeros((0, 3)), "b": np.array(True), "c": np.ones((2, 2), np.float16)}))
    permuted = pm.PermutedArray(compact["int4-g16-asym"], np.arange(32)[::-1])
    files.append(saved({"p": permuted, "q": permuted & compact["csr"]}))
    files += [(GOLDEN / folder / "model.safetensors").read_bytes() for folder in FOREIGN]
    files += [gguf_model()] * 3  # as often as others: nearly all of its bytes are its header
    files.append((GOLDEN / "ggml.gguf").read_bytes())  # every type that is decoded
    return files + archives.seeds()


def split(blob: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Header and data of a file whose header is still JSON."""
    try:
        length = struct.unpack("<Q", blob[:8])[0]
        header = json.loads(blob[8 : 8 + length])
    except (ValueError, struct.error, RecursionError):
        return None
    return (header, blob[8 + length :]) if isinstance(header, dict) else None


def joined(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text + data


def flip(rng: random.Random, blob: bytes) -> bytes:
    out = bytearray(blob)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def overwrite(rng: random.Random, blob: bytes) -> bytes:
    at = rng.randrange(len(blob) + 1)
    width = rng.choice((1, 2, 4, 8))
    return blob[:at] + (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little") + blob[at + width :]


def cut(rng: random.Random, blob: bytes) -> bytes:
    a, b = sorted(rng.randrange(len(blob) + 1) for _ in range(2))
    return rng.choice((blob[:a], blob[:a] + blob[b:], blob[:b] + blob[a:b] + blob[b:], blob + blob[a:b]))


def lie(rng: random.Random, blob: bytes) -> bytes:
    """Change a value somewhere in the header, or in the manifest within; of an archive, a member."""
    if blob.startswith(b"PK"):
        return archives.rezipped(rng, blob, [flip, overwrite, cut])
    found = split(blob)
    if found is None:
        return flip(rng, blob)
    header, data = found
    manifest = header.get("__metadata__")
    inner = manifest.get("pumice.manifest") if isinstance(manifest, dict) else None
    if isinstance(inner, str) and rng.random() < 0.5:
        try:
            table = json.loads(inner)
        except ValueError:
            table = None
        if isinstance(table, dict):
            change(rng, table)
            assert isinstance(manifest, dict)
            manifest["pumice.manifest"] = json.dumps(table)
            return joined(header, data)
    change(rng, header)
    return joined(header, data)


def change(rng: random.Random, table: Any) -> None:
    """Change one value of a JSON tree in place."""
    while True:
        keys = list(table) if isinstance(table, dict) else list(range(len(table)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(table[key], dict | list) and table[key] and rng.random() < 0.8:
            table = table[key]
            continue
        break
    turn = rng.random()
    if turn < 0.4:
        table[key] = rng.choice(NUMBERS)
    elif turn < 0.6:
        table[key] = rng.choice(VALUES)
    elif turn < 0.75:
        table[key] = table[rng.choice(keys)]
    elif turn < 0.85:
        del table[key]
    elif isinstance(table, dict):
        table[rng.choice(("w", "w_indptr", "scheme", "__metadata__", "x"))] = table[key]
    elif isinstance(table[key], int) and not isinstance(table[key], bool):
        table[key] += rng.choice((-1, 1, 8, 64))
    else:
        table.append(table[key])


MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [flip, overwrite, cut, lie, lie]


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    blob = rng.choice(corpus)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        blob = rng.choice(MUTATIONS)(rng, blob)
    return blob
