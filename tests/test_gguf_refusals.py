"""GGUF files that lie: each is refused with what is wrong, quickly, and before anything is allocated for it."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

import pumice as pm
from pumice.checkpoint import open_reader
from pumice.checkpoint.gguf import GGUFReader
from pumice.cli import main
from tests.fuzz import gguf_bytes as b

ONES = np.ones(8, np.float32).tobytes()  # 32 bytes
HUGE = 1 << 63


def tensor(dims: tuple[int, ...] = (4, 2), kind: int = 0, offset: int = 0, data: bytes = ONES) -> bytes:
    return b.file(rows=[b.row("w", dims, kind, offset)], data=data)


def two(first: int, second: int) -> bytes:
    return b.file(rows=[b.row("a", (4, 2), 0, first), b.row("b", (4, 2), 0, second)], data=ONES * 2)


def keyed(*fields: bytes) -> bytes:
    return b.file(fields, alignment=1)  # nothing behind them


LIES = [
    (b"GGUF" + bytes(8), "at least 24 bytes, got 12 bytes"),
    (b.file(magic=b"GGUX"), "starts with b'GGUF', got b'GGUX'"),
    (b.file(magic=b"tjgg"), "GGUF, got GGJT, a format from before GGUF"),
    (b.file(magic=b"lmgg"), "GGUF, got GGML, a format from before GGUF"),
    (b.file(version=1), r"version 2 or 3, got version 1 \(its counts have 32 bits"),
    (b.file(version=4), r"version 2 or 3, got version 4 \(written by a newer"),
    (b.file(version=0), "version 2 or 3, got version 0"),
    (b.file(version=3 << 24), "a little-endian file, got a big-endian one, version 3"),
    (b.file(counts=(0, HUGE)), f"at most .* keys in .* bytes, got {HUGE}"),
    (b.file(counts=(HUGE, 0)), f"at most .* tensors in .* bytes, got {HUGE}"),
    (b.file(counts=(0, 1)), "a key|keys"),
    (keyed(b.u64(HUGE) + b"a key"), "a key of at most 65535 bytes"),
    (keyed(b.u64(5000) + b"key" + bytes(30)), "5000 bytes of a key at byte 32, got"),
    (keyed(b.field(b"\xff", b.U8, b"\0")), "a key in UTF-8 at byte 32, got byte 0 is not"),
    (keyed(b.field("k", b.TEXT, b.u64(HUGE))), f"{HUGE} bytes of k at byte"),
    (keyed(b.field("k", b.U64, b"\0" * 4)), "8 bytes of k at byte"),
    (keyed(b.field("k", 13, bytes(8))), "k: expected a kind of value in 0..12, got 13"),
    (keyed(b.array("k", b.F32, HUGE, b"")), f"k: expected an array of at most .* values, got {HUGE}"),
    (keyed(b.array("k", b.TEXT, HUGE, b"")), f"k: expected an array of at most .* values, got {HUGE}"),
    (keyed(b.array("k", b.TEXT, 2, b.text("x") + b.u64(HUGE))), "bytes of k at byte"),
    (keyed(b.array("k", b.TEXT, 3, b.text("x" * 40) + b.text("x"))), "8 bytes of k at byte"),
    (keyed(b.array("k", b.ARRAY, 1, b.u32(0) + b.u64(0))), "k: expected an array of numbers or .*, got an array of"),
    (keyed(b.array("k", 99, 1, b"")), "k: expected a kind of value in 0..12, got 99"),
    (keyed(b.field("k", b.U8, b"\0"), b.field("k", b.I8, b"\0")), "k: expected every key once"),
    (keyed(b.field("general.alignment", b.U32, b.u32(0))), "a power of two up to 1048576, got 0"),
    (keyed(b.field("general.alignment", b.U32, b.u32(48))), "a power of two up to 1048576, got 48"),
    (keyed(b.field("general.alignment", b.U32, b.u32(1 << 31))), "a power of two up to 1048576, got 2147483648"),
    (keyed(b.field("general.alignment", b.U64, b.u64(32))), "a uint32, got uint64"),
    (keyed(b.array("general.alignment", b.U32, 1, b.u32(32))), "a uint32, got 1 x uint32"),
    (tensor(dims=(1, 1, 1, 1, 8)), "w: expected at most 4 dimensions, got 5"),
    (b.file(rows=[b.text("w") + b.u32(1 << 31) + bytes(20)]), "w: expected at most 4 dimensions, got 2147483648"),
    (tensor(dims=(HUGE, 2)), r"w: expected dimensions up to 2\^48"),
    (tensor(dims=(1 << 40, 1 << 40)), r"w: expected dimensions up to 2\^48"),
    (tensor(dims=(0, 1 << 40, 1 << 40)), r"w: expected dimensions up to 2\^48"),
    (tensor(dims=(1 << 32, 1 << 32, 0)), r"w: expected dimensions up to 2\^48"),
    (tensor(dims=(16, 2), kind=b.Q4_0), r"w: expected columns in multiples of 32 for Q4_0, got shape \(2, 16\)"),
    (tensor(dims=(32, 2), kind=b.Q4_K), "w: expected columns in multiples of 256 for Q4_K"),
    (tensor(dims=(), kind=b.Q4_0), "w: expected columns in multiples of 32"),
    (tensor(dims=(0, 1 << 47), kind=b.Q4_0), "w: expected columns in multiples of 32"),
    (tensor(dims=(32, 0, 1 << 47), kind=b.Q4_0), "w: expected columns in multiples of 32"),
    (tensor(offset=8), "w: expected data at a multiple of 32, got byte 8"),
    (tensor(offset=32), "w: expected data in bytes 128..160, got a file of 128 bytes"),
    (tensor(offset=HUGE), "w: expected data in bytes"),
    (tensor(data=b""), "w: expected data in bytes 96..128, got a file of 96 bytes"),
    (tensor(dims=(4, 1 << 40)), "w: expected data in bytes"),
    (two(0, 0), "b: expected data behind that of 'a', which ends at byte"),
    (two(32, 32), "b: expected data behind that of 'a', which ends at byte"),
    (b.file(rows=[b.row("w", (8,), 0, 0)] * 2, data=ONES), "w: expected every tensor once"),
    (b.file(rows=[b.row(b"\xff", (8,), 0, 0)], data=ONES), "a tensor's name in UTF-8"),
    (keyed(b.field("split.count", b.U16, b"\3\0")), "split.count: expected a part of 3 to be called .*, got bytes"),
    (keyed(b.array("split.count", b.U16, 1, b"\3\0")), "split.count: expected a whole number, got ndarray"),
]


@pytest.mark.parametrize(("blob", "message"), LIES, ids=[message for _, message in LIES])
def test_a_header_that_lies_is_refused(blob: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(pm.FormatError, match=message):
        GGUFReader(blob)
    path = tmp_path / "model.gguf"
    path.write_bytes(blob)
    for io in ("mmap", "read"):
        with pytest.raises(pm.FormatError, match=message.replace("got bytes", "got 'model.gguf'")):
            GGUFReader(path, io=io)


def test_a_header_that_lies_allocates_nothing() -> None:
    tracemalloc.start()
    for blob, message in LIES:
        with pytest.raises(pm.FormatError, match=message):
            GGUFReader(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b.field("k", b.BOOL, b"\7"), "k: expected a bool of 0 or 1, got 7"),
        (b.array("k", b.BOOL, 2, b"\1\2"), "k: expected a bool of 0 or 1, got 2"),
        (b.field("k", b.TEXT, b.text(b"ab\xff")), "k: expected UTF-8 text, got byte .* is not"),
        (b.array("k", b.TEXT, 2, b.text("ab") + b.text(b"\xff")), "k: expected UTF-8 text, got byte .* is not"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused_when_it_is_asked_for(value: bytes, message: str) -> None:
    m = pm.load(b.file([value, b.field("good", b.U8, b"\5")]))
    assert m.fields["good"] == 5
    with pytest.raises(pm.FormatError, match=message):
        m.fields["k"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (31, r"w: expected a type of numbers, .* got Q4_0_4_4 \(removed from the format"),
        (4, r"w: expected a type of numbers, .* got Q4_2 \(removed from the format"),
        (77, r"w: expected a type of numbers, .* got type 77 \(written by a newer ggml"),
    ],
)
def test_types_that_are_unknown_or_removed_are_refused_when_asked_for(kind: int, message: str) -> None:
    rows = [b.row("good", (4, 2), 0, 0), b.row("w", (4, 2), kind, 32)]
    m = pm.load(b.file(rows=rows, data=ONES * 2))
    assert m["good"].sum() == 8
    assert m.info("w").shape == (2, 4)
    assert m.info("w").dtype in message.replace(r"\(", "")
    for ask in (m.__getitem__, m.raw):
        with pytest.raises(pm.FormatError, match=message):
            ask("w")
    for name, message in (
        ("nobody", "a tensor of the checkpoint, got 'nobody'\""),
        ("godo", "got 'godo' .near: 'good'"),
    ):
        with pytest.raises(KeyError, match=message):
            m.info(name)


def test_text_that_would_be_a_program_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A template of a chat is a program for Jinja, and names end up in paths and on terminals."""
    ran = tmp_path / "ran"
    jinja = f"{{{{ cycler.__init__.__globals__.os.system('touch {ran}') }}}}"
    evil = [jinja, f"__import__('os').system('touch {ran}')", f"$(touch {ran})", f"`touch {ran}`", f"../../{ran}"]
    keys = ["tokenizer.chat_template", "general.architecture", "general.name", "tokenizer.ggml.pre", "evil.file"]
    fields = [b.field(key, b.TEXT, b.text(text)) for key, text in zip(keys, evil, strict=True)]
    fields.append(b.array("tokenizer.ggml.tokens", b.TEXT, len(evil), b"".join(map(b.text, evil))))
    path = tmp_path / "m.gguf"
    path.write_bytes(b.file(fields, [b.row(f"{evil[2]}.weight", (4, 2), 0, 0)], ONES))
    with pm.load(path) as m:
        assert [m.fields[key] for key in keys] == evil
        assert m.fields["tokenizer.ggml.tokens"] == tuple(evil)
        assert m[f"{evil[2]}.weight"].sum() == 8
    out = tmp_path / "out.safetensors"
    for command in (["inspect", path], ["cat", path, f"{evil[2]}.weight"], ["convert", path, out, "--scheme", "int8"]):
        assert main(list(map(str, command))) == 0
    assert evil[2] in capsys.readouterr().out
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.gguf", "out.safetensors"]


