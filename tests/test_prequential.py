"""Each rating from what came before it: no more, no less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from toy_models import TINY

from dlcf.evaluation import prequential
from dlcf.models.base import Recommender
from dlcf.registry import make

DAY = 86_400


@pytest.fixture
def world(toy_ratings: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The toy ratings in the order of their times, the last 40 of them an hour apart."""
    ordered = toy_ratings.sort_values("timestamp", ignore_index=True)
    past, future = ordered.iloc[:-40], ordered.iloc[-40:]
    start = int(past["timestamp"].max()) + DAY
    return past, future.assign(timestamp=start + 3600 * np.arange(40))


def test_each_is_predicted_from_all_that_came_before(
    world: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    past, future = world
    found = prequential(make("bias"), past, future.sample(frac=1.0, random_state=1), every=None)
    assert found.index.tolist() == future.index.tolist()
    model = make("bias").fit(past)
    for place in range(len(future)):
        row = future.iloc[[place]]
        assert found["predicted"].iloc[place] == model.predict(row)[0], place
        model = model.observe(row)


def test_it_is_trained_again_at_the_end_of_every_period(
    world: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    past, future = world
    found = prequential(make("mf", **TINY["mf"], seed=3), past, future, every="20h")
    for first, last in ((0, 20), (20, 40)):  # mf cannot observe, so it stays within a period
        known = pd.concat([past, future.iloc[:first]])
        model = make("mf", **TINY["mf"], seed=3).fit(known)
        expected = model.predict(future.iloc[first:last])
        assert found["predicted"].iloc[first:last].tolist() == expected.tolist()


def test_no_rating_is_seen_before_its_time(world: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    past, future = world
    other = future.copy()
    other.iloc[15, other.columns.get_loc("rating")] = 6.0 - other["rating"].iloc[15] - 0.5
    assert not np.array_equal(other["rating"], future["rating"])
    found, changed = (
        prequential(make("bias"), past, f, every="30h")["predicted"] for f in (future, other)
    )
    assert found.iloc[:16].tolist() == changed.iloc[:16].tolist()
    assert found.iloc[16:].tolist() != changed.iloc[16:].tolist()


def test_ratings_of_one_step_do_not_see_each_other(
    world: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    past, future = world
    user = int(past["userId"].iloc[0])
    new = np.setdiff1d(past["movieId"], past.loc[past["userId"] == user, "movieId"])[:3]
    page = pd.DataFrame({"userId": user, "movieId": new, "rating": np.float32(5.0)})
    start = int(future["timestamp"].min())
    together = prequential(make("bias"), past, page.assign(timestamp=start))
    assert together["predicted"].tolist() == make("bias").fit(past).predict(page).tolist()
    count = int((past["userId"] == user).sum())
    assert together["known"].tolist() == [count] * 3
    apart = page.assign(timestamp=start + 30 * np.arange(3))
    one_by_one = prequential(make("bias"), past, apart)
    assert one_by_one["known"].tolist() == [count, count + 1, count + 2]
    assert one_by_one["predicted"].iloc[1] > together["predicted"].iloc[1]
    by_minutes = prequential(make("bias"), past, apart, step="1min")
    assert by_minutes["known"].tolist() == [count, count, count + 2]
    # A step ends where a period does: the model is trained again on what came before.
    in_periods = prequential(make("bias"), past, apart, every="30s", step="1min")
    assert in_periods["known"].tolist() == [count, count + 1, count + 2]


def test_steps_are_counted_from_the_first_rating(
    world: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    """Not from the full minute: ratings at 20, 50 and 80 seconds past it are two in the first."""
    past, _ = world
    user, start = 2, 60 * (int(past["timestamp"].max()) // 60 + 1) + 20
    page = pd.DataFrame({"userId": user, "movieId": [2, 9, 16], "rating": np.float32(5.0)})
    page["timestamp"] = start + 30 * np.arange(3)
    found = prequential(make("bias"), past, page, step="1min")
    assert found["known"].tolist() == [0, 0, 2]


def test_places_are_those_of_the_list_at_that_moment(
    world: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    past, future = world
    unknown = future.iloc[[0]].assign(movieId=999, timestamp=future["timestamp"].max() + 1)
    future = pd.concat([future, unknown])
    found = prequential(make("popular"), past, future, None, "1s", lists=True)
    known = past
    for i, row in found.iterrows():
        list_ = make("popular").fit(known).recommend(row["userId"], k=1000)["movieId"].tolist()
        there = row["movieId"] in list_
        assert row["place"] == (1 + list_.index(row["movieId"]) if there else np.inf), i
        known = pd.concat([known, future.loc[[i]]])
    assert (found["place"] == np.inf).sum() == 1
    assert "place" not in prequential(make("popular"), past, future)


def test_new_users_count_from_zero(world: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    past, future = world
    future = future.assign(userId=[2, 4] * 20)  # users that the past does not hold
    future = future.drop_duplicates(["userId", "movieId"])
    found = prequential(make("bias"), past, future)
    assert found.groupby("userId")["known"].first().tolist() == [0, 0]
    assert (found.groupby("userId")["known"].diff().dropna() == 1).all()


def test_wrong_frames_are_refused(world: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    past, future = world
    with pytest.raises(ValueError, match="future has no column timestamp"):
        prequential(make("bias"), past, future.drop(columns="timestamp"))
    with pytest.raises(ValueError, match="past has no column timestamp"):
        prequential(make("bias"), past.drop(columns="timestamp"), future)
    last = past["timestamp"].max()
    for frames in ((future, past), (past, future.assign(timestamp=last))):
        with pytest.raises(ValueError, match="not before future"):
            prequential(make("bias"), *frames)
    with pytest.raises(ValueError, match=r"^past is empty"):
        prequential(make("bias"), past.iloc[:0], future)
    with pytest.raises(ValueError, match=r"^future is empty"):
        prequential(make("bias"), past, future.iloc[:0])


@pytest.mark.parametrize("wrong", ["-20h", "0D", "NaT", "soon", ""])
def test_durations_are_above_zero(wrong: str, world: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    for name in ("every", "step"):
        with pytest.raises(ValueError, match=f"{name} is '{wrong}'; give a duration above 0"):
            prequential(make("bias"), *world, **{name: wrong})


def test_the_index_of_a_frame_means_nothing(world: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    expected = prequential(make("bias"), *world, every="20h")
    zeros = [frame.set_axis([0] * len(frame)) for frame in world]
    named = [frame.set_index("userId", drop=False) for frame in world]
    for frames in (zeros, named):
        found = prequential(make("bias"), *frames, every="20h")
        assert found["predicted"].tolist() == expected["predicted"].tolist()
        assert found["known"].tolist() == expected["known"].tolist()


def test_what_comes_back_is_the_future_with_two_columns_more(
    world: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    past, future = world
    found = prequential(make("bias"), past, future)
    assert found[future.columns].equals(future)
    assert found.columns.tolist() == [*future.columns, "predicted", "known"]
    assert found["known"].dtype == np.int64


def test_every_training_is_given_the_movies(
    world: tuple[pd.DataFrame, pd.DataFrame], toy_movies: pd.DataFrame
) -> None:
    given = []

    class Noting(Recommender):
        name = "noting"

        def _fit(self, data: Any, validation: Any, movies: Any) -> None:
            given.append(movies)

        def _predict(self, users: Any, movies: Any, timestamps: Any) -> Any:
            return np.full(len(users), 3.0)

    prequential(Noting(), *world, every="20h", movies=toy_movies)
    assert [movies["movieId"].tolist() for movies in given] == 2 * [toy_movies["movieId"].tolist()]
