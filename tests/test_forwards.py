"""Calibration and evaluation by any forward, in Python and on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import pumice as pm
from pumice.cli import main
from pumice.cli.forward_file import load_forward

RNG = np.random.default_rng(0)
WEIGHTS = {
    "embed.weight": RNG.standard_normal((10, 6)).astype(np.float32),
    "up.weight": RNG.standard_normal((16, 6)).astype(np.float16),
    "gate.weight": RNG.standard_normal((16, 6)).astype(np.float16),
    "down.weight": RNG.standard_normal((6, 16)),
    "bias": np.ones(6, np.float32),
}
DATA = RNG.integers(0, 10, (8, 5))
EXAMPLES = Path(__file__).parents[1] / "examples"


def hidden(weights: Any, ids: Any) -> Any:
    """x, and what `down` reads."""
    x = weights["embed.weight"][ids]
    return x, np.maximum(pm.linear(x, weights["up.weight"]), 0) * (x @ weights["gate.weight"].T)


def forward(weights: Any, data: Any, scale: float = 1.0) -> list[Callable[[], Any]]:
    def run(ids: Any) -> Any:
        return scale * pm.linear(hidden(weights, ids)[1], weights["down.weight"], weights["bias"])

    return [lambda ids=ids: run(ids) for ids in data]


def exact(x: Any) -> Any:
    rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return rows.T @ rows / len(rows)


def test_each_weight_gets_the_moments_of_what_it_is_multiplied_with() -> None:
    stats = pm.calibrate(WEIGHTS, forward, DATA)
    assert set(stats) == {"up.weight", "gate.weight", "down.weight"}  # a table has rows that are looked up
    x, inner = hidden({name: np.asarray(w, np.float32) for name, w in WEIGHTS.items()}, DATA)
    for name, inputs in (("up", x), ("gate", x), ("down", inner)):
        assert stats[name].count == DATA.size
        np.testing.assert_allclose(stats[name].mean(), exact(inputs), rtol=2e-3, atol=1e-4)


PRODUCTS: dict[str, Callable[[Any, Any], Any]] = {
    "pm.linear": lambda x, w: pm.linear(x, w),
    "x @ w.T": lambda x, w: x @ w.T,
    "np.matmul": lambda x, w: np.matmul(x, w.T),
    "w @ x.T": lambda x, w: (w @ x.T).T,
    "rows": lambda x, w: x @ w[:2].T,
    "concatenated": lambda x, w: x @ pm.concatenate([w, w]).T,
}


@pytest.mark.parametrize("scheme", ["float32", "int8", "csr"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_way_to_multiply_is_seen(name: str, scheme: str) -> None:
    x, w = RNG.standard_normal((7, 16)).astype(np.float32), pm.compress(RNG.standard_normal((4, 16)), scheme)
    seen = {}

    def once(weights: Any, data: Any) -> list[Callable[[], Any]]:
        return [lambda: seen.setdefault("y", PRODUCTS[name](data, weights["w"]))]

    stats = pm.calibrate({"w": w}, once, x)
    np.testing.assert_allclose(stats["w"].mean(), exact(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(seen["y"], PRODUCTS[name](x, w), rtol=1e-6)


def test_weights_of_axis_0_have_moments_of_their_rows() -> None:
    x, w = RNG.standard_normal((7, 16)).astype(np.float32), RNG.standard_normal((16, 4))
    for weight in (w, pm.compress(w, "int8", in_axis=0)):
        stats = pm.calibrate({"w": weight}, lambda weights, data: [lambda: data @ weights["w"]], x)
        np.testing.assert_allclose(stats["w"].mean(), exact(x), rtol=1e-5, atol=1e-5)


def test_weights_that_are_multiplied_as_one_share_an_entry() -> None:
    def joined(weights: Any, data: Any) -> list[Callable[[], Any]]:
        both = pm.concatenate([weights["up.weight"], weights["gate.weight"]])
        return [lambda: data @ both.T]

    stats = pm.calibrate(WEIGHTS, joined, np.ones((3, 6)))
    assert stats["up"] is stats["gate"]
    assert stats["up"].count == 3


@pytest.mark.parametrize("memory", [1, 8 * 36 + 1, 8 * 72])
def test_the_memory_decides_how_many_passes_there_are_and_nothing_else(memory: int) -> None:
    whole, steps = pm.calibrate(WEIGHTS, forward, DATA), []
    found = pm.calibrate(WEIGHTS, forward, DATA, memory=memory, progress=lambda *step: steps.append(step))
    assert {name: m.pack().tobytes() for name, m in found.items()} == {n: m.pack().tobytes() for n, m in whole.items()}
    assert steps[-1] == (f"pass {3 if memory < 576 else 2}", 8, 8)


def test_a_seed_draws_the_same_pieces_in_their_order() -> None:
    ran: list[int] = []

    def noted(weights: Any, data: Any) -> list[Callable[[], Any]]:
        pieces = forward(weights, data)
        return [lambda i=i: (ran.append(i), pieces[i]()) for i in range(len(pieces))]

    pm.calibrate(WEIGHTS, noted, DATA, samples=4, seed=3)
    first = list(ran)
    pm.calibrate(WEIGHTS, noted, DATA, samples=4, seed=3)
    assert ran == first * 2
    assert first == sorted(set(first))
    assert len(first) == 4


def test_surprises_give_a_perplexity_and_vectors_a_cosine() -> None:
    surprises = lambda weights, data: [lambda n=n: np.full(n, float(n)) for n in (1, 3)]  # noqa: E731
    found = pm.evaluate(WEIGHTS, surprises, None, reference=WEIGHTS)
    assert found.perplexity == pytest.approx(np.exp((1 + 9) / 4))
    assert (found.reference, found.rows, found.pieces) == (found.perplexity, 4, 2)
    vectors = pm.evaluate(WEIGHTS | {"bias": np.zeros(6)}, forward, DATA, reference=WEIGHTS)
    ours = np.concatenate([piece() for piece in forward(WEIGHTS | {"bias": np.zeros(6)}, DATA)]).astype(np.float64)
    theirs = np.concatenate([piece() for piece in forward(WEIGHTS, DATA)]).astype(np.float64)
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert (vectors.cosine, vectors.least) == (pytest.approx(cosines.mean()), pytest.approx(cosines.min()))


def broken(weights: Any, data: Any) -> list[Callable[[], Any]]:
    return [lambda: 1 // 0]


def nonfinite(weights: Any, data: Any) -> list[Callable[[], Any]]:
    return [lambda: np.full(6, np.inf) @ weights["up.weight"].T]


@pytest.mark.parametrize(
    ("run", "options", "error", "message"),
    [
        (lambda weights, data: [], {}, ValueError, "data: expected at least one piece, got none"),
        (lambda weights, data: [1], {}, TypeError, "forward: expected functions without arguments, got int"),
        (lambda weights, data: [lambda: None], {}, ValueError, "forward: expected products with the weights"),
        (lambda weights, data: weights["nothing"], {}, pm.PumiceError, "to give pieces, got KeyError: 'nothing'"),
        (broken, {}, pm.PumiceError, r"piece 0 of 1, got ZeroDivisionError: .* \(.*test_forwards.py:\d+\)"),
        (nonfinite, {}, pm.NonFiniteError, "up.weight: x: expected finite values up to 2.60, got inf at index"),
        (forward, {"samples": 0}, ValueError, "samples: expected at least 1, got 0"),
        (forward, {"memory": 0}, ValueError, "memory: expected at least 1 byte, got 0"),
        (forward, {"wrong": 1}, pm.PumiceError, "got TypeError: .*unexpected keyword argument 'wrong'"),
    ],
)
def test_a_forward_that_cannot_be_used_is_named(run: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pm.calibrate(WEIGHTS, run, DATA, **options)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.ones((2, 3)), "reference: expected weights to compare vectors with, got None"),
        (np.ones(3, int), "forward: expected floats, surprises .* or vectors .* of piece 0, got int64"),
        (np.float64(1), "forward: expected floats"),
        (np.array([np.nan]), "forward: expected finite results"),
        (np.ones(0), "forward: expected surprises of tokens, or vectors, got nothing"),
    ],
)
def test_results_that_say_nothing_are_refused(result: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pm.evaluate(WEIGHTS, lambda weights, data: [lambda: result], None)


# The command line, on the language model of the examples.


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


AUSTEN = EXAMPLES / "austen"
RUN = ("--forward", EXAMPLES / "llama.py", "--data", AUSTEN / "held_out.txt", "--set", "window=64")


def test_the_command_line_calibrates_converts_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, both, small = tmp_path / "a.safetensors", tmp_path / "both.safetensors", tmp_path / "small"
    assert command("calibrate", AUSTEN, *RUN, "--samples", 4, "-o", a) == 0
    assert command("calibrate", AUSTEN, *RUN, "--samples", 4, "--seed", 1, "--merge", a, "-o", both, "--json") == 0
    layers = json.loads(capsys.readouterr().out.splitlines()[-1])["layers"]
    assert {(layer["features"], layer["rows"]) for layer in layers} == {(256, 504), (640, 504)}
    stats = pm.CalibrationStats.unpack(pm.load(both))
    assert stats["model.layers.0.self_attn.q_proj"] is stats["model.layers.0.self_attn.v_proj"]
    converted = ("convert", AUSTEN, small, "--scheme", "2:4+int4-g64", "--prune", "sparsegpt", "--method", "gptq")
    assert command(*converted, "--stats", both, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    errors = [t["output_error"] for t in report["tensors"] if t["scheme"] == "2:4+int4-g64"]
    assert len(errors) == 28
    assert all(0 < error < 1 for error in errors)
    like = ("--set", f"like={AUSTEN}", "--samples", 3, "--json")
    assert command("eval", small, *RUN, *like, "--reference", AUSTEN) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 3 * 63
    assert 1 < found["perplexity"] / found["reference"] < 1.5


def test_a_seed_gives_the_same_statistics_on_any_number_of_threads(tmp_path: Path) -> None:
    files = [tmp_path / f"{threads}.safetensors" for threads in (1, 2, 4)]
    for threads, file in zip((1, 2, 4), files, strict=True):
        with threadpoolctl.threadpool_limits(threads):
            assert command("calibrate", AUSTEN, *RUN, "--samples", 2, "--seed", 5, "-o", file) == 0
    assert len({file.read_bytes() for file in files}) == 1


def test_on_the_austen_model_data_pay(tmp_path: Path) -> None:
    """Calibrated on one half of the held-out text, scored on the other (docs/quality.md has all of it)."""
    text = (AUSTEN / "held_out.txt").read_text("utf-8")
    for name, part in (("seen", text[: len(text) // 2]), ("unseen", text[len(text) // 2 :])):
        (tmp_path / name).write_text(part, "utf-8")
    run, weights = load_forward((EXAMPLES / "llama.py", "forward")), pm.load(AUSTEN)
    stats = pm.calibrate(weights, run, tmp_path / "seen", samples=8, like=str(AUSTEN))

    def perplexity(weights: Any) -> float:
        found = pm.evaluate(weights, run, tmp_path / "unseen", samples=6, like=str(AUSTEN)).perplexity
        assert found is not None
        return found

    base = perplexity(weights)

    def change(scheme: str, **options: Any) -> tuple[float, np.ndarray]:
        """Of the perplexity, and the errors of the layers' outputs."""
        small = tmp_path / "small"
        report = pm.convert(AUSTEN, small, scheme, keep_embeddings=True, overwrite=True, stats=stats, **options)
        errors = [t.output_error for t in report.tensors if t.output_error is not None]
        return perplexity(pm.load(small)) / base - 1, np.array(errors)

    (rounded, away), (gptq, made_up_for) = (change("int4-g64", method=m) for m in ("nearest", "gptq"))
    assert gptq < 0.03
    assert gptq < rounded
    assert len(away) == 28
    assert (made_up_for < 0.85 * away).all()
    (magnitude, _), (sparsegpt, _) = (change("bitmask+float16", prune=f"{m}:0.5") for m in ("magnitude", "sparsegpt"))
    assert sparsegpt < 0.7 * magnitude


@pytest.mark.parametrize(
    ("forward", "code", "message"),
    [
        ("{}/llama.py:forwrd", 1, "forward: expected a function of .*llama.py, got 'forwrd' .near: 'forward'"),
        ("{}/nowhere.py", 74, "forward: expected a Python file, got .*nowhere.py', which is not there"),
        ("{}/broken.py", 1, "forward: expected .*broken.py to run, got NameError: name 'oops' is not defined"),
    ],
)
def test_a_forward_file_that_cannot_be_used_is_named(
    forward: str, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text("oops")
    folder = EXAMPLES if "llama" in forward else tmp_path
    where = ("--forward", forward.format(folder), "--data", tmp_path)
    assert command("eval", AUSTEN, *where) == code
    said = capsys.readouterr().err
    assert re.search(message, said), said


def test_a_failed_calibration_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    assert command("calibrate", AUSTEN, *RUN, "--samples", 0, "-o", out) == 1
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        command("calibrate", AUSTEN, "--forward", "llama", "--data", "x", "-o", out)
