"""GPTQ, SparseGPT and Wanda as others have them, for bench/algorithms.py: peer -> case -> a call to be timed.

`torch` has the algorithms written down from the papers (arXiv:2210.17323, 2301.00774, 2306.11695) as their authors'
programs compute them: float32, blocks of 128 columns, damping 0.01. `llmcompressor` (vLLM's LLM Compressor) runs its
own functions as they come from PyPI; its groups' scales are its own `calculate_qparams` of the weights as given.
Everything is imported when a case is prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

import pumice as pm

BLOCK, DAMPING, BITS, GROUP = 128, 0.01, 4, 128
SCHEME = f"int{BITS}-g{GROUP}"
CASES = ("gptq", "gptq, static groups", "gptq, act-order", "sparsegpt 50 %", "sparsegpt 2:4", "wanda 50 %", "wanda 2:4")

F32: TypeAlias = np.ndarray
Call: TypeAlias = Callable[[], Any]


def prepared(peer: str, case: str, w: F32, moments: pm.Moments) -> Call | None:
    """The call that makes new weights of w; None where the peer has no such case."""
    method, _, what = case.replace(",", "").partition(" ")
    if peer == "pumice":
        return _pumice(method, what, w, moments)
    if peer == "torch":
        return _torch(method, what, w, moments)
    return _llmcompressor(method, what, w, moments)


def dense(result: Any) -> F32:
    """What a call gave, as an array."""
    return result.to_dense() if isinstance(result, pm.CompactArray) else np.asarray(result)


def _pattern(what: str) -> tuple[int, int] | None:
    return (2, 4) if what == "2:4" else None


def _pumice(method: str, what: str, w: F32, moments: pm.Moments) -> Call:
    if method == "gptq":
        options = {"act_order": what == "act-order", "static_groups": bool(what)}
        return lambda: pm.quantize(w, SCHEME, method="gptq", stats=moments, **options)
    wanted: dict[str, Any] = {"pattern": what} if _pattern(what) else {"sparsity": 0.5}
    return lambda: pm.prune(w, method=method, stats=moments, **wanted)


# The papers, in torch.


def _torch(method: str, what: str, w: F32, moments: pm.Moments) -> Call | None:
    import torch

    h, weights, pattern = torch.from_numpy(moments.mean()), torch.from_numpy(w), _pattern(what)
    if what == "act-order":
        return None
    if method == "gptq":
        return lambda: _gptq(weights, h, what == "static groups")
    return lambda: (_sparsegpt if method == "sparsegpt" else _wanda)(weights, h, pattern)


def _upper(h: Any) -> Any:
    """The upper Cholesky factor of the inverse of the damped moments."""
    import torch

    h = h.clone()
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def _sweep(w: Any, upper: Any, settle: Callable[[int, int, Any, Any], Callable[[int, Any], Any]]) -> Any:
    """Block after block: `settle(first, last, block, its factor)` gives what a column becomes."""
    import torch

    w, result, cols = w.clone(), torch.zeros_like(w), w.shape[1]
    for first in range(0, cols, BLOCK):
        last = min(first + BLOCK, cols)
        block, factor = w[:, first:last].clone(), upper[first:last, first:last]
        errors = torch.zeros_like(block)
        become = settle(first, last, block, factor)
        for i in range(last - first):
            column = block[:, i]
            fixed = become(i, column)
            errors[:, i] = (column - fixed) / factor[i, i]
            result[:, first + i] = fixed
            block[:, i:] -= errors[:, i : i + 1] @ factor[i : i + 1, i:]
        w[:, last:] -= errors @ upper[first:last, last:]
    return result


def _gptq(w: Any, h: Any, static: bool) -> Any:
    import torch

    top, scales = 2**BITS - 1, {}

    def settle(first: int, last: int, block: Any, factor: Any) -> Callable[[int, Any], Any]:
        def become(i: int, column: Any) -> Any:
            if (first + i) % GROUP == 0:
                group = w[:, first + i : first + i + GROUP] if static else block[:, i : i + GROUP]
                scales[0] = (2 * group.abs().amax(1) / top).clamp_min(1e-12)
            zero = (top + 1) / 2
            return scales[0] * (torch.clamp(torch.round(column / scales[0]) + zero, 0, top) - zero)

        return become

    assert BLOCK % GROUP == 0
    return _sweep(w, _upper(h), settle)


def _sparsegpt(w: Any, h: Any, pattern: tuple[int, int] | None) -> Any:
    import torch

    def settle(first: int, last: int, block: Any, factor: Any) -> Callable[[int, Any], Any]:
        cost = torch.diagonal(factor) ** 2
        mask = torch.zeros_like(block, dtype=torch.bool)
        if pattern is None:
            score = block**2 / cost
            mask = score <= torch.sort(score.flatten())[0][score.numel() // 2 - 1]

        def become(i: int, column: Any) -> Any:
            if pattern is not None and i % pattern[1] == 0:
                score = block[:, i : i + pattern[1]] ** 2 / cost[i : i + pattern[1]]
                mask.scatter_(1, i + torch.topk(score, pattern[1] - pattern[0], largest=False)[1], True)
            return torch.where(mask[:, i], 0, column)

        return become

    return _sweep(w, _upper(h), settle)


def _wanda(w: Any, h: Any, pattern: tuple[int, int] | None) -> Any:
    import torch

    score = w.abs() * torch.sqrt(torch.diagonal(h))
    n, m = pattern or (w.shape[1] // 2, w.shape[1])
    groups = score.reshape(-1, m)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, torch.sort(groups, stable=True)[1][:, : m - n], True)
    return torch.where(mask.reshape(w.shape), 0, w)


# LLM Compressor. Its functions take what they are given as scratch: copies are made before the clock starts.


def _llmcompressor(method: str, what: str, w: F32, moments: pm.Moments) -> Call | None:
    import torch

    weights, h = torch.from_numpy(w.copy()), torch.from_numpy(moments.mean())
    if method == "gptq":
        return None if not what else _llmcompressor_gptq(weights, h, what == "act-order")
    module = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    module.weight.data = weights
    share: dict[str, Any] = {"sparsity": 0.5, "prune_n": 0, "prune_m": 0}
    if pattern := _pattern(what):
        share |= {"prune_n": pattern[1] - pattern[0], "prune_m": pattern[1]}  # theirs is how many go
    if method == "wanda":
        from llmcompressor.modifiers.pruning.wanda.wanda_sparsify import sparsify_weight as wanda

        return lambda: wanda(module, {module: h.diagonal().clone()}, **share)
    from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight as sparsegpt

    known = {module: h}

    def run() -> Any:
        with torch.no_grad():
            return sparsegpt(
                module, known, block_size=BLOCK, dampening_frac=DAMPING, preserve_sparsity_mask=False, **share
            )[1]

    return run


def _llmcompressor_gptq(w: Any, h: Any, act_order: bool) -> Call:
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    args = QuantizationArgs(
        num_bits=BITS, type="int", symmetric=True, strategy="group", group_size=GROUP,
        actorder="static" if act_order else None,
    )  # fmt: skip

    def run() -> Any:
        groups = w.reshape(len(w), -1, GROUP)
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        with torch.no_grad():
            return quantize_weight(w[None], h[None], scale[None], zero[None], None, args, BLOCK, DAMPING)[0][0]

    return run
