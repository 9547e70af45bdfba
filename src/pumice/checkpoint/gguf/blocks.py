"""The tensor types of ggml: how a block of weights is written, and its codes and scales as our codecs have them.

The layouts are those of ggml's `ggml-common.h`, each written here as a NumPy record. All that are decoded are
w = scale * (code - middle), or scale * code + min, with one scale for 16 or 32 weights: an integer scheme of ours, to
the bit. Scales that a block holds as float16 stay so; its products with integers are float32, as ggml computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Decoded: TypeAlias = dict[str, Array]
"""Of n blocks: `codes` uint8 (n, weights), `scale` and perhaps `min`, both (n,) or (n, groups)."""


@dataclass(frozen=True)
class BlockType:
    """One tensor type. `dtype` is a safetensors name for plain numbers, `scheme` ours for what `decode` makes."""

    name: str
    weights: int
    nbytes: int
    dtype: str | None = None
    scheme: str | None = None
    record: np.dtype[Any] | None = None
    decode: Callable[[Array], Decoded] | None = None
    scale_dtype: str = "F16"


def spread(stored: Array, bits: int, run: int) -> NDArray[np.uint8]:
    """Codes of a row of bytes that hold the low bits of `run` weights, then the next bits of as many, and so on."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    codes: NDArray[np.uint8] = (stored.reshape(len(stored), -1, 1, run) >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(len(stored), -1)


def gather(codes: NDArray[np.uint8], records: Array) -> None:
    """Write unsigned codes (..., 32) to records of Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0: what their `decode` reads."""
    if records["codes"].shape[-1] == 32:
        records["codes"] = codes ^ np.uint8(0x80)
        return
    low = codes & np.uint8(15)
    records["codes"] = low[..., :16] | low[..., 16:] << np.uint8(4)
    if "high" in (records.dtype.names or ()):
        records["high"] = np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little")


def float32_products(factor: Array, integers: Array) -> NDArray[np.float32]:
    """Scales that are stored as one float16 for the block times a small integer for each group."""
    with np.errstate(invalid="ignore"):  # infinity * 0: whoever makes the array refuses it
        return factor.astype(np.float32)[:, None] * integers.astype(np.float32)


def q4_0(b: Array) -> Decoded:
    return {"codes": spread(b["codes"], 4, 16), "scale": b["scale"]}


def q4_1(b: Array) -> Decoded:
    return q4_0(b) | {"min": b["min"]}


def q5_0(b: Array) -> Decoded:
    return {"codes": spread(b["codes"], 4, 16) | spread(b["high"], 1, 1) << np.uint8(4), "scale": b["scale"]}


def q5_1(b: Array) -> Decoded:
    return q5_0(b) | {"min": b["min"]}


def q8_0(b: Array) -> Decoded:
    return {"codes": b["codes"] ^ np.uint8(0x80), "scale": b["scale"]}  # signed: without the sign, the middle is 128


def q2_k(b: Array) -> Decoded:
    scales = float32_products(b["scale"], b["factors"] & np.uint8(15))
    minima = -float32_products(b["min"], b["factors"] >> np.uint8(4))
    return {"codes": spread(b["codes"], 2, 32), "scale": scales, "min": minima}


def q3_k(b: Array) -> Decoded:
    factors = spread(b["factors"][:, :8], 4, 8) | spread(b["factors"][:, 8:], 2, 4) << np.uint8(4)
    codes = spread(b["codes"], 2, 32) | spread(b["high"], 1, 32) << np.uint8(2)
    return {"codes": codes, "scale": float32_products(b["scale"], factors.astype(np.int8) - np.int8(32))}


def six_bit_factors(stored: Array) -> tuple[Array, Array]:
    """Eight scales and eight minima of 6 bits: whole ones in bytes 0 to 7, whose top bits complete those of 8 to 11."""
    scales, minima, low = stored[:, :4], stored[:, 4:8], stored[:, 8:]
    return (
        np.concatenate([scales & 63, low & 15 | (scales >> 6) << 4], axis=1),
        np.concatenate([minima & 63, low >> 4 | (minima >> 6) << 4], axis=1),
    )


