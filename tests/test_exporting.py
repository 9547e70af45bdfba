"""`export`: files that safetensors, NumPy, SciPy and compressed-tensors read, with the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from safetensors.numpy import load_file

import pumice as pm
from pumice import exporting

GOLDEN = Path(__file__).parent / "golden" / "compressed_tensors"
RNG = np.random.default_rng(6)
SCHEMES = [
    "float32", "float16", "bfloat16", "int8", "int3", "int4-g32", "int4-g32-asym", "int5-g16-min", "csr", "csr+int8",
    "csr+int4", "csr+bfloat16", "bsr-4x4", "bsr-4x4+int4", "bitmask+float16", "bitmask+int4-g16", "2:4", "2:4+int8",
    "int4-g32&csr",
]  # fmt: skip


def pruned(rows: int = 40, cols: int = 64) -> np.ndarray[Any, Any]:
    return pm.prune(RNG.standard_normal((rows, cols)).astype(np.float32), pattern="2:4")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    w = pruned()
    arrays: dict[str, Any] = {f"layer{i}.weight": pm.compress(w, scheme) for i, scheme in enumerate(SCHEMES)}
    arrays |= {
        "bias": RNG.standard_normal(40), "half": np.ones(3, np.float16), "ids": np.arange(5), "flag": np.array(True),
        "turned.weight": pm.compress(w, "int8").T, "conv.weight": pm.compress(w.reshape(40, 4, 4, 4), "int8"),
        "short.weight": pm.compress(w[:, :40], "int4-g32"), "table": pm.compress(w, "int8"),
    }  # fmt: skip
    pm.save(tmp_path / "source", arrays)
    config = {"hidden": 64, "dtype": "float16", "pumice": {"scheme": "x"}, "quantization_config": {"quant_method": "?"}}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    return tmp_path / "source"


def expected(source: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {n: np.asarray(w.to_dense() if isinstance(w, pm.CompactArray) else w) for n, w in pm.load(source).items()}


@pytest.fixture(autouse=True)
def _smallest_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting.base, "CHUNK_BYTES", 1)
    monkeypatch.setattr(exporting.compressed_tensors, "CHUNK_BYTES", 1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dense_is_what_everybody_reads(dtype: str, source: Path, tmp_path: Path) -> None:
    report = pm.export(source, tmp_path / "out", "dense", dtype=dtype)
    kind = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    blob = (tmp_path / "out" / "model.safetensors").read_bytes()
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, w in expected(source).items():
        if header[name]["dtype"] == "BF16":
            got = found[name].view(ml_dtypes.bfloat16).astype(np.float32)
        else:
            got = found[name]
        exact = w.astype(kind).astype(got.dtype) if w.dtype.kind == "f" and w.dtype != np.float64 else w
        np.testing.assert_array_equal(got, exact, err_msg=name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"hidden": 64, "dtype": dtype}
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert report.nbytes_after == sum(w.nbytes for w in found.values())
    assert pm.verify(tmp_path / "out").ok


def test_ct_keeps_codes_and_places_and_decodes_what_has_no_place(source: Path, tmp_path: Path) -> None:
    report = pm.export(source, tmp_path / "out", "ct")
    before, after = pm.load(source), pm.load(tmp_path / "out")
    why = {t.name: t.why for t in report.tensors}
    for name, w in expected(source).items():
        got = after[name]
        np.testing.assert_array_equal(got.to_dense() if isinstance(got, pm.CompactArray) else got, w, err_msg=name)
    schemes = {s: after.info(f"layer{i}.weight").dtype for i, s in enumerate(SCHEMES)}
    assert schemes == {
        "float32": "F32", "float16": "F32", "bfloat16": "F32", "int8": "int8", "int3": "int3", "int4-g32": "int4-g32",
        "int4-g32-asym": "int4-g32-asym", "int5-g16-min": "F32", "csr": "bitmask", "csr+int8": "bitmask+int8",
        "csr+int4": "bitmask+int8", "csr+bfloat16": "bitmask+bfloat16", "bsr-4x4": "bitmask",
        "bsr-4x4+int4": "bitmask+int8", "bitmask+float16": "bitmask+float16", "bitmask+int4-g16": "bitmask+int8-g16",
        "2:4": "bitmask", "2:4+int8": "bitmask+int8", "int4-g32&csr": "F32",
    }  # fmt: skip
    for name in ("layer5.weight", "layer6.weight"):
        for part, array in before[name].parts().items():
            np.testing.assert_array_equal(after[name].parts()[part], array)
    assert why["short.weight"] == "decoded: a short last group"
    assert why["table"] == "decoded: a name that does not end in .weight"
    assert why["turned.weight"] == why["conv.weight"] == "decoded: not a matrix (out_features, in_features)"
    assert why["layer7.weight"] == "decoded: minima"
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    assert config["sparsity_config"]["format"] == "sparse-bitmask"
    groups = config["config_groups"].values()
    assert {g["format"] for g in groups} == {"pack-quantized", "int-quantized"}
    assert ["layer5"] in [g["targets"] for g in groups]
    assert "layer7" in config["ignore"] and "layer5" not in config["ignore"]


def test_ct_of_2_4_weights_alone_is_sparse_24_bitmask(tmp_path: Path) -> None:
    w = pruned()
    w[3, :8] = 0
    pm.save(
        tmp_path / "a.safetensors", {"a.weight": pm.compress(w, "2:4+float16"), "b.weight": pm.compress(w, "2:4+int4")}
    )
    pm.export(tmp_path / "a.safetensors", tmp_path / "out", "ct")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["a.shape"].tolist() == [[40], [64]]
    assert found["a.compressed"].shape == (40, 32) and found["b.compressed"].dtype == np.int8
    m = pm.load(tmp_path / "out")
    assert (m["a.weight"].scheme, m["b.weight"].scheme) == ("2:4+float16", "2:4+int8")
    for name, array in pm.load(tmp_path / "a.safetensors").items():
        np.testing.assert_array_equal(m[name].to_dense(), array.to_dense())


def test_ct_in_a_folder_has_a_config_even_where_the_source_has_none(tmp_path: Path) -> None:
    pm.save(tmp_path / "a.safetensors", {"fc.weight": pm.compress(pruned(4, 4), "int8")})  # one word: int4 or int8?
    pm.export(tmp_path / "a.safetensors", tmp_path / "out", "ct")
    pm.export(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "ct")
    assert pm.load(tmp_path / "out")["fc.weight"].scheme == "int8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "out"]


@pytest.mark.parametrize("case", ["sparse-float32", "sparse-bfloat16", "sparse-24-float16", "sparse-24-bfloat16"])
def test_sparse_weights_get_the_bytes_that_compressed_tensors_wrote(case: str, tmp_path: Path) -> None:
    pm.save(tmp_path / "a.safetensors", {"fc.weight": pm.load(GOLDEN / case)["fc.weight"]})
    pm.export(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "ct")
    golden, ours = pm.load(GOLDEN / case), pm.load(tmp_path / "b.safetensors")
    names = ["fc.shape", "fc.bitmask", "fc.compressed"] + (["fc.row_offsets"] if "-24-" not in case else [])
    for name in names:
        assert bytes(ours.raw(name)) == bytes(golden.raw(name)), name


@pytest.mark.parametrize("case", ["pack-4-group-asym", "pack-3-group-asym", "pack-8-channel"])
def test_dense_integers_get_the_bytes_that_compressed_tensors_wrote(case: str, tmp_path: Path) -> None:
    pm.export(GOLDEN / case, tmp_path / "b.safetensors", "ct")
    golden, ours = load_file(GOLDEN / case / "model.safetensors"), load_file(tmp_path / "b.safetensors")
    for name in ("fc.weight_packed", "fc.weight_shape", "fc.weight_zero_point"):
        assert (name in golden) == (name in ours)
        np.testing.assert_array_equal(golden.get(name), ours.get(name))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_npz_is_what_numpy_reads(dtype: str, source: Path, tmp_path: Path) -> None:
    pm.export(source, tmp_path / "out.npz", "npz", dtype=dtype)
    found = np.load(tmp_path / "out.npz", allow_pickle=False)
    arrays = expected(source)
    assert set(found) == arrays.keys()
    for name, w in arrays.items():
        narrow = w.dtype.kind == "f" and w.dtype != np.float64
        np.testing.assert_array_equal(found[name], w.astype(dtype) if narrow else w, err_msg=name)
        assert found[name].dtype == (dtype if narrow else w.dtype)


def test_npz_in_a_folder_is_what_scipy_reads(source: Path, tmp_path: Path) -> None:
    pm.export(source, tmp_path / "out", "npz")
    arrays = expected(source)
    rest = np.load(tmp_path / "out" / "dense.npz")
    names = {path.stem for path in (tmp_path / "out").iterdir()} - {"dense"}
    assert names == {f"layer{i}.weight" for i, s in enumerate(SCHEMES) if s.startswith(("csr", "bsr"))}
    assert names | set(rest) == arrays.keys()
    for name in names:
        matrix = scipy.sparse.load_npz(tmp_path / "out" / f"{name}.npz")
        assert matrix.format == SCHEMES[int(name[5:-7])][:3]
        np.testing.assert_array_equal(matrix.toarray(), arrays[name])


def test_the_same_arrays_make_the_same_archive(source: Path, tmp_path: Path) -> None:
    pm.export(source, tmp_path / "a.npz", "npz")
    pm.export(source, tmp_path / "b.npz", "npz", io="read")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize(("format", "name"), [("dense", "out"), ("ct", "out"), ("npz", "out"), ("npz", "out.npz")])
def test_what_is_there_is_replaced_only_when_asked_to(format: str, name: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / name
    pm.export(source, target, format)
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="target: expected a new path or an empty folder unless overwrite=True"):
        pm.export(source, target, format)
    pm.export(source, target, format, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize(("format", "name"), [("dense", "out"), ("ct", "out"), ("npz", "out"), ("npz", "out.npz")])
def test_a_failure_leaves_nothing(format: str, name: str, tmp_path: Path) -> None:
    w = pm.compress(np.full((4, 32), 1e30, np.float32), "int8")
    pm.save(tmp_path / "a.safetensors", {"good.weight": pm.compress(pruned(), "csr"), "other": w})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(pm.NonFiniteError, match=r"other: expected values within float16 \(65504\), got 1"):
        pm.export(tmp_path / "a.safetensors", tmp_path / name, format, dtype="float16")
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_done_is_said(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format: expected one of 'dense', 'ct', 'npz'|format: expected"):
        pm.export(source, tmp_path / "x", "onnx")
    with pytest.raises(ValueError, match="dtype: expected"):
        pm.export(source, tmp_path / "x", "dense", dtype="int8")
    with pytest.raises(ValueError, match="dtype: expected float32 or float16, which NumPy has, got 'bfloat16'"):
        pm.export(source, tmp_path / "x", "npz", dtype="bfloat16")
    for target in (source, source / "model.safetensors"):
        with pytest.raises(ValueError, match="target: expected another"):
            pm.export(source, target, "dense", overwrite=True)
    pm.save(tmp_path / "s.safetensors", {n: pm.compress(pruned(), "csr") for n in ("a/b.weight", "a_b.weight")})
    with pytest.raises(ValueError, match="names: expected those that make different files"):
        pm.export(tmp_path / "s.safetensors", tmp_path / "x", "npz")
    assert not (tmp_path / "x").exists()


def test_infinities_and_nans_of_plain_tensors_stay(tmp_path: Path) -> None:
    mask = np.array([0, -np.inf, np.nan], np.float32)
    pm.save(tmp_path / "a.safetensors", {"mask": mask})
    pm.export(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "dense", dtype="bfloat16")
    np.testing.assert_array_equal(pm.load(tmp_path / "b.safetensors")["mask"], mask)


@pytest.mark.parametrize(("format", "name"), [("dense", "b.safetensors"), ("npz", "b.npz")])
def test_memory_stays_near_a_chunk(format: str, name: str, tmp_path: Path) -> None:
    script = f"""
import resource, sys
import numpy as np, pumice as pm
from pumice import exporting
exporting.base.CHUNK_BYTES = 2 << 20
path = sys.argv[1]
w = pm.compress(np.random.default_rng(0).standard_normal((512, 1024), np.float32), "int4-g128")
pm.save(path + "/a.safetensors", {{"big": pm.concatenate([w] * 32)}})  # 67 MB as float32
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pm.export(path + "/a.safetensors", path + "/{name}", "{format}")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert (tmp_path / name).stat().st_size > 67_000_000
    assert int(done.stdout) < 32 << 10  # KiB: the mapped source, 9 MB, and some chunks
