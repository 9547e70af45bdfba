"""``"auto"``: the choice, its reasons, and what it was held against."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

import pumice as pm
from pumice.choice import ALWAYS_SHOWN, BLOCKSIZES, N_OF_M, Facts, Request, choose, panels_of
from pumice.cli import main
from pumice.profile import default_profile
from pumice.scheme import AUTO, Scheme, parse_request

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal((96, 256)).astype(np.float32)
SPARSE = pm.prune(NORMAL, 0.97)
BLOCKY = pm.prune(NORMAL, 0.9, pattern="bsr-16x4")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped profile, whatever this machine has measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def error_of(w: np.ndarray, scheme: str) -> float:
    return float(np.linalg.norm(pm.compress(w, scheme).to_dense() - w) / np.linalg.norm(w))


@pytest.mark.parametrize("w", [NORMAL, SPARSE, BLOCKY], ids=["normal", "sparse", "blocky"])
@pytest.mark.parametrize("objective", ["balanced", "speed", "size"])
@pytest.mark.parametrize("max_error", [0.0, 0.001, 0.02, 0.2])
def test_it_is_the_best_of_those_that_keep_within_the_error(w: np.ndarray, objective: str, max_error: float) -> None:
    chosen = pm.compress(w, "auto", objective=objective, max_error=max_error)
    choice = chosen.choice
    assert (choice.scheme, choice.candidates[0].scheme) == (chosen.scheme, chosen.scheme)
    assert error_of(w, chosen.scheme) <= max_error
    assert choice.candidates[0].nbytes == chosen.nbytes
    assert choice.candidates[0].error == pytest.approx(error_of(w, chosen.scheme), rel=1e-5)
    for other in choice.candidates:
        if other.rank(objective)[0] < 0.98 * choice.candidates[0].rank(objective)[0]:  # whose bytes are exact now
            assert error_of(w, other.scheme) > max_error


@pytest.mark.parametrize("w", [NORMAL, SPARSE, BLOCKY[:90, :250]], ids=["normal", "sparse", "ragged"])
def test_bytes_are_exact_for_floats_and_at_most_so_for_integers(w: np.ndarray) -> None:
    candidates = pm.compress(w, "auto").choice.candidates
    assert {c.scheme for c in candidates} >= set(ALWAYS_SHOWN)
    for c in candidates:
        stored = pm.compress(w, c.scheme).nbytes
        assert stored <= c.nbytes + len(w) / 2  # rows of int4 in a bitmask end with whole bytes
        if "int" not in c.scheme:
            assert stored == c.nbytes


def test_what_is_in_the_weight_decides() -> None:
    def schemes(w: np.ndarray) -> set[str]:
        return {c.scheme for c in pm.compress(w, "auto").choice.candidates}

    assert all(Scheme.parse(s).dense for s in schemes(NORMAL))
    assert {"csr", "bsr-16x4"} <= schemes(BLOCKY)
    assert pm.compress(SPARSE, "auto", objective="size", max_error=0).scheme != "float32"
    assert Scheme.parse(pm.compress(BLOCKY, "auto", objective="size", max_error=0).scheme).pattern
    large = pm.compress(1e6 * NORMAL, "auto", objective="size", max_error=1e-3)  # beyond float16
    assert large.scheme == "float32"
    assert {c.scheme: c.error for c in large.choice.candidates}["float16"] == np.inf


@pytest.mark.parametrize("shape", [(5, 7), (70, 100), (64, 128), (33, 1), (0, 3), (3, 0)])
def test_facts_are_counts_of_the_weight(shape: tuple[int, int]) -> None:
    for share in (0.3, 0.95, 1.0):
        w = np.where(RNG.random(shape) < share, 0, -1).astype(np.float32)
        facts = Facts.of(*shape, panels_of(w)())
        assert facts.nnz == np.count_nonzero(w)
        for block in BLOCKSIZES:
            assert facts.blocks[block] == len(pm.compress(w, f"bsr-{block[0]}x{block[1]}").indices)


@pytest.mark.parametrize(("n", "m"), N_OF_M)
def test_facts_know_which_n_of_m_hold(n: int, m: int) -> None:
    group = np.arange(m) < n
    w = np.tile(group, (40, 64 // m)).astype(np.float32)
    kept = Facts.of(40, 64, panels_of(w)()).kept
    assert kept == {(a, b) for a, b in N_OF_M if (w.reshape(-1, b).sum(axis=1) <= a).all()}
    assert (n, m) in kept
    w[39, 0:m] = 1
    assert (n, m) not in Facts.of(40, 64, panels_of(w)()).kept


def test_the_same_profile_makes_the_same_choice_and_time_counts() -> None:
    slow, request = default_profile("scalar"), Request(batch=64, objective="speed")
    one, two = (choose(SPARSE.shape, panels_of(SPARSE), request, slow) for _ in range(2))
    assert one == two
    times = [c.time for c in one.candidates if c.error is None]
    assert times == sorted(times)
    assert all(c.time <= one.candidates[0].time for c in one.candidates if c.error == np.inf)


def test_candidates_can_be_timed() -> None:
    choice = pm.compress(SPARSE, "auto", measure=True, objective="speed").choice
    timed = [c for c in choice.candidates if c.seconds is not None]
    assert 1 <= len(timed) <= 3
    assert choice.candidates[0].seconds == min(c.seconds for c in timed)
    assert "measured" in str(choice)


def test_the_reasons_stay_with_the_array_and_explain_prints_them() -> None:
    w = pm.compress(SPARSE, "auto")
    text = str(pm.explain(w))
    assert f"choice   {w.scheme}: balanced at batch 1, error <= 0.02" in text
    assert all(scheme in text for scheme in ALWAYS_SHOWN)
    assert w.T.choice is w.choice is w.prepack().choice
    turned = pm.compress(SPARSE.T, "auto", in_axis=0)
    assert (turned.shape, turned.choice.scheme) == (SPARSE.T.shape, w.scheme)
    blob = io.BytesIO()
    pm.save(blob, {"w": w})
    assert pm.load(blob.getvalue())["w"].choice is None
    assert pm.compress(SPARSE, "csr").choice is None
    json.dumps(w.choice.request.__dict__)


def test_every_kind_of_input_gets_its_own_choice() -> None:
    state = {"a": NORMAL, "b": SPARSE, "bias": NORMAL[0]}
    found = pm.compress(state, "auto", objective="size")
    assert found["bias"] is state["bias"]
    assert found["a"].scheme != found["b"].scheme
    again = pm.compress(sp.csr_array(SPARSE), "auto", objective="size")
    assert again.choice == found["b"].choice
    assert (again.to_dense() == found["b"].to_dense()).all()
    assert pm.compress(found["b"], "auto", objective="size", max_error=0.1).choice is not None
    deep = pm.compress(SPARSE.reshape(96, 16, 4, 4), "auto", objective="size")
    assert (deep.shape, deep.scheme) == ((96, 16, 4, 4), found["b"].scheme)


@pytest.mark.parametrize("w", [np.zeros((32, 64)), np.zeros((0, 32)), np.zeros((3, 0)), np.ones((1, 1))])
def test_weights_at_the_edge_get_a_scheme(w: np.ndarray) -> None:
    for objective in ("balanced", "speed", "size"):
        chosen = pm.compress(w, "auto", objective=objective)
        assert (chosen.to_dense() == w).all()
        assert str(chosen.choice)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "fast"}, "objective: expected one of balanced, speed, size, got 'fast'"),
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"max_error": -1}, "max_error: expected a finite number >= 0, got -1"),
        ({"outliers": 0.1}, "outliers: expected None for auto"),
    ],
)
def test_requests_that_make_no_sense_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pm.compress(NORMAL, "auto", **arguments)


def test_auto_is_a_request_and_no_scheme() -> None:
    assert parse_request("auto") is AUTO
    assert str(AUTO) == "auto"
    for verb in (Scheme.parse, lambda text: pm.quantize(NORMAL, text), lambda text: pm.from_parts(text, (1, 1), {})):
        with pytest.raises(pm.SchemeError):
            verb("auto")
    with pytest.raises(pm.NonFiniteError, match=r"w: expected finite values, got nan at index \(0, 0\)"):
        pm.compress(np.array([[np.nan]]), "auto")


def test_convert_chooses_for_each_tensor_as_compress_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {"a.weight": NORMAL, "b.weight": SPARSE, "c.weight": SPARSE.T.copy(), "embed.weight": NORMAL}
    pm.save(tmp_path / "a.safetensors", weights | {"a.bias": NORMAL[0]})
    (tmp_path / "r.toml").write_text('[[rule]]\nmatch = "^c"\nscheme = "auto"\nin_axis = 0\n')
    where = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    options = ["--scheme", "auto", "--objective", "size", "--max-error", "0.03", "--recipe", str(tmp_path / "r.toml")]
    assert main(["convert", *where, *options, "--dry-run"]) == 0
    assert "auto" in capsys.readouterr().out
    assert main(["convert", *where, *options, "--json"]) == 0
    report = {t["name"]: t for t in json.loads(capsys.readouterr().out)["tensors"]}
    loaded = pm.load(tmp_path / "b.safetensors")
    for name in ("a.weight", "b.weight"):
        expected = pm.compress(weights[name], "auto", objective="size", max_error=0.03)
        assert loaded[name].scheme == report[name]["scheme"] == expected.scheme
        assert report[name]["error"] <= 0.03
        assert report[name]["why"] == "default, auto"
    assert loaded["c.weight"].T.scheme == loaded["b.weight"].scheme
    assert loaded["embed.weight"].scheme == "int8"
    assert main(["convert", *where, "--scheme", "auto", "--batch", "0", "--overwrite"]) == 1
    assert "batch: expected at least 1, got 0" in capsys.readouterr().err
