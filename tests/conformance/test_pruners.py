"""What every pruning method promises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pumice.pruning import prune
from pumice.pruning.base import PRUNERS, SCOPES

from .cases import seed

every_pruner = pytest.mark.parametrize("method", list(PRUNERS))
every_scope = pytest.mark.parametrize("scope", SCOPES)


def weights() -> np.ndarray:
    w = seed("prune").standard_normal((16, 33)).astype(np.float32)
    w[3] = np.rint(w[3])  # ties
    w[4] = 0
    return w


@every_pruner
def test_there_is_one_score_for_each_weight(method: str) -> None:
    w = weights()
    score = PRUNERS[method](w)
    assert score.shape == w.shape
    assert score.dtype.kind == "f"
    assert not np.isnan(score).any()


@every_scope
@every_pruner
def test_exactly_the_floor_of_the_share_is_removed(method: str, scope: str) -> None:
    w = weights()
    for sparsity in (0, 0.1, 0.5, 1 / 3, 0.999, 1):
        pruned, mask = prune(w, sparsity, method=method, scope=scope, return_mask=True)
        removed = len(w) * math.floor(sparsity * w.shape[1]) if scope == "row" else math.floor(sparsity * w.size)
        assert mask.dtype == bool and mask.shape == w.shape
        assert np.count_nonzero(~mask) == removed
        np.testing.assert_array_equal(pruned, np.where(mask, w, np.float32(0)), strict=True)


@every_pruner
def test_no_removed_weight_scores_above_a_kept_one_and_ties_go_in_order(method: str) -> None:
    w = weights()
    _, mask = prune(w, 0.6, method=method, return_mask=True)
    score = PRUNERS[method](w)
    limit = score[mask].min()
    assert score[~mask].max() <= limit
    tied = mask[score == limit]
    assert (np.diff(tied.astype(int)) >= 0).all()


@every_pruner
def test_pruning_is_deterministic_and_leaves_its_input_alone(method: str) -> None:
    w = weights()
    w.setflags(write=False)
    np.testing.assert_array_equal(prune(w, 0.5, method=method), prune(w.copy(), 0.5, method=method), strict=True)
    np.testing.assert_array_equal(w, weights(), strict=True)
