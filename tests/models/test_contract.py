"""The contract of every model on tiny frames of any shape: properties, not examples."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_models import TINY, can_be_fitted

from dlcf.models.base import Recommender
from dlcf.models.network import NetworkRecommender
from dlcf.ratings import rating_scale
from dlcf.registry import available, load_model, make
from dlcf.related.networks import RelatedRecommender

UNKNOWN = 10**9  # an id that no frame holds
GENRES = ("Comedy", "Drama", "War")
KINDS = ("int64", "Int64", "uint16", "float64", "category", "str")
EXPLAINS = ("deepcf", "deepcf-plus")
FORGETS = ("item-knn", "ease", "deepcf-plus")
MODELS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not can_be_fitted(name),
            reason=f'{name} is fitted with it: pip install "dlcf[baselines]"',
        ),
    )
    for name in available()
]


@dataclass(frozen=True)
class World:
    """A train frame, its movies, and how the same frame can be given another way."""

    cells: tuple[tuple[int, int, float, int], ...]
    times: str = "distinct"  # or "equal", "none"
    side: str = "none"  # or "titles", "all"
    kind: str = "int64"
    seed: int = 0

    @cached_property
    def train(self) -> pd.DataFrame:
        """In (user, movie) order, with the plainest dtypes."""
        frame = pd.DataFrame(
            sorted(self.cells), columns=["userId", "movieId", "rating", "timestamp"]
        ).astype({"rating": "float32"})
        frame = frame.assign(userId=7 * frame["userId"] + 3, movieId=5 * frame["movieId"] + 2)
        if self.times == "equal":
            return frame.assign(timestamp=10**9)
        return frame if self.times == "distinct" else frame.drop(columns="timestamp")

    @cached_property
    def otherwise(self) -> pd.DataFrame:
        """The same ratings in another order, with columns of another kind."""
        shuffled = self.train.sample(frac=1.0, random_state=self.seed)
        return shuffled.astype({"userId": self.kind, "movieId": self.kind})

    @cached_property
    def movies(self) -> pd.DataFrame | None:
        """Of the catalogue and of a movie that nobody rated; some know neither year nor genre."""
        if self.side == "none":
            return None
        ids = np.append(self.train["movieId"].unique(), UNKNOWN - 1)
        frame = pd.DataFrame({"movieId": ids, "title": [f"Film {i}" for i in ids]})
        if self.side == "titles":
            return frame
        years = pd.array([None if i % 3 == 0 else 1980 + i % 40 for i in ids], dtype="Int16")
        return frame.assign(year=years, genres=[list(GENRES[: i % 4]) for i in ids])

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Everybody with everything, the unknown too."""
        train = self.train
        users = [*train["userId"].unique(), UNKNOWN]
        movies = [*train["movieId"].unique(), UNKNOWN, UNKNOWN - 1]
        table = pd.MultiIndex.from_product([users, movies], names=["userId", "movieId"])
        return table.to_frame(index=False).sample(frac=1.0, random_state=self.seed)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    n_users, n_movies = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    stars = draw(
        st.sampled_from(
            [
                st.integers(1, 10).map(lambda i: i / 2),
                st.integers(1, 5).map(float),
                st.just(draw(st.sampled_from([0.5, 3.0, 5.0]))),
            ]
        )
    )
    cell = st.tuples(
        st.integers(0, n_users - 1),
        st.integers(0, n_movies - 1),
        stars,
        st.integers(8 * 10**8, 16 * 10**8),
    )
    cells = st.lists(cell, min_size=1, max_size=24, unique_by=lambda c: c[:2])
    return World(
        tuple(draw(cells)),
        draw(st.sampled_from(["distinct", "equal", "none"])),
        draw(st.sampled_from(["none", "titles", "all"])),
        draw(st.sampled_from(KINDS)),
        draw(st.integers(0, 3)),
    )


def line(n: int, of: str, rating: float = 4.0) -> World:
    """One user's ratings, or one movie's."""
    times = range(10**9, 10**9 + 3600 * n, 3600)
    if of == "user":
        return World(tuple((0, i, rating, t) for i, t in enumerate(times)), side="all")
    return World(tuple((i, 0, rating, t) for i, t in enumerate(times)), side="all")


ANY_WORLD = [
    settings(max_examples=6, deadline=None, derandomize=True),
    given(world=worlds()),
    example(world=line(1, "user")),
    example(world=line(2, "user")),
    example(world=line(6, "user", 2.5)),
    example(world=line(6, "movie")),
]


def of_any_world(test: Any) -> Any:
    for decorate in reversed(ANY_WORLD):
        test = decorate(test)
    return test


def fit(name: str, train: pd.DataFrame, world: World) -> Recommender | None:
    """None where the frame is too small for the model, which then says so and stays unfitted."""
    model = make(name, **TINY.get(name, {}))
    least = model.config["positive_threshold"] if name in ("ials", "cdl") else 0
    nothing_to_like = train["rating"].max() < least
    pairs = isinstance(model, NetworkRecommender) and not isinstance(model, RelatedRecommender)
    if nothing_to_like or (len(train) < 2 and pairs):
        with pytest.raises(ValueError, match=r"at least 2 ratings|reaches positive_threshold 4"):
            model.fit(train, movies=world.movies)
        with pytest.raises(RuntimeError, match="not fitted"):
            model.predict(world.pairs)
        return None
    assert model.fit(train, movies=world.movies) is model
    return model


