"""float8 values that somebody else scaled, as the float8 scheme that has their codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pumice import layouts
from pumice.checkpoint.base import TensorInfo
from pumice.checkpoint.dtypes import widen
from pumice.errors import FormatError
from pumice.layouts import CompactArray
from pumice.scheme import MIN_GROUP, Scheme
from pumice.values.base import F32, Array


@dataclass(frozen=True)
class Scaled:
    """A matrix of float8 codes with a scale for every `rows` rows and `group` columns (None: for all columns).

    Scales of several rows are repeated, and a group that is no power of two is held in smaller ones with equal scales:
    both exactly. A group that is no multiple of 16 has no scheme; then the values are decoded.

    Examples
    --------
    >>> str(Scaled((256, 512), 128, 128).scheme), str(Scaled((256, 512), 256, None).scheme)
    ('float8-g128', 'float8')
    """

    shape: tuple[int, int]
    rows: int
    group: int | None

    @property
    def scheme(self) -> Scheme | None:
        """The scheme that has the codes; None where there is none."""
        group = None if self.group is None or self.group >= self.shape[1] else self.group & -self.group
        return None if group is not None and group < MIN_GROUP else Scheme(values="float8", group=group)

    def info(self, nbytes: int) -> TensorInfo:
        """What a reader says of the weight, whose tensors have so many bytes."""
        if self.scheme is None:
            return TensorInfo(self.shape, "F32", nbytes)
        return TensorInfo(self.shape, str(self.scheme), nbytes, {"": "F8_E4M3", "scale": "F32"})

    def array(self, codes: NDArray[np.uint8], scales: Array) -> CompactArray | F32:
        """The weight.

        Parameters
        ----------
        codes : (rows, cols) uint8
        scales : float16 or float32, one for each part of the matrix, row by row
        """
        if not np.isfinite(scales).all():
            raise FormatError(None, None, "finite scales", "a NaN or an infinity")
        rows, cols = self.shape
        width = min(self.group or cols, cols)
        per_row = scales.reshape(-(-rows // self.rows), -(-cols // width))[np.arange(rows) // self.rows]
        if self.scheme is None:
            values = widen(codes, "F8_E4M3")
            values *= np.repeat(per_row.astype(np.float32), width, axis=1)[:, :cols]
            return values
        group = self.scheme.group or cols
        repeated = np.repeat(per_row, width // group, axis=1)[:, : -(-cols // group)]
        return layouts.from_parts(self.scheme, self.shape, {"": codes, "scale": np.ascontiguousarray(repeated)})
