"""Synthetic ratings keep the marginals of real ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import dlcf
from bench.synthetic import in_sessions, synthetic_ratings
from dlcf.ratings import check_ratings, fingerprint


@pytest.fixture(scope="module")
def world() -> pd.DataFrame:
    """Ratings of 300 users and 500 movies with long tails and five levels."""
    generator = np.random.default_rng(5)
    activity = np.maximum(20, np.sort(generator.pareto(1.5, 300) * 20).astype(int)).clip(max=150)
    weight = 1.0 / (np.arange(500) + 3.0)
    rows = [
        (user, movie)
        for user, n in enumerate(activity)
        for movie in generator.choice(500, n, replace=False, p=weight / weight.sum())
    ]
    user, movie = np.array(rows).T
    rating = generator.choice([2.0, 3.0, 4.0, 4.5, 5.0], len(user), p=[0.1, 0.2, 0.4, 0.1, 0.2])
    return pd.DataFrame({"userId": user, "movieId": movie, "rating": rating.astype(np.float32)})


class TestSynthetic:
    def test_it_holds_as_many_distinct_pairs_as_asked(self, world: pd.DataFrame) -> None:
        made = synthetic_ratings(50_000, world)
        assert len(made) == 50_000
        assert check_ratings(made, require_timestamp=True) is made
        assert not made.duplicated(["userId", "movieId"]).any()

    def test_users_are_as_active_and_levels_as_frequent(self, world: pd.DataFrame) -> None:
        made = synthetic_ratings(100_000, world, seed=1)
        real, drawn = (frame["userId"].value_counts().to_numpy() for frame in (world, made))
        assert abs(drawn.mean() / real.mean() - 1) < 0.01
        grid = np.linspace(0.02, 0.98, 25)
        np.testing.assert_allclose(np.quantile(drawn, grid), np.quantile(real, grid), rtol=0.05)
        share = made["rating"].value_counts(normalize=True).sort_index()
        np.testing.assert_allclose(
            share, world["rating"].value_counts(normalize=True).sort_index(), atol=0.01
        )

    def test_few_movies_hold_as_large_a_share(self, world: pd.DataFrame) -> None:
        made = synthetic_ratings(len(world), world, seed=2)

        def held_by_top_tenth(frame: pd.DataFrame) -> float:
            counts = frame["movieId"].value_counts().to_numpy()
            return counts[: len(counts) // 10].sum() / counts.sum()

        assert held_by_top_tenth(made) == pytest.approx(held_by_top_tenth(world), abs=0.02)

    def test_there_is_something_to_learn(self, world: pd.DataFrame) -> None:
        """Biases explain part of the variance, as they do of real ratings."""
        train, test = dlcf.split(synthetic_ratings(100_000, world, seed=3))
        error = {
            name: dlcf.evaluate(dlcf.make(name).fit(train), train, test, "rated")["rmse"]
            for name in ("global-mean", "bias")
        }
        assert error["bias"] < 0.93 * error["global-mean"]

    def test_the_seed_decides(self, world: pd.DataFrame) -> None:
        first, again, other = (fingerprint(synthetic_ratings(20_000, world, s)) for s in (4, 4, 5))
        assert first == again != other

    def test_parts_do_not_show(self, world: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bench.synthetic.RATINGS_AT_ONCE", 3_000)
        made = synthetic_ratings(20_000, world, seed=6)
        assert check_ratings(made) is made and len(made) == 20_000

    def test_too_few_are_refused(self, world: pd.DataFrame) -> None:
        with pytest.raises(ValueError, match="n_ratings is 100"):
            synthetic_ratings(100, world)


def test_ratings_are_put_in_sessions(world: pd.DataFrame) -> None:
    made = synthetic_ratings(50_000, world)
    timed = in_sessions(made)
    assert timed.drop(columns="timestamp").equals(made.drop(columns="timestamp"))
    assert fingerprint(timed) == fingerprint(in_sessions(made)) != fingerprint(in_sessions(made, 1))
    in_order = timed.sort_values(["userId", "timestamp"])
    gap = in_order["timestamp"].diff()[in_order["userId"].diff() == 0]
    assert 15 < gap[gap < 600].mean() < 25
    assert 30 < 1 / (gap > 600).mean() < 50
    # A user's first rating of a session may be of any movie.
    assert abs(in_order.groupby("userId")["movieId"].first().corr(in_order["userId"])) < 0.2
    assert timed["timestamp"].min() >= made["timestamp"].min() - 30 * 86_400