def q4_k(b: Array) -> Decoded:
    scales, minima = six_bit_factors(b["factors"])
    scales, minima = float32_products(b["scale"], scales), -float32_products(b["min"], minima)
    return {"codes": spread(b["codes"], 4, 32), "scale": scales, "min": minima}


def q5_k(b: Array) -> Decoded:
    four = q4_k(b)
    return four | {"codes": four["codes"] | spread(b["high"], 1, 32) << np.uint8(4)}


def q6_k(b: Array) -> Decoded:
    codes = spread(b["codes"], 4, 64) | spread(b["high"], 2, 32) << np.uint8(4)
    return {"codes": codes, "scale": float32_products(b["scale"], b["factors"])}


HALF = "<f2"
DECODED: dict[int, tuple[str, str, Callable[[Array], Decoded], list[tuple[Any, ...]]]] = {
    2: ("Q4_0", "int4-g32", q4_0, [("scale", HALF), ("codes", "u1", 16)]),
    3: ("Q4_1", "int4-g32-min", q4_1, [("scale", HALF), ("min", HALF), ("codes", "u1", 16)]),
    6: ("Q5_0", "int5-g32", q5_0, [("scale", HALF), ("high", "u1", 4), ("codes", "u1", 16)]),
    7: ("Q5_1", "int5-g32-min", q5_1, [("scale", HALF), ("min", HALF), ("high", "u1", 4), ("codes", "u1", 16)]),
    8: ("Q8_0", "int8-g32", q8_0, [("scale", HALF), ("codes", "u1", 32)]),
    9: ("Q8_1", "int8-g32", q8_0, [("scale", HALF), ("sum", HALF), ("codes", "u1", 32)]),  # sum * scale: redundant
    10: ("Q2_K", "int2-g16-min", q2_k, [("factors", "u1", 16), ("codes", "u1", 64), ("scale", HALF), ("min", HALF)]),
    11: ("Q3_K", "int3-g16", q3_k, [("high", "u1", 32), ("codes", "u1", 64), ("factors", "u1", 12), ("scale", HALF)]),
    12: ("Q4_K", "int4-g32-min", q4_k, [("scale", HALF), ("min", HALF), ("factors", "u1", 12), ("codes", "u1", 128)]),
    13: ("Q5_K", "int5-g32-min", q5_k,
         [("scale", HALF), ("min", HALF), ("factors", "u1", 12), ("high", "u1", 32), ("codes", "u1", 128)]),
    14: ("Q6_K", "int6-g16", q6_k, [("codes", "u1", 128), ("high", "u1", 64), ("factors", "i1", 16), ("scale", HALF)]),
}  # fmt: skip

PLAIN = {
    0: ("F32", 4), 1: ("F16", 2), 24: ("I8", 1), 25: ("I16", 2), 26: ("I32", 4), 27: ("I64", 8), 28: ("F64", 8),
    30: ("BF16", 2),
}  # fmt: skip
# Known by name and size, not decoded: codebooks, ternary and 4-bit floats; and one that ggml has for activations only.
NAMED = {
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
REMOVED = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}  # fmt: skip


def _types() -> dict[int, BlockType]:
    types = {number: BlockType(name, 1, nbytes, dtype=name) for number, (name, nbytes) in PLAIN.items()}
    types |= {number: BlockType(name, weights, nbytes) for number, (name, weights, nbytes) in NAMED.items()}
    for number, (name, scheme, decode, layout) in DECODED.items():
        record = np.dtype(layout)
        weights, scale_dtype = (256, "F32") if name.endswith("_K") else (32, "F16")
        types[number] = BlockType(name, weights, record.itemsize, None, scheme, record, decode, scale_dtype)
    return types


BLOCK_TYPES = _types()
