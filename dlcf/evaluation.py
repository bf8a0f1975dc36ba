"""Protocols: what is ranked, what is relevant, and over whom the mean runs."""

from __future__ import annotations

import copy
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from tqdm import tqdm

from dlcf import metrics
from dlcf.models.base import Floats, Index, Recommender, top_k
from dlcf.ratings import check_ratings
from dlcf.runtime.settings import whole

PROTOCOLS = ("rated", "full")
_USERS_AT_ONCE = 64
_SAMPLED_MOVIES = 100
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
        ``"sampled"``: as ``"full"``, but only the relevant movies and 100 others, drawn once for
        each user, are ranked, as some papers do. It comes with a warning: models can be in another
        order than by the whole catalogue (Krichene and Rendle, 2020).
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
        the same for all models, so that no model gains from the order of the ids. ValueError where
        the protocol is unknown, a frame is wrong, or no test user has a relevant movie.
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

    Index `userId`, the test users with at least one relevant movie; columns ``precision``,
    ``recall``, ``ndcg``.
    """
    return list_metrics(rank(model, train, test, protocol, k, threshold))


def prequential(
    model: Recommender,
    past: pd.DataFrame,
    future: pd.DataFrame,
    every: str | None = "30D",
    step: str = "1s",
    movies: pd.DataFrame | None = None,
    lists: bool = False,
) -> pd.DataFrame:
    """Predict each rating of the future from what came before it.

    The model is trained on the past, and again at the end of every period on all that came before.
    Within a period it takes in, by :meth:`Recommender.observe`, what has been predicted; a model
    that cannot stays as it was trained (Dawid, 1984, on prequential evaluation).

    Parameters
    ----------
    model
        With the settings to train with; it is left as it is.
    past, future
        Ratings with times, all of the past before all of the future.
    every
        A period between trainings, such as ``"30D"``; None trains once.
    step
        Ratings within one such span are predicted together, from what came before all of them.
    movies
        As for :meth:`Recommender.fit`.
    lists
        Whether to rank, too, what each user has not rated, at the first moment of each step.

    Returns
    -------
    DataFrame
        `future` in the order of time, with ``predicted`` and ``known``: how many ratings the user
        had given before; and of `lists` the ``place`` of the movie, inf where the model lacks it.
    """
    past, future = check_ratings(past, source="past"), check_ratings(future, source="future")
    for name, frame in (("past", past), ("future", future)):
        if "timestamp" not in frame:
            raise ValueError(f"{name} has no column timestamp; prequential evaluation needs times")
    if past["timestamp"].max() >= future["timestamp"].min():
        raise ValueError("past holds ratings that are not before future; split by time of all")
    future = future.sort_values(["timestamp", "userId", "movieId"])
    index, future = future.index, future.reset_index(drop=True)
    time, since = future["timestamp"], future["timestamp"].iloc[0]
    span = np.inf if every is None else _duration("every", every)
    period = (time - since) // span
    group = (time - since) // _duration("step", step)
    predicted, places = [], []
    periods = tqdm(list(future.groupby(period)), desc="periods", disable=None, leave=False)
    for _, of_period in periods:
        earlier = future[time < of_period["timestamp"].iloc[0]]
        known = pd.concat([past, earlier], ignore_index=True)
        fitted = copy.copy(model).fit(known, movies=movies)
        for _, together in of_period.groupby(group):
            predicted.append(fitted.predict(together.drop(columns="rating")))
            places += [_places(fitted, together)] if lists else []
            with suppress(NotImplementedError):
                fitted = fitted.observe(together)
    before = future.groupby("userId").cumcount()
    before = before.groupby([future["userId"], period, group]).transform("min")
    before += future["userId"].map(past["userId"].value_counts()).fillna(0).astype(np.int64)
    future = future.assign(predicted=np.concatenate(predicted), known=before)
    return (future.assign(place=np.concatenate(places)) if lists else future).set_axis(index)


def _places(model: Recommender, pairs: pd.DataFrame) -> Floats:
    """From 1, of each movie among those that its user has not rated; ties as in a list."""
    users, row = np.unique(pairs["userId"], return_inverse=True)
    scores = model.score_all(users, pairs["timestamp"].min())
    scores[model.seen(users)] = -np.inf
    *_, movies, known = model.positions(pairs)
    own, column = scores[row, movies, None], np.arange(scores.shape[1])
    before = (scores[row] > own) | ((scores[row] == own) & (column < movies[:, None]))
    return np.where(known, 1 + before.sum(axis=1), np.inf)


def _duration(name: str, given: str) -> float:
    """In seconds; ValueError where it is none, or not above 0."""
    seconds = pd.to_timedelta(given, errors="coerce").total_seconds()
    if not seconds > 0:
        raise ValueError(f"{name} is {given!r}; give a duration above 0, such as '30D' or '1h'")
    return seconds


@dataclass(frozen=True)
class RankedLists:
    """What each user was shown and what there was to show; one row a user, k places."""

    users: Index  # ids, (n,): the test users with at least one relevant test movie
    movies: Index  # ids in list order, (n, k); -1 in places that are not filled
    hits: NDArray[np.bool_]  # (n, k): the movie is relevant
    gains: NDArray[Any]  # (n, k), of each place
    ideal: NDArray[Any]  # (n, k): gains of the best list possible
    length: Index  # filled places, (n,)
    n_relevant: Index  # relevant test movies, (n,)

    def cut(self, k: int) -> RankedLists:
        """The first k places: a list of k is the head of a longer one."""
        tables = {name: getattr(self, name)[:, :k] for name in ("movies", "hits", "gains", "ideal")}
        return replace(self, **tables, length=np.minimum(self.length, k))


def rank(
    model: Recommender,
    train: pd.DataFrame,
    test: pd.DataFrame,
    protocol: str = "full",
    k: int = 10,
    threshold: float = 4.0,
) -> RankedLists:
    """The lists that :func:`evaluate` measures; arguments as there."""
    if protocol == "sampled":
        warnings.warn(
            "sampled candidates can put models in another order than the whole catalogue does "
            "(Krichene and Rendle, KDD 2020); report protocol='full'",
            stacklevel=3,
        )
    elif protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    k = whole("k", k, 1)
    train, test = check_ratings(train, source="train"), check_ratings(test, source="test")
    relevant = test.loc[test["rating"] >= threshold, "userId"]
    if relevant.empty:
        problem = f"no test rating reaches the threshold {threshold}"
        raise ValueError(f"{problem}; lower it or give other ratings")
    users = np.unique(relevant)
    test = test[test["userId"].isin(users)].sort_values(["userId", "movieId"])
    if protocol == "rated":
        return _rank_rated(model, test, users, k, threshold)
    return _rank_full(model, train, test, users, k, threshold, protocol == "sampled")


def list_metrics(lists: RankedLists) -> pd.DataFrame:
    """Precision, recall and NDCG of each list; index `userId`."""
    return pd.DataFrame(
        {
            "precision": metrics.precision(lists.hits, lists.length),
            "recall": metrics.recall(lists.hits, lists.n_relevant),
            "ndcg": metrics.ndcg(lists.gains, lists.ideal),
        },
        index=pd.Index(lists.users, name="userId"),
    )


def per_user_errors(model: Recommender, test: pd.DataFrame) -> pd.DataFrame:
    """Sums of errors for each test user; their totals give RMSE and MAE.

    Index `userId`, all test users; columns ``squared`` and ``absolute`` (sums over the user's test
    ratings) and ``ratings`` (their number).
    """
    test = check_ratings(test, source="test")
    error = model.predict(test) - test["rating"].to_numpy(np.float64)
    table = pd.DataFrame({"squared": error**2, "absolute": np.abs(error), "ratings": 1.0})
    return table.groupby(test["userId"].to_numpy()).sum().rename_axis("userId")


def _rank_rated(
    model: Recommender, test: pd.DataFrame, users: Index, k: int, threshold: float
) -> RankedLists:
    row = np.searchsorted(users, test["userId"].to_numpy())
    rating = test["rating"].to_numpy(np.float64)
    tie_break = np.random.default_rng(_TIE_SEED).permutation(len(test))
    by_prediction = np.lexsort((tie_break, -model.predict(test), row))
    by_rating = np.lexsort((-rating, row))
    shape = len(users), k
    return RankedLists(
        users,
        first_places(test["movieId"].to_numpy(), by_prediction, row, shape, empty=-1),
        first_places(rating >= threshold, by_prediction, row, shape),
        first_places(rating, by_prediction, row, shape),
        first_places(rating, by_rating, row, shape),
        np.minimum(np.bincount(row), k),
        _count_relevant(test, users, threshold),
    )


def _rank_full(
    model: Recommender,
    train: pd.DataFrame,
    test: pd.DataFrame,
    users: Index,
    k: int,
    threshold: float,
    sampled: bool,
) -> RankedLists:
    catalogue = model.movie_ids
    generator = np.random.default_rng(_TIE_SEED)
    tie_break = generator.permutation(len(catalogue))
    seen = _known_cells(train, users, catalogue)
    wanted = _known_cells(test[test["rating"] >= threshold], users, catalogue)
    movies = np.full((len(users), k), -1)
    hits = np.zeros((len(users), k), dtype=bool)
    length = np.ones(len(users), dtype=np.int64)
    starts = range(0, len(users), _USERS_AT_ONCE)
    for start in tqdm(starts, desc="ranking", disable=None, leave=False):
        rows = slice(start, start + _USERS_AT_ONCE)
        scores = model.score_all(users[rows])
        scores[seen[rows].nonzero()] = -np.inf
        if sampled:
            others = generator.random(scores.shape)
            others[(seen[rows] + wanted[rows]).toarray()] = -np.inf
            candidates = wanted[rows].toarray()
            np.put_along_axis(candidates, top_k(others, _SAMPLED_MOVIES), True, axis=1)
            scores[~candidates] = -np.inf
        best = _top_k_in_order(scores, k, tie_break)
        filled = np.take_along_axis(scores, best, axis=1) > -np.inf
        length[rows] = np.maximum(filled.sum(axis=1), 1)
        places = slice(0, best.shape[1])
        movies[rows, places] = np.where(filled, catalogue[best], -1)
        hits[rows, places] = np.take_along_axis(wanted[rows].toarray(), best, axis=1) & filled
    n_relevant = _count_relevant(test, users, threshold)
    ideal = np.arange(k) < n_relevant[:, None]
    return RankedLists(users, movies, hits, hits, ideal, length, n_relevant)


def _top_k_in_order(scores: NDArray[np.float32], k: int, order: Index) -> Index:
    """`top_k`, but ties go by place in `order`; only rows that have one are put in that order."""
    best = top_k(scores, k)
    values = np.take_along_axis(scores, best, axis=1)
    cut = np.count_nonzero(scores >= values[:, -1:], axis=1) > best.shape[1]
    tied = cut | (values[:, 1:] == values[:, :-1]).any(axis=1)
    if tied.any():
        best[tied] = order[top_k(scores[tied][:, order], k)]
    return best


def _count_relevant(test: pd.DataFrame, users: Index, threshold: float) -> Index:
    row = np.searchsorted(users, test["userId"].to_numpy())
    return np.bincount(row, test["rating"] >= threshold).astype(np.int64)


def first_places(
    values: Any, order: Any, row: Any, shape: tuple[int, int], empty: int = 0
) -> NDArray[Any]:
    """The first values of each row in `order`, and `empty` behind them, in a table of `shape`.

    `values` and `row` are those of each entry, ``(n,)``, and every row has one; `order` holds the
    positions of the entries, by row and within a row as wanted, ``(n,)``.
    """
    row_in_order = row[order]
    first = np.searchsorted(row_in_order, np.arange(shape[0]))
    place = np.arange(len(order)) - first[row_in_order]
    inside = place < shape[1]
    table = np.full(shape, empty, dtype=values.dtype)
    table[row_in_order[inside], place[inside]] = values[order][inside]
    return table


def _known_cells(ratings: pd.DataFrame, users: Index, movie_ids: Index) -> sparse.csr_matrix:
    """Users x catalogue, True where the frame holds the pair; pairs outside are dropped."""
    row = pd.Index(users).get_indexer(pd.Index(ratings["userId"]))
    column = pd.Index(movie_ids).get_indexer(pd.Index(ratings["movieId"]))
    inside = (row >= 0) & (column >= 0)
    cells = np.ones(int(inside.sum()), dtype=bool)
    return sparse.csr_matrix((cells, (row[inside], column[inside])), (len(users), len(movie_ids)))
