"""What a ratings frame is: its columns and scale, the checks at the door, its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from dlcf.runtime.frames import Rows

HALF_STARS = (0.5, 5.0)
WHOLE_STARS = (1.0, 5.0)
DTYPES: dict[Any, Any] = {
    "userId": "int64",
    "movieId": "int64",
    "rating": "float32",
    "timestamp": "int64",
}
COLUMNS = list(DTYPES)
# The years 1901 and 2106: a larger number is milliseconds, the lowest of 64 bits is pandas' NaT.
FIRST_SECOND, LAST_SECOND = -(2**31), 2**32


def check_ratings(
    frame: pd.DataFrame,
    *,
    scale: tuple[float, float] | None = None,
    source: str = "ratings frame",
    require_timestamp: bool = False,
) -> pd.DataFrame:
    """The ratings with their four dtypes, or an error that says what is wrong and where.

    Use the frame that comes back, which is `frame` itself where nothing had to be changed: the one
    that was given may hold numbers as text. It has `userId`, `movieId` int64, `rating` float32,
    `timestamp` int64 where given, and the frame's index.

    ValueError where a column is missing or comes twice; the frame is empty; a value is missing,
    infinite, not a number, off the scale, an id that is not whole, or a time before 1901 or after
    2106; a pair of user and movie comes twice. Rows are counted from 0, as in ``frame.iloc``.

    Parameters
    ----------
    frame
        One row a rating: `userId` and `movieId` (whole numbers), `rating` (stars), and `timestamp`
        (seconds UTC), which may be left out unless `require_timestamp`. Other columns are dropped.
    scale
        Lowest and highest rating; None stands for MovieLens' widest, 0.5 to 5.0.
    source
        What error messages call the frame.
    require_timestamp
        Whether a frame without `timestamp` is refused.
    """
    rows = Rows(frame, source)
    ratings = typed_ratings(rows, scale or HALF_STARS, require_timestamp)
    rows.refuse_empty()
    Rows(ratings, source).refuse_repeated(["userId", "movieId"])
    same = frame.dtypes.equals(ratings.dtypes) and not any(frame.index.names)
    return frame if same else ratings


def typed_ratings(rows: Rows, scale: tuple[float, float], require_timestamp: bool) -> pd.DataFrame:
    """The rating columns with their dtypes, all checked but for duplicates and emptiness."""
    columns = COLUMNS if require_timestamp or "timestamp" in rows.frame else COLUMNS[:3]
    rows.refuse_missing_columns(columns)
    low, high = scale
    checked = {column: rows.whole_numbers(column) for column in ("userId", "movieId")}
    stars = rows.within("rating", low, high, f"is off the scale {low} to {high}")
    checked["rating"] = stars.astype(np.float32, copy=False)
    if "timestamp" in columns:
        checked["timestamp"] = _seconds(rows)
    index = rows.frame.index.set_names([None] * rows.frame.index.nlevels)  # no second userId
    return pd.DataFrame(checked, index=index, copy=False)


def check_pairs(frame: pd.DataFrame, *, source: str = "pairs frame") -> pd.DataFrame:
    """The pairs of user and movie to predict for; none at all and repeats are allowed.

    `frame` holds `userId` and `movieId`, whole numbers, and `timestamp` (seconds UTC) where it is
    known; other columns are dropped. All come back as int64, with the frame's index. `source` is
    what error messages call the frame; ValueError as for :func:`check_ratings`.
    """
    rows = Rows(frame, source)
    rows.refuse_missing_columns(["userId", "movieId"])
    pairs = {column: rows.whole_numbers(column) for column in ("userId", "movieId")}
    if "timestamp" in frame:
        pairs["timestamp"] = _seconds(rows)
    return pd.DataFrame(pairs, index=frame.index)


def check_movies(frame: pd.DataFrame, *, source: str = "movies frame") -> pd.DataFrame:
    """The movies with `movieId` int64 and, where given, `title` str, `year` and `genres`.

    A missing title is empty. ValueError where a movie comes twice or genres are no lists of texts.
    """
    rows = Rows(frame, source)
    rows.refuse_missing_columns(["movieId"])
    movies = frame.assign(movieId=rows.whole_numbers("movieId"))
    Rows(movies, source).refuse_repeated(["movieId"])
    if "title" in frame:
        movies["title"] = frame["title"].astype(object).where(frame["title"].notna(), "").map(str)
    if "genres" in frame:
        bad = [
            isinstance(genres, str)
            or not isinstance(genres, Iterable)
            or not all(isinstance(genre, str) for genre in genres)
            for genres in frame["genres"]
        ]
        rows.refuse(np.array(bad, bool), "genres {genres!r} are no list", "give lists of texts")
        movies["genres"] = [g if type(g) is list else list(g) for g in frame["genres"]]
    return movies


def check_ids(ids: Any, what: str) -> np.ndarray:
    """Ids as int64 ``(n,)``; ValueError for text, truth values and numbers that are not whole."""
    given = np.asarray(ids)
    if given.dtype == np.int64 and given.ndim == 1:
        return given
    if given.dtype.kind not in "iuf" and len(given):
        first = given.ravel().tolist()[0]
        raise ValueError(f"{what} {first!r} is no number; give MovieLens' whole numbers")
    return Rows(pd.DataFrame({what: given}), f"list of {what}s").whole_numbers(what)


def rating_scale(ratings: pd.DataFrame) -> tuple[float, float]:
    """The MovieLens scale that ratings are on, judged by the ratings alone.

    (0.5, 5.0) where any rating is below 1 or has a half star, else (1.0, 5.0): never the data's own
    minimum and maximum, because a sample need not hold the ends of its scale. ValueError where
    there is no rating, or one is missing or outside 0.5 to 5.0.
    """
    rows = Rows(ratings, "ratings frame")
    rows.refuse_missing_columns(["rating"])
    rows.refuse_empty()
    values = rows.within("rating", *HALF_STARS, "is off the scale 0.5 to 5.0")
    return HALF_STARS if bool(((values < 1) | (values % 1 != 0)).any()) else WHOLE_STARS


def fingerprint(ratings: pd.DataFrame) -> str:
    """SHA-256 of a frame's columns, in order, with their names, dtypes and values.

    The index does not count, the order of rows and columns does; the same on every platform.
    """
    digest = hashlib.sha256(json.dumps(ratings.shape).encode())
    for name, column in ratings.items():
        values = column.to_numpy()
        if values.dtype == object:
            content = json.dumps(values.tolist(), default=str).encode()
        else:  # little-endian, whatever the machine
            content = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
        digest.update(json.dumps([name, str(values.dtype), len(content)]).encode())
        digest.update(content)
    return digest.hexdigest()


def _seconds(rows: Rows) -> np.ndarray:
    seconds = rows.whole_numbers("timestamp")
    late = seconds >= LAST_SECOND
    rows.refuse(late, "timestamp {timestamp} is after 2106", "give seconds, not milliseconds")
    missing = "give seconds; where the time is missing (NaT), drop the row"
    rows.refuse(seconds < FIRST_SECOND, "timestamp {timestamp} is before 1901", missing)
    return seconds
