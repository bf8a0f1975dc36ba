"""Small worlds with the edges that evidence has, and its formulas on dense grids, pair by pair."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlcf.models.base import Interactions, fit_biases
from dlcf.plus.evidence import Context, Evidence, SideInformation
from dlcf.plus.scales import TIME_SCALES

EDGES = ("usual", "untimed", "all movies alike", "many at one time", "large numbers of genres")


def world(edge: str, seed: int = 0) -> tuple[Interactions, SideInformation, tuple[Any, ...]]:
    """Ratings, movies, and pairs (users, movies, times), of which some are rated.

    User 0 has one rating and user 1 one of each movie but the last, which has no raters.
    """
    generator = np.random.default_rng(seed)
    n_users, n_movies = 14, 25
    rated = generator.random((n_users, n_movies)) < 0.35
    rated[0], rated[1] = False, True
    rated[0, 4] = True
    rated[:, -1] = False
    users, movies = np.nonzero(rated)
    times = 10**9 + np.cumsum(generator.integers(0, 4000, len(users)))
    times += 10**7 * generator.integers(0, 3, len(users))
    if edge == "many at one time":
        times = 10**9 + 50_000 * generator.integers(0, 2, len(users))
    times = times * (edge != "untimed")
    ratings = generator.integers(1, 11, len(users)).astype(np.float32) / 2
    data = Interactions(users, movies, ratings, times, n_users, n_movies)
    genres = generator.random((n_movies, 4 if edge != "large numbers of genres" else 30)) < 0.4
    years = generator.integers(1960, 1990, n_movies).astype(np.float32)
    if edge == "all movies alike":
        genres[:], years[:] = True, 1990
    genres = genres / np.sqrt(np.maximum(genres.sum(axis=1, keepdims=True), 1))
    n = 120
    asked = 10**9 + generator.integers(-(10**4), 2 * 10**7, n).astype(float)
    asked[:40] = generator.choice(times, 40)  # at the moment of a rating
    pairs = generator.integers(0, n_users, n), generator.integers(0, n_movies, n)
    side = SideInformation(genres.astype(np.float32), years)
    return data, side, (*pairs, asked * (edge != "untimed"))


def dense_evidence(
    data: Interactions, side: SideInformation, users: Any, movies: Any, times: Any, size: int
) -> Evidence:
    """As :meth:`Context.describe`, by the formulas alone, in double precision."""
    mean, user_bias, movie_bias = fit_biases(data, sweeps=10)
    shape = data.n_movies, data.n_users
    seen, stars, stamps = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    place = data.movies, data.users
    seen[place], stars[place], stamps[place] = 1, data.ratings, data.timestamps
    n_users, n_movies = seen.sum(axis=0), seen.sum(axis=1)
    residual = (stars - mean - movie_bias[:, None] - user_bias) * seen
    total = (movie_bias * (n_movies + 3))[:, None]
    theirs = (total - (stars - mean - user_bias)) / (n_movies[:, None] + 2)
    deviation = (stars - mean - theirs) * seen
    taste = (deviation - deviation.sum(axis=0) / (n_users + 1)) * seen
    spread = residual[seen > 0].var()
    movie_spread = np.sqrt(((residual**2).sum(axis=1) + 3 * spread) / (n_movies + 3))
    context = Context(data, side)  # only for the order of its histories
    parts = []
    for user, movie, time in zip(users, movies, times, strict=True):
        rated = context.movies[context.history(user)]
        given, n, at = deviation[rated, user], len(rated), stamps[rated, user]
        centre = given.sum() / (n + 5)
        own = given - centre
        both = seen[rated] @ seen[movie]
        agree = taste[rated] @ residual[movie] / (both + 15)
        co_rated = both / np.sqrt((n_movies[movie] + 10) * (n_movies[rated] + 9))
        genre = side.genres[rated].astype(float) @ side.genres[movie]
        year = np.exp(-np.abs(side.years[rated] - side.years[movie]) / 5)
        gap = np.abs(time - at)
        decays = [np.exp(-gap / scale) for scale in TIME_SCALES]
        session = decays[2]
        heads = [(decay, 1.5, 1) for decay in decays]
        heads += [(co_rated**2, 0.05, 10), (np.maximum(agree, 0), 0.3, 10), (genre**4, 3, 10)]
        heads += [(year, 3, 10), (genre**2 * session, 1.5, 10), (co_rated * session, 0.3, 10)]
        heads += [(co_rated * genre, 0.5, 10)]
        read = [
            value
            for weight, null, factor in heads
            for value in (weight @ own / (weight.sum() + null), np.log1p(factor * weight.sum()))
        ]
        before, after = np.flatnonzero(at <= time), np.flatnonzero(at >= time)
        near = [(at < time).mean()]
        for entry in (before[-1:], after[:1]):
            near += [own[entry[0]], np.log1p(gap[entry[0]])] if len(entry) else [0.0, 20.0]
        usual = [
            centre,
            np.log1p(n),
            np.sqrt((((given - given.mean()) ** 2).sum() + 2.4) / (n + 3)),
        ]
        last = [agree @ own / (n + 30) * 10, np.log1p(co_rated.sum())]
        shared = seen[rated].sum(axis=0)
        product = own @ taste[rated]
        product[user] = 0
        agreement = product / (shared + 15)
        overlap = shared / np.sqrt((n + 20) * (n_users + 20))
        weight = np.maximum(agreement, 0)
        date = min(time, data.timestamps.max()) / 31_557_600 + 1970
        of_movie = [
            residual[movie] @ weight / (seen[movie] @ weight + 0.3),
            residual[movie] @ agreement / (n_movies[movie] + 5) * 5,
            residual[movie] @ overlap / (seen[movie] @ overlap + 0.3),
            np.log1p(n_movies[movie]), movie_bias[movie], movie_spread[movie],
            (side.years[movie] - 1990) / 20, np.log1p(max(date - side.years[movie], 0)),
            date - 2005, *side.genres[movie],
        ]  # fmt: skip
        relevance = session + 3 * co_rated + 0.5 * genre**2 + 0.2 * np.maximum(agree, 0)
        key = np.rint(1e5 * relevance.astype(np.float32)).astype(int) * n - np.arange(n)
        top = np.sort(np.argsort(-key)[:size])
        said = [own, np.log1p(gap) / 10, decays[1], np.sign(time - at), 3 * co_rated, 2 * agree]
        channels, history = np.zeros((size, 8)), np.zeros(size, int)
        channels[: len(top)] = np.stack([*said, genre, year], axis=1)[top]
        history[: len(top)] = context.start[user] + top
        user_read = [*usual, *read[:14], *near, *read[14:], *last]
        parts.append((mean + movie_bias[movie], user_read, of_movie, channels, len(top), history))
    return Evidence(*(np.array(column) for column in zip(*parts, strict=True)))
