"""The baselines against their definitions, by hand, by brute force and by other libraries."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics.pairwise import cosine_similarity

import dlcf
from dlcf.baselines import ranking
from dlcf.baselines.fm import FactorizationMachine, SideFactorizationMachine
from dlcf.baselines.knn import cosine_neighbors
from dlcf.baselines.ranking import ImplicitALS
from dlcf.metrics import rmse
from dlcf.models.base import Recommender
from dlcf.registry import load_model, make

EXTRA = 'pip install "dlcf[baselines]"'


def dense(ratings: pd.DataFrame) -> NDArray[np.float64]:
    """Users x movies, NaN where there is no rating."""
    return ratings.pivot_table("rating", "userId", "movieId").to_numpy(np.float64)


def swapped(ratings: pd.DataFrame) -> pd.DataFrame:
    """The same ratings with users and movies exchanged."""
    return ratings.rename(columns={"userId": "movieId", "movieId": "userId"})


# ----------------------------------------------------------------------------------- neighbours


def plain_similarity(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, int]:
    common = ~np.isnan(one) & ~np.isnan(other)
    x, y = one[common], other[common]
    return float(x @ y / np.sqrt((x @ x) * (y @ y))), int(common.sum())


@pytest.mark.parametrize("name", ["item-knn", "user-knn"])
def test_a_neighbourhood_predicts_what_a_plain_loop_does(
    name: str, toy_ratings: pd.DataFrame
) -> None:
    model = make(name, neighbors=6, shrinkage=20.0, damping=0.3, min_support=8).fit(toy_ratings)
    baseline = model._mean + model._user_bias[:, None] + model._movie_bias
    deviation = dense(toy_ratings) - baseline
    table = deviation.T if name == "item-knn" else deviation
    users, movies = np.nonzero(np.ones_like(deviation))
    expected = []
    for user, movie in zip(users, movies, strict=True):
        row, column = (movie, user) if name == "item-knn" else (user, movie)
        near = []
        for other in np.flatnonzero(~np.isnan(table[:, column])):
            correlation, n = plain_similarity(table[row], table[other])
            if other != row and n >= 8 and correlation > 0:
                near.append((correlation * (n - 1) / (n - 1 + 20.0), table[other, column]))
        near = sorted(near, reverse=True)[:6]
        shift = sum(s * d for s, d in near) / (0.3 + sum(s for s, _ in near))
        expected.append(np.clip(baseline[user, movie] + shift, 0.5, 5.0))
    pairs = pd.DataFrame({"userId": model.user_ids[users], "movieId": model.movie_ids[movies]})
    np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-10)


def test_cosines_are_those_of_another_library(toy_ratings: pd.DataFrame) -> None:
    rated = sparse.csr_matrix(~np.isnan(dense(toy_ratings)).T, dtype=np.float64)
    expected = cosine_similarity(rated)
    np.fill_diagonal(expected, 0.0)
    np.testing.assert_allclose(cosine_neighbors(rated, 60).toarray(), expected, atol=1e-6)
    few = cosine_neighbors(rated, 5)
    assert set(np.diff(few.indptr)) == {5}
    best = np.sort(expected, axis=1)[:, ::-1][:, :5]
    np.testing.assert_allclose(np.sort(few.toarray(), axis=1)[:, ::-1][:, :5], best, atol=1e-6)


@pytest.mark.parametrize("name", ["item-knn", "user-knn"])
def test_neighbourhood_rankings_are_sums_of_cosines(name: str, toy_ratings: pd.DataFrame) -> None:
    rated = (~np.isnan(dense(toy_ratings))).astype(np.float64)
    cosine = cosine_similarity(rated.T if name == "item-knn" else rated)
    np.fill_diagonal(cosine, 0.0)
    expected = rated @ cosine if name == "item-knn" else cosine @ rated
    model = make(name, ranking_neighbors=60).fit(toy_ratings)
    np.testing.assert_allclose(model.score_all(model.user_ids), expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Method expects CSR")
def test_cosine_neighbours_are_as_near_as_those_of_implicit(toy_ratings: pd.DataFrame) -> None:
    nearest = pytest.importorskip("implicit.nearest_neighbours", reason=EXTRA, exc_type=ImportError)
    model = make("item-knn", ranking_neighbors=12).fit(toy_ratings)
    other = nearest.CosineRecommender(K=13, num_threads=1)  # a movie is its own first neighbour
    other.fit(model._seen.astype(np.float64), show_progress=False)
    ours, theirs = (
        np.sort(table.toarray(), axis=1)[:, ::-1] for table in (model._neighbors, other.similarity)
    )
    np.testing.assert_allclose(ours[:, :12], theirs[:, 1:13], rtol=1e-5)


# ----------------------------------------------------------------------------- closed form, walks


@pytest.mark.parametrize("rating_weight", [0.0, 0.4])
@pytest.mark.parametrize("turn", [False, True], ids=["fewer users", "fewer movies"])
def test_ease_is_a_ridge_regression_without_the_movie_itself(
    turn: bool, rating_weight: float, toy_ratings: pd.DataFrame
) -> None:
    ratings = swapped(toy_ratings) if turn else toy_ratings
    model = make("ease", regularization=7.0, rating_weight=rating_weight).fit(ratings)
    table = dense(ratings)
    values = np.nan_to_num(1.0 + rating_weight * (table - ratings["rating"].mean()))
    n_movies = values.shape[1]
    weights = np.zeros((n_movies, n_movies))
    for movie in range(n_movies):
        others = np.delete(np.arange(n_movies), movie)
        x = values[:, others]
        gram = x.T @ x + 7.0 * np.eye(n_movies - 1)
        weights[others, movie] = np.linalg.solve(gram, x.T @ values[:, movie])
    np.testing.assert_allclose(model.score_all(model.user_ids), values @ weights, atol=2e-5)


def test_ease_refuses_a_system_that_is_too_large(
    toy_ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "_LARGEST_SYSTEM", 39)
    with pytest.raises(ValueError, match=r"= 40 rows.*24 \* 40\^2 bytes"):
        make("ease").fit(toy_ratings)


def test_rp3beta_on_a_graph_by_hand() -> None:
    """User 1 rated movies a and b, user 2 rated b and c, user 3 rated b."""
    ratings = pd.DataFrame(
        {"userId": [1, 1, 2, 2, 3], "movieId": [1, 2, 2, 3, 2], "rating": [3.0, 4.0, 5.0, 1.0, 2.0]}
    )
    model = make("rp3beta", alpha=1.0, beta=0.5, neighbors=9).fit(ratings)
    a_to_b = 1.0 * 0.5 / 3**0.5  # through user 1, with the discount of three raters
    b_to_a = b_to_c = (1 / 3) * 0.5
    expected = [[b_to_a, a_to_b, b_to_c], [b_to_a, a_to_b, b_to_c], [b_to_a, 0.0, b_to_c]]
    np.testing.assert_allclose(model.score_all([1, 2, 3]), expected, rtol=1e-6)
    squared = make("rp3beta", alpha=2.0, beta=0.0, neighbors=9).fit(ratings)
    np.testing.assert_allclose(squared.score_all([3])[0], [1 / 36, 0.0, 1 / 36], rtol=1e-6)


# ------------------------------------------------------------------------------------------ iALS


def ials_loss(model: ImplicitALS, positive: NDArray[np.bool_]) -> float:
    error = positive - model._user_factors @ model._movie_factors.T
    size = np.square(model._user_factors).sum() + np.square(model._movie_factors).sum()
    confidence = np.where(positive, model.alpha, 1.0)
    return float((confidence * error**2).sum() + model.regularization * size)


def test_ials_lowers_its_loss_and_ranks_as_implicit_does(toy_ratings: pd.DataFrame) -> None:
    als = pytest.importorskip("implicit.cpu.als", reason=EXTRA, exc_type=ImportError)
    positive = dense(toy_ratings) >= 3.5
    settings = {"factors": 5, "regularization": 0.5, "alpha": 3.0}
    losses = []
    for iterations in (1, 2, 4, 8):
        model = make("ials", **settings, iterations=iterations, positive_threshold=3.5)
        model.fit(toy_ratings)
        assert isinstance(model, ImplicitALS)
        losses.append(ials_loss(model, positive))
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.99 * losses[0]

    other = als.AlternatingLeastSquares(**settings, iterations=8, num_threads=1, random_state=0)
    matrix = sparse.csr_matrix(positive, dtype=np.float32)
    other.fit(matrix, show_progress=False)
    movies, scores = other.recommend(7, matrix[7], N=5, filter_already_liked_items=False)
    shown = model.recommend(int(model.user_ids[7]), k=5, exclude_seen=False)
    assert shown["movieId"].tolist() == model.movie_ids[movies].tolist()
    np.testing.assert_allclose(shown["score"], scores, rtol=1e-5)


# -------------------------------------------------------------------------- factorisation machines


@pytest.mark.parametrize("grouped", [True, False])
def test_a_factorisation_machine_predicts_what_myfm_does(
    grouped: bool, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    """All features by hand in one table; the same seed draws the same samples."""
    myfm = pytest.importorskip("myfm", reason=EXTRA, exc_type=ImportError)
    model = make("fm-side", rank=3, sweeps=14, burn_in=4, samples=10, grouped=grouped, seed=5)
    model.fit(toy_ratings, movies=toy_movies)
    rated = ~np.isnan(dense(toy_ratings))
    user_table = np.hstack([np.eye(40), rated / np.sqrt(rated.sum(1, keepdims=True))])
    genres = np.array([["Comedy" in names, "Drama" in names] for names in toy_movies["genres"]])
    genres = genres / np.sqrt(genres.sum(1, keepdims=True))
    by_movie = rated.T / np.sqrt(rated.T.sum(1, keepdims=True))
    years = toy_movies["year"].to_numpy(np.int64)[:, None] // 10 == np.arange(199, 201)
    movie_table = np.hstack([np.eye(60), by_movie, genres, years])
    days, day = np.unique(toy_ratings["timestamp"] // 86_400, return_inverse=True)
    data = model._interactions(toy_ratings)
    assert np.array_equal(model.movie_ids[data.movies], toy_ratings["movieId"])
    blocks = [
        myfm.RelationBlock(index, sparse.csr_matrix(table, dtype=np.float64))
        for index, table in [
            (data.users, user_table),
            (data.movies, movie_table),
            (day, np.eye(len(days))),
        ]
    ]
    machine = myfm.MyFMGibbsRegressor(3, random_seed=5)
    machine.fit(
        None,
        data.ratings.astype(np.float64),
        X_rel=blocks,
        n_iter=14,
        n_kept_samples=10,
        group_shapes=[40, 60, 60, 40, 2, 2, len(days)] if grouped else [204 + len(days)],
    )
    expected = np.clip(machine.predict(None, blocks), 0.5, 5.0)
    np.testing.assert_allclose(model.predict(toy_ratings), expected, atol=1e-5)


SHORT_RUN = {"rank": 3, "sweeps": 14, "burn_in": 4, "samples": 4}


@pytest.fixture
def with_side(toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame) -> SideFactorizationMachine:
    """Fitted without the ratings of three movies of the frame, and of one user."""
    pytest.importorskip("myfm", reason=EXTRA, exc_type=ImportError)
    held_out = toy_ratings["movieId"].isin(toy_movies["movieId"][:3]) | (toy_ratings["userId"] == 3)
    model = make("fm-side", **SHORT_RUN).fit(toy_ratings[~held_out], movies=toy_movies)
    assert isinstance(model, SideFactorizationMachine)
    return model


def test_without_a_time_the_day_is_that_of_the_users_last_rating(
    with_side: SideFactorizationMachine, toy_ratings: pd.DataFrame
) -> None:
    pairs = toy_ratings[toy_ratings["userId"].isin(with_side.user_ids)]
    known = pairs[pairs["movieId"].isin(with_side.movie_ids)]
    last = pairs["userId"].map(known.groupby("userId")["timestamp"].max())
    untimed = with_side.predict(pairs.drop(columns="timestamp"))
    assert np.array_equal(untimed, with_side.predict(pairs.assign(timestamp=last)))
    scores = with_side.score_all(with_side.user_ids[:4])
    for user, row in zip(with_side.user_ids[:4], scores, strict=True):
        of_user = pd.DataFrame({"userId": user, "movieId": with_side.movie_ids})
        np.testing.assert_allclose(with_side.predict(of_user), row.clip(0.5, 5), atol=1e-5)
    # Days without a rating are all alike, and are like no other.
    early, late = (with_side.predict(pairs.assign(timestamp=t)) for t in (0, 2_000_000_000))
    assert np.array_equal(early, late) and np.abs(early - untimed).max() > 0.01


def test_new_movies_and_users_are_predicted_by_their_features(
    with_side: SideFactorizationMachine, toy_movies: pd.DataFrame, tmp_path: Path
) -> None:
    """By the formula, from the samples' means of what the features of the pair add."""
    user, new = int(with_side.user_ids[0]), toy_movies["movieId"][:3].to_numpy()
    pairs = pd.DataFrame({"userId": user, "movieId": new, "timestamp": 0})
    place = len(with_side.movie_ids) + np.arange(3)
    c, a = with_side._biases, with_side._vectors
    expected = (
        with_side._intercept + c["user"][0] + c["movie"][place] + a["movie"][place] @ a["user"][0]
    )
    np.testing.assert_allclose(with_side.predict(pairs), expected, atol=1e-6)
    assert len(set(a["movie"][place].sum(axis=1))) > 1  # not all of the same genres and year
    # A new user has no features: what is left is the movie.
    movies = np.append(with_side.movie_ids[:2], new[0])
    alone = pd.DataFrame({"userId": 999_999, "movieId": movies, "timestamp": 0})
    expected = with_side._intercept + c["movie"][[0, 1, place[0]]]
    np.testing.assert_allclose(with_side.predict(alone), expected, atol=1e-6)
    both = pd.concat([pairs, alone])
    with_side.save(tmp_path / "model")
    assert np.array_equal(load_model(tmp_path / "model").predict(both), with_side.predict(both))


