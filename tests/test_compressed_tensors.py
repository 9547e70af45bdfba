"""Checkpoints of compressed-tensors: read as the package itself reads them, or refused with the reason.

tests/golden/make_compressed_tensors.py made the golden files with the package, 0.20 and 0.12.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import pumice as pm
from pumice.checkpoint import open_reader
from tests.fuzz.mutations import change, joined

Change: TypeAlias = Callable[[dict[str, Any], dict[str, Any]], None]
GOLDEN = Path(__file__).parent / "golden" / "compressed_tensors"
CASES = sorted(path.name for path in GOLDEN.iterdir())
SCHEMES = {
    "float-block": "float8-g32", "float-channel": "float8", "float-group": "float8-g32", "float-tensor": "float8",
    "int-block": "int8-g32", "int-channel": "int8", "int-group-asym": "int8-g32-asym", "int-tensor-asym": "int8-asym",
    "naive-4-channel": "int4",
    "old-pack-3-group-asym": "int3-g32-asym", "old-pack-3-narrow": "int3",
    "old-pack-4-act-order": "int4-g32", "old-pack-4-group": "int4-g32",
    "old-pack-5-channel-asym": "int5-asym", "old-pack-6-group": "int6-g32", "old-pack-7-channel-asym": "int8-asym",
    "pack-1-channel": "int2", "pack-2-group": "int2-g16", "pack-3-group-asym": "int3-g32-asym", "pack-3-narrow": "int3",
    "pack-4-channel-asym": "int4-asym", "pack-4-group": "int4-g32", "pack-4-group-8": "F32",
    "pack-4-group-96": "int4-g32", "pack-4-group-asym": "int4-g32-asym", "pack-4-stack": "int4-g32",
    "pack-4-tensor": "int4", "pack-5-channel-asym": "int5-asym", "pack-6-group": "int6-g32",
    "pack-7-channel-asym": "int8-asym", "pack-8-channel": "int8",
    "sparse-24-bfloat16": "2:4+bfloat16", "sparse-24-float16": "2:4+float16", "sparse-24-float8": "F32",
    "sparse-24-int": "2:4+int8", "sparse-24-int-group": "2:4+int8-g32", "sparse-24-int-tensor": "2:4+int8",
    "sparse-bfloat16": "bitmask+bfloat16", "sparse-float32": "bitmask", "sparse-float8": "F32",
    "sparse-int": "bitmask+int8", "sparse-int-asym": "int8-asym",
}  # fmt: skip


def dense(w: Any) -> np.ndarray[Any, Any]:
    return w.to_dense() if isinstance(w, pm.CompactArray) else w


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_the_package(case: str) -> None:
    with pm.load(GOLDEN / case) as m:
        assert set(m) == {"fc.weight", "stored", "exact"}
        w, info = m["fc.weight"], m.info("fc.weight")
        np.testing.assert_array_equal(dense(w), m["exact"])
        # The package multiplies in the dtype of its scales: one rounding of what we compute exactly.
        kind = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}[m.info("stored").dtype]
        np.testing.assert_array_equal(dense(w).astype(kind), m["stored"].astype(kind))
        assert info.dtype == SCHEMES[case] == (w.scheme if isinstance(w, pm.CompactArray) else "F32")
        assert info.shape == w.shape
        stored = load_file_sizes(GOLDEN / case)
        assert info.nbytes == sum(size for name, size in stored.items() if name.startswith("fc."))
        assert m.verify().ok


def load_file_sizes(folder: Path) -> dict[str, int]:
    blob = (folder / "model.safetensors").read_bytes()
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    return {n: e["data_offsets"][1] - e["data_offsets"][0] for n, e in header.items() if n != "__metadata__"}


def test_every_golden_file_is_tested() -> None:
    assert set(CASES) == SCHEMES.keys()


@pytest.mark.parametrize("case", ["pack-4-group-asym", "int-block", "float-group", "sparse-24-int", "pack-4-stack"])
def test_rows_are_those_of_the_whole(case: str) -> None:
    with open_reader(GOLDEN / case) as reader:
        whole = dense(reader.array("fc.weight"))
        rows = [reader.rows("fc.weight", i, min(i + 2, len(whole))) for i in range(0, len(whole), 2)]
        np.testing.assert_array_equal(np.concatenate(rows), whole)


def test_an_order_of_groups_that_nobody_has_made_is_none(tmp_path: Path) -> None:
    folder = changed("pack-4-group", tmp_path, tensor("fc.weight_g_idx", lambda _: np.full(96, -1, np.int32)))
    w = pm.load(folder)["fc.weight"]
    assert isinstance(w, pm.DenseArray)
    np.testing.assert_array_equal(w.to_dense(), pm.load(GOLDEN / "pack-4-group")["exact"])


def test_packed_codes_are_views_of_the_file() -> None:
    w = pm.load(GOLDEN / "pack-4-group-asym", prepack="never")["fc.weight"]
    assert w.resident_nbytes < w.nbytes / 2  # codes stay in the file; zero points are unpacked


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.startswith(("pack-4", "pack-8", "int-", "sparse-")) and c != "int-block"]
)
def test_without_a_config_the_shapes_tell(case: str) -> None:
    blob = (GOLDEN / case / "model.safetensors").read_bytes()
    m, golden = pm.load(blob), pm.load(GOLDEN / case)
    np.testing.assert_array_equal(dense(m["fc.weight"]), golden["exact"])


def changed(case: str, folder: Path, change: Change) -> Path:
    """A golden file with changed tensors or config."""
    blob = (GOLDEN / case / "model.safetensors").read_bytes()
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    bf16 = {name for name, entry in header.items() if entry.get("dtype") == "BF16"}
    assert not {entry.get("dtype") for entry in header.values()} & {"F8_E4M3"}
    tensors: dict[str, Any] = {}
    for name, value in load_file(GOLDEN / case / "model.safetensors").items():
        tensors[name] = value.view(ml_dtypes.bfloat16) if name in bf16 else value
    config = json.loads((GOLDEN / case / "config.json").read_text())
    change(tensors, config["quantization_config"])
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tensor(name: str, make: Callable[[Any], Any]) -> Change:
    return lambda tensors, config: tensors.update({name: make(tensors.get(name))})


def without(name: str) -> Change:
    return lambda tensors, config: tensors.__delitem__(name)


def weights(**settings: Any) -> Change:
    return lambda tensors, config: config["config_groups"]["group_0"]["weights"].update(settings)


def config_of(**settings: Any) -> Change:
    return lambda tensors, config: config.update(settings)


def infinite(scale: Any) -> Any:
    scale = scale.copy()
    scale[0] = np.inf
    return scale


def flipped(bits: Any) -> Any:
    bits = bits.copy()
    bits[0, 0] ^= 1
    return bits


ORDERED = "old-pack-4-act-order"
PACKED, SPARSE = "pack-4-group", "sparse-float32"
REFUSED: list[tuple[str, Change, str]] = [
    (
        PACKED,
        tensor("fc.weight_packed", lambda w: w[:, :-1]),
        r"expected 12 words a row of 96 columns in 4 bits, got 11 words \(config.json says 4 bits, groups of 32",
    ),
    (
        "pack-3-group-asym",
        tensor("fc.weight_packed", lambda w: w[:, :-1]),
        r"expected 6 words .* in 3 bits \(or 7, before version 0.18\), got 5 words",
    ),
    (
        PACKED,
        weights(num_bits=8),
        r"24 words .* in 8 bits, got 12 words \(config.json says 8 bits, groups of 32, symm",
    ),
    (
        PACKED,
        weights(group_size=64),
        r"expected scales of shape \(7, 2\) for 7 rows .*, got \(7, 3\) \(config.json says 4 bits, groups of 64",
    ),
    (PACKED, tensor("fc.weight_scale", lambda s: s[:6]), r"expected scales of shape \(7, 3\) .*, got \(6, 3\)"),
    (PACKED, tensor("fc.weight_scale", lambda s: s.astype(np.float64)), r"expected scales of F32, F16, BF16, got F64"),
    (PACKED, tensor("fc.weight_scale", infinite), "fc.weight: expected finite scales"),
    (PACKED, weights(symmetric=False), "expected weight_zero_point for asymmetric weights, got none"),
    ("pack-4-group-asym", weights(symmetric=True), "expected no zero points, or 0, as config.json says symmetric"),
    (
        "pack-4-group-asym",
        tensor("fc.weight_zero_point", lambda z: z[:, :-1]),
        r"zero points packed in I32 of shape \(1, 3\)",
    ),
    (PACKED, without("fc.weight_shape"), "expected weight_shape beside weight_packed, got none"),
    (PACKED, without("fc.weight_scale"), "expected weight_scale beside weight_packed, got none"),
    (PACKED, tensor("fc.weight_shape", lambda s: s.astype(np.float32)), "weight_shape: expected two or three integers"),
    (
        PACKED,
        tensor("fc.weight_shape", lambda s: np.array([8, 96])),
        r"weight_packed: expected the rows of weight_shape \(8, 96\)",
    ),
    (PACKED, tensor("fc.weight_shape", lambda s: np.array([7, 1 << 40])), "words a row of 1099511627776 columns"),
    (PACKED, tensor("fc.weight_shape", lambda s: np.array([7, -96])), "expected a weight that is not empty"),
    (PACKED, tensor("fc.weight_packed", lambda w: w.view(np.uint8)), "got U8: mxfp4-pack-quantized"),
    (
        PACKED,
        tensor("fc.scale_packed", lambda _: np.zeros(3, np.float16)),
        "expected a format with a decoder, got marlin-24",
    ),
    (ORDERED, tensor("fc.weight_g_idx", lambda g: g[:-1]), r"a group for each column of a packed matrix, got I32 of"),
    (ORDERED, tensor("fc.weight_g_idx", lambda g: g + 1), "fc.weight: expected groups from 0 to 2, got 3"),
    (ORDERED, tensor("fc.weight_g_idx", lambda g: g * 0), "as many columns in each group"),
    (
        "int-channel",
        tensor("fc.weight_g_idx", lambda _: np.zeros(3, np.int32)),
        "a group for each column of a packed matrix",
    ),
    (PACKED, config_of(format="marlin-24"), r"config.json: expected a format of dense, .*, got 'marlin-24'"),
    (PACKED, config_of(format="pack-quantised"), "got 'pack-quantised'"),
    (PACKED, config_of(sparsity_config={"format": "marlin-24"}), "got 'marlin-24'"),
    (PACKED, weights(num_bits=9), "expected num_bits of 1 to 8, got 9"),
    (PACKED, weights(num_bits=True), "expected num_bits of 1 to 8, got True"),
    (PACKED, weights(symmetric=1), "expected symmetric true or false, got 1"),
    (
        PACKED,
        weights(strategy="tensor_group"),
        "expected a strategy of tensor, channel, group, block, got 'tensor_group'",
    ),
    (PACKED, weights(group_size=0), "expected a group_size above 0, got 0"),
    ("int-block", weights(block_structure=[4]), r"expected a block_structure of two sizes, got \[4\]"),
    (
        "int-block",
        weights(block_structure=[2, 32]),
        r"expected scales of shape \(4, 3\) for 7 rows and 80 columns, got \(2, 3\)",
    ),
    (PACKED, config_of(config_groups={"a": {"weights": 7}}), "expected weights with their settings, got 7"),
    (PACKED, config_of(config_groups=[1]), "expected config_groups"),
    ("naive-4-channel", tensor("fc.weight", lambda w: w * 16), r"expected codes from -8 to 7, of 4 bits, got -128"),
    (
        "int-group-asym",
        tensor("fc.weight_zero_point", lambda z: z[:, :-1]),
        r"I8 of shape \(7, 3\), got I8 of shape \(7, 2\)",
    ),
    ("int-channel", tensor("fc.weight", lambda w: w.reshape(-1)), "expected a matrix that is not empty"),
    (
        SPARSE,
        tensor("fc.compressed", lambda v: v[:-1]),
        r"expected 9\d values, as many as bits, got compressed of shape",
    ),
    (SPARSE, tensor("fc.bitmask", flipped), "values, as many as bits"),
    (
        SPARSE,
        tensor("fc.row_offsets", lambda o: o + (np.arange(7) == 2)),
        "row_offsets that count the bits: .* for row 2, got",
    ),
    (SPARSE, tensor("fc.row_offsets", lambda o: o[:-1]), "expected 7 row_offsets, got 6"),
    (SPARSE, tensor("fc.bitmask", lambda b: b | np.uint8(0x80)), "no bits beyond 37 columns"),
    (SPARSE, tensor("fc.bitmask", lambda b: b[:, :-1]), r"expected bitmask U8 of shape \(7, 5\)"),
    (SPARSE, tensor("fc.shape", lambda s: np.array([1 << 40, 0])), "bitmask U8 of shape"),
    (SPARSE, tensor("fc.compressed", lambda v: v.astype(np.float64)), "values of F32, F16, BF16, I8 or F8, got F64"),
    ("sparse-24-float16", tensor("fc.compressed", lambda v: v[:, :-1]), r"compressed of shape \(7, 22\) or flat"),
    (
        "sparse-24-float16",
        tensor("fc.bitmask", lambda b: np.roll(b, 1, axis=1)),
        "beyond 44 columns|2 bits in every 4 columns",
    ),
    ("sparse-int", without("fc.weight_scale"), "expected weight_scale beside I8, got none"),
    ("sparse-int", tensor("fc.weight_scale", infinite), "finite scales"),
    ("sparse-int-asym", tensor("fc.weight_zero_point", lambda z: z[:-1]), "zero points I8 of the scales' shape"),
]


@pytest.mark.parametrize(("case", "change", "message"), REFUSED, ids=[f"{i}-{r[0]}" for i, r in enumerate(REFUSED)])
def test_files_that_break_a_rule_or_their_config_are_refused(
    case: str, change: Change, message: str, tmp_path: Path
) -> None:
    folder = changed(case, tmp_path, change)
    with pytest.raises(pm.FormatError, match=message) as caught:
        pm.load(folder)["fc.weight"]
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("case", ["pack-4-group-asym", "int-block", "float-channel", "sparse-24-int"])
def test_a_config_that_changes_at_random_is_refused_or_fits(case: str, tmp_path: Path) -> None:
    rng = random.Random(case)
    (tmp_path / "model.safetensors").write_bytes((GOLDEN / case / "model.safetensors").read_bytes())
    config = (GOLDEN / case / "config.json").read_text()
    for _ in range(150):
        table = json.loads(config)
        for _ in range(rng.choice((1, 1, 2, 4))):
            change(rng, table)
        (tmp_path / "config.json").write_text(json.dumps(table))
        try:
            w = pm.load(tmp_path)["fc.weight"]
        except pm.FormatError:
            continue
        assert w.shape == pm.load(GOLDEN / case)["exact"].shape


def test_numbers_of_a_config_that_nobody_asks_for_may_be_any(tmp_path: Path) -> None:
    folder = changed("pack-4-group", tmp_path, lambda tensors, config: None)
    table = json.loads((folder / "config.json").read_text()) | {"model_max_length": 10**30, "eps": float("inf")}
    (folder / "config.json").write_text(json.dumps(table))
    assert pm.load(folder)["fc.weight"].scheme == "int4-g32"
    (folder / "config.json").write_text('{"model_max_length": ' + "9" * 1001 + "}")
    with pytest.raises(pm.FormatError, match="expected integers below"):
        pm.load(folder)


@pytest.mark.parametrize(("text", "message"), [("{", "expected JSON"), ("[1]", "expected a JSON object, got list")])
def test_a_broken_config_is_named_where_it_is_needed(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    save_file({"a": np.zeros(3)}, tmp_path / "model.safetensors")
    assert set(pm.load(tmp_path)) == {"a"}
    (tmp_path / "model.safetensors").write_bytes((GOLDEN / "pack-4-group" / "model.safetensors").read_bytes())
    with pytest.raises(pm.FormatError, match=f"config.json: {message}"):
        pm.load(tmp_path)


@pytest.mark.parametrize("case", ["pack-4-group-8", "pack-4-tensor"])
def test_what_is_beyond_float32_is_infinite_and_no_event(case: str, tmp_path: Path) -> None:
    folder = changed(case, tmp_path, tensor("fc.weight_scale", lambda s: np.full_like(s, 1e38)))
    assert np.isinf(dense(pm.load(folder)["fc.weight"])).any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "scale"), [("F8_E4M3", 3e38), ("F8_E5M2", 0.0)])
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_infinities_and_nans_of_float8_are_values_and_no_event(kind: str, scale: float, form: str) -> None:
    code, scales = 0x7E if kind == "F8_E4M3" else 0x7C, np.full((2, 1 if form == "sparse" else 3), scale, np.float32)
    parts = {"fc.weight": (kind, np.full((2, 24), code, np.uint8)), "fc.weight_scale": ("F32", scales)}
    if form == "sparse":
        parts["fc.compressed"] = kind, np.full(48, code, np.uint8)
        parts["fc.bitmask"], parts["fc.shape"] = ("U8", np.full((2, 3), 255, np.uint8)), ("I64", np.array([2, 24]))
        del parts["fc.weight"]
    header, data = {}, b""
    for name, (dtype, array) in parts.items():
        span = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        data += array.tobytes()
    w = dense(pm.load(joined(header, data))["fc.weight"])
    assert (np.isinf(w) if scale else np.isnan(w)).all()


def test_what_may_be_two_things_is_refused_without_a_config(tmp_path: Path) -> None:
    tensors = {
        "fc.weight_packed": np.zeros((3, 1), np.int32),
        "fc.weight_scale": np.ones((3, 1), np.float32),
        "fc.weight_shape": np.array([3, 4]),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(pm.FormatError, match="expected a config.json that says how it is quantized, got what may be"):
        pm.load(tmp_path)
    group = {"weights": {"num_bits": 4, "strategy": "channel"}}
    config = {"quant_method": "compressed-tensors", "config_groups": {"a": group}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    assert pm.load(tmp_path)["fc.weight"].scheme == "int4"


def test_of_several_config_groups_the_one_that_fits_is_used(tmp_path: Path) -> None:
    other = {"weights": {"num_bits": 8, "strategy": "channel"}, "targets": ["re:(a+)+$"]}  # never run
    folder = changed("pack-4-group", tmp_path, lambda _, c: c["config_groups"].update(other=other))
    assert pm.load(folder)["fc.weight"].scheme == "int4-g32"
    folder = changed("pack-2-group", tmp_path, lambda _, c: c.update(config_groups={"a": other, "b": other | {"x": 1}}))
    with pytest.raises(pm.FormatError, match="8 bits, a scale per channel, symmetric"):
        pm.load(folder)


def test_the_version_tells_packings_apart_where_words_do_not(tmp_path: Path) -> None:
    new = changed("pack-3-narrow", tmp_path, lambda _, c: c.pop("version") and None)
    assert np.array_equal(pm.load(new)["fc.weight"].to_dense(), pm.load(GOLDEN / "pack-3-narrow")["exact"])
    assert pm.load(GOLDEN / "old-pack-3-narrow").info("fc.weight").nbytes == pm.load(new).info("fc.weight").nbytes


def test_zero_points_of_symmetric_weights_are_read_where_they_are_0(tmp_path: Path) -> None:
    def add(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        tensors["fc.weight_zero_point"] = np.zeros((7, 1), np.int8)

    folder = changed("int-channel", tmp_path, add)
    assert pm.load(folder)["fc.weight"].scheme == "int8"


def test_bytes_of_other_shapes_stay_tensors_where_no_config_speaks_of_them(tmp_path: Path) -> None:
    tensors = {"conv.weight": np.ones((4, 3, 3), np.int8), "conv.weight_scale": np.ones((4, 1), np.float32)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert set(pm.load(tmp_path)) == set(tensors)


def test_a_file_of_ours_says_itself_what_its_tensors_are(tmp_path: Path) -> None:
    arrays = {"fc.weight": np.ones((4, 4), np.int8), "fc.weight_scale": np.ones((4, 1), np.float32)}
    pm.save(tmp_path / "m.safetensors", arrays)
    m = pm.load(tmp_path / "m.safetensors")
    assert set(m) == set(arrays)
    np.testing.assert_array_equal(m["fc.weight"], arrays["fc.weight"])


@pytest.mark.parametrize("case", ["pack-4-group", "sparse-24-int-group", "int-block", "pack-4-group-8"])
def test_converting_keeps_the_codes(case: str, tmp_path: Path) -> None:
    report = pm.convert(GOLDEN / case, tmp_path / "out", "int8", ignore=["stored", "exact"], allow_requantize=False)
    m = pm.load(tmp_path / "out")
    if case == "pack-4-group-8":  # no scheme has its groups: it is plain float32, and gets the scheme
        assert m["fc.weight"].scheme == "int8"
        return
    assert m["fc.weight"].scheme == SCHEMES[case]
    np.testing.assert_array_equal(m["fc.weight"].to_dense(), pm.load(GOLDEN / case)["exact"])
    assert next(t for t in report.tensors if t.name == "fc.weight").why == f"kept: already {SCHEMES[case]}"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    group = config.get("quantization_config", {}).get("config_groups", {}).get("group_0", {}).get("weights", {})
    assert group.get("num_bits") == {"pack-4-group": 4}.get(case)  # int-block: a short last group


def test_what_no_scheme_has_is_copied_as_float32(tmp_path: Path) -> None:
    pm.convert(GOLDEN / "pack-4-group-8", tmp_path / "out", "int8", ignore=["."])
    m = pm.load(tmp_path / "out")
    np.testing.assert_array_equal(m["fc.weight"], pm.load(GOLDEN / "pack-4-group-8")["exact"])


@pytest.mark.parametrize("case", ["pack-4-group-asym", "sparse-24-int", "int-channel"])
def test_what_is_read_can_be_saved(case: str, tmp_path: Path) -> None:
    w = pm.load(GOLDEN / case)["fc.weight"]
    pm.save(tmp_path / "m.safetensors", {"fc.weight": w})
    again = pm.load(tmp_path / "m.safetensors")["fc.weight"]
    for part, array in w.parts().items():
        np.testing.assert_array_equal(again.parts()[part], array)
