"""Compact estimators predict what the decoded weights predict, inside pipelines and out."""

from __future__ import annotations

import copy
import doctest
import pickle

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier, SGDClassifier
from sklearn.model_selection import cross_val_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neighbors import KDTree, KNeighborsClassifier, KNeighborsRegressor, NearestNeighbors
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import pumice as pm
import pumice.sklearn
from pumice.sklearn import EmbeddingSearch, compress

X, LABELS = load_digits(return_X_y=True)
TARGETS = np.random.default_rng(0).standard_normal((len(X), 6))
SCHEMES = ["int8", "int4-g32", "csr", "float16"]
LINEAR = [
    (LogisticRegression(max_iter=50), LABELS), (RidgeClassifier(), LABELS), (SGDClassifier(random_state=0), LABELS),
    (LinearSVC(max_iter=50), LABELS), (Ridge(), TARGETS), (LinearRegression(), TARGETS),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*converge")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("estimator", "y"), LINEAR, ids=lambda v: type(v).__name__)
def test_a_linear_model_predicts_with_its_decoded_weights(estimator: object, y: np.ndarray, scheme: str) -> None:
    full = copy.deepcopy(estimator).fit(X / 16, y)
    compact = compress(full, scheme)
    assert type(compact) is type(full)
    twin = copy.deepcopy(full)
    twin.coef_ = compact.coef_.to_dense().astype(np.float64)
    method = "decision_function" if hasattr(full, "decision_function") else "predict"
    with pm.options(activations="float32"):
        found, exact = (getattr(e, method)(X / 16) for e in (compact, twin))
    np.testing.assert_allclose(found, exact, atol=1e-4 * np.abs(exact).max())
    if y is LABELS:
        assert np.mean(compact.predict(X / 16) == full.predict(X / 16)) > 0.95
    assert isinstance(full.coef_, np.ndarray)  # the original is as it was


@pytest.mark.filterwarnings("ignore:.*converge")
@pytest.mark.parametrize(("kind", "y"), [(MLPClassifier, LABELS), (MLPRegressor, TARGETS)])
def test_a_perceptron_predicts_with_its_decoded_weights(kind: type, y: np.ndarray) -> None:
    full = kind(hidden_layer_sizes=(64, 32), max_iter=15, random_state=0).fit(X / 16, y)
    compact = compress(full, "int8")
    twin = copy.deepcopy(full)
    twin.coefs_ = [w.to_dense().astype(np.float64) for w in compact.coefs_]
    with pm.options(activations="float32"):
        found = compact.predict_proba(X / 16) if y is LABELS else compact.predict(X / 16)
    exact = twin.predict_proba(X / 16) if y is LABELS else twin.predict(X / 16)
    np.testing.assert_allclose(found, exact, atol=1e-4)
    assert sum(w.nbytes for w in compact.coefs_) < 0.16 * sum(w.nbytes for w in full.coefs_)


@pytest.mark.filterwarnings("ignore:.*converge")
def test_pipelines_and_meta_estimators_hold_compact_models() -> None:
    full = make_pipeline(StandardScaler(), LogisticRegression(max_iter=50)).fit(X, LABELS)
    compact = compress(full, "int8")
    assert np.mean(compact.predict(X) == full.predict(X)) > 0.99
    again = pickle.loads(pickle.dumps(compact))
    np.testing.assert_array_equal(again.predict_proba(X), compact.predict_proba(X))
    several = MultiOutputRegressor(
        make_pipeline(MLPRegressor(hidden_layer_sizes=(16,), max_iter=5, random_state=0))
    ).fit(X / 16, TARGETS)
    small = compress(several, "int8")
    np.testing.assert_allclose(small.predict(X / 16), several.predict(X / 16), atol=0.1)


@pytest.mark.filterwarnings("ignore:.*converge")
def test_a_compact_copy_can_be_fitted_anew() -> None:
    compact = compress(LogisticRegression(max_iter=20).fit(X / 16, LABELS), "int8")
    assert cross_val_score(compact, X / 16, LABELS, cv=2).mean() > 0.8
    assert isinstance(compact.fit(X / 16, LABELS).coef_, np.ndarray)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_re_ranked_neighbours_are_those_of_scikit_learn(metric: str) -> None:
    full = NearestNeighbors(n_neighbors=5, algorithm="brute", metric=metric).fit(X)
    search = compress(full, "int8")
    distances, found = search.kneighbors(X[:200])
    exact, ids = full.kneighbors(X[:200])
    np.testing.assert_allclose(distances, exact, atol=1e-5 * exact.max())
    assert np.mean(found == ids) > 0.995  # ties
    assert search.embeddings_.nbytes < 0.3 * X.astype(np.float32).nbytes
    coarse = compress(full, "int4-g32").kneighbors(X[:200], return_distance=False)
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(coarse, ids, strict=True)])
    assert recall > 0.95


