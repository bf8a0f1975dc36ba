"""What a split holds, and what it leaves cold: in test, but never seen in train."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class SplitReport:
    """Sizes of a split and its cold part; every count is of distinct users, movies or ratings."""

    train_ratings: int
    test_ratings: int
    test_users: int
    test_movies: int
    cold_users: int
    cold_movies: int
    cold_user_ratings: int
    cold_movie_ratings: int
    test_sha256: str

    as_dict = asdict  # the fields by name


def describe_split(train: pd.DataFrame, test: pd.DataFrame) -> SplitReport:
    """Count what a split holds and what is cold in it (in test, never seen in train).

    The digest identifies the test pairs, so that two runs can be shown to have used the same.
    """
    new_user = ~test["userId"].isin(train["userId"].unique())
    new_movie = ~test["movieId"].isin(train["movieId"].unique())
    pairs = test[["userId", "movieId"]].sort_values(["userId", "movieId"]).to_numpy("<i8")
    return SplitReport(
        train_ratings=len(train),
        test_ratings=len(test),
        test_users=test["userId"].nunique(),
        test_movies=test["movieId"].nunique(),
        cold_users=test.loc[new_user, "userId"].nunique(),
        cold_movies=test.loc[new_movie, "movieId"].nunique(),
        cold_user_ratings=int(new_user.sum()),
        cold_movie_ratings=int(new_movie.sum()),
        test_sha256=hashlib.sha256(np.ascontiguousarray(pairs).tobytes()).hexdigest(),
    )
