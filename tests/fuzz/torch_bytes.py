"""PyTorch archives put together by hand, instruction by instruction: what no torch.save would write."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    count: int = 6,
    key: str = "0",
    kind: str = "FloatStorage",
) -> bytes:
    """The instructions that push one tensor."""
    storage = (
        b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu") + number(count) + b"tQ"
    )
    place = number(offset) + numbers(shape) + numbers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + place + b"\x89ccollections\nOrderedDict\n)RtR"


def state(**values: bytes) -> bytes:
    """A pickle of a dict whose values are pushed by instructions."""
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in values.items()) + b"u."


def archive(pickled: bytes, method: int = zipfile.ZIP_STORED, **storages: bytes) -> bytes:
    """The bytes of a file with this data.pkl and these storages; storage "0" has six float32, unless it is given."""
    storages = {"0": np.arange(6, dtype="<f4").tobytes()} | {name.strip("_"): data for name, data in storages.items()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as members:
        members.writestr("model/data.pkl", pickled)
        members.writestr("model/byteorder", "little")
        for name, data in storages.items():
            members.writestr(f"model/data/{name}", data)
    return file.getvalue()