@pytest.mark.parametrize("name", MODELS)
@of_any_world
def test_a_model_keeps_its_contract(name: str, world: World) -> None:
    train = world.train
    model = fit(name, train, world)
    if model is None:
        return
    assert model.user_ids.tolist() == sorted(set(train["userId"]))
    assert model.movie_ids.tolist() == sorted(set(train["movieId"]))
    predictions_are_ratings(model, world, rating_scale(train))
    lists_are_the_best_of_the_scores(model, train)
    explanations_add_up(model, world.pairs)
    so_does_one_that_observes(model, world)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(model.save(folder))
    again = fit(name, world.otherwise, world)
    assert again is not None
    users = [*model.user_ids, UNKNOWN]
    for other in (loaded, again):
        assert np.array_equal(other.predict(world.pairs), model.predict(world.pairs))
        assert np.array_equal(other.score_all(users), model.score_all(users))
        assert other.config == model.config and other.scale == model.scale
        for movie in (*model.movie_ids, UNKNOWN):
            assert other.title(movie) == model.title(movie)


def so_does_one_that_observes(model: Recommender, world: World) -> None:
    """A new user rates two known movies, where there are, and a new one."""
    known = world.train.drop_duplicates("movieId").head(2)
    new = pd.concat([known, known.head(1).assign(movieId=UNKNOWN - 2)]).assign(userId=UNKNOWN - 3)
    try:
        served = model.observe(new)
    except NotImplementedError:
        return
    predictions_are_ratings(served, world, model.scale)
    lists_are_the_best_of_the_scores(served, pd.concat([world.train, new]))


def predictions_are_ratings(model: Recommender, world: World, scale: tuple[float, float]) -> None:
    pairs = world.pairs
    rating = model.predict(pairs)
    assert rating.dtype == np.float64 and rating.shape == (len(pairs),)
    assert np.isfinite(rating).all()
    assert scale[0] <= rating.min() and rating.max() <= scale[1]
    backwards = model.predict(pairs[::-1])[::-1]
    np.testing.assert_allclose(backwards, rating, atol=1e-5)
    parts = [model.predict(pairs[i : i + 3]) for i in range(0, len(pairs), 3)]
    np.testing.assert_allclose(np.concatenate(parts), rating, atol=1e-5)
    asked = pairs.assign(timestamp=10**9 + 5, rating=9.0)  # what is asked of need not be a rating
    known = model.predict(asked)
    assert np.isfinite(known).all() and scale[0] <= known.min() and known.max() <= scale[1]


def lists_are_the_best_of_the_scores(model: Recommender, train: pd.DataFrame) -> None:
    users = [*model.user_ids.tolist(), UNKNOWN]
    table = model.score_all(users)
    assert table.shape == (len(users), len(model.movie_ids)) and table.dtype == np.float32
    assert np.isfinite(table).all()
    np.testing.assert_allclose(model.score_all(users[::-1])[::-1], table, rtol=1e-5, atol=1e-5)
    for user, scores in [*zip(users, table, strict=True)][-3:]:
        score = pd.Series(scores, index=model.movie_ids)
        seen = train.loc[train["userId"] == user, "movieId"]
        for k, exclude_seen in ((2, True), (99, False)):
            shown = model.recommend(user, k=k, exclude_seen=exclude_seen)
            candidates = score.drop(seen) if exclude_seen else score
            assert len(shown) == min(k, len(candidates))
            assert shown["movieId"].is_unique and shown["score"].is_monotonic_decreasing
            assert set(shown["movieId"]) <= set(candidates.index)
            best = np.sort(candidates.to_numpy())[::-1][:k]
            np.testing.assert_allclose(shown["score"], best, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(
                shown["score"], score[shown["movieId"]], rtol=1e-5, atol=1e-5
            )


def explanations_add_up(model: Recommender, pairs: pd.DataFrame) -> None:
    for user, movie in pairs[["userId", "movieId"]][:6].itertuples(index=False):
        if model.name not in EXPLAINS:
            with pytest.raises(NotImplementedError, match=model.name):
                model.explain(user, movie)
            continue
        why = model.explain(user, movie)
        low, high = model.scale
        assert 0.0 <= why.user_weight <= 1.0 and 0.0 <= why.strength <= 1.0
        assert why.user_weight + why.movie_weight == pytest.approx(1.0, abs=1e-12)
        assert why.rating == pytest.approx(low + (high - low) * why.strength)
        assert sum(item.weight for item in why.history) <= 1.0 + 1e-6
        assert str(why).endswith(".")


@pytest.mark.parametrize("name", FORGETS)
@pytest.mark.parametrize("left", [0, 1])
@of_any_world
def test_a_history_that_is_taken_away_leaves_numbers(name: str, left: int, world: World) -> None:
    train = world.train
    model = fit(name, train, world)
    if model is None:
        return
    user = int(train["userId"].iloc[world.seed % len(train)])
    rated = train.loc[train["userId"] == user, "movieId"].tolist()
    served = model.revised(user, dict.fromkeys(rated[left:]))
    assert served.ratings_of(user)["movieId"].tolist() == rated[:left]
    rating, scores = served.predict(world.pairs), served.score_all(model.user_ids)
    assert np.isfinite(rating).all() and np.isfinite(scores).all()
    low, high = model.scale
    assert low <= rating.min() and rating.max() <= high
    assert set(rated[left:]) <= set(served.recommend(user, k=99)["movieId"])
    if name in EXPLAINS:
        explanations_add_up(served, world.pairs)
