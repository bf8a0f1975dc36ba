"""Protocols: what is ranked, what is relevant, and over whom the mean runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from tqdm import tqdm

from dlcf import metrics
from dlcf.data import check_ratings
from dlcf.models.base import Recommender, top_k

__all__ = ["PROTOCOLS", "evaluate", "per_user", "per_user_errors"]

PROTOCOLS = ("rated", "full")
_USERS_AT_ONCE = 64
_TIE_SEED = 20251


def evaluate(
    model: Recommender,
    train: pd.DataFrame,
    test: pd.DataFrame,
    protocol: str = "full",
    k: int = 10,
    threshold: float = 4.0,
) -> dict[str, float]:
    """Measure a fitted model on a test set.

    Parameters
    ----------
    model
        Fitted on `train` or a part of it.
    train
        Ratings that the test users are known to have given: ``"full"`` does not rank them.
    test
        Ratings to predict and rank.
    protocol
        ``"rated"``: each user's rated test movies, by predicted rating. The candidates are known
        to have been watched, so this says little about recommending; it is what the paper must
        have done. NDCG takes the rating as gain.
        ``"full"``: the whole catalogue of `model.movie_ids` minus the user's movies in `train`, by
        `model.score_all`; a movie that the user did not rate in test counts as not relevant. NDCG
        takes gain 1 for a relevant movie. A relevant test movie outside the catalogue cannot be
        recommended but counts in recall and in the ideal list.
    k
        Length of the list.
    threshold
        A test movie is relevant where its rating is at least this.

    Returns
    -------
    dict
        ``rmse``, ``mae`` over all test ratings; ``precision@k``, ``recall@k``, ``ndcg@k``, means
        over the users with at least one relevant test movie; ``f1@k``, the harmonic mean of the
        two means; ``ratings`` and ``users``, the numbers of both. A list shorter than k divides
        precision by its own length. Movies with equal scores are ranked in an order drawn once,
        the same for all models, so that no model gains from the order of the ids.

    Raises
    ------
    ValueError
        The protocol is unknown, a frame is wrong, or no test user has a relevant movie.
    """
    frame = per_user(model, train, test, protocol, k, threshold)
    actual, predicted = test["rating"].to_numpy(), model.predict(test)
    mean = frame.mean()
    return {
        "rmse": metrics.rmse(actual, predicted),
        "mae": metrics.mae(actual, predicted),
        f"precision@{k}": float(mean["precision"]),
        f"recall@{k}": float(mean["recall"]),
        f"f1@{k}": metrics.f1(float(mean["precision"]), float(mean["recall"])),
        f"ndcg@{k}": float(mean["ndcg"]),
        "ratings": float(len(test)),
        "users": float(len(frame)),
    }


def per_user(
    model: Recommender,
    train: pd.DataFrame,
    test: pd.DataFrame,
    protocol: str = "full",
    k: int = 10,
    threshold: float = 4.0,
) -> pd.DataFrame:
    """The list-wise metrics of :func:`evaluate` for each user; arguments as there.

    Returns
    -------
    DataFrame
        Index `userId`, the test users with at least one relevant movie; columns ``precision``,
        ``recall``, ``ndcg``.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    if k < 1:
        raise ValueError(f"k is {k}; rank at least one place")
    check_ratings(train, source="train")
    check_ratings(test, source="test")
    relevant = test.loc[test["rating"] >= threshold, "userId"]
    if relevant.empty:
        raise ValueError(
            f"no test rating reaches the threshold {threshold}; lower it or give other ratings"
        )
    users = np.unique(relevant)
    test = test[test["userId"].isin(users)].sort_values(["userId", "movieId"])
    rank = _rank_rated if protocol == "rated" else _rank_full
    lists = rank(model, train, test, users, k, threshold)
    return pd.DataFrame(
        {
            "precision": metrics.precision(lists["hits"], lists["length"]),
            "recall": metrics.recall(lists["hits"], lists["n_relevant"]),
            "ndcg": metrics.ndcg(lists["gains"], lists["ideal"]),
        },
        index=pd.Index(users, name="userId"),
    )


