"""MovieLens' files as frames: ratings, movies, tags; an error names its file and line."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import compress
from pathlib import Path
from typing import IO, Any

import pandas as pd

from dlcf.data.archives import DATASETS, RATINGS_FILES, Source, digest_of, obtain
from dlcf.ratings import COLUMNS, DTYPES, HALF_STARS, check_ratings, typed_ratings
from dlcf.runtime import paths
from dlcf.runtime.frames import Rows

CACHED_FROM = 2**24  # bytes of a file, packed or not; a smaller one is read in under a second
# How pandas reads each of RATINGS_FILES. Its fast parser takes separators of one character only,
# so that "::" is read as two ":" with an empty column between.
_SPACED = ["userId", "_1", "movieId", "_2", "rating", "_3", "timestamp"]
_FORMS: dict[str, dict[str, Any]] = {
    "ratings.csv": {"sep": ",", "index_col": False},
    "ratings.dat": {"sep": ":", "header": None, "names": _SPACED, "usecols": COLUMNS},
    "u.data": {"sep": "\t", "header": None, "names": COLUMNS, "index_col": False},
    "ml-100k.inter": {"sep": "\t", "header": 0, "names": COLUMNS, "index_col": False},
}


def load_ratings(
    name: str | Path = "ml-latest-small", data_dir: str | Path | None = None
) -> pd.DataFrame:
    """Ratings of a MovieLens data set, in the order of its file.

    `userId` int64, `movieId` int64, `rating` float32 (stars, on the data set's scale; 0.5 to 5.0
    for a folder), `timestamp` int64 (seconds since 1970, UTC). ValueError where the name is
    unknown, a checksum is wrong, or a row is: the message names file and line. DataUnavailableError
    where the data set was found nowhere.

    Parameters
    ----------
    name
        A key of `DATASETS`, or a folder in MovieLens form: with ``ratings.csv``, ``ratings.dat``,
        ``u.data`` or RecBole's ``ml-100k.inter``. A `Path` is always taken as a folder.
    data_dir
        Folder looked in first, and downloaded into. Then come ``$DLCF_DATA_DIR``, the checkout's
        ``data/`` or else the user's data folder, ``../shared/data``, and GroupLens over https.
    """
    source = obtain(name, data_dir)
    scale = DATASETS[name].scale if isinstance(name, str) and name in DATASETS else HALF_STARS
    return _read_cached(source, source.first(RATINGS_FILES), scale)


def load_movies(
    name: str | Path = "ml-latest-small", data_dir: str | Path | None = None
) -> pd.DataFrame:
    """Movies of a MovieLens data set, in the order of its file.

    `movieId` int64, `title` str (without the year; articles stay where they are, as in
    "Matrix, The"), `year` nullable Int16 (the first of a span), `genres` list of str (empty where
    none is listed). Arguments and errors are those of `load_ratings`; a movie listed twice is
    refused as well.
    """
    source = obtain(name, data_dir)
    file = source.first(("movies.csv", "movies.dat", "u.item", "ml-100k.item"))
    raw = _read_movies(source, file)
    rows = Rows(raw, file, _first_line(file))
    identifiers = pd.Series(rows.whole_numbers("movieId"))
    rows.refuse(identifiers.duplicated().to_numpy(), "movieId {movieId} is listed twice")
    # The year closes the title, but for a mark such as "(V)" that ML-100K puts behind it.
    parts = raw["title"].str.extract(
        r"^(?P<title>.*\S)\s*\(\s*(?P<year>\d{4})\s*(?:[-–—]\s*\d*\s*)?\)\s*(?:\(V\))?\s*$"
    )
    no_genre = ("", "(no genres listed)", "unknown")
    return pd.DataFrame(
        {
            "movieId": identifiers,
            "title": parts["title"].fillna(raw["title"]).str.strip(),
            "year": pd.to_numeric(parts["year"]).astype("Int16"),
            "genres": [[genre for genre in row if genre not in no_genre] for row in raw["genres"]],
        }
    )


def load_tags(
    name: str | Path = "ml-latest-small", data_dir: str | Path | None = None
) -> pd.DataFrame:
    """Free-text tags that users gave to movies; an empty frame where the data set has none.

    `userId` int64, `movieId` int64, `tag` str, `timestamp` int64 (seconds since 1970, UTC).
    Arguments and errors are those of `load_ratings`.
    """
    columns = ["userId", "movieId", "tag", "timestamp"]
    source = obtain(name, data_dir)
    file = next((file for file in ("tags.csv", "tags.dat") if source.has(file)), "no tags")
    if file == "tags.csv":
        raw = _read_text(source, file, columns)
    else:
        lines = _split_lines(source, file, "::", columns) if file == "tags.dat" else []
        cells = [(user, movie, "::".join(tag), time) for user, movie, *tag, time in lines]
        raw = pd.DataFrame(cells, columns=columns, dtype=object)
    rows = Rows(raw, file, _first_line(file))
    numbers = {column: rows.whole_numbers(column) for column in columns if column != "tag"}
    return raw[columns].assign(**numbers)


def _read_cached(source: Source, file: str, scale: tuple[float, float]) -> pd.DataFrame:
    """Read ratings; those of a large file from a Parquet copy where pyarrow is installed.

    The copy's name holds the digests of the file and of the copy itself, so that neither a copy of
    another file nor a damaged one is used. Where it cannot be written, the file is read each time.
    """
    original = source.path / file if source.path.is_dir() else source.path
    if original.stat().st_size < CACHED_FROM or find_spec("pyarrow") is None:
        return _read_ratings(source, file, scale)
    folder = paths.CACHE / "ratings"
    key = f"{digest_of(original)[:32]}-{scale[0]:g}-{scale[1]:g}"
    for copy in folder.glob(f"{key}-*.parquet"):
        if copy.stem == f"{key}-{digest_of(copy)[:32]}":
            return pd.read_parquet(copy, engine="pyarrow")
    ratings = _read_ratings(source, file, scale)
    content = ratings.to_parquet(engine="pyarrow", compression="zstd", index=False)
    with suppress(OSError):
        digest = hashlib.sha256(content).hexdigest()[:32]
        paths.write_atomically(folder / f"{key}-{digest}.parquet", content)
    return ratings


def _read_ratings(source: Source, file: str, scale: tuple[float, float]) -> pd.DataFrame:
    form = _FORMS[file]
    with suppress(ValueError, OverflowError):
        with source.open(file) as stream:
            counted: Any = _Counted(stream, form["sep"])
            ratings: pd.DataFrame = pd.read_csv(counted, dtype=DTYPES, **form)
        n_lines = len(ratings) + (form.get("header", 0) == 0)
        n_columns = len(form.get("names", ratings.columns))
        # Pandas cuts a number at a NUL byte, and the first row to the columns of the header; it
        # calls a second "rating" "rating.1", and reads ids by way of floats where one has a point.
        distinct = ratings.columns.str.replace(r"\.\d+$", "", regex=True).is_unique
        exact = (ratings.filter(["userId", "movieId"]).abs() < 2**53).all(axis=None)
        whole = counted.nuls == 0 and counted.separators == n_lines * (n_columns - 1)
        if distinct and exact and whole:
            return check_ratings(ratings, scale=scale, source=file, require_timestamp=True)
    return _read_carefully(source, file, scale)


class _Counted(io.BufferedIOBase):
    """A stream that counts the separators and the NUL bytes that are read from it."""

    def __init__(self, stream: IO[bytes], separator: str) -> None:
        self._stream, self._separator = stream, separator.encode()
        self.separators = self.nuls = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        content = self._stream.read(-1 if size is None else size)
        self.separators += content.count(self._separator)
        self.nuls += content.count(0)
        return content

    read1 = read


def _read_carefully(source: Source, file: str, scale: tuple[float, float]) -> pd.DataFrame:
    """Read ratings as text, a part at a time, so that an error can name its line of the file."""
    how = {"dtype": str, "skip_blank_lines": False, "encoding_errors": "replace", **_FORMS[file]}
    parts = []
    if "names" in how:  # first, because what pandas says of a long first row names no line
        _refuse_uneven_rows(source, file, how["sep"], how["names"])
    try:
        with source.open(file) as stream:
            for chunk in pd.read_csv(stream, chunksize=1_000_000, **how):
                rows = Rows(chunk.dropna(how="all"), file, _first_line(file))
                parts.append(typed_ratings(rows, scale, True))
    except pd.errors.EmptyDataError:
        raise ValueError(f"{file} is empty; replace it by a whole copy") from None
    except pd.errors.ParserError as error:
        raise ValueError(f"{file} is malformed: {error}; correct or drop the line") from None
    _refuse_uneven_rows(source, file, how["sep"], how.get("names"))
    ratings = pd.concat(parts)
    rows = Rows(ratings, file, _first_line(file))
    rows.refuse_empty()
    rows.refuse_repeated(["userId", "movieId"])
    return ratings.reset_index(drop=True)


def _read_movies(source: Source, file: str) -> pd.DataFrame:
    """`movieId` and `title` as text, `genres` as lists, all as the file has them."""
    columns = ["movieId", "title", "genres"]
    if file == "movies.csv":
        table = _read_text(source, file, columns)
        return table.assign(genres=table["genres"].str.split("|"))
    if file == "movies.dat":
        lines = _split_lines(source, file, "::", columns)
        rows = [(movie, title, genres.split("|")) for movie, title, genres in lines]
    elif file == "u.item":
        names = [line[0] for line in _split_lines(source, "u.genre", "|", ["genre", "number"])]
        fields = ["movieId", "title", "release", "video release", "address", *names]
        rows = [
            (movie, title, list(compress(names, (flag == "1" for flag in flags))))
            for movie, title, _, _, _, *flags in _split_lines(source, file, "|", fields)
        ]
    else:  # RecBole cuts the year off the title, "V" where it ends in "(V)", and misspells one
        fields = ["item_id", "movie_title", "release_year", "class"]
        rows = [
            (movie, "unknown" if title == "unkonwn" else f"{title} ({year})", genres.split(" "))
            for movie, title, year, genres in _split_lines(source, file, "\t", fields)[1:]
        ]
    return pd.DataFrame(rows, columns=columns)


def _read_text(source: Source, file: str, columns: list[str]) -> pd.DataFrame:
    """A csv file as text; "NA" and "null" are tags and titles like any other."""
    try:
        with source.open(file) as stream:
            table = pd.read_csv(stream, dtype=str, keep_default_na=False, index_col=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is malformed: {error}; correct the file") from None
    Rows(table, file).refuse_missing_columns(columns)
    _refuse_uneven_rows(source, file)
    return table


def _refuse_uneven_rows(
    source: Source, file: str, separator: str = ",", columns: list[str] | None = None
) -> None:
    """ValueError for a NUL byte, a row with more or fewer fields than columns or header has, or a
    header that names a column twice."""
    with source.open(file) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="")
        rows = csv.reader(_without_nul(text, file), delimiter=separator)
        try:
            for row in rows:
                if not columns:
                    columns = row
                    Rows(pd.DataFrame(columns=[name for name in row if name]), file)
                if row and len(row) != len(columns):
                    raise csv.Error(f"{len(row)} fields, not {len(columns)}")
        except csv.Error as error:
            problem = f"{error}; correct or drop the row"
            raise ValueError(f"{file}, row {rows.line_num}: {problem}") from None


def _without_nul(lines: Iterable[str], file: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            problem = "a NUL byte, the mark of a damaged file; replace the file by a whole copy"
            raise ValueError(f"{file}, row {number}: {problem}")
        yield line


def _split_lines(source: Source, file: str, separator: str, columns: list[str]) -> list[list[str]]:
    """The fields of each line, as many as columns; only a tag may hold the separator."""
    with source.open(file) as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:  # ML-100K and ML-1M are in Latin-1, later ones in UTF-8
        text = content.decode("latin-1")
    # Not splitlines(), which also breaks at characters that a title may hold.
    whole = _without_nul(text.rstrip("\r\n").split("\n"), file)
    lines = [line.rstrip("\r").split(separator) for line in whole]
    for number, line in enumerate(lines, start=1):
        if len(line) < len(columns) or (len(line) > len(columns) and "tag" not in columns):
            problem = f"not {', '.join(columns)} with {separator!r} between"
            raise ValueError(f"{file}, row {number}: {problem}; correct or drop the row")
    return lines


def _first_line(file: str) -> int:
    """Line of a file's first row, counted from 1: the second where the first is a header."""
    return 2 if file.endswith((".csv", ".inter", "100k.item")) else 1
