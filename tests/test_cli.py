"""The command line: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pumice as pm
from pumice.cli import main
from pumice.profile import cache_path, load_profile


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    pm.save(folder, {"fc.weight": w, "fc.bias": np.ones(64, np.float32), "embed.weight": w})
    (folder / "config.json").write_text("{}")
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pumice", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_convert_inspect_and_verify_do_their_job(model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    done = run("convert", model, small, "--scheme", "int4-g32")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "tensor",
        "shape",
        "scheme",
        "bytes",
        "before",
        "bytes",
        "after",
        "bits/weight",
        "error",
        "SNR",
        "dB",
    ]
    table = {line.split()[0]: line.split() for line in lines[1:]}
    assert table["fc.weight"][1:5] == ["64x64", "int4-g32", "16,384", "2,320"]
    assert table["embed.weight"][2] == "int8"
    assert float(table["fc.weight"][6]) == pytest.approx(0.09, abs=0.02)
    assert "written in" in done.stderr
    assert "%" not in done.stderr  # no progress where stderr is no terminal
    inspected = run("inspect", small)
    assert inspected.returncode == 0
    assert "int4-g32" in inspected.stdout
    verified = run("verify", small)
    assert verified.returncode == 0
    assert "good: 7 tensors match" in verified.stdout


def test_json_is_one_object(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(model), str(tmp_path / "s"), "--scheme", "int8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["nbytes_after"] < report["nbytes_before"]
    fc = next(t for t in report["tensors"] if t["name"] == "fc.weight")
    assert fc["scheme"] == "int8"
    assert fc["snr"] == pytest.approx(-20 * np.log10(fc["error"]))
    assert main(["inspect", str(tmp_path / "s"), "--json"]) == 0
    tensors = json.loads(capsys.readouterr().out)["tensors"]
    assert next(t for t in tensors if t["name"] == "fc.weight")["error"] == fc["error"]
    assert main(["verify", str(tmp_path / "s"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_progress_is_json_lines_for_programs_and_text_on_a_terminal(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["convert", str(model), str(tmp_path / "s"), "--scheme", "int8", "--overwrite"]
    assert main([*command, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {event["event"] for event in events} == {"progress"}
    assert events[-1]["bytes"] == events[-1]["total"] > 0
    assert events[-1]["seconds_left"] in (0, None)
    assert main(command) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(command) == 0
    assert re.search(r"100%  \d+ MB/s  (0 s|\?) left  \S", capsys.readouterr().err)


def test_a_dry_run_writes_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(model), str(tmp_path / "s"), "--scheme", "csr", "--dry-run"]) == 0
    assert "?" in capsys.readouterr().out
    assert not (tmp_path / "s").exists()


def test_options_reach_the_recipe(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('scheme = "int8"\n[[rule]]\nmatch = "embed"\nscheme = "int4"\n')
    target = tmp_path / "s.safetensors"
    assert (
        main(
            [
                "convert",
                str(model),
                str(target),
                "--recipe",
                str(recipe),
                "--tensor",
                "^fc=int4-g16",
                "--ignore",
                "embed",
            ]
        )
        == 0
    )
    capsys.readouterr()
    loaded = pm.load(target)
    assert loaded["fc.weight"].scheme == "int4-g16"
    assert isinstance(loaded["embed.weight"], np.ndarray)
    assert main(["convert", str(model), str(target), "--scheme", "int8", "--keep-embeddings", "--overwrite"]) == 0
    assert isinstance(pm.load(target)["embed.weight"], np.ndarray)
    assert main(["convert", str(model), str(target), "--scheme", "int4-g128", "--group-size-fallback", "error"]) == 2


def test_requantizing_is_asked_for(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eight, four = str(tmp_path / "eight.safetensors"), str(tmp_path / "four.safetensors")
    assert main(["convert", str(model), eight, "--scheme", "int8"]) == 0
    assert main(["convert", eight, four, "--scheme", "int4-g16"]) == 0
    assert "1 tensors are quantized already and keep their codes (--allow-requantize)" in capsys.readouterr().err
    assert pm.load(four)["fc.weight"].scheme == "int8"
    assert main(["convert", eight, four, "--scheme", "int4-g16", "--allow-requantize", "--overwrite"]) == 0
    assert pm.load(four)["fc.weight"].scheme == "int4-g16"


def test_export_writes_for_others(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = str(tmp_path / "small")
    assert main(["convert", str(model), small, "--scheme", "int4-g16"]) == 0
    assert main(["export", "dense", small, str(tmp_path / "dense"), "--dtype", "float16"]) == 0
    assert pm.load(tmp_path / "dense").info("fc.weight").dtype == "F16"
    assert main(["export", "ct", small, str(tmp_path / "ct")]) == 0
    assert "embed.weight: decoded: an embedding" in capsys.readouterr().err
    assert pm.load(tmp_path / "ct")["fc.weight"].scheme == "int4-g16"
    assert main(["export", "npz", small, str(tmp_path / "out.npz"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {t["name"]: t["scheme"] for t in report["tensors"]}["fc.weight"] == "float32"
    assert np.load(tmp_path / "out.npz")["fc.weight"].shape == (64, 64)
    assert main(["export", "npz", small, str(tmp_path / "out.npz")]) == 2
    with pytest.raises(SystemExit):
        main(["export", "npz", small, str(tmp_path / "x.npz"), "--dtype", "bfloat16"])


def test_exit_codes_say_what_went_wrong(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = str(tmp_path / "s")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\xff" * 100)
    nan = tmp_path / "nan.safetensors"
    pm.save(nan, {"fc.weight": np.full((2, 2), np.nan, np.float32)})
    cases = [
        (["convert", str(model), target, "--scheme", "int99"], 2, "legal scheme"),
        (["convert", str(model), target], 2, "--scheme: expected it"),
        (["convert", str(model), target, "--scheme", "int8", "--ignore", "nothing"], 2, "--ignore: expected a pattern"),
        (["convert", str(bad), target, "--scheme", "int8"], 65, "bad.safetensors"),
        (["convert", str(nan), target, "--scheme", "int8"], 65, r"fc.weight: expected finite values, got nan"),
        (["convert", str(tmp_path / "none"), target, "--scheme", "int8"], 74, "path: expected an existing file"),
        (["convert", str(model), "/proc/none/x", "--scheme", "int8"], 74, "/proc/none"),
        (["convert", str(model), str(model), "--scheme", "int8"], 1, "target: expected another path"),
        (["inspect", str(bad)], 65, "bad.safetensors"),
        (["verify", str(bad)], 65, "bad.safetensors"),
    ]
    for arguments, code, message in cases:
        assert main(arguments) == code, arguments
        assert message in capsys.readouterr().err
    for arguments in (["convert"], ["convert", "a", "b", "--tensor", "x"], ["frobnicate"], []):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_verify_finds_a_changed_byte(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert main(["verify", str(model)]) == 65
    captured = capsys.readouterr()
    assert "BAD" in captured.out
    assert "SHA-256" in captured.err


def test_interrupting_ends_with_130_and_of_a_conversion_that_can_go_on_with_75(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pumice.cli.convert.convert", interrupt)
    monkeypatch.setattr("pumice.cli.verify.verify", interrupt)
    assert main(["convert", str(model), str(tmp_path / "s"), "--scheme", "int8"]) == 75
    assert main(["verify", str(model)]) == 130


def test_help_prints_the_schemes_and_the_exit_codes() -> None:
    text = run("convert", "--help").stdout
    assert "bsr-RxC" in text
    assert "exit codes" in text
    assert run("--version").stdout == f"pumice {pm.__version__}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal that behaves as Linux's")
def test_progress_goes_to_a_terminal(model: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pumice", "convert", str(model), str(tmp_path / "s"), "--scheme", "int8"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    seen = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "fc." in seen  # of its weight or its bias, whichever was told last


def test_explain_prints_a_line_for_each_matrix(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["convert", str(model), str(tmp_path / "s"), "--scheme", "int4-g32", "--tensor", "embed=float16"]) == 0
    capsys.readouterr()
    assert main(["explain", str(tmp_path / "s"), "--batch", "2"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split()[:4] == ["tensor", "shape", "scheme", "kernel"]
    table = {line.split()[0]: line.split() for line in lines[1:]}
    assert set(table) == {"fc.weight", "embed.weight"}  # the bias is no matrix
    assert table["fc.weight"][1:4] == ["64x64", "int4-g32", "matmul_int"]
    assert "shipped defaults" in printed.err
    assert main(["explain", str(tmp_path / "s"), "fc.weight", "--activations", "int8", "--cold"]) == 0
    assert capsys.readouterr().out.startswith("int4-g32 (64, 64), batch 1, activations int8\n")
    assert main(["explain", str(model), "--json"]) == 0
    tensors = json.loads(capsys.readouterr().out)["tensors"]
    assert {t["name"]: t["scheme"] for t in tensors} == {"fc.weight": "float32", "embed.weight": "float32"}
    assert all(t["expected"]["memory"] > 0 and t["alternatives"] for t in tensors)
    for tensor, message in (("nothing", "expected one of the checkpoint's"), ("fc.bias", "expected a matrix")):
        assert main(["explain", str(model), tensor]) == 1
        assert f"tensor: {message}" in capsys.readouterr().err


def test_bench_compares_with_numpy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pumice.comparison.LASTING", 1e-5)
    tiny = ["bench", "--shape", "32x64", "--schemes", "int8", "csr", "--batches", "1", "3", "--rounds", "2", "--hot"]
    assert main([*tiny, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["shape"] == [32, 64]
    assert [(t["case"], t["batch"]) for t in table["timings"]] == [
        (case, batch) for batch in (1, 3) for case in ("NumPy float32", "pumice int8", "pumice csr")
    ]
    assert all(t["seconds"] > 0 and t["ratio"] > 0 and t["error"] < 1e-3 for t in table["timings"])
    assert table["timings"][0]["ratio"] == 1
    assert main(tiny) == 0
    assert "32 x 64, hot weights, activations int16" in capsys.readouterr().out
    assert main(["bench", "--schemes", "int77"]) == 2
    assert main(["bench", "--rounds", "0"]) == 1
    assert "rounds: expected numbers of at least 1" in capsys.readouterr().err


def test_bench_calibrate_keeps_a_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiny: dict[str, Any] = {
        "LASTING": 1e-6, "ROWS": 16, "COLS": 32, "BATCHES": (1, 9), "SIZES": (1 << 12,), "COLD_BYTES": 64,
        "COLD_BATCHES": (1, 9), "COLD_PASSES": 1, "COLD_SIZES": dict.fromkeys((False, True), ((16, 32, 1.0),)),
    }  # fmt: skip
    for name, value in tiny.items():
        monkeypatch.setattr(f"pumice.calibration.{name}", value)
    assert main(["bench", "--calibrate"]) == 0
    printed = capsys.readouterr()
    assert "matmul_int" in printed.out
    assert str(tmp_path) in printed.err
    assert load_profile().source.startswith("measured ")
    assert main(["bench", "--calibrate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(cache_path().read_text("utf-8"))
