"""Seeds and mutations for what lies in ZIP archives: PyTorch's, NumPy's and SciPy's files."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable

import numpy as np
from torch_bytes import archive, state, tensor, text

Mutation = Callable[[random.Random, bytes], bytes]

# What the machine that reads a pickle knows, and what it must not.
INSTRUCTIONS = b"\x80\x95(0NJKMG\x8aX\x8cBC]\x8f})\x85\x86\x87tae\x90suc\x93RbQqr\x94hj.\x88\x89\x81oi12IFVSU"


def seeds() -> list[bytes]:
    """A few small files of each kind."""
    tensors = {
        "w": tensor(),
        "t": tensor(shape=(3, 2), strides=(1, 3)),
        "tail": tensor(shape=(2,), strides=(1,), offset=4),
        "p": b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88ccollections\nOrderedDict\n)RtR",
        "w_orig": tensor(),
        "w_mask": tensor(key="2"),
    }
    del tensors["w"]
    pickled = state(**tensors, rest=b"}(" + text("w") + tensor(key="1", kind="HalfStorage", count=12) + b"K\x01]Nau")
    half, mask = np.arange(12, dtype="<f2").tobytes(), np.array([1, 0, 1, 1, 0, 0], "<f4").tobytes()
    return [
        archive(pickled, _1=half, _2=mask),
        archive(pickled, zipfile.ZIP_DEFLATED, _1=half, _2=mask),
        archive(state(model=b"}" + text("w") + tensor() + b"s", epoch=b"K\x03")),
        *_numpy(),
    ]


def _numpy() -> list[bytes]:
    w = np.arange(12.0).reshape(3, 4)
    sparse = {"data": np.arange(1.0, 4), "shape": np.array([3, 4])}
    indices = {"indices": np.array([0, 3, 1], np.int32), "indptr": np.array([0, 2, 2, 3], np.int32)}
    files = [io.BytesIO() for _ in range(9)]
    np.save(files[0], w.astype("<f4"))
    np.save(files[1], np.asfortranarray(w, ">f8"))
    np.savez(files[2], a=w, b=np.asfortranarray(w), c=w > 5, d=np.array(3))
    np.savez_compressed(files[3], a=w.astype("f2"), b=np.zeros((0, 3)))
    np.savez(files[4], format=b"csr", **sparse, **indices)
    np.savez_compressed(files[5], format=b"coo", row=np.array([0, 2, 2]), col=np.array([3, 0, 0]), **sparse)
    np.savez(files[6], format=b"csc", data=sparse["data"], shape=np.array([4, 3]), **indices)
    np.savez(files[7], format=b"bsr", data=np.ones((3, 2, 2)), shape=np.array([6, 8]), **indices)
    np.savez(files[8], format=b"coo", coords=np.array([[0, 2, 2], [3, 0, 0]]), **sparse)
    return [file.getvalue() for file in files]


def rezipped(rng: random.Random, blob: bytes, mutations: list[Mutation]) -> bytes:
    """Change one member, and write an archive around it whose own numbers are right."""
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as old:
            members = {name: old.read(name) for name in old.namelist()}
    except Exception:  # whatever zipfile makes of an archive that is broken already
        return rng.choice(mutations)(rng, blob)
    if not members:
        return blob
    name = rng.choice(list(members))
    inner = [program, *mutations] if name.endswith(".pkl") else mutations
    members[name] = rng.choice(inner)(rng, members[name])
    if rng.random() < 0.1:
        del members[rng.choice(list(members))]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new:
        for name, data in members.items():
            new.writestr(name, data)
    return file.getvalue()


def program(rng: random.Random, blob: bytes) -> bytes:
    """Change, insert or repeat instructions of a pickle."""
    at = rng.randrange(len(blob) + 1)
    code = bytes([rng.choice(INSTRUCTIONS)])
    kind = rng.randrange(4)
    if kind == 0:
        return blob[:at] + code + blob[at:]
    if kind == 1:
        return blob[:at] + code + blob[at + 1 :]
    if kind == 2:
        return blob[:at] + code * rng.choice((2, 100, 5000)) + blob[at:]
    return (
        blob[:at]
        + rng.choice((b"cos\nsystem\n", b"ctorch\nSize\n", b"ccollections\nOrderedDict\n", tensor()))
        + blob[at:]
    )
