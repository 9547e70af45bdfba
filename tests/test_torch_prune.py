"""`torch.nn.utils.prune` keeps X_orig and X_mask: a checkpoint of any format gives X, their product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import pumice as pm
from pumice.checkpoint import open_reader

GOLDEN = Path(__file__).parent / "golden" / "torch-pruned.pt"


def test_the_product_has_the_bits_that_torch_gives_nan_and_minus_zero_included() -> None:
    m, expected = pm.load(GOLDEN), np.load(GOLDEN.with_suffix(".npz"))
    assert sorted(m) == ["bias", "weight"]
    assert m["weight"].tobytes() == expected["weight"].tobytes() == bytes(m.raw("weight"))
    assert np.isnan(m["weight"][0, 0])  # 0 * NaN
    assert np.signbit(m["weight"][0, 1])  # 0 * -0.0
    with open_reader(GOLDEN) as reader:
        np.testing.assert_array_equal(reader.rows("weight", 3, 7), m["weight"][3:7])


def pair(path: Path, dtype: str = "f4", mask_dtype: str = "f4", **more: np.ndarray) -> tuple[Path, np.ndarray]:
    rng = np.random.default_rng(0)
    w, mask = rng.standard_normal((8, 32)).astype(dtype), rng.random((8, 32)) < 0.4
    save_file(
        {"fc.weight_orig": w, "fc.weight_mask": mask.astype(mask_dtype), "fc.bias": np.ones(8, dtype)} | more, path
    )
    return path, w * mask


@pytest.mark.parametrize(("dtype", "mask_dtype"), [("f8", "f8"), ("f4", "f4"), ("f2", "f2"), ("f4", "?"), ("f4", "u1")])
def test_dtypes_stay(dtype: str, mask_dtype: str, tmp_path: Path) -> None:
    path, product = pair(tmp_path / "m.safetensors", dtype, mask_dtype)
    m = pm.load(path)
    assert sorted(m) == ["fc.bias", "fc.weight"]
    assert m["fc.weight"].dtype == dtype
    assert m.info("fc.weight").nbytes == product.nbytes
    np.testing.assert_array_equal(m["fc.weight"], product)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    import ml_dtypes

    w = np.array([[1.5, -2.0, np.nan, np.inf]], ml_dtypes.bfloat16)
    mask = np.array([[1, 0, 1, 1]], ml_dtypes.bfloat16)
    save_file({"w_orig": w, "w_mask": mask}, tmp_path / "m.safetensors")
    m = pm.load(tmp_path / "m.safetensors")
    assert m.info("w").dtype == "BF16"
    np.testing.assert_array_equal(m["w"], [[1.5, 0, np.nan, np.inf]])
    assert bytes(m.raw("w")) == (w * mask).tobytes()


@pytest.mark.parametrize("scheme", ["bitmask", "csr", "int8"])
def test_convert_just_works(scheme: str, tmp_path: Path) -> None:
    path, product = pair(tmp_path / "m.safetensors")
    pm.convert(path, tmp_path / "small.safetensors", scheme)
    m = pm.load(tmp_path / "small.safetensors")
    assert sorted(m) == ["fc.bias", "fc.weight"]
    assert m["fc.weight"].scheme == scheme
    np.testing.assert_array_equal(m["fc.weight"].to_dense(), pm.compress(product, scheme).to_dense())
    pm.convert(path, tmp_path / "plain.safetensors", scheme, ignore=["weight"])
    np.testing.assert_array_equal(pm.load(tmp_path / "plain.safetensors")["fc.weight"], product)


def test_pairs_that_fit_not_are_refused_and_other_names_stay(tmp_path: Path) -> None:
    half = np.full((8, 32), 0.5, "f4")
    for more, message in (
        ({"fc.weight": half}, "fc.weight: expected one array of this name"),
        ({"fc.weight_mask": half[:4]}, "fc.weight_mask: expected a mask of shape"),
        ({"fc.weight_mask": half}, "fc.weight_mask: expected a mask of zeros and ones"),
        ({"fc.weight_mask": half.astype("i8")}, "fc.weight_mask: expected a mask of shape .* got I64"),
    ):
        path, _ = pair(tmp_path / "m.safetensors", **more)
        with pytest.raises(pm.FormatError, match=message):
            pm.load(path)["fc.weight"]
    alone = {"a_orig": half, "b_mask": half, "ids_orig": np.arange(3), "ids_mask": np.arange(3)}
    save_file(alone, tmp_path / "alone.safetensors")
    assert sorted(pm.load(tmp_path / "alone.safetensors")) == sorted(alone)
