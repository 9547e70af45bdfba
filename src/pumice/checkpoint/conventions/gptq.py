"""GPTQ: `qweight`, `qzeros`, `scales` and `g_idx` of a module are its `weight`.

    qweight   I32 (ceil(in * bits / 32), out)        codes, a bit stream down each column
    qzeros    I32 (groups, ceil(out * bits / 32))    zeros, a bit stream along each row
    scales    F16, BF16 or F32 (groups, out)
    g_idx     I32 (in,)                              the group of each input; without it, they are in order

    weight[o, i] = scales[g_idx[i], o] * (code[i, o] - zero[g_idx[i], o])

Versions: "gptq" (v1, also where nothing is said) stores zero - 1, "gptq_v2" stores zero. Files exist whose label is
wrong; symmetric weights, whose zero can only be 2^(bits - 1), tell. "gptq_p" is v2 in planes, see `from_planes`.

Specification: the packing of github.com/ModelCloud/GPTQModel (7.7) and github.com/AutoGPTQ/AutoGPTQ (0.7.1).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pumice import layouts
from pumice.checkpoint.container import Container
from pumice.checkpoint.conventions.affine import Affine
from pumice.checkpoint.conventions.base import Convention, Found, modules, register
from pumice.checkpoint.conventions.settings import as_text, matrix, method_of, refusal, said
from pumice.checkpoint.dtypes import widen
from pumice.errors import FormatError, FormatWarning
from pumice.layouts import CompactArray
from pumice.layouts.permuted import order_of_groups
from pumice.values.base import CODECS, F32

BITS = (2, 3, 4, 8)
PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}  # bits -> those of each plane, the low ones first
VERSIONS = {"gptq": 1, "gptq_v2": 2, "gptq_p": 2}
WORD = 32


@dataclass(frozen=True)
class Module:
    """What the headers and the config say of one module."""

    container: Container
    prefix: str
    bits: int
    planar: bool
    version: int
    rows: int
    cols: int
    groups: int
    group: int | None
    """Columns that share a scale; None where nothing but the shapes says."""
    symmetric: bool | None
    """None where the config does not say."""

    @property
    def tensors(self) -> dict[str, str]:
        """Last part of the name -> name of each tensor that there is."""
        names = {part: self.prefix + part for part in ("qweight", "qzeros", "scales", "g_idx")}
        return {part: name for part, name in names.items() if name in self.container.entries}

    @property
    def middle(self) -> int:
        """The zero of symmetric weights."""
        return 1 << (self.bits - 1)

    def read(self, part: str) -> NDArray[Any]:
        return self.container.read(self.prefix + part)


@register
class GPTQ(Convention):
    name = "gptq"

    def find(self, container: Container, free: Collection[str]) -> Iterator[Found]:
        marlin = min((name for name in free if name.endswith(".B")), default=None)
        prefixes = list(modules(free, "qweight", "qzeros", "scales"))
        method = method_of(container.config) if prefixes or marlin else ""
        if method == "gptq" and marlin:
            _version(container, marlin)  # which refuses it, by its name
        if method not in ("gptq", None):
            return
        for prefix in prefixes:
            weight, scales = (container.entry(prefix + part).shape for part in ("qweight", "scales"))
            if method == "gptq" or (len(weight) == len(scales) == 2 and weight[1] == scales[1]):
                label = _version(container, prefix + "qweight")
                yield _found(_module(container, prefix, label, prefix + "g_idx" in free))


def _found(module: Module) -> Found:
    container, tensors = module.container, module.tensors
    symmetric = module.symmetric
    if symmetric is None:
        symmetric = bool((zeros_of(module)[0] == module.middle).all())
    half = container.entry(tensors["scales"]).dtype == "F16"
    affine = Affine((module.rows, module.cols), module.bits, module.group, not symmetric, half)
    info = affine.info(sum(container.entry(name).nbytes for name in tensors.values()))
    return Found(module.prefix + "weight", info, tuple(tensors.values()), partial(read_module, module, affine))


# What the headers say.


def _version(container: Container, tensor: str) -> str:
    """The label of the version."""
    labels = said(container.config, "checkpoint_format", "format") or ["gptq"]
    if container.config.get("is_marlin_format") is True:
        labels = ["marlin"]
    if len(labels) > 1 or not isinstance(labels[0], str) or labels[0] not in VERSIONS:
        raise refusal(
            container, tensor, f"checkpoint_format {' or '.join(VERSIONS)}", as_text(labels), "export it as gptq"
        )
    return labels[0]


def _module(container: Container, prefix: str, label: str, indexed: bool) -> Module:
    weight = matrix(container, prefix + "qweight", ("I32",))
    scales = matrix(container, prefix + "scales", ("F16", "BF16", "F32"))
    zeros = matrix(container, prefix + "qzeros", ("I32",))
    groups, rows = scales.shape
    if weight.shape[1] != rows or zeros.shape[0] != groups:
        got = f"qweight {list(weight.shape)}, scales {list(scales.shape)}, qzeros {list(zeros.shape)}"
        rule = "qweight (.., out), scales (groups, out) and qzeros (groups, ..), as GPTQ has them"
        hint = "these are the shapes of AWQ" if 8 * weight.shape[1] == rows else None
        raise refusal(container, prefix + "scales", rule, got, hint)
    bits, cols = _bits(container, prefix, rows, indexed)
    planar = bits not in BITS or (label == "gptq_p" and bits in PLANES)
    if planar and (weight.shape[0] % bits or zeros.shape[1] % bits):
        got = f"{weight.shape[0]} and {zeros.shape[1]} words"
        raise refusal(container, prefix + "qweight", f"whole blocks of 32 codes, {bits} words each, in planes", got)
    symmetric = [value for value in said(container.config, "sym") if isinstance(value, bool)]
    return Module(
        container, prefix, bits, planar, 2 if planar else VERSIONS[label], rows, cols, groups,
        _group(container, prefix, cols, groups, indexed), symmetric[0] if len(symmetric) == 1 else None,
    )  # fmt: skip


def _bits(container: Container, prefix: str, rows: int, indexed: bool) -> tuple[int, int]:
    """Bits of a code, and columns: the words of both tensors tell, and must not contradict the config."""
    words, zero_words = container.entry(prefix + "qweight").shape[0], container.entry(prefix + "qzeros").shape[1]
    cols = _columns(container, prefix) if indexed else None
    fitting = {}
    for bits in (*BITS, 5, 6, 7):
        columns = words * WORD // bits if cols is None else cols
        whole = cols is not None or columns * bits == words * WORD
        if whole and -(-columns * bits // WORD) == words and -(-rows * bits // WORD) == zero_words:
            fitting[bits] = columns
    claimed = said(container.config, "bits")
    likely = {bits: columns for bits, columns in fitting.items() if not claimed or bits in claimed}
    if len(likely) == 1:
        return next(iter(likely.items()))
    inputs = "inputs that no g_idx counts" if cols is None else f"{cols} inputs"
    got = f"{words} words for {inputs} and {zero_words} for {rows} outputs"
    if fitting and not likely:
        got += f", which are codes of {as_text(list(fitting))}"
    rule = f"codes of {as_text(claimed)} bits, as the config says" if claimed else "codes of 2 to 8 bits"
    hint = "bits in a config beside the weights would tell" if likely else None
    raise refusal(container, prefix + "qweight", rule, got, hint)


def _columns(container: Container, prefix: str) -> int:
    entry = container.entry(prefix + "g_idx")
    if entry.dtype not in ("I32", "I64") or len(entry.shape) != 1:
        raise refusal(container, prefix + "g_idx", "I32 of shape (in,)", f"{entry.dtype} of shape {list(entry.shape)}")
    return entry.shape[0]


def _group(container: Container, prefix: str, cols: int, groups: int, indexed: bool) -> int | None:
    """Columns that share a scale, as the config says, or else g_idx, or else the shapes; None for the whole row."""
    claimed = said(container.config, "group_size")
    if groups == 1 and not claimed:
        return None
    sizes = [cols if size == -1 else size for size in claimed if type(size) is int and (size == -1 or size > 0)]
    if not claimed and indexed:
        sizes = [int(np.count_nonzero(container.read(prefix + "g_idx") == 0))]
    elif not claimed:
        sizes = [*(1 << shift for shift in range(4, 16)), cols // groups]  # those that its writers take go first
    size = next((size for size in sizes if size and -(-cols // size) == groups), None)
    if size is None:
        said_by = f"{as_text(claimed)} columns, as group_size of the config says" if claimed else "equally many columns"
        raise refusal(container, prefix + "scales", f"groups of {said_by}", f"{groups} groups of {cols} columns")
    return None if groups == 1 else size


# What the tensors hold.


def read_module(module: Module, affine: Affine) -> CompactArray | F32:
    """The weight of a module, with its own codes, scales and zeros."""
    zeros, doubts = zeros_of(module)
    for doubt in doubts:
        warnings.warn(f"{module.tensors['qzeros']}: expected {doubt}", FormatWarning, stacklevel=2)
    if not affine.zeros and (zeros != module.middle).any():
        rule = f"zeros of {module.middle}, as the config says (sym: true)"
        got = int(zeros[zeros != module.middle][0])
        raise FormatError(None, None, rule, got, "with sym: false they are read as they are")
    perm = _order(module)
    scales_dtype = module.container.entry(module.tensors["scales"]).dtype
    scales = np.ascontiguousarray(widen(module.read("scales"), scales_dtype).T)
    words = np.ascontiguousarray(module.read("qweight").T)
    whole = not module.planar and module.cols * module.bits % WORD == 0
    if affine.as_stored and whole and perm is None:
        parts = {"packed": words, "scale": scales, "shape": np.array(affine.shape, np.int64)}
        if affine.zeros:  # packed along the rows
            parts["zero_point"] = CODECS[f"int{module.bits}"].pack(zeros)["packed"].view(np.int32).T
        return layouts.from_parts(str(affine.scheme), affine.shape, parts)
    codes = unpacked(words, module.bits, module.planar)[:, : module.cols]
    return affine.array(codes, scales, zeros.T if affine.zeros else None, perm)


def _order(module: Module) -> NDArray[np.int32] | None:
    """The columns in the order of their groups; None where they stand so, or where nothing says."""
    if "g_idx" not in module.tensors:
        return None
    perm, group = order_of_groups(module.read("g_idx"), module.groups)
    if module.group is not None and group != module.group:
        rule = f"groups of {module.group} columns, as the config says"
        raise FormatError(None, None, rule, f"groups of {group} in g_idx")
    return perm


def zeros_of(module: Module) -> tuple[NDArray[np.uint8], list[str]]:
    """The zeros (groups, out), whatever the file's version calls them, and what is doubtful about them.

    Labels of versions are wrong at times. Of weights that may be symmetric the values decide: all are 2^(bits - 1),
    stored as such or less 1.
    """
    words, bits = module.read("qzeros"), module.bits
    stored = unpacked(words, bits, module.planar)[:, : module.rows]
    version, doubts = module.version, []
    if module.symmetric is not False and not module.planar and (stored == stored[0, 0]).all():
        version = {module.middle: 2, module.middle - 1: 1}.get(int(stored[0, 0]), version)
    if version != module.version:
        doubts = [f"zeros of version {module.version}, as the config says, got those of version {version}"]
    if version == 2:
        return stored, doubts
    lost = int(np.count_nonzero(stored == 2**bits - 1))
    if lost:
        doubts += [f"zeros of 1 and more, since 1 less is stored, got {lost} of 0, which readers read differently"]
    if bits == 3:  # fields cross words: its writers count in fields
        return (stored + np.uint8(1)) & np.uint8(7), doubts
    ones = sum(1 << shift for shift in range(0, WORD, bits))  # its writers subtract whole words, borrows included
    added = (words.view(np.uint32) + np.uint32(ones)).view(np.int32)
    return unpacked(added, bits, False)[:, : module.rows], doubts


def unpacked(words: NDArray[np.int32], bits: int, planar: bool) -> NDArray[np.uint8]:
    """The codes of rows of words: as many as whole words hold."""
    if planar:
        return from_planes(words, bits)
    stream = np.ascontiguousarray(words).view(np.uint8)
    return CODECS[f"int{bits}"].codes({"packed": stream}, words.shape[1] * WORD // bits)


def from_planes(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """The codes of "gptq_p": 32 of them take `bits` words, first those of their low bits, then those of higher ones.

    Examples
    --------
    >>> from_planes(np.array([[0x4321, 0, 0, 0, 0b0101]], np.int32), 5)[0, :5]
    array([17,  2, 19,  4,  0], dtype=uint8)
    """
    rows = len(words)
    blocks = np.ascontiguousarray(words).reshape(-1, bits)
    codes = np.zeros((len(blocks), WORD), np.uint8)
    first = 0
    for width in PLANES[bits]:
        plane = np.ascontiguousarray(blocks[:, first : first + width]).view(np.uint8)
        fields = np.unpackbits(plane, axis=1, bitorder="little").reshape(-1, WORD, width)
        codes |= np.packbits(fields, axis=2, bitorder="little")[:, :, 0] << np.uint8(first)
        first += width
    return codes.reshape(rows, -1)
