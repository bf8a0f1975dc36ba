"""A frame under check: what is wrong in it is an error that names column, row and remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

DROP = "correct or drop the row"


@dataclass(frozen=True)
class Rows:
    """The rows of a frame whose columns are checked; `source` is what error messages call it.

    Rows are named by position from 0; with `first_line`, by line of the file that the frame's index
    counts from 0, the first of which is `first_line`.
    """

    frame: pd.DataFrame
    source: str
    first_line: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.frame, pd.DataFrame):
            kind = type(self.frame).__name__
            raise TypeError(f"{self.source} is a {kind}; give a pandas DataFrame")
        repeated = self.frame.columns[self.frame.columns.duplicated()]
        if len(repeated):
            raise ValueError(f"{self.source}: column {repeated[0]!r} comes twice; drop one of them")

    def number(self, position: int) -> int:
        """What a row is called."""
        line = self.first_line
        return position if line is None else int(self.frame.index[position]) + line

    def refuse(self, bad: np.ndarray, problem: str, remedy: str = DROP) -> None:
        """ValueError for the first bad row; `{column}` in `problem` stands for its value."""
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
                problem = f"{self.source}: column {column!r} is missing"
                raise ValueError(f"{problem}; add it (columns found: {found})")

    def refuse_repeated(self, columns: Sequence[str]) -> None:
        """Two rows may not agree in all of these columns, which hold whole numbers."""
        first, *others = (self.frame[column].to_numpy() for column in columns)
        rising = first[1:] > first[:-1]
        same = first[1:] == first[:-1]
        for values in others:  # where they rise, as in most files, none is repeated
            rising |= same & (values[1:] > values[:-1])
        if rising.all():
            return
        bad = self.frame.duplicated(list(columns)).to_numpy()
        if bad.any():
            keys = self.frame[list(columns)]
            alike = (keys == keys.iloc[int(bad.argmax())]).all(axis=1)
            what = " and ".join(f"{column} {{{column}}}" for column in columns)
            holder = self.number(int(alike.to_numpy().argmax()))
            pair = "pair of " if others else ""
            problem = f"duplicate {pair}{what}, which row {holder} holds too"
            self.refuse(bad, problem, "keep one of the two rows")

    def numbers(self, column: str) -> np.ndarray:
        """Values as plain numbers, of which none is missing or infinite."""
        values = self.frame[column]
        missing = values.isna().to_numpy()
        self.refuse(missing, f"{column} is missing (NaN)", "fill it in or drop the row")
        dtype: Any = values.dtype
        for plain in ("numpy_dtype", "subtype"):  # of nullable and of sparse columns
            dtype = getattr(dtype, plain, dtype)
        if getattr(dtype, "kind", "") in "iuf":
            numbers = values.to_numpy(dtype)
        else:  # by way of text, so that a date or a truth value does not pass for a number
            parsed = pd.to_numeric(values.astype(str), errors="coerce")
            self.refuse(parsed.isna().to_numpy(), f"{column} '{{{column}}}' is not a number")
            numbers = parsed.to_numpy() if len(parsed) else np.empty(0)
        if numbers.dtype.kind == "f":
            self.refuse(np.isinf(numbers), f"{column} {{{column}}} is infinite")
        return numbers

    def whole_numbers(self, column: str) -> np.ndarray:
        """Values as int64."""
        if self.frame[column].dtype == np.int64:  # none is missing or has a fraction
            return self.frame[column].to_numpy()
        numbers = self.numbers(column)
        if numbers.dtype.kind == "f":
            bad = (numbers != np.floor(numbers)) | (np.abs(numbers) >= 2.0**63)
        else:
            bad = numbers > np.iinfo(np.int64).max
        self.refuse(bad, f"{column} {{{column}}} is not a whole number of 64 bits")
        if numbers.dtype.kind == "f":  # as text is too, where another row has a decimal point
            bad = np.abs(numbers) >= 2.0**53
            problem = f"{column} {{{column}}} is too large to be exact as a decimal"
            self.refuse(bad, problem, "give the column as whole numbers")
        return numbers.astype(np.int64, copy=False)

    def within(self, column: str, low: float, high: float, problem: str) -> np.ndarray:
        """Values as numbers, all of them from `low` to `high`; `problem` ends the message."""
        numbers = self.numbers(column)
        self.refuse((numbers < low) | (numbers > high), f"{column} {{{column}}} {problem}")
        return numbers
