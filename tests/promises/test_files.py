"""Whatever a file holds: arrays that work, or an error that says what is wrong; no crash, no hang, little memory."""

from __future__ import annotations

import concurrent.futures
import json
import math
import os
import random
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

import pumice as pm
from pumice.checkpoint.base import _READERS
from pumice.checkpoint.conventions import CONVENTIONS

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
from gguf_bytes import model
from mutations import saved, seeds

FUZZ = Path(__file__).parents[1] / "fuzz" / "fuzz.py"
Count = Callable[[str, object], None]


def big() -> bytes:
    """A file of 64 KiB to the byte with each kind of array."""
    w = pm.prune(np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32), 0.7)
    schemes = ("float16", "bfloat16", "int8", "int4-g32", "int4-g16-asym", "int4-g16-min", "csr", "csr+int8", "bsr-4x4")
    arrays = {scheme: pm.compress(w, scheme) for scheme in schemes}
    rest = 65536 - len(saved(arrays | {"rest": np.zeros(0, np.uint8)}))
    for size in range(rest - 64, rest + 1):
        if len(blob := saved(arrays | {"rest": np.arange(size).astype(np.uint8)})) == 65536:
            return blob
    raise AssertionError(rest)


def test_a_64_kib_file_cut_at_any_length_is_refused(count: Count) -> None:
    blob = big()
    for length in range(len(blob)):
        with pytest.raises(pm.FormatError):
            pm.load(blob[:length])
    count("truncations", len(blob))


def test_a_gguf_file_cut_or_flipped_anywhere_is_read_or_refused(long: bool, count: Count) -> None:
    """GGUF has no checksums, so a flipped weight is not found; but nothing else than a FormatError happens."""
    blob = bytearray(model())
    for length in range(len(blob)):
        with pytest.raises(pm.FormatError):
            pm.load(bytes(blob[:length]))
    slowest, refused = 0.0, 0
    bits = range(0, 8 * len(blob), 1 if long else 11)
    for bit in bits:
        blob[bit // 8] ^= 1 << bit % 8
        start = time.thread_time()
        try:
            with pm.load(bytes(blob)) as m:
                dict(m.fields)
                for name in m:
                    m[name]
        except pm.FormatError:
            refused += 1
        slowest = max(slowest, time.thread_time() - start)
        blob[bit // 8] ^= 1 << bit % 8
    assert refused > len(bits) // 5, "most bits of the header matter"
    assert slowest < 0.05
    count("flipped bits of GGUF", f"{len(bits)}, {refused} refused, the slowest {1e3 * slowest:.1f} ms")


def missed(bits: Iterable[int]) -> list[int]:
    """The flips of a 64 KiB file that neither loading nor `verify` finds."""
    blob = bytearray(big())
    unseen = []
    for bit in bits:
        blob[bit // 8] ^= 1 << bit % 8
        try:
            with pm.load(bytes(blob)) as m:
                found = not m.verify().ok
        except (pm.FormatError, pm.SchemeError):
            found = True
        if not found:
            unseen.append(bit)
        blob[bit // 8] ^= 1 << bit % 8
    return unseen


def test_every_flipped_bit_of_a_64_kib_file_is_found(long: bool, count: Count) -> None:
    bits = range(0, 8 * 65536, 1 if long else 199)  # 199 is odd: each bit of a byte gets its turn
    if not long:
        assert missed(bits) == []
    else:
        with concurrent.futures.ProcessPoolExecutor() as pool:
            assert [bit for some in pool.map(missed, [bits[i::64] for i in range(64)]) for bit in some] == []
    count("flipped bits", len(bits))


def header(rng: random.Random) -> bytes:
    """A file of some hundred bytes that claims anything up to 2^63."""

    def number() -> int:
        return rng.choice((0, 1, 2, 8, rng.getrandbits(8), 1 << rng.randrange(64), rng.getrandbits(63), (1 << 63) - 1))

    table: dict[str, object] = {}
    position = 0
    for i in range(rng.choice((1, 1, 2, 5))):
        shape = [number() for _ in range(rng.choice((0, 1, 2, 2, 3, 70)))]
        length = rng.choice((number(), 4 * math.prod(shape), 0))
        begin = rng.choice((position, position, number()))
        position = rng.choice((begin + length, number()))
        dtype = rng.choice(("F32", "F32", "I64", "I32", "U8", "BF16", "F8_E4M3", "F4", "X"))
        table[rng.choice((f"t{i}", "w_packed", "w_scale", "w_shape"))] = {
            "dtype": dtype, "shape": shape, "data_offsets": [begin, position],
        }  # fmt: skip
    if rng.random() < 0.5:
        record = {
            "scheme": rng.choice(("int8", "int4-g32", "csr", "bsr-4x4+int8")),
            "shape": [number(), number()],
            "in_axis": 1,
            "parts": {"packed": "w_packed", "scale": "w_scale", "shape": "w_shape"},
        }
        table["__metadata__"] = {
            "format": "pt",
            "pumice.format": "1",
            "pumice.manifest": json.dumps({"arrays": {"w": record}}),
        }
    text = json.dumps(table).encode()
    claim = rng.choice((len(text), len(text), len(text), number(), len(text) + number()))
    return struct.pack("<Q", min(claim, (1 << 64) - 1)) + text + bytes(rng.choice((0, 8, 256)))


def test_headers_that_claim_up_to_2_to_the_63_cost_nothing(count: Count) -> None:
    rng = random.Random(11)
    blobs = [header(rng) for _ in range(10_000)]
    pm.load(saved({"w": pm.compress(np.eye(32), "int8")}))["w"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest, loaded = 0.0, 0
    for blob in blobs:
        start = time.thread_time()
        try:
            m = pm.load(blob)
            for name in m:
                m[name]
            loaded += 1
        except (pm.FormatError, pm.SchemeError):
            pass
        slowest = max(slowest, time.thread_time() - start)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert loaded < len(blobs) // 5, "these files lie"
    assert slowest < 0.05
    assert growth < 16 << 20
    count("crafted headers", f"{len(blobs)}, the slowest {1e3 * slowest:.1f} ms, {growth >> 10} KiB of growth")


@pytest.mark.filterwarnings("ignore::pumice.FormatWarning")
def test_the_fuzzer_has_seeds_of_every_reader_and_convention() -> None:
    opened = [pm.load(blob)._reader for blob in seeds()]
    assert {type(reader) for reader in opened} == set(_READERS)
    assert {name for reader in opened for name in reader.conventions} == {found.name for found in CONVENTIONS}


def test_a_minute_of_fuzzing_finds_nothing(count: Count, tmp_path: Path) -> None:
    """A minute of CPU time: two seeds, half a minute each. `make fuzz` goes on for as long as asked."""
    command = [sys.executable, FUZZ, "--seconds", "30", "--findings", tmp_path, "--seed"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PUMICE_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([*command, seed], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in ("101", "102")
    ]
    for run in runs:
        out, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
        assert "'loaded'" in out and "'FormatError'" in out
        count("fuzzing", out.strip())
