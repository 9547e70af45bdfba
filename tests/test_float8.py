"""float8 beside ml_dtypes, which nobody here wrote; conformance holds the rest of its laws."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import pumice as pm
from pumice import reference
from pumice.errors import FormatError, SchemeError
from pumice.layouts import from_parts
from pumice.scheme import Scheme
from pumice.values.float8 import round_to_codes
from pumice.values.minifloat import minifloat_values

E4M3 = ml_dtypes.float8_e4m3fn
OTHERS = {
    (5, 2, "ieee"): ml_dtypes.float8_e5m2,
    (4, 3, "fnuz"): ml_dtypes.float8_e4m3fnuz,
    (5, 2, "fnuz"): ml_dtypes.float8_e5m2fnuz,
    (8, 0, "scale"): ml_dtypes.float8_e8m0fnu,
}
CODES = np.arange(256, dtype=np.uint8)


def test_every_code_means_what_ml_dtypes_says() -> None:
    want = CODES.view(E4M3).astype(np.float32)
    np.testing.assert_array_equal(minifloat_values(4, 3, "fn"), want)
    np.testing.assert_array_equal([reference.float8.value(code) for code in range(256)], want)
    for kind, dtype in OTHERS.items():
        np.testing.assert_array_equal(minifloat_values(*kind), CODES.view(dtype).astype(np.float32))


def test_numbers_round_as_ml_dtypes_rounds_them() -> None:
    values = np.unique(minifloat_values(4, 3, "fn")[:0x7F].astype(np.float64))
    ties = (values[1:] + values[:-1]) / 2
    near = np.concatenate([values, ties, np.nextafter(ties.astype(np.float32), 0), np.nextafter(ties, 1e9)])
    spread = np.exp2(np.random.default_rng(0).uniform(-12, 8.8, 20000))
    x = np.concatenate([near, spread, [1e-45, 2.0**-10, 2.0**-11, 448]]).astype(np.float32)
    x = np.concatenate([x, -x])[np.abs(np.concatenate([x, x])) <= 448]
    np.testing.assert_array_equal(round_to_codes(x), x.astype(E4M3).view(np.uint8))


def test_what_is_too_large_saturates() -> None:
    x = np.array([448.1, 463.9, 464, 1e38, -1e38], np.float32)  # ml_dtypes makes NaN of the last three
    assert round_to_codes(x).tolist() == [0x7E, 0x7E, 0x7E, 0x7E, 0xFE]


@pytest.mark.parametrize("scheme", ["float8", "float8-g32"])
def test_the_largest_weight_of_a_group_has_the_largest_code(scheme: str) -> None:
    w = np.random.default_rng(1).standard_normal((8, 96)).astype(np.float32)
    array = pm.compress(w, scheme)
    codes = array.codes() & 0x7F
    largest = codes.reshape(8, -1, Scheme.parse(scheme).group or 96).max(axis=2)
    assert (largest >= 0x7D).all()  # 0x7E, or one less where float16 rounded the scale up
    error = np.abs(array.to_dense() - w)
    assert (error <= np.abs(w) * 2.0**-4 + np.abs(array.parts()["scale"]).max() * 2.0**-9).all()


def test_a_weight_of_float8_in_a_file_is_a_tensor_that_others_read(tmp_path: object) -> None:
    from safetensors import safe_open

    path = f"{tmp_path}/w.safetensors"
    array = pm.compress(np.random.default_rng(2).standard_normal((4, 64)), "float8")
    pm.save(path, {"fc.weight": array})
    assert pm.load(path).info("fc.weight").parts == {"": "F8_E4M3", "scale": "F32"}
    with safe_open(path, framework="np") as file:
        assert file.get_slice("fc.weight").get_dtype() == "F8_E4M3"
        np.testing.assert_array_equal(file.get_tensor("fc.weight_scale"), array.parts()["scale"])
    assert bytes(pm.load(path).raw("fc.weight")) == array.codes().tobytes()


def test_values_without_a_scale_have_the_scale_one() -> None:
    codes = np.tile(CODES, (2, 1))
    array = from_parts("float8", codes.shape, {"": codes, "scale": np.ones((2, 1), np.float32)})
    np.testing.assert_array_equal(array.to_dense(), codes.view(E4M3).astype(np.float32))


def test_scales_that_are_not_finite_are_refused_and_sparse_layouts_do_not_take_float8() -> None:
    codes = np.zeros((2, 4), np.uint8)
    with pytest.raises(FormatError, match="^scale: expected finite scales, got a NaN or an infinity"):
        from_parts("float8", (2, 4), {"": codes, "scale": np.array([[1], [np.nan]], np.float32)})
    for scheme in ("csr+float8", "bitmask+float8", "2:4+float8"):
        with pytest.raises(SchemeError, match="stores float32 or .*, not float8"):
            pm.compress(np.eye(4), scheme)
