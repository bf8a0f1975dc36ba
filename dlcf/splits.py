"""Train / test splits of a ratings frame.

Every split is a function of the ratings, the test size and the seed alone: the rows are first put
in (userId, movieId) order, so the order of the file does not matter, and ties in time are broken
by a permutation drawn from the seed.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from dlcf.ratings import check_ratings
from dlcf.runtime.settings import whole

SPLITS = ("random", "user-temporal", "global-temporal", "leave-last-out")


def split(
    ratings: pd.DataFrame, how: str = "random", test_size: float = 0.2, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cut `ratings` into a train and a test frame.

    The two are disjoint, together complete, both in the row order of `ratings`, with their index
    labels kept. ValueError where `how` is unknown, `test_size` is outside (0, 1), `seed` is no
    whole number from 0, a frame is wrong, or a part is empty.

    Parameters
    ----------
    ratings
        Frame with `userId`, `movieId`, `rating`, `timestamp`.
    how
        ``"random"``: a uniform sample of the ratings is the test set.
        ``"user-temporal"``: of each user the latest ``test_size`` of the ratings, rounded half up;
        a user always keeps one rating in train.
        ``"global-temporal"``: the latest ``test_size`` of all ratings.
        ``"leave-last-out"``: the latest rating of every user with two or more; `test_size` is not
        used.
    test_size
        Fraction of the ratings that goes into the test set, in (0, 1).
    seed
        Draws the sample of ``"random"`` and the order among equal timestamps elsewhere.
    """
    if how not in SPLITS:
        raise ValueError(f"unknown split {how!r}; choose one of {', '.join(SPLITS)}")
    if not 0.0 < test_size < 1.0:
        raise ValueError(f"test_size is {test_size}; give a fraction between 0 and 1")
    generator = np.random.default_rng(whole("seed", seed, 0))
    ratings = check_ratings(ratings, require_timestamp=how != "random")

    in_test = np.zeros(len(ratings), dtype=bool)
    in_test[_test_rows(ratings, how, test_size, generator)] = True
    train, test = ratings[~in_test], ratings[in_test]
    if len(train) == 0 or len(test) == 0:
        problem = f"{len(ratings)} ratings leave {len(train)} for train and {len(test)} for test"
        raise ValueError(f"{problem}; give more ratings or another test_size")
    return train, test


def train_validation_test(
    ratings: pd.DataFrame,
    how: str = "random",
    test_size: float = 0.2,
    validation_size: float = 0.1,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Cut `ratings` in three; the validation set is cut from the train part by the same rule.

    Arguments are those of :func:`split`, and so is the test set, whatever `validation_size`: the
    fraction, in (0, 1), of the *train* part that goes into the validation set.
    """
    rest, test = split(ratings, how, test_size, seed)
    train, validation = split(rest, how, validation_size, seed + 1)
    return train, validation, test


def _test_rows(
    ratings: pd.DataFrame, how: str, test_size: float, generator: np.random.Generator
) -> np.ndarray:
    """Positions of the test rows in `ratings`."""
    user, movie = ratings["userId"].to_numpy(), ratings["movieId"].to_numpy()
    tie_break = np.empty(len(ratings), dtype=np.int64)
    tie_break[np.lexsort((movie, user))] = generator.permutation(len(ratings))
    if how == "random":
        return np.argsort(tie_break)[: _rounded_share(len(ratings), test_size)]

    time = ratings["timestamp"].to_numpy()
    if how == "global-temporal":
        latest_first = np.lexsort((tie_break, time))[::-1]
        return latest_first[: _rounded_share(len(ratings), test_size)]

    by_user = np.lexsort((tie_break, time, user))
    _, first, count = np.unique(user[by_user], return_index=True, return_counts=True)
    wanted = np.array(1) if how == "leave-last-out" else _rounded_share(count, test_size)
    n_test = np.minimum(wanted, count - 1)
    position_in_user = np.arange(len(ratings)) - np.repeat(first, count)
    return by_user[position_in_user >= np.repeat(count - n_test, count)]


def _rounded_share(count: int | np.ndarray, share: float) -> np.ndarray:
    return np.floor(np.asarray(count) * share + 0.5).astype(np.int64)
