"""Attributions: how a prediction is shared out among its causes, and what is left without them.

Two questions, each with a ground truth that comes from interventions on the model, not from its own
account of itself:

- *user or movie?* :func:`shapley_two_players` is exact for the game of the two embeddings, and
  :func:`integrated_gradients` a second opinion; the attention weights are what is tested.
- *which of the user's ratings?* :func:`history_attributions` is what a model says;
  :func:`leave_one_out` takes each rating away and looks; :func:`leave_out_refitted` fits again.

Attributions are in the unit of what is explained: stars, or scores for a model that only ranks.
:mod:`dlcf.explain` says how well they agree.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from dlcf.baselines.knn import ItemKNN
from dlcf.baselines.ranking import EASE
from dlcf.models.base import Recommender
from dlcf.models.mf import MatrixFactorization
from dlcf.plus.deepcf_plus import DeepCFPlus
from dlcf.registry import make
from dlcf.variants.deepcf import ExplainedDeepCF
from dlcf.variants.networks import rate_embeddings
from dlcf.variants.shapley import cold_coalitions, player_share, shapley

__all__ = [
    "BASELINES",
    "PLAYER_METHODS",
    "deletion_and_insertion",
    "history_attributions",
    "history_methods",
    "history_value",
    "integrated_gradients",
    "leave_one_out",
    "leave_out_refitted",
    "mf_history",
    "ridge_attributions",
    "shapley_two_players",
    "share",
    "user_share",
]

BASELINES = ("mean", "cold")
PLAYER_METHODS = ("attention", "shapley, mean", "shapley, cold", "integrated gradients")
FRACTIONS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of a history, where a curve is evaluated
OCCLUSION, TERMS = "occlusion", "terms"
ATTENTION, SIGNED_ATTENTION = "attention", "attention x deviation"

Floats = NDArray[np.float64]


def shapley_two_players(
    model: Recommender, pairs: pd.DataFrame, baseline: str = "mean"
) -> NDArray[np.float64]:
    """Exact Shapley values of the user and the movie in each prediction (Shapley, 1953).

    ``phi_u = 1/2 [v({u}) - v({})] + 1/2 [v({u, m}) - v({m})]``, and the same of the movie.

    Parameters
    ----------
    model
        Fitted.
    pairs
        `userId`, `movieId`, and `timestamp` for models that use time; ``n`` rows.
    baseline
        What stands for who is absent. ``"mean"``: the mean embedding of the users or movies of
        train, of models of the class `ExplainedDeepCF`, for known users and movies; the attention is
        computed anew. ``"cold"``: an unknown user or movie, of any model.

    Returns
    -------
    ndarray
        float64 ``(n, 2)``: user and movie, in stars. A row sums to the prediction minus that of
        nobody for nothing.
    """
    if baseline == "mean":
        values = _embedded(model).coalition_values(pairs)
    elif baseline == "cold":
        values = cold_coalitions(model, pairs)
    else:
        raise ValueError(f"unknown baseline {baseline!r}; choose one of {', '.join(BASELINES)}")
    return np.stack(shapley(values), axis=1)


def integrated_gradients(
    model: Recommender, pairs: pd.DataFrame, steps: int = 64
) -> NDArray[np.float64]:
    """Integrated gradients (Sundararajan et al., 2017) of both embeddings, from their means.

    Needs `captum`: ``pip install "dlcf[explain]"``.

    Parameters
    ----------
    model
        A `ExplainedDeepCF`.
    pairs
        `userId`, `movieId`, all known; ``n`` rows.
    steps
        Of the quadrature (Gauss-Legendre).

    Returns
    -------
    ndarray
        float64 ``(n, 2)``: the sums over the user's and over the movie's embedding, in stars. A row
        sums to the prediction minus that of the two means, up to the error of the quadrature.
    """
    embedded = _embedded(model)
    try:
        captum = importlib.import_module("captum.attr")
    except ImportError as error:
        raise ImportError(
            'integrated gradients are computed with captum: pip install "dlcf[explain]" '
            f"(importing it failed with: {error})"
        ) from error
    users, movies = embedded.embedded_pairs(pairs)
    network = embedded.network
    tables = network.user_embedding.weight.detach(), network.movie_embedding.weight.detach()
    means = tuple(table.mean(dim=0, keepdim=True) for table in tables)
    machine = captum.IntegratedGradients(partial(rate_embeddings, network))
    parts = []
    for first in range(0, len(pairs), 256):
        rows = slice(first, first + 256)
        inputs = tables[0][users[rows]], tables[1][movies[rows]]
        found = machine.attribute(inputs, means, n_steps=steps, internal_batch_size=8192)
        parts.append(torch.stack([part.detach().sum(dim=1) for part in found], dim=1))
    return torch.cat(parts).cpu().double().numpy()


def share(values: ArrayLike) -> NDArray[np.float64]:
    """The user's share ``|phi_u| / (|phi_u| + |phi_m|)`` in [0, 1] of attributions ``(n, 2)``.

    This is what an attention weight of the user claims to be. 1/2 where both are 0.
    """
    user, movie = np.asarray(values, dtype=np.float64).T
    return player_share(user, movie)


def user_share(model: Recommender, pairs: pd.DataFrame, method: str) -> NDArray[np.float64]:
    """The user's share of each prediction by one of `PLAYER_METHODS`, ``(n,)`` in [0, 1].

    ``"attention"`` needs a model with `attention_weights`, all but it and ``"shapley, cold"`` a
    `ExplainedDeepCF`.
    """
    if method == "attention":
        if not isinstance(model, (ExplainedDeepCF, DeepCFPlus)):
            raise ValueError(f"{model.name} has no attention weights")
        return model.attention_weights(pairs)[:, 0]
    if method == "integrated gradients":
        return share(integrated_gradients(model, pairs))
    if method not in PLAYER_METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(PLAYER_METHODS)}")
    return share(shapley_two_players(model, pairs, method.removeprefix("shapley, ")))


def history_methods(model: Recommender) -> tuple[str, ...]:
    """The attributions over a user's history that :func:`history_attributions` has for a model.

    ``"terms"``: what the model adds up (item-knn, ease). ``"attention"``: learned weights,
    without a sign, and ``"attention x deviation"``, with the sign of the rating's deviation
    (deepcf-plus). ``"occlusion"``: :func:`leave_one_out` itself.
    """
    if isinstance(model, DeepCFPlus):
        return ATTENTION, SIGNED_ATTENTION, OCCLUSION
    if isinstance(model, (ItemKNN, EASE)):
        return TERMS, OCCLUSION
    raise NotImplementedError(
        f"{model.name} does not read a user's history when it predicts; use deepcf-plus, item-knn "
        "or ease, or mf_history for mf"
    )


def history_attributions(
    model: Recommender, user_id: int, movie_ids: Sequence[int], method: str | None = None
) -> pd.DataFrame:
    """What each rating of the user's history contributed to predictions, as the model tells it.

    Parameters
    ----------
    model
        Of those that :func:`history_methods` knows.
    user_id
        A user of train.
    movie_ids
        Movies of train whose prediction is explained.
    method
        One of :func:`history_methods`; the first by default.

    Returns
    -------
    DataFrame
        Rows the movies that the user rated, ascending; columns `movie_ids`; in the unit of
        :func:`history_value`, but for ``"attention"``, whose columns sum to at most 1. The terms
        of item-knn sum to the prediction minus its baseline (where the scale does not cut it),
        those of ease to the score.
    """
    methods = history_methods(model)
    method = methods[0] if method is None else method
    if method not in methods:
        raise ValueError(f"{model.name} has no {method!r}; choose one of {', '.join(methods)}")
    if method == OCCLUSION:
        return leave_one_out(model, user_id, movie_ids)
    pairs = pd.DataFrame({"userId": user_id, "movieId": np.asarray(movie_ids, np.int64)})
    (users, known_user, movies, known_movie) = model.positions(pairs)
    if not (known_user.all() and known_movie.all()):
        raise ValueError(f"user {user_id} or one of the movies is not in train")
    if isinstance(model, DeepCFPlus):
        values = model.history_attention(users, movies, signed=method == SIGNED_ATTENTION)
    else:
        assert isinstance(model, (ItemKNN, EASE))
        values = model.history_terms(int(users[0]), movies)
    rated = pd.Index(model.ratings_of(user_id)["movieId"])
    return pd.DataFrame(values, index=rated, columns=list(movie_ids))


def history_value(
    model: Recommender, user_id: int, movie_ids: Sequence[int]
) -> NDArray[np.float64]:
    """What is explained, ``(len(movie_ids),)``: the score of `ease`, else the predicted rating."""
    if isinstance(model, EASE):
        pairs = pd.DataFrame({"userId": user_id, "movieId": movie_ids})
        users, _, columns, _ = model.positions(pairs)
        return model.history_terms(int(users[0]), columns).sum(axis=0)
    return model.predict(pd.DataFrame({"userId": user_id, "movieId": movie_ids}))


def leave_one_out(
    model: Recommender,
    user_id: int,
    movie_ids: Sequence[int],
    ratings: Sequence[int] | None = None,
) -> pd.DataFrame:
    """How much each rating of the history raises the predictions: with it minus without it.

    Exact, by :meth:`~dlcf.models.Recommender.revised`: nothing is trained again.

    Parameters
    ----------
    model
        item-knn, ease or deepcf-plus.
    user_id, movie_ids
        As for :func:`history_attributions`.
    ratings
        Which of the user's rated movies are taken away, one at a time; all by default.

    Returns
    -------
    DataFrame
        Rows the ratings, columns `movie_ids`, in the unit of :func:`history_value`.
    """
    rated = model.ratings_of(user_id)["movieId"] if ratings is None else ratings
    full = history_value(model, user_id, movie_ids)
    changes = [
        full - history_value(model.revised(user_id, {int(movie): None}), user_id, movie_ids)
        for movie in rated
    ]
    shape = len(changes), len(movie_ids)
    return pd.DataFrame(
        np.reshape(changes, shape), index=pd.Index(rated, name="movieId"), columns=list(movie_ids)
    )


def leave_out_refitted(
    model: Recommender,
    train: pd.DataFrame,
    user_id: int,
    movie_ids: Sequence[int],
    ratings: Sequence[int],
    validation: pd.DataFrame | None = None,
    movies: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """As :func:`leave_one_out`, of any model, fitted again without each of `ratings` in turn.

    Parameters
    ----------
    model
        Fitted with `train`, `validation` and `movies`; its name and hyper-parameters, with the
        seed, are what is fitted again.
    user_id, movie_ids, ratings
        As for :func:`leave_one_out`.
    """
    full = history_value(model, user_id, movie_ids)
    changes = []
    for rating in ratings:
        own = (train["userId"] == user_id) & (train["movieId"] == rating)
        if not own.any():
            raise ValueError(f"user {user_id} did not rate movie {rating} in train")
        again = make(model.name, **model.config).fit(train[~own], validation, movies)
        changes.append(full - history_value(again, user_id, movie_ids))
    return pd.DataFrame(changes, index=pd.Index(ratings, name="movieId"), columns=list(movie_ids))


def deletion_and_insertion(
    model: Recommender,
    user_id: int,
    movie_id: int,
    order: Sequence[int],
    fractions: Sequence[float] = FRACTIONS,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The prediction as the history is taken away, and as it is given, in an order.

    The deletion curve of Samek et al. (2017) and the insertion curve of Petsiuk et al. (2018),
    over ratings instead of pixels. An order that puts first what counts *for* the movie makes the
    deletion curve fall early and the insertion curve rise early.

    Parameters
    ----------
    model, user_id, movie_id
        As for :func:`leave_one_out`.
    order
        All movies that the user rated, the first to be taken or given first.
    fractions
        Ascending, from 0 to 1, of the history; rounded to whole ratings.

    Returns
    -------
    deletion, insertion
        ``(len(fractions),)`` each, in the unit of :func:`history_value`; without the first ratings
        of `order`, and with them alone.
    """
    n = len(order)
    counts = [round(fraction * n) for fraction in fractions]
    known: dict[frozenset[int], float] = {}

    def without(gone: Sequence[int]) -> float:
        key = frozenset(int(movie) for movie in gone)
        if key not in known:
            served = model.revised(user_id, dict.fromkeys(key)) if key else model
            known[key] = float(history_value(served, user_id, [movie_id])[0])
        return known[key]

    deletion = np.array([without(order[:count]) for count in counts])
    insertion = np.array([without(order[count:]) for count in counts])
    return deletion, insertion


