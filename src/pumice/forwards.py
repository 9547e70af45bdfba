"""What users run their models with: the inputs of each layer while it runs, and how good the model is.

A *forward* is a function ``forward(weights, data, **options)`` that gives back *pieces*: functions without arguments,
each of which runs the model on a piece of the data and returns what it found. Nothing else is asked of it.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pumice.errors import NonFiniteError, PumiceError
from pumice.observation import ObservedWeights, Observer
from pumice.recipe import TABLE
from pumice.statistics import CalibrationStats

SAMPLES = 128
MEMORY = 4 << 30

Piece: TypeAlias = Callable[[], Any]
Forward: TypeAlias = Callable[..., Sequence[Piece]]
Progress = Callable[[str, int, int], None]


def calibrate(
    weights: Mapping[str, Any],
    forward: Forward,
    data: Any,
    *,
    samples: int | None = SAMPLES,
    seed: int = 0,
    memory: int = MEMORY,
    progress: Progress | None = None,
    **options: Any,
) -> CalibrationStats:
    """The moments of the inputs of each weight while a forward runs.

    Parameters
    ----------
    weights : mapping of str to array
        Such as `load` gives. The forward gets them as CompactArrays that note what they are multiplied with
        (`pm.linear`, ``x @ w.T``, ``w @ x``, ``x @ w``); tables of embeddings, vectors and kernels of convolutions are
        as they were.
    forward : callable
        ``forward(weights, data, **options)`` -> a sequence of functions without arguments, each of which runs the model
        on a piece of the data.
    data : object
        For the forward: a path, a text, arrays.
    samples : int, optional
        How many pieces to run, drawn without replacement; None runs all.
    seed : int
        Of the draw.
    memory : int
        Bytes of sums that are held at a time, 8 n^2 for n inputs. Where those of all layers fit, there is one pass over
        the pieces; otherwise there are several, each for as many layers as fit, at least one. The result is the same.
    progress : callable, optional
        Called with (text, done, all) after each piece.
    **options
        For the forward.

    Returns
    -------
    CalibrationStats

    Raises
    ------
    ValueError
        No pieces, or none that multiplied a weight; `samples` or `memory` below 1.
    NonFiniteError
        An input is NaN, infinite or above 2^60; names the weight.
    PumiceError
        The forward raised; names its error and line.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> weights = {"up.weight": np.eye(4, 2), "down.weight": np.eye(2, 4)}
    >>> def forward(weights, data):
    ...     def run(x):
    ...         return np.maximum(x @ weights["up.weight"].T, 0) @ weights["down.weight"].T
    ...     return [lambda x=x: run(x) for x in np.array_split(data, 4)]
    >>> stats = pm.calibrate(weights, forward, np.ones((10, 2)))
    >>> stats["down"].count, stats["down"].mean().diagonal()
    (10, array([1., 1., 0., 0.], dtype=float32))
    """
    found = CalibrationStats()
    for part in passes(weights, forward, data, samples=samples, seed=seed, memory=memory, progress=progress, **options):
        found.adopt(part)
    return found


def passes(
    weights: Mapping[str, Any],
    forward: Forward,
    data: Any,
    *,
    samples: int | None,
    seed: int,
    memory: int,
    progress: Progress | None,
    **options: Any,
) -> Iterator[CalibrationStats]:
    """`calibrate`, a pass at a time: what a pass gave may go to a file before the next one begins."""
    if memory < 1:
        raise ValueError(f"memory: expected at least 1 byte, got {memory}")
    observer = Observer(memory)
    observed = ObservedWeights(weights, observer, lambda name: TABLE.search(name) is not None)
    pieces = _drawn(_pieces(forward, observed, data, options), samples, seed)
    for number in range(1, len(weights) + 2):
        for i, _ in _results(pieces):
            if progress is not None:
                progress(f"pass {number}", i + 1, len(pieces))
        if not observer.stats:
            raise ValueError("forward: expected products with the weights (pm.linear, x @ w.T), got none")
        observer.stats.settle()
        yield observer.stats
        if not observer.left:
            return
        observer.next_pass()


@dataclass(frozen=True)
class Evaluation:
    """How good a model is.

    Attributes
    ----------
    pieces : int
        That were run.
    rows : int
        Tokens scored, or vectors compared.
    perplexity, reference : float or None
        Of the model and of the reference, of a forward that gives surprises.
    cosine, least : float or None
        Mean and least cosine of vectors to those of the reference.
    """

    pieces: int
    rows: int
    perplexity: float | None = None
    reference: float | None = None
    cosine: float | None = None
    least: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object: what `pumice eval --json` prints."""
        return asdict(self)

    def __str__(self) -> str:
        if self.perplexity is None:
            return f"cosine {self.cosine:.6f} in the mean, {self.least:.6f} at least, of {self.rows} vectors"
        change = ""
        if self.reference is not None:
            change = f", {self.perplexity / self.reference - 1:+.2%} on {self.reference:.4f} of the reference"
        return f"perplexity {self.perplexity:.4f} of {self.rows} tokens{change}"


