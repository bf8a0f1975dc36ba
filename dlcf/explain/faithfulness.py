"""Is an explanation true? Tests of what models say about their predictions.

An attribution is *faithful* where it agrees with what interventions on the model show
(:mod:`dlcf.explain.attribution` has both), *sane* where it depends on what was learned (Adebayo et al.,
2018), *stable* where models that differ only in their seed give the same one. Attention need not be
any of these (Jain and Wallace, 2019; Wiegreffe and Pinter, 2019), so each is a number here, with an
interval that resamples users: the ratings of one user are not independent.

:func:`calibrate_strength` turns a recommendation's strength into the chance that it is liked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from dlcf.analysis.beyond import STRENGTH_BINS, calibration, expected_calibration_error
from dlcf.analysis.statistics import Interval, clustered_correlations, clustered_interval
from dlcf.explain.attribution import (
    ATTENTION,
    BASELINES,
    FRACTIONS,
    OCCLUSION,
    PLAYER_METHODS,
    deletion_and_insertion,
    history_attributions,
    history_methods,
    history_value,
    integrated_gradients,
    leave_one_out,
    leave_out_refitted,
    mf_history,
    ridge_attributions,
    shapley_two_players,
    share,
    user_share,
)
from dlcf.models.base import Recommender
from dlcf.plus.deepcf_plus import DeepCFPlus
from dlcf.variants.deepcf import ExplainedDeepCF

__all__ = [
    "BASELINES",
    "PLAYER_METHODS",
    "CalibrationReport",
    "ChanceOfLiking",
    "SanityCheck",
    "agreement",
    "calibrate_strength",
    "calibration_report",
    "curve_areas",
    "deletion_and_insertion",
    "exchanged_movies",
    "history_attributions",
    "history_explanations",
    "history_faithfulness",
    "history_methods",
    "history_sanity",
    "history_stability",
    "history_value",
    "integrated_gradients",
    "leave_one_out",
    "leave_out_refitted",
    "mean_by_user",
    "measure_faithfulness",
    "mf_history",
    "milliseconds",
    "paired_with_random",
    "randomised",
    "ridge_attributions",
    "sanity_check",
    "shapley_two_players",
    "share",
    "shuffled_labels",
    "stability",
    "user_share",
]

Floats = NDArray[np.float64]
STILL_ALIKE = 0.5  # rank correlation from which on an explanation ignores what was learned
RANDOM, POPULARITY = "random", "popularity"
PART_KEYS = ["userId", "movieId", "ratedId", "explanation"]


@dataclass(frozen=True)
class SanityCheck:
    """Does an explanation change when what was learned is destroyed?

    Attributes
    ----------
    correlation
        Spearman's, between the explanations of the trained model and of the destroyed one.
    limit
        The check is passed where the whole interval lies between ``-limit`` and ``limit``.
    """

    correlation: Interval
    limit: float

    @property
    def passed(self) -> bool:
        """An explanation that stays what it was is none of the trained model."""
        return -self.limit < self.correlation.low and self.correlation.high < self.limit


def agreement(
    user_ids: ArrayLike, shares: Mapping[str, ArrayLike], reference: str = "attention"
) -> pd.DataFrame:
    """Spearman's correlation of the reference with every other method, with 95% intervals.

    Parameters
    ----------
    user_ids
        The user of each pair, ``(n,)``; whole users are resampled.
    shares
        Method to the user's share of each pair, ``(n,)``; see :func:`user_share`.
    reference
        One of the methods.

    Returns
    -------
    DataFrame
        Index the other methods; ``correlation``, ``low``, ``high``, and ``gap``, the mean absolute
        difference of the shares.
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

    Parameters
    ----------
    model
        With `attention_weights`; with the baseline ``"mean"``, a `DeepCF`.
    pairs
        Held-out ratings; those of unknown users and movies are left out.
    baseline
        See :func:`shapley_two_players`.
    """
    known = pairs["userId"].isin(model.user_ids) & pairs["movieId"].isin(model.movie_ids)
    pairs = pairs[known]
    if len(pairs) < 2:
        raise ValueError("pairs hold fewer than 2 ratings of known users and movies")
    methods = ATTENTION, f"shapley, {baseline}"
    shares = {method: user_share(model, pairs, method) for method in methods}
    found = agreement(pairs["userId"], shares).iloc[0]
    return Interval(*(float(found[name]) for name in ("correlation", "low", "high")))


def randomised(model: Recommender, seed: int = 0) -> Recommender:
    """The model with an untrained network: fresh initial parameters, all else the same.

    Parameters
    ----------
    model
        A `DeepCF` or a `DeepCFPlus`, whose features stay centred and scaled as they were. A model
        in closed form has no initial parameters: use :func:`shuffled_labels` or
        :func:`exchanged_movies`.
    seed
        Draws the parameters.
    """
    if not isinstance(model, (ExplainedDeepCF, DeepCFPlus)):
        raise ValueError(
            f"{model.name} has no parameters to randomise here; use deepcf or deepcf-plus, or fit "
            "it to shuffled_labels or exchanged_movies"
        )
    return model.untrained(seed)


def shuffled_labels(
    train: pd.DataFrame, seed: int = 0, kept: Sequence[int] | NDArray[Any] = ()
) -> pd.DataFrame:
    """`train` with its ratings dealt anew among its pairs: nothing but their distribution is left.

    A model that is fitted to it has learned nothing of users and movies.

    Parameters
    ----------
    train
        Ratings.
    seed
        Draws the dealing.
    kept
        Users whose ratings stay as they are, so that explanations by the same history are compared.
    """
    others = ~train["userId"].isin(kept).to_numpy()
    rating = train["rating"].to_numpy().copy()
    rating[others] = np.random.default_rng(seed).permutation(rating[others])
    return train.assign(rating=rating)


def exchanged_movies(
    train: pd.DataFrame, seed: int = 0, kept: Sequence[int] | NDArray[Any] = ()
) -> pd.DataFrame:
    """`train` with the movies of all but the users `kept` renamed, each to another at random.

    What a model in closed form learns of a movie is then another movie's. It is the test for those
    that learn from who rated what, of which :func:`shuffled_labels` leaves everything.

    Parameters
    ----------
    train, seed, kept
        As for :func:`shuffled_labels`.
    """
    others = ~train["userId"].isin(kept).to_numpy()
    movies = train["movieId"].to_numpy().copy()
    names, position = np.unique(movies[others], return_inverse=True)
    movies[others] = np.random.default_rng(seed).permutation(names)[position]
    return train.assign(movieId=movies)


def sanity_check(
    user_ids: ArrayLike,
    trained: ArrayLike,
    destroyed: ArrayLike,
    limit: float = STILL_ALIKE,
    within: ArrayLike | None = None,
) -> SanityCheck:
    """Compare the explanations of a trained model with those of a destroyed one.

    Parameters
    ----------
    user_ids
        The user of each value, ``(n,)``.
    trained
        What the trained model says, ``(n,)``: the user's share of each pair, or the parts of
        :func:`history_explanations`.
    destroyed
        What a destroyed model says of the same, ``(n,)``, or several, ``(models, n)``, over which
        the mean is taken. Destroyed is a model that is :func:`randomised`, or fitted to
        :func:`shuffled_labels` or :func:`exchanged_movies`.
    limit
        See :class:`SanityCheck`.
    within
        As for :func:`stability`.
    """
    values = np.vstack([np.asarray(trained, float), np.asarray(destroyed, float)])
    couples = [(0, other) for other in range(1, len(values))]
    return SanityCheck(_alike(user_ids, values, couples, within), limit)


def stability(
    user_ids: ArrayLike, explanations: ArrayLike, within: ArrayLike | None = None
) -> Interval:
    """Mean rank correlation of the explanations of the same pairs between models of other seeds.

    Parameters
    ----------
    user_ids
        The user of each value, ``(n,)``.
    explanations
        ``(models, n)``: the user's share, say, by two models or more.
    within
        Which explanation each value is a part of, ``(n,)``, where one has several, as those of
        :func:`history_explanations` have. Ranks are then within each explanation, and the mean is
        over them too. Where a single model says the same of all parts the correlation is 0; where
        all do there is nothing to compare, and the explanation is left out.

    Returns
    -------
    Interval
        Mean of Spearman's correlation over all pairs of models, in [-1, 1]; the interval is over
        users, for these seeds.
    """
    values = np.asarray(explanations, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"explanations of two models or more are compared, not {values.shape}")
    return _alike(user_ids, values, list(combinations(range(len(values)), 2)), within)


def history_explanations(
    model: Recommender, pairs: pd.DataFrame, methods: Sequence[str] | None = None
) -> pd.DataFrame:
    """History attributions of some predictions, one row a part.

    Two models that know the same histories give the same rows, so that their columns can go to
    :func:`sanity_check` and :func:`stability`, with ``within`` the column ``explanation``.

    Parameters
    ----------
    model, pairs
        As for :func:`history_faithfulness`.
    methods
        All of :func:`history_methods` but ``"occlusion"`` by default.

    Returns
    -------
    DataFrame
        ``userId``, ``movieId``, ``ratedId`` (the movie of the history), ``explanation`` (which one
        the row is a part of, from 0), and a column of each method.
    """
    methods = _told(model) if methods is None else methods
    parts: list[pd.DataFrame] = []
    for user_id, targets in _by_user(pairs):
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
) -> dict[str, SanityCheck]:
    """:func:`sanity_check` of each history attribution, within each explanation.

    Parameters
    ----------
    model, pairs, methods
        As for :func:`history_explanations`.
    destroyed
        Models of the same kind that know the same histories of the pairs' users.
    """
    told, *lost = (history_explanations(m, pairs, methods) for m in (model, *destroyed))
    return {
        method: sanity_check(
            told["userId"], told[method], [t[method] for t in lost], within=told["explanation"]
        )
        for method in told.columns.drop(PART_KEYS)
    }


def history_stability(
    models: Sequence[Recommender], pairs: pd.DataFrame, methods: Sequence[str] | None = None
) -> dict[str, Interval]:
    """:func:`stability` of each history attribution, within each explanation.

    Parameters
    ----------
    models
        Two or more that differ in their seed only.
    pairs, methods
        As for :func:`history_explanations`.
    """
    told = [history_explanations(model, pairs, methods) for model in models]
    users, within = told[0]["userId"], told[0]["explanation"]
    return {
        m: stability(users, [t[m] for t in told], within) for m in told[0].columns.drop(PART_KEYS)
    }


def history_faithfulness(
    model: Recommender, pairs: pd.DataFrame, methods: Sequence[str] | None = None
) -> pd.DataFrame:
    """Does a history attribution order a user's ratings as leaving each out does?

    Parameters
    ----------
    model
        Of those that :func:`history_methods` knows.
    pairs
        `userId`, `movieId`: predictions to explain, of known users and movies. Those of one user
        share their interventions.
    methods
        All of the model but ``"occlusion"``, which is the ground truth, by default.

    Returns
    -------
    DataFrame
        One row a pair and method: ``userId``, ``movieId``, ``method``, ``correlation`` (Spearman's,
        over the user's ratings; with the *size* of the change for ``"attention"``, which has no
        sign; 0 where the attribution is the same for all). Pairs whose prediction no rating changes
        are left out. Average with :func:`mean_by_user`.
    """
    methods = _told(model) if methods is None else methods
    rows = []
    for user_id, targets in _by_user(pairs):
        change = leave_one_out(model, user_id, targets).to_numpy()
        for method in methods:
            found = history_attributions(model, user_id, targets, method).to_numpy()
            truth = np.abs(change) if method == ATTENTION else change
            rows += [
                (user_id, movie, method, _rank_correlation(found[:, i], truth[:, i]))
                for i, movie in enumerate(targets)
                if np.ptp(truth[:, i]) > 0
            ]
    return pd.DataFrame(rows, columns=["userId", "movieId", "method", "correlation"])


def curve_areas(
    model: Recommender,
    pairs: pd.DataFrame,
    methods: Sequence[str] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> pd.DataFrame:
    """Areas under the deletion and insertion curves, by the order of each method and two others.

    Parameters
    ----------
    model, pairs
        As for :func:`history_faithfulness`.
    methods
        Attributions, the highest first; all of :func:`history_methods` by default. ``"random"``
        and ``"popularity"`` (the movies with the most ratings first) are always added.
    fractions
        See :func:`deletion_and_insertion`.
    seed
        Draws the random order of each pair.

    Returns
    -------
    DataFrame
        One row a pair and order: ``userId``, ``movieId``, ``order``, ``deletion`` (lower is
        better), ``insertion`` (higher is better), means of the curves over the history, in the unit
        of :func:`history_value`.
    """
    methods = history_methods(model) if methods is None else methods
    count = pd.Series(model.movie_counts, index=model.movie_ids)
    generator = np.random.default_rng(seed)
    rows = []
    for user_id, targets in _by_user(pairs):
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
    """Mean areas of each order and their paired differences to the random order, with intervals.

    Parameters
    ----------
    areas
        Of :func:`curve_areas`.

    Returns
    -------
    DataFrame
        Index the orders; for ``deletion`` and ``insertion`` the mean with ``low``, ``high`` and,
        after ``- random``, the mean difference with its own. 95%, by resampling users.
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


