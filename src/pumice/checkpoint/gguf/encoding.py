"""Our arrays as tensors of ggml: the same values, or an error that says why not.

ggml's blocks of 32 weights have a float16 scale and, but for the `_0` types, a float16 minimum. So codes move over as
they are wherever these hold our scales; a scale of more than 32 columns is repeated. Zeros that are no middle are
subtracted from the codes, which then may need a wider type.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint.gguf.blocks import BLOCK_TYPES, PLAIN, BlockType, gather
from pumice.errors import PumiceError
from pumice.layouts import CompactArray, DenseArray
from pumice.scheme import Scheme
from pumice.values.base import F32, Arrays, codec_of, matrix_shape

BLOCK = 32
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = 2, 3, 6, 7, 8
MIDDLES = {Q4_0: 8, Q5_0: 16, Q8_0: 128}
"""Types without a minimum, narrowest first, and the code that means 0."""
NUMBERS = {name: number for number, (name, _) in PLAIN.items() if name in ("F32", "F16", "BF16")}


class Encoded(ABC):
    """An array as the file shall have it, its rows in the file's order.

    Attributes
    ----------
    shape, type_id
        As in the tensor table, rows first.
    rounded
        Whether `rows` has other values than `exact`.
    """

    shape: tuple[int, ...]
    type_id: int
    rounded = False

    @property
    def type(self) -> BlockType:
        return BLOCK_TYPES[self.type_id]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self.type.weights * self.type.nbytes

    @abstractmethod
    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) as stored, C-contiguous."""

    @abstractmethod
    def exact(self, start: int, stop: int) -> F32:
        """The values of these rows before they were encoded."""


class Numbers(Encoded):
    """Plain numbers as they are; vectors become float32, the only ones that llama.cpp computes with.

    Parameters
    ----------
    values
        As a reader gives them.
    dtype
        "F32", "F16" or "BF16".
    order
        The rows as the file shall have them; by default as they are.
    """

    def __init__(self, values: NDArray[Any], dtype: str, order: NDArray[np.int64] | None) -> None:
        self.shape, self._values, self._order = values.shape, np.atleast_1d(values), order
        self._dtype = dtype if len(self.shape) > 1 else "F32"
        self.type_id = NUMBERS[self._dtype]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        values = self.exact(start, stop)
        if self._dtype == "BF16":
            return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return values.astype(np.float16) if self._dtype == "F16" else values

    def exact(self, start: int, stop: int) -> F32:
        values = self._values[start:stop] if self._order is None else self._values[self._order[start:stop]]
        return np.ascontiguousarray(values, np.float32)


class Blocks(Encoded):
    """Dense integers as blocks.

    Parameters
    ----------
    array
        Any dense integers.
    order
        The rows as the file shall have them; by default as they are.
    allow_rounding
        Whether scales and minima that float16 does not hold may be rounded to it.

    Raises
    ------
    PumiceError
        No type of ggml has these values.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> blocks = Blocks(pm.compress(np.eye(4, 64), "int4-g32"))
    >>> blocks.type.name, blocks.nbytes
    ('Q4_0', 144)
    """

    def __init__(
        self, array: CompactArray, order: NDArray[np.int64] | None = None, *, allow_rounding: bool = False
    ) -> None:
        scheme = Scheme.parse(array.scheme)
        self._codec, self._array, self._allow_rounding = codec_of(scheme), array, allow_rounding
        if not isinstance(array, DenseArray) or not scheme.values.startswith("int"):
            raise PumiceError(f"expected dense integers, such as int4-g32, got {array.scheme}")
        self.shape = array.shape
        rows, self._cols = matrix_shape(array.shape)
        self._ids = np.arange(rows) if order is None else order
        if self.shape[-1] % BLOCK or not self._cols:
            raise PumiceError(f"expected columns in multiples of {BLOCK}, got shape {self.shape}")
        if scheme.group is not None and scheme.group % BLOCK and scheme.group < self._cols:
            raise PumiceError(f"expected groups in multiples of {BLOCK}, got {scheme}")
        self._arrays: Arrays = self._codec.from_parts(array.parts(), scheme, array.shape)
        self._group_of = np.arange(0, self._cols, BLOCK) // (scheme.group or self._cols)  # of each block
        self._scale = self._half("scale")
        self._min: NDArray[np.float16] | None = None
        self._shift: NDArray[np.uint8] | None = None
        self.type_id = self._with_minima() if "min" in self._arrays else self._without_minima()

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        ids = self._ids[start:stop]
        codes = self._codec.codes({"packed": self._arrays["packed"][ids]}, self._cols).reshape(len(ids), -1, BLOCK)
        if self._shift is not None:
            codes = codes + self._per_block(self._shift, ids)[..., None]  # modulo 256
        records = np.empty(codes.shape[:2], self.type.record)
        records["scale"] = self._per_block(self._scale, ids)
        if self._min is not None:
            records["min"] = self._per_block(self._min, ids)
        gather(codes, records)
        return records

    def exact(self, start: int, stop: int) -> F32:
        return self._array.take(self._ids[start:stop])

    def _per_block(self, values: NDArray[Any], ids: NDArray[np.int64]) -> NDArray[Any]:
        return values[ids][:, self._group_of]

    def _with_minima(self) -> int:
        if self._codec.bits > 5:
            raise PumiceError(f"expected codes of at most 5 bits beside minima, got {self._array.scheme}")
        self._min = self._half("min")
        return Q4_1 if self._codec.bits <= 4 else Q5_1

    def _without_minima(self) -> int:
        bits = self._codec.bits
        middle = 1 << (bits - 1)
        zeros = self._arrays.get("zero_point", np.full_like(self._scale, middle, np.uint8))
        least, largest = int(zeros.min(initial=middle)), int(zeros.max(initial=middle))
        for type_id, their_middle in MIDDLES.items():
            if largest <= their_middle and (1 << bits) - 1 - least < their_middle:
                if type_id != Q4_0 and bits <= 4 and self._zeros_as_minima(zeros):
                    return Q4_1
                self._shift = np.uint8(their_middle) - zeros
                return type_id
        raise PumiceError(f"expected zeros for which Q8_0 holds code - zero, got {least} to {largest}")

    def _zeros_as_minima(self, zeros: NDArray[np.uint8]) -> bool:
        """Whether float16 holds every -scale * zero: then codes stay, and need no wider type."""
        exact = -self._scale.astype(np.float32) * zeros
        with np.errstate(over="ignore"):
            half = exact.astype(np.float16)
        if not np.array_equal(half, exact):
            return False
        self._min = half
        return True

    def _half(self, part: str) -> NDArray[np.float16]:
        exact = self._arrays[part]
        with np.errstate(over="ignore"):
            half: NDArray[np.float16] = exact.astype(np.float16)
        bad = np.argwhere(np.isinf(half) if self._allow_rounding else half != exact)
        if len(bad):
            row, group = bad[0]
            hint = "" if self._allow_rounding else " (ggml stores no others; allow_rounding rounds them)"
            raise PumiceError(f"{part}: expected float16 numbers, got {exact[row, group]} in row {row}{hint}")
        self.rounded |= bool((half != exact).any())
        return half
