"""Intervals and tests: is a difference between two models more than luck?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from dlcf.evaluation import per_user, per_user_errors
from dlcf.models.base import Floats, Index, Recommender

# Metric -> (numerator, denominator) columns of a per-user table; the value over a set of users is
# the sum of the first over that of the second, and for RMSE its root. What follows a comma in a
# metric's name follows it in the columns' names too: "rmse, warm pairs" of "squared, warm pairs".
METRICS = {
    "rmse": ("squared", "ratings"),
    "mae": ("absolute", "ratings"),
    "precision": ("precision", None),
    "recall": ("recall", None),
    "ndcg": ("ndcg", None),
}
_AT_ONCE = 10_000  # permutations


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval, in the unit of what was averaged."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    as_dict = asdict  # the fields by name


@dataclass(frozen=True)
class Comparison:
    """The difference of a metric between two models, first minus second, in the metric's unit.

    Negative RMSE differences favour the first model. The interval resamples the users compared; the
    p-value is two-sided, of the hypothesis that the two models can be swapped for any user.
    """

    metric: str
    difference: float
    low: float
    high: float
    p_value: float
    users: int

    as_dict = asdict  # the fields by name


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean over seeds with Student's t interval, ``mean ± t_{n-1} s / sqrt(n)``.

    It covers other seeds of split and model on the same ratings, not other users: the seeds' test
    sets overlap. `values` holds one number a seed, ``(n,)``, n >= 2.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values in one row, not {values.shape}")
    mean = float(values.mean())
    half = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * stats.sem(values)
    return Interval(mean, mean - float(half), mean + float(half))


def interval_over_seeds(values: Sequence[float]) -> list[float | None]:
    """``[mean, low, high]`` of :func:`mean_interval` to 5 decimals; of one value no bounds."""
    if len(values) < 2:
        return [round(float(values[0]), 5), None, None]
    interval = mean_interval(values)
    return [round(bound, 5) for bound in (interval.mean, interval.low, interval.high)]


def compare_models(
    first: Recommender,
    second: Recommender,
    train: pd.DataFrame,
    test: pd.DataFrame,
    metric: str = "ndcg",
    protocol: str = "full",
    k: int = 10,
    threshold: float = 4.0,
    seed: int = 0,
) -> Comparison:
    """Compare two fitted models on the same test users.

    With several pairs of models, correct the p-values with :func:`holm`. Both were fitted on the
    same `train`; `metric` is ``"rmse"``, ``"mae"`` (over all test users), ``"precision"``,
    ``"recall"``, ``"ndcg"`` (over those with a relevant test movie); `seed` draws the resamples;
    all others are as for :func:`dlcf.evaluate`.
    """
    if metric in ("rmse", "mae"):
        tables = [per_user_errors(model, test) for model in (first, second)]
    else:
        tables = [per_user(m, train, test, protocol, k, threshold) for m in (first, second)]
    return compare_tables([tables[0]], [tables[1]], metric, seed=seed)


def compare_tables(
    first: Sequence[pd.DataFrame],
    second: Sequence[pd.DataFrame],
    metric: str,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models by tables of one or several seeds, as :func:`compare_all` does."""
    both = {"first": first, "second": second}
    return compare_all(both, metric, confidence, resamples, resamples, seed)[1]["first", "second"]


