"""Does an explanation depend on what was learned, and do models of other seeds give the same?

It is *sane* where it changes once what was learned is destroyed (Adebayo et al., 2018), *stable*
where models that differ only in their seed agree on it. Both are correlations with intervals: an
explanation that is as near to a destroyed model's as to another seed's says nothing of what was
learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from dlcf.analysis.statistics import Interval, clustered_interval
from dlcf.explain.faithfulness import mean_by_user, rank_correlation
from dlcf.explain.history import by_user, history_attributions, stated_methods
from dlcf.models.base import Floats, Index, Recommender
from dlcf.plus.deepcf_plus import DeepCFPlus
from dlcf.variants.deepcf import ExplainedDeepCF

__all__ = ["exchanged_movies", "history_explanations", "history_sanity", "history_stability"]
__all__ += ["randomised", "sanity_check", "shuffled_labels", "stability"]

PART_KEYS = ["userId", "movieId", "ratedId", "explanation"]


def randomised(model: Recommender, seed: int = 0) -> Recommender:
    """A copy of a `deepcf` or `deepcf-plus` with fresh initial parameters, drawn by `seed`.

    A model in closed form has none: fit it to :func:`shuffled_labels` or :func:`exchanged_movies`.
    """
    if not isinstance(model, (ExplainedDeepCF, DeepCFPlus)):
        remedy = "use deepcf or deepcf-plus, or fit it to shuffled_labels or exchanged_movies"
        raise ValueError(f"{model.name} has no parameters to randomise here; {remedy}")
    return model.untrained(seed)


def shuffled_labels(
    train: pd.DataFrame, seed: int = 0, kept: Sequence[int] | Index = ()
) -> pd.DataFrame:
    """`train` with its ratings permuted among its pairs, so that users and movies mean nothing.

    The ratings of the users `kept` stay, so that explanations by the same history are compared.
    """
    others = ~train["userId"].isin(kept).to_numpy()
    rating = train["rating"].to_numpy().copy()
    rating[others] = np.random.default_rng(seed).permutation(rating[others])
    return train.assign(rating=rating)


def exchanged_movies(
    train: pd.DataFrame, seed: int = 0, kept: Sequence[int] | Index = ()
) -> pd.DataFrame:
    """`train` with the movies of all but the users `kept` renamed, each to another at random.

    For models that learn from who rated what, which :func:`shuffled_labels` does not change.
    """
    others = ~train["userId"].isin(kept).to_numpy()
    movies = train["movieId"].to_numpy().copy()
    names, position = np.unique(movies[others], return_inverse=True)
    movies[others] = np.random.default_rng(seed).permutation(names)[position]
    return train.assign(movieId=movies)


def sanity_check(
    user_ids: ArrayLike, trained: ArrayLike, destroyed: ArrayLike, within: ArrayLike | None = None
) -> Interval:
    """Spearman's correlation, in [-1, 1], of a trained model's explanations with a destroyed one's.

    Near 0 the explanations depend on what was learned; near that of two trained models,
    :func:`stability`, they do not. `trained` are values ``(n,)``: the user's share of each pair, or
    the parts of :func:`history_explanations`. `destroyed` are those of a model that is
    :func:`randomised`, or fitted to :func:`shuffled_labels` or :func:`exchanged_movies`; or of
    several, ``(models, n)``, over which the mean is taken. The interval is over users.
    """
    values = np.vstack([np.asarray(trained, float), np.asarray(destroyed, float)])
    couples = [(0, other) for other in range(1, len(values))]
    return _mean_correlation(user_ids, values, couples, within)


def stability(
    user_ids: ArrayLike, explanations: ArrayLike, within: ArrayLike | None = None
) -> Interval:
    """Mean rank correlation, in [-1, 1], of the explanations by models of other seeds.

    The mean of Spearman's is over all pairs of models, the interval over users, for these seeds.

    Parameters
    ----------
    user_ids, explanations
        The user of each value, ``(n,)``, and ``(models, n)`` of two models or more.
    within
        Which explanation each value is a part of, ``(n,)``, where one has several parts, as those
        of :func:`history_explanations`. Ranks are then taken within each explanation, and the mean
        over explanations too. The correlation is 0 where one model gives all parts the same value;
        where all models do, the explanation is left out.
    """
    values = np.asarray(explanations, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"explanations of two models or more are compared, not {values.shape}")
    couples = list(combinations(range(len(values)), 2))
    return _mean_correlation(user_ids, values, couples, within)


def history_explanations(
    model: Recommender, pairs: pd.DataFrame, methods: Sequence[str] | None = None
) -> pd.DataFrame:
    """History attributions of some predictions, one row a part.

    ``userId``, ``movieId``, ``ratedId`` (the movie of the history), ``explanation`` (which one the
    row is a part of, from 0), and a column of each method. Models that know the same histories give
    the same rows: their columns can go to :func:`sanity_check` and :func:`stability`, with
    ``within`` the column ``explanation``. The parameters are those of
    :func:`~dlcf.explain.faithfulness.history_faithfulness`.
    """
    methods = stated_methods(model) if methods is None else methods
    parts: list[pd.DataFrame] = []
    for user_id, targets in by_user(pairs):
        found = {m: history_attributions(model, user_id, targets, m) for m in methods}
        for movie in targets:
            part = pd.DataFrame({m: table[movie] for m, table in found.items()})
            part = part.rename_axis("ratedId").reset_index()
            parts.append(part.assign(userId=user_id, movieId=movie, explanation=len(parts)))
    return pd.concat(parts, ignore_index=True)[[*PART_KEYS, *methods]]


def history_sanity(
    model: Recommender,
    destroyed: Sequence[Recommender],
    pairs: pd.DataFrame,
    methods: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """:func:`sanity_check` of each history attribution, within each explanation.

    `destroyed` are models of the same name that know the same histories of the pairs' users; the
    other parameters are those of :func:`history_explanations`.
    """
    trained, *others = (history_explanations(m, pairs, methods) for m in (model, *destroyed))
    users, within = trained["userId"], trained["explanation"]
    found = trained.columns.drop(PART_KEYS)
    return {m: sanity_check(users, trained[m], [t[m] for t in others], within) for m in found}


def history_stability(
    models: Sequence[Recommender], pairs: pd.DataFrame, methods: Sequence[str] | None = None
) -> dict[str, Interval]:
    """:func:`stability` of each history attribution between `models` of other seeds."""
    tables = [history_explanations(model, pairs, methods) for model in models]
    users, within = tables[0]["userId"], tables[0]["explanation"]
    found = tables[0].columns.drop(PART_KEYS)
    return {m: stability(users, [table[m] for table in tables], within) for m in found}


def _mean_correlation(
    user_ids: ArrayLike,
    values: Floats,
    couples: Sequence[tuple[int, int]],
    within: ArrayLike | None,
) -> Interval:
    """Mean rank correlation of some couples of models, ``values (models, n)``."""

    def statistic(rows: Index) -> float:
        correlation = np.corrcoef(stats.rankdata(values[:, rows], axis=1))
        return float(np.mean([correlation[couple] for couple in couples]))

    if within is None:
        return clustered_interval(user_ids, statistic)
    users, parts = np.asarray(user_ids), pd.Series(np.asarray(within))
    owners, found = [], []
    for rows in parts.groupby(parts).indices.values():
        said = values[:, rows]
        if np.ptp(said, axis=1).any():
            found.append(np.mean([rank_correlation(said[i], said[j]) for i, j in couples]))
            owners.append(users[rows[0]])
    if not found:
        raise ValueError("every explanation says the same of all its parts: nothing to compare")
    return mean_by_user(owners, found)
