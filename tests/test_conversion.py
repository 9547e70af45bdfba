"""`convert`: the same arrays as compressing whole tensors, in bounded memory, and a target that is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import pumice as pm
from pumice.conversion import plan

RNG = np.random.default_rng(3)
SCHEMES = [
    "float32", "float16", "bfloat16", "int8", "int4", "int4-g32", "int4-g32-asym", "int8-asym",
    "int5-g16-min", "int8-min", "csr", "csr+int8", "bsr-4x4", "bsr-3x5+int8", "bsr-48x1",
]  # fmt: skip


def state() -> dict[str, np.ndarray]:
    sparse = RNG.standard_normal((200, 96)).astype(np.float32)
    sparse[RNG.random(sparse.shape) < 0.8] = 0
    return {
        "a.weight": sparse,
        "conv.weight": RNG.standard_normal((70, 4, 3, 3)).astype(np.float16),
        "a.bias": RNG.standard_normal(200),
        "ids": np.arange(7),
        "flag": np.array(True),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    pm.save(path, state())
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
def test_row_chunks_give_what_whole_tensors_give(
    scheme: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)  # the smallest chunks there are
    target = tmp_path / "target.safetensors"
    report = pm.convert(source, target, scheme)
    before, after = pm.load(source), pm.load(target)
    assert pm.verify(target).ok
    for name in ("a.weight", "conv.weight"):
        whole = pm.compress(before[name], scheme)
        assert after[name].scheme == scheme
        assert after[name].shape == before[name].shape
        for part, array in whole.parts().items():
            np.testing.assert_array_equal(after[name].parts()[part], array, err_msg=f"{name} {part}")
        entry = next(t for t in report.tensors if t.name == name)
        w = np.asarray(before[name], np.float64)
        error = np.linalg.norm(w - whole.to_dense()) / np.linalg.norm(w)
        assert entry.error == pytest.approx(error, rel=1e-5, abs=1e-9)
        assert entry.nbytes_after == whole.nbytes
    for name in ("a.bias", "ids", "flag"):
        assert bytes(after.raw(name)) == bytes(before.raw(name))


def test_the_chunk_size_does_not_change_a_byte(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for size in (1, 1 << 11, 5000, 1 << 14, 1 << 30):
        monkeypatch.setattr(plan, "CHUNK_BYTES", size)
        target = tmp_path / f"{size}.safetensors"
        pm.convert(source, target, "int4-g32-asym")
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_late_chunk_that_needs_float32_scales_widens_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    w = RNG.standard_normal((96, 32)).astype(np.float32)
    w[90] *= 1e-9  # its float16 scale would be subnormal
    pm.save(tmp_path / "a.safetensors", {"x.weight": w, "y.weight": w[:32]})
    pm.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "int4-g16")
    after = pm.load(tmp_path / "b.safetensors")
    assert after["x.weight"].parts()["scale"].dtype == np.float32
    assert after["y.weight"].parts()["scale"].dtype == np.float16
    np.testing.assert_array_equal(after["x.weight"].to_dense(), pm.compress(w, "int4-g16").to_dense())


def test_in_axis_0_stores_the_transpose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    kernel = RNG.standard_normal((48, 100)).astype(np.float32)
    pm.save(tmp_path / "a.safetensors", {"dense/kernel": kernel})
    recipe = pm.Recipe.parse('[[rule]]\nmatch = "kernel"\nscheme = "int8"\nin_axis = 0')
    pm.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", recipe=recipe)
    c = pm.load(tmp_path / "b.safetensors")["dense/kernel"]
    x = RNG.standard_normal((3, 48)).astype(np.float32)
    assert c.shape == (48, 100)
    np.testing.assert_array_equal(x @ c, x @ pm.compress(kernel, "int8", in_axis=0))


def test_what_is_quantized_keeps_its_codes_unless_told_otherwise(source: Path, tmp_path: Path) -> None:
    eight, kept, four, again = (tmp_path / f"{n}.safetensors" for n in ("eight", "kept", "four", "again"))
    pm.convert(source, eight, "int8")
    tensors = ("a.weight_packed", "a.weight_scale")
    report = pm.convert(eight, kept, "int4-g32")
    assert next(t for t in report.tensors if t.name == "a.weight").why == "kept: already int8"
    assert all(bytes(pm.load(eight).raw(n)) == bytes(pm.load(kept).raw(n)) for n in tensors)
    assert pm.load(kept).info("a.weight").notes == pm.load(eight).info("a.weight").notes
    pm.convert(eight, four, "int4-g32", allow_requantize=True)
    expected = pm.compress(pm.load(eight)["a.weight"].to_dense(), "int4-g32")
    np.testing.assert_array_equal(pm.load(four)["a.weight"].to_dense(), expected.to_dense())
    pm.convert(eight, again, "int8", allow_requantize=True)
    assert all(bytes(pm.load(eight).raw(n)) == bytes(pm.load(again).raw(n)) for n in tensors)


def test_compact_floats_are_not_quantized_and_get_the_scheme(source: Path, tmp_path: Path) -> None:
    pm.convert(source, tmp_path / "csr.safetensors", "csr")
    pm.convert(tmp_path / "csr.safetensors", tmp_path / "int8.safetensors", "int8")
    pm.convert(source, tmp_path / "direct.safetensors", "int8")
    arrays = (pm.load(tmp_path / f"{name}.safetensors")["a.weight"] for name in ("int8", "direct"))
    np.testing.assert_array_equal(*(array.to_dense() for array in arrays))


def test_a_recipe_may_allow_to_requantize(source: Path, tmp_path: Path) -> None:
    pm.convert(source, tmp_path / "eight.safetensors", "int8")
    recipe = pm.Recipe.parse('scheme = "int4-g32"\nallow_requantize = true')
    pm.convert(tmp_path / "eight.safetensors", tmp_path / "four.safetensors", recipe=recipe)
    assert pm.load(tmp_path / "four.safetensors")["a.weight"].scheme == "int4-g32"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("x")
    pm.save(folder / "model.safetensors", {"fc.weight": RNG.standard_normal((64, 64)).astype(np.float32)})
    (folder / "config.json").write_text(json.dumps({"hidden": 64}))
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    return folder


def test_the_other_files_of_a_folder_come_along(folder: Path, tmp_path: Path) -> None:
    report = pm.convert(folder, tmp_path / "small", "int4-g32")
    found = sorted(str(p.relative_to(tmp_path / "small")) for p in (tmp_path / "small").rglob("*") if p.is_file())
    assert found == ["1_Pooling/config.json", "config.json", "model.safetensors", "vocab.txt"]
    assert report.copied == ("1_Pooling/config.json", "config.json", "vocab.txt")
    assert report.skipped == ("pytorch_model.bin",)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["hidden"] == 64
    assert config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] == 4


@pytest.mark.parametrize("scheme", ["csr", "int4-g32-min"])
def test_config_json_claims_no_other_format_that_cannot_hold_it(scheme: str, folder: Path, tmp_path: Path) -> None:
    pm.convert(folder, tmp_path / "small", scheme)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config == {"hidden": 64, "pumice": {"scheme": scheme}}


def test_shards_are_written_and_read(folder: Path, tmp_path: Path) -> None:
    many = {f"l{i}.weight": RNG.standard_normal((32, 64)).astype(np.float32) for i in range(5)}
    pm.save(tmp_path / "sharded", many, max_shard_size=20_000)
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    pm.convert(tmp_path / "sharded", tmp_path / "out", "int8", max_shard_size=5_000)
    assert pm.verify(tmp_path / "out").ok
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert sorted(pm.load(tmp_path / "out")) == sorted(many)


def test_a_dry_run_knows_the_sizes_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    for scheme in ("int4-g32", "int8-asym", "float16"):
        forecast = pm.convert(source, tmp_path / "t.safetensors", scheme, dry_run=True)
        assert set(tmp_path.iterdir()) == before
        done = pm.convert(source, tmp_path / "t.safetensors", scheme)
        assert [t.nbytes_after for t in forecast.tensors] == [t.nbytes_after for t in done.tensors]
        (tmp_path / "t.safetensors").unlink()
    assert pm.convert(source, tmp_path / "t.safetensors", "csr", dry_run=True).nbytes_after is None


def test_a_failure_leaves_the_old_target_and_nothing_else(source: Path, tmp_path: Path) -> None:
    w = np.ones((64, 32), np.float32)
    w[40, 3] = np.inf
    bad = tmp_path / "bad.safetensors"
    pm.save(bad, {"first.weight": np.ones((8, 8), np.float32), "fc.weight": w})
    target = tmp_path / "t.safetensors"
    pm.convert(source, target, "int8")
    digest, files = target.read_bytes(), sorted(tmp_path.iterdir())
    with pytest.raises(pm.NonFiniteError, match=r"fc\.weight: expected finite values, got inf at index \(40, 3\)"):
        pm.convert(bad, target, "int8", overwrite=True)
    assert target.read_bytes() == digest
    assert sorted(tmp_path.iterdir()) == files
    with pytest.raises(pm.NonFiniteError):
        pm.convert(bad, tmp_path / "new", "int8")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("scheme", ["int4-g32", "csr", "float16", "auto"])
def test_what_is_not_finite_becomes_zero_where_that_is_asked_for(dtype: str, scheme: str, tmp_path: Path) -> None:
    w = np.sin(np.arange(64 * 32.0)).reshape(64, 32).astype(dtype)
    clean = w.copy()
    clean[40, 3], clean[63, 31] = 0, 0
    w[40, 3], w[63, 31] = np.inf, np.nan if dtype != "float64" else 1e300  # beyond float32
    for name, weight in (("clean", clean), ("w", w)):
        pm.save(tmp_path / f"{name}.safetensors", {"fc.weight": weight})
        pm.convert(tmp_path / f"{name}.safetensors", tmp_path / name, scheme, nonfinite="zero")
    with pm.load(tmp_path / "clean") as want, pm.load(tmp_path / "w") as got:
        assert got["fc.weight"].scheme == want["fc.weight"].scheme
        np.testing.assert_array_equal(np.asarray(got["fc.weight"]), np.asarray(want["fc.weight"]))
        assert got.info("fc.weight").notes["error"] == want.info("fc.weight").notes["error"]
    with pytest.raises(pm.ResumeError, match='recipe, nonfinite was "zero", is null'):
        pm.convert(tmp_path / "w.safetensors", tmp_path / "w", scheme, resume=True)


def test_what_is_there_is_replaced_only_when_asked_to(folder: Path, source: Path, tmp_path: Path) -> None:
    file, small = tmp_path / "t.safetensors", tmp_path / "small"
    small.mkdir()
    (small / ".git").mkdir()  # hidden: the folder counts as empty
    pm.convert(source, file, "int8")
    pm.convert(folder, small, "int8")
    (small / "mine.txt").write_text("mine")
    before = {path: path.read_bytes() for path in [file, *small.rglob("*")] if path.is_file()}
    with pytest.raises(FileExistsError, match=r"target: expected a new path .* unless overwrite=True .*, got a file"):
        pm.convert(source, file, "int4-g32")
    with pytest.raises(FileExistsError, match=r"target: .* \(--overwrite\), got a folder that holds '.*' at"):
        pm.convert(folder, small, "int4-g32")
    assert {path: path.read_bytes() for path in before} == before
    pm.convert(source, file, "int4-g32", overwrite=True)
    pm.convert(folder, small, "int4-g32", overwrite=True)
    assert pm.load(file)["a.weight"].scheme == pm.load(small)["fc.weight"].scheme == "int4-g32"
    assert (small / "mine.txt").read_text() == "mine"
    assert (small / ".git").is_dir()


@pytest.mark.parametrize("link", [False, True])
def test_the_source_is_never_the_target(folder: Path, source: Path, tmp_path: Path, link: bool) -> None:
    with pytest.raises(ValueError, match="target: expected another path than the source"):
        pm.convert(source, source, "int8")
    place = folder
    if link:
        place = tmp_path / "link"
        place.symlink_to(folder)
    before = (folder / "model.safetensors").read_bytes()
    for target in (place, place / "model.safetensors"):
        with pytest.raises(ValueError, match="target: expected another"):
            pm.convert(folder, target, "int8")
    with pytest.raises(ValueError, match="target: expected another"):
        pm.convert(folder / "model.safetensors", place, "int8")
    assert (folder / "model.safetensors").read_bytes() == before


def test_without_a_scheme_there_is_nothing_to_do(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scheme: expected a scheme, a recipe or tensors, got none"):
        pm.convert(source, tmp_path / "t.safetensors")
    with pytest.raises(FileNotFoundError, match="path: expected an existing"):
        pm.convert(tmp_path / "nothing", tmp_path / "t.safetensors", "int8")


def test_progress_ends_at_all_bytes(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    pm.convert(source, tmp_path / "t.safetensors", "int8", progress=lambda *call: seen.append(call))
    assert {name for name, _, _ in seen} == set(state())
    assert all(a[1] <= b[1] for a, b in pairwise(seen))
    assert seen[-1][1] <= seen[-1][2]


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_stays_near_a_chunk(tmp_path: Path) -> None:
    rows = 40_000  # 160 MB of float32 in one tensor
    script = f"""
import resource, sys
import numpy as np, pumice as pm
from pumice.conversion import plan
from pumice.checkpoint import SafetensorsWriter, TensorInfo
plan.CHUNK_BYTES = 4 << 20
path = sys.argv[1]
with SafetensorsWriter(path + "/a.safetensors") as writer:
    writer.begin("big.weight", TensorInfo(({rows}, 1024), "F32"))
    block = np.random.default_rng(0).standard_normal((1000, 1024), np.float32)
    for _ in range({rows} // 1000):
        writer.write("", block)
    writer.commit()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pm.convert(path + "/a.safetensors", path + "/b.safetensors", "int4-g128", io="read")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 48 << 10  # KiB: twelve chunks, against 160 MB of tensor
    assert os.path.getsize(tmp_path / "b.safetensors") < 22_000_000
