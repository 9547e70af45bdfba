"""What other quantizers stored is converted as it is: every golden, every part, to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pumice as pm

GOLDEN = Path(__file__).parent / "golden"
QUANTIZED = [
    *(path for form in ("compressed_tensors", "gptq", "awq", "float8") for path in (GOLDEN / form).iterdir()
      if path.is_dir()),
    GOLDEN / "ggml.gguf",
    *sorted(GOLDEN.glob("scipy-[bc]*.npz")),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::pumice.FormatWarning")
@pytest.mark.parametrize("path", sorted(QUANTIZED), ids=lambda path: str(path.relative_to(GOLDEN)))
def test_converting_keeps_the_parts_of_what_is_compact_already(path: Path, tmp_path: Path) -> None:
    before = pm.load(path)
    pm.convert(path, tmp_path / "out", "int4-g64", ignore=["."])
    after = pm.load(tmp_path / "out")
    assert set(after) == set(before)
    for name, w in before.items():
        if not isinstance(w, pm.CompactArray):
            np.testing.assert_array_equal(after[name], w, strict=True)
            continue
        assert (type(after[name]), after[name].scheme, after[name].shape) == (type(w), w.scheme, w.shape)
        kept = after[name].parts()
        assert kept.keys() == w.parts().keys()
        for part, array in w.parts().items():
            assert (kept[part].dtype, kept[part].tobytes()) == (array.dtype, array.tobytes()), f"{name}: {part}"


def test_there_are_files_of_every_quantizer_and_they_hold_compact_weights() -> None:
    assert len(QUANTIZED) > 60
    assert all(any(pm.load(p).info(n).compact for n in pm.load(p)) for p in QUANTIZED if p.suffix)


@pytest.mark.filterwarnings("ignore::pumice.FormatWarning")
@pytest.mark.parametrize("form", ["compressed_tensors/pack-4-group", "gptq/v2-4bit", "awq/autoawq", "ggml.gguf"])
def test_another_scheme_is_given_only_where_it_is_asked_for(form: str, tmp_path: Path) -> None:
    source = pm.load(GOLDEN / form)
    name = next(name for name in source if source.info(name).compact)
    for allow in (False, True):
        pm.convert(GOLDEN / form, tmp_path / f"{allow}", "int8", tensors={f"^{name}$": "int8"}, allow_requantize=allow)
        w = pm.load(tmp_path / f"{allow}")[name]
        assert w.scheme == ("int8" if allow else source[name].scheme)