def ridge_attributions(
    design: ArrayLike, target: ArrayLike, penalty: ArrayLike, query: ArrayLike
) -> pd.DataFrame:
    """What each row of a ridge regression contributes to its prediction at `query`.

    With ``A = X^T X + diag(penalty)``, ``h = X A^-1 query``, residuals e and leverages
    ``l_j = x_j A^-1 x_j``, removing row j moves the prediction by exactly ``h_j e_j / (1 - l_j)``
    (Sherman and Morrison, 1950); the influence function (Koh and Liang, 2017), which only looks at
    the gradient, says ``h_j e_j``. The penalty stays what it is.

    Parameters
    ----------
    design, target
        X ``(n, d)`` and y ``(n,)``.
    penalty
        ``(d,)``, positive.
    query
        ``(d,)``.

    Returns
    -------
    DataFrame
        ``n`` rows: ``terms`` ``h_j y_j``, which sum to the prediction; ``leave_one_out``, the
        prediction minus that without the row; ``influence``, its approximation.
    """
    x, y = np.asarray(design, np.float64), np.asarray(target, np.float64)
    inverse = np.linalg.inv(x.T @ x + np.diag(np.asarray(penalty, np.float64)))
    reach = x @ inverse @ np.asarray(query, np.float64)
    residual = y - x @ (inverse @ (x.T @ y))
    leverage = np.einsum("nd,de,ne->n", x, inverse, x)
    return pd.DataFrame(
        {
            "terms": reach * y,
            "leave_one_out": reach * residual / (1 - leverage),
            "influence": reach * residual,
        }
    )


