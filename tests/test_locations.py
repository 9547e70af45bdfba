"""Checkpoints in stores: ranges of bytes are read, parts are written first and one small index last."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import pumice as pm
from pumice.checkpoint import open_reader
from pumice.checkpoint.locations import URL, is_within, locate
from pumice.checkpoint.publication import INDEX, weights_in
from pumice.cli import main
from pumice.conversion import plan
from pumice.conversion.work import FOLDER

RNG = np.random.default_rng(3)
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def small_chunks_and_own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan, "CHUNK_BYTES", 64 * 64 * 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    weights = {f"l{i}.weight": RNG.standard_normal((256, 64)).astype(np.float16) for i in range(4)}
    pm.save(tmp_path / "source", weights | {"bias": RNG.standard_normal(9)}, max_shard_size=40_000)
    (tmp_path / "source" / "config.json").write_text('{"model_type": "none"}')
    return tmp_path / "source"


def put(folder: Path, url: str) -> str:
    for path in folder.iterdir():
        (locate(url) / path.name).upload(path)
    return url


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(url: str) -> dict[str, bytes]:
    folder = locate(url)
    return {name: (folder / name).read_bytes() for name in folder.names()}


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files and listings, whole or by ranges; counts bytes of bodies."""

    served = 0
    ranges = True

    def do_GET(self) -> None:
        path, asked = Path(self.translate_path(self.path)), self.headers.get("Range")
        if asked is None or path.is_dir() or not path.exists() or not self.ranges:
            super().do_GET()
            return
        begin, _, last = asked.removeprefix("bytes=").partition("-")
        data = path.read_bytes()[int(begin) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{int(begin) + len(data) - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        Ranges.served += len(data)  # before the client has them and goes on
        self.wfile.write(data)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        data = source.read()
        Ranges.served += len(data)
        outputfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *request: Ranges(*request, directory=str(tmp_path))
    )
    Ranges.served, Ranges.ranges = 0, True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "file", ["gptq/v2-4bit", "torch-nested.pt", "numpy.npz", "scipy-csr.npz", "ggml.gguf", "v1.safetensors"]
)
def test_formats_are_read_from_a_store_as_from_a_folder(file: str, memory: Any) -> None:
    path = GOLDEN / file
    url = f"memory://models/{path.name}"
    if path.is_dir():
        put(path, url)
    else:
        locate(url).upload(path)
    with pm.load(path) as here, pm.load(url) as there:
        assert list(here) == list(there)
        assert all(np.array_equal(np.asarray(here[name]), np.asarray(there[name])) for name in here)
    assert pm.verify(url).ok


def test_shards_and_own_files_are_read_from_a_store(source: Path, memory: Any) -> None:
    url = put(source, "memory://source")
    pm.convert(source, source.with_name("small.safetensors"), "int4-g32")
    locate("memory://small.safetensors").upload(source.with_name("small.safetensors"))
    with pm.load(source) as here, pm.load(url) as there:
        assert {name: here[name].tobytes() for name in here} == {name: there[name].tobytes() for name in there}
    with pm.load("memory://small.safetensors") as there:
        assert there["l0.weight"].scheme == "int4-g32"
        assert str(there.path) == "memory://small.safetensors"
    assert pm.verify("memory://small.safetensors").ok
    assert main(["inspect", url]) == main(["diff", str(source), url]) == 0


def test_a_tensor_is_read_by_its_range_and_no_more(tmp_path: Path, web: str) -> None:
    w = {f"l{i}.weight": RNG.standard_normal((1000, 500)).astype(np.float32) for i in range(5)}
    pm.save(tmp_path / "a.safetensors", w)
    with pm.load(f"{web}/a.safetensors") as m:
        opened = Ranges.served
        assert m.info("l3.weight").shape == (1000, 500)
        assert np.array_equal(m["l3.weight"], w["l3.weight"])
        assert Ranges.served - opened == 4 * 1000 * 500
    assert opened < 2**17
    assert main(["cat", f"{web}/a.safetensors", "l2.weight", "--slice", "5:7"]) == 0
    assert Ranges.served < 2**18 + 4 * 1000 * 500