def test_side_information_may_be_missing(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    pytest.importorskip("myfm", reason=EXTRA, exc_type=ImportError)
    none = toy_movies.assign(year=pd.array([pd.NA] * 60, dtype="Int16"), genres=[[]] * 60)
    for grouped in (True, False):
        empty, bare = (
            make("fm-side", **SHORT_RUN, grouped=grouped).fit(toy_ratings, movies=frame)
            for frame in (none, None)
        )
        assert np.array_equal(empty.predict(toy_ratings), bare.predict(toy_ratings))
    untimed = toy_ratings.drop(columns="timestamp")
    side, implicit = (make(name, **SHORT_RUN).fit(untimed) for name in ("fm-side", "fm-implicit"))
    assert isinstance(side, SideFactorizationMachine)
    assert np.array_equal(side.predict(toy_ratings), implicit.predict(toy_ratings))


def test_thinner_samples_predict_nearly_the_same(toy_ratings: pd.DataFrame) -> None:
    pytest.importorskip("myfm", reason=EXTRA, exc_type=ImportError)
    every, some = (
        make("fm", rank=3, sweeps=220, samples=n).fit(toy_ratings).predict(toy_ratings)
        for n in (200, 50)
    )
    assert rmse(every, some) < 0.03


def test_a_saved_machine_needs_no_other_library(
    toy_ratings: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("myfm", reason=EXTRA, exc_type=ImportError)
    model = make("fm", rank=3, sweeps=14, burn_in=4).fit(toy_ratings)
    folder = model.save(tmp_path / "fm")
    monkeypatch.setitem(sys.modules, "myfm", None)
    loaded = load_model(folder)
    assert isinstance(loaded, FactorizationMachine)
    assert np.array_equal(loaded.predict(toy_ratings), model.predict(toy_ratings))


@pytest.mark.parametrize(("name", "library"), [("fm", "myfm"), ("ials", "implicit.cpu.als")])
def test_a_missing_library_is_named_with_its_extra(
    name: str, library: str, toy_ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r'pip install "dlcf\[baselines\]"'):
        make(name).fit(toy_ratings)


def test_settings_that_make_no_sense_are_refused(toy_ratings: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="burn_in must be less than sweeps"):
        make("fm", sweeps=20, burn_in=20).fit(toy_ratings)
    with pytest.raises(ValueError, match="neighbors is 0"):
        make("user-knn", neighbors=0).fit(toy_ratings)


# -------------------------------------------------------------------------------------- real data


def test_a_short_run_with_side_information_on_the_real_data(ratings: pd.DataFrame) -> None:
    """A few sweeps already do better than any model without side information."""
    pytest.importorskip("myfm", reason=EXTRA, exc_type=ImportError)
    train, test = dlcf.split(ratings, "random", seed=0)
    model = make("fm-side", sweeps=40, samples=20, seed=0)
    model.fit(train, movies=dlcf.load_movies("ml-latest-small"))
    assert 0.79 < rmse(test["rating"], model.predict(test)) < 0.815


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("item-knn", 0.17, 0.2), ("ials", 0.28, 0.32), ("ease", 0.31, 0.34), ("rp3beta", 0.23, 0.26)],
)
def test_rankings_of_the_real_data(
    name: str, low: float, high: float, ratings: pd.DataFrame
) -> None:
    if name == "ials":
        pytest.importorskip("implicit", reason=EXTRA, exc_type=ImportError)
    train, test = dlcf.split(ratings, "random", seed=0)
    model: Recommender = make(name, seed=0).fit(train)
    assert low < dlcf.evaluate(model, train, test)["ndcg@10"] < high
