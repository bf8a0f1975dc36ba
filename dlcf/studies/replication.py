"""Ways to turn predictions into the paper's six numbers, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dlcf import metrics
from dlcf.evaluation import first_places
from dlcf.models.base import Floats, Index

# What the paper reports; its conclusion gives 0.8968 and 0.8851 for the first and the last.
PAPER = {
    "RMSE": 0.9001, "MAE": 0.6870, "precision@10": 0.8497,
    "recall@10": 0.6362, "F@10": 0.7276, "NDCG@10": 0.8870,
}  # fmt: skip

# Listed movies that count: all, or those whose prediction reaches a threshold of its own.
PREDICTED = {f"predicted {least} or more": least for least in (3.0, 3.5, 4.0, 4.5)}

# Choices that a paper should state, once there are predictions.
CHOICES: dict[str, tuple[Any, ...]] = {
    "rounding": ("none", "half stars"),
    "threshold": (3.0, 3.5, 4.0, 4.5),
    "users": ("with a relevant movie", "with k test ratings", "all", "pooled"),
    "precision divides by": ("list length", "k", *PREDICTED),
    "gain": ("rating", "2^rating - 1", "relevant"),
}


def protocol_table(frame: pd.DataFrame, k: int = 10) -> pd.DataFrame:
    """The paper's six metrics under every combination of `CHOICES`, one row each.

    Of `frame`, with `userId`, `rating`, `predicted`, a user's rated test movies are ranked by
    prediction and the first `k` are listed. ``users``: over whom the mean runs; over ``all``, an
    undefined ratio is 0; ``pooled`` is no mean of ratios but the ratio of sums over all users
    (micro average). Where precision divides by movies ``predicted 3.0 or more``, a movie counts
    only where it is listed *and* its prediction reaches that; with the threshold of relevance, that
    is the example script of Surprise (Hug, 2020).
    """
    rows = []
    actual = frame["rating"].to_numpy(np.float64)
    for rounding in CHOICES["rounding"]:
        raw = frame["predicted"].to_numpy(np.float64)
        predicted = np.round(2 * raw) / 2 if rounding == "half stars" else raw
        error = {"RMSE": metrics.rmse(actual, predicted), "MAE": metrics.mae(actual, predicted)}
        lists = _Lists(frame["userId"].to_numpy(), actual, predicted, k)
        for values in product(*(CHOICES[name] for name in list(CHOICES)[1:])):
            choice = dict(zip(list(CHOICES)[1:], values, strict=True))
            rows.append({"rounding": rounding, **choice, **error, **lists.measure(*values)})
    return pd.DataFrame(rows)


def distance(table: pd.DataFrame, target: Mapping[str, float] = PAPER) -> pd.Series:
    """Largest absolute difference of any metric from the paper's, for each protocol."""
    return (table[list(target)] - pd.Series(target)).abs().max(axis=1)


def effects(table: pd.DataFrame, base: Mapping[str, Any]) -> pd.DataFrame:
    """How far each choice alone moves each metric, from a base protocol.

    One row for each other value of each choice that `table` has beside the others of the base:
    ``choice``, ``value`` and the changes.
    """
    names = [name for name in table.columns if name not in PAPER]
    by_choice = {tuple(row[name] for name in names): row for row in table.to_dict("records")}
    start = by_choice[tuple(base[name] for name in names)]
    rows = []
    for name in names:
        for value in table[name].unique():
            other = by_choice.get(tuple({**base, name: value}[n] for n in names))
            if other and value != base[name]:
                changes = {metric: other[metric] - start[metric] for metric in PAPER}
                rows.append({"choice": name, "value": str(value), **changes})
    return pd.DataFrame(rows)


class _Lists:
    """Each user's rated test movies by prediction, and by rating, cut at k."""

    def __init__(self, users: Index, actual: Floats, predicted: Floats, k: int) -> None:
        self.k = k
        self.row = np.unique(users, return_inverse=True)[1]
        self.actual = actual
        self.size = np.bincount(self.row)
        tie_break = np.random.default_rng(0).permutation(len(users))
        self.shown = self._table(np.lexsort((tie_break, -predicted, self.row)))
        self.best = self._table(np.lexsort((-actual, self.row)))
        self.filled = self.shown >= 0
        self.rating = np.where(self.filled, actual[self.shown], 0.0)
        self.prediction = np.where(self.filled, predicted[self.shown], -np.inf)
        self.best_rating = np.where(self.best >= 0, actual[self.best], 0.0)

    def _table(self, order: Index) -> Index:
        """Positions of the first k of each user in `order`; -1 behind."""
        positions = np.arange(len(order))
        return first_places(positions, order, self.row, (len(self.size), self.k), empty=-1)

    def measure(self, threshold: float, users: str, divisor: str, gain: str) -> dict[str, float]:
        relevant = np.bincount(self.row, self.actual >= threshold)
        listed = self.filled.copy()
        if divisor in PREDICTED:
            listed &= self.prediction >= PREDICTED[divisor]
        hits = ((self.rating >= threshold) & listed).sum(axis=1)
        length = np.full(len(hits), self.k) if divisor == "k" else listed.sum(axis=1)
        chosen = {
            "with a relevant movie": relevant > 0,
            "with k test ratings": self.size >= self.k,
        }.get(users, np.ones(len(hits), dtype=bool))
        gains = self._gain(self.rating, self.filled, gain, threshold)
        ideal = self._gain(self.best_rating, self.best >= 0, gain, threshold)
        pairs = (hits, length), (hits, relevant), (metrics.dcg(gains), metrics.dcg(ideal))
        if users == "pooled":
            precision, recall, ndcg = (float(_ratio(a.sum(), b.sum())) for a, b in pairs)
        else:
            precision, recall, ndcg = (float(_ratio(a, b)[chosen].mean()) for a, b in pairs)
        found = precision, recall, metrics.f1(precision, recall), ndcg
        return dict(zip(list(PAPER)[2:], found, strict=True))

    @staticmethod
    def _gain(rating: Floats, filled: NDArray[np.bool_], gain: str, threshold: float) -> Floats:
        if gain == "rating":
            return rating
        if gain == "relevant":
            return ((rating >= threshold) & filled).astype(np.float64)
        return np.where(filled, 2.0**rating - 1.0, 0.0)


def _ratio(numerator: Any, denominator: Any) -> Floats:
    return numerator / np.where(denominator > 0, denominator, 1)
