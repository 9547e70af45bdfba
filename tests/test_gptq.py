"""GPTQ and AWQ checkpoints: decoded as the formats' own code decodes them, or refused with the reason.

tests/golden/make_gptq.py made the files with GPTQModel 7.7.0 and AutoGPTQ 0.7.1, make_awq.py with AutoAWQ 0.2.9.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import pumice as pm
from pumice.checkpoint import open_reader
from pumice.checkpoint.conventions.gptq import from_planes
from tests.quantized import (
    GOLDEN,
    Change,
    both,
    config_of,
    copied,
    expected,
    golden_modules,
    index,
    tensor,
    weights_of,
    without,
)

SCHEMES = {  # where the folder's name does not say it all
    "group96": "int4-g32", "planes-7bit": "int8-g32-asym", "sym-dynamic/down": "int8", "sym-dynamic": "int4-g32",
    "sym-v1-named-v2": "int4-g32", "sym-v2-named-v1": "int4-g32", "v2-4bit/row": "int4-asym",
}  # fmt: skip
V1, V2, SYMMETRIC, ACT = "gptq/v1-4bit", "gptq/v2-4bit", "gptq/autogptq-4bit", "act.weight"


def scheme_of(folder: str, module: str) -> str:
    """The scheme of a golden weight."""
    if f"{folder}/{module}" in SCHEMES or folder in SCHEMES:
        return SCHEMES.get(f"{folder}/{module}", SCHEMES.get(folder, ""))
    bits = folder.removesuffix("bit")[-1]
    return f"int{bits}-g{16 if module == 'act' else 32}" + ("" if folder.startswith("autogptq") else "-asym")


@pytest.mark.filterwarnings("ignore::pumice.FormatWarning")
@pytest.mark.parametrize(("folder", "module"), list(golden_modules("gptq")))
def test_weights_are_those_that_the_writers_decode(folder: str, module: str) -> None:
    with pm.load(GOLDEN / "gptq" / folder) as m:
        w, info = m[f"{module}.weight"], m.info(f"{module}.weight")
        np.testing.assert_array_equal(w.to_dense(), expected("gptq", folder, module), strict=True)
        assert w.scheme == info.dtype == scheme_of(folder, module)
        assert w.shape == info.shape and info.compact
        assert isinstance(w, pm.PermutedArray) == module.endswith("act")
        assert m.verify().ok
    with open_reader(GOLDEN / "gptq" / folder) as reader:
        rows = [reader.rows(f"{module}.weight", i, i + 8) for i in range(0, len(w), 8)]
    np.testing.assert_array_equal(np.concatenate(rows), w.to_dense())


def test_the_goldens_have_what_is_hard() -> None:
    names = {f"{folder}/{module}" for folder, module in golden_modules("gptq")}
    assert {"v2-4bit/ragged_act", "v1-3bit/act", "planes-7bit/fc", "autogptq-2bit/fc"} <= names
    w = weights_of(GOLDEN / "gptq" / "v2-4bit", "ragged.weight")
    zeros = w.parts()["zero_point"][0].view(np.uint32) & 15
    assert w.parts()["scale"].min() < 0 < w.parts()["scale"].max()
    assert zeros[0] == 0 and w.shape[1] % 32 and w.shape[0] != w.shape[1]


@pytest.mark.parametrize(("folder", "module"), list(golden_modules("awq")))
def test_weights_are_those_that_autoawq_decodes(folder: str, module: str) -> None:
    with pm.load(GOLDEN / "awq" / folder) as m:
        w, info = m[f"{module}.weight"], m.info(f"{module}.weight")
        np.testing.assert_array_equal(w.to_dense(), expected("awq", folder, module), strict=True)
        group = {"transformers/fc": "-g32", "autoawq/fc": "-g16"}.get(f"{folder}/{module}", "")
        assert w.scheme == info.dtype == f"int4{group}-asym"
        assert set(m) == {name for name in set(m) if name.endswith(".weight")}


# What a config says, and what it does not.


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("sym-v2-named-v1", "version 1, as the config says, got those of version 2"),
        ("sym-v1-named-v2", "version 2, as the config says, got those of version 1"),
    ],
)
def test_values_go_before_a_label_that_is_wrong_and_a_warning_says_so(folder: str, says: str) -> None:
    with pytest.warns(pm.FormatWarning, match=rf"^fc\.qzeros: expected zeros of {says}"):
        w = weights_of(GOLDEN / "gptq" / folder)
    np.testing.assert_array_equal(w.to_dense(), expected("gptq", folder))


def test_zeros_that_readers_read_differently_are_counted_in_a_warning() -> None:
    with pytest.warns(pm.FormatWarning, match=r"^fc\.qzeros: expected zeros of 1 and more, .*, got \d+ of 0, which"):
        weights_of(GOLDEN / V1)


@pytest.mark.filterwarnings("ignore::pumice.FormatWarning")
@pytest.mark.parametrize("folder", ["autogptq-2bit", "autogptq-3bit", "autogptq-4bit", "autogptq-8bit", "group96"])
def test_without_a_config_shapes_and_values_say_it_all(folder: str, tmp_path: Path) -> None:
    copied(f"gptq/{folder}", tmp_path, lambda tensors, config: config.clear())
    w = weights_of(tmp_path)
    assert w.scheme == weights_of(GOLDEN / "gptq" / folder).scheme
    np.testing.assert_array_equal(w.to_dense(), expected("gptq", folder))


@pytest.mark.filterwarnings("ignore::pumice.FormatWarning")
def test_a_file_in_memory_has_no_config() -> None:
    with pm.load((GOLDEN / SYMMETRIC / "model.safetensors").read_bytes()) as m:
        np.testing.assert_array_equal(m["fc.weight"].to_dense(), expected("gptq", "autogptq-4bit"))


def test_without_g_idx_columns_are_in_order(tmp_path: Path) -> None:
    copied(SYMMETRIC, tmp_path, without("fc.g_idx"))
    np.testing.assert_array_equal(weights_of(tmp_path).to_dense(), expected("gptq", "autogptq-4bit"))
    copied(SYMMETRIC, tmp_path, both(without("fc.g_idx"), lambda tensors, config: config.clear()))
    np.testing.assert_array_equal(weights_of(tmp_path).to_dense(), expected("gptq", "autogptq-4bit"))


def test_asymmetric_weights_whose_zeros_are_in_the_middle_keep_them(tmp_path: Path) -> None:
    copied(SYMMETRIC, tmp_path, config_of(sym=False))
    w = weights_of(tmp_path)
    assert w.scheme == "int4-g32-asym"
    np.testing.assert_array_equal(w.to_dense(), expected("gptq", "autogptq-4bit"))


def test_scales_in_bfloat16_are_widened(tmp_path: Path) -> None:
    import ml_dtypes

    copied(SYMMETRIC, tmp_path, tensor("fc.scales", lambda s: s.astype(ml_dtypes.bfloat16)))
    w, exact = weights_of(tmp_path), weights_of(GOLDEN / SYMMETRIC)
    want = exact.parts()["scale"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(w.parts()["scale"], want, strict=True)
    np.testing.assert_array_equal(w.codes(), exact.codes())


def test_groups_that_no_scheme_has_are_decoded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(0, 16, (32, 8)), rng.standard_normal((4, 8)).astype(np.float16)
    order = rng.permutation(np.arange(32) // 8)
    words = (codes.reshape(4, 8, 8).astype(np.uint32) << (4 * np.arange(8, dtype=np.uint32))[:, None]).sum(axis=1)
    tensors = {
        "fc.qweight": words.astype(np.uint32).view(np.int32), "fc.scales": scales, "fc.g_idx": order.astype(np.int32),
        "fc.qzeros": np.full((4, 1), 0x77777777, np.int32),
    }  # fmt: skip
    save_file(tensors, tmp_path / "model.safetensors")
    want = scales.astype(np.float32)[order] * (codes - 8).astype(np.float32)
    with pm.load(tmp_path) as m:
        assert (m.info("fc.weight").dtype, m.info("fc.weight").compact) == ("F32", False)
        np.testing.assert_array_equal(m["fc.weight"], want.T, strict=True)


def test_patterns_of_dynamic_are_never_run(tmp_path: Path) -> None:
    bomb = {"+:(a+)+$": {"bits": 4}, "-:(.*)*x$": {}, "+:[": {"group_size": 32}}
    copied(SYMMETRIC, tmp_path, config_of(dynamic=bomb, bits=8, group_size=128))
    assert weights_of(tmp_path).scheme == "int4-g32"


def test_what_is_read_is_converted_saved_and_multiplied(tmp_path: Path) -> None:
    pm.convert(GOLDEN / V2, tmp_path / "out", "int8")
    m, source = pm.load(tmp_path / "out"), pm.load(GOLDEN / V2)
    assert set(m) == set(source)
    for name in source:
        assert (m[name].scheme, type(m[name])) == (source[name].scheme, type(source[name]))
        for part, array in source[name].parts().items():
            np.testing.assert_array_equal(m[name].parts()[part], array)
        x = np.random.default_rng(1).standard_normal((3, source[name].shape[1])).astype(np.float32)
        want = x.astype(np.float64) @ source[name].to_dense().T
        for mode in ("int16", "float32"):
            np.testing.assert_allclose(m[name].linear(x, None, mode), want, rtol=1e-3, atol=2e-3)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_planes_hold_every_code() -> None:
    rng = np.random.default_rng(5)
    for bits, planes in {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}.items():
        codes, words, shift = rng.integers(0, 2**bits, 64).astype(np.uint64), [], 0
        for block in codes.reshape(2, 32):
            shift = 0
            for width in planes:
                fields = (block >> np.uint64(shift)) & np.uint64(2**width - 1)
                by_word = fields.reshape(width, 32 // width) << (np.arange(32 // width) * width).astype(np.uint64)
                words += by_word.sum(axis=1).tolist()
                shift += width
        stream = np.array([words], np.uint64).astype(np.uint32).view(np.int32)
        np.testing.assert_array_equal(from_planes(stream, bits)[0], codes)


# What is refused.


def infinite(scales: Any) -> Any:
    scales = scales.copy()
    scales[0, 0] = np.inf
    return scales


REFUSED: list[tuple[str, Change, str]] = [
    # g_idx
    (V2, index(3, 2), r"fc.weight: expected groups from 0 to 1, got 2"),
    (V2, index(3, -1), r"fc.weight: expected groups from 0 to 1, got -1"),
    (V2, index(0, 2**31 - 1), "fc.weight: expected groups from 0 to 1, got 2147483647"),
    (V2, index(0, 1), "as many columns in each group, but fewer in the last, got 31 of group 0 and 33 of group 1"),
    (
        V2,
        tensor("fc.g_idx", lambda g: g[:-9]),
        r"fc.qweight: expected codes of 4 bits, as the config says, got 8 words",
    ),
    (
        V2,
        tensor("fc.g_idx", lambda g: g.astype(np.float32)),
        r"fc.g_idx: expected I32 of shape \(in,\), got F32 of shape",
    ),
    (V2, tensor("fc.g_idx", lambda g: g[None]), r"fc.g_idx: expected I32 of shape \(in,\), got I32 of shape \[1, 64\]"),
    # bits and shapes
    (
        V2,
        tensor("fc.qweight", lambda q: q[:-1]),
        "codes of 4 bits, as the config says, got 7 words for 64 inputs and 4 for 32",
    ),
    (V2, config_of(bits=8), "qweight: expected codes of 8 bits, as the config says, got .* which are codes of 4"),
    (V2, config_of(bits="4"), "expected codes of '4' bits, as the config says"),
    (V2, both(without("bits"), tensor("fc.qweight", lambda q: q[:5])), "expected codes of 2 to 8 bits, got 5 words"),
    (V2, tensor("fc.qzeros", lambda z: z[:, :-1]), "got 8 words for 64 inputs and 3 for 32 outputs"),
    (V2, tensor("fc.qzeros", lambda z: z[:1]), r"expected qweight \(.., out\), scales \(groups, out\) and qzeros"),
    (
        V2,
        tensor("fc.scales", lambda s: s[:, :-1]),
        r"as GPTQ has them, got qweight \[8, 32\], scales \[2, 31\], qzeros",
    ),
    (
        V2,
        tensor("fc.scales", lambda s: s[:0]),
        r"fc.scales: expected F16 or BF16 or F32 of two dimensions, got F16 of shape",
    ),
    (V2, tensor("fc.qweight", lambda q: q.view(np.int16)), "fc.qweight: expected I32 of two dimensions, got I16"),
    (V2, tensor("fc.qzeros", lambda z: z.reshape(-1)), "fc.qzeros: expected I32 of two dimensions, got I32 of shape"),
    (V2, tensor("fc.scales", lambda s: s.astype(np.float64)), "fc.scales: expected F16 or BF16 or F32 .* got F64"),
    (V2, tensor("fc.scales", infinite), "fc.weight: expected finite scales, got a NaN or an infinity"),
    # groups
    (
        V2,
        config_of(group_size=128, dynamic=None),
        "groups of 128 columns, as group_size of the config says, got 4 groups of 64",
    ),
    (V2, config_of(group_size=0, dynamic=None), "groups of 0 columns, as group_size of the config says"),
    (V2, config_of(group_size=[[9] * 99], dynamic=None), "groups of .* columns, as group_size of the config says"),
    (
        "gptq/v2-3bit",
        config_of(group_size=48, dynamic={"x": {"group_size": 16}}),
        "expected groups of 48 columns, as the config says, got groups of 32 in g_idx",
    ),
    # versions
    (
        V2,
        config_of(checkpoint_format="marlin"),
        r"expected checkpoint_format gptq or gptq_v2 or gptq_p, got 'marlin' \(export",
    ),
    (V2, config_of(checkpoint_format=7), "expected checkpoint_format gptq or gptq_v2 or gptq_p, got 7"),
    (V2, config_of(is_marlin_format=True), "got 'marlin'"),
    (V2, config_of(dynamic={"+:x": {"checkpoint_format": "gptq"}}), "got 'gptq_v2' or 'gptq'"),
    (
        V2,
        config_of(sym=True),
        r"fc.weight: expected zeros of 8, as the config says \(sym: true\), got \d+ \(with sym: false",
    ),
    (
        "gptq/planes-5bit",
        tensor("fc.qweight", lambda q: q[:-1]),
        "expected codes of 5 bits, as the config says, got 9 words",
    ),
    (
        "gptq/planes-3bit",
        both(tensor("fc.qweight", lambda q: q[:4]), tensor("fc.g_idx", lambda g: g[:42]), config_of(group_size=-1)),
        "whole blocks of 32 codes, 3 words each, in planes, got 4 and 3 words",
    ),
    # AWQ
    ("awq/autoawq", config_of(w_bit=3), r"fc.qweight: expected AWQ of 4 bits, got 3, as the config says"),
    ("awq/transformers", config_of(bits=8), "expected AWQ of 4 bits, got 8, as the config says"),
    ("awq/autoawq", config_of(version="GEMV"), r"expected AWQ of version gemm, got 'GEMV' \(export it as gemm\)"),
    ("awq/transformers", config_of(version="gemv_fast"), "expected AWQ of version gemm, got 'gemv_fast'"),
    ("awq/transformers", config_of(version="marlin"), "expected AWQ of version gemm, got 'marlin'"),
    ("awq/transformers", config_of(version=None, format=3), "expected AWQ of version gemm, got 3"),
    (
        "awq/transformers",
        config_of(group_size=64),
        "groups of 64 columns, as the config says, got 2 groups of 64 columns",
    ),
    ("awq/transformers", tensor("fc.scales", lambda s: s[:, :-8]), r"as AWQ has them, got qweight \[64, 4\], scales"),
    ("awq/transformers", tensor("fc.qzeros", lambda z: z[:1]), r"as AWQ has them, got qweight .* qzeros \[1, 4\]"),
    ("awq/transformers", tensor("fc.scales", infinite), "fc.weight: expected finite scales"),
    (
        "awq/transformers",
        tensor("fc.qweight", lambda q: q.view(np.int16)),
        "fc.qweight: expected I32 of two dimensions",
    ),
    # each other
    (
        "awq/transformers",
        config_of(quant_method="gptq", version=None),
        "as GPTQ has them, .*these are the shapes of AWQ",
    ),
    (V2, config_of(quant_method="awq", checkpoint_format="gemm"), "as AWQ has them, .*these are the shapes of GPTQ"),
]


@pytest.mark.parametrize(("golden", "change", "message"), REFUSED, ids=[f"{i}-{r[0]}" for i, r in enumerate(REFUSED)])
def test_files_that_break_a_rule_or_their_config_are_refused(
    golden: str, change: Change, message: str, tmp_path: Path
) -> None:
    folder = copied(golden, tmp_path, change)
    with pytest.raises(pm.FormatError, match=message) as caught:
        weights_of(folder)
    assert str(folder) in str(caught.value)


def test_what_nothing_says_is_refused(tmp_path: Path) -> None:
    tensors = {
        "fc.qweight": np.zeros((1, 4), np.int32), "fc.qzeros": np.zeros((1, 1), np.int32),
        "fc.scales": np.ones((1, 4), np.float32), "fc.g_idx": np.zeros(8, np.int32),
    }  # fmt: skip
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(pm.FormatError, match="1 for 4 outputs .bits in a config beside the weights would tell"):
        pm.load(tmp_path)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
    assert weights_of(tmp_path).scheme == "int4-asym"


def test_the_tensors_of_marlin_are_refused_by_their_name(tmp_path: Path) -> None:
    change = both(
        without("fc.qweight", "fc.qzeros", "fc.scales", "fc.g_idx"),
        tensor("fc.B", lambda _: np.zeros((4, 64), np.int32)),
        config_of(quant_method="gptq", checkpoint_format="marlin"),
    )
    with pytest.raises(
        pm.FormatError, match="fc.B: expected checkpoint_format gptq or gptq_v2 or gptq_p, got 'marlin'"
    ):
        pm.load(copied(SYMMETRIC, tmp_path, change))


def test_tensors_of_another_method_or_a_part_of_a_module_stay_what_they_are(tmp_path: Path) -> None:
    for change in (without("fc.scales"), config_of(quant_method="hqq")):
        with pm.load(copied(SYMMETRIC, tmp_path, change)) as m:
            assert "fc.weight" not in m
            assert m["fc.qweight"].dtype == np.int32


def test_a_warning_is_a_warning_of_the_format() -> None:
    with warnings.catch_warnings(), pytest.raises(pm.FormatWarning):
        warnings.simplefilter("error")
        weights_of(GOLDEN / "gptq" / "sym-v2-named-v1")
