"""What a ratings frame is: its columns and scale, the checks at the door, its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["Rows", "check_pairs", "check_ratings", "fingerprint", "rating_scale"]

HALF_STARS = (0.5, 5.0)
WHOLE_STARS = (1.0, 5.0)
DTYPES: dict[Any, Any] = {
    "userId": "int64",
    "movieId": "int64",
    "rating": "float32",
    "timestamp": "int64",
}
COLUMNS = list(DTYPES)


def check_ratings(
    frame: pd.DataFrame,
    *,
    scale: tuple[float, float] | None = None,
    source: str = "ratings frame",
    require_timestamp: bool = False,
) -> pd.DataFrame:
    """The ratings with their four dtypes, or an error that says what is wrong and where.

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

    Returns
    -------
    DataFrame
        `userId`, `movieId` int64, `rating` float32, `timestamp` int64 where given, with the
        frame's index; `frame` itself where nothing had to be changed.

    Raises
    ------
    ValueError
        A column is missing; the frame is empty; a value is missing, infinite, not a number, off
        the scale, or an id that is not whole; a pair of user and movie comes twice. Rows are
        counted from 0, as in ``frame.iloc``.
    """
    rows = Rows(frame, source)
    ratings = rows.ratings(scale or HALF_STARS, require_timestamp)
    rows.refuse_empty()
    Rows(ratings, source).refuse_duplicates()
    return frame if frame.dtypes.equals(ratings.dtypes) else ratings


def check_pairs(frame: pd.DataFrame, *, source: str = "pairs frame") -> pd.DataFrame:
    """The pairs of user and movie to predict for, as int64; none at all and repeats are allowed.

    Parameters
    ----------
    frame
        `userId` and `movieId`, whole numbers; other columns are dropped.
    source
        What error messages call the frame.

    Returns
    -------
    DataFrame
        `userId` and `movieId` int64, with the frame's index; ValueError as for `check_ratings`.
    """
    rows = Rows(frame, source)
    rows.refuse_missing_columns(["userId", "movieId"])
    ids = {column: rows.whole_numbers(column) for column in ("userId", "movieId")}
    return pd.DataFrame(ids, index=frame.index)


def rating_scale(ratings: pd.DataFrame) -> tuple[float, float]:
    """The MovieLens scale that ratings are on, judged by the ratings alone.

    Returns
    -------
    tuple of float
        (0.5, 5.0) where any rating is below 1 or has a half star, else (1.0, 5.0): never the data's
        own minimum and maximum, because a sample need not hold the ends of its scale. ValueError
        where there is no rating, or one is missing or outside 0.5 to 5.0.
    """
    rows = Rows(ratings, "ratings frame")
    rows.refuse_missing_columns(["rating"])
    rows.refuse_empty()
    values = rows.stars(HALF_STARS)
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
        digest.update(json.dumps([name, str(column.dtype), len(content)]).encode())
        digest.update(content)
    return digest.hexdigest()


@dataclass(frozen=True)
class Rows:
    """A frame under check.

    Rows are named by position, or, where `first_line` is given, by line of the file that the
    frame's index counts.
    """

    frame: pd.DataFrame
    source: str
    first_line: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.frame, pd.DataFrame):
            kind = type(self.frame).__name__
            raise TypeError(f"{self.source} is a {kind}; give a pandas DataFrame")

    def number(self, position: int) -> int:
        line = self.first_line
        return position if line is None else int(self.frame.index[position]) + line

    def refuse(
        self, bad: np.ndarray, problem: str, remedy: str = "correct or drop the row"
    ) -> None:
        if bad.any():
            position = int(bad.argmax())
            values = {str(name): self.frame[name].iloc[position] for name in self.frame}
            where = f"{self.source}, row {self.number(position)}"
            raise ValueError(f"{where}: {problem.format_map(values)}; {remedy}")

    def refuse_empty(self) -> None:
        if self.frame.empty:
            raise ValueError(f"{self.source} is empty: it has no row; give at least one rating")

    def refuse_missing_columns(self, columns: Iterable[str]) -> None:
        for column in columns:
            if column not in self.frame:
                found = ", ".join(map(str, self.frame)) or "none"
                raise ValueError(
                    f"{self.source}: column {column!r} is missing; add it (columns found: {found})"
                )

    def refuse_duplicates(self) -> None:
        users, movies = self.frame["userId"].to_numpy(), self.frame["movieId"].to_numpy()
        span = int(movies.max()) - int(movies.min()) + 1
        if (int(users.max()) - int(users.min()) + 1) * span < 2**63:
            # One number a pair: where they rise, as in most of the files, no pair comes twice.
            pairs = (users - users.min()) * span + (movies - movies.min())
            if bool((pairs[1:] > pairs[:-1]).all()):
                return
        bad = self.frame.duplicated(["userId", "movieId"]).to_numpy()
        if bad.any():
            second = int(bad.argmax())
            first = int(((users == users[second]) & (movies == movies[second])).argmax())
            self.refuse(
                bad,
                "duplicate pair of userId {userId} and movieId {movieId}, which row "
                f"{self.number(first)} holds too",
                "keep one of the two rows",
            )

    def numbers(self, column: str) -> np.ndarray:
        """Values as plain numbers, of which none is missing or infinite."""
        values = self.frame[column]
        missing = values.isna().to_numpy()
        self.refuse(missing, f"{column} is missing (NaN)", "fill it in or drop the row")
        if values.dtype.kind in "iuf":
            plain: Any = getattr(values.dtype, "numpy_dtype", None) or values.dtype
            numbers = values.to_numpy(plain)
        else:  # by way of text, so that a date or a truth value does not pass for a number
            parsed = pd.to_numeric(values.astype(str), errors="coerce")
            self.refuse(parsed.isna().to_numpy(), f"{column} '{{{column}}}' is not a number")
            numbers = parsed.to_numpy() if len(parsed) else np.empty(0)
        if numbers.dtype.kind == "f":
            self.refuse(np.isinf(numbers), f"{column} {{{column}}} is infinite")
        return numbers

    def whole_numbers(self, column: str) -> np.ndarray:
        """Values as int64."""
        numbers = self.numbers(column)
        if numbers.dtype.kind != "i":
            bad = (numbers != np.floor(numbers)) | (np.abs(numbers) >= 2.0**63)
            self.refuse(bad, f"{column} {{{column}}} is not a whole number of 64 bits")
        return numbers.astype(np.int64, copy=False)

    def stars(self, scale: tuple[float, float]) -> np.ndarray:
        """Ratings as float32, all of them on the scale."""
        low, high = scale
        values = self.numbers("rating")
        bad = (values < low) | (values > high)
        self.refuse(bad, f"rating {{rating}} is off the scale {low} to {high}")
        return values.astype(np.float32, copy=False)

    def ratings(self, scale: tuple[float, float], require_timestamp: bool) -> pd.DataFrame:
        """The rating columns with their dtypes, all checked but for duplicates and emptiness."""
        columns = COLUMNS if require_timestamp or "timestamp" in self.frame else COLUMNS[:3]
        self.refuse_missing_columns(columns)
        checked = {
            column: self.stars(scale) if column == "rating" else self.whole_numbers(column)
            for column in columns
        }
        return pd.DataFrame(checked, index=self.frame.index, copy=False)
