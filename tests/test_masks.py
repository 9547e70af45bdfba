"""Masks as values: applied, combined, packed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import pumice as pm

RNG = np.random.default_rng(0)
STATE = {"a": RNG.standard_normal((6, 11)), "conv": RNG.standard_normal((4, 3, 2, 2)), "bias": np.ones(3)}
PRUNED, MASKS = pm.prune(STATE, 0.5, return_mask=True)


def test_masks_of_a_pruning_are_its_non_zeros_and_apply_to_any_weights() -> None:
    assert pm.Masks.of(PRUNED) == MASKS
    assert MASKS.density == pytest.approx(0.5)
    applied = MASKS.apply(STATE)
    assert all((applied[name] == PRUNED[name]).all() for name in MASKS)
    assert applied["bias"] is STATE["bias"]


def test_training_loops_hold_zeros_in_place_in_lists_too() -> None:
    weights = [STATE["a"].copy(), np.ones(3)]
    _, masks = pm.prune(weights, 0.5, return_mask=True)
    weights[0] += 1
    kept = weights[0]
    assert masks.apply(weights, in_place=True)[0] is kept
    assert (kept[~masks[0]] == 0).all() and (kept[masks[0]] == STATE["a"][masks[0]] + 1).all()
    compact = pm.compress(STATE["a"], "int8")
    assert not masks.apply([compact])[0][~masks[0]].any()


def test_operators_are_those_of_sets_of_places() -> None:
    other = pm.Masks({name: RNG.random(mask.shape) < 0.5 for name, mask in MASKS.items()})
    for name in MASKS:
        np.testing.assert_array_equal((MASKS & other)[name], MASKS[name] & other[name])
        np.testing.assert_array_equal((MASKS | other)[name], MASKS[name] | other[name])
        np.testing.assert_array_equal((~MASKS)[name], ~MASKS[name])
    assert MASKS & other != MASKS | other
    assert ~~MASKS == MASKS
    assert MASKS != {"a": 1}


def test_they_never_change() -> None:
    with pytest.raises(ValueError, match="read-only"):
        MASKS["a"][0, 0] = True
    mine = np.ones((2, 2), bool)
    masks = pm.Masks({"w": mine})
    mine[0, 0] = False
    assert masks["w"].all()


@given(st.lists(array_shapes(min_dims=2, max_dims=4, max_side=9).flatmap(lambda s: arrays(bool, s)), max_size=3))
def test_files_have_one_bit_for_each_weight_and_give_the_same_back(found: list[np.ndarray]) -> None:
    for masks in (pm.Masks(dict(enumerate(found))), pm.Masks({f"layer.{i}": mask for i, mask in enumerate(found)})):
        packed = masks.pack()
        assert all(
            packed[part].nbytes == mask.shape[0] * -(-mask[0].size // 8)
            for part, mask in zip([p for p in packed if p.endswith("_bitmask")], found, strict=True)
        )
        file = io.BytesIO()
        pm.save(file, packed)
        assert pm.Masks.unpack(pm.load(file.getvalue())) == masks


def test_a_bitmask_is_that_of_the_layout() -> None:
    stored = pm.compress(PRUNED["a"], "bitmask")
    np.testing.assert_array_equal(MASKS.pack()["a_bitmask"], stored.parts()["bitmask"])


def test_what_does_not_fit_is_refused() -> None:
    for call, error, message in (
        (lambda: MASKS.apply({"a": STATE["a"]}), ValueError, "w: expected a member 'conv', which has a mask"),
        (
            lambda: MASKS.apply({**STATE, "a": np.ones((2, 2))}),
            ValueError,
            r"w\['a'\]: expected shape \(6, 11\) as its mask",
        ),
        (lambda: MASKS.apply(STATE["a"]), TypeError, "w: expected a mapping or list"),
        (
            lambda: MASKS.apply({**STATE, "a": pm.compress(STATE["a"], "int8")}, in_place=True),
            TypeError,
            "expected an ndarray to write to",
        ),
        (lambda: MASKS & pm.Masks({"a": MASKS["a"]}), ValueError, "masks: expected the same members, got 'conv'"),
        (
            lambda: MASKS & pm.Masks({"a": np.ones((1, 1), bool), "conv": MASKS["conv"]}),
            ValueError,
            "expected one shape",
        ),
        (lambda: pm.Masks({"a": np.ones(3)}), TypeError, r"masks\['a'\]: expected bool, got float64"),
        (lambda: pm.Masks.unpack({"a": np.ones(3)}), pm.FormatError, "NAME_bitmask and NAME_shape"),
        (
            lambda: pm.Masks.unpack({"a_bitmask": np.ones((2, 1), np.uint8)}),
            pm.FormatError,
            "NAME_bitmask and NAME_shape",
        ),
        (
            lambda: pm.Masks.unpack({"a_bitmask": np.ones((2, 1), np.uint8), "a_shape": np.array([2, 9])}),
            pm.FormatError,
            r"uint8 of shape \(2, 2\)",
        ),
        (
            lambda: pm.Masks.unpack({"a_bitmask": np.ones((2, 1), np.uint8), "a_shape": np.array([2])}),
            pm.FormatError,
            "two or more sizes",
        ),
        (lambda: MASKS & 3, TypeError, "unsupported operand"),
    ):
        with pytest.raises(error, match=message):
            call()
