"""What every scheme promises about files."""

from __future__ import annotations

import io

import numpy as np
import pytest

import pumice as pm

from .cases import ENCODED_SHAPES, fitted, fitting, schemes, shapes
from .tolerances import assert_same_bits, assert_same_parts

every_scheme = pytest.mark.parametrize("scheme", schemes())


@every_scheme
def test_a_saved_array_is_loaded_with_the_same_parts_and_the_same_products(scheme: str) -> None:
    arrays = {
        f"w{rows}x{cols}": pm.compress(fitting(scheme, "sparse", rows, cols), scheme)
        for rows, cols in shapes(scheme, ENCODED_SHAPES)
    }
    file = io.BytesIO()
    pm.save(file, arrays)
    loaded = pm.load(file.getvalue())
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        again, x = loaded[name], np.ones((3, array.shape[1]), np.float32)
        assert (type(again), again.scheme, again.shape) == (type(array), scheme, array.shape)
        assert_same_parts(again.parts(), array.parts(), name)
        for mode in ("int16", "int8"):
            assert_same_bits(again.linear(x, None, mode), array.linear(x, None, mode), (name, mode))


@every_scheme
def test_the_same_arrays_make_the_same_bytes(scheme: str) -> None:
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        pm.save(file, {"w": pm.compress(fitting(scheme, "edges", 33, fitted(scheme, 129)), scheme)})
    assert files[0].getvalue() == files[1].getvalue()
