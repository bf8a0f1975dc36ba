"""Ratings of any number that look like real ones, to measure how cost grows; never mixed with them.

Nothing that is learned from these ratings says anything about people: they are for time and memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["in_sessions", "synthetic_ratings"]

RANK = 8
RATINGS_AT_ONCE = 2_000_000
CATALOGUE_GROWTH = 1 / 3  # 248 times the ratings of latest-small, 6 times its movies: ml-25m
FIRST_DAY, LAST_DAY = 828_000_000, 1_537_000_000  # seconds, UTC; the span of latest-small
STAY = 30 * 86_400
GAP, SESSION_LENGTH = 20, 40  # seconds between ratings of a session, and ratings in one


def synthetic_ratings(n_ratings: int, like: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Draw ratings with the marginals of real ones.

    The distribution of ratings a user is that of `like`, so users grow with the ratings; so is, by
    relative rank, the popularity of movies, whose number grows with the cube root. The stars come
    from a truth of biases and rank-8 factors plus noise, cut so that each level has its share in
    `like`.

    Parameters
    ----------
    n_ratings
        Rows, exactly; at least ten times the largest number of ratings by one user in `like`.
    like
        Real ratings: `userId`, `movieId`, `rating`.
    seed
        The same seed gives the same bits.

    Returns
    -------
    DataFrame
        `userId`, `movieId` int64, `rating` float32, `timestamp` int64, by user and movie; no pair
        comes twice. Memory while it is made is about twice that of the frame (28 bytes a rating).

    Raises
    ------
    ValueError
        `n_ratings` is too small for the activity of the users.
    """
    generator = np.random.default_rng(seed)
    by_user = like["userId"].value_counts().to_numpy()
    by_movie = like["movieId"].value_counts().to_numpy()
    if n_ratings < 10 * by_user.max():
        raise ValueError(f"n_ratings is {n_ratings}; give at least {10 * by_user.max()}")
    n_users = round(n_ratings / by_user.mean())
    n_movies = round(len(by_movie) * max(n_ratings / len(like), 1.0) ** CATALOGUE_GROWTH)
    activity = _with_sum(_stretched(by_user, n_users), n_ratings)
    popularity = _stretched(by_movie, n_movies).astype(np.float64)
    activity, popularity = generator.permutation(activity), generator.permutation(popularity)
    user = np.repeat(np.arange(n_users), activity)
    movie = _distinct_movies(activity, popularity, generator)
    rating = _stars(user, movie, (n_users, n_movies), like["rating"].to_numpy(), generator)
    arrived = generator.integers(FIRST_DAY, LAST_DAY - STAY, n_users)
    user += 1
    movie += 1
    return pd.DataFrame(
        {
            "userId": user,
            "movieId": movie,
            "rating": rating,
            "timestamp": arrived[user - 1] + generator.integers(0, STAY, n_ratings),
        },
        copy=False,
    )


def in_sessions(ratings: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The same ratings, those of a user in some order a few seconds apart, with days between some.

    `ratings` are by user, as from :func:`synthetic_ratings`, whose times have no sessions.
    """
    generator = np.random.default_rng(seed)
    user, n = ratings["userId"].to_numpy(), len(ratings)
    gap = generator.exponential(GAP, n)
    begins = generator.random(n) < 1 / SESSION_LENGTH
    gap[begins] += generator.exponential(STAY, np.count_nonzero(begins))
    first = np.flatnonzero(np.diff(user, prepend=user[0] - 1))
    gap[first] = generator.integers(FIRST_DAY, LAST_DAY, len(first))
    gap[first[1:]] -= np.add.reduceat(gap, first)[:-1]
    order = np.lexsort((generator.random(n), user))
    times = np.empty(n, dtype=np.int64)
    times[order] = np.cumsum(gap)
    return ratings.assign(timestamp=times)


def _stretched(counts: NDArray[Any], size: int) -> NDArray[np.int64]:
    """`size` counts with the same distribution."""
    place = (np.arange(size) + 0.5) / size
    return np.quantile(counts, place, method="inverted_cdf").astype(np.int64)


def _with_sum(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """The counts, scaled by as little as gives them that sum."""
    edges = np.floor(np.cumsum(counts) * (total / counts.sum()) + 0.5).astype(np.int64)
    return np.diff(edges, prepend=0)


def _distinct_movies(
    activity: NDArray[np.int64], popularity: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.int64]:
    """For each user in turn `activity` distinct movies, ascending, drawn by popularity."""
    cumulative = np.cumsum(_weights(activity, popularity))
    cumulative /= cumulative[-1]
    last = len(popularity) - 1
    ends = np.cumsum(activity)
    movies = np.empty(ends[-1], dtype=np.int64)
    parts = np.arange(0, ends[-1], RATINGS_AT_ONCE)
    for users in np.split(np.arange(len(activity)), np.searchsorted(ends, parts[1:])):
        missing: NDArray[Any] = activity[users]
        pairs: NDArray[Any] = np.empty(0, dtype=np.int64)
        while missing.any():  # a movie drawn twice is drawn again
            row = np.repeat(np.arange(len(users)), missing)
            drawn = np.searchsorted(cumulative, generator.random(len(row)), side="right")
            pairs = np.concatenate([pairs, row * (last + 1) + np.minimum(drawn, last)])
            pairs = np.unique(pairs)
            have = np.bincount(pairs // (last + 1), minlength=len(users))
            missing = activity[users] - have
        if len(users):
            start = ends[users[0]] - activity[users[0]]
            movies[start : start + len(pairs)] = pairs % (last + 1)
    return movies


def _weights(activity: NDArray[np.int64], popularity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights to draw by, so that movies end as popular as asked.

    A user rates a movie once, so popular movies would lose to what is drawn in their place. A user
    who goes on drawing at weights ``w`` for a time ``t`` meets movie i with probability
    ``1 - exp(-t w_i)``: solved for ``t`` by Newton's method, for ``w`` by iterated proportions.
    """
    wanted = np.minimum(popularity / popularity.sum() * activity.mean(), 0.9)
    weight = wanted / wanted.sum()
    size = np.quantile(activity, (np.arange(50) + 0.5) / 50)
    time = size.copy()
    for _ in range(30):
        missed = np.exp(-np.outer(time, weight))
        time += (size - (1.0 - missed).sum(axis=1)) / (missed @ weight)
        weight *= wanted / np.maximum((1.0 - missed).mean(axis=0), 1e-12)
    return weight


def _stars(
    user: NDArray[np.int64],
    movie: NDArray[np.int64],
    shape: tuple[int, int],
    like: NDArray[np.float32],
    generator: np.random.Generator,
) -> NDArray[np.float32]:
    """Biases, factors and noise in the proportions of real ratings, cut into levels."""
    mood, fame = (generator.normal(0, s, n) for s, n in zip((0.4, 0.45), shape, strict=True))
    taste, trait = (generator.normal(0, 0.35, (n, RANK)).astype(np.float32) for n in shape)
    value = np.empty(len(user), dtype=np.float32)
    for start in range(0, len(user), RATINGS_AT_ONCE):
        part = slice(start, start + RATINGS_AT_ONCE)
        u, m = user[part], movie[part]
        noise = generator.normal(0, 0.75, len(u))
        value[part] = mood[u] + fame[m] + np.einsum("ij,ij->i", taste[u], trait[m]) + noise
    levels, count = np.unique(like, return_counts=True)
    some = generator.choice(value, min(len(value), 500_000), replace=False)
    cuts = np.quantile(some, np.cumsum(count)[:-1] / count.sum())
    return levels.astype(np.float32)[np.searchsorted(cuts, value)]