def test_a_vector_in_blocks_is_refused_when_asked_for() -> None:
    m = pm.load(b.file(rows=[b.row("w", (32,), b.Q4_0, 0)], data=bytes(18)))
    assert m.info("w").dtype == "Q4_0"
    with pytest.raises(pm.FormatError, match=r"w: expected two or more dimensions for Q4_0, got shape \(32,\)"):
        m["w"]


def test_a_vocabulary_longer_than_the_cap_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pumice.checkpoint.gguf.header.TEXTS_CAP", 2)
    with pytest.raises(pm.FormatError, match="k: expected an array of at most 2 texts, got 3"):
        pm.load(keyed(b.array("k", b.TEXT, 3, b.text("") * 3)))


def test_a_file_cut_anywhere_is_refused() -> None:
    blob = b.model()
    assert pm.load(blob)["norm"].tolist() == [1, 2, 3, 4]
    for length in range(len(blob)):
        with pytest.raises(pm.FormatError):
            pm.load(blob[:length])


def test_a_header_longer_than_the_window_is_refused_where_it_is_cut(tmp_path: Path) -> None:
    texts = b"".join(b.text("x" * (i % 90)) for i in range(40_000))  # longer than the window that is looked at first
    blob = keyed(b.array("k", b.TEXT, 40_000, texts))
    path = tmp_path / "a.gguf"
    for cut in (1 << 20, (1 << 20) + 3, len(blob) - 64):
        path.write_bytes(blob[:cut])
        for io in ("mmap", "read"):
            with pytest.raises(pm.FormatError, match="bytes of k at byte"):
                open_reader(path, io=io)


