"""A conversion that is complete already: its target says what it was made from, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pumice.checkpoint import TensorInfo, open_reader
from pumice.conversion.plan import CONVERSION, Plan
from pumice.conversion.work import check_same
from pumice.errors import FormatError, ResumeError


def finished(plan: Plan, target: Path, overwrite: bool) -> Mapping[str, TensorInfo] | None:
    """What the target holds if this conversion has written it; None if no conversion has, or another that may be
    replaced.

    Raises
    ------
    ResumeError
        Another conversion has written it, which is not to be replaced.
    """
    try:
        with open_reader(target, io="read") as reader:
            made = json.loads(reader.metadata.get(CONVERSION, "null"))
            infos = {name: reader.info(name) for name in reader.names()}
    except (FileNotFoundError, FormatError, json.JSONDecodeError):
        return None
    if not isinstance(made, dict) or infos.keys() != {step.name for step in plan.steps}:
        return None
    try:
        check_same(made, plan.provenance, f"the conversion that has written {str(target)!r}")
    except ResumeError:
        if overwrite:
            return None
        raise
    return infos
