"""A conversion that is complete already: its target says what it was made from, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pumice.checkpoint import Reader, TensorInfo, open_reader
from pumice.checkpoint.fingerprint import fingerprint, made_from
from pumice.checkpoint.locations import Location
from pumice.conversion.driving import Tally
from pumice.conversion.plan import CONVERSION, Plan, Step
from pumice.conversion.work import check_same
from pumice.errors import FormatError, ResumeError


def finished(
    plan: Plan, source: Reader, target: Location, steps: Sequence[Step], overwrite: bool, workers: int, tally: Tally
) -> Mapping[str, TensorInfo] | None:
    """What the target holds if this conversion has written it; None if no conversion has, or another that may be
    replaced. Reads the tensors of `steps` in the source, to see whether they are what the target was made from.

    Raises
    ------
    ResumeError
        Another conversion has written it, which is not to be replaced.
    """
    try:
        reader = open_reader(target, io="read")
    except (FileNotFoundError, FormatError):
        return None
    with reader:
        infos = {name: reader.info(name) for name in reader.names()}
        made = _table(reader.metadata.get(CONVERSION, ""))
        if made is None or infos.keys() != {step.name for step in plan.steps}:
            return None
        which = f"the conversion that has written {str(target)!r}"
        try:
            check_same(made, plan.provenance, which)
            before, now = _fingerprints(source, reader, steps, workers, tally)
            check_same({"source": before}, {"source": now}, which)
        except ResumeError:
            if overwrite:
                return None
            raise
    return infos


def _fingerprints(
    source: Reader, target: Reader, steps: Sequence[Step], workers: int, tally: Tally
) -> tuple[dict[str, str], dict[str, str]]:
    """Of each tensor what the target was made from, and what there is now."""

    def both(step: Step) -> tuple[str, str]:
        now = made_from if step.copied else fingerprint
        return made_from(target, step.name), now(source, step.name)

    before: dict[str, str] = {}
    after: dict[str, str] = {}
    with ThreadPoolExecutor(workers, "pumice-read") as pool:
        for step, pair in zip(steps, pool.map(both, steps), strict=True):
            before[step.name], after[step.name] = pair
            tally.add(step.name, step.info.nbytes)
    return before, after


def _table(text: str) -> dict[str, Any] | None:
    """A JSON object that a file holds; None if it is none."""
    try:
        table = json.loads(text)
    except ValueError:
        return None
    return table if isinstance(table, dict) else None
