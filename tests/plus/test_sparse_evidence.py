"""Evidence from sparse structures is that of dense grids, and takes memory by the rating."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from made_up_evidence import EDGES, dense_evidence, world

import dlcf.fast
from dlcf.models.base import Interactions
from dlcf.plus.evidence import Context, SideInformation

FIELDS = {"baseline": 1e-6, "user": 2e-5, "movie": 2e-5, "count": 0, "channels": 2e-3, "history": 0}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("plain", [True, False])
def test_it_is_that_of_dense_grids(edge: str, plain: bool) -> None:
    data, side, pairs = world(edge)
    expected, context = dense_evidence(data, side, *pairs, 6), Context(data, side)
    if plain:
        with dlcf.fast.disabled():
            found = context.describe(*pairs, 6)
    else:
        found = context.describe(*pairs, 6)
    for name, atol in FIELDS.items():
        values = getattr(found, name).astype(float), getattr(expected, name).astype(float)
        np.testing.assert_allclose(*values, rtol=1e-4 if atol else 0, atol=atol, err_msg=name)
    assert list(map(len, context.feature_names())) == [found.user.shape[1], found.movie.shape[1]]


def test_each_row_depends_on_its_own_pair_alone() -> None:
    data, side, pairs = world("usual")
    context, rows = Context(data, side), np.array([100, 3, 57])
    for faster in (True, False):
        if faster:
            whole, some = (context.describe(*(p[k] for p in pairs), 6) for k in (slice(None), rows))
        else:
            with dlcf.fast.disabled():
                whole, some = (
                    context.describe(*(p[k] for p in pairs), 6) for k in (slice(None), rows)
                )
        for name, atol in FIELDS.items():
            np.testing.assert_allclose(getattr(some, name), getattr(whole, name)[rows], atol=atol)


def test_the_order_of_ratings_does_not_matter() -> None:
    data, side, pairs = world("usual")
    shuffled = data.take(np.random.default_rng(0).permutation(len(data)))
    one, other = (Context(d, side).describe(*pairs, 6) for d in (data, shuffled))
    for name, atol in FIELDS.items():
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=atol)


@pytest.mark.parametrize("plain", [True, False])
def test_no_array_is_as_large_as_users_times_movies(plain: bool) -> None:
    n, n_users, n_movies = 20_000, 10_000, 10_000  # a grid of float32 has 400 MB
    generator = np.random.default_rng(0)
    cells = np.unique(generator.integers(0, n_users * n_movies, n))
    users, movies = np.divmod(cells, n_movies)
    ratings = generator.integers(1, 6, len(cells)).astype(np.float32)
    times = generator.integers(10**9, 10**9 + 10**7, len(cells))
    data = Interactions(users, movies, ratings, times, n_users, n_movies)
    genres = np.eye(18, dtype=np.float32)[np.arange(n_movies) % 18]
    side = SideInformation(genres, np.full(n_movies, 1990, np.float32))
    pairs = users[::100], (movies[::100] + 1) % n_movies, times[::100].astype(float)
    Context(data, side).describe(*pairs, 8)  # what is compiled is compiled
    tracemalloc.start()
    try:
        if plain:
            with dlcf.fast.disabled():
                Context(data, side).describe(*pairs, 8)
        else:
            Context(data, side).describe(*pairs, 8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400 * len(cells)
