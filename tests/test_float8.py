"""float8 beside ml_dtypes, and files of it beside transformers; conformance holds the rest of its laws.

tests/golden/make_float8.py made the files with transformers 5.24 and torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from tests.quantized import (
    GOLDEN,
    Change,
    config_of,
    copied,
    expected,
    golden_modules,
    read_tensors,
    tensor,
    weights_of,
    without,
)

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


# Files of others.

FILE_SCHEMES = {"blocks16": "float8-g16", "blocks48": "float8-g16", "deepseek": "float8-g128", "weight_scale": "float8"}


@pytest.mark.parametrize(("folder", "module"), list(golden_modules("float8")))
def test_scaled_weights_are_those_that_their_writers_decode(folder: str, module: str) -> None:
    with pm.load(GOLDEN / "float8" / folder) as m:
        w, info = m[f"{module}.weight"], m.info(f"{module}.weight")
        np.testing.assert_array_equal(w.to_dense(), expected("float8", folder, module), strict=True)
        assert w.scheme == info.dtype == FILE_SCHEMES[folder]
        assert m.verify().ok
    stored = read_tensors(GOLDEN / "float8" / folder / "model.safetensors")
    tensors = [array for name, array in stored.items() if name.startswith(f"{module}.")]
    assert info.nbytes == sum(array.nbytes for array in tensors)
    np.testing.assert_array_equal(w.codes(), stored[f"{module}.weight"].view(np.uint8))
    assert np.asarray(w).flags.writeable  # decoded, not a view of the table


def test_codes_are_views_of_the_file() -> None:
    w = weights_of(GOLDEN / "float8" / "deepseek")
    assert w.resident_nbytes == w.parts()["scale"].nbytes


def test_blocks_that_no_scheme_has_are_decoded(tmp_path: Path) -> None:
    scales = np.random.default_rng(0).uniform(0.1, 1, (4, 12)).astype(np.float32)
    codes = np.random.default_rng(1).integers(0, 0x7F, (30, 90)).astype(np.uint8).view(E4M3)

    def change(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        tensors.clear()
        tensors.update({"fc.weight": codes, "fc.weight_scale_inv": scales})
        config["weight_block_size"] = [8, 8]

    with pm.load(copied("float8/blocks16", tmp_path, change)) as m:
        assert (m.info("fc.weight").dtype, m.info("fc.weight").compact) == ("F32", False)
        wide = np.kron(scales, np.ones((8, 8), np.float32))[:30, :90]
        np.testing.assert_array_equal(m["fc.weight"], codes.astype(np.float32) * wide, strict=True)


def nan(scales: Any) -> Any:
    scales = scales.copy()
    scales[0, 0] = np.nan
    return scales


BLOCKS = "float8/blocks16"
REFUSED: list[tuple[str, Change, str]] = [
    (
        BLOCKS,
        config_of(weight_block_size=[32, 16]),
        r"fc.weight_scale_inv: expected one scale, one a row, or one a block, as weight_block_size \[32, 16\] of "
        r"the config has it, got shape \[2, 6\] for a weight of \[32, 96\]$",
    ),
    (BLOCKS, config_of(weight_block_size=[0, 16]), r"weight_block_size \[0, 16\] of the config"),
    (BLOCKS, config_of(weight_block_size="16"), "weight_block_size '16' of the config"),
    (BLOCKS, config_of(weight_block_size=[2**62, 2**62]), "one a block, as weight_block_size"),
    (BLOCKS, without("weight_block_size"), r"as blocks of \(128, 128\) has it, got shape"),
    (BLOCKS, tensor("fc.weight_scale_inv", lambda s: s[:, :-1]), r"got shape \[2, 5\] for a weight of \[32, 96\]"),
    (BLOCKS, tensor("fc.weight_scale_inv", lambda s: s[None]), r"got shape \[1, 2, 6\]"),
    (
        BLOCKS,
        tensor("fc.weight_scale_inv", lambda s: s.astype(np.float64)),
        "scales of F32, F16, BF16, F8_E8M0, got F64",
    ),
    (BLOCKS, tensor("fc.weight_scale_inv", nan), "fc.weight: expected finite scales, got a NaN or an infinity"),
    (BLOCKS, tensor("fc.weight", lambda w: w[:0]), r"got F32 of shape \[2, 6\] for a weight of \[0, 96\]"),
    (BLOCKS, config_of(weight_scale_semantics="inverse"), "scales that values are multiplied by, got inverse ones"),
    ("float8/weight_scale", tensor("scalar.weight_scale", lambda s: s * np.inf), "finite scales"),
]


@pytest.mark.parametrize(("golden", "change", "message"), REFUSED, ids=[f"{i}-{r[0]}" for i, r in enumerate(REFUSED)])
def test_scales_that_do_not_fit_are_refused(golden: str, change: Change, message: str, tmp_path: Path) -> None:
    folder = copied(golden, tmp_path, change)
    with pytest.raises(FormatError, match=message) as caught:
        for name in ("fc.weight", "scalar.weight"):
            if name in pm.load(folder):
                weights_of(folder, name)
    assert str(folder) in str(caught.value)


def test_other_float8_and_more_dimensions_stay_tensors(tmp_path: Path) -> None:
    for make in (lambda w: w.astype(ml_dtypes.float8_e5m2), lambda w: w[None]):
        folder = copied(BLOCKS, tmp_path, tensor("fc.weight", make))
        with pm.load(folder) as m:
            assert isinstance(m["fc.weight"], np.ndarray)
            assert "fc.weight_scale_inv" in m
