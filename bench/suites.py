"""What `bench/run.py` measures by name: shapes, batches, threads and the families that run side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness import Setting

NUMPY = "cases:dense_numpy"
OURS = ("cases:dense_int4", "cases:dense_int4_g32", "cases:dense_int8")
PEERS = ("peers:torch_floats", "peers:torch_int8", "peers:torch_int4", "peers:onnxruntime", "peers:openvino")
DENSE = ("probes:probes", NUMPY, *OURS, *PEERS)
CSR = ("cases:csr_numpy", "cases:csr_scipy", "cases:csr_float32", "cases:csr_int8")
LYRA = tuple(f"cases:lyra_{name}" for name in ("numpy", "scipy", "scipy_bsr", "csr", "csr_int8", "bsr", "bsr_int8"))

QUICK_BATCHES, QUICK_ROUNDS = (1, 8, 16, 256), 3  # what --quick keeps of a suite


@dataclass(frozen=True)
class Suite:
    """Settings that are measured with the same families and shown together.

    `threads` None means all that the run asks for.
    """

    title: str
    shapes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    families: tuple[str, ...] = DENSE
    hot: bool = False
    threads: tuple[int, ...] | None = None
    quick: bool = False
    rounds: int = 5

    def settings(
        self, threads: list[int], shapes: list[tuple[int, int]] | None = None, *, keep: bool = False
    ) -> Iterator[Setting]:
        """Every setting; `keep` all the threads, whatever the suite is for."""
        for count in threads:
            if keep or self.threads is None or count in self.threads:
                yield from (Setting(*shape, count, self.hot) for shape in shapes or self.shapes)


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
    "csr": Suite("CSR, 90 % sparse at random, cold", ((4096, 4096),), (1, 16, 64), CSR, threads=(2,), quick=True),
    "lyra": Suite(
        "Lyra WaveGRU conv_to_gates, learned 4 x 4 blocks, 8 % dense, cold", ((3072, 1024),), (1,), LYRA,
        threads=(2,), quick=True,
    ),
}  # fmt: skip
