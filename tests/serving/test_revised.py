"""Models that serve a changed history of a user."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_models import HISTORY_MODELS, history

from dlcf.models.base import Recommender
from dlcf.registry import make


@pytest.fixture(scope="module")
def fitted(toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame) -> dict[str, Recommender]:
    """Models that read a user's history, on the toy world."""
    return {
        name: make(name, **settings).fit(toy_ratings, movies=toy_movies)
        for name, settings in HISTORY_MODELS.items()
    }


@pytest.fixture(params=HISTORY_MODELS)
def reader(request: pytest.FixtureRequest, fitted: dict[str, Recommender]) -> Recommender:
    return fitted[request.param]


class TestRevised:
    USER, OTHER = 13, 23

    def everything(self, model: Recommender, user: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = pd.DataFrame({"userId": user, "movieId": model.movie_ids})
        return model.predict(pairs), model.score_all([user])[0]

    def test_knows_the_ratings(self, reader: Recommender, toy_ratings: pd.DataFrame) -> None:
        known = reader.ratings_of(self.USER)
        rated = history(toy_ratings, self.USER)
        assert known["movieId"].tolist() == rated["movieId"].tolist()
        np.testing.assert_array_equal(known["rating"], rated["rating"])
        assert reader.ratings_of(-1).empty

    def test_no_change_no_difference(self, reader: Recommender, toy_ratings: pd.DataFrame) -> None:
        rated = history(toy_ratings, self.USER)
        same = reader.revised(self.USER, dict(zip(rated["movieId"], rated["rating"], strict=True)))
        for user in (self.USER, self.OTHER):
            for new, old in zip(
                self.everything(same, user), self.everything(reader, user), strict=True
            ):
                np.testing.assert_allclose(new, old, atol=2e-5)

    def test_a_removed_rating_is_not_seen(
        self, reader: Recommender, toy_ratings: pd.DataFrame
    ) -> None:
        gone, changed, *_ = history(toy_ratings, self.USER)["movieId"]
        before = self.everything(reader, self.USER)
        other = self.everything(reader, self.OTHER)
        served = reader.revised(self.USER, {gone: None, changed: 0.5})
        known = served.ratings_of(self.USER).set_index("movieId")["rating"]
        assert gone not in known.index and known[changed] == 0.5
        assert gone in set(served.recommend(self.USER, k=1000)["movieId"])
        assert any(
            np.abs(new - old).max() > 1e-4
            for new, old in zip(self.everything(served, self.USER), before, strict=True)
        )
        # The model itself is left as it was, and revisions compose.
        for now, then in zip(self.everything(reader, self.USER), before, strict=True):
            np.testing.assert_array_equal(now, then)
        twice = reader.revised(self.USER, {gone: None}).revised(self.USER, {changed: 0.5})
        for new, old in zip(
            self.everything(twice, self.USER), self.everything(served, self.USER), strict=True
        ):
            np.testing.assert_allclose(new, old, atol=2e-5)
        if reader.name != "deepcf-plus":  # whose evidence holds what others think
            for new, old in zip(self.everything(served, self.OTHER), other, strict=True):
                np.testing.assert_allclose(new, old, atol=2e-5)

    def test_an_empty_history_is_served(
        self, reader: Recommender, toy_ratings: pd.DataFrame
    ) -> None:
        rated = history(toy_ratings, self.USER)["movieId"]
        served = reader.revised(self.USER, dict.fromkeys(rated))
        rating, score = self.everything(served, self.USER)
        assert np.isfinite(rating).all() and np.isfinite(score).all()
        assert served.ratings_of(self.USER).empty

    def test_ease_is_linear_in_the_history(
        self, fitted: dict[str, Recommender], toy_ratings: pd.DataFrame
    ) -> None:
        model = fitted["ease"]
        rated = history(toy_ratings, self.USER)["movieId"].tolist()
        change = model.score_all([self.USER]) - model.revised(
            self.USER, {rated[0]: None}
        ).score_all([self.USER])
        position = np.flatnonzero(model.movie_ids == rated[0])
        value = model._matrix()[np.flatnonzero(model.user_ids == self.USER)[0], position[0]]  # type: ignore[attr-defined]
        expected = value * model.item_weights(position)  # type: ignore[attr-defined]
        np.testing.assert_allclose(change, expected, atol=1e-5)

    def test_ease_weights_solve_the_problem_either_way(self) -> None:
        """``B = I - P / diag(P)``, whether there are fewer users or fewer movies."""
        generator = np.random.default_rng(0)
        for n_users, n_movies in ((12, 7), (7, 12)):
            user, movie = np.nonzero(generator.random((n_users, n_movies)) < 0.6)
            rating = generator.integers(1, 6, len(user)).astype(np.float32)
            frame = pd.DataFrame({"userId": user, "movieId": movie, "rating": rating})
            model = make("ease", regularization=3.0).fit(frame)
            x = model._matrix().toarray().astype(float)  # type: ignore[attr-defined]
            p = np.linalg.inv(x.T @ x + 3.0 * np.eye(x.shape[1]))
            expected = np.eye(x.shape[1]) - p / np.diag(p)
            weights = model.item_weights(np.arange(x.shape[1]))  # type: ignore[attr-defined]
            np.testing.assert_allclose(weights, expected, atol=1e-5)

    def test_refuses_what_it_cannot_do(
        self, fitted: dict[str, Recommender], toy_ratings: pd.DataFrame, tmp_path: Path
    ) -> None:
        model = fitted["item-knn"]
        movie = int(history(toy_ratings, self.USER)["movieId"].iloc[0])
        with pytest.raises(ValueError, match="no rating in train"):
            model.revised(-1, {movie: None})
        with pytest.raises(ValueError, match="did not rate"):
            model.revised(self.USER, {-5: None})
        with pytest.raises(ValueError, match="off the scale"):
            model.revised(self.USER, {movie: 7.0})
        with pytest.raises(ValueError, match="save what it came from"):
            model.revised(self.USER, {movie: None}).save(tmp_path / "model")
        for name in ("bias", "user-knn"):
            with pytest.raises(NotImplementedError, match=name):
                make(name).fit(toy_ratings).revised(self.USER, {movie: None})
