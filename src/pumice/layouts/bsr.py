"""Block-sparse rows: every stored R x C block with its block column."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from pumice.layouts.compressed import CompressedArray, index_dtype, sorted_scipy
from pumice.layouts.registry import register
from pumice.scheme import LayoutGrammar, Scheme


@register
class BSRArray(CompressedArray):
    """Block-sparse rows, as in SciPy: `indptr`, `indices` and `data` (blocks, R, C); `blocksize` is (R, C).

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = pm.compress(np.kron(np.eye(3), np.ones((4, 4))), "bsr-4x4")
    >>> w.data.shape, w.density
    ((3, 4, 4), 0.3333333333333333)
    """

    grammar = LayoutGrammar("bsr", "bsr-{}x{}", ("R", "C"), values=("float32", "int8"))

    @classmethod
    def from_scipy(cls, matrix: Any, blocksize: tuple[int, int] | None = None) -> Self:
        """Any SciPy sparse matrix or array, as ``bsr`` in float32, with its own blocks or those given.

        float32 data is shared.
        """
        matrix = sorted_scipy(matrix.tobsr(blocksize))
        height, width = matrix.blocksize
        parts = {
            "indptr": matrix.indptr.astype(np.int64),
            "indices": matrix.indices.astype(index_dtype(matrix.shape[1] // width)),
            "data": matrix.data.astype(np.float32, copy=False),
            "shape": np.array(matrix.shape, np.int64),
        }
        return cls.from_parts(Scheme("bsr", (int(height), int(width))), matrix.shape, parts)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.bsr_array` in float32, its ragged edges padded to whole blocks; float32 data is shared."""
        from scipy.sparse import bsr_array

        height, width = self.blocksize
        padded = -(-self._rows // height) * height, -(-self._cols // width) * width
        index = np.int32 if max(len(self._indices), padded[1]) < 2**31 else np.int64
        arrays = self._decoded_blocks(), self._indices.astype(index), self._indptr.astype(index)
        return bsr_array(arrays, shape=padded, blocksize=self.blocksize)
