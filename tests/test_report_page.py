"""`pumice report`: what it counts, beside NumPy and SciPy, and the page it writes."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pumice as pm
from pumice.checkpoint import open_reader
from pumice.cli import main
from pumice.page import nbytes, page
from pumice.survey import BINS, Binner, Mapper, natural, survey


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    source = {
        "layers.10.fc.weight": rng.standard_normal((96, 128)).astype("f4"),
        "layers.2.fc.weight": rng.standard_normal((40, 64)).astype("f2"),
        "layers.2.<fc>.bias": np.zeros(40, "f4"),
    }
    pm.save(tmp_path / "source.safetensors", source)
    pm.convert(tmp_path / "source.safetensors", tmp_path / "model.safetensors", "int4-g32")
    return tmp_path / "model.safetensors"


def surveyed(path: Path) -> dict[str, Any]:
    with open_reader(path) as reader:
        return {t.name: t for t in survey(reader, str(path)).tensors}


def test_codes_are_counted_as_numpy_counts_them(model: Path) -> None:
    found = surveyed(model)["layers.10.fc.weight"]
    assert found.codes == dict(sorted(Counter(pm.load(model)[found.name].codes().ravel().tolist()).items()))
    assert found.nbytes_before == 4 * 96 * 128
    assert 0 < found.error < 0.2


@pytest.mark.parametrize("scheme", ["csr", "bitmask+int8", "bsr-4x4", "float16"])
def test_zeros_and_values_are_those_of_the_decoded_matrix(scheme: str, tmp_path: Path) -> None:
    w = np.random.default_rng(1).standard_normal((50, 60)).astype("f4")
    w[np.random.default_rng(2).random(w.shape) < 0.7] = 0
    array = pm.compress(w, scheme)
    pm.save(tmp_path / "a.safetensors", {"w": array})
    found, dense = surveyed(tmp_path / "a.safetensors")["w"], array.to_dense()
    assert found.zeros == np.mean(dense == 0)
    assert sum(found.values.counts) == dense.size
    bins = np.histogram(dense, BINS, (-found.values.bound, found.values.bound))[0]
    assert abs(np.asarray(found.values.counts) - bins).max() <= 1  # a value on an edge of earlier, narrower bins


def test_a_density_map_has_the_shares_of_each_cell() -> None:
    w = np.zeros((100, 130))
    w[:50, :65] = 1
    mapper = Mapper(*w.shape)
    for start in range(0, 100, 7):
        mapper.add(start, w[start : start + 7])
    density = np.asarray(mapper.density)
    assert density.shape == (48, 48)
    assert (density[:24, :24] == 1).all()
    assert density[24:].max() == density[:, 24:].max() == 0


def test_a_histogram_is_the_same_however_its_values_come() -> None:
    values = np.random.default_rng(3).standard_normal(10_000).astype("f4") * np.float32(0.01)
    values[5000] = 900.0
    whole, parts = Binner(), Binner()
    whole.add(values)
    for start in range(0, 10_000, 100):
        parts.add(values[start : start + 100])
    parts.add(np.array([np.nan, np.inf]))
    assert parts.histogram is not None
    assert whole.histogram is not None
    assert parts.histogram.bound == whole.histogram.bound == 1024
    assert sum(parts.histogram.counts) == 10_000
    assert abs(np.asarray(parts.histogram.counts) - whole.histogram.counts).max() <= 10


def test_layer_2_comes_before_layer_10(model: Path) -> None:
    assert [name.split(".")[1] for name in surveyed(model)] == ["2", "2", "10"]
    assert sorted(["b", "a.10", "a.9", "10"], key=natural) == ["10", "a.9", "a.10", "b"]


class Tags(HTMLParser):
    """Checks that tags close in order; counts them."""

    EMPTY = ("meta", "img", "wbr", "rect", "circle", "line")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.EMPTY or self.open.pop() == tag


def test_the_page_is_whole_html_with_every_array_and_nothing_from_elsewhere(model: Path) -> None:
    output = model.with_name("page.html")
    assert main(["report", str(model), "-o", str(output)]) == 0
    text = output.read_text("utf-8")
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert tags.seen["tr"] >= 3 + 3
    assert tags.seen["script"] == 0
    assert not re.search(r"https?:|url\(|@import", text)
    assert "layers.<wbr>2.<wbr>&lt;fc&gt;.<wbr>bias" in text, "names are escaped"
    assert main(["report", str(model), "-o", str(output)]) == 2, "a file that is there is kept"
    assert main(["report", str(model), "-o", str(output), "--overwrite"]) == 0
    assert output.read_text("utf-8") == text, "equal checkpoints make equal pages"


def test_the_page_maps_sparse_arrays_as_pictures(tmp_path: Path) -> None:
    w = np.eye(64, dtype="f4")
    pm.save(tmp_path / "a.safetensors", {"w": pm.compress(w, "csr")})
    with open_reader(tmp_path / "a.safetensors") as reader:
        text = page(survey(reader, "a"), "0")
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(picture).startswith(b"\x89PNG")


def test_errors_can_be_measured_against_the_original(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["report", str(model), "--against", str(model.with_name("source.safetensors")), "--json"]
    assert main(arguments) == 0
    table = json.loads(capsys.readouterr().out)
    known = surveyed(model)
    for tensor in table["tensors"]:
        noted = known[tensor["name"]].error
        assert tensor["error"] == pytest.approx(noted or 0, rel=1e-6)


def test_an_output_of_another_kind_is_refused_before_anything_is_read(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(model), "-o", "page.pdf"]) == 1
    assert "output: expected a name that ends in .html, got 'page.pdf'" in capsys.readouterr().err


def test_a_checkpoint_without_values_makes_a_page(tmp_path: Path) -> None:
    pm.save(tmp_path / "a.safetensors", {"none": np.zeros((0, 4), "f4"), "one": np.array(2.0, "f4")})
    assert main(["report", str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "a.html")]) == 0


def test_bytes_are_rounded_for_people() -> None:
    assert [nbytes(n) for n in (0, 999, 1000, 999_600, 10**15)] == ["0 B", "999 B", "1 KB", "1 MB", "1e+03 TB"]