def compare_all(
    tables: Mapping[str, Sequence[pd.DataFrame]],
    metric: str,
    confidence: float = 0.95,
    resamples: int = 10_000,
    permutations: int = 100_000,
    seed: int = 0,
) -> tuple[dict[str, Interval], dict[tuple[str, str], Comparison]]:
    """Intervals over users of several models, and the comparison of each pair of them.

    A user's values are added over the seeds first, because two splits of one user's ratings are
    not independent. The intervals are the percentile bootstrap over users (Efron and Tibshirani,
    1993, chapter 13), the same resamples for all models; the test swaps two models' values at
    random within users (a paired permutation test). Users without a rating that counts are left
    out. `tables` are, by model, those of :func:`dlcf.evaluation.per_user` or `per_user_errors`, one
    a seed, in the same order of seeds.
    """
    if metric.partition(", ")[0] not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    sums = [_sums(of_model, metric) for of_model in tables.values()]
    weight = sums[0][1]
    for _, other in sums:
        if not weight.index.equals(other.index) or not np.allclose(weight, other):
            raise ValueError("the models were not measured on the same users; compare like tables")
    table = np.stack([*(values for values, _ in sums), weight], axis=1).astype(np.float64)
    table = table[table[:, -1] > 0]
    n_users, total = len(table), table.sum(axis=0)
    generator = np.random.default_rng(seed)

    def mean(numerator: Floats, denominator: Floats) -> Floats:
        found = numerator / denominator
        return np.sqrt(found) if metric.startswith("rmse") else found

    observed = mean(total[:-1], total[-1])
    drawn = generator.multinomial(n_users, np.full(n_users, 1 / n_users), resamples) @ table
    values = mean(drawn[:, :-1], drawn[:, -1:])
    bounds = zip(observed, *_percentiles(values, confidence), strict=True)
    intervals = {m: Interval(*map(float, of_m)) for m, of_m in zip(tables, bounds, strict=True)}

    first, second = np.triu_indices(len(sums), 1)
    difference = observed[first] - observed[second]
    low, high = _percentiles(values[:, first] - values[:, second], confidence)
    # Swapping the models of a user turns the sign of half the gap between them.
    middle, gap = (total[first] + total[second]) / 2, table[:, first] - table[:, second]
    extreme = np.zeros(len(first))
    for done in range(0, permutations, _AT_ONCE):
        signs = generator.choice([-0.5, 0.5], size=(min(_AT_ONCE, permutations - done), n_users))
        half = signs @ gap
        swapped = mean(middle + half, total[-1]) - mean(middle - half, total[-1])
        extreme += (np.abs(swapped) >= np.abs(difference) - 1e-12).sum(axis=0)
    # The observed labels are one of the labellings: the p-value is never 0.
    p_values = (1 + extreme) / (1 + permutations)
    columns = np.stack([difference, low, high, p_values], axis=1).tolist()
    return intervals, {
        pair: Comparison(metric, of[0], of[1], of[2], of[3], n_users)
        for pair, of in zip(combinations(tables, 2), columns, strict=True)
    }


def clustered_correlations(
    table: pd.DataFrame,
    column: str,
    cluster: str,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's rank correlation of one column with every other, with intervals.

    Whole clusters are resampled (percentile bootstrap): rows of one user are not independent.
    `cluster` is the column that names the cluster of each row, `column` the one that is correlated.
    A row for each of the others holds ``correlation``, ``low``, ``high``.
    """
    values = table.drop(columns=cluster)
    others = [name for name in values.columns if name != column]

    def correlate(rows: Index) -> Floats:
        ranks = values.iloc[rows].rank()
        return np.asarray(ranks[others].corrwith(ranks[column]))

    found = _clustered(table[cluster], correlate, confidence, resamples, seed)
    return pd.DataFrame(dict(zip(("correlation", "low", "high"), found, strict=True)), index=others)


def clustered_interval(
    clusters: ArrayLike,
    statistic: Callable[[Index], float],
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> Interval:
    """A statistic of all rows, as `mean`, with a percentile bootstrap interval over clusters.

    `clusters` is which one each row is in, such as its user, ``(n,)``; `statistic` is of row
    numbers, in which a row may be repeated.
    """
    return Interval(*map(float, _clustered(clusters, statistic, confidence, resamples, seed)))


def holm(p_values: ArrayLike) -> Floats:
    """P-values ``(n,)`` corrected by Holm's step-down method (Holm, 1979), in the same order.

    Rejecting those below 0.05 errs in any of the comparisons with probability 0.05 at most.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values)
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def _clustered(
    clusters: ArrayLike,
    statistic: Callable[[Index], Any],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[Any, Any, Any]:
    """A statistic of all rows and its two bounds, from as many clusters as there are, redrawn."""
    labels = pd.Series(np.asarray(clusters))
    rows_of = list(labels.groupby(labels).indices.values())
    chosen = np.random.default_rng(seed).integers(len(rows_of), size=(resamples, len(rows_of)))
    draws = [statistic(np.concatenate([rows_of[index] for index in drawn])) for drawn in chosen]
    low, high = _percentiles(draws, confidence)
    return statistic(np.arange(len(labels))), low, high


def _percentiles(draws: Any, confidence: float) -> Floats:
    """The two bounds of the central `confidence` of resampled values ``(resamples, ...)``."""
    tail = (1 - confidence) / 2
    return np.quantile(draws, [tail, 1 - tail], axis=0)


def _sums(tables: Sequence[pd.DataFrame], metric: str) -> tuple[pd.Series, pd.Series]:
    """By user, the metric's numerator and its weight, added over the seeds."""
    name, comma, part = metric.partition(", ")
    numerator, denominator = METRICS[name]
    rows = pd.concat(tables)
    weight = pd.Series(1.0, index=rows.index)
    if denominator is not None:
        weight = rows[denominator + comma + part]
    return rows[numerator + comma + part].groupby(level=0).sum(), weight.groupby(level=0).sum()
