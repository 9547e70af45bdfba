"""N of every M columns of a row are stored: a bitmask with a fixed number of values a row."""

from __future__ import annotations

import math

from pumice.layouts.bitmask import VALUES, MaskedArray
from pumice.layouts.registry import register
from pumice.scheme import LayoutGrammar, Scheme
from pumice.values.base import codec_of, matrix_shape

MOST = 64  # columns that a pattern spans


def _refused(scheme: Scheme) -> str | None:
    kept, of = scheme.numbers
    return None if kept < of <= MOST else f"N of every M columns are kept, N < M <= {MOST}"


@register
class NMArray(MaskedArray):
    """N values in every M columns, such as 2:4. Where a weight has fewer, its first zeros are stored.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = pm.compress(np.array([[0.0, 2.0, 0.0, 3.0, 0.0, 0.0, 0.0, 4.0]]), "2:4")
    >>> w.bitmask, w.data
    (array([[154]], dtype=uint8), array([[2., 3., 0., 4.]], dtype=float32))
    """

    grammar = LayoutGrammar("nm", "{}:{}", ("N", "M"), values=VALUES, group=True, refuses=_refused)

    @classmethod
    def kept(cls, scheme: Scheme) -> tuple[int, int]:
        kept, of = scheme.numbers
        return kept, of

    @classmethod
    def _data_shape(cls, scheme: Scheme, rows: int, cols: int, entries: int) -> tuple[int, ...]:
        kept, of = scheme.numbers
        stored = cols // of * kept
        return rows, -(-stored // 2) if scheme.values == "int4" else stored

    @classmethod
    def expected_nbytes(cls, scheme: Scheme, shape: tuple[int, ...]) -> int | None:
        codec, (rows, cols) = codec_of(scheme), matrix_shape(shape)
        if cols % scheme.numbers[1] or (scheme.group is not None and scheme.values.startswith("int")):
            return None  # the dtype of grouped scales depends on them
        size = 1 if scheme.values == "int4" else codec.bits // 8
        data = math.prod(cls._data_shape(scheme, rows, cols, 0)) * size
        return rows * -(-cols // 8) + data + 4 * rows * scheme.values.startswith("int") + 8 * len(shape)