def test_a_conversion_reads_each_byte_of_a_web_server_once(
    tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "CHUNK_BYTES", 4 << 20)
    w = {f"l{i}.weight": RNG.standard_normal((2048, 1024)).astype(np.float16) for i in range(2)}
    pm.save(tmp_path / "in", w, max_shard_size=5_000_000)
    pm.convert(tmp_path / "in", tmp_path / "expected", "int4-g32")
    Ranges.served = 0
    pm.convert(f"{web}/in", tmp_path / "t", "int4-g32", workers=2)
    assert contents(tmp_path / "t") == contents(tmp_path / "expected")
    assert Ranges.served < (8 << 20) + (1 << 19)  # headers, listings, and small pieces that came with them


def test_a_server_without_ranges_is_an_error(source: Path, web: str) -> None:
    Ranges.ranges = False
    with pytest.raises(OSError, match="expected a store that reads ranges of bytes, got all"):
        pm.load(f"{web}/source/{next(source.glob('*.safetensors')).name}")
    with pytest.raises(FileNotFoundError, match="expected an existing file or folder, got 'http"):
        pm.load(f"{web}/nothing")


@pytest.mark.parametrize("shards", [20_000, 10**9])
def test_a_store_gets_the_bytes_that_a_folder_gets(shards: int, source: Path, memory: Any) -> None:
    pm.convert(source, source.with_name("expected"), "int4-g32", max_shard_size=shards)
    report = pm.convert(put(source, "memory://in"), "memory://out", "int4-g32", max_shard_size=shards)
    expected, got = contents(source.with_name("expected")), stored("memory://out")
    assert sorted(report.copied) == ["config.json"]
    if shards == 10**9:  # one shard has an index, too
        assert got.pop(INDEX)
        expected["model-00001-of-00001.safetensors"] = expected.pop("model.safetensors")
    assert got == expected
    assert not list((source.parent / "cache").rglob("*convert*"))
    with pytest.raises(FileExistsError, match="got a folder that holds 'config.json' at 'memory://out'"):
        pm.convert("memory://in", "memory://out", "int4-g32")
    assert pm.convert("memory://in", "memory://out", "int4-g32", max_shard_size=shards, resume=True).already_complete


