"""Fuzz the readers: whatever the bytes, they load and multiply, or raise a PumiceError; nothing else happens.

python tests/fuzz/fuzz.py --seconds 60 --seed 1     # mutations that know the format
python tests/fuzz/fuzz.py --atheris --seconds 600   # libFuzzer, led by the coverage of the Python readers
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

# What a file may make us say. NotImplementedError: a manifest of a later version, or a scheme without a kernel.
ALLOWED = ("FormatError", "SchemeError", "NonFiniteError", "NotImplementedError")


def target(blob: bytes) -> str:
    """Do with a file's bytes what a user would; returns how it ended. Any other exception is a finding."""
    import pumice as pm

    warnings.simplefilter("ignore", pm.FormatWarning)  # what it says is text; printing it would open a file
    try:
        with pm.load(blob) as m:
            dict(m.fields)
            for name in m:
                m.info(name)
                value = m[name]
                if not isinstance(value, pm.CompactArray):
                    continue
                if max(value.size, *value.shape) > 1 << 20:
                    continue  # more than the bytes: zeros, or no rows, may be as large as the shape says
                value.to_dense()
                if value.ndim == 2:
                    np.ones((2, value.shape[1]), np.float32) @ value.T
            m.verify()
    except (pm.PumiceError, NotImplementedError) as error:
        kind = type(error).__name__
        if kind not in ALLOWED:
            raise
        return kind
    return "loaded"


def mutate(seconds: float, seed: int, corpus_of_findings: Path) -> Counter[str]:
    from mutations import mutated, seeds

    rng = random.Random(seed)
    corpus = seeds()
    ends: Counter[str] = Counter()
    stop = time.process_time() + seconds  # so that a busy machine tries as much
    while time.process_time() < stop:
        blob = mutated(rng, corpus)
        start = time.process_time()
        try:
            ends[target(blob)] += 1
        except BaseException:
            corpus_of_findings.mkdir(parents=True, exist_ok=True)
            place = corpus_of_findings / f"finding-{seed}-{sum(ends.values())}"
            place.write_bytes(blob)
            print(f"FINDING: {place}", file=sys.stderr)
            raise
        if time.process_time() - start > 1:
            raise TimeoutError(f"an input of {len(blob)} bytes took more than a second: {blob[:200]!r}")
    return ends


def void(_: object) -> None:
    """libFuzzer wants None."""


def guided(seconds: float, seed: int, place: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["pumice"]):
        from mutations import seeds  # imports pumice

    corpus = place / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for i, blob in enumerate(seeds()):
        (corpus / f"seed-{i}").write_bytes(blob)
    options = [f"-max_total_time={int(seconds)}", f"-seed={seed}", "-max_len=8192", "-timeout=10", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={place}/", str(corpus)], lambda blob: void(target(blob)))
    atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    warnings.simplefilter("error")
    if options.atheris:
        guided(options.seconds, options.seed, options.findings)
    else:
        ends = mutate(options.seconds, options.seed, options.findings)
        print(f"PROMISE fuzz executions: {sum(ends.values())} {dict(ends)}")
