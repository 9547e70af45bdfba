"""Makes numpy.npy, numpy.npz and scipy-*.npz by NumPy's and SciPy's own functions.

Run it with NumPy and SciPy: python tests/golden/make_numpy.py
The files in the tree were made with NumPy 2.4.6 and SciPy 1.17.1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy
from scipy import sparse

HERE = Path(__file__).parent


def main() -> None:
    rng = np.random.default_rng(3)
    w = rng.standard_normal((5, 7)).astype(np.float32)
    np.save(HERE / "numpy.npy", np.asfortranarray(w))
    np.savez_compressed(
        HERE / "numpy.npz", w=w, big=w.astype(">f8"), half=w.astype(np.float16), ids=np.arange(4), on=w > 0
    )
    matrix = sparse.random_array((6, 9), density=0.3, rng=rng, dtype=np.float32)
    for name in ("csr", "csc", "coo"):
        sparse.save_npz(HERE / f"scipy-{name}.npz", matrix.asformat(name))
    sparse.save_npz(HERE / "scipy-bsr.npz", sparse.bsr_array(matrix, blocksize=(2, 3)))
    sparse.save_npz(HERE / "scipy-refused-dia.npz", sparse.dia_array(matrix))
    print(f"NumPy {np.__version__}, SciPy {scipy.__version__}")


if __name__ == "__main__":
    main()
