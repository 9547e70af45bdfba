"""Nothing that a safetensors file says is believed unchecked: headers, manifests and parts that lie, cuts and flips."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pumice as pm
from tests.states import weights, written

# Files that lie.


def crafted(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"1234567", "at least 8 bytes"),
        (struct.pack("<Q", 1 << 63) + b"{}", "a header of at most 100000000 bytes"),
        (struct.pack("<Q", 50_000_000) + b"{}", "a header of 50000000 bytes, got a file of 10 bytes"),
        (crafted(b"[]"), "starts with '{'"),
        (crafted(b" {}"), "starts with '{'"),
        (crafted(b'{"a":'), "JSON"),
        (crafted(b'{"a\xff":1}'), "UTF-8"),
        (crafted(b"{" + b'"a":{' * 100_000), "a few levels"),
        (
            crafted(b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", bytes(8)),
            "every key once",
        ),
        (crafted({"a": entry()}, bytes(7)), "expected 8 bytes of data, got 7 bytes"),
        (crafted({"a": entry()}, bytes(9)), "expected 8 bytes of data, got 9 bytes"),
        (crafted({"a": entry(offsets=(0, 4))}, bytes(4)), "expected 4 bytes, as data_offsets says, got F32"),
        (crafted({"a": entry(offsets=(8, 0))}, bytes(8)), "data_offsets says"),
        (crafted({"a": entry(offsets=(4, 12))}, bytes(12)), "a hole"),
        (crafted({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "an overlap"),
        (crafted({"a": entry(shape=(2**63,))}, bytes(8)), "a shape of at most 64 integers"),
        (crafted({"a": entry(shape=(2**40, 2**40))}, bytes(8)), "too many"),
        (crafted({"a": entry(shape=(0, 2**47, 2**47), offsets=(0, 0))}), "too many"),
        (crafted({"a": entry(shape=(-1, -2))}, bytes(8)), "a shape of"),
        (crafted({"a": entry(shape=(True, 2))}, bytes(8)), "a shape of"),
        (crafted({"a": entry(shape=(2.0,))}, bytes(8)), "integers only"),
        (crafted({"a": entry(shape=[1] * 65, offsets=(0, 4))}, bytes(4)), "at most 64"),
        (crafted({"a": entry(shape="22")}, bytes(8)), "a shape of"),
        (crafted({"a": entry(offsets=(0, 8, 8))}, bytes(8)), "two offsets"),
        (crafted({"a": entry(offsets=(0, True))}, bytes(8)), "two offsets"),
        (
            crafted(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,' + b"9" * 5000 + b"]}}", bytes(8)),
            "integers below",
        ),
        (crafted({"a": entry(dtype="F31")}, bytes(8)), "a dtype of .* got 'F31'"),
        (crafted({"a": entry(dtype=["F32"])}, bytes(8)), "a dtype of"),
        (crafted({"a": entry() | {"x": 1}}, bytes(8)), "the fields data_offsets, dtype, shape"),
        (crafted({"a": {"dtype": "F32"}}, bytes(8)), "the fields"),
        (crafted({"a": 3}, bytes(8)), "the fields"),
        (crafted({"__metadata__": {"a": 1}}), "text for 'a'"),
        (crafted({"__metadata__": []}), "an object"),
        (crafted(b'{"\\ud800":' + json.dumps(entry()).encode() + b"}", bytes(8)), "a name in Unicode"),
    ],
)
def test_a_header_that_lies_is_refused(blob: bytes, message: str) -> None:
    with pytest.raises(pm.FormatError, match=message):
        pm.load(blob)


def manifest(change: Callable[[dict[str, Any]], None], scheme: str = "csr") -> bytes:
    """A good file whose manifest was changed by somebody who also fixed the sizes."""
    blob = written({"w": pm.compress(weights(), scheme)})
    length = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8 : 8 + length])
    table = json.loads(header["__metadata__"]["pumice.manifest"])
    change(table["arrays"]["w"])
    header["__metadata__"]["pumice.manifest"] = json.dumps(table)
    return crafted(header, blob[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(scheme="csr+int8"), "w: expected the parts"),
        (lambda a: a.update(scheme="int99"), "legal scheme"),
        (lambda a: a.update(scheme=4), "a scheme"),
        (lambda a: a.update(shape=[24, 63]), r"int64 \[24, 63\]"),
        (lambda a: a.update(shape=[48, 32]), r"int64 \[48, 32\]"),
        (lambda a: a.update(shape=[24]), "a shape of 2 to 64"),
        (lambda a: a.update(shape=[24, True]), "a shape of 2 to 64"),
        (lambda a: a["parts"].pop("indptr"), "w: expected the parts"),
        (lambda a: a["parts"].update(indptr="w_indices"), "parts named array_part"),
        (lambda a: a.update(parts={}), "named parts"),
        (lambda a: a.update(in_axis=2), "in_axis 0 or 1"),
        (lambda a: a.update(sha256={"w_data": "00"}), "SHA-256 digests"),
    ],
)
def test_a_manifest_that_lies_is_refused(change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(pm.FormatError, match=message):
        pm.load(manifest(change))["w"]


@pytest.mark.parametrize(
    ("scheme", "part", "change", "message"),
    [
        ("csr", "indptr", lambda a: a.__setitem__(1, -1), "indptr must rise .*, got row 0"),
        ("csr", "indptr", lambda a: a.__setitem__(0, 1), "indptr must rise .*, got row 0"),
        ("csr", "indptr", lambda a: a.__setitem__(-1, 2**60), "indptr must rise .*, got row 23"),
        ("csr", "indices", lambda a: a.__setitem__(-1, 64), "below the number of columns, got row 23"),
        ("csr", "indices", lambda a: a.__setitem__(slice(0, 2), a[1::-1]), "sorted and unique, got row 0"),
        ("csr", "indices", lambda a: a.__setitem__(1, a[0]), "sorted and unique, got row 0"),
        ("bsr-4x4", "indices", lambda a: a.__setitem__(-1, 16), "below the number of columns, got row 5"),
        ("csr+int8", "scale", lambda a: a.__setitem__(3, np.nan), "finite scales"),
        ("int8", "scale", lambda a: a.__setitem__(3, np.inf), "finite scales"),
        ("int8", "shape", lambda a: a.__setitem__(0, 25), "int64"),
    ],
)
def test_parts_that_break_a_rule_are_refused(
    scheme: str, part: str, change: Callable[[Any], None], message: str
) -> None:
    w = pm.compress(weights(), scheme)
    parts = {name: np.array(array) for name, array in w.parts().items()}
    change(parts[part])
    with pytest.raises(pm.FormatError, match=message):
        pm.from_parts(w.scheme, w.shape, parts)


def small() -> bytes:
    return written(
        {"w": pm.compress(weights()[:4, :32], "csr+int8"), "v": pm.compress(weights()[:4, :32], "int4-g16-asym")}
    )


def test_a_file_cut_anywhere_is_refused() -> None:
    blob = small()
    for length in range(len(blob)):
        with pytest.raises(pm.FormatError):
            pm.load(blob[:length])


def test_every_flipped_bit_is_found() -> None:
    blob = bytearray(small())
    for i in range(len(blob)):
        blob[i] ^= 1 << i % 8
        try:
            with pm.load(bytes(blob)) as m:
                found = not m.verify().ok
        except (pm.FormatError, pm.SchemeError):
            found = True
        assert found, f"byte {i}"
        blob[i] ^= 1 << i % 8


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_bytes_that_change_at_random_raise_or_load(data: st.DataObject) -> None:
    blob = bytearray(small())
    for _ in range(data.draw(st.integers(1, 8))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        m = pm.load(bytes(blob))
        for name in m:
            if isinstance(m[name], pm.CompactArray):
                m[name].to_dense()
    except (pm.PumiceError, NotImplementedError):
        pass