def per_user_errors(model: Recommender, test: pd.DataFrame) -> pd.DataFrame:
    """Sums of errors for each test user; their totals give RMSE and MAE.

    Returns
    -------
    DataFrame
        Index `userId`, all test users; columns ``squared`` and ``absolute`` (sums over the user's
        test ratings) and ``ratings`` (their number).
    """
    check_ratings(test, source="test")
    error = model.predict(test) - test["rating"].to_numpy(np.float64)
    table = pd.DataFrame({"squared": error**2, "absolute": np.abs(error), "ratings": 1.0})
    return table.groupby(test["userId"].to_numpy()).sum().rename_axis("userId")


def _rank_rated(
    model: Recommender,
    train: pd.DataFrame,
    test: pd.DataFrame,
    users: NDArray[np.int64],
    k: int,
    threshold: float,
) -> dict[str, NDArray[Any]]:
    row = np.searchsorted(users, test["userId"].to_numpy())
    rating = test["rating"].to_numpy(np.float64)
    tie_break = np.random.default_rng(_TIE_SEED).permutation(len(test))
    by_prediction = np.lexsort((tie_break, -model.predict(test), row))
    return {
        "hits": _first_places(rating >= threshold, by_prediction, row, len(users), k),
        "gains": _first_places(rating, by_prediction, row, len(users), k),
        "ideal": _first_places(rating, np.lexsort((-rating, row)), row, len(users), k),
        "length": np.minimum(np.bincount(row), k),
        "n_relevant": np.bincount(row, rating >= threshold).astype(int),
    }


def _rank_full(
    model: Recommender,
    train: pd.DataFrame,
    test: pd.DataFrame,
    users: NDArray[np.int64],
    k: int,
    threshold: float,
) -> dict[str, NDArray[Any]]:
    catalogue = model.movie_ids
    tie_break = np.random.default_rng(_TIE_SEED).permutation(len(catalogue))
    seen = _known_cells(train, users, catalogue)
    wanted = _known_cells(test[test["rating"] >= threshold], users, catalogue)
    hits = np.zeros((len(users), k), dtype=bool)
    length = np.empty(len(users), dtype=int)
    starts = range(0, len(users), _USERS_AT_ONCE)
    for start in tqdm(starts, desc="ranking", disable=None, leave=False):
        rows = slice(start, start + _USERS_AT_ONCE)
        scores = model.score_all(users[rows])
        scores[seen[rows].toarray()] = -np.inf
        best = tie_break[top_k(scores[:, tie_break], k)]
        filled = np.take_along_axis(scores, best, axis=1) > -np.inf
        hits[rows, : best.shape[1]] = (
            np.take_along_axis(wanted[rows].toarray(), best, axis=1) & filled
        )
        length[rows] = np.maximum(filled.sum(axis=1), 1)
    n_relevant = np.bincount(
        np.searchsorted(users, test["userId"].to_numpy()), test["rating"] >= threshold
    ).astype(int)
    ideal = np.arange(k) < n_relevant[:, None]
    return {
        "hits": hits,
        "gains": hits,
        "ideal": ideal,
        "length": length,
        "n_relevant": n_relevant,
    }


def _first_places(
    values: NDArray[Any], order: NDArray[Any], row: NDArray[Any], n_rows: int, k: int
) -> NDArray[Any]:
    """The first k values of each row in `order`, which sorts by row first; zeros behind."""
    row_in_order = row[order]
    first = np.searchsorted(row_in_order, np.arange(n_rows))
    place = np.arange(len(order)) - first[row_in_order]
    inside = place < k
    table = np.zeros((n_rows, k), dtype=values.dtype)
    table[row_in_order[inside], place[inside]] = values[order][inside]
    return table


def _known_cells(
    ratings: pd.DataFrame, users: NDArray[np.int64], movie_ids: NDArray[np.int64]
) -> sparse.csr_matrix:
    """Users x catalogue, True where the frame holds the pair; pairs outside are dropped."""
    row = pd.Index(users).get_indexer(pd.Index(ratings["userId"]))
    column = pd.Index(movie_ids).get_indexer(pd.Index(ratings["movieId"]))
    inside = (row >= 0) & (column >= 0)
    cells = np.ones(int(inside.sum()), dtype=bool)
    shape = (len(users), len(movie_ids))
    return sparse.csr_matrix((cells, (row[inside], column[inside])), shape=shape)
