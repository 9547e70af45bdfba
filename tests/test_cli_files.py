"""`inspect`, `cat` and `diff` on checkpoints of any format: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pumice as pm
from pumice.checkpoint import open_reader
from pumice.cli import main
from pumice.difference import difference

GOLDEN = Path(__file__).parent / "golden"
PRUNED = GOLDEN / "torch-pruned.pt"
PATTERNS = ("*.pt", "*.np[yz]", "*.safetensors", "*.gguf")
READABLE = sorted(path for pattern in PATTERNS for path in GOLDEN.rglob(pattern))
READABLE = [path for path in READABLE if "refused" not in path.name]
assert len(READABLE) > 15


def printed(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert main(list(map(str, arguments))) == code
    return capsys.readouterr().out


def table(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    return json.loads(printed(capsys, *arguments, "--json", code=code))


@pytest.mark.parametrize("path", READABLE, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_inspect_lists_the_tensors_of_every_golden(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = table(capsys, "inspect", path)
    with open_reader(path) as reader:
        assert found["format"] == reader.format
        assert [t["name"] for t in found["tensors"]] == list(reader.names())
        assert [tuple(t["shape"]) for t in found["tensors"]] == [reader.info(name).shape for name in reader.names()]
    lines = printed(capsys, "inspect", path).splitlines()
    assert lines[0] == f"{path}: {_title(found)}, {len(found['tensors'])} tensors"
    assert lines[-1].startswith("total")


def _title(found: Any) -> str:
    by = ", ".join(f"{count} by {name}" for name, count in found["conventions"].items())
    return f"{found['format']} ({by})" if by else found["format"]


@pytest.mark.filterwarnings("ignore::pumice.FormatWarning")
@pytest.mark.parametrize("path", READABLE, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_cat_and_diff_take_every_golden(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_reader(path) as reader:
        for name in reader.names():
            info = reader.info(name)
            found = table(capsys, "cat", path, name, *(["--slice", ":2"] if info.shape else []))
            assert (found["name"], tuple(found["shape"]), found["scheme"]) == (name, info.shape, info.dtype)
            rows = reader.rows(name, 0, min(2, *info.shape[:1]) if info.shape else 1)
            assert len(np.atleast_1d(found["values"])) == len(rows)
            if rows.dtype.kind != "c":
                np.testing.assert_array_equal(np.array(found["values"], rows.dtype).reshape(rows.shape), rows)
        names = set(reader.names())
    same = table(capsys, "diff", path, path)
    assert (same["same"], same["error"], {t["name"] for t in same["tensors"]}) == (True, 0, names)
    assert f"{len(names)} tensors are the same in both" in printed(capsys, "diff", path, path)


def test_inspect_tells_people_format_conventions_metadata_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in printed(capsys, "inspect", PRUNED).splitlines()]
    assert lines == [
        [f"{PRUNED}:", "PyTorch", "(1", "by", "torch.prune),", "2", "tensors"],
        ["tensor", "shape", "scheme", "bytes", "bits/weight", "error"],
        ["bias", "12", "F32", "48", "32.00"],
        ["weight", "12x16", "F32", "768", "32.00"],
        ["total", "204", "values", "816", "32.00"],
    ]
    training = printed(capsys, "inspect", GOLDEN / "torch-training.pt")
    assert "weights key: model_state_dict\n" in training
    assert "left out: epoch, optimizer_state_dict" in training


def test_inspect_cuts_long_metadata_for_people_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.safetensors"
    pm.save(path, {"b": np.ones(3)}, metadata={f"key{i:02}": "x" * 200 for i in range(30)})
    lines = printed(capsys, "inspect", path).splitlines()
    assert max(map(len, lines)) < 200
    assert "  ... and 11 more (--json)" in lines
    assert len(table(capsys, "inspect", path)["metadata"]["key29"]) == 200


def test_cat_prints_the_numbers_that_a_slice_selects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = np.arange(60.0, dtype=np.float32).reshape(3, 4, 5)
    np.savez(tmp_path / "m.npz", w=w, s=np.array(2.5), i=np.arange(4), c=np.array([1 + 2j], np.complex64))
    path = tmp_path / "m.npz"
    for text, index in {
        "0:2,:3": np.s_[0:2, :3],
        "1": np.s_[1],
        "-1,2:,::2": np.s_[-1, 2:, ::2],
        "::-1,1,-2": np.s_[::-1, 1, -2],
        "2:1": np.s_[2:1],
        "-2:,0": np.s_[-2:, 0],
    }.items():
        assert table(capsys, "cat", path, "w", f"--slice={text}")["values"] == w[index].tolist()
    assert table(capsys, "cat", path, "s")["values"] == 2.5
    assert table(capsys, "cat", path, "i")["values"] == [0, 1, 2, 3]
    assert table(capsys, "cat", path, "c")["values"] == ["(1+2j)"]
    assert printed(capsys, "cat", path, "w", "--slice", "0,:2") == "[[0. 1. 2. 3. 4.]\n [5. 6. 7. 8. 9.]]\n"
    assert table(capsys, "cat", GOLDEN / "torch-state.pt", "specials")["values"][:2] == ["nan", "inf"]


def test_cat_prints_large_tensors_abridged_and_slices_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "w.npy", np.arange(5000))
    assert "..." in printed(capsys, "cat", tmp_path / "w.npy", "w")
    assert "..." not in printed(capsys, "cat", tmp_path / "w.npy", "w", "--slice", ":")


def test_cat_decodes_compact_arrays_and_writes_npy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = pm.compress(np.random.default_rng(0).standard_normal((6, 64)), "int4-g32")
    path, out = pm.save(tmp_path / "m.safetensors", {"w": w})[0], tmp_path / "w.npy"
    assert printed(capsys, "cat", path, "w", "--slice", "2:5", "-o", out) == ""
    np.testing.assert_array_equal(np.load(out), w.to_dense()[2:5])
    assert main(["cat", str(path), "w", "-o", str(out)]) == 2
    assert "a new file" in capsys.readouterr().err
    assert np.load(out).shape == (3, 64)
    assert printed(capsys, "cat", path, "w", "-o", out, "--overwrite") == ""
    assert np.load(out).shape == (6, 64)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.safetensors", "w.npy"]
    assert main(["cat", str(path), "w", "-o", "w.txt"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wieght",), "tensor: expected one of the checkpoint's, got 'wieght' (near: 'weight')"),
        (("zzz",), "got 'zzz'\n"),
        (("weight", "--slice", "0,0,0"), "slice: expected at most 2 axes, got 3"),
        (("weight", "--slice", "12"), "slice: expected an index in [-12, 12) for axis 0, got 12"),
        (("weight", "--slice", "0,-17"), "slice: expected an index in [-16, 16) for axis 1, got -17"),
    ],
)
def test_cat_says_what_is_wrong(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cat", str(PRUNED), *arguments]) == 1
    assert message in capsys.readouterr().err
    for text in ("a", "1:2:3:4", "::0", "", "1,,2"):
        with pytest.raises(SystemExit) as caught:
            main(["cat", str(PRUNED), "weight", "--slice", text])
        assert caught.value.code == 2
    assert main(["explain", str(PRUNED), "wieght"]) == 1
    assert "(near: 'weight')" in capsys.readouterr().err


def test_files_that_are_refused_end_with_65_and_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    refused = sorted(GOLDEN.glob("*refused*"))
    assert len(refused) > 5
    for path in refused:
        for command in (["inspect"], ["verify"], ["explain"], ["diff", str(PRUNED)]):
            assert main([*command, str(path)]) == 65
            assert f"pumice: {path}: expected " in capsys.readouterr().err


def test_names_that_are_nearly_right_are_named() -> None:
    m = pm.load(PRUNED)
    with pytest.raises(KeyError, match="near: 'weight'"):
        m["wieght"]
    assert m.get("wieght") is None
    assert m.get("weight") is not None


def test_names_and_texts_of_a_file_do_nothing_to_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, evil = tmp_path / "m.safetensors", "a\x1b[2J\nw\u202e"
    pm.save(path, {evil: np.ones(3)}, metadata={evil: evil})
    pm.save(tmp_path / "n.safetensors", {evil: pm.compress(np.ones((4, 32)), "int8-g32-min")})
    for arguments in (("inspect",), ("diff", path), ("explain",)):
        main([*map(str, arguments), str(tmp_path / "n.safetensors" if arguments == ("explain",) else path)])
    main(["export", "ct", str(tmp_path / "n.safetensors"), str(tmp_path / "o")])
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert not set(text) & {"\x1b", "\u202e"}
        assert "a\\x1b[2J\\nw\\u202e" in text
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    assert main(["verify", str(path)]) == 65
    assert "m.safetensors: a\\x1b[2J\\nw\\u202e: expected SHA-256" in capsys.readouterr().err


def test_diff_finds_the_same_values_in_other_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = GOLDEN / "torch-state.pt"
    m = pm.load(path)
    np.savez(tmp_path / "m.npz", **m)
    found = table(capsys, "diff", path, tmp_path / "m.npz")
    assert found["same"] is True
    assert found["error"] == 0
    assert found["only_in_a"] == found["only_in_b"] == []
    assert {t["name"]: (t["scheme_a"], t["scheme_b"]) for t in found["tensors"]}["bf16"] == ("BF16", "F32")
    assert f"{len(m) - 3} tensors are the same in both" in printed(
        capsys, "diff", path, tmp_path / "m.npz"
    )  # BF16, 2 F8


@pytest.mark.parametrize("chunk", [64, 1 << 24])
def test_diff_measures_the_error_of_a_conversion(
    chunk: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pumice.difference.CHUNK_BYTES", chunk)
    w = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    np.savez(tmp_path / "a.npz", **{"fc.weight": w, "fc.bias": w[0]})
    report = pm.convert(tmp_path / "a.npz", tmp_path / "b.safetensors", "int4-g32")
    error = next(t.error for t in report.tensors if t.error)
    assert error is not None
    found = table(capsys, "diff", tmp_path / "a.npz", tmp_path / "b.safetensors", code=1)
    one = next(t for t in found["tensors"] if t["name"] == "fc.weight")
    assert one["error"] == pytest.approx(error, rel=1e-9)
    assert one["snr"] == pytest.approx(-20 * np.log10(error))
    decoded = pm.load(tmp_path / "b.safetensors")["fc.weight"].to_dense()
    assert one["changed"] == np.count_nonzero(decoded != w)
    noise, signal = (
        np.sum((decoded - w.astype("f8")) ** 2),
        np.sum(w.astype("f8") ** 2) + np.sum(w[0].astype("f8") ** 2),
    )
    assert found["error"] == pytest.approx(np.sqrt(noise / signal), rel=1e-9)
    assert (found["nbytes_a"], found["nbytes_b"]) == (report.nbytes_before, report.nbytes_after)
    both = ("diff", tmp_path / "a.npz", tmp_path / "b.safetensors", "--max-error")
    assert main([*map(str, both), "0.2"]) == 0
    assert main([*map(str, both), "0.01"]) == 1


def test_diff_lists_names_shapes_and_places_that_are_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nan, inf = np.nan, np.inf
    np.savez(tmp_path / "a.npz", n=[nan, inf, 1, 2], s=np.ones((2, 3)), only=np.ones(2), z=np.zeros(2), i=[1, 2])
    np.savez(tmp_path / "b.npz", n=[nan, inf, nan, 2], s=np.ones((3, 2)), extra=np.ones(2), z=np.ones(2), i=[1, 3])
    found = table(capsys, "diff", tmp_path / "a.npz", tmp_path / "b.npz", code=1)
    assert (found["only_in_a"], found["only_in_b"], found["same"]) == (["only"], ["extra"], False)
    tensors = {t["name"]: t for t in found["tensors"]}
    assert (tensors["n"]["changed"], tensors["n"]["nonfinite"], tensors["n"]["error"]) == (1, 1, 0)
    assert (tensors["s"]["changed"], tensors["s"]["shape_a"], tensors["s"]["shape_b"]) == (None, [2, 3], [3, 2])
    assert tensors["z"]["error"] is None  # relative to zeros: infinite
    assert tensors["i"]["changed"] == 1
    lines = printed(capsys, "diff", tmp_path / "a.npz", tmp_path / "b.npz", code=1).splitlines()
    rows = {line.split()[0]: line for line in lines[4:]}
    assert "only in b: F64" in rows["extra"]
    assert "only in a: F64" in rows["only"]
    assert "2x3 -> 3x2" in rows["s"]
    assert "1 (1 not finite)" in rows["n"]
    assert "inf" in rows["z"]
    with open_reader(tmp_path / "a.npz") as a, open_reader(tmp_path / "a.npz") as b:
        assert difference(a, b, ("a", "b")).same
    assert main(["diff", str(tmp_path / "a.npz"), str(tmp_path / "a.npz"), "--max-error", "0"]) == 0
    assert main(["diff", str(tmp_path / "a.npz"), str(tmp_path / "none")]) == 74
