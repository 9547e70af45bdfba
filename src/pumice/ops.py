"""The verbs: compress, quantize, linear, concatenate. They know no layout by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from pumice._core import native
from pumice.choice import Request, choose, panel_rows, panels_of
from pumice.errors import NonFiniteError, SchemeError
from pumice.layouts import LAYOUTS, CompactArray, Transposed
from pumice.layouts.operands import as_bias, as_float32, check_out
from pumice.members import map_members
from pumice.options import ACTIVATIONS, check_choice
from pumice.profile import Profile, load_profile
from pumice.quantization import Task, quantize_matrix
from pumice.scheme import AUTO, Scheme, parse_request
from pumice.statistics import Moments, Stats, moments_of
from pumice.values.base import F32, Array

NONFINITE = ("raise", "zero")
PANEL_WEIGHTS = 1 << 22  # weights of a sparse matrix that are dense at a time


def compress(
    w: Any,
    scheme: str | Scheme,
    *,
    in_axis: int = 1,
    nonfinite: str = "raise",
    scale_dtype: Any = None,
    outliers: float | None = None,
    batch: int = 1,
    objective: str = "balanced",
    max_error: float = 0.02,
    measure: bool = False,
    method: str | None = None,
    stats: Stats = None,
    **method_options: Any,
) -> Any:
    """Store weights in a scheme: any array, any scheme.

    Parameters
    ----------
    w : array_like (rows, cols), or a mapping or list of such
        Real numbers; also a CompactArray or a SciPy sparse matrix. More dimensions are stored as (shape[0], rest). In a
        mapping or list, 1-D, integer and bool members pass through as the same object.
    scheme : str
        Such as ``"int4-g128"``, ``"csr"``, ``"bsr-4x4+int8"``; docs/formats.md has them all. ``"auto"`` chooses for
        each weight, and ``print(pm.explain(c))`` or ``c.choice`` says why.
    in_axis : {1, 0}
        The axis of the inputs. 1: (out_features, in_features), as checkpoints have it. 0: (in_features, out_features),
        as Keras and GPT-2 have it; then ``x @ c`` is the fused product.
    nonfinite : {"raise", "zero"}
        What to do with NaN and infinity: raise NonFiniteError, or store 0.
    scale_dtype : {float16, float32}, optional
        Of integer scales; by default float16 with groups, float32 per row.
    outliers : float in [0, 1], optional
        For a sum such as ``"int4-g128&csr"``: the share of weights that the second term stores, the largest beside the
        root mean square of their group; by default 0.005.
    batch : int
        For ``"auto"``: rows of x in a product.
    objective : {"balanced", "speed", "size"}
        For ``"auto"``: the least seconds of a product times bytes, the least seconds, or the least bytes.
    max_error : float
        For ``"auto"``: the largest error, ``||w - w'|| / ||w||`` (Frobenius).
    measure : bool
        For ``"auto"``: time the best candidates instead of trusting the cost model (tens of milliseconds each).
    method : {"nearest", "absmax", "mse", "percentile", "gptq"}, optional
        For integer values, how scales and codes are found (docs/algorithms.md); by default ``"nearest"``. Zeros stay
        zeros, but for dense ``-min``. `outcome` of the result says what was done.
    stats : Moments, or a mapping of them, optional
        Of the inputs of the layer, or of each member's by its name, such as `CalibrationStats`. ``"gptq"`` needs them,
        ``"mse"`` uses them.
    **method_options
        Of the method: `act_order`, `static_groups`, `damping` and `clip` of ``"gptq"``, `steps` and `smallest` of
        ``"mse"``, `percentile` of ``"percentile"``.

    Returns
    -------
    CompactArray, or a dict or list of them

    Raises
    ------
    SchemeError
        The scheme is not legal; the message prints those that are.
    NonFiniteError
        A weight is NaN or infinite, or too large for the scheme; names the member and the index.
    ValueError
        An option that the scheme or the method does not have; stats of another shape, or none where they are needed.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = np.sin(np.arange(512.0)).reshape(4, 128)
    >>> pm.compress(w, "int4-g128")
    <DenseArray int4-g128 (4, 128) 280 bytes, 4.38 bits per weight>
    >>> pm.compress({"weight": w, "bias": np.zeros(4)}, "int8")["bias"]
    array([0., 0., 0., 0.])
    >>> pm.compress(np.where(w > 0.99, w, 0), "auto", objective="size").density < 0.1
    True
    """
    parsed = parse_request(scheme)
    check_choice("nonfinite", nonfinite, NONFINITE)
    if in_axis not in (0, 1):
        raise ValueError(f"in_axis: expected 0 or 1, got {in_axis!r}")
    if method is None and method_options:
        raise TypeError(f"{next(iter(method_options))}: expected an option of compress, or a method that has it")
    if method is not None and parsed == AUTO:
        raise ValueError(f"method: expected None with 'auto', which chooses by rounding to nearest, got {method!r}")

    options = (
        {"scale_dtype": scale_dtype}
        if outliers is None
        else {"scale_dtype": scale_dtype, "outliers": _share(outliers, parsed)}
    )
    request, profile = Request(batch, objective, max_error, measure), load_profile() if parsed == AUTO else None
    how = _How(parsed, request, profile, nonfinite, options, method, method_options)

    def one(label: str, key: Any, weight: Any) -> CompactArray:
        find = partial(moments_of, label, key, stats)
        return _compress(label, weight, replace(how, moments=find), in_axis)

    return map_members(w, one)


@dataclass(frozen=True)
class _How:
    """How weights are compressed: the scheme, what is asked for if that is `AUTO`, and options of the encoder; the
    method, its options, and what finds the moments of so many inputs."""

    scheme: Scheme
    request: Request
    profile: Profile | None
    nonfinite: str
    options: dict[str, Any]
    method: str | None = None
    method_options: dict[str, Any] = field(default_factory=dict)
    moments: Callable[[int], Moments | None] = lambda cols: None


def _share(outliers: float, scheme: Scheme) -> float:
    if not scheme.terms:
        raise ValueError(f"outliers: expected None for {scheme}, which is no sum such as int4-g128&csr, got {outliers}")
    if not 0 <= outliers <= 1:
        raise ValueError(f"outliers: expected a number in [0, 1], got {outliers}")
    return float(outliers)


def quantize(w: Any, scheme: str | Scheme, **options: Any) -> Any:
    """`compress` for a dense scheme.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> pm.quantize(np.eye(2, 32), "int8").bits_per_weight
    11.0

    With a method, and moments of the layer's inputs:

    >>> rng = np.random.default_rng(0)
    >>> x, w = rng.standard_normal((500, 8)) @ rng.standard_normal((8, 64)), rng.standard_normal((32, 64))
    >>> stats = pm.Moments(64)
    >>> stats.update(x)
    >>> error = lambda c: float(np.linalg.norm(x @ (c.to_dense() - w).T) / np.linalg.norm(x @ w.T))
    >>> plain, gptq = pm.quantize(w, "int4-g32"), pm.quantize(w, "int4-g32", method="gptq", stats=stats)
    >>> error(gptq) < 0.5 * error(plain), gptq.nbytes == plain.nbytes
    (True, True)
    >>> gptq.outcome.damping
    0.01
    """
    if not Scheme.parse(scheme).dense:
        raise SchemeError(f"scheme: expected a dense one such as 'int4-g128', got {str(scheme)!r}")
    return compress(w, scheme, **options)


def _compress(name: str, w: Any, how: _How, in_axis: int) -> CompactArray:
    if isinstance(w, Transposed):
        return _compress(name, w.T, how, 1 - in_axis).T
    if isinstance(w, CompactArray):
        as_it_is = how.method is None and not any(v is not None for v in how.options.values())
        if in_axis == 1 and w.scheme == str(how.scheme) and as_it_is:
            return w
        w = w.to_dense()
    if in_axis == 0:
        if len(w.shape) != 2:
            raise ValueError(f"{name}: expected two dimensions for in_axis=0, got shape {w.shape}")
        return _compress(name, w.T, how, 1).T
    if hasattr(w, "tocsr"):
        if how.method is None:
            return _compress_sparse(name, w.tocsr(), how)
        w = w.toarray()
    matrix, shape = _finite_matrix(name, w, how.nonfinite)
    if how.method is not None:
        return _compress_by_method(name, matrix, shape, how)
    if how.scheme != AUTO:
        return LAYOUTS[how.scheme.layout].encode(matrix, how.scheme, shape, **how.options)
    choice = choose(shape, panels_of(matrix), how.request, how.profile)
    scheme = Scheme.parse(choice.scheme)
    array = LAYOUTS[scheme.layout].encode(matrix, scheme, shape, **how.options)
    array.choice = choice.with_size(array.nbytes)
    return array


def _compress_by_method(name: str, matrix: F32, shape: tuple[int, ...], how: _How) -> CompactArray:
    # Zeros stay zeros, so that what was pruned stays pruned; a minimum per group need not reach 0.
    keep = None if how.scheme.dense and "min" in how.scheme.flags else matrix != 0
    if keep is not None and how.scheme.dense and keep.all():
        keep = None
    task = Task(matrix, how.scheme, how.moments(matrix.shape[1]), how.options["scale_dtype"], keep, name)
    weights, grid, outcome = quantize_matrix(task, str(how.method), how.method_options)
    array = LAYOUTS[how.scheme.layout].encode(weights, how.scheme, shape, grid=grid)  # type: ignore[call-arg]
    array.outcome = outcome
    return array


def _finite_matrix(name: str, w: Any, nonfinite: str) -> tuple[F32, tuple[int, ...]]:
    """(rows, cols) float32 without NaN and infinity, and the logical shape."""
    with np.errstate(over="ignore"):  # too large for float32 is reported below, with its index
        array = as_float32(name, w)
    if array.ndim < 2:
        raise ValueError(f"{name}: expected at least two dimensions, got shape {array.shape}")
    shape = array.shape
    matrix = np.ascontiguousarray(array).reshape(shape[0], int(np.prod(shape[1:], dtype=np.int64)))
    bad = native.first_nonfinite(matrix)
    if bad >= 0:
        if nonfinite == "raise":
            index = tuple(int(i) for i in np.unravel_index(bad, shape))
            raise NonFiniteError(f"{name}: expected finite values, got {matrix.flat[bad]} at index {index}")
        matrix = np.where(np.isfinite(matrix), matrix, np.float32(0))
    return matrix, shape


def _compress_sparse(name: str, matrix: Any, how: _How) -> CompactArray:
    """A SciPy matrix, made dense a row panel at a time."""
    rows, cols = matrix.shape
    choice = None
    if how.scheme == AUTO:
        step = panel_rows(cols)
        starts = range(0, rows, step)
        choice = choose(
            matrix.shape,
            lambda: (_finite_matrix(name, matrix[i : i + step].toarray(), how.nonfinite)[0] for i in starts),
            how.request,
            how.profile,
        )
        how = replace(how, scheme=Scheme.parse(choice.scheme))
    layout = LAYOUTS[how.scheme.layout]
    unit = layout.chunk_rows(how.scheme)
    step = max(1, PANEL_WEIGHTS // max(cols, 1) // unit) * unit
    panels = [_compress(name, matrix[i : i + step].toarray(), how, 1) for i in range(0, max(rows, 1), step)]
    array = panels[0] if len(panels) == 1 else layout.stack(panels, matrix.shape)
    array.choice = None if choice is None else choice.with_size(array.nbytes)
    return array


def linear(x: Any, w: Any, bias: Any = None, *, activations: str | None = None, out: Array | None = None) -> F32:
    """``x @ w.T + bias``, fused for compact weights.

    Parameters
    ----------
    x : array_like (..., cols)
        Real numbers; computed in float32.
    w : CompactArray or array_like (rows, cols)
        Plain arrays go to NumPy, so that one forward serves every checkpoint.
    bias : array_like (rows,), optional
    activations : {"int16", "int8", "float32"}, optional
        How x enters a product with integer weights; by default what `options` says.
    out : float32 ndarray (..., rows), optional
        Where y goes.

    Returns
    -------
    y : float32 (..., rows)

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = pm.compress(np.eye(2, 32), "int8")
    >>> pm.linear(np.ones((3, 32)), w, bias=[1, 2])
    array([[2., 3.],
           [2., 3.],
           [2., 3.]], dtype=float32)
    """
    if activations is not None:
        check_choice("activations", activations, ACTIVATIONS)
    if isinstance(w, CompactArray):
        return w.linear(x, bias, activations, out)
    w, x = as_float32("w", w), as_float32("x", x)
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"x: expected shape (..., cols) for w of shape {w.shape}, got {x.shape}")
    vector = as_bias(bias, w.shape[0])
    if out is not None:
        check_out(out, (*x.shape[:-1], w.shape[0]))
    y = np.matmul(x, w.T, out=out)
    if vector is not None:
        y += vector
    return y


def concatenate(arrays: Iterable[CompactArray]) -> CompactArray:
    """One array of the rows of several, without decoding: query, key and value as one product.

    Parameters
    ----------
    arrays : sequence of CompactArray
        Of one scheme, with equal shapes but for the rows.

    Examples
    --------
    >>> import numpy as np, pumice as pm
    >>> w = pm.compress(np.eye(4, 32), "int8")
    >>> pm.concatenate([w, w, w]).shape
    (12, 32)
    """
    some = list(arrays)
    if not some:
        raise ValueError("arrays: expected at least one, got none")
    for array in some:
        if not isinstance(array, CompactArray):
            raise TypeError(f"arrays: expected CompactArrays, got {type(array).__name__}")
    first = some[0]
    for array in some:
        if type(array) is not type(first) or array.scheme != first.scheme or array.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"arrays: expected {first.scheme} of shape (rows, {', '.join(map(str, first.shape[1:]))}), "
                f"got {array.scheme} of shape {array.shape}"
            )
    return type(first).stack(some, (sum(array.shape[0] for array in some), *first.shape[1:]))


def show_config() -> dict[str, Any]:
    """Version, ISA, threads and build, as a dict.

    Examples
    --------
    >>> import pumice as pm
    >>> sorted(pm.show_config())
    ['compiler', 'isa', 'isas', 'numpy', 'threads', 'version']
    """
    from pumice import __version__

    return {
        "version": __version__,
        "numpy": np.__version__,
        "isa": native.get_isa(),
        "isas": list(native.isas()),
        "threads": native.get_num_threads(),
        **native.build_info(),
    }
