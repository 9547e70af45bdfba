"""`convert` without files: what a recipe makes of the weights of a model in memory. The bridges put it into layers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from pumice.checkpoint import TensorInfo
from pumice.choice import Request
from pumice.conversion.chunks import Job
from pumice.layouts import CompactArray
from pumice.profile import load_profile
from pumice.recipe import Recipe
from pumice.report import Loss, TensorReport
from pumice.statistics import Moments
from pumice.values.base import F32, StoredRows


@dataclass(frozen=True)
class ModelWeight:
    """A weight of a model.

    `matrix` gives it as (outputs, inputs); weights of one `owner` are the same one: they share an array, or all stay;
    `stays` says why no layer could hold it compact, "" where one can.
    """

    info: TensorInfo
    matrix: Callable[[], F32]
    owner: Hashable
    stays: str = ""


def compact_weights(
    weights: Mapping[str, ModelWeight], recipe: Recipe, stats: Mapping[str, Moments] | None = None, seed: int = 0
) -> tuple[dict[str, CompactArray], tuple[TensorReport, ...]]:
    """The arrays of weights that a recipe finds, by name, and what became of each weight.

    Raises what `convert` does of recipes, schemes, methods and numbers that are not finite.
    """
    treatments = recipe.plan({name: weight.info for name, weight in weights.items()})
    staying = {
        weight.owner: weight.stays or treatments[name].why
        for name, weight in weights.items()
        if weight.stays or treatments[name].scheme is None
    }
    job = Job(Request(), load_profile(), stats or {}, seed, recipe.options)
    made: dict[Hashable, CompactArray] = {}
    counted: set[Hashable] = set()  # of those that stay
    arrays: dict[str, CompactArray] = {}
    reports = []
    for name, weight in weights.items():
        choice, about = treatments[name], weight.info
        if weight.owner in staying:
            why = weight.stays or (choice.why if choice.scheme is None else f"shared: {staying[weight.owner]}")
            size = 0 if weight.owner in counted else about.nbytes
            counted.add(weight.owner)
            reports.append(TensorReport(name, about.shape, about.dtype, size, size, why=why))
            continue
        if weight.owner in made:
            arrays[name] = made[weight.owner]
            why = f"{choice.why}, shared"
            reports.append(TensorReport(name, about.shape, arrays[name].scheme, 0, 0, why=why))
            continue
        exact = weight.matrix()
        loss = Loss(job.moments(name, exact.shape[1]))
        arrays[name] = array = made[weight.owner] = job.compact(name, StoredRows(exact), exact.shape, choice, loss)
        reports.append(
            TensorReport(
                name, about.shape, array.scheme, about.nbytes, array.nbytes, loss.error, choice.why, loss.output_error
            )
        )
    return arrays, tuple(reports)
