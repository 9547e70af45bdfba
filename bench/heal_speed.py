"""What recovered sparsity is worth in time, and compact layers in transformers beside torch's own (bench/heal.py).

    python bench/heal_speed.py layers                # 4096 x 4096 at batch 1, 70 % pruned, beside dense int8 and int4
    python bench/heal_speed.py bridge --case CASE    # MiniLM in transformers: one of CASES, in a process of its own

Prints JSON. `--healed FILE` is what bench/heal_minilm.py made; a case of it is left out without.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import pumice as pm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

SIZE, SPARSITY, COLD = 4096, 0.7, 256 << 20  # bytes of copies that take turns
LAYERS = {
    "int8": None,
    "int4-g32": None,
    "bitmask+int8": "anywhere",
    "bitmask+int4-g32": "anywhere",
    "bsr-16x4+int8": "bsr-16x4",
}
CASES = (
    "torch float32", "torch bfloat16", "torch int8 dynamic", "pumice int8", "pumice int4-g32", "pumice bitmask+int8",
)  # fmt: skip
RUNS = 5


def layers(rounds: int = 5) -> list[dict[str, Any]]:
    """Milliseconds of a product at batch 1 with weights from DRAM, and bytes, for int16 and int8 activations."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((SIZE, SIZE), np.float32)
    x = rng.standard_normal((1, SIZE), np.float32)
    pruned = {None: w, "anywhere": pm.prune(w, SPARSITY), "bsr-16x4": pm.prune(w, SPARSITY, pattern="bsr-16x4")}
    arrays, found = {}, []
    for scheme, pattern in LAYERS.items():
        one = pm.compress(pruned[pattern], scheme)
        arrays[scheme] = [one] + [pm.from_parts(scheme, one.shape, copied(one)) for _ in range(COLD // one.nbytes)]
        for array in arrays[scheme]:
            pm.linear(x, array)  # prepacks
    for activations in ("int16", "int8"):
        times: dict[str, list[float]] = {scheme: [] for scheme in arrays}
        with pm.options(activations=activations):
            for _, scheme in itertools.product(range(rounds), arrays):
                begun = time.perf_counter()
                for array in arrays[scheme]:
                    pm.linear(x, array)
                times[scheme].append((time.perf_counter() - begun) / len(arrays[scheme]))
        for scheme, seconds in times.items():
            one = arrays[scheme][0]
            found.append(
                {
                    "scheme": scheme,
                    "activations": activations,
                    "ms": 1e3 * float(np.median(seconds)),
                    "bytes": one.nbytes,
                }
            )
    return found


def copied(array: pm.CompactArray) -> dict[str, Any]:
    return {name: part.copy() for name, part in array.parts().items()}


def bridge(case: str, healed: Path | None) -> dict[str, Any]:
    """Sentences a second, resident memory of the model, and 1 - mean cosine to float32, of one case."""
    from demo_minilm import read_page, real_model
    from heal_encoder import embeddings, encoder_of
    from minilm import BATCH
    from wordpiece import WordPiece

    source = real_model()
    assert source is not None, "expected MiniLM in the cache"
    tokens = WordPiece.load(source / "vocab.txt")
    page = [tokens.encode(text) for text in read_page()]
    exact = embeddings(encoder_of(source), page)
    gc.collect()
    before = resident()
    made = prepared(case, encoder_of(source, healed if "bitmask" in case else None))
    embeddings(made, page[:BATCH])
    gc.collect()
    memory = resident() - before
    seconds = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        vectors = embeddings(made, page)
        seconds.append(time.perf_counter() - begun)
    error = 1 - float((vectors * exact).sum(-1).mean())
    return {"case": case, "speed": len(page) / float(np.median(seconds)), "memory": memory, "error": error}


def prepared(case: str, model: Any) -> Any:
    """The model as the case has it."""
    import torch

    from pumice.torch import compress_

    kind = case.partition(" ")[2]
    if case.startswith("pumice"):
        compress_(model, kind, tensors={r"embeddings\..*weight": "int8"}, ignore=["pooler"])
    elif kind == "bfloat16":
        model = model.to(torch.bfloat16)
    elif kind == "int8 dynamic":
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return model


def resident() -> int:
    """Bytes of this process that are its own in memory."""
    trim()
    text = Path("/proc/self/smaps_rollup").read_text()
    fields = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    return 1024 * (fields["Private_Dirty"] + fields["Private_Clean"])


def trim() -> None:
    """glibc gives back what was freed."""
    import ctypes

    call: Callable[[int], int] = ctypes.CDLL("libc.so.6").malloc_trim
    call(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("what", choices=("layers", "bridge"))
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--healed", type=Path)
    options = parser.parse_args()
    print(json.dumps(layers() if options.what == "layers" else bridge(options.case, options.healed)))


if __name__ == "__main__":
    main()
