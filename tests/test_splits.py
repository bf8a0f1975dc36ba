"""Splits are disjoint, complete, deterministic, and cut where they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcf.analysis.cold import describe_split
from dlcf.splits import SPLITS, split, train_validation_test


def frame(rows: list[tuple[int, int, int]]) -> pd.DataFrame:
    """Ratings of 3 stars from (user, movie, time)."""
    table = pd.DataFrame(rows, columns=["userId", "movieId", "timestamp"], dtype="int64")
    return table.assign(rating=np.float32(3.0))


def pairs(ratings: pd.DataFrame) -> set[tuple[int, int]]:
    return set(zip(ratings["userId"], ratings["movieId"], strict=True))


@pytest.mark.parametrize("how", SPLITS)
def test_every_rating_is_on_exactly_one_side(toy_ratings: pd.DataFrame, how: str) -> None:
    train, validation, test = train_validation_test(toy_ratings, how, seed=3)
    assert len(train) + len(validation) + len(test) == len(toy_ratings)
    assert pairs(train) | pairs(validation) | pairs(test) == pairs(toy_ratings)
    assert test.equals(split(toy_ratings, how, seed=3)[1])


@pytest.mark.parametrize("how", SPLITS)
def test_the_order_of_the_rows_does_not_matter(toy_ratings: pd.DataFrame, how: str) -> None:
    shuffled = toy_ratings.sample(frac=1.0, random_state=0)
    assert pairs(split(toy_ratings, how, seed=5)[1]) == pairs(split(shuffled, how, seed=5)[1])


def test_the_seed_decides_the_random_split(toy_ratings: pd.DataFrame) -> None:
    first, again, other = (pairs(split(toy_ratings, seed=seed)[1]) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(("test_size", "n_test"), [(0.2, 300), (0.5, 750), (0.001, 2)])
def test_random_split_has_the_size_asked_for(
    toy_ratings: pd.DataFrame, test_size: float, n_test: int
) -> None:
    assert len(split(toy_ratings, "random", test_size)[1]) == n_test


def test_user_temporal_takes_the_latest_fifth_of_each_user() -> None:
    rows = [(1, movie, 100 - movie) for movie in range(10)]
    rows += [(2, movie, movie) for movie in range(5)] + [(3, 0, 0)]
    _, test = split(frame(rows), "user-temporal", 0.2)
    assert pairs(test) == {(1, 0), (1, 1), (2, 4)}


def test_user_temporal_never_looks_ahead(toy_ratings: pd.DataFrame) -> None:
    train, test = split(toy_ratings, "user-temporal")
    latest = train.groupby("userId")["timestamp"].max()
    assert (test["timestamp"] >= test["userId"].map(latest)).all()


def test_global_temporal_never_looks_ahead(toy_ratings: pd.DataFrame) -> None:
    train, test = split(toy_ratings, "global-temporal")
    assert train["timestamp"].max() <= test["timestamp"].min()
    assert len(test) == 300


def test_leave_last_out_takes_one_of_each_user_with_two() -> None:
    rows = [(1, 5, 9), (1, 6, 8), (2, 5, 1), (2, 6, 2), (2, 7, 3), (3, 5, 0)]
    assert pairs(split(frame(rows), "leave-last-out")[1]) == {(1, 5), (2, 7)}


def test_equal_times_are_broken_by_the_seed_alone() -> None:
    ratings = frame([(1, movie, 0) for movie in range(40)])
    chosen = [pairs(split(ratings, "user-temporal", 0.25, seed)[1]) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_the_defaults_are_a_fifth_at_random_by_seed_0(toy_ratings: pd.DataFrame) -> None:
    parts = split(toy_ratings)
    expected = split(toy_ratings, "random", 0.2, 0)
    assert all(a.equals(b) for a, b in zip(parts, expected, strict=True))
    parts = train_validation_test(toy_ratings)
    expected = train_validation_test(toy_ratings, "random", 0.2, 0.1, 0)
    assert all(a.equals(b) for a, b in zip(parts, expected, strict=True))


def test_cold_users_and_movies_are_counted() -> None:
    train = frame([(1, 1, 0), (1, 2, 0)])
    test = frame([(1, 3, 1), (2, 1, 1), (2, 3, 1)])
    report = describe_split(train, test)
    assert (report.cold_users, report.cold_user_ratings) == (1, 2)
    assert (report.cold_movies, report.cold_movie_ratings) == (1, 2)
    assert describe_split(train, test.iloc[::-1]).test_sha256 == report.test_sha256
    assert describe_split(train, test.iloc[:2]).test_sha256 != report.test_sha256


@pytest.mark.parametrize(
    ("how", "test_size", "message"),
    [
        ("by-moon", 0.2, f"unknown split 'by-moon'; choose one of {', '.join(SPLITS)}$"),
        ("random", 0.0, "test_size is 0.0; give a fraction"),
        ("random", 1.0, "test_size is 1.0; give a fraction"),
        ("user-temporal", 1.5, "test_size is 1.5; give a fraction"),
        ("leave-last-out", 0.0, "test_size is 0.0; give a fraction"),  # though it is not used
        ("random", 1e-6, "leave"),
    ],
)
def test_wrong_arguments_are_named(
    toy_ratings: pd.DataFrame, how: str, test_size: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        split(toy_ratings, how, test_size)


@pytest.mark.parametrize("seed", [1.5, 2.0, "0", None, True, -1])
def test_a_seed_is_a_whole_number(toy_ratings: pd.DataFrame, seed: Any) -> None:
    with pytest.raises(ValueError, match=r"^seed is .*; give a whole number of at least 0$"):
        split(toy_ratings, seed=seed)
    assert split(toy_ratings, seed=np.int64(3))[1].equals(split(toy_ratings, seed=3)[1])


def test_temporal_split_needs_time(toy_ratings: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="timestamp"):
        split(toy_ratings.drop(columns="timestamp"), "user-temporal")
    split(toy_ratings.drop(columns="timestamp"), "random")


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    test_size=st.floats(0.05, 0.9),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_user_temporal_sizes_hold_for_any_users(
    counts: list[int], test_size: float, seed: int, data: st.DataObject
) -> None:
    rows = [
        (user, movie, data.draw(st.integers(0, 3)))
        for user, count in enumerate(counts)
        for movie in range(count)
    ]
    wanted = [min(int(np.floor(count * test_size + 0.5)), count - 1) for count in counts]
    if sum(wanted) == 0:
        with pytest.raises(ValueError, match="leave"):
            split(frame(rows), "user-temporal", test_size, seed)
        return
    _, test = split(frame(rows), "user-temporal", test_size, seed)
    found = test["userId"].value_counts().reindex(range(len(counts)), fill_value=0)
    assert found.tolist() == wanted


@pytest.mark.parametrize("how", SPLITS)
def test_validation_is_cut_by_the_rule_of_the_split(how: str, toy_ratings: pd.DataFrame) -> None:
    """Not at random whatever the split: by time, validation is what comes next in train."""
    train, validation, test = train_validation_test(toy_ratings, how, seed=4)
    rest, _ = split(toy_ratings, how, seed=4)
    expected = split(rest, how, test_size=0.1, seed=5)
    assert [list(part.index) for part in (train, validation)] == [list(p.index) for p in expected]
    if how == "random":
        return
    parts = {"train": train, "validation": validation, "test": test}
    by_user = {name: part.groupby("userId")["timestamp"] for name, part in parts.items()}
    if how == "global-temporal":
        assert train["timestamp"].max() <= validation["timestamp"].min()
        assert validation["timestamp"].max() <= test["timestamp"].min()
    else:
        shared = by_user["validation"].min().index
        assert (by_user["train"].max()[shared] <= by_user["validation"].min()).all()
        tested = by_user["test"].min()
        assert (by_user["validation"].max().reindex(tested.index) > tested).sum() == 0
