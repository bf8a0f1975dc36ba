"""Intervals and tests: is a difference between two models more than luck?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from dlcf.evaluation import per_user, per_user_errors
from dlcf.models.base import Floats, Index, Recommender

__all__ = ["Comparison", "Interval", "compare_models", "compare_tables", "holm", "mean_interval"]

# Metric -> (numerator, denominator) columns of a per-user table; the value over a set of users is
# the sum of the first over that of the second, and for RMSE its root.
METRICS = {
    "rmse": ("squared", "ratings"),
    "mae": ("absolute", "ratings"),
    "precision": ("precision", None),
    "recall": ("recall", None),
    "ndcg": ("ndcg", None),
}


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval, in the unit of what was averaged."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


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

    def as_dict(self) -> dict[str, float | int | str]:
        """The fields by name."""
        return asdict(self)


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

    With several pairs of models, correct the p-values with :func:`holm`.

    Parameters
    ----------
    first, second
        Fitted on the same `train`.
    train, test, protocol, k, threshold
        As for :func:`dlcf.evaluate`.
    metric
        ``"rmse"``, ``"mae"`` (over all test users), ``"precision"``, ``"recall"``, ``"ndcg"`` (over
        those with a relevant test movie).
    seed
        Draws the resamples.
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
    """Compare two models by tables of one or several seeds.

    A user's values are added over the seeds first, because two splits of one user's ratings are
    not independent. The interval is the percentile bootstrap over users (Efron and Tibshirani,
    1993, chapter 13); the test swaps the two models' values at random within users (a paired
    permutation test).

    Parameters
    ----------
    first, second
        Tables of :func:`dlcf.evaluation.per_user` or `per_user_errors`, one a seed, in the same
        order of seeds.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    a, weight = _sums(first, metric)
    b, other_weight = _sums(second, metric)
    if not weight.index.equals(other_weight.index) or not np.allclose(weight, other_weight):
        raise ValueError("the two models were not measured on the same users; compare like tables")
    table = np.stack([a, b, weight], axis=1).astype(np.float64)
    generator = np.random.default_rng(seed)

    def differences(sums: Floats) -> Floats:
        """Of rows (first numerator, second numerator, weight)."""
        values = sums[:, :2] / sums[:, 2:]
        if metric == "rmse":
            values = np.sqrt(values)
        return values[:, 0] - values[:, 1]

    observed = float(differences(table.sum(axis=0, keepdims=True))[0])
    draws = generator.multinomial(len(table), np.full(len(table), 1 / len(table)), resamples)
    low, high = _percentiles(differences(draws @ table), confidence)

    # Swapping the models of a user turns the sign of half the gap between them.
    signs = generator.choice([-0.5, 0.5], size=(resamples, len(table)))
    middle, gap = table[:, :2].mean(axis=1).sum(), signs @ (table[:, 0] - table[:, 1])
    total = np.full(resamples, table[:, 2].sum())
    swapped = differences(np.stack([middle + gap, middle - gap, total], axis=1))
    # The observed labels are one of the labellings: the p-value is never 0.
    extreme = np.abs(swapped) >= np.abs(observed) - 1e-12
    p_value = (1 + int(extreme.sum())) / (1 + resamples)
    return Comparison(metric, observed, float(low), float(high), p_value, len(table))


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

    draws = [correlate(rows) for rows in _cluster_resamples(table[cluster], resamples, seed)]
    low, high = _percentiles(draws, confidence)
    observed = correlate(np.arange(len(values)))
    return pd.DataFrame({"correlation": observed, "low": low, "high": high}, index=others)


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
    draws = [statistic(rows) for rows in _cluster_resamples(clusters, resamples, seed)]
    low, high = _percentiles(draws, confidence)
    observed = statistic(np.arange(len(np.asarray(clusters))))
    return Interval(float(observed), float(low), float(high))


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


def _cluster_resamples(clusters: ArrayLike, resamples: int, seed: int) -> Iterator[Index]:
    """Rows of as many clusters as there are, drawn with replacement, `resamples` times."""
    labels = pd.Series(np.asarray(clusters))
    rows_of = list(labels.groupby(labels).indices.values())
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        chosen = generator.integers(len(rows_of), size=len(rows_of))
        yield np.concatenate([rows_of[index] for index in chosen])


def _percentiles(draws: Any, confidence: float) -> Floats:
    """The two bounds of the central `confidence` of resampled values ``(resamples, ...)``."""
    tail = (1 - confidence) / 2
    return np.quantile(draws, [tail, 1 - tail], axis=0)


def _sums(tables: Sequence[pd.DataFrame], metric: str) -> tuple[pd.Series, pd.Series]:
    """By user, the metric's numerator and its weight, added over the seeds."""
    numerator, denominator = METRICS[metric]
    rows = pd.concat(tables)
    weight = pd.Series(1.0, index=rows.index) if denominator is None else rows[denominator]
    return rows[numerator].groupby(level=0).sum(), weight.groupby(level=0).sum()
