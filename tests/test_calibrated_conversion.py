"""Conversion that prunes and quantizes with calibration data: the same as the functions do, to the byte."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import pumice as pm
from pumice.checkpoint import open_reader
from pumice.cli import main

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((400, 16)) @ RNG.standard_normal((16, 128)) + RNG.standard_normal((400, 128))).astype("f4")
WEIGHTS = {
    "embed.weight": RNG.standard_normal((32, 128)).astype(np.float32),
    "a.weight": RNG.standard_normal((96, 128)).astype(np.float32),
    "b.weight": RNG.standard_normal((64, 128)).astype(np.float32),
    "norm.weight": np.ones(128, np.float32),
}
STATS = pm.CalibrationStats()
STATS.update("a.weight", X)
STATS.update("b.weight", X[:100])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pm.save(tmp_path / "source.safetensors", WEIGHTS)
    return tmp_path / "source.safetensors"


def converted(source: Path, scheme: str | None, **options: Any) -> tuple[Path, pm.Recipe]:
    target = source.with_name("target.safetensors")
    return target, pm.convert(source, target, scheme, stats=STATS, overwrite=True, **options)


def same(c: Any, d: Any) -> bool:
    ours, theirs = c.parts(), d.parts()
    return c.scheme == d.scheme and all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("key", ["a.weight", "b.weight"])
@pytest.mark.parametrize(
    ("scheme", "options", "expected"),
    [
        ("int4-g32", {"method": "gptq"}, lambda w, h: pm.quantize(w, "int4-g32", method="gptq", stats=h)),
        (
            "int3-g32-asym",
            {"method": "gptq", "act_order": False},
            lambda w, h: pm.quantize(w, "int3-g32-asym", method="gptq", stats=h, act_order=False),
        ),
        ("int3-g32", {"method": "mse"}, lambda w, h: pm.quantize(w, "int3-g32", method="mse", stats=h)),
        ("int4-g32", {"method": "nearest"}, lambda w, h: pm.quantize(w, "int4-g32")),
        ("csr", {"prune": "magnitude:0.7"}, lambda w, h: pm.sparsify(w, "csr", 0.7)),
        (
            "bitmask+int8",
            {"prune": "wanda:0.5"},
            lambda w, h: pm.sparsify(w, "bitmask+int8", 0.5, method="wanda", stats=h),
        ),
        (
            "bitmask+int4",
            {"prune": "wanda:0.5", "method": "gptq"},
            lambda w, h: pm.compress(pm.prune(w, 0.5, method="wanda", stats=h), "bitmask+int4", method="gptq", stats=h),
        ),
        (
            "2:4+int4-g32",
            {"prune": "sparsegpt", "method": "gptq"},
            lambda w, h: pm.sparsify(w, "2:4+int4-g32", method="sparsegpt", stats=h),
        ),
        (
            "bsr-4x4",
            {"prune": "sparsegpt:0.5", "damping": 0.1},
            lambda w, h: pm.sparsify(w, "bsr-4x4", 0.5, method="sparsegpt", stats=h, damping=0.1),
        ),
        ("float16", {"prune": "magnitude:2:4"}, lambda w, h: pm.compress(pm.prune(w, pattern="2:4"), "float16")),
        ("auto", {"prune": "magnitude:0.9"}, lambda w, h: pm.compress(pm.prune(w, 0.9), "auto")),
    ],
)
def test_conversion_is_what_the_functions_do(
    scheme: str, options: dict[str, Any], expected: Any, key: str, source: Path
) -> None:
    target, report = converted(source, scheme, **options)
    found = pm.load(target)[key]
    wanted = expected(WEIGHTS[key], STATS[key])
    assert same(found, wanted)
    lacks = (found.to_dense() - WEIGHTS[key]).astype(np.float64)
    x = X if key == "a.weight" else X[:100]
    entry = next(t for t in report.tensors if t.name == key)
    assert entry.error == pytest.approx(np.linalg.norm(lacks) / np.linalg.norm(WEIGHTS[key]), rel=1e-5)
    output = np.linalg.norm(x @ lacks.T) / np.linalg.norm(x @ WEIGHTS[key].T)
    assert entry.output_error == pytest.approx(output, rel=1e-3)


def test_joint_pruning_and_quantization_beats_one_after_the_other(source: Path) -> None:
    errors = {}
    for method in ("gptq", "mse"):  # with another method than gptq, rounding is not made up for
        target, report = converted(source, "int4-g32", prune="sparsegpt:0.5", method=method)
        errors[method] = next(t.output_error for t in report.tensors if t.name == "a.weight")
        zeros = np.count_nonzero(pm.load(target)["a.weight"].to_dense() == 0)
        assert zeros >= WEIGHTS["a.weight"].size // 2
    assert errors["gptq"] < errors["mse"]


@pytest.mark.parametrize("scheme", ["int4-g32", "int4-g32-asym", "bitmask+int4"])
def test_what_was_pruned_stays_zero_when_gptq_rounds(scheme: str) -> None:
    w = pm.prune(WEIGHTS["a.weight"], 0.5, method="wanda", stats=STATS["a"])
    c = pm.compress(w, scheme, method="gptq", stats=STATS["a"])
    assert not c.to_dense()[w == 0].any()


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("int4-g32", {"method": "gptq"}),
        ("bitmask+int8", {"prune": "sparsegpt:0.5"}),
        ("csr", {"prune": "random:0.5", "seed": 7}),
    ],
)
def test_a_seed_gives_the_same_bytes_on_any_number_of_threads(
    scheme: str, options: dict[str, Any], source: Path
) -> None:
    digests = set()
    for threads in (1, 2, 4):
        with threadpoolctl.threadpool_limits(threads):
            target, _ = converted(source, scheme, **options)
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(digests) == 1
    if "seed" in options:
        target, _ = converted(source, scheme, **options | {"seed": 8})
        assert hashlib.sha256(target.read_bytes()).hexdigest() not in digests


def test_random_pruning_has_a_stream_for_each_weight(tmp_path: Path) -> None:
    pm.save(tmp_path / "w.safetensors", dict.fromkeys(("a.weight", "b.weight"), WEIGHTS["a.weight"]))
    pm.convert(tmp_path / "w.safetensors", tmp_path / "t.safetensors", "csr", prune="random:0.5")
    a, b = (pm.load(tmp_path / "t.safetensors")[name].to_dense() for name in ("a.weight", "b.weight"))
    assert not np.array_equal(a, b)


def test_a_recipe_has_methods_for_all_and_for_some(source: Path) -> None:
    recipe = pm.Recipe.parse(
        """
        scheme = "int4-g32"
        method = "gptq"
        prune = "wanda:0.5"
        [options]
        damping = 0.02
        [[rule]]
        match = "^b"
        scheme = "int8"
        method = "nearest"
        prune = "none"
        """
    )
    target, _ = converted(source, None, recipe=recipe)
    found, w = pm.load(target), WEIGHTS["a.weight"]
    pruned = pm.prune(w, 0.5, method="wanda", stats=STATS["a"])
    assert same(found["a.weight"], pm.compress(pruned, "int4-g32", method="gptq", stats=STATS["a"], damping=0.02))
    assert same(found["b.weight"], pm.compress(WEIGHTS["b.weight"], "int8"))
    assert same(found["embed.weight"], pm.compress(WEIGHTS["embed.weight"], "int8"))  # as ever
    with open_reader(target) as reader:
        notes = reader.info("a.weight").notes
        assert (notes["prune"], notes["method"]) == ("wanda:0.5", "gptq")
        assert "method" not in reader.info("b.weight").notes
    recipe = replace(recipe, options={})
    explicit, _ = converted(source, None, recipe=recipe, method="nearest", prune="none")
    assert same(pm.load(explicit)["a.weight"], pm.compress(w, "int4-g32"))


BAD = np.ones((96, 128), np.float32)
BAD[3, 5] = np.nan
OTHER = pm.CalibrationStats()
OTHER.update("a.weight", X[:, :64])


@pytest.mark.parametrize(
    ("scheme", "options", "error", "message"),
    [
        ("int4-g32", {"method": "gptq", "stats": None}, ValueError, r"stats: expected moments of .*w\['a.weight'\]"),
        ("csr", {"prune": "wanda:0.5", "stats": None}, ValueError, r"stats: expected moments of .*w\['a.weight'\]"),
        ("int4-g32", {"method": "gptq", "stats": OTHER}, ValueError, "stats: expected 128 features .*a.weight.*got 64"),
        ("csr", {"prune": "magnitude:1"}, pm.RecipeError, r"prune: expected a sparsity in \[0, 1\), got 1"),
        ("csr", {"prune": "magnitude:-0.1"}, pm.RecipeError, r"prune: expected a sparsity in \[0, 1\), got -0.1"),
        ("csr", {"prune": "magnitude:nan"}, pm.RecipeError, r"prune: expected a sparsity in \[0, 1\), got nan"),
        ("csr", {"prune": "magnitude:much"}, pm.RecipeError, r"prune: expected METHOD\[:SPARSITY\]\[:PATTERN\], got"),
        ("csr", {"prune": "wonda:0.5"}, pm.RecipeError, "prune: expected one of .*wanda, got 'wonda'"),
        ("csr", {"prune": "magnitude"}, ValueError, "sparsity: expected it or threshold, one of them, got None"),
        ("csr", {"prune": "magnitude:3:7"}, ValueError, "a.weight.*: expected columns in multiples of 7 for 3:7"),
        ("csr", {"method": "gptq"}, pm.SchemeError, "scheme: expected integer values for method 'gptq', got 'csr'"),
        ("int8", {"method": "gbtq"}, pm.RecipeError, "method: expected one of .*gptq, .*got 'gbtq'"),
        ("auto", {"method": "gptq"}, pm.RecipeError, "method: expected none with 'auto'"),
        ("int8", {"method": "gptq", "act": 1}, pm.RecipeError, "options: expected those of the methods .*got 'act'"),
    ],
)
def test_what_cannot_be_done_is_said(
    scheme: str, options: dict[str, Any], error: type[Exception], message: str, source: Path
) -> None:
    target = source.with_name("target.safetensors")
    with pytest.raises(error, match=message):
        pm.convert(source, target, scheme, **{"stats": STATS} | options)
    assert not target.exists()


def test_a_weight_that_is_not_finite_is_named_with_its_index(tmp_path: Path) -> None:
    pm.save(tmp_path / "bad.safetensors", {"a.weight": BAD})
    for options in ({"method": "gptq"}, {"prune": "sparsegpt:0.5"}):
        with pytest.raises(pm.NonFiniteError, match=r"a.weight: expected finite values, got nan at index \(3, 5\)"):
            pm.convert(tmp_path / "bad.safetensors", tmp_path / "t.safetensors", "int4-g32", stats=STATS, **options)
    masks = pm.Masks({"a.weight": np.ones((96, 127), bool)})
    with pytest.raises(ValueError, match=r"w\['a.weight'\]: expected shape \(96, 127\) as its mask, got \(96, 128\)"):
        masks.apply(WEIGHTS)


def test_the_command_line_says_the_same(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = source.with_name("stats.safetensors")
    pm.save(stats, STATS.pack())
    target, other = source.with_name("target.safetensors"), source.with_name("other.safetensors")
    asked = ["--scheme", "int4-g32", "--method", "gptq", "--stats", str(stats), "--set", "act_order=False"]
    assert main(["convert", str(source), str(target), *asked, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {t["name"] for t in report["tensors"] if t["output_error"]} == {"a.weight", "b.weight"}
    pm.convert(source, other, "int4-g32", method="gptq", stats=stats, act_order=False)
    assert target.read_bytes() == other.read_bytes()
    assert (
        main(["convert", str(source), str(source.with_name("c.safetensors")), "--scheme", "csr", "--prune", "x"]) == 2
    )
    assert "prune: expected one of" in capsys.readouterr().err
