"""Which of the user's ratings? How a prediction is shared out among them.

:func:`history_attributions` is the model's own account. Interventions ask the model:
:func:`leave_one_out` takes each rating away by itself, :func:`shapley_history` adds the ratings in
many orders, so that those which say the same share what they say. The unit is that of what is
explained: stars, or scores for `ease`, which only ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dlcf.baselines.knn import ItemKNN
from dlcf.baselines.ranking import EASE
from dlcf.models.base import Floats, Recommender
from dlcf.plus.deepcf_plus import DeepCFPlus

__all__ = ["deletion_and_insertion", "history_attributions", "history_methods", "history_value"]
__all__ += ["leave_one_out", "shapley_history", "values_from"]

FRACTIONS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of a history, where a curve is evaluated
PERMUTATIONS = 64
DELETION, SHAPLEY, TERMS = "single deletion", "shapley", "terms"
MEASURED = (DELETION, SHAPLEY)
ATTENTION, SIGNED_ATTENTION = "attention", "attention x deviation"
Value = Callable[[Recommender, int, Sequence[int]], Floats]


def history_methods(model: Recommender) -> tuple[str, ...]:
    """The attributions over a user's history that :func:`history_attributions` has for a model.

    ``"terms"``: the terms of the model's sum (item-knn, ease). ``"attention"``: learned weights,
    without a sign, and ``"attention x deviation"``, with the sign of the rating's deviation
    (deepcf-plus). ``"single deletion"``: :func:`leave_one_out`. ``"shapley"``:
    :func:`shapley_history` (deepcf-plus; in a sum such as that of ease it is the term).
    """
    if isinstance(model, DeepCFPlus):
        return ATTENTION, SIGNED_ATTENTION, DELETION, SHAPLEY
    if isinstance(model, (ItemKNN, EASE)):
        return TERMS, DELETION
    problem = f"{model.name} does not read a user's history when it predicts"
    raise NotImplementedError(f"{problem}; use deepcf-plus, item-knn or ease")


def stated_methods(model: Recommender) -> list[str]:
    """:func:`history_methods` without those that are measured by interventions."""
    return [method for method in history_methods(model) if method not in MEASURED]


def history_attributions(
    model: Recommender, user_id: int, movie_ids: Sequence[int], method: str | None = None
) -> pd.DataFrame:
    """Contribution of each rating of the user's history to predictions, by the model's account.

    `method` is one of :func:`history_methods`, the first by default; the user and the movies, whose
    prediction is explained, are of train. Rows are the movies that the user rated, ascending,
    columns `movie_ids`; in the unit of :func:`history_value`, but for ``"attention"``, whose
    columns sum to at most 1. The terms of item-knn sum to the unclipped prediction minus its
    baseline, those of ease to the score.
    """
    methods = history_methods(model)
    method = methods[0] if method is None else method
    if method not in methods:
        raise ValueError(f"{model.name} has no {method!r}; choose one of {', '.join(methods)}")
    if method == DELETION:
        return leave_one_out(model, user_id, movie_ids)
    if method == SHAPLEY:
        found = {m: shapley_history(model, user_id, m)[SHAPLEY] for m in movie_ids}
        return pd.DataFrame(found)
    users, known_user, movies, known_movie = model.positions(pairs_of(user_id, movie_ids))
    if not (known_user.all() and known_movie.all()):
        raise ValueError(f"user {user_id} or one of the movies is not in train")
    if isinstance(model, DeepCFPlus):
        values = model.history_attention(users, movies, signed=method == SIGNED_ATTENTION)
    else:
        assert isinstance(model, (ItemKNN, EASE))
        values = model.history_terms(int(users[0]), movies)
    rated = pd.Index(model.ratings_of(user_id)["movieId"])
    return pd.DataFrame(values, index=rated, columns=list(movie_ids))


def predicted_ratings(model: Recommender, user_id: int, movie_ids: Sequence[int]) -> Floats:
    """Predicted ratings of movies by one user, in stars, ``(len(movie_ids),)``."""
    return model.predict(pairs_of(user_id, movie_ids))


def history_value(model: Recommender, user_id: int, movie_ids: Sequence[int]) -> Floats:
    """What is explained, ``(len(movie_ids),)``: the score of `ease`, else the predicted rating."""
    if not isinstance(model, EASE):
        return predicted_ratings(model, user_id, movie_ids)
    users, _, columns, _ = model.positions(pairs_of(user_id, movie_ids))
    return model.history_terms(int(users[0]), columns).sum(axis=0)


def values_from(
    model: Recommender,
    user_id: int,
    movie_id: int,
    kept: NDArray[np.bool_],
    timestamp: float | None = None,
) -> Floats:
    """What is explained, ``(m,)``, had the user given only some of the ratings.

    `deepcf-plus` reads all parts of the history in one pass
    (:meth:`~dlcf.plus.deepcf_plus.DeepCFPlus.predict_from`), others serve one changed history after
    the other (:meth:`~dlcf.models.base.Recommender.revised`). Nothing is trained again.

    Parameters
    ----------
    kept
        ``(m, ratings of the user)``, in the order of :meth:`ratings_of`.
    timestamp
        Of the prediction, as in `predict`; for `deepcf-plus`.
    """
    if isinstance(model, DeepCFPlus):
        pair = pairs_of(user_id, [movie_id])
        pair = pair if timestamp is None else pair.assign(timestamp=timestamp)
        return model.predict_from(pair, kept)
    rated = model.ratings_of(user_id)["movieId"].to_numpy()

    @cache
    def without(gone: frozenset[int]) -> float:
        served = model.revised(user_id, dict.fromkeys(gone)) if gone else model
        return float(history_value(served, user_id, [movie_id])[0])

    return np.array([without(frozenset(rated[~row].tolist())) for row in kept])


def leave_one_out(
    model: Recommender,
    user_id: int,
    movie_ids: Sequence[int],
    ratings: Sequence[int] | None = None,
    value: Value = history_value,
) -> pd.DataFrame:
    """The effect of a single deletion: a value with all ratings minus that without one of them.

    It is not the part of a prediction that the rating carries: of two ratings that say the same,
    neither has an effect as long as the other is there. Rows are the user's rated movies that are
    taken away, one at a time: `ratings`, or all; columns `movie_ids`. See :func:`values_from`.
    """
    rated = model.ratings_of(user_id)["movieId"].to_numpy()
    place = np.arange(len(rated)) if ratings is None else np.searchsorted(rated, ratings)
    left_out = pd.Index(rated[place], name="movieId")
    if isinstance(model, DeepCFPlus) and len(place):
        found = {m: model.deletions(pairs_of(user_id, [m]), place) for m in movie_ids}
        return pd.DataFrame(found, index=left_out)
    less = [value(model.revised(user_id, {int(m): None}), user_id, movie_ids) for m in left_out]
    change = value(model, user_id, movie_ids) - np.reshape(less, (len(less), len(movie_ids)))
    return pd.DataFrame(change, index=left_out, columns=list(movie_ids))


def shapley_history(
    model: Recommender,
    user_id: int,
    movie_id: int,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    timestamp: float | None = None,
) -> pd.DataFrame:
    """Shapley values of the user's ratings in one prediction, by sampled orders.

    The ratings join an empty history in a random order, and each gets what the value gains as it
    joins; the mean over all orders is the Shapley value (Shapley, 1953; Castro, Gomez and Tejada,
    2009). Each order is taken forwards and backwards, by which interactions of two ratings are
    shared out exactly. For any number of orders they sum to the value with the history minus that
    without.

    Parameters
    ----------
    permutations
        Number of orders, a multiple of 4, so that there are two halves of whole pairs.
    seed
        Draws them.
    timestamp
        Of the prediction, see :func:`values_from`.

    Returns
    -------
    DataFrame
        Indexed by `movieId` as :meth:`ratings_of`: ``shapley``, and the means ``first half`` and
        ``second half`` of the orders, which are independent of each other.
    """
    if permutations < 4 or permutations % 4:
        raise ValueError(f"permutations is {permutations}; give a multiple of 4")
    rated = pd.Index(model.ratings_of(user_id)["movieId"], name="movieId")
    n, generator = len(rated), np.random.default_rng(seed)
    halves = {}
    for name in ("first half", "second half"):
        orders = [generator.permutation(n) for _ in range(permutations // 4)]
        orders += [order[::-1] for order in orders]
        rank = np.argsort(orders, axis=1).reshape(len(orders), n)
        kept = rank[:, None, :] < np.arange(n + 1)[:, None]
        value = values_from(model, user_id, movie_id, kept.reshape(-1, n), timestamp=timestamp)
        gains = np.diff(value.reshape(len(orders), n + 1), axis=1)
        halves[name] = np.take_along_axis(gains, rank, axis=1).mean(axis=0)
    found = pd.DataFrame(halves, index=rated)
    found.insert(0, SHAPLEY, found.mean(axis=1))
    return found


def deletion_and_insertion(
    model: Recommender,
    user_id: int,
    movie_id: int,
    order: Sequence[int],
    fractions: Sequence[float] = FRACTIONS,
) -> tuple[Floats, Floats]:
    """The prediction as the ratings of a history are deleted, and inserted, in an order.

    The deletion curve of Samek et al. (2017) and the insertion curve of Petsiuk et al. (2018),
    over ratings instead of pixels. An order that puts first what raises the prediction makes the
    deletion curve fall early and the insertion curve rise early. Both are ``(len(fractions),)``, in
    the unit of :func:`history_value`.

    Parameters
    ----------
    order
        All movies that the user rated, the first to be deleted or inserted first.
    fractions
        Of the history, ascending from 0 to 1; rounded to whole ratings.
    """
    rank = np.argsort(order)  # of the user's ratings, which are in the order of movie ids
    counts = np.array([round(fraction * len(order)) for fraction in fractions])[:, None]
    kept = np.concatenate([rank >= counts, rank < counts])
    deletion, insertion = np.split(values_from(model, user_id, movie_id, kept), 2)
    return deletion, insertion


def pairs_of(user_id: int, movie_ids: Sequence[int]) -> pd.DataFrame:
    """`userId` and `movieId` of one user with some movies."""
    return pd.DataFrame({"userId": user_id, "movieId": np.asarray(movie_ids, np.int64)})


def by_user(pairs: pd.DataFrame) -> Iterator[tuple[int, list[int]]]:
    """Each user of `pairs` with the movies whose prediction is explained."""
    for user_id in np.unique(pairs["userId"]):
        yield int(user_id), pairs.loc[pairs["userId"] == user_id, "movieId"].tolist()
