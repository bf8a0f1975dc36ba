"""Metrics: limits, a table by hand, a published example, independent implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytrec_eval
from sklearn.metrics import (
    mean_absolute_error,
    ndcg_score,
    precision_score,
    root_mean_squared_error,
)

from dlcf import metrics

HITS = np.array([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]], dtype=bool)


def test_errors_at_their_limits() -> None:
    assert metrics.rmse([1.0, 5.0], [1.0, 5.0]) == metrics.mae([1.0, 5.0], [1.0, 5.0]) == 0.0
    assert metrics.rmse([1.0, 1.0], [5.0, 5.0]) == metrics.mae([1.0, 1.0], [5.0, 5.0]) == 4.0


def test_errors_by_hand() -> None:
    assert metrics.rmse([1, 2, 3], [1, 4, 6]) == pytest.approx(np.sqrt(13 / 3), rel=1e-12)
    assert metrics.mae([1, 2, 3], [1, 4, 6]) == pytest.approx(5 / 3, rel=1e-12)


def test_errors_match_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    actual, predicted = generator.normal(size=(2, 500))
    assert metrics.rmse(actual, predicted) == pytest.approx(
        root_mean_squared_error(actual, predicted), rel=1e-12
    )
    assert metrics.mae(actual, predicted) == pytest.approx(
        mean_absolute_error(actual, predicted), rel=1e-12
    )


@pytest.mark.parametrize("metric", [metrics.rmse, metrics.mae])
@pytest.mark.parametrize(
    ("actual", "predicted", "message"),
    [
        ([], [], "at least one"),
        ([1.0, 2.0], [1.0], "predictions"),
        ([1.0, 2.0], [1.0, np.nan], "prediction 1"),
        ([np.inf], [1.0], "rating 0"),
        ([1.0, None], [1.0, 2.0], "rating 1"),
        ([1.0, 2.0], [None, 2.0], "prediction 0"),
    ],
)
def test_a_missing_prediction_is_an_error(
    metric: Any, actual: list[Any], predicted: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(actual, predicted)


def test_precision_and_recall_by_hand() -> None:
    assert metrics.precision(HITS, [4, 4, 2]).tolist() == [0.5, 0.25, 1.0]
    assert metrics.recall(HITS, [2, 5, 4]).tolist() == [1.0, 0.2, 0.5]


def test_a_hit_counts_once_whatever_its_gain() -> None:
    assert metrics.precision([[5, 0, 3]], [3]).tolist() == [2 / 3]
    assert metrics.recall([[5, 0, 3]], [4]).tolist() == [0.5]


def test_lists_at_their_limits() -> None:
    full, empty = np.ones((1, 5), dtype=bool), np.zeros((1, 5), dtype=bool)
    assert metrics.precision(full, [5]) == metrics.recall(full, [5]) == metrics.ndcg(full, full)
    assert metrics.precision(empty, [5]) == metrics.recall(empty, [3]) == 0.0
    assert metrics.ndcg(empty, full) == 0.0


def test_f1_reproduces_the_papers_figure() -> None:
    assert round(metrics.f1(0.8497, 0.6362), 4) == 0.7276
    assert metrics.f1(0.0, 0.0) == 0.0
    assert metrics.f1(1.0, 1.0) == 1.0


def test_dcg_and_ndcg_of_a_published_example() -> None:
    """Gains 3 2 3 0 1 2 with ideal 3 3 3 2 2 2: the worked example of Wikipedia's article on DCG.

    It gives DCG 6.861, ideal DCG 8.740 and NDCG 0.785.
    """
    gains, ideal = [[3, 2, 3, 0, 1, 2]], [[3, 3, 3, 2, 2, 2]]
    assert metrics.dcg(gains)[0] == pytest.approx(6.861, abs=5e-4)
    assert metrics.dcg(ideal)[0] == pytest.approx(8.740, abs=5e-4)
    assert metrics.ndcg(gains, ideal)[0] == pytest.approx(0.785, abs=5e-4)


def test_ndcg_matches_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    relevance = generator.integers(0, 6, size=(50, 30)).astype(float)
    scores = generator.normal(size=(50, 30))
    order = np.argsort(-scores, axis=1)
    gains = np.take_along_axis(relevance, order, axis=1)[:, :10]
    ideal = -np.sort(-relevance, axis=1)[:, :10]
    assert metrics.ndcg(gains, ideal).mean() == pytest.approx(
        ndcg_score(relevance, scores, k=10), rel=1e-12
    )


def test_list_metrics_match_trec_eval() -> None:
    generator = np.random.default_rng(2)
    relevance = generator.integers(0, 2, size=(30, 40))
    relevance[:, 0] = 1
    scores = generator.normal(size=(30, 40))
    hits = np.take_along_axis(relevance, np.argsort(-scores, axis=1), axis=1)[:, :10].astype(bool)
    n_relevant = relevance.sum(axis=1)
    judged = {str(u): {str(m): int(v) for m, v in enumerate(r)} for u, r in enumerate(relevance)}
    run = {str(u): {str(m): float(v) for m, v in enumerate(s)} for u, s in enumerate(scores)}
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"P.10", "recall.10", "ndcg_cut.10"})
    theirs = evaluator.evaluate(run)
    ideal = np.arange(10) < n_relevant[:, None]
    ours = {
        "P_10": metrics.precision(hits, np.full(30, 10)),
        "recall_10": metrics.recall(hits, n_relevant),
        "ndcg_cut_10": metrics.ndcg(hits, ideal),
    }
    for name, values in ours.items():
        expected = [theirs[str(user)][name] for user in range(30)]
        np.testing.assert_allclose(values, expected, rtol=1e-9, err_msg=name)


def test_precision_matches_scikit_learn() -> None:
    expected = [precision_score(row, np.ones_like(row)) for row in HITS]
    np.testing.assert_allclose(metrics.precision(HITS, [4, 4, 4]), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.precision(np.zeros((0, 5)), []), "shape"),
        (lambda: metrics.precision(HITS, [4, 0, 4]), "length of list 1"),
        (lambda: metrics.recall(HITS, [1, 1]), "n_relevant has shape"),
        (lambda: metrics.recall(HITS, [1, 1, 0]), "n_relevant of list 2"),
        (lambda: metrics.ndcg(HITS, np.zeros((3, 4))), "list 0 has no gain"),
        (lambda: metrics.ndcg(HITS, [[1, 0, 0, 0], [0, 0, 0, 0], [2, 1, 0, 0]]), "list 1 has no"),
        (lambda: metrics.dcg([1.0, 2.0]), "shape"),
    ],
)
def test_undefined_cases_raise(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
