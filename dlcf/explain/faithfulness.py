"""Is an explanation faithful? Its agreement with what interventions on the model show.

Attention need not be (Jain and Wallace, 2019; Wiegreffe and Pinter, 2019). Intervals resample
users, because the ratings of one user are not independent.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from dlcf.analysis.statistics import Interval, clustered_correlations, clustered_interval
from dlcf.explain.attribution import user_share
from dlcf.explain.history import (
    ATTENTION,
    DELETION,
    FRACTIONS,
    by_user,
    deletion_and_insertion,
    history_attributions,
    history_methods,
    stated_methods,
)
from dlcf.models.base import Recommender

__all__ = ["agreement", "curve_areas", "history_faithfulness", "mean_by_user"]
__all__ += ["measure_faithfulness", "milliseconds", "paired_with_random"]

RANDOM, POPULARITY = "random", "popularity"


def agreement(
    user_ids: ArrayLike, shares: Mapping[str, ArrayLike], reference: str = "attention"
) -> pd.DataFrame:
    """Spearman's correlation of the reference with every other method, with 95% intervals.

    `user_ids` are those of the pairs, ``(n,)``, `shares` by method the user's share, ``(n,)``. A
    row for each other method holds ``correlation``, ``low``, ``high``, and ``gap``, the mean
    absolute difference of the shares.
    """
    table = pd.DataFrame({name: np.asarray(values) for name, values in shares.items()})
    table["userId"] = np.asarray(user_ids)
    found = clustered_correlations(table, reference, "userId")
    gaps = table[found.index].sub(table[reference], axis=0).abs().mean()
    return found.assign(gap=gaps)


def measure_faithfulness(
    model: Recommender, pairs: pd.DataFrame, baseline: str = "mean"
) -> Interval:
    """Spearman's correlation of the attention on the user with the user's Shapley share.

    `pairs` are held-out ratings; those of unknown users and movies are left out. For `baseline` see
    :func:`~dlcf.explain.attribution.shapley_two_players`; that of `deepcf-plus` is ``"cold"``.
    """
    known = pairs["userId"].isin(model.user_ids) & pairs["movieId"].isin(model.movie_ids)
    pairs = pairs[known]
    if len(pairs) < 2:
        raise ValueError("pairs hold fewer than 2 ratings of known users and movies")
    methods = ATTENTION, f"shapley, {baseline}"
    shares = {method: user_share(model, pairs, method) for method in methods}
    found = agreement(pairs["userId"], shares).iloc[0]
    return Interval(*(float(found[name]) for name in ("correlation", "low", "high")))


def history_faithfulness(
    model: Recommender,
    pairs: pd.DataFrame,
    methods: Sequence[str] | None = None,
    truth: str = DELETION,
) -> pd.DataFrame:
    """Does a history attribution order a user's ratings as an intervention does?

    One row a pair and method: ``userId``, ``movieId``, ``method``, ``correlation`` (Spearman's,
    over the user's ratings; with the *size* of the effect for ``"attention"``, which has no sign).
    Pairs whose prediction no rating changes are left out. Average with :func:`mean_by_user`.

    Parameters
    ----------
    model
        One that :func:`~dlcf.explain.history.history_methods` knows.
    pairs
        `userId`, `movieId`: predictions to explain, of known users and movies. Those of one user
        share their interventions.
    methods
        By default those of the model's own account.
    truth
        The intervention, ``"single deletion"`` or, for deepcf-plus, ``"shapley"``.
    """
    methods = stated_methods(model) if methods is None else methods
    rows = []
    for user_id, targets in by_user(pairs):
        change = history_attributions(model, user_id, targets, truth).to_numpy()
        for method in methods:
            found = history_attributions(model, user_id, targets, method).to_numpy()
            effect = np.abs(change) if method == ATTENTION else change
            rows += [
                (user_id, movie, method, rank_correlation(found[:, i], effect[:, i]))
                for i, movie in enumerate(targets)
                if np.ptp(effect[:, i]) > 0
            ]
    return pd.DataFrame(rows, columns=["userId", "movieId", "method", "correlation"])


def curve_areas(
    model: Recommender,
    pairs: pd.DataFrame,
    methods: Sequence[str] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> pd.DataFrame:
    """Areas under the deletion and insertion curves, for the orders of several attributions.

    One row a pair and order: ``userId``, ``movieId``, ``order``, ``deletion`` (lower is better),
    ``insertion`` (higher is better): means of the curves over the history, in stars or, for `ease`,
    in scores. Each of `methods`, all of the model by default, orders the ratings by its
    attributions, the highest first. ``"random"`` (drawn by `seed`) and ``"popularity"`` (the movies
    with the most ratings first) are always added. The other parameters are those of
    :func:`history_faithfulness` and `deletion_and_insertion`.
    """
    methods = history_methods(model) if methods is None else methods
    count = pd.Series(model.movie_counts, index=model.movie_ids)
    generator = np.random.default_rng(seed)
    rows = []
    for user_id, targets in by_user(pairs):
        found = {m: history_attributions(model, user_id, targets, m) for m in methods}
        rated = found[methods[0]].index
        for movie in targets:
            order = {name: table[movie] for name, table in found.items()}
            order[RANDOM] = pd.Series(generator.random(len(rated)), index=rated)
            order[POPULARITY] = count[rated]
            for name, values in order.items():
                first = values.sort_values(ascending=False, kind="stable").index.tolist()
                curves = deletion_and_insertion(model, user_id, movie, first, fractions)
                areas = [float(np.trapezoid(curve, fractions)) for curve in curves]
                rows.append((user_id, movie, name, *areas))
    return pd.DataFrame(rows, columns=["userId", "movieId", "order", "deletion", "insertion"])


def paired_with_random(areas: pd.DataFrame) -> pd.DataFrame:
    """Means of :func:`curve_areas` by order, and their paired differences to the random order.

    A row for each order holds for ``deletion`` and ``insertion`` the mean with ``low`` and
    ``high``, 95% by resampling users; after ``- random`` the same of the difference.
    """
    rows: dict[str, dict[str, float]] = {}
    keys = ["userId", "movieId"]
    by_order = {name: table.set_index(keys) for name, table in areas.groupby("order")}
    for name, table in by_order.items():
        row: dict[str, float] = {}
        for curve in ("deletion", "insertion"):
            difference = table[curve] - by_order[RANDOM][curve]
            for label, values in ((curve, table[curve]), (f"{curve} - random", difference)):
                found = mean_by_user(values.index.get_level_values("userId"), values)
                row |= {label: found.mean, f"{label}, low": found.low, f"{label}, high": found.high}
        rows[str(name)] = row
    return pd.DataFrame(rows).T


def mean_by_user(user_ids: ArrayLike, values: ArrayLike) -> Interval:
    """The mean of values, one a pair, with a 95% interval from resampling users."""
    values = np.asarray(values, dtype=np.float64)
    return clustered_interval(user_ids, lambda rows: float(values[rows].mean()), resamples=1000)


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's correlation in [-1, 1] of two ``(n,)``; 0 where one has no order."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def milliseconds(
    call: Callable[[], object],
    explanations: int,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Cost of one explanation: the fastest of some calls, divided by what a call explains."""
    times = timeit.repeat(call, timer=clock, repeat=repeats, number=1)
    return 1e3 * min(times) / explanations
