"""No second moments of inputs make GPTQ or SparseGPT fail: rank-deficient, ill-conditioned, dead, huge, tiny."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from tests.layers import KINDS
from tests.test_quantization import check_degenerate as check_gptq
from tests.test_solvers import check_degenerate as check_sparsegpt

OPTIONS = ({}, {"damping": 0.0}, {"act_order": False}, {"clip": "mse", "damping": 1e-9})
NARROW, WIDE = 40, 700  # columns at most; errors go beyond 128, and beyond 512, on their own
PRUNED = (None, "csr+int8", "bitmask+int4-g16", "2:4")
SCHEMES = ("int4", "int2-g16", "int4-g16-asym", "int8-g32", "int3-g16-min")


def test_degenerate_layers_never_fail(long: bool, count: Callable[[str, object], None]) -> None:
    rng, trials = np.random.default_rng(0), 100_000 if long else 500
    logging.disable(logging.WARNING)
    try:
        for trial in range(trials // 2):
            kind = KINDS[trial % len(KINDS)]
            scheme, options = SCHEMES[rng.integers(len(SCHEMES))], OPTIONS[rng.integers(len(OPTIONS))]
            most = WIDE if trial % 97 == 96 else NARROW
            check_gptq(trial, kind, scheme, options, most)
            check_sparsegpt(trial, kind, float(rng.random()), PRUNED[trial % len(PRUNED)], most)
    finally:
        logging.disable(logging.NOTSET)
    count("degenerate layers that GPTQ and SparseGPT got through", trials // 2 * 2)
