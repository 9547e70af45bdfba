"""Times a prompt and generation in a process of its own: ``python bench/llm_worker.py ENGINE MODEL THREADS <ids.json``.

ENGINE is ``pumice-int16`` or ``pumice-int8`` (the activations), or ``llama.cpp``, for which this runs in a Python that
has llama_cpp. Prints JSON: seconds of prompts and of tokens, the tokens, and for pumice where the time goes.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PROMPTS, TOKENS = 7, 128  # timed; two prompts before them are not
GLUE = ("attention", "rms_norm", "rotate", "swiglu")


def measure(start: Callable[[], None], feed: Callable[[Sequence[int]], Any], ids: list[int]) -> dict[str, Any]:
    """`start` empties the cache; `feed` takes tokens and gives the logits of what follows."""
    prompts, tokens, said = [], [], []
    for _ in range(PROMPTS + 2):
        start()
        begun = time.perf_counter()
        token = int(feed(ids).argmax())
        prompts.append(time.perf_counter() - begun)
    for _ in range(TOKENS):
        said.append(token)
        begun = time.perf_counter()
        token = int(feed([token]).argmax())
        tokens.append(time.perf_counter() - begun)
    return {"prompt": float(np.median(prompts[2:])), "token": float(np.median(tokens)), "said": said}


def pumice(model: Path, ids: list[int], activations: str) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import llama
    from llama_files import open_checkpoint

    import pumice as pm

    weights, config, _ = open_checkpoint(model)
    run = llama.Llama(weights, config)
    cache = llama.Cache(config, len(ids) + TOKENS)

    def start() -> None:
        cache.length = 0

    def feed(some: Sequence[int]) -> Any:
        return run.forward(some, cache)

    with pm.options(activations=activations):
        found = measure(start, feed, ids)
        spent = watch(llama)
        start()
        found["profile"] = {"prompt": parts(spent, lambda: feed(ids))}
        found["profile"]["token"] = parts(spent, lambda: [feed([t]) for t in found["said"]], TOKENS)
    return found


def watch(llama: Any) -> Counter[str]:
    """Seconds by part of the model from now on: the products, and what NumPy does between them."""
    spent: Counter[str] = Counter()

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            value = call(*arguments, **options)
            spent[name] += time.perf_counter() - begun
            return value

        return timed

    for name in GLUE:
        setattr(llama, name, watched(name, getattr(llama, name)))
    llama.pm.linear = watched("products", llama.pm.linear)
    return spent


def parts(spent: Counter[str], call: Callable[[], Any], count: int = 1) -> dict[str, float]:
    spent.clear()
    begun = time.perf_counter()
    call()
    whole = time.perf_counter() - begun
    return {"whole": whole / count} | {name: seconds / count for name, seconds in spent.most_common()}


def llama_cpp(model: Path, ids: list[int], threads: int) -> dict[str, Any]:
    import llama_cpp as lib

    room = len(ids) + TOKENS
    run = lib.Llama(
        str(model), n_ctx=room, n_batch=room, n_ubatch=room, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def start() -> None:
        run.reset()
        lib.llama_memory_clear(lib.llama_get_memory(run.ctx), True)

    def feed(some: Sequence[int]) -> Any:
        run.eval(some)
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(run.ctx, -1), (run.n_vocab(),))  # waits until it is done

    found = measure(start, feed, ids)
    has = re.findall(r"(\w+) = 1", lib.llama_print_system_info().decode())
    found["about"] = f"llama-cpp-python {lib.__version__} with {', '.join(has)}"
    return found


def main() -> None:
    engine, model, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    ids = json.load(sys.stdin)
    if engine.startswith("llama.cpp"):
        found = llama_cpp(model, ids, threads)
    else:
        found = pumice(model, ids, engine.removeprefix("pumice-"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
