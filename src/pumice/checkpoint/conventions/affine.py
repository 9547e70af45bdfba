"""Weights that somebody else quantized, w = scale * (code - zero), as the integer scheme that has their codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice.checkpoint.base import TensorInfo
from pumice.errors import FormatError
from pumice.layouts import CompactArray, DenseArray, PermutedArray
from pumice.scheme import MIN_GROUP, Scheme
from pumice.values.base import CODECS, F32, Array


@dataclass(frozen=True)
class Affine:
    """Integers of `bits` bits with a scale for every `group` columns (None: for every row).

    A width that no codec has is held in the next wider one, and a group that is no power of two in smaller ones with
    equal scales: both exactly. A group that is no multiple of 16 has no scheme; then the values are decoded.

    Parameters
    ----------
    shape
        Logical shape; a weight of more than two dimensions is stored as (shape[0], product of the rest).
    zeros
        Whether there are zeros; without, the zero is ``2**(bits - 1)``.
    half
        Whether scales are float16; else they are float32.

    Examples
    --------
    >>> str(Affine((8, 192), 4, 96, zeros=True, half=False).scheme)
    'int4-g32-asym'
    """

    shape: tuple[int, ...]
    bits: int
    group: int | None
    zeros: bool
    half: bool

    @property
    def cols(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def stored_bits(self) -> int:
        """The bits of the codec: the same, or the next that there is."""
        return min(bits for bits in range(self.bits, 9) if f"int{bits}" in CODECS)

    @property
    def scheme(self) -> Scheme | None:
        """The scheme that has the codes; None where there is none."""
        group = None if self.group is None or self.group >= self.cols else self.group & -self.group
        if group is not None and group < MIN_GROUP:
            return None
        return Scheme(values=f"int{self.stored_bits}", group=group, flags=("asym",) if self.zeros else ())

    @property
    def as_stored(self) -> bool:
        """Whether bits and groups are the scheme's own, so that packed codes and scales are its parts."""
        scheme = self.scheme
        whole_row = self.group is None or self.group >= self.cols
        return scheme is not None and self.bits == self.stored_bits and (whole_row or scheme.group == self.group)

    def stored_scales(self, scales: Array) -> Array:
        """(rows, groups) -> those of the scheme, whose groups may be smaller."""
        scheme = self.scheme
        if scheme is None or scheme.group is None or self.group is None:
            return scales
        repeated = np.repeat(scales, self.group // scheme.group, axis=1)
        return np.ascontiguousarray(repeated[:, : -(-self.cols // scheme.group)])

    def info(self, nbytes: int) -> TensorInfo:
        """What a reader says of the weight, whose tensors have so many bytes."""
        if self.scheme is None:
            return TensorInfo(self.shape, "F32", nbytes)
        scale = "F16" if self.half else "F32"
        parts = {"packed": "I32", "scale": scale} | ({"zero_point": "I32"} if self.zeros else {}) | {"shape": "I64"}
        return TensorInfo(self.shape, str(self.scheme), nbytes, parts)

    def array(
        self, codes: NDArray[np.uint8], scales: Array, zeros: Array | None, perm: NDArray[np.int32] | None = None
    ) -> CompactArray | F32:
        """The weight.

        Parameters
        ----------
        codes : (rows, cols) uint8
        scales : (rows, groups) float16 or float32
        zeros : (rows, groups) uint8, or None
        perm : (cols,) int32, optional
            The order in which columns of one group stand together; then that of a `PermutedArray`.
        """
        if perm is not None:
            stored = self.array(np.take(codes, perm, axis=1), scales, zeros)
            return PermutedArray(stored, perm) if isinstance(stored, CompactArray) else stored[:, np.argsort(perm)]
        if not np.isfinite(scales).all():
            raise FormatError(None, None, "finite scales", "a NaN or an infinity")
        if self.scheme is None:
            return self._decoded(codes, scales, zeros)
        shift = np.uint8((1 << (self.stored_bits - 1)) - (1 << (self.bits - 1)))
        if shift:  # a symmetric zero is in the middle of the wider codes too
            codes = codes + shift
            zeros = None if zeros is None else zeros + shift
        try:
            return DenseArray.from_codes(
                codes, scales, zeros, bits=self.stored_bits, group=self.group, shape=self.shape
            )
        except ValueError as error:
            raise FormatError(None, None, "codes, scales and zeros that fit each other", str(error)) from error

    def _decoded(self, codes: NDArray[np.uint8], scales: Array, zeros: Array | None) -> F32:
        assert self.group is not None
        steps = codes.astype(np.float32)
        steps -= np.float32(1 << (self.bits - 1)) if zeros is None else self._spread(zeros.astype(np.float32))
        steps *= self._spread(scales.astype(np.float32))
        return steps.reshape(self.shape)

    def _spread(self, per_group: Any) -> Any:
        """(rows, groups) -> (rows, cols)."""
        return np.repeat(per_group, self.group or self.cols, axis=1)[:, : self.cols]
