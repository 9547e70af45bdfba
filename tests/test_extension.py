"""A newcomer is one file and one import: conformance then tests it without a change to any other file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CODEC = '''
"""nf4: sixteen levels, closer together near 0, one scale per row or group (Dettmers et al. 2023, arXiv:2305.14314)."""

import numpy as np
from pumice import reference
from pumice.values.base import Codec, register

LEVELS = np.array(
    [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
     0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0], np.float32)


class NF4(Codec):
    name, bits, group = "nf4", 4, True

    def form(self, scheme, rows, cols):
        groups = max(1, -(-cols // (scheme.group or max(cols, 1))))
        return {"levels": (np.uint8, (rows, -(-cols // 2))), "scale": (np.float32, (rows, groups))}

    def encode(self, w, scheme, scale_dtype=None):
        rows, cols = w.shape
        group = scheme.group or max(cols, 1)
        scale = np.zeros(self.form(scheme, rows, cols)["scale"][1], np.float32)
        codes = np.zeros((rows, cols + cols % 2), np.uint8)
        for g, start in enumerate(range(0, cols, group)):
            part = w[:, start : start + group]
            scale[:, g] = np.abs(part).max(axis=1)
            unit = part / np.where(scale[:, g] > 0, scale[:, g], np.float32(1))[:, None]
            codes[:, start : start + part.shape[1]] = np.abs(unit[..., None] - LEVELS).argmin(axis=-1)
        return {"levels": codes[:, ::2] | codes[:, 1::2] << np.uint8(4), "scale": scale}

    def decode(self, arrays, scheme, cols):
        levels, group = arrays["levels"], scheme.group or max(cols, 1)
        codes = np.stack([levels & 15, levels >> 4], axis=-1).reshape(len(levels), 2 * levels.shape[1])[:, :cols]
        return LEVELS[codes] * np.repeat(arrays["scale"], group, axis=1)[:, :cols]

    def columns(self, arrays, scheme, cols, start, stop):
        group = scheme.group or cols
        if scheme.group and (start % group or (stop % group and stop != cols)):
            raise IndexError(f"index: expected columns at multiples of the group, {group}, got {start}:{stop}")
        levels = arrays["levels"]
        codes = np.stack([levels & 15, levels >> 4], axis=-1).reshape(len(levels), 2 * levels.shape[1])[:, start:stop]
        codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
        scale = arrays["scale"][:, start // group : max(-(-stop // group), start // group + 1)]
        return {"levels": codes[:, ::2] | codes[:, 1::2] << np.uint8(4), "scale": np.ascontiguousarray(scale)}


codec = register(NF4())


def slowly(w, scheme):
    """The reference: one weight after the other."""
    rows, cols = w.shape
    group = scheme.group or max(cols, 1)
    levels = np.zeros((rows, -(-cols // 2)), np.uint8)
    scale = np.zeros((rows, max(1, -(-cols // group))), np.float32)
    for row in range(rows):
        for k in range(cols):
            scale[row, k // group] = max(scale[row, k // group], abs(w[row, k]))
        for k in range(cols):
            unit = w[row, k] / scale[row, k // group] if scale[row, k // group] else np.float32(0)
            code = min(range(16), key=lambda i: abs(unit - LEVELS[i]))
            levels[row, k // 2] |= code << 4 * (k % 2)
    return {"levels": levels, "scale": scale}


def meaning(parts, scheme, rows, cols):
    group = scheme.group or max(cols, 1)
    w = np.zeros((rows, cols), np.float32)
    for row in range(rows):
        for k in range(cols):
            w[row, k] = LEVELS[parts["levels"][row, k // 2] >> 4 * (k % 2) & 15] * parts["scale"][row, k // group]
    return w


reference.VALUES["nf4"] = reference.Definition(slowly, meaning)
'''

PRUNER = '''
"""Relative magnitude: a weight matters by its share of its row."""

import numpy as np
from pumice.pruning.base import register


@register("relative")
def relative(w):
    size = np.abs(w)
    return size / np.maximum(size.sum(axis=1, keepdims=True), np.finfo(w.dtype).tiny)
'''


def run_conformance(folder: Path, source: str, name: str) -> tuple[int, str]:
    """Run the conformance suite on what a file registers; the file's only trace is that it was imported."""
    (folder / "newcomer.py").write_text(source, "utf-8")
    paths = [str(folder), *(path for path in sys.path if path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/conformance", "-p", "newcomer", "-k", name],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def count(output: str, word: str) -> int:
    found = re.search(rf"(\d+) {word}", output)
    return int(found[1]) if found else 0


def test_a_codec_is_one_file_and_one_import(tmp_path: Path) -> None:
    code, output = run_conformance(tmp_path, CODEC, "nf4")
    assert code == 0, output
    assert count(output, "passed") > 60, output  # four groups, every law, every ISA
    assert not count(output, "skipped"), output


def test_a_pruner_is_one_file_and_one_import(tmp_path: Path) -> None:
    code, output = run_conformance(tmp_path, PRUNER, "relative")
    assert code == 0, output
    assert count(output, "passed") >= 6, output


@pytest.mark.parametrize(
    ("source", "name", "right", "wrong"),
    [
        (CODEC, "nf4", "scale[:, g] = np.abs(part).max(axis=1)", "scale[:, g] = part.max(axis=1)"),
        (CODEC, "nf4", "[:, start:stop]", "[:, :stop - start]"),
        (PRUNER, "relative", "return size /", "w *= 1.5\n    return size /"),
    ],
)
def test_conformance_finds_a_newcomer_that_breaks_a_law(
    tmp_path: Path, source: str, name: str, right: str, wrong: str
) -> None:
    assert right in source
    code, output = run_conformance(tmp_path, source.replace(right, wrong), name)
    assert code == 1, output
    assert count(output, "failed"), output
