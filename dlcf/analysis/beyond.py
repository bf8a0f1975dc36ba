"""Beyond accuracy: what lists hold besides hits, and where and how predictions err."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dlcf.evaluation import list_metrics, rank
from dlcf.explanation import strength_of
from dlcf.models.base import Floats, Index, Recommender

CURVE = (1, 2, 3, 5, 10, 15, 20, 30, 50)
COUNT_BINS = (0, 1, 3, 6, 11, 21, 51, 101)
ACTIVITY_BINS = (1, 21, 51, 101, 201, 501)
DAY = 86_400  # seconds
TIMES = (", day", ", no times")
STRENGTH_BINS = tuple(np.linspace(0, 1, 11).round(1))


def measure(
    model: Recommender,
    train: pd.DataFrame,
    test: pd.DataFrame,
    movies: pd.DataFrame,
    k: int = 10,
    threshold: float = 4.0,
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    """All measurements of one fitted model; the parameters are those of :func:`dlcf.evaluate`.

    `movies` holds `movieId` and `genres`.

    Returns
    -------
    numbers
        Nested names to floats: ``rmse``, ``mae``, both in ``parts`` of the test set, as
        :func:`error_sums` has them, with the part's ``share`` of the ratings; the list-wise metrics
        ``rated`` and ``full`` (at k) and ``at k`` (full, by k), ``lists`` (:func:`list_quality`),
        RMSE by ratings of movie and of user, and ``calibration``.
    errors, lists
        Tables of :func:`error_sums` and :func:`dlcf.evaluation.per_user` (full), for paired tests.
    """
    errors = error_sums(model, train, test)
    total = errors.sum()
    parts: dict[str, dict[str, float]] = {}
    for column in total.index[total.index.str.startswith("ratings") & (total > 0)]:
        of = column.removeprefix("ratings")
        time = next((time for time in TIMES if of.endswith(time)), "")
        values = parts.setdefault(of.removesuffix(time).removeprefix(", ") or "all", {})
        values.setdefault("share", float(total[column] / total["ratings"]))
        values[f"rmse{time}"] = float(np.sqrt(total[f"squared{of}"] / total[column]))
        values[f"mae{time}"] = float(total[f"absolute{of}"] / total[column])
    numbers: dict[str, Any] = {name: parts["all"][name] for name in ("rmse", "mae")}
    numbers["parts"] = parts
    rated = list_metrics(rank(model, train, test, "rated", k, threshold))
    shown = rank(model, train, test, "full", max(CURVE), threshold)
    full = list_metrics(shown.cut(k))
    numbers |= {"rated": rated.mean().to_dict(), "full": full.mean().to_dict()}
    numbers["at k"] = {str(k): list_metrics(shown.cut(k)).mean().to_dict() for k in CURVE}
    numbers["lists"] = list_quality(shown.cut(k).movies, train, movies)
    numbers |= _where_it_errs(model, train, test, threshold)
    return numbers, errors, full


def error_sums(model: Recommender, train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """Sums of errors for each test user, of parts of the test set, with times less and less exact.

    Index `userId`; columns ``squared``, ``absolute`` and ``ratings`` over all ratings, as in
    :func:`dlcf.evaluation.per_user_errors`. The same with ``", warm pairs"`` behind them are over
    the ratings whose user and movie train knows; where it lacks users, ``", known users"`` and
    ``", new users"`` are there too. Each comes again with what :data:`TIMES` names behind it: times
    to the day, and none, as when a model is asked for what is to come.
    """
    known = {name: test[name].isin(train[name]).to_numpy() for name in ("userId", "movieId")}
    parts = {"": np.ones(len(test), bool), ", warm pairs": known["userId"] & known["movieId"]}
    if not known["userId"].all():
        parts |= {", known users": known["userId"], ", new users": ~known["userId"]}
    times = {"": test}
    if "timestamp" in test:
        frames = to_the_day(test), test.drop(columns="timestamp")
        times |= dict(zip(TIMES, frames, strict=True))
    columns = {}
    for time, pairs in times.items():
        error = model.predict(pairs) - test["rating"].to_numpy(np.float64)
        for part, rows in parts.items():
            of = part + time
            columns[f"squared{of}"], columns[f"absolute{of}"] = error**2 * rows, abs(error) * rows
            columns[f"ratings{of}"] = rows.astype(np.float64)
    by_user = pd.DataFrame(columns).groupby(test["userId"].to_numpy())
    return by_user.sum().rename_axis("userId")


def to_the_day(ratings: pd.DataFrame) -> pd.DataFrame:
    """The ratings, each at noon (UTC) of its day."""
    return ratings.assign(timestamp=ratings["timestamp"] // DAY * DAY + DAY // 2)


def list_quality(lists: Index, train: pd.DataFrame, movies: pd.DataFrame) -> dict[str, float]:
    """Coverage, exposure, novelty and diversity of recommendation lists.

    `lists` are movie ids, ``(n lists, k)``, -1 in places that are not filled; `train` tells the
    catalogue, and how known its movies are; `movies` holds `movieId` and `genres`.

    Returns
    -------
    dict
        ``coverage``: share of the catalogue that is in some list.
        ``gini``: inequality of exposure over the catalogue, :func:`gini` of the counts.
        ``novelty``: mean self-information ``-log2(users who rated the movie / users)`` in bits
        (Zhou et al., 2010); higher is less known.
        ``diversity``: mean over pairs in a list of 1 - Jaccard similarity of the genres (intra-list
        distance; Ziegler et al., 2005); pairs without any genre are left out.
        ``ratings of a listed movie``: median over places of the movie's training ratings.
    """
    counts = train["movieId"].value_counts().sort_index()
    column = counts.index.get_indexer(pd.Index(lists.ravel())).reshape(lists.shape)
    shown = column[column >= 0]
    exposure = np.bincount(shown, minlength=len(counts))
    known = counts.to_numpy()[shown]
    return {
        "coverage": float((exposure > 0).mean()),
        "gini": gini(exposure),
        "novelty": float(-np.log2(known / train["userId"].nunique()).mean()),
        "diversity": _diversity(column, _genre_matrix(counts.index, movies)),
        "ratings of a listed movie": float(np.median(known)),
    }


def gini(exposure: ArrayLike) -> float:
    """Gini coefficient of how often each movie is shown: 0 all equal, near 1 one movie only.

    ``sum_i (2 i - n - 1) x_i / (n sum_i x_i)`` with x in ascending order and i from 1. `exposure`
    is ``(n,)``, one count a movie of the catalogue, not all zero.
    """
    x = np.sort(np.asarray(exposure, dtype=np.float64))
    if x.ndim != 1 or x.size == 0 or x[0] < 0 or x[-1] <= 0:
        raise ValueError("exposure must be non-negative counts, one a movie, not all zero")
    n = len(x)
    return float((2 * np.arange(1, n + 1) - n - 1) @ x / (n * x.sum()))


def calibration(confidence: ArrayLike, outcome: ArrayLike, edges: Sequence[float]) -> pd.DataFrame:
    """Mean confidence and mean outcome of the cases in each bin: equal where calibrated.

    One row a bin that holds a case: ``low``, ``high``, ``confidence``, ``outcome``, ``error``
    (standard error of the outcome's mean; NaN for a single case), ``cases``. `confidence` ``(n,)``
    is a predicted rating, or a strength; `outcome` ``(n,)`` the rating, or whether the movie was
    liked. Of the ascending `edges`, a case belongs to the bin ``[edge, next)``, the last edge
    included; cases outside are an error.
    """
    confidence, outcome = np.asarray(confidence, np.float64), np.asarray(outcome, np.float64)
    borders = np.asarray(edges, np.float64)
    if confidence.shape != outcome.shape or confidence.size == 0:
        raise ValueError(f"{confidence.shape} confidences but {outcome.shape} outcomes")
    if confidence.min() < borders[0] or confidence.max() > borders[-1]:
        raise ValueError(f"confidences lie outside the bins, {borders[0]} to {borders[-1]}")
    number = np.clip(np.searchsorted(borders, confidence, "right") - 1, 0, len(borders) - 2)
    cases = pd.DataFrame({"confidence": confidence, "outcome": outcome}).groupby(number)
    table = cases.mean()
    table["error"], table["cases"] = cases["outcome"].sem(), cases.size()
    bounds = pd.DataFrame({"low": borders[:-1], "high": borders[1:]})
    return bounds.join(table, how="inner").reset_index(drop=True)


def expected_calibration_error(table: pd.DataFrame) -> float:
    """Mean gap ``|confidence - outcome|`` over the cases of :func:`calibration`'s bins.

    Naeini, Cooper and Hauskrecht (2015), eq. 3.
    """
    gap = (table["confidence"] - table["outcome"]).abs()
    return float((gap * table["cases"]).sum() / table["cases"].sum())


def error_by(
    squared: ArrayLike, values: ArrayLike, edges: Sequence[float]
) -> dict[str, dict[str, float]]:
    """RMSE of the ratings whose property lies in each bin.

    `squared` are squared errors and `values` a whole-number property of each, such as the movie's
    training ratings, ``(n,)``; `edges` are the ascending lower ends of the bins, the last of which
    is open. A bin, such as ``"3-5"``, has its ``rmse`` and its ``ratings``; empty bins are left
    out.
    """
    squared, values = np.asarray(squared, np.float64), np.asarray(values)
    found = {}
    for low, high in zip(edges, [*edges[1:], np.inf], strict=True):
        inside = (values >= low) & (values < high)
        if inside.any():
            last = f"-{high - 1:g}" if high - 1 > low else ""
            name = f"{low:g}+" if np.isinf(high) else f"{low:g}{last}"
            rmse = float(np.sqrt(squared[inside].mean()))
            found[name] = {"rmse": rmse, "ratings": float(inside.sum())}
    return found


def _where_it_errs(
    model: Recommender, train: pd.DataFrame, test: pd.DataFrame, threshold: float
) -> dict[str, Any]:
    predicted, actual = model.predict(test), test["rating"].to_numpy(np.float64)
    squared = (predicted - actual) ** 2
    count = {
        column: test[column].map(train[column].value_counts()).fillna(0).to_numpy()
        for column in ("movieId", "userId")
    }
    low, high = model.scale
    liked = calibration(strength_of(predicted, model.scale), actual >= threshold, STRENGTH_BINS)
    stars = calibration(predicted, actual, np.arange(low, high + 0.5, 0.5).tolist())

    def bins(table: pd.DataFrame) -> dict[str, Any]:
        rows = table[["confidence", "outcome", "cases"]].astype(float).to_dict("records")
        return {f"{low:g}": row for low, row in zip(table["low"], rows, strict=True)}

    return {
        "rmse by ratings of the movie": error_by(squared, count["movieId"], COUNT_BINS),
        "rmse by ratings of the user": error_by(squared, count["userId"], ACTIVITY_BINS),
        "calibration": {
            "rating": bins(stars),
            "strength": bins(liked),
            "expected calibration error of strength": expected_calibration_error(liked),
        },
    }


def _genre_matrix(catalogue: pd.Index, movies: pd.DataFrame) -> Floats:
    tagged = movies[["movieId", "genres"]].explode("genres", ignore_index=True).dropna()
    table = pd.crosstab(tagged["movieId"], tagged["genres"])
    return table.reindex(catalogue, fill_value=0).to_numpy(np.float64)


def _diversity(column: NDArray[Any], genres: Floats) -> float:
    filled = column >= 0
    rows = genres[column] * filled[:, :, None]
    both = np.einsum("nig,njg->nij", rows, rows)
    size = rows.sum(axis=2)
    either = size[:, :, None] + size[:, None, :] - both
    first, second = np.triu_indices(column.shape[1], 1)
    both, either = both[:, first, second], either[:, first, second]
    tagged = (either > 0) & filled[:, first] & filled[:, second]
    return float(1 - (both[tagged] / either[tagged]).mean()) if tagged.any() else float("nan")
