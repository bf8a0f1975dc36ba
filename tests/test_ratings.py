"""What a ratings frame is: checks at the door, scale, fingerprint."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dlcf.ratings import COLUMNS, DTYPES, check_pairs, check_ratings, fingerprint, rating_scale

ROWS = [(1, 10, 4.0, 964982703), (1, 20, 3.5, 964981247), (2, 10, 0.5, 847434962)]


def frame(rows: list[tuple[Any, ...]] = ROWS, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS).assign(**columns)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (frame().drop(columns="rating"), "ratings frame: column 'rating' is missing; add it"),
        (frame()[:0], "ratings frame is empty"),
        (frame(rating=[4.0, np.nan, 3.0]), "ratings frame, row 1: rating is missing (NaN); fill"),
        (frame(userId=[1.0, np.nan, 3.0]), "ratings frame, row 1: userId is missing (NaN)"),
        (frame(userId=pd.array([1, None, 3], dtype="Int64")), "row 1: userId is missing"),
        (frame(rating=["4", "x", "y"]), "row 1: rating 'x' is not a number"),
        (frame(rating=[True, True, False]), "row 0: rating 'True' is not a number"),
        (frame(rating=[4.0, 3.0, np.inf]), "row 2: rating inf is infinite"),
        (frame(movieId=[10, -np.inf, 20]), "row 1: movieId -inf is infinite"),
        (frame(rating=[4.0, 5.5, 3.0]), "row 1: rating 5.5 is off the scale 0.5 to 5.0; correct"),
        (frame(movieId=[10, 20.5, 30]), "row 1: movieId 20.5 is not a whole number of 64 bits"),
        (frame(movieId=[10, 1e19, 30]), "row 1: movieId 1e+19 is not a whole number of 64 bits"),
        (frame(movieId=["10", "9007199254740993", "5.0"]),
         "row 1: movieId 9007199254740993 is too large to be exact as a decimal; give"),
        (frame(timestamp=pd.to_datetime(["2020-01-01"] * 3)), "row 0: timestamp '2020-01-0"),
        (frame(userId=[1, 2, 1], movieId=[9, 9, 9]),
         "row 2: duplicate pair of userId 1 and movieId 9, which row 0 holds too; keep one"),
        (frame(userId=[2**62, -(2**62), 2**62], movieId=[9, 9, 9]), "row 2: duplicate pair"),
    ],
)  # fmt: skip
def test_wrong_ratings_frame_is_refused(wrong: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_ratings(wrong)


def test_check_ratings_converts_and_keeps_the_index() -> None:
    given = pd.DataFrame(
        {
            "extra": ["a", "b", "c"],
            "rating": [4, 3, 1],
            "movieId": pd.array([10, 20, 10], dtype="Int64"),
            "userId": ["1", "1", "2"],
        },
        index=[7, 8, 9],
    )
    checked = check_ratings(given, scale=(1, 5))
    assert list(checked.dtypes.astype(str)) == ["int64", "int64", "float32"]
    assert list(checked.columns) == ["userId", "movieId", "rating"]
    assert list(checked.index) == [7, 8, 9]
    assert list(given.columns) == ["extra", "rating", "movieId", "userId"]
    with pytest.raises(ValueError, match="test set: column 'timestamp' is missing"):
        check_ratings(given, source="test set", require_timestamp=True)
    with pytest.raises(ValueError, match=r"rating 1 is off the scale 2 to 5"):
        check_ratings(given, scale=(2, 5))
    with pytest.raises(TypeError, match="ratings frame is a list"):
        check_ratings([1, 2])  # type: ignore[arg-type]


def test_seconds_are_told_from_milliseconds() -> None:
    late = frame(ROWS).assign(timestamp=[0, 1_700_000_000, 1_700_000_000_000])
    for check in (check_ratings, check_pairs):
        with pytest.raises(ValueError, match="row 2: timestamp 1700000000000 is after 2106"):
            check(late)


def test_a_time_that_is_missing_is_none_before_1901() -> None:
    times = pd.to_datetime(pd.Series(["1969-07-20", "1901-12-14", None])).astype("datetime64[s]")
    early = frame(timestamp=times.to_numpy().view("int64"))
    for check in (check_ratings, check_pairs):
        assert check(early[:2])["timestamp"].tolist() == [-14256000, -2147472000]
        with pytest.raises(ValueError, match=r"row 2: timestamp -9223372036854775808 is before 19"):
            check(early)
        with pytest.raises(ValueError, match=r"row 0: .*; give seconds; .* \(NaT\), drop the row"):
            check(early.assign(timestamp=-(2**31) - 1))


def test_check_pairs() -> None:
    pairs = check_pairs(frame([*ROWS, *ROWS]))
    assert list(pairs.columns) == ["userId", "movieId", "timestamp"]
    assert len(pairs) == 6
    assert pairs.dtypes.astype(str).tolist() == ["int64"] * 3
    assert list(check_pairs(frame(ROWS)[["movieId", "userId"]])) == ["userId", "movieId"]
    empty = check_pairs(pd.DataFrame({"userId": [], "movieId": []}))
    assert empty.dtypes.astype(str).tolist() == ["int64", "int64"]
    assert check_pairs(pd.DataFrame(columns=["userId", "movieId"])).shape == (0, 2)
    with pytest.raises(ValueError, match="pairs frame: column 'movieId' is missing"):
        check_pairs(pd.DataFrame({"userId": [1]}))
    with pytest.raises(ValueError, match="pairs frame, row 1: userId is missing"):
        check_pairs(pd.DataFrame({"userId": [1, None], "movieId": [1, 2]}))


@pytest.mark.parametrize(
    ("ratings", "scale"),
    [([1, 5], (1, 5)), ([3], (1, 5)), ([3.5, 4], (0.5, 5)), ([0.5, 1], (0.5, 5))],
)
def test_rating_scale(ratings: list[float], scale: tuple[float, float]) -> None:
    assert rating_scale(pd.DataFrame({"rating": ratings})) == scale


@pytest.mark.parametrize("ratings", [[], [6.0], [np.nan], [0.0, 3.0]])
def test_rating_scale_refuses_what_is_on_no_scale(ratings: list[float]) -> None:
    with pytest.raises(ValueError, match="ratings frame"):
        rating_scale(pd.DataFrame({"rating": ratings}))


def test_fingerprint_depends_on_the_content_alone() -> None:
    ratings = frame().astype(DTYPES)
    expected = "95d6dee2d22b42f1b7c2930e351baa2daee10c165ce17e598dc7068ea6637768"
    assert fingerprint(ratings) == expected  # pinned: the same on every platform
    assert fingerprint(ratings.set_index(pd.Index([5, 6, 7]))) == expected
    changed = [
        ratings[::-1],
        ratings[COLUMNS[::-1]],
        ratings[:2],
        ratings.assign(rating=ratings["rating"] - 0.5),
        ratings.rename(columns={"rating": "stars"}),
        ratings.astype({"rating": "float64"}),
    ]
    assert len({expected, *map(fingerprint, changed)}) == len(changed) + 1
    titles = {"title": ["Heat", np.nan]}  # pandas 3 has a dtype of its own for text
    assert fingerprint(pd.DataFrame(titles)) == fingerprint(pd.DataFrame(titles, dtype=object))
    assert fingerprint(pd.DataFrame({"genres": [["a"], []]})) != fingerprint(
        pd.DataFrame({"genres": [[], ["a"]]})
    )
