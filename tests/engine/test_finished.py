"""What a finished conversion says of how and from what it was made, and what becomes of another run of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

import pumice as pm
from pumice.checkpoint import fingerprint
from pumice.cli import main
from pumice.conversion import plan

from .cases import changed_content, changed_version, convert, digest, state


def left(target: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in target.rglob("*")}


@pytest.mark.parametrize(
    "how", [{"resume": True}, {"commit": True}, {"task": (2, 3)}, {"resume": True, "overwrite": True}]
)
def test_a_finished_conversion_is_complete_already(how: dict[str, Any], source: Path, expected: str) -> None:
    target = source.with_name("expected")
    before, seen = left(target), []
    report = convert(source, target, progress=lambda *call: seen.append(call), **how)
    assert report.already_complete
    assert left(target) == before
    assert seen[-1][1] == seen[-1][2] > 0
    again = convert(source, source.with_name("t"))
    assert not again.already_complete
    assert set(report.tensors) <= set(again.tensors)
    assert len(report.tensors) == (len(again.tensors) if "task" not in how else 3)


def test_a_finished_conversion_is_complete_on_the_command_line(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", str(source), str(source.with_name("t")), "--scheme", "int8", "--resume"]
    assert [main(command), main(command)] == [0, 0]
    assert "complete already, from the same source and recipe; nothing was written" in capsys.readouterr().err
    assert main([*command, "--max-error", "1e-9"]) == 65
    assert main([*command, "--keep-embeddings"]) == 2
    assert "got another one: recipe, keep_embeddings was false, is true" in capsys.readouterr().err


FINISHED = {
    'recipe, scheme was "int4-g32", is "int8"': lambda *_: {"recipe": None, "scheme": "int8"},
    "max_shard_size was 20000, is 30000": lambda *_: {"max_shard_size": 30_000},
    'version was ".*", is "99"': changed_version,
    'source, .*weight was "[0-9a-f]{64}", is "[0-9a-f]{64}"': changed_content,
}


@pytest.mark.parametrize("difference", FINISHED)
def test_a_finished_conversion_of_another_source_is_refused_with_the_difference(
    difference: str, source: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = source.with_name("expected")
    options = FINISHED[difference](source, monkeypatch)
    with pytest.raises(pm.ResumeError, match=f"that has written '{target}', got another one: .*{difference}"):
        convert(source, target, resume=True, **options)
    assert digest(target) == expected
    assert not convert(source, target, resume=True, overwrite=True, **options).already_complete
    assert digest(target) != expected


def test_what_no_conversion_has_written_is_no_finished_one(source: Path) -> None:
    target = source.with_name("t")
    pm.save(target, state())
    with pytest.raises(FileExistsError, match="expected a new path or an empty folder"):
        convert(source, target, resume=True)


def test_the_source_of_a_finished_conversion_goes_once_the_target_verifies(source: Path, expected: str) -> None:
    target = source.with_name("expected")
    shard = sorted(target.glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        pm.PumiceError, match="target: expected one that verifies before its source goes, got .*SHA-256"
    ):
        convert(source, target, resume=True, delete_source=True)
    assert len(list(source.glob("*.safetensors"))) > 1
    shard.write_bytes(whole)
    assert convert(source, target, resume=True, delete_source=True).already_complete
    assert not list(source.glob("*.safetensors"))


def test_the_output_says_how_it_was_made(source: Path, expected: str) -> None:
    with pm.load(source.with_name("expected")) as m:
        made = json.loads(m.metadata["conversion"])
    assert made["version"] == pm.__version__
    assert made["recipe"]["rules"][0] == ["sparse", "csr+int8", 1, None, None]
    assert len(made["tensors"]) == 64


@pytest.mark.parametrize("leaf", [1 << 20, 1000])
def test_fingerprints_depend_on_the_stored_bytes_alone(
    leaf: int, source: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "LEAF", leaf)
    found = []
    for size in (1, 64 * 64 * 4, 10**9):
        monkeypatch.setattr(plan, "CHUNK_BYTES", size)
        convert(source, source.with_name(f"t{size}"), workers=3)
        with pm.load(source.with_name(f"t{size}")) as m:
            found.append({name: m.info(name).notes.get("fingerprint") for name in m})
    assert found[0] == found[1] == found[2]
    with pm.load(source) as m:
        assert found[0] == {name: None if name == "bias" else by_hand(bytes(m.raw(name)), leaf) for name in m}


def by_hand(data: bytes, leaf: int) -> str:
    digests = [hashlib.sha256(data[i : i + leaf]).digest() for i in range(0, len(data), leaf)]
    return hashlib.sha256(b"".join(digests)).hexdigest()


@pytest.mark.parametrize(
    ("path", "in_axis"), [("torch-nested.pt", 0), ("ggml.gguf", 0), ("gptq/v2-4bit", 0), ("v1.safetensors", 1)]
)
def test_fingerprints_of_any_format_and_of_transposed_weights(path: str, in_axis: int, tmp_path: Path) -> None:
    """Of arrays that consist of several tensors, and those that are kept, too."""
    golden = Path(__file__).parents[1] / "golden" / path
    rule = f'[[rule]]\nmatch = "."\nscheme = "int8"\nin_axis = {in_axis}'
    report = pm.convert(golden, tmp_path / "t", recipe=pm.Recipe.parse(rule), allow_requantize=True)
    with pm.checkpoint.open_reader(golden) as before, pm.checkpoint.open_reader(tmp_path / "t") as after:
        for name in before.names():
            raw = b"".join(bytes(before.raw(tensor)) for tensor in before.tensors(name))
            assert fingerprint.made_from(after, name) == fingerprint.made_from(before, name)
            if len(before.tensors(name)) == 1:
                assert fingerprint.fingerprint(before, name) == by_hand(raw, 1 << 20)
    assert pm.convert(
        golden, tmp_path / "t", recipe=pm.Recipe.parse(rule), allow_requantize=True, resume=True
    ) == replace(report, already_complete=True, seconds=ANY, copied=ANY)


def test_a_changed_source_shows(
    source: Path, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (source.with_name(name) for name in ("expected", "second"))
    changed_content(source, monkeypatch)
    convert(source, second)
    main(["diff", str(first), str(second)])  # the last bit of a float16 may leave its code as it is
    assert "1 of 7 tensors come from ANOTHER source: " in capsys.readouterr().out
    assert main(["diff", str(source), str(second)]) == 1
    assert "7 tensors have the same source in both" in capsys.readouterr().out
    assert main(["diff", str(source), str(first), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)["tensors"]
    assert sorted(t["same_source"] for t in told if t["same_source"] is not None) == [False] + 6 * [True]
    said = []
    for target in (first, second, source):
        assert main(["inspect", str(target)]) == 0
        said.append([line for line in capsys.readouterr().out.splitlines() if "made from" in line])
        assert main(["inspect", str(target), "--json"]) == 0
        assert (json.loads(capsys.readouterr().out)["made_from"] is None) == (target == source)
    assert said[0] != said[1]
    assert [len(lines) for lines in said] == [1, 1, 0]


def test_the_journal_of_a_finished_conversion_is_gone_with_all_the_rest(source: Path) -> None:
    convert(source, source.with_name("t"))
    assert not list(source.with_name("t").rglob(".*"))
