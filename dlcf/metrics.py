"""Metrics as pure functions on arrays; every list-wise one gives a value for each list.

A *list* is what one user is shown: `k` places, of which the first `length` are filled. Place
``j`` (from 1) holds a movie with gain ``g_j``; it is a *hit* where the movie is relevant. What is
ranked and what counts as relevant is the business of :mod:`dlcf.evaluation`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def rmse(actual: ArrayLike, predicted: ArrayLike) -> float:
    """Root mean squared error, ``sqrt(mean((r - p)^2))``, over ratings (not users).

    `actual` and `predicted` have the same shape ``(n,)``, n >= 1, and are in rating units, as the
    result is, which is never below :func:`mae`. ValueError where the shapes differ, there is
    nothing to compare, or a value is missing: a model must not win by declining to answer.
    """
    return float(np.sqrt(np.mean(np.square(_errors(actual, predicted)))))


def mae(actual: ArrayLike, predicted: ArrayLike) -> float:
    """Mean absolute error, ``mean(|r - p|)``; arguments and errors as for :func:`rmse`."""
    return float(np.mean(np.abs(_errors(actual, predicted))))


def precision(hits: ArrayLike, length: ArrayLike) -> Floats:
    """Share of each list that is relevant, ``hits / length``; ``(n,)`` in [0, 1].

    Parameters
    ----------
    hits
        bool ``(n, k)``; unfilled places are False.
    length
        Filled places of each list, ``(n,)``, from 1 to k. Where the catalogue fills every list
        this is k and the metric is precision at k (Manning et al., 2008, section 8.4).
    """
    hits = _places(hits, bool)
    return hits.sum(axis=1) / _at_least_one(length, len(hits), "length")


def recall(hits: ArrayLike, n_relevant: ArrayLike) -> Floats:
    """Share of the relevant movies that each list holds, ``hits / n_relevant``; ``(n,)`` in [0, 1].

    Parameters
    ----------
    hits
        bool ``(n, k)``.
    n_relevant
        Relevant movies of each user, in the list or not, ``(n,)``, at least 1: recall is undefined
        for a user without any. With more than k relevant movies it cannot reach 1.
    """
    hits = _places(hits, bool)
    return hits.sum(axis=1) / _at_least_one(n_relevant, len(hits), "n_relevant")


def f1(precision: float, recall: float) -> float:
    """Harmonic mean ``2 P R / (P + R)`` of a mean precision and a mean recall; 0 where both are.

    This is the paper's F: its 0.7276 is the harmonic mean of its 0.8497 and 0.6362, not a mean of
    users' F.
    """
    total = precision + recall
    return 2.0 * precision * recall / total if total else 0.0


def dcg(gains: ArrayLike) -> Floats:
    """Discounted cumulative gain, ``sum_j g_j / log2(j + 1)`` (Järvelin and Kekäläinen, 2002).

    The gain is linear, as in trec_eval and scikit-learn, not ``2^g - 1``. Of `gains` ``(n, k)``, in
    list order, unfilled places 0, it is ``(n,)``.
    """
    gains = _places(gains, np.float64)
    return gains @ (1.0 / np.log2(np.arange(2, gains.shape[1] + 2)))


def ndcg(gains: ArrayLike, ideal_gains: ArrayLike) -> Floats:
    """Normalised DCG, that of the list over that of the best list possible; ``(n,)`` in [0, 1].

    Parameters
    ----------
    gains
        ``(n, k)``, in list order.
    ideal_gains
        ``(n, k)``: the k largest gains of each user, in or out of the list, in descending order,
        zeros behind; the first of each row is positive. The ideal is cut at k as the list is.
    """
    ideal = dcg(ideal_gains)
    if (ideal <= 0).any():
        problem = f"list {int(np.argmax(ideal <= 0))} has no gain to reach"
        remedy = "leave out users without a relevant movie"
        raise ValueError(f"{problem}, so its NDCG is undefined; {remedy}")
    return dcg(gains) / ideal


def _errors(actual: ArrayLike, predicted: ArrayLike) -> Floats:
    actual = np.asarray(actual, dtype=np.float64)
    predicted = np.asarray(predicted, dtype=np.float64)
    if actual.shape != predicted.shape:
        raise ValueError(f"{actual.shape} ratings but {predicted.shape} predictions")
    if actual.size == 0:
        raise ValueError("there are no ratings to compare; give at least one")
    for name, values in (("rating", actual), ("prediction", predicted)):
        missing = ~np.isfinite(values)
        if missing.any():
            raise ValueError(f"{name} {int(np.argmax(missing))} is not a finite number")
    return predicted - actual


def _places(values: ArrayLike, dtype: Any) -> NDArray[Any]:
    values = np.asarray(values, dtype=dtype)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"lists have shape {values.shape}; give (n lists, k places), both >= 1")
    return values


def _at_least_one(counts: ArrayLike, n_lists: int, name: str) -> NDArray[Any]:
    counts = np.asarray(counts)
    if counts.shape != (n_lists,):
        raise ValueError(f"{name} has shape {counts.shape}; give one for each of {n_lists} lists")
    if (counts < 1).any():
        raise ValueError(f"{name} of list {int(np.argmax(counts < 1))} is below 1")
    return counts