# Split files.


def split(folder: Path) -> list[Path]:
    """Three parts, as the gguf package writes them."""
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"w{i}", np.full((2, 3), i, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


def test_a_split_file_opens_by_any_part_or_its_folder(tmp_path: Path) -> None:
    parts = split(tmp_path)
    assert len(parts) == 3
    for path in (*parts, tmp_path):
        with open_reader(path) as reader:
            assert reader.names() == tuple(f"w{i}" for i in range(5))
            assert all((reader.array(f"w{i}") == i).all() for i in range(5))
            assert reader.files == tuple(parts)
            assert reader.metadata["general.architecture"] == "llama"


def test_split_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    parts = split(tmp_path)
    parts[1].rename(tmp_path / "away")
    with pytest.raises(pm.FormatError, match=r"part 2 of 3, 'm-00002-of-00003.gguf', beside it, got no such file"):
        open_reader(parts[0])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(pm.FormatError, match="split.no: expected part 1 of 3, as its name says, got part 2 of 3"):
        open_reader(parts[0])
    blob = (tmp_path / "away").read_bytes()
    parts[1].write_bytes(blob.replace(b"w2", b"w1"))
    with pytest.raises(pm.FormatError, match="w1: expected a tensor in one part, got two parts that have it"):
        open_reader(parts[0])
    parts[1].write_bytes(blob)
    whole = parts[0].read_bytes()
    key = b"split.tensors.count"
    at = whole.index(key) + len(key) + 4
    parts[0].write_bytes(whole[:at] + struct.pack("<i", 7) + whole[at + 4 :])
    with pytest.raises(pm.FormatError, match="split.tensors.count: expected 5 tensors, as the parts have, got 7"):
        open_reader(parts[0])
    lonely = tmp_path / "renamed.gguf"
    parts[2].rename(lonely)
    with pytest.raises(pm.FormatError, match="a part of 3 to be called NAME-00001-of-00003.gguf, got 'renamed.gguf'"):
        open_reader(lonely)


def test_a_folder_with_two_models_is_refused(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b.model())
    with pytest.raises(pm.FormatError, match="one GGUF model, got a.gguf, b.gguf"):
        open_reader(tmp_path)
    (tmp_path / "b.gguf").unlink()
    assert "norm" in open_reader(tmp_path).names()