def evaluate(
    weights: Mapping[str, Any],
    forward: Forward,
    data: Any,
    *,
    reference: Mapping[str, Any] | None = None,
    samples: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """How good a model is, by what its forward gives back.

    Parameters
    ----------
    weights : mapping of str to array
        Such as `load` gives.
    forward : callable
        As for `calibrate`. A piece that returns a vector gives surprises, ``-log p`` of each token: the result is their
        perplexity. One that returns a matrix gives vectors, one a row: the result is their cosine to the reference's.
    data : object
        For the forward.
    reference : mapping of str to array, optional
        The weights to compare with, in the same forward.
    samples, seed, progress, **options
        As for `calibrate`; by default all pieces are run.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        No pieces; neither surprises nor vectors; vectors without a reference.
    PumiceError
        The forward raised.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> weights = {"out.weight": np.eye(3, 8)}
    >>> forward = lambda weights, data: [lambda: data @ weights["out.weight"].T]
    >>> print(pm.evaluate(pm.compress(weights, "int8"), forward, np.ones((5, 8)), reference=weights))
    cosine 1.000000 in the mean, 1.000000 at least, of 5 vectors
    """
    ours = _drawn(_pieces(forward, weights, data, options), samples, seed)
    theirs = [] if reference is None else _drawn(_pieces(forward, reference, data, options), samples, seed)
    if reference is not None and len(theirs) != len(ours):
        raise ValueError(f"forward: expected as many pieces for the reference, {len(ours)}, got {len(theirs)}")
    surprise: list[float] = []
    expected: list[float] = []
    cosines: list[float] = []
    rows = 0
    for (i, value), (_, other) in zip(_results(ours), _results(theirs) if theirs else _nothing(), strict=False):
        result = _result(value, i)
        same = None if reference is None else _result(other, i)
        if same is not None and same.shape != result.shape:
            raise ValueError(f"forward: expected results of one shape, got {result.shape} and {same.shape}")
        rows += len(result)
        if result.ndim == 1:
            surprise.append(float(result.sum()))
            expected += [] if same is None else [float(same.sum())]
        elif same is None:
            raise ValueError("reference: expected weights to compare vectors with, got None")
        else:
            norms = np.linalg.norm(result, axis=1) * np.linalg.norm(same, axis=1)
            cosines += ((result * same).sum(axis=1) / np.where(norms > 0, norms, 1)).tolist()
        if progress is not None:
            progress("evaluating", i + 1, len(ours))
    if not rows or (surprise and cosines):
        got = "nothing" if not rows else "both"
        raise ValueError(f"forward: expected surprises of tokens, or vectors, got {got}")
    if cosines:
        return Evaluation(len(ours), rows, cosine=math.fsum(cosines) / rows, least=min(cosines))
    perplexities = [math.exp(min(math.fsum(some) / rows, 700)) if some else None for some in (surprise, expected)]
    return Evaluation(len(ours), rows, *perplexities)


def _nothing() -> Iterator[tuple[int, Any]]:
    while True:
        yield 0, None


def _result(value: Any, i: int) -> NDArray[np.float64]:
    array = np.asarray(value)
    if array.ndim not in (1, 2) or array.dtype.kind != "f":
        got = f"{array.dtype} of shape {array.shape}"
        raise ValueError(
            f"forward: expected floats, surprises (tokens,) or vectors (n, width), of piece {i}, got {got}"
        )
    if not np.isfinite(array).all():
        raise NonFiniteError(f"forward: expected finite results, got NaN or infinity of piece {i}")
    return array.astype(np.float64)


def _pieces(forward: Forward, weights: Mapping[str, Any], data: Any, options: Mapping[str, Any]) -> Sequence[Piece]:
    try:
        found = list(forward(weights, data, **options))
    except PumiceError:
        raise  # says what is wrong with weights
    except Exception as error:
        raise _raised("to give pieces", error) from error
    if not found:
        raise ValueError("data: expected at least one piece, got none from the forward")
    if not all(map(callable, found)):
        wrong = next(piece for piece in found if not callable(piece))
        raise TypeError(f"forward: expected functions without arguments, got {type(wrong).__name__}")
    return found


def _drawn(pieces: Sequence[Piece], samples: int | None, seed: int) -> Sequence[Piece]:
    """So many of the pieces, in their order."""
    if samples is not None and samples < 1:
        raise ValueError(f"samples: expected at least 1, got {samples}")
    if samples is None or samples >= len(pieces):
        return pieces
    chosen = np.random.default_rng(seed).choice(len(pieces), samples, replace=False)
    return [pieces[i] for i in np.sort(chosen)]


def _results(pieces: Sequence[Piece]) -> Iterator[tuple[int, Any]]:
    for i, piece in enumerate(pieces):
        try:
            result = piece()
        except PumiceError:
            raise  # says what is wrong with weights or inputs
        except Exception as error:
            raise _raised(f"to run piece {i} of {len(pieces)}", error) from error
        yield i, result


def _raised(what: str, error: Exception) -> PumiceError:
    """An error of the forward, with its line."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = frames[min(1, len(frames) - 1)].filename  # the first is here
    frame = [frame for frame in frames if frame.filename == theirs][-1]
    where = f"{frame.filename}:{frame.lineno}"
    return PumiceError(f"forward: expected it {what}, got {type(error).__name__}: {error} ({where})")
