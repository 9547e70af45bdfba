"""Compressed sparse rows: every stored value with its column."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from pumice.layouts.compressed import CompressedArray, index_dtype, sorted_scipy
from pumice.layouts.registry import register
from pumice.scheme import LayoutGrammar, Scheme


@register
class CSRArray(CompressedArray):
    """Compressed sparse rows, as in SciPy: `indptr`, `indices`, `data`.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = pm.compress(np.array([[0.0, 2.0], [0.0, 0.0], [3.0, 4.0]]), "csr")
    >>> w.indptr, w.indices, w.data
    (array([0, 1, 1, 3]), array([1, 0, 1], dtype=uint16), array([2., 3., 4.], dtype=float32))
    """

    grammar = LayoutGrammar("csr", "csr", values=("float32", "int8"))

    @classmethod
    def _block_shape(cls, scheme: Scheme) -> tuple[int, ...]:
        return ()

    @classmethod
    def from_scipy(cls, matrix: Any) -> Self:
        """Any SciPy sparse matrix or array, as ``csr`` in float32; stored zeros become holes.

        float32 data is shared.
        """
        matrix = sorted_scipy(matrix.tocsr())
        if not matrix.data.all():
            matrix = matrix.copy()
            matrix.eliminate_zeros()
        parts = {
            "indptr": matrix.indptr.astype(np.int64),
            "indices": matrix.indices.astype(index_dtype(matrix.shape[1])),
            "data": matrix.data.astype(np.float32, copy=False),
            "shape": np.array(matrix.shape, np.int64),
        }
        return cls.from_parts(Scheme("csr"), matrix.shape, parts)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.csr_array` in float32; float32 data is shared, read-only.

        SciPy (``pip install pumice[scipy]``) is needed here only.
        """
        from scipy.sparse import csr_array

        index = np.int32 if max(self.nnz, self._cols) < 2**31 else np.int64
        arrays = self._decoded_blocks().reshape(-1), self._indices.astype(index), self._indptr.astype(index)
        return csr_array(arrays, shape=(self._rows, self._cols))
