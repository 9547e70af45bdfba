"""pumice in scikit-learn: fitted estimators whose weights are compact, and neighbours found in compact embeddings.

Needs scikit-learn.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

try:
    from sklearn.base import BaseEstimator
    from sklearn.linear_model._base import LinearClassifierMixin, LinearModel
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestNeighbors
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.utils.validation import check_array, check_is_fitted
except ImportError as error:
    raise ImportError(
        "pumice.sklearn: expected scikit-learn to be installed, got none: pip install scikit-learn"
    ) from error

from pumice.layouts import CompactArray
from pumice.ops import compress as compress_array
from pumice.ops import linear

METRICS = ("cosine", "euclidean", "dot")
NEIGHBORS = "_fit_method"  # of fitted neighbours: how they are found
COMPACT = "compact"


def compress(estimator: Any, scheme: str) -> Any:
    """A copy of a fitted estimator with compact weights.

    It has the type of the original and predicts as that does: pipelines, meta-estimators and pickles go on working.
    Linear models keep `coef_` (outputs, features) compact, multi-layer perceptrons each of `coefs_`; vectors (the
    `coef_` of one output) stay. Brute-force `NearestNeighbors` become an `EmbeddingSearch`; classifiers and regressors
    by neighbours keep one. Training on (`partial_fit`) is not for compact weights; `fit` makes new ones.

    Parameters
    ----------
    estimator : scikit-learn estimator
        Fitted; a pipeline or another estimator may hold it.
    scheme : str
        As in `pumice.compress`.

    Returns
    -------
    estimator
        A deep copy, but for the weights.

    Raises
    ------
    ValueError
        No weight in it that could become compact.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import Ridge
    >>> X, Y = np.eye(64), np.arange(64 * 8.0).reshape(64, 8)
    >>> small = compress(Ridge().fit(X, Y), "int8")
    >>> small.coef_
    <DenseArray int8 (8, 64) 560 bytes, 8.75 bits per weight>
    """
    replaced: dict[int, Any] = {}  # deepcopy takes these instead of a copy of the object with the id
    for owner, attribute in _weights(estimator):
        if attribute == NEIGHBORS:
            replaced[id(owner)] = _compact_neighbors(owner, scheme)
            continue
        value = getattr(owner, attribute)
        if attribute == "coefs_":
            replaced[id(value)] = [compress_array(w, scheme, in_axis=0) for w in value]
        else:
            replaced[id(value)] = compress_array(value, scheme)
    if not replaced:
        rule = "a fitted linear model of several outputs, perceptron or brute-force neighbours, or what holds one"
        raise ValueError(f"estimator: expected {rule}, got {estimator!r}")
    return copy.deepcopy(estimator, replaced)


def _weights(value: Any, seen: set[int] | None = None) -> Iterator[tuple[Any, str]]:
    """Each estimator within `value`, and its attribute that holds weights."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for member in value:
            yield from _weights(member, seen)
        return
    if not isinstance(value, BaseEstimator) and not type(value).__module__.startswith("sklearn.calibration"):
        return
    if isinstance(value, LinearModel | LinearClassifierMixin):
        coef = vars(value).get("coef_")
        if isinstance(coef, np.ndarray) and coef.ndim == 2:
            yield value, "coef_"
    elif isinstance(value, MLPClassifier | MLPRegressor) and "coefs_" in vars(value):
        yield value, "coefs_"
    elif isinstance(value, NearestNeighbors | KNeighborsClassifier | KNeighborsRegressor) and NEIGHBORS in vars(value):
        yield value, NEIGHBORS
    yield from _weights(list(vars(value).values()), seen)


def _compact_neighbors(neighbors: Any, scheme: str) -> Any:
    """What stands for fitted neighbours."""
    search = EmbeddingSearch.of(neighbors, scheme)
    if isinstance(neighbors, NearestNeighbors):
        return search
    compact = copy.copy(neighbors)
    compact.__class__ = CompactClassifier if isinstance(neighbors, KNeighborsClassifier) else CompactRegressor
    compact._fit_method, compact.search_ = COMPACT, search
    return copy.deepcopy(compact, {id(search): search, id(neighbors._fit_X): search.exact_})


class _ByCompactNeighbors:
    """Asks a search for the neighbours, until it is fitted again."""

    def kneighbors(self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True) -> Any:
        me: Any = self
        if me._fit_method != COMPACT:
            return super().kneighbors(X, n_neighbors, return_distance)  # type: ignore[misc]
        return me.search_.kneighbors(X, me.n_neighbors if n_neighbors is None else n_neighbors, return_distance)


class CompactClassifier(_ByCompactNeighbors, KNeighborsClassifier):  # type: ignore[misc]
    """A `KNeighborsClassifier` whose neighbours are found in compact embeddings; `compress` makes it."""


class CompactRegressor(_ByCompactNeighbors, KNeighborsRegressor):  # type: ignore[misc]
    """A `KNeighborsRegressor` whose neighbours are found in compact embeddings; `compress` makes it."""