def milliseconds(
    call: Callable[[], object],
    explanations: int,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """What one explanation costs: the fastest of some calls, divided by what a call explains."""
    times = []
    for _ in range(repeats):
        start = clock()
        call()
        times.append(clock() - start)
    return 1e3 * min(times) / explanations


@dataclass(frozen=True)
class ChanceOfLiking:
    """A calibrated chance that a movie is rated `threshold` or more, given its strength.

    Isotonic regression (Zadrozny and Elkan, 2002): the chance never falls as the strength rises;
    between the means of its steps it is linear.

    Attributes
    ----------
    threshold
        In stars.
    strength, chance
        The means of the steps, ascending, in [0, 1].
    """

    threshold: float
    strength: tuple[float, ...]
    chance: tuple[float, ...]

    def __call__(self, strength: ArrayLike) -> NDArray[np.float64]:
        """The chance in [0, 1] of each strength in [0, 1], the same shape."""
        return np.interp(np.asarray(strength, np.float64), self.strength, self.chance)


@dataclass(frozen=True)
class CalibrationReport:
    """Reliability of a strength read as a chance, and of the calibrated chance.

    Attributes
    ----------
    before, after
        Bins of :func:`dlcf.analysis.beyond.calibration`.
    error_before, error_after, difference
        Expected calibration error in [0, 1], and after minus before; 95% by resampling users. A
        resample's error holds its own noise, so small errors may lie below their interval.
    """

    before: pd.DataFrame
    after: pd.DataFrame
    error_before: Interval
    error_after: Interval
    difference: Interval


def calibrate_strength(
    model: Recommender, validation: pd.DataFrame, threshold: float = 4.0
) -> ChanceOfLiking:
    """Learn what a strength means on ratings that neither trained nor test the model.

    Parameters
    ----------
    model
        Fitted without `validation`, or with it for the number of epochs only.
    validation
        Ratings.
    threshold
        Rating from which on a movie is liked.
    """
    strength, liked = _strength(model, validation), validation["rating"].to_numpy() >= threshold
    cases = pd.DataFrame({"strength": strength, "liked": liked}).groupby("strength")["liked"]
    levels = cases.agg(["mean", "size"])
    fit = optimize.isotonic_regression(levels["mean"].to_numpy(float), weights=levels["size"])
    steps = np.repeat(np.arange(len(fit.blocks) - 1), np.diff(fit.blocks))
    weighted = np.bincount(steps, levels.index.to_numpy(float) * levels["size"].to_numpy())
    centre = weighted / np.bincount(steps, levels["size"])
    chance = fit.x[fit.blocks[:-1]]
    return ChanceOfLiking(float(threshold), tuple(centre.tolist()), tuple(chance.tolist()))


def calibration_report(
    chance: ChanceOfLiking, model: Recommender, test: pd.DataFrame
) -> CalibrationReport:
    """How reliable strength and chance are on ratings that calibrated neither.

    Parameters
    ----------
    chance
        Of :func:`calibrate_strength`, on other ratings.
    model, test
        As there.
    """
    liked = test["rating"].to_numpy() >= chance.threshold
    strength = _strength(model, test)
    said = {"before": strength, "after": chance(strength)}

    def error(name: str, rows: Any) -> float:
        return expected_calibration_error(calibration(said[name][rows], liked[rows], STRENGTH_BINS))

    users = test["userId"].to_numpy()
    return CalibrationReport(
        before=calibration(said["before"], liked, STRENGTH_BINS),
        after=calibration(said["after"], liked, STRENGTH_BINS),
        error_before=clustered_interval(users, lambda rows: error("before", rows)),
        error_after=clustered_interval(users, lambda rows: error("after", rows)),
        difference=clustered_interval(
            users, lambda rows: error("after", rows) - error("before", rows)
        ),
    )


def _strength(model: Recommender, pairs: pd.DataFrame) -> Floats:
    low, high = model.scale
    return (model.predict(pairs) - low) / (high - low)


def _by_user(pairs: pd.DataFrame) -> Iterator[tuple[int, list[int]]]:
    """Each user with the movies whose prediction is explained."""
    users = pairs["userId"].to_numpy()
    for user_id in np.unique(users):
        yield int(user_id), pairs["movieId"].to_numpy()[users == user_id].tolist()


def _told(model: Recommender) -> list[str]:
    """What a model says of a history, without what is seen by interventions."""
    return [method for method in history_methods(model) if method != OCCLUSION]


def _alike(
    user_ids: ArrayLike,
    values: Floats,
    couples: Sequence[tuple[int, int]],
    within: ArrayLike | None,
) -> Interval:
    """Mean rank correlation of some couples of models, ``values (models, n)``."""

    def statistic(rows: NDArray[np.int64]) -> float:
        correlation = np.corrcoef(stats.rankdata(values[:, rows], axis=1))
        return float(np.mean([correlation[couple] for couple in couples]))

    if within is None:
        return clustered_interval(user_ids, statistic)
    users, parts = np.asarray(user_ids), pd.Series(np.asarray(within))
    owners, found = [], []
    for rows in parts.groupby(parts).indices.values():
        said = values[:, rows]
        if np.ptp(said, axis=1).any():
            found.append(np.mean([_rank_correlation(said[i], said[j]) for i, j in couples]))
            owners.append(users[rows[0]])
    if not found:
        raise ValueError("every explanation says the same of all its parts: nothing to compare")
    return mean_by_user(owners, found)


def _rank_correlation(first: Floats, second: Floats) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first, second).statistic)
