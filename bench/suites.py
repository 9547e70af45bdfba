"""What `bench/run.py` measures by name: shapes, batches, threads and the families that run side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness import Setting
from weights import SHAPES

NUMPY = "cases:dense_numpy"
OURS = ("cases:dense_int4", "cases:dense_int4_g32", "cases:dense_int8")
PEERS = ("peers:torch_floats", "peers:torch_int8", "peers:torch_int4", "peers:onnxruntime", "peers:openvino")
DENSE = ("probes:probes", NUMPY, *OURS, *PEERS)
# Of the sparse suites. MKL, SciPy and torch have float32 only.
SPARSE_PEERS = ("sparse:numpy", "sparse:scipy", "sparse:mkl")
SPARSE_CSR = (*SPARSE_PEERS, "sparse:torch", "sparse:csr", "sparse:dense")
SPARSE_BSR = (*SPARSE_PEERS, "sparse:bsr", "sparse:dense")
SPARSE_BITMASK = ("sparse:numpy", "sparse:bitmask", "sparse:two_of_four", "sparse:dense", "sparse:dense_bfloat16")
BLOCKS = ("16x16", "16x4", "16x1", "8x4", "4x4", "32x32")
GRID = tuple(f"random {share}" for share in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95))
CONVERTED = ("random 0.9", "2:4", "bsr-16x16 0.9", "bsr-16x4 0.9")

QUICK_BATCHES, QUICK_ROUNDS = (1, 8, 16, 256), 3  # what --quick keeps of a suite


@dataclass(frozen=True)
class Suite:
    """Settings that are measured with the same families and shown together.

    `threads` None means all that the run asks for; `weights` are names of weights.py, and
    `alone` those of them that one thread is measured on (None: all).
    """

    title: str
    shapes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    families: tuple[str, ...] = DENSE
    hot: bool = False
    threads: tuple[int, ...] | None = None
    quick: bool = False
    rounds: int = 5
    weights: tuple[str, ...] = ("",)
    alone: tuple[str, ...] | None = None

    def settings(
        self, threads: list[int], shapes: list[tuple[int, int]] | None = None, *, keep: bool = False
    ) -> Iterator[Setting]:
        """Every setting; `keep` all the threads, whatever the suite is for. A trained network has its own shape."""
        for count in threads:
            if keep or self.threads is None or count in self.threads:
                some = self.weights if keep or count > 1 or self.alone is None else self.alone
                for weight in some:
                    own = [SHAPES[weight]] if weight in SHAPES else shapes or self.shapes
                    yield from (Setting(*shape, count, self.hot, weight) for shape in own)


SUITES = {
    "dense": Suite(
        "Dense, 4096 x 4096, cold", ((4096, 4096),), (1, 2, 4, 8, 12, 16, 64, 256),
        (*DENSE, "cases:dense_bfloat16"), quick=True, rounds=7,
    ),
    "hot": Suite("Dense, 4096 x 4096, hot", ((4096, 4096),), (1, 4, 16, 64), hot=True),
    "shapes": Suite(
        "Layers and heads of language models, cold", ((11008, 4096), (4096, 11008), (32768, 256), (4095, 4100)),
        (1, 4, 16, 64), threads=(2,),
    ),
    "head": Suite("A vocabulary of 128256, cold", ((128256, 2048),), (1, 4, 16), threads=(2,)),
    "small": Suite(
        "Small layers, hot, as called from Python", ((384, 384), (1536, 384), (768, 3072), (1024, 1024)), (1, 8, 64),
        hot=True, quick=True,
    ),
    "ragged": Suite("Ragged shapes, hot", ((1000, 1000), (33, 130)), (1, 8, 64), hot=True, threads=(2,)),
    "sparse-csr": Suite(
        "CSR, zeros at random, cold", ((4096, 4096),), (1, 16, 64, 256), SPARSE_CSR,
        weights=("random 0.8", "random 0.9", "random 0.95"), alone=("random 0.9",), quick=True,
    ),
    "sparse-bsr": Suite(
        "BSR, 90 % zeros, cold", ((4096, 4096),), (1, 16, 256), SPARSE_BSR,
        weights=tuple(f"bsr-{block} 0.9" for block in BLOCKS), alone=("bsr-16x16 0.9",),
    ),
    "sparse-bitmask": Suite(
        "bitmask and 2:4, cold", ((4096, 4096),), (1, 4, 16, 64, 256), SPARSE_BITMASK,
        weights=("random 0.5", "random 0.7", "random 0.9"), alone=("random 0.5",),
    ),
    "sparse-grid": Suite(
        "Every layout by sparsity, cold", ((768, 768), (3072, 768), (4096, 4096)), (1, 16, 256),
        ("sparse:numpy", "sparse:grid"), threads=(1,), weights=GRID, rounds=3,
    ),
    "sparse-grid-large": Suite(
        "Every layout by sparsity, a large layer, cold", ((11008, 4096),), (1, 16), ("sparse:numpy", "sparse:grid"),
        threads=(1,), weights=("random 0.5", "random 0.7", "random 0.9", "random 0.95"), rounds=3,
    ),
    "sparse-real": Suite(
        "Trained networks, cold", (), (1, 16), ("sparse:real_numpy", "sparse:scipy_real", "sparse:real"), threads=(2,),
        weights=tuple(SHAPES), rounds=3,
    ),
    "sparse-convert": Suite(
        "From dense, cold", ((4096, 4096),), (1,), ("sparse:convert_scipy", "sparse:convert"), threads=(2,),
        weights=CONVERTED,
    ),
}  # fmt: skip
SPARSE = [name for name in SUITES if name.startswith("sparse-")]
FULL = [name for name in SUITES if name not in SPARSE]
