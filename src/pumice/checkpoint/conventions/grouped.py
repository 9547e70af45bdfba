"""Integer weights of other formats, as arrays: codes, scales and zeros of groups, whatever the size of a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice import layouts
from pumice.checkpoint.container import Container
from pumice.checkpoint.dtypes import widen
from pumice.errors import FormatError
from pumice.layouts import CompactArray
from pumice.layouts.dense import repeat_groups, stored_group
from pumice.scheme import Scheme
from pumice.values import codec_of

Place: TypeAlias = tuple[str, str]
"""A file and a tensor in it, for errors."""


@dataclass(frozen=True)
class Grouping:
    """How columns share scales, in the file and in a scheme."""

    scheme: str
    group: int
    """Columns that share a scale in the file."""
    stored: int | None
    """Columns that share one in the scheme: a power of two, or None for the whole row."""
    repeat: int

    @classmethod
    def of(cls, scales: Place, codec: str, cols: int, groups: int, group: int | None, asym: bool = False) -> Self:
        """The grouping of a weight of `cols` columns, by groups of `group`; FormatError where no scheme has it.

        Examples
        --------
        >>> import pumice
        >>> Grouping.of(("m.safetensors", "fc.scales"), "int4", 192, 2, 96, asym=True)
        Grouping(scheme='int4-g32-asym', group=96, stored=32, repeat=3)
        """
        try:
            stored, repeat = stored_group(cols, groups, None if groups == 1 else group)
        except ValueError as error:
            each = "" if group is None else f" of {group}"
            raise FormatError(
                *scales, "groups that a scheme has", f"{groups}{each} in {cols} columns", str(error)
            ) from error
        scheme = codec + (f"-g{stored}" if stored else "") + "-asym" * asym
        return cls(scheme, repeat * (stored or cols), stored, repeat)

    def repeated(self, numbers: NDArray[Any], cols: int) -> NDArray[Any]:
        """(rows, groups of the file) -> (rows, groups of the scheme)."""
        return np.ascontiguousarray(repeat_groups(numbers, cols, self.stored, self.repeat))


def scales_of(container: Container, tensor: str) -> NDArray[Any]:
    """Scales as float16 or float32; bfloat16 and float8 become float32, exactly."""
    return widen(container.read(tensor), container.entry(tensor).dtype)


def integer_array(
    grouping: Grouping,
    codes: NDArray[Any],
    scales: NDArray[Any],
    zeros: NDArray[np.uint8] | None,
    shape: tuple[int, int],
    perm: NDArray[np.int32] | None = None,
) -> CompactArray:
    """The array of these codes.

    Parameters
    ----------
    codes : (rows, cols) uint8, or int32 words
        Words are the bit stream that the scheme stores. In the order of `perm`.
    scales, zeros : (rows, groups)
        Of the groups of the file; zeros None for a symmetric scheme.
    perm : (cols,) int32, optional
        The order of the columns that are stored, as `pumice.PermutedArray` has it.
    """
    scheme = Scheme.parse(grouping.scheme)
    codec, (_, cols) = codec_of(scheme), shape
    packed = codes if codes.dtype == np.int32 else codec.pack(codes)["packed"].view(np.int32)
    parts = {"packed": packed, "scale": grouping.repeated(scales, cols), "shape": np.array(shape, np.int64)}
    if zeros is not None:  # packed along the rows
        columns = np.ascontiguousarray(grouping.repeated(zeros, cols).T)
        parts["zero_point"] = codec.pack(columns)["packed"].view(np.int32).T
    if perm is not None:
        parts["perm"] = perm
    return layouts.from_parts(scheme, shape, parts)