@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize(("kind", "y"), [(KNeighborsClassifier, LABELS), (KNeighborsRegressor, TARGETS)])
def test_classifiers_and_regressors_by_neighbours_predict_as_before(kind: type, y: np.ndarray, weights: str) -> None:
    full = make_pipeline(StandardScaler(), kind(3, algorithm="brute", weights=weights)).fit(X, y)
    compact = compress(full, "int8")
    assert isinstance(compact[-1], kind)
    assert compact[-1].search_.embeddings_.scheme == "int8"
    assert np.isclose(compact.predict(X[:300]), full.predict(X[:300]), atol=1e-3).mean() > 0.99
    again = pickle.loads(pickle.dumps(compact))
    np.testing.assert_array_equal(again.predict(X[:50]), compact.predict(X[:50]))
    if y is LABELS:
        np.testing.assert_allclose(compact.predict_proba(X[:300]), full.predict_proba(X[:300]), atol=0.35)  # a tie
        assert cross_val_score(compact, X, y, cv=2).mean() > 0.9
    few = compact.fit(X[:20], y[:20])[-1]  # fitted anew it is what it was
    np.testing.assert_array_equal(few.kneighbors(few._fit_X, 1, return_distance=False)[:, 0], range(20))


def test_neighbours_within_a_pipeline_become_a_search() -> None:
    full = make_pipeline(StandardScaler(), NearestNeighbors(algorithm="brute")).fit(X)
    compact = compress(full, "int8")
    assert isinstance(compact[-1], EmbeddingSearch)
    assert isinstance(full[-1], NearestNeighbors)


@pytest.mark.parametrize("rerank", [0, 4])
def test_vectors_are_no_neighbours_of_their_own(rerank: int) -> None:
    vectors = np.concatenate([X[:200], X[:3], X[:3]])  # some three times
    search = EmbeddingSearch("int8", 2, "euclidean", rerank=rerank).fit(vectors)
    distances, found = search.kneighbors()
    assert not (found == np.arange(206)[:, None]).any()
    exact, _ = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(vectors).kneighbors()
    np.testing.assert_allclose(distances, exact, atol=1e-3 if rerank else 0.5)
    np.testing.assert_array_equal(search.kneighbors(return_distance=False), found)
    with pytest.raises(ValueError, match=r"n_neighbors: expected 1 to 205 \(other samples\), got 206"):
        search.kneighbors(n_neighbors=206)


@pytest.mark.filterwarnings("ignore:.*converge")
def test_calibrated_classifiers_hold_compact_models() -> None:
    full = CalibratedClassifierCV(LogisticRegression(max_iter=50), cv=2).fit(X / 16, LABELS)
    compact = compress(full, "int8")
    assert not isinstance(compact.calibrated_classifiers_[0].estimator.coef_, np.ndarray)
    assert np.mean(compact.predict(X / 16) == full.predict(X / 16)) > 0.99


def test_without_re_ranking_distances_are_to_the_compact_vectors() -> None:
    search = EmbeddingSearch("int8", 3, "euclidean", rerank=0).fit(X)
    distances, _ = search.kneighbors(X[:50])
    tree_distances, _ = KDTree(search.embeddings_.to_dense()).query(X[:50], 3)
    np.testing.assert_allclose(distances, tree_distances, atol=1e-4)
    assert search.exact_ is None
    assert search.kneighbors(X[:2], 1, return_distance=False).shape == (2, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compress(StandardScaler().fit(X), "int8"), "estimator: expected a fitted linear model"),
        (lambda: compress(LogisticRegression(), "int8"), "estimator: expected a fitted"),
        (lambda: compress(NearestNeighbors(algorithm="kd_tree").fit(X), "int8"), "by brute force .* 'kd_tree'"),
        (lambda: EmbeddingSearch(metric="manhattan").fit(X), "metric: expected one of cosine, euclidean, dot"),
        (lambda: EmbeddingSearch(rerank=-1).fit(X), "rerank: expected 0 or more, got -1"),
        (lambda: EmbeddingSearch().fit(X).kneighbors(X[:, :9]), "X: expected 64 features, got 9"),
        (lambda: EmbeddingSearch().fit(X).kneighbors(X, 0), r"n_neighbors: expected 1 to 1797 \(samples\), got 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_docstring_examples_run() -> None:
    result = doctest.testmod(pumice.sklearn)
    assert result.attempted > 5
    assert result.failed == 0
