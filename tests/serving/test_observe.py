"""Models that take in ratings without training: who is known, what stays, what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from toy_models import PLUS, TINY

from dlcf.models.base import USER_DAMPING, Recommender
from dlcf.registry import available, load_model, make

OBSERVES = ("global-mean", "bias", "popular", "item-knn", "user-knn", "ease", "rp3beta", "ials")
OBSERVES += ("deepcf-plus",)
NEW_USER, NEW_MOVIE = 2, 4  # ids below and between those of the toy world
LATER = 1_600_000_000


def fitted(name: str, train: pd.DataFrame, movies: pd.DataFrame) -> Recommender:
    if name == "ials":
        pytest.importorskip("implicit", exc_type=ImportError)
    settings: dict[str, Any] = PLUS if name == "deepcf-plus" else TINY.get(name, {})
    return make(name, **settings).fit(train, movies=movies)


def some_of(user: int, train: pd.DataFrame) -> pd.DataFrame:
    """Twelve ratings by a user of movies that are known, and of one that is not."""
    rated = train.drop_duplicates("movieId").sort_values("movieId").head(12)
    stars = np.tile([5.0, 1.0, 4.5, 0.5], 3).astype(np.float32)
    new = rated.assign(userId=user, rating=stars, timestamp=LATER + np.arange(12))
    last = {"userId": [user], "movieId": [NEW_MOVIE], "rating": [5.0], "timestamp": [LATER + 99]}
    return pd.concat([new, pd.DataFrame(last)], ignore_index=True).astype({"rating": np.float32})


def answers(model: Recommender, train: pd.DataFrame) -> list[Any]:
    users = np.unique(train["userId"])[:5]
    return [model.predict(train.head(50)), model.score_all(users), model.movie_counts.copy()]


@pytest.mark.parametrize("name", OBSERVES)
def test_a_new_user_is_known_and_nothing_else_changes_place(
    name: str, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    model = fitted(name, toy_ratings, toy_movies)
    before = answers(model, toy_ratings)
    new = some_of(NEW_USER, toy_ratings)
    served = model.observe(new.sample(frac=1.0, random_state=3))  # in any order
    for kept, now in zip(before, answers(model, toy_ratings), strict=True):
        assert np.array_equal(kept, now)  # the model that was asked is as it was
    assert NEW_USER in served.user_ids and NEW_MOVIE in served.movie_ids
    assert np.array_equal(served.user_ids, np.union1d(model.user_ids, [NEW_USER]))
    count = dict(zip(served.movie_ids, served.movie_counts, strict=True))
    assert count[NEW_MOVIE] == 1
    assert served.movie_counts.sum() == model.movie_counts.sum() + len(new)
    listed = served.recommend(NEW_USER, k=200)["movieId"]
    assert len(listed) > 0 and not set(listed) & set(new["movieId"])
    assert served.recommend(NEW_USER, k=200, exclude_seen=False)["movieId"].nunique() == len(count)
    assert served.title(NEW_MOVIE) is None and served.title(int(model.movie_ids[0])) is not None
    unseen = np.setdiff1d(served.movie_ids, new["movieId"])
    pairs = pd.DataFrame({"userId": NEW_USER, "movieId": unseen})
    assert np.isfinite(served.predict(pairs)).all()


@pytest.mark.parametrize("name", ["item-knn", "user-knn", "ease", "rp3beta", "ials", "deepcf-plus"])
def test_what_a_new_user_likes_decides_the_list(
    name: str, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    model = fitted(name, toy_ratings, toy_movies)
    movies = model.movie_ids[np.argsort(-model.movie_counts)]
    scores = []
    for liked in (movies[0:8:2], movies[1:9:2]):
        frame = {"userId": NEW_USER, "movieId": liked, "rating": np.float32(5.0)}
        new = pd.DataFrame(frame).assign(timestamp=LATER)
        scores.append(model.observe(new).score_all([NEW_USER])[0])
    assert not np.allclose(*scores)


@pytest.mark.parametrize("name", ["ease", "deepcf-plus"])
def test_a_rating_that_was_taken_away_and_comes_back_changes_nothing(
    name: str, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    """What is served depends on which ratings are known, not on when they became known."""
    model = fitted(name, toy_ratings, toy_movies)
    lost = toy_ratings[toy_ratings["userId"] == toy_ratings["userId"].iloc[0]].iloc[[2]]
    user, movie = int(lost["userId"].iloc[0]), int(lost["movieId"].iloc[0])
    without = model.revised(user, {movie: None})
    assert not np.allclose(without.score_all([user]), model.score_all([user]))
    back = without.observe(lost)
    np.testing.assert_allclose(back.score_all([user]), model.score_all([user]), atol=2e-5)
    if name == "deepcf-plus":
        others = np.setdiff1d(model.movie_ids, toy_ratings.query("userId == @user")["movieId"])
        pairs = pd.DataFrame({"userId": user, "movieId": others, "timestamp": LATER})
        np.testing.assert_allclose(back.predict(pairs), model.predict(pairs), atol=1e-5)


def test_biases_go_on_as_damped_means(toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame) -> None:
    model = fitted("bias", toy_ratings, toy_movies)
    new = some_of(NEW_USER, toy_ratings)
    served = model.observe(new)
    known = np.searchsorted(model.movie_ids, new["movieId"].iloc[:12])
    left = new["rating"].iloc[:12] - model._mean - model._movie_bias[known]
    total = left.sum() + (new["rating"].iloc[12] - model._mean)  # a new movie has no bias
    user = int(np.flatnonzero(served.user_ids == NEW_USER)[0])
    assert served._user_bias[user] == pytest.approx(total / (13 + USER_DAMPING))
    movie, n = known[0], model.movie_counts[known[0]]
    expected = model._movie_bias[movie] * (n + 3) + new["rating"].iloc[0] - model._mean
    place = int(np.flatnonzero(served.movie_ids == model.movie_ids[movie])[0])
    assert served._movie_bias[place] == pytest.approx(expected / (n + 4))
    twice = model.observe(new.iloc[:5]).observe(new.iloc[5:])
    assert twice.movie_counts.tolist() == served.movie_counts.tolist()


def test_ease_scores_a_new_user_by_the_weights_that_it_has(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    model: Any = fitted("ease", toy_ratings, toy_movies)
    new = some_of(NEW_USER, toy_ratings).iloc[:12]
    columns = np.searchsorted(model.movie_ids, new["movieId"])
    weights = 1 + model.rating_weight * (new["rating"].to_numpy(float) - model._mean)
    expected = weights @ model.item_weights(columns)
    np.testing.assert_allclose(model.observe(new).score_all([NEW_USER])[0], expected, atol=1e-5)


def test_ials_folds_a_user_in_as_training_would(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    """At the vector that is found, the gradient of the objective over all movies is zero."""
    model: Any = fitted("ials", toy_ratings, toy_movies)
    new = some_of(NEW_USER, toy_ratings).iloc[:12]
    served: Any = model.observe(new)
    vector = served._user_factors[np.flatnonzero(served.user_ids == NEW_USER)[0]].astype(float)
    movies = served._movie_factors.astype(float)
    liked = np.isin(served.movie_ids, new.loc[new["rating"] >= 4.0, "movieId"])
    weight = np.where(liked, model.alpha, 1.0)
    gradient = movies.T @ (weight * (movies @ vector - liked)) + model.regularization * vector
    assert np.abs(gradient).max() < 1e-3 < np.abs(vector).max()


@pytest.mark.parametrize("name", sorted(set(available()) - set(OBSERVES)))
def test_what_only_training_can_take_in_is_said(
    name: str, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    pytest.importorskip("myfm", exc_type=ImportError) if name.startswith("fm") else None
    model = fitted(name, toy_ratings, toy_movies)
    with pytest.raises(NotImplementedError, match=f"{name} knows ratings only through training"):
        model.observe(some_of(NEW_USER, toy_ratings))


def test_wrong_ratings_are_refused(toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame) -> None:
    with pytest.raises(RuntimeError, match="not fitted yet"):
        make("bias").observe(toy_ratings)
    model = fitted("bias", toy_ratings, toy_movies)
    known = toy_ratings.iloc[[7]]
    user, movie = known[["userId", "movieId"]].iloc[0].astype(int)
    with pytest.raises(ValueError, match=f"user {user} rated movie {movie} before"):
        model.observe(known)
    for wrong in (known.assign(rating=9.0), known.iloc[:0], known.drop(columns="rating")):
        with pytest.raises(ValueError, match="ratings"):
            model.observe(wrong)


@pytest.mark.parametrize("name", OBSERVES)
def test_it_is_saved_or_refuses(
    name: str, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame, tmp_path: Path
) -> None:
    served = fitted(name, toy_ratings, toy_movies).observe(some_of(NEW_USER, toy_ratings))
    if name in ("item-knn", "ease"):  # what they learned and what they serve are two things
        with pytest.raises(ValueError, match="serves ratings that it was not fitted on"):
            served.save(tmp_path / "m")
        return
    loaded = load_model(served.save(tmp_path / "m"))
    pairs = some_of(NEW_USER, toy_ratings)[["userId", "movieId", "timestamp"]]
    np.testing.assert_allclose(loaded.predict(pairs), served.predict(pairs), atol=1e-6)
    scores = (model.score_all([NEW_USER]) for model in (loaded, served))
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize("name", ["item-knn", "ease", "deepcf-plus"])
@pytest.mark.parametrize("how", ["observe", "revised"])
def test_fitting_again_forgets_what_was_observed_or_revised(
    name: str, how: str, toy_ratings: pd.DataFrame, tmp_path: Path
) -> None:
    """It is the model of a fresh fit, and can be saved."""
    settings = PLUS if name == "deepcf-plus" else {}
    model = make(name, **settings).fit(toy_ratings)
    if how == "observe":
        new = toy_ratings.drop_duplicates("movieId").head(8)
        served = model.observe(new.assign(userId=2, timestamp=1_600_000_000))
    else:
        user, movie = toy_ratings[["userId", "movieId"]].iloc[0].tolist()
        served = model.revised(user, {movie: None})
    part = toy_ratings[toy_ratings["userId"] > 100]
    expected = make(name, **settings).fit(part)
    again = served.fit(part)
    assert np.array_equal(again.predict(part), expected.predict(part))
    assert np.array_equal(again.score_all(part["userId"]), expected.score_all(part["userId"]))
    again.save(tmp_path / "model")


def test_a_model_of_times_observes_no_ratings_without(toy_ratings: pd.DataFrame) -> None:
    model = make("deepcf-plus", **PLUS).fit(toy_ratings)
    new = toy_ratings.drop_duplicates("movieId").head(3).assign(userId=2)
    with pytest.raises(ValueError, match="have no times, which this deepcf-plus learned from"):
        model.observe(new.drop(columns="timestamp"))
