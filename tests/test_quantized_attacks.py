"""Checkpoints of quantizers that attack: numbers in configs and shapes that lie, text that would be a program.

What their own rules forbid is in the tests of each: test_gptq.py (AWQ too), test_float8.py, test_compressed_tensors.py.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pumice as pm
from tests.fuzz.mutations import change as change_json
from tests.quantized import GOLDEN, Change, Tensors, config_of, copied, index, tensor, weights_of

GPTQ, ACT, AWQ, BLOCKS = "gptq/autogptq-4bit", "gptq/v2-4bit", "awq/autoawq", "float8/blocks16"
PACKED, SPARSE = "compressed_tensors/pack-4-group-asym", "compressed_tensors/sparse-24-int"
FORMS = [GPTQ, AWQ, BLOCKS, PACKED, SPARSE]
HUGE = 2**62


def weights_say(**settings: Any) -> Change:
    """Of compressed-tensors, what the config says of the weights."""
    return lambda tensors, config: config["config_groups"]["group_0"]["weights"].update(settings)


@pytest.mark.parametrize(
    ("golden", "change"),
    [
        (GPTQ, config_of(group_size=HUGE)),
        (GPTQ, config_of(group_size=1)),
        (GPTQ, config_of(bits=HUGE)),
        (GPTQ, index(5, 2**31 - 1)),
        (AWQ, config_of(q_group_size=HUGE)),
        (AWQ, config_of(w_bit=HUGE)),
        (BLOCKS, config_of(weight_block_size=[HUGE, HUGE])),
        (BLOCKS, config_of(weight_block_size=[1, 1])),
        (PACKED, weights_say(group_size=HUGE)),
        (PACKED, weights_say(num_bits=HUGE)),
        (PACKED, tensor("fc.weight_shape", lambda shape: np.array([7, 1 << 40]))),
        (SPARSE, tensor("fc.shape", lambda shape: np.array([1 << 40, 44]).reshape(shape.shape))),
    ],
)
def test_counts_that_lie_allocate_nothing(golden: str, change: Change, tmp_path: Path) -> None:
    """Billions of columns, groups or rows in a config or a tensor meet the shapes of the other tensors first."""
    folder = copied(golden, tmp_path, change)
    tracemalloc.start()
    with pytest.raises(pm.FormatError):
        weights_of(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def places(table: Any) -> Iterator[tuple[Any, Any]]:
    """Every value of a JSON tree, as the container and the key or position in it."""
    for key in list(table) if isinstance(table, dict) else range(len(table)):
        yield table, key
        if isinstance(table[key], dict | list):
            yield from places(table[key])


ABSENT = ("bits", "checkpoint_format", "dynamic", "format", "sparsity_config", "version")  # in some of the configs


@pytest.mark.filterwarnings("ignore::pumice.FormatWarning")
@pytest.mark.parametrize("golden", FORMS)
def test_text_in_a_config_is_never_run_nor_printed_at_length(golden: str, tmp_path: Path) -> None:
    evil = f"__import__('os').system('touch {tmp_path}/ran')"

    def plant(at: int, value: Any) -> Change:
        def change(tensors: Tensors, config: dict[str, Any]) -> None:
            place, key = [*places(config), *((config, key) for key in ABSENT)][at]
            place[key] = value

        return change

    config: dict[str, Any] = {}
    copied(golden, tmp_path, lambda tensors, found: config.update(found))
    for at in range(len(list(places(config))) + len(ABSENT)):
        for value in (evil, [evil] * 1000, {evil: evil}):
            folder = copied(golden, tmp_path, plant(at, value))
            try:
                weights_of(folder)
            except pm.FormatError as error:
                assert len(str(error)) < 600
            except KeyError as error:  # the config names another quantizer: its tensors stay what they are
                assert "'fc.weight'" in str(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::pumice.FormatWarning")
@pytest.mark.parametrize("golden", [ACT, GPTQ, "gptq/planes-6bit", AWQ, BLOCKS])
def test_whatever_a_config_says_weights_are_read_or_refused(golden: str, tmp_path: Path) -> None:
    rng, ends = random.Random(golden), set()

    def wild(tensors: Tensors, config: dict[str, Any]) -> None:
        for _ in range(rng.choice((1, 1, 2, 3))):
            change_json(rng, config)

    for _ in range(50):
        folder = copied(golden, tmp_path, wild)
        try:
            with pm.load(folder) as m:
                for name in m:
                    m[name]
            ends.add("read")
        except pm.FormatError:
            ends.add("refused")
    assert ends == {"read", "refused"}


@pytest.mark.filterwarnings("ignore::pumice.FormatWarning")
def test_whatever_the_bytes_of_zeros_and_groups_weights_are_read_or_refused() -> None:
    blob = bytearray((GOLDEN / ACT / "model.safetensors").read_bytes())
    start = 8 + int.from_bytes(blob[:8], "little")
    rng = random.Random(3)
    for _ in range(150):
        changed = blob.copy()
        for _ in range(8):
            changed[rng.randrange(start, len(blob))] ^= 1 << rng.randrange(8)
        try:
            with pm.load(bytes(changed)) as m:
                for name in m:
                    np.asarray(m[name])
        except pm.FormatError:
            pass
