"""bench/: what the tables, the losses and the comparison of two runs say, on results made by hand."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pumice as pm

BENCH = Path(__file__).parents[1] / "bench"
SETTING = "64 x 64, cold, 2 threads"
OURS, PEER, OTHER = "pumice int4-g128, int8 activations", "torch int4pack g128", "torch int8 dynamic"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its modules, found as a script there finds them, and forgotten afterwards."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run_of(bench: Any, times: dict[str, list[float]], suite: str = "dense", batch: int = 1) -> Any:
    """Results with these milliseconds of each case."""
    results = bench("results")
    kinds = {OURS: "int4", PEER: "int4", OTHER: "int8", results.NUMPY: "float32", results.READ: results.PROBE}
    rows = [
        results.Row(suite, SETTING, case, kinds[case], batch, 64, 64, 2, False, 2048, 8192.0 * batch, 3, rounds, 1e-3)
        for case, rounds in times.items()
    ]
    return results.Results({"machine": "a toaster", "ISA": "scalar", "date": "1970-01-01"}, rows, ["openvino: none"])


def test_the_judge_takes_the_fastest_peer_of_each_round(bench: Any) -> None:
    results = bench("results")
    run = run_of(bench, {OURS: [1.0, 1.0, 1.0], PEER: [2.0, 2.0, 9.0], OTHER: [5.0, 0.5, 3.0], results.READ: [0.1] * 3})
    ours = run.rows[0]
    assert results.judge(ours, run.rows, "int4") == results.Verdict(2.0, PEER)
    assert results.judge(ours, run.rows) == results.Verdict(2.0, OTHER)  # of 2, 0.5 and 3; the probe does not count
    assert results.judge(ours, run.rows, "float32") is None


def test_shares_of_the_ceiling_are_taken_round_by_round(bench: Any) -> None:
    results = bench("results")
    run = run_of(bench, {OURS: [2.0, 4.0, 8.0], results.READ: [1.0, 2.0, 4.0]})
    assert results.share(run.rows[0], run.rows, results.READ) == pytest.approx(0.5)
    assert results.share(run.rows[0], run.rows, results.INT8_PEAK) is None


def test_results_survive_their_file(bench: Any, tmp_path: Path) -> None:
    results = bench("results")
    run = run_of(bench, {OURS: [1.0, 2.0]})
    run.save(tmp_path / "r.json")
    assert results.Results.load(tmp_path / "r.json") == run
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(SystemExit, match="expected a file that bench/run.py wrote"):
        results.Results.load(tmp_path / "r.json")


def test_tables_and_losses_say_who_is_faster(bench: Any) -> None:
    tables, results = bench("tables"), bench("results")
    times = {results.READ: [0.5] * 3, results.NUMPY: [8.0] * 3, OURS: [2.0] * 3, PEER: [4.0] * 3, OTHER: [1.0] * 3}
    found = tables.blocks(run_of(bench, times))
    assert set(found) == {"dense", "losses", "machine"}
    line = next(line for line in found["dense"].splitlines() if line.startswith("| int4-g128, int8"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:4] == ["1", "2.000", "0%"]
    assert cells[6] == "25% reading"
    assert cells[7] == f"2.00 {PEER}"
    assert cells[8] == f"**0.50** {OTHER}"
    assert "a toaster; ISA scalar; 1970-01-01; threads 2; rounds 3" in found["dense"]
    assert "![" in found["dense"]
    assert "1 of 2 comparisons are lost" in found["losses"]
    assert f"| {SETTING} | int4-g128, int8 activations |  | 1: 0.50 | {OTHER} |" in found["losses"]
    assert "not measured: openvino: none" in found["machine"]


def test_a_run_without_losses_says_so(bench: Any) -> None:
    tables = bench("tables")
    assert tables.losses(run_of(bench, {OURS: [1.0], PEER: [2.0]})).startswith("0 of 2 comparisons are lost")
    assert "no peer" in tables.blocks(run_of(bench, {OURS: [1.0], OTHER: [2.0]}, "small"))["small"]


def sparse_run(bench: Any, suite: str, weight: str, times: dict[str, dict[float, float]]) -> Any:
    """Results of a batch of 1 with these milliseconds by share of zeros of each case."""
    results, harness = bench("results"), bench("harness")
    rows = []
    for case, points in times.items():
        for share, ms in points.items():
            setting = str(harness.Setting(64, 64, 2, weight=weight.format(share)))
            nbytes = 2048 if "int4" in case else int(16384 * (1 - share))
            row = (suite, setting, case, "int8", 1, 64, 64, 2, False, nbytes, 8192.0, 3, [ms, ms], 1e-3)
            rows.append(results.Row(*row, {"sparsity": share, "resident": 2048.0, "peak": 1.05}))
    return results.Results({"machine": "a toaster"}, rows)


def test_sparse_tables_have_dense_int4_beside_everything_and_say_which_targets_are_met(bench: Any) -> None:
    tables = bench("tables")
    times = {"MKL csr": {0.9: 3.0}, "pumice csr": {0.9: 2.0}, "pumice int4-g128, int16 activations": {0.9: 1.0}}
    found = tables.blocks(sparse_run(bench, "sparse-csr", "random {}", times))
    assert set(found) == {"sparse-csr", "sparse-targets", "sparse-machine"}
    assert "| pumice csr | 0.400 | 0.00205 | 2 (1.50, -, **0.50**) | 1e-03 |" in found["sparse-csr"]
    assert "1 of 1 targets are met" in found["sparse-targets"]
    assert "| 90% zeros | csr | 1 | MKL csr | >= 1.5 | 1.50 | met |" in found["sparse-targets"]


def test_the_grid_says_from_which_share_of_zeros_a_layout_pays(bench: Any) -> None:
    sparse_tables = bench("sparse_tables")
    rulers = {case: {0.5: 1.0, 0.9: 1.0} for case in sparse_tables.RULERS.values()}
    times = rulers | {"pumice csr": {0.5: 2.0, 0.9: 0.5}, "pumice bitmask": {0.5: 0.9, 0.9: 1.5}}
    found = bench("tables").blocks(sparse_run(bench, "sparse-grid", "random {}", times))["sparse-grid"]
    assert "| 64 x 64 | csr | 84% | 70% / 70% / 70% |" in found
    assert "| 64 x 64 | bitmask | 84% | - / - / - |" in found  # it pays at half zeros, and then no longer
    assert sparse_tables.crossing([(0.5, 1.2), (0.9, 1.5)]) == 0.5


def test_weights_have_the_zeros_that_their_names_say(bench: Any) -> None:
    weights = bench("weights")
    for name in ("random 0.5", "bsr-16x4 0.5", "2:4"):
        w = weights.weights(128, 256, name)["w"]
        assert np.mean(w == 0) == pytest.approx(weights.sparsity(name), abs=0.1), name
    assert (np.count_nonzero(w.reshape(-1, 4), axis=1) == 2).all()
    kept = np.abs(weights.weights(64, 64, "bsr-16x4 0.5")["w"]).reshape(4, 16, 16, 4).any(axis=(1, 3))
    assert weights.weights(64, 64, "bsr-16x4 0.5")["w"].reshape(4, 16, 16, 4).transpose(0, 2, 1, 3)[kept].all()
    assert weights.prose("bsr-16x4 0.9") == "90% zeros in blocks of 16x4"
    assert weights.weights(0, 0, "lyra conv_to_gates")["conv_to_gates"].shape == (3072, 1024)


def test_an_empty_place_of_a_page_is_filled_and_nothing_after_it_is_lost(bench: Any, tmp_path: Path) -> None:
    pages = bench("pages")
    page = tmp_path / "page.md"
    page.write_text("<!-- a -->\n<!-- end -->\nkept\n<!-- b -->\nold\n<!-- end -->\n")
    pages.write_page(page, {"a": "new"})
    assert page.read_text() == "<!-- a -->\nnew\n<!-- end -->\nkept\n<!-- b -->\nold\n<!-- end -->\n"


def test_a_machines_page_has_a_place_for_every_block_and_keeps_the_others(bench: Any, tmp_path: Path) -> None:
    pages, suites = bench("pages"), bench("suites")
    others = {"losses", "machine", "sparse-targets", "sparse-machine", "choice", "threads"}
    names = (others | set(suites.SUITES)) - {"sparse-grid-large"}
    page = tmp_path / "some-machine" / "README.md"
    pages.write_machine(page, {name: f"new {name}" for name in names})
    pages.write_machine(page, {"dense": "newer"})
    text = page.read_text("utf-8")
    assert text.startswith("# Performance on some-machine\n")
    assert all(f"new {name}\n<!-- end -->" in text for name in names - {"dense"})
    assert "newer\n<!-- end -->" in text
    with pytest.raises(SystemExit, match="expected one place for 'nowhere', found 0"):
        pages.write_machine(page, {"nowhere": ""})


def test_the_pages_of_machines_are_of_todays_skeleton_and_known_to_the_first(bench: Any, tmp_path: Path) -> None:
    pages = bench("pages")
    first = pages.PERFORMANCE.read_text("utf-8")
    found = sorted(pages.MACHINES.glob("*/README.md"))
    assert len(found) >= 3
    for page in found:
        again = tmp_path / page.parent.name / page.name
        pages.write_machine(again, pages.blocks_of(page.read_text("utf-8")))
        assert again.read_text("utf-8") == page.read_text("utf-8")
        assert f"(performance/{page.parent.name}/README.md)" in first
        assert page.parent.name in pages.blocks_of(first)
        plots = re.findall(r"\]\((plots/[^)]+)\)", page.read_text("utf-8"))
        assert all((page.parent / plot).is_file() for plot in plots)


def test_a_processor_is_known_by_family_and_model(bench: Any) -> None:
    machine, pages = bench("machine"), bench("pages")
    cpu = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
    assert machine.cpu_name(cpu) == "AMD EPYC (Zen 4)"
    assert machine.cpu_name(cpu.replace("17", "99")) == "AMD EPYC (family 25 model 99)"
    xeon = cpu.replace("AuthenticAMD", "GenuineIntel").replace("AMD EPYC", "Intel(R) Xeon(R) Processor")
    assert machine.cpu_name(xeon.replace("25", "6").replace("17", "207")) == "Intel Xeon (Emerald Rapids)"
    about = {"machine": "Intel Xeon (Emerald Rapids), 2 CPUs, L3 300 MiB", "ISA": "amx"}
    assert pages.machine_name(about) == "intel-xeon-emerald-rapids-amx"


def test_the_page_of_quality_is_what_its_results_say(bench: Any) -> None:
    tables, results = bench("quality_tables"), json.loads((BENCH / "quality.json").read_text("utf-8"))
    page = (BENCH.parent / "docs" / "quality.md").read_text("utf-8")
    for name, text in tables.blocks(results).items():
        assert f"<!-- {name} -->\n{text}\n<!-- end -->" in page


def test_what_nothing_beats_on_both_counts_is_the_front(bench: Any) -> None:
    points = [(4.0, 0.1), (3.0, 0.3), (5.0, 0.2), (2.0, 0.9), (3.0, 0.4)]
    assert bench("quality_tables").pareto(points) == [(2.0, 0.9), (3.0, 0.3), (4.0, 0.1)]


def test_compare_flags_what_moved_beyond_the_spreads(bench: Any) -> None:
    compare, results = bench("compare"), bench("results")
    a = run_of(bench, {results.NUMPY: [8.0, 8.2, 8.4], OURS: [2.0, 2.1, 2.2], PEER: [3.0, 3.5, 4.0]})
    b = run_of(bench, {results.NUMPY: [4.0, 4.1, 4.2], OURS: [1.0, 1.05, 1.1], PEER: [3.4, 3.6, 3.9]})
    text, changed = compare.compare(a, b)
    lines = {line.split("|")[2].strip(): [c.strip() for c in line.split("|")] for line in text.splitlines()}
    assert changed == 2
    assert lines[OURS][6:9] == ["2.00", "1.00", "faster"]  # the machine itself was twice as fast
    assert lines[PEER][8] == ""


def test_cold_weights_have_copies_and_hot_ones_do_not(bench: Any) -> None:
    harness, machine = bench("harness"), bench("machine")
    assert machine.cold_bytes() >= 128 << 20
    assert harness.Setting(64, 64, 1).copies(machine.cold_bytes() // 3) >= 3
    assert harness.Setting(64, 64, 1).copies(2 * machine.cold_bytes()) == 1  # it evicts itself
    assert harness.Setting(64, 64, 1, hot=True).copies(64) == 1


def test_the_error_is_relative_and_rms(bench: Any) -> None:
    harness = bench("harness")
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 8), np.float32), rng.standard_normal((10, 8), np.float32)
    true = x.astype(np.float64) @ w.T.astype(np.float64)
    assert harness.relative_error(x, true * 1.01, w) == pytest.approx(0.01)
    assert harness.relative_error(x, true, np.zeros_like(w)) == 0


def test_large_weights_are_held_against_rows_spread_evenly(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = bench("harness")
    w = np.arange(80.0).reshape(10, 8)
    monkeypatch.setattr(harness, "ORACLE_WEIGHTS", 24)  # three rows
    rows, there = harness.Case("a case", "int8", 80, [None], lambda x: None, lambda: w).oracle
    assert rows.tolist() == [0, 4, 9]
    assert (there == w[rows]).all()
    assert harness.spread(3, 100).tolist() == [0, 1, 2]


def test_workers_do_not_see_what_slows_numpy(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    environment = bench("machine").clean_environment(3)
    assert "OPENBLAS_CORETYPE" not in environment
    assert environment["PUMICE_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "3"


def test_every_family_of_every_suite_exists(bench: Any) -> None:
    suites = bench("suites")
    families = {family for suite in suites.SUITES.values() for family in suite.families}
    assert len(families) > 10
    for family in families:
        module, name = family.split(":")
        assert callable(getattr(bench(module), name)), family


def test_a_small_run_measures_and_skips_aloud(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    done = subprocess.run(
        [
            *(sys.executable, BENCH / "run.py", "small", "--shape", "33x64", "--batches", "1", "--rounds", "2"),
            *("--threads", "1", "--json", path, "--families", "dense_numpy", "dense_int8", "torch_int4"),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "SKIPPED" in done.stderr  # torch, or the shape that it cannot do
    table = json.loads(path.read_text("utf-8"))
    assert {row["case"] for row in table["rows"]} >= {"NumPy float32", "pumice int8, int16 activations"}
    assert all(len(row["rounds"]) == 2 and row["error"] < 0.1 for row in table["rows"])
    assert any("torch" in line for line in table["skipped"])
    assert "| 33 x 64, hot, 1 thread | int8, int16 activations |" in done.stdout


def llm_run(seconds: float, said: list[int]) -> dict[str, Any]:
    parts = dict.fromkeys(["products", "attention", "swiglu", "rms_norm", "rotate"], seconds / 10)
    profile = {"prompt": parts | {"whole": seconds}, "token": parts | {"whole": seconds}}
    return {"prompt": seconds, "token": seconds / 100, "said": said, "profile": profile, "about": "llama 1"}


def test_the_language_model_s_tables_hold_rounds_against_llama_cpp_s(bench: Any) -> None:
    smollm = bench("smollm")
    rounds = {
        "pumice-int16": [llm_run(s, [7, 8, 9]) for s in (2.0, 4.0, 1.0)],
        "pumice-int8": [llm_run(s, [7, 8, 9]) for s in (1.0, 1.0, 1.0)],
        "llama.cpp 1": [llm_run(s, [7, 8, 1]) for s in (1.0, 3.0, 2.0)],
        "llama.cpp 2": [llm_run(s, [7, 8, 9]) for s in (2.0, 1.0, 2.0)],
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in smollm.speeds(rounds).splitlines()[2:]]
    assert rows[0] == ["pumice, int16 activations", "128", "0.50", "50", "0.50"]  # of 1/2, 1/4 and 2
    assert rows[2] == ["llama.cpp 1", "128", "1.00", "50", "1.00"]  # of 1, 1/3 and 1
    assert smollm.agreement(rounds) == [
        "- llama.cpp 1: llama 1; its first 2 likeliest tokens are pumice's",
        "- llama.cpp 2: llama 1; its first 3 likeliest tokens are pumice's",
    ]
    alone = {engine: runs for engine, runs in rounds.items() if engine in smollm.OURS}
    assert "| 128 |  | 50 |  |" in smollm.speeds(alone)
    assert smollm.agreement(alone) == []
    assert "| 256-token prompt, int8 | 1000.00 | 100.00 | 100.00 | 100.00 | 100.00 | 100.00 | 500.00 |" in (
        smollm.profile(rounds)
    )


def test_without_a_network_the_language_model_s_bench_says_that_it_is_skipped(tmp_path: Path) -> None:
    environment = os.environ | {
        "PIP_INDEX_URL": "http://127.0.0.1:9",
        "PIP_NO_INDEX": "1",
        "PUMICE_CACHE": str(tmp_path),
    }
    command = [sys.executable, str(BENCH / "smollm.py"), "quality"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "smollm: no network: SKIPPED, nothing was measured" in done.stderr


def conversions() -> dict[str, Any]:
    """Results of bench/conversion.py: one CPU encodes 1 GB/s, a commit makes 0.5 GB/s."""
    run = {"seconds": 2.0, "source": 4e9, "target": 1e9, "curve": [[0, 10, 30], [1, 70, 20]]}
    run |= {"peaks": {"resident": 95, "address space": 400}}
    tasks = {"seconds": 6.0, "tasks": 2.0, "commit": 2.0, "sha256": "abc"}
    several = {"threads: 1": [tasks | {"seconds": s} for s in (2.0, 8.0, 4.0)], "tasks: 4, then a commit": [tasks] * 3}
    several["tasks: 4, then a commit, target in /dev/shm"] = [tasks] * 3
    killed = {"stops": {"SIGKILL": 4}, "conversions": 2, "chunks": 9, "begun at most": 3, "begun again": 6}
    return {
        "about": dict.fromkeys(("machine", "ISA", "date", "versions"), "a toaster"),
        "disk": {"write": 1.0, "read": 2.0, "sync ms": 1.0},
        "memory": {"normal weights": run, "zeros": run, "zeros, nine times the size": run, "budget": 5e8},
        "limit": run | {"limit": 2e9, "refused": ["no"]},
        "ways": {"source": 4e9, "target": 1e9, "cpus": 2, "runs": several},
        "kills": {"gptq": killed | {"encoded again": 1, "broken": []}},
    }


def test_tables_of_conversions_have_medians_peaks_and_what_was_lost(bench: Any) -> None:
    found = bench("conversion_tables").blocks(conversions())
    assert "| zeros | 4.0 | 1.0 | 2.0 | 2.00 | 70 | 30 | 95 | 400 |" in found["memory"]
    assert "| threads: 1 | 4.00 | 2.00 to 8.00 | 1.00 | 1.00 |" in found["ways"]
    assert "| tasks: 4, then a commit | 6.00 | 6.00 to 6.00 | 0.67 | 0.67 |" in found["ways"]
    assert "All 9 outputs have one SHA-256, `abc`" in found["ways"]
    assert "| int4-g32, GPTQ | 4 | 2 | 9 | 1.50 | 3 | 0.25 | 0 |" in found["kills"]


def test_a_terabyte_costs_what_the_slowest_part_of_it_does(bench: Any) -> None:
    cost = bench("conversion_tables").blocks(conversions())["cost"].splitlines()
    # 1 TB at 1.25 GB/s; 250 GB at 0.5 GB/s and, before that, at 1.25 GB/s over the network
    assert "| 1 | 2 | 13 min | network | 12 min | 25 min | network | 0.4 | 13 min |" in cost
    assert "| 16 | 2 | 4 min | storage | 12 min | 16 min | the commit | 1.3 | 12 min |" in cost
    slower = bench("conversion_tables").Rates(encode=1e8, commit=1e9, share=0.25)
    # 1 TB / (8 CPUs * 0.1 GB/s), and 59,605 chunks that wait for two syncs of 5 ms
    assert slower.encoding(4, 2)["CPU"] == pytest.approx(1250 + 59605 * 0.01 / 8, abs=0.01)


def test_outputs_that_differ_are_no_table(bench: Any) -> None:
    found = conversions()
    found["ways"]["runs"]["threads: 1"][1] = {"seconds": 1.0, "sha256": "abd"}
    with pytest.raises(SystemExit, match="ways: expected one SHA-256"):
        bench("conversion_tables").blocks(found)


def test_the_page_of_conversions_has_a_place_for_every_block(bench: Any, tmp_path: Path) -> None:
    found = bench("conversion_tables").blocks(conversions())
    page = tmp_path / "page.md"
    page.write_text((BENCH.parent / "docs" / "scale.md").read_text("utf-8"), "utf-8")
    bench("pages").write_page(page, found)
    assert all(f"{body}\n<!-- end -->" in page.read_text("utf-8") for body in found.values())


def test_a_generated_checkpoint_is_one_that_loads(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversion = bench("conversion")
    monkeypatch.setattr(conversion, "LAYER", {"fc": (64, 32), "norm": (32,)})
    monkeypatch.setattr(conversion, "BLOCK", 1000)
    for content in ("hole", "normal"):
        path = conversion.checkpoint(tmp_path, 3, content)
        weights = pm.load(path)
        assert len(weights) == 6
        assert bool(np.any(weights["model.layers.2.fc.weight"])) == (content == "normal")
        assert conversion.checkpoint(tmp_path, 3, content) == path