class EmbeddingSearch(BaseEstimator):  # type: ignore[misc]
    """Nearest neighbours by brute force in compact embeddings, the best of them re-ranked exactly.

    A product with the compact embeddings finds ``rerank * n_neighbors`` candidates for each query; of those the
    distances are computed in float64 from the vectors as they were given, which may be a memory map.

    Parameters
    ----------
    scheme : str
        Of the embeddings, such as ``"int8"``.
    n_neighbors : int
    metric : {"cosine", "euclidean", "dot"}
        ``"dot"``: the negative inner product.
    rerank : int
        Candidates for each neighbour; 0 gives distances to the compact vectors and keeps no others.

    Examples
    --------
    >>> import numpy as np
    >>> vectors = np.eye(32) + 0.1
    >>> search = EmbeddingSearch("int8", n_neighbors=1).fit(vectors)
    >>> search.kneighbors(vectors[[5, 7]], return_distance=False)
    array([[5],
           [7]])
    """

    def __init__(self, scheme: str = "int8", n_neighbors: int = 5, metric: str = "cosine", rerank: int = 4) -> None:
        self.scheme, self.n_neighbors, self.metric, self.rerank = scheme, n_neighbors, metric, rerank

    @classmethod
    def of(cls, neighbors: Any, scheme: str) -> Self:
        """One that stands for a fitted `sklearn.neighbors.NearestNeighbors`."""
        check_is_fitted(neighbors)
        metric = "euclidean" if neighbors.metric in ("minkowski", "l2") and neighbors.p == 2 else neighbors.metric
        if neighbors._fit_method != "brute":
            rule = "neighbours found by brute force (algorithm='brute')"
            raise ValueError(f"estimator: expected {rule}, got algorithm {neighbors._fit_method!r}")
        return cls(scheme, neighbors.n_neighbors, metric).fit(neighbors._fit_X)

    def fit(self, X: Any, y: Any = None) -> Self:
        """Compress the vectors X (samples, features)."""
        if self.metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {self.metric!r}")
        if self.rerank < 0:
            raise ValueError(f"rerank: expected 0 or more, got {self.rerank}")
        vectors = check_array(X, dtype=(np.float64, np.float32), copy=False)
        self.n_features_in_, self.n_samples_fit_ = vectors.shape[1], len(vectors)
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        self.norms_ = norms.astype(np.float32)
        self.embeddings_: CompactArray = compress_array(vectors, self.scheme)
        self.exact_ = vectors if self.rerank else None
        return self

    def kneighbors(self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True) -> Any:
        """The nearest vectors to each query: distances and indices (queries, n_neighbors), nearest first.

        Parameters
        ----------
        X : (queries, features), optional
            By default the vectors themselves, none of which is a neighbour of its own.
        n_neighbors : int, optional
        return_distance : bool
        """
        check_is_fitted(self)
        if X is None:
            return self._kneighbors_of_itself(self.n_neighbors if n_neighbors is None else n_neighbors, return_distance)
        queries = check_array(X, dtype=(np.float64, np.float32), copy=False)
        if queries.shape[1] != self.n_features_in_:
            raise ValueError(f"X: expected {self.n_features_in_} features, got {queries.shape[1]}")
        count = self.n_neighbors if n_neighbors is None else n_neighbors
        if not 1 <= count <= self.n_samples_fit_:
            raise ValueError(f"n_neighbors: expected 1 to {self.n_samples_fit_} (samples), got {count}")
        scores = linear(queries, self.embeddings_)
        if self.metric == "cosine":
            scores /= np.where(self.norms_ > 0, self.norms_, 1)
        elif self.metric == "euclidean":
            scores -= self.norms_**2 / 2  # the nearest has the largest q.v - v.v / 2
        wanted = min(count * max(self.rerank, 1), self.n_samples_fit_)
        found = np.argpartition(-scores, wanted - 1, axis=1)[:, :wanted]
        vectors = self.embeddings_.take(found) if self.exact_ is None else self.exact_[found]
        distances = _distances(queries, vectors, self.metric)
        order = np.lexsort((found, distances))[:, :count]  # of equal ones the lower index
        distances, found = np.take_along_axis(distances, order, 1), np.take_along_axis(found, order, 1)
        return (distances, found) if return_distance else found

    def _kneighbors_of_itself(self, count: int, return_distance: bool) -> Any:
        if not 1 <= count < self.n_samples_fit_:
            raise ValueError(f"n_neighbors: expected 1 to {self.n_samples_fit_ - 1} (other samples), got {count}")
        vectors = self.embeddings_.to_dense() if self.exact_ is None else self.exact_
        distances, found = self.kneighbors(vectors, count + 1)
        others = found != np.arange(self.n_samples_fit_)[:, None]
        others[others.all(axis=1), -1] = False  # of more equal vectors than were asked for
        shape = (self.n_samples_fit_, count)
        distances, found = distances[others].reshape(shape), found[others].reshape(shape)
        return (distances, found) if return_distance else found


def _distances(queries: NDArray[Any], vectors: NDArray[Any], metric: str) -> NDArray[np.float64]:
    """Of (n, features) to (n, k, features): (n, k), in float64."""
    q, v = queries.astype(np.float64)[:, None], vectors.astype(np.float64)
    if metric == "euclidean":
        return np.sqrt(np.square(q - v).sum(axis=-1))
    dots: NDArray[np.float64] = (q * v).sum(axis=-1)
    if metric == "dot":
        return -dots
    lengths = np.linalg.norm(q, axis=-1) * np.linalg.norm(v, axis=-1)
    return 1 - dots / np.where(lengths > 0, lengths, 1)
