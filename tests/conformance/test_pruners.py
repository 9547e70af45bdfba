"""What every pruning method promises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pumice.pruning import prune
from pumice.pruning.base import PRUNERS
from pumice.pruning.selection import SCOPES
from pumice.statistics import Moments

from .cases import seed

every_pruner = pytest.mark.parametrize("method", list(PRUNERS))
every_scorer = pytest.mark.parametrize("method", [name for name, pruner in PRUNERS.items() if pruner.score])
every_scope = pytest.mark.parametrize("scope", SCOPES)


def weights() -> np.ndarray:
    w = seed("prune").standard_normal((16, 33)).astype(np.float32)
    w[3] = np.rint(w[3])  # ties
    w[4] = 0
    return w


def moments() -> Moments:
    found, rng = Moments(33), seed("moments")
    found.update(rng.standard_normal((50, 33)) * rng.uniform(0.1, 3, 33))
    return found


def scores(method: str, w: np.ndarray) -> np.ndarray:
    pruner = PRUNERS[method]
    assert pruner.score is not None
    return pruner.score(w, **pruner.inputs("w", None, moments(), 0, w.shape[1]))


@every_scorer
def test_there_is_one_score_for_each_weight(method: str) -> None:
    w = weights()
    score = scores(method, w)
    assert score.shape == w.shape
    assert score.dtype.kind == "f"
    assert not np.isnan(score).any()


@every_scope
@every_pruner
def test_exactly_the_floor_of_the_share_is_removed(method: str, scope: str) -> None:
    w = weights()
    if scope == "global" and PRUNERS[method].solve:
        with pytest.raises(ValueError, match="scope='global'"):
            prune(w, 0.5, method=method, scope=scope, stats=moments())
        return
    for sparsity in (0, 0.1, 0.5, 1 / 3, 0.999):
        pruned, mask = prune(w, sparsity, method=method, scope=scope, stats=moments(), return_mask=True)
        removed = len(w) * math.floor(sparsity * w.shape[1]) if scope == "row" else math.floor(sparsity * w.size)
        assert mask.dtype == bool and mask.shape == w.shape
        assert np.count_nonzero(~mask) == removed
        assert not pruned[~mask].any()
        if PRUNERS[method].score:
            np.testing.assert_array_equal(pruned, np.where(mask, w, np.float32(0)), strict=True)


@every_scorer
def test_no_removed_weight_scores_above_a_kept_one_and_ties_go_in_order(method: str) -> None:
    w = weights()
    _, mask = prune(w, 0.6, method=method, scope="layer", stats=moments(), return_mask=True)
    score = scores(method, w)
    limit = score[mask].min()
    assert score[~mask].max() <= limit
    tied = mask[score == limit]
    assert (np.diff(tied.astype(int)) >= 0).all()


@every_pruner
def test_pruning_is_deterministic_and_leaves_its_input_alone(method: str) -> None:
    w = weights()
    w.setflags(write=False)
    first, second = (prune(some, 0.5, method=method, stats=moments()) for some in (w, w.copy()))
    np.testing.assert_array_equal(first, second, strict=True)
    np.testing.assert_array_equal(w, weights(), strict=True)