def mf_history(
    model: Recommender, train: pd.DataFrame, user_id: int, movie_id: int
) -> tuple[pd.DataFrame, float]:
    """Which of the user's ratings carried a prediction of `mf`, by solving for the user again.

    With the movies fixed, the user's vector and bias minimise a ridge regression on the user's
    ratings (Koren, Bell and Volinsky, 2009, eq. 5), whose attributions are exact.

    Parameters
    ----------
    model
        An `mf`.
    train
        What it was fitted on.
    user_id, movie_id
        Both in train.

    Returns
    -------
    attributions
        :func:`ridge_attributions` of the ratings, indexed by `movieId`.
    rating
        What the solved vector predicts; the trained one's prediction is near it, not equal.
    """
    if type(model) is not MatrixFactorization:
        raise ValueError(f"mf_history solves for the users of mf, not of {model.name}")
    rated = train[train["userId"] == user_id].sort_values("movieId")
    pair = pd.DataFrame({"userId": [user_id], "movieId": [movie_id]})
    _, (known_user,), (query,), (known_movie,) = model.positions(pair)
    if not (known_user and known_movie):
        raise ValueError(f"user {user_id} or movie {movie_id} is not in train")
    columns = np.searchsorted(model.movie_ids, rated["movieId"])
    vectors, level = model.movie_parts()
    vectors = np.hstack([np.ones((len(vectors), 1)), vectors])
    penalty = np.full(vectors.shape[1], model.regularization * len(rated))
    penalty[0] = model.bias_regularization * len(rated)
    target = rated["rating"].to_numpy(np.float64) - level[columns]
    found = ridge_attributions(vectors[columns], target, penalty, vectors[query])
    found.index = pd.Index(rated["movieId"], name="movieId")
    return found, float(level[query] + found["terms"].sum())


def _embedded(model: Recommender) -> ExplainedDeepCF:
    if not isinstance(model, ExplainedDeepCF):
        raise ValueError(
            f"{model.name} has no pair of embeddings with attention; use deepcf, or the Shapley "
            "values with baseline='cold'"
        )
    model._check_fitted()
    return model