def test_readers_of_a_store_see_nothing_before_the_index(
    source: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    upload = URL.upload

    def watched(self: URL, file: Path) -> None:
        with pytest.raises((pm.FormatError, FileNotFoundError)):
            open_reader("memory://out")
        names.append(self.name)
        upload(self, file)

    monkeypatch.setattr(URL, "upload", watched)
    pm.convert(source, "memory://out", "int4-g32", max_shard_size=20_000)
    assert names == ["config.json", *sorted(n for n in names if "-of-" in n), INDEX]
    assert pm.verify("memory://out").ok


def test_an_upload_that_was_stopped_goes_on_and_leaves_nothing(
    source: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pm.convert(source, source.with_name("expected"), "int4-g32", max_shard_size=20_000)
    names: list[str] = []
    upload = URL.upload

    def stopping(self: URL, file: Path) -> None:
        names.append(self.name)
        if len(names) == 3:
            memory.pipe(self._path, b"half")
            raise OSError("the line broke")
        upload(self, file)

    monkeypatch.setattr(URL, "upload", stopping)
    work = source.with_name("work")
    with pytest.raises(OSError, match="the line broke"):
        pm.convert(source, "memory://out", "int4-g32", max_shard_size=20_000, work=work)
    assert [path.name.partition("-")[0] for path in work.iterdir()] == [FOLDER[1:].partition("-")[0]]
    pm.convert(source, "memory://out", "int4-g32", max_shard_size=20_000, work=work, resume=True)
    assert stored("memory://out") == contents(source.with_name("expected"))
    assert sorted(names) == sorted([*stored("memory://out"), names[2]])  # what was whole is not sent again
    assert not list(work.iterdir())


def test_old_weights_of_a_store_stay_until_the_new_index(
    source: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pm.convert(source, "memory://out", "int8", max_shard_size=20_000)
    upload = URL.upload

    def watched(self: URL, file: Path) -> None:
        with pm.load("memory://out") as m:
            assert m["l0.weight"].scheme == "int8"
        upload(self, file)

    monkeypatch.setattr(URL, "upload", watched)
    pm.convert(source, "memory://out", "int4-g32", max_shard_size=20_000, overwrite=True)
    with pm.load("memory://out") as m:
        assert m["l0.weight"].scheme == "int4-g32"
    assert pm.verify("memory://out").ok
    assert {"config.json", *weights_in(locate("memory://out"))} == stored("memory://out").keys()


def test_a_source_that_changes_in_its_store_is_found(source: Path, memory: Any) -> None:
    url = put(source, "memory://in")

    def change(*_: object) -> None:
        time.sleep(0.002)
        put(source, url)

    with pytest.raises(pm.SourceChangedError, match="expected 'memory://in/.*' to stay as it was"):
        pm.convert(url, source.with_name("t"), "int4-g32", progress=change, workers=1)


def test_what_only_paths_can_do_says_so(source: Path, memory: Any) -> None:
    url = put(source, "memory://in")
    with pytest.raises(pm.PumiceError, match="delete_source: expected a safetensors source on this machine"):
        pm.convert(url, source.with_name("t"), "int8", delete_source=True)
    with pytest.raises(ValueError, match="work: expected none for a target on this machine"):
        pm.convert(source, source.with_name("t"), "int8", work=source)
    with pytest.raises(ValueError, match="target: expected a path of this machine, got 'memory://x'"):
        pm.save("memory://x", {"w": np.zeros(3)})
    with pytest.raises(ValueError, match="target: expected another path than the source"):
        pm.convert(url, url, "int8")


def test_urls_name_files_as_paths_do() -> None:
    url = locate("memory://a/b.safetensors")
    assert (url.name, url.stem, url.suffix, str(url.parent)) == ("b.safetensors", "b", ".safetensors", "memory://a")
    assert str(url.parent.parent / "c") == "memory://c"
    assert str(url.with_name("c") / "d") == "memory://a/c/d"
    assert repr(locate("memory://")) == "URL('memory://')"
    assert is_within(url, url.parent)
    assert not is_within(url, locate("memory://a/b"))
    assert not is_within(url, Path("a"))
    assert locate("file:///a/b") == Path("/a/b")
    assert locate("a::b") == Path("a::b")


def test_a_store_within_an_archive_is_a_store(source: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "all"), "zip", source)
    with pm.load(f"zip://::{tmp_path}/all.zip") as there, pm.load(source) as here:
        assert np.array_equal(there["l1.weight"], here["l1.weight"])


@pytest.mark.parametrize(
    ("url", "module", "message"),
    [
        (
            "s3://bucket/model",
            "fsspec.core",
            r"expected fsspec for 's3://bucket/model', got none: pip install pumice\[fsspec\]",
        ),
        ("s3://bucket/model", "s3fs", "expected what fsspec needs for 's3://bucket/model', got none: .*s3fs"),
        ("no-such://bucket", "s3fs", "expected a URL of a store that fsspec knows, got 'no-such://bucket'"),
    ],
)
def test_what_is_missing_is_named(
    url: str, module: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=message):
        pm.load(url)
    assert main(["inspect", url]) == 1
    assert "path: expected" in capsys.readouterr().err


def test_paths_do_without_fsspec(source: Path) -> None:
    code = (
        "import sys, pumice as pm; pm.convert(sys.argv[1], sys.argv[2], 'int8'); print(len(pm.load(sys.argv[2])),"
        "[m for m in sys.modules if m.startswith('fsspec')])"
    )
    command = [sys.executable, "-c", code, str(source), str(source.with_name("t"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[0] == "5 []"
