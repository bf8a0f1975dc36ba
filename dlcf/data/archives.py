"""Find, fetch, verify and read MovieLens into two tidy frames: ratings and movies.

The data sets are those of Harper and Konstan, "The MovieLens Datasets: History and Context",
ACM TiiS 5(4), 2015. Archives are read in place: nothing is unpacked, and only files whose names
are known beforehand are opened.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import IO, Any

import pandas as pd

from dlcf.ratings import (
    COLUMNS,
    DTYPES,
    HALF_STARS,
    WHOLE_STARS,
    Rows,
    check_ratings,
    typed_ratings,
)
from dlcf.runtime import paths

__all__ = [
    "DATASETS",
    "DataUnavailableError",
    "Dataset",
    "fetch_ml100k_from_package_index",
    "is_available",
    "load_movies",
    "load_ratings",
    "load_tags",
    "resolve_dataset",
]

GROUPLENS = "https://files.grouplens.org/datasets/movielens/"

CONNECT_SECONDS, STALL_SECONDS = 3, 10
LARGEST_MEMBER = 4 * 2**30  # bytes; ratings.csv of ml-32m, the largest file read here, has 0.9e9
CACHED_FROM = 2**24  # bytes of a file, packed or not; a smaller one is read in under a second
LARGEST_RATIO = 200  # of unpacked to packed size; MovieLens' text files stay below 10

RECBOLE = "recbole==1.2.1"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
RECBOLE_FOLDER = "recbole/dataset_example/ml-100k"


class DataUnavailableError(OSError):
    """The data set is neither on this machine nor can it be downloaded."""


@dataclass(frozen=True)
class Dataset:
    """One published MovieLens archive, the folder inside it and its scale of ratings, in stars.

    `sha256` is None where no digest is on record; then the MD5 that GroupLens publishes next to
    the archive is fetched with it.
    """

    archive: str
    folder: str
    scale: tuple[float, float]
    sha256: str | None

    @property
    def url(self) -> str:
        """Where GroupLens publishes the archive."""
        return GROUPLENS + self.archive


_SHA256 = {
    "ml-latest-small": "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
    "ml-100k": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "ml-1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    "ml-10m": None,
    "ml-20m": "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
    "ml-25m": "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
    "ml-32m": None,
}
DATASETS = {
    name: Dataset(
        archive=f"{name}.zip",
        folder="ml-10M100K" if name == "ml-10m" else name,
        scale=WHOLE_STARS if name in ("ml-100k", "ml-1m") else HALF_STARS,
        sha256=sha256,
    )
    for name, sha256 in _SHA256.items()
}

# How pandas reads each form of the ratings. Its fast parser takes separators of one character
# only, so that "::" is read as two ":" with an empty column between.
_RATINGS: dict[str, dict[str, Any]] = {
    "ratings.csv": {"sep": ",", "index_col": False},
    "ratings.dat": {
        "sep": ":",
        "header": None,
        "names": ["userId", "_1", "movieId", "_2", "rating", "_3", "timestamp"],
        "usecols": COLUMNS,
    },
    "u.data": {"sep": "\t", "header": None, "names": COLUMNS, "index_col": False},
    "ml-100k.inter": {"sep": "\t", "header": 0, "names": COLUMNS, "index_col": False},
}
_MOVIES = ("movies.csv", "movies.dat", "u.item", "ml-100k.item")


# ---------------------------------------------------------------------------------------- loading


def load_ratings(
    name: str | Path = "ml-latest-small", data_dir: str | Path | None = None
) -> pd.DataFrame:
    """Ratings of a MovieLens data set, in the order of its file.

    Parameters
    ----------
    name
        A key of `DATASETS`, or a folder in MovieLens form: with ``ratings.csv``, ``ratings.dat``,
        ``u.data`` or RecBole's ``ml-100k.inter``. A `Path` is always taken as a folder.
    data_dir
        Folder looked in first, and downloaded into. Then come ``$DLCF_DATA_DIR``, the checkout's
        ``data/``, its sibling ``../shared/data``, and at last GroupLens over https.

    Returns
    -------
    DataFrame
        One row a rating: `userId` int64, `movieId` int64, `rating` float32 (stars, inside the data
        set's scale; 0.5 to 5.0 for a folder), `timestamp` int64 (seconds since 1970, UTC).

    Raises
    ------
    ValueError
        The name is unknown, a checksum is wrong, or a row is: the message names file and line.
    DataUnavailableError
        The data set was found nowhere.
    """
    source = _obtain(name, data_dir)
    scale = DATASETS[name].scale if isinstance(name, str) and name in DATASETS else HALF_STARS
    file = source.first(_RATINGS)
    return _cached(source.file(file), scale, partial(_read_ratings, source, file, scale))


def load_movies(
    name: str | Path = "ml-latest-small", data_dir: str | Path | None = None
) -> pd.DataFrame:
    """Movies of a MovieLens data set, in the order of its file.

    Parameters
    ----------
    name, data_dir
        As for `load_ratings`.

    Returns
    -------
    DataFrame
        One row a movie: `movieId` int64, `title` str (without the year; articles stay where they
        are, as in "Matrix, The"), `year` nullable Int16 (the first of a span), `genres` list of
        str (empty where none is listed).

    Raises
    ------
    ValueError, DataUnavailableError
        As for `load_ratings`; also for a movie listed twice.
    """
    source = _obtain(name, data_dir)
    file = source.first(_MOVIES)
    raw = _read_movies(source, file)
    rows = Rows(raw, file, 1 + _has_header(file))
    identifiers = pd.Series(rows.whole_numbers("movieId"))
    rows.refuse(identifiers.duplicated().to_numpy(), "movieId {movieId} is listed twice")
    # The year closes the title, but for a mark such as "(V)" that ML-100K puts behind it.
    parts = raw["title"].str.extract(
        r"^(?P<title>.*\S)\s*\(\s*(?P<year>\d{4})\s*(?:[-–—]\s*\d*\s*)?\)\s*(?:\(V\))?\s*$"
    )
    return pd.DataFrame(
        {
            "movieId": identifiers,
            "title": parts["title"].fillna(raw["title"]).str.strip(),
            "year": pd.to_numeric(parts["year"]).astype("Int16"),
            "genres": [
                [genre for genre in genres if genre not in ("", "(no genres listed)", "unknown")]
                for genres in raw["genres"]
            ],
        }
    )


def load_tags(
    name: str | Path = "ml-latest-small", data_dir: str | Path | None = None
) -> pd.DataFrame:
    """Free-text tags that users gave to movies; an empty frame where the data set has none.

    Parameters
    ----------
    name, data_dir
        As for `load_ratings`.

    Returns
    -------
    DataFrame
        One row a tag: `userId` int64, `movieId` int64, `tag` str, `timestamp` int64 (seconds since
        1970, UTC).

    Raises
    ------
    ValueError, DataUnavailableError
        As for `load_ratings`.
    """
    columns = ["userId", "movieId", "tag", "timestamp"]
    source = _obtain(name, data_dir)
    file = next((file for file in ("tags.csv", "tags.dat") if source.has(file)), "no tags")
    if file == "tags.csv":
        raw = _read_text(source, file, columns)
    else:
        lines = _split_lines(source, file, "::", columns) if file == "tags.dat" else []
        cells = [(user, movie, "::".join(tag), time) for user, movie, *tag, time in lines]
        raw = pd.DataFrame(cells, columns=columns, dtype=object)
    rows = Rows(raw, file, 1 + _has_header(file))
    return pd.DataFrame(
        {
            column: raw[column] if column == "tag" else rows.whole_numbers(column)
            for column in columns
        }
    )


def _read_ratings(source: _Source, file: str, scale: tuple[float, float]) -> pd.DataFrame:
    try:
        with source.open(file) as stream:
            ratings: pd.DataFrame = pd.read_csv(stream, dtype=DTYPES, **_RATINGS[file])
        return check_ratings(ratings, scale=scale, source=file, require_timestamp=True)
    except (ValueError, OverflowError):
        return _read_carefully(source, file, scale)


def _cached(
    file: Path, scale: tuple[float, float], read: Callable[[], pd.DataFrame]
) -> pd.DataFrame:
    """What `read` makes of a large file, from a Parquet copy where there is one.

    The copy's name holds the digests of the file that it was made from and of its own bytes, so
    that neither one of another file nor a damaged one is ever used. Without pyarrow, or where the
    copy cannot be written, the file is read each time.
    """
    if file.stat().st_size < CACHED_FROM:
        return read()
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return read()
    folder = paths.CACHE / "ratings"
    key = f"{_digest(file)[:32]}-{scale[0]:g}-{scale[1]:g}"
    for copy in folder.glob(f"{key}-*.parquet"):
        if copy.stem == f"{key}-{_digest(copy)[:32]}":
            return pd.read_parquet(copy, engine="pyarrow")
    ratings = read()
    content = ratings.to_parquet(engine="pyarrow", compression="zstd", index=False)
    with suppress(OSError):
        digest = hashlib.sha256(content).hexdigest()[:32]
        paths.write_atomically(folder / f"{key}-{digest}.parquet", content)
    return ratings


def _read_carefully(source: _Source, file: str, scale: tuple[float, float]) -> pd.DataFrame:
    """Read ratings as text, a part at a time, so that an error can name its line of the file."""
    first_line = 1 + _has_header(file)
    parts = []
    try:
        with source.open(file) as stream:
            chunks = pd.read_csv(
                stream,
                dtype=str,
                skip_blank_lines=False,
                encoding_errors="replace",
                chunksize=1_000_000,
                **_RATINGS[file],
            )
            for chunk in chunks:
                chunk = chunk.dropna(how="all")
                parts.append(typed_ratings(Rows(chunk, file, first_line), scale, True))
    except pd.errors.EmptyDataError:
        raise ValueError(f"{file} is empty; replace it by a whole copy") from None
    except pd.errors.ParserError as error:
        raise ValueError(f"{file} is malformed: {error}; correct or drop the line") from None
    ratings = pd.concat(parts)
    rows = Rows(ratings, file, first_line)
    rows.refuse_empty()
    rows.refuse_repeated(["userId", "movieId"])
    return ratings.reset_index(drop=True)


def _has_header(file: str) -> bool:
    return file.endswith((".csv", ".inter")) or file == "ml-100k.item"


def _read_text(source: _Source, file: str, columns: list[str]) -> pd.DataFrame:
    """A csv file as text; "NA" and "null" are tags and titles like any other."""
    try:
        with source.open(file) as stream:
            table = pd.read_csv(stream, dtype=str, keep_default_na=False, index_col=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is malformed: {error}; correct the file") from None
    Rows(table, file).refuse_missing_columns(columns)
    return table


def _split_lines(source: _Source, file: str, separator: str, columns: list[str]) -> list[list[str]]:
    """The fields of each line; a line that has fewer than columns is refused."""
    with source.open(file) as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:  # ML-100K and ML-1M are in Latin-1, later ones in UTF-8
        text = content.decode("latin-1")
    # Not splitlines(), which also breaks at characters that a title may hold.
    lines = [line.rstrip("\r").split(separator) for line in text.rstrip("\r\n").split("\n")]
    for number, line in enumerate(lines, start=1):
        if len(line) < len(columns):
            raise ValueError(
                f"{file}, row {number}: not {', '.join(columns)} with {separator!r} between; "
                "correct or drop the row"
            )
    return lines


def _read_movies(source: _Source, file: str) -> pd.DataFrame:
    """`movieId` and `title` as text, `genres` as lists, all as the file has them."""
    columns = ["movieId", "title", "genres"]
    rows: Iterable[tuple[str, str, list[str]]]
    if file == "movies.csv":
        table = _read_text(source, file, columns)
        rows = zip(table["movieId"], table["title"], table["genres"].str.split("|"), strict=True)
    elif file == "movies.dat":
        lines = _split_lines(source, file, "::", columns)
        rows = ((movie, title, genres.split("|")) for movie, title, genres, *_ in lines)
    elif file == "u.item":
        names = [line[0] for line in _split_lines(source, "u.genre", "|", ["genre", "number"])]
        columns_100k = ["movieId", "title", "release", "video release", "address", *names]
        rows = (
            (line[0], line[1], list(compress(names, (flag == "1" for flag in line[5:]))))
            for line in _split_lines(source, file, "|", columns_100k)
        )
    else:  # RecBole cuts the year off the title, "V" where it ends in "(V)", and misspells one
        lines = _split_lines(
            source, file, "\t", ["item_id", "movie_title", "release_year", "class"]
        )
        rows = (
            (movie, "unknown" if title == "unkonwn" else f"{title} ({year})", genres.split(" "))
            for movie, title, year, genres, *_ in lines[1:]
        )
    return pd.DataFrame(rows, columns=columns)


# ---------------------------------------------------------------------------------------- finding


def is_available(name: str | Path, data_dir: str | Path | None = None) -> bool:
    """Whether the data set is on this machine already; nothing is downloaded.

    Parameters
    ----------
    name, data_dir
        As for `load_ratings`.

    Returns
    -------
    bool
        True where `load_ratings` would need no network.

    Raises
    ------
    ValueError
        The name is unknown, or the archive found has a wrong checksum.
    """
    return _find(name, data_dir) is not None


def resolve_dataset(name: str, data_dir: str | Path | None = None) -> str:
    """The data set to work on: `name`, which is downloaded where it has to be, or a substitute.

    Parameters
    ----------
    name, data_dir
        As for `load_ratings`.

    Returns
    -------
    str
        `name`; or "ml-100k", said in one printed line, where "ml-latest-small" cannot be reached:
        a machine that can install Python packages can install ML-100K with them.

    Raises
    ------
    ValueError
        The name is unknown, or a checksum is wrong.
    DataUnavailableError
        Another data set than "ml-latest-small" cannot be reached.
    """
    try:
        _obtain(name, data_dir)
    except DataUnavailableError:
        if name != "ml-latest-small":
            raise
        print(
            "ml-latest-small is not on this machine and GroupLens cannot be reached: "
            "running on ml-100k instead.",
            flush=True,
        )
        return "ml-100k"
    return name


def fetch_ml100k_from_package_index(folder: Path | None = None) -> Path:
    """Take ML-100K out of RecBole's wheel, for machines that reach a package index only.

    The wheel is downloaded with pip, without its dependencies; nothing is installed.

    Parameters
    ----------
    folder
        Where ``ml-100k/`` is written; by default the folder that downloads go to.

    Returns
    -------
    Path
        The folder ``ml-100k/``, with ``ml-100k.inter`` (100,000 ratings of 1,682 movies by 943
        users) and ``ml-100k.item``.

    Raises
    ------
    DataUnavailableError
        pip cannot download the wheel.
    ValueError
        The wheel's checksum is wrong.
    """
    target = Path(folder or _folders(None)[0]) / "ml-100k"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--retries=1", "--timeout=5"]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = subprocess.run(
                [*command, "--dest", scratch, RECBOLE], capture_output=True, text=True, timeout=300
            )
            reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        except subprocess.TimeoutExpired:
            reason = "no answer within five minutes"
        wheel = next(Path(scratch).glob("*.whl"), None)
        if wheel is None:
            raise DataUnavailableError(f"pip cannot download {RECBOLE}: {reason}")
        _verify(wheel, RECBOLE_SHA256)
        source = _Source(wheel, RECBOLE_FOLDER)
        # The ratings come last: it is by them that the folder is later found.
        for file in ("ml-100k.item", "ml-100k.inter"):
            with source.open(file) as stream:
                paths.write_atomically(target / file, stream.read())
    return target


@dataclass(frozen=True)
class _Source:
    """A folder in MovieLens form, or the archive that holds one."""

    path: Path
    folder: str = ""

    def has(self, file: str) -> bool:
        if self.path.is_dir():
            return (self.path / file).is_file()
        with self._archive() as archive:
            return f"{self.folder}/{file}" in archive.namelist()

    def first(self, files: Iterable[str]) -> str:
        """The first of `files` that is here."""
        for file in files:
            if self.has(file):
                return file
        raise ValueError(f"{self.path} holds none of {', '.join(files)}; add one of them")

    def file(self, file: str) -> Path:
        """The file on disk whose bytes decide what `file` holds."""
        return self.path / file if self.path.is_dir() else self.path

    @contextmanager
    def open(self, file: str) -> Iterator[IO[bytes]]:
        if not self.has(file):
            raise ValueError(f"{self.path} holds no {file}; add it")
        if self.path.is_dir():
            with (self.path / file).open("rb") as stream:
                yield stream
            return
        with self._archive() as archive:
            member = archive.getinfo(f"{self.folder}/{file}")
            if member.file_size > min(LARGEST_MEMBER, LARGEST_RATIO * member.compress_size):
                raise ValueError(
                    f"{self.path}: {member.filename} would unpack to {member.file_size} bytes, "
                    "more than MovieLens has; delete the archive and download it again"
                )
            with archive.open(member) as stream:
                yield stream

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(
                f"{self.path} is damaged ({error}); delete it and download it again"
            ) from error


def _folders(data_dir: str | Path | None) -> list[Path]:
    """Folders looked in, in order; the first is the one that downloads go to."""
    given = [
        Path(folder).expanduser() for folder in (data_dir, os.getenv("DLCF_DATA_DIR")) if folder
    ]
    return [*given, paths.DATA, paths.ROOT.parent / "shared" / "data"]


def _find(name: str | Path, data_dir: str | Path | None) -> _Source | None:
    """The data set where it is on this machine."""
    if isinstance(name, Path) or name not in DATASETS:
        if Path(name).is_dir():
            return _Source(Path(name))
        raise ValueError(
            f"unknown data set {str(name)!r}; use one of {', '.join(DATASETS)}, or a folder that "
            "holds ratings.csv in MovieLens form"
        )
    dataset = DATASETS[name]
    for folder in _folders(data_dir):
        archive = folder / dataset.archive
        if archive.is_file():
            _verify(archive, dataset.sha256)
            return _Source(archive, dataset.folder)
        for extracted in map(_Source, (folder / name, folder / dataset.folder)):
            if extracted.path.is_dir() and any(map(extracted.has, _RATINGS)):
                return extracted
    return None


def _obtain(name: str | Path, data_dir: str | Path | None) -> _Source:
    """The data set from this machine, or else downloaded to it."""
    found = _find(name, data_dir)
    if found is not None:
        return found
    name = str(name)
    dataset, folders = DATASETS[name], _folders(data_dir)
    try:
        return _Source(_download(dataset, folders[0]), dataset.folder)
    except (OSError, ValueError) as error:  # no connection, no such page, or a wrong checksum
        reasons = [f"{dataset.url}: {error}"]
    if name == "ml-100k":
        try:
            return _Source(fetch_ml100k_from_package_index(folders[0]))
        except OSError as error:
            reasons.append(str(error))
    raise DataUnavailableError(
        f"{name} is in none of {', '.join(map(str, folders))}, and cannot be downloaded "
        f"({'; '.join(textwrap.shorten(reason, 300) for reason in reasons)}): put "
        f"{dataset.archive} into {folders[0]}, or set DLCF_DATA_DIR to the folder that holds it"
    )


def _download(dataset: Dataset, folder: Path) -> Path:
    """Fetch an archive from GroupLens; it takes its name in `folder` only once it is verified."""
    known_hash = f"sha256:{dataset.sha256}"
    if dataset.sha256 is None:
        with tempfile.TemporaryDirectory() as scratch:
            page = _fetch(dataset.archive + ".md5", None, Path(scratch)).read_text("utf-8")
        md5 = re.search(r"\b[0-9a-f]{32}\b", page)
        if md5 is None:
            raise ValueError(f"{dataset.url}.md5 holds no checksum")
        known_hash = f"md5:{md5[0]}"
    archive = _fetch(dataset.archive, known_hash, folder)
    if dataset.sha256 is None:  # kept beside the archive, to verify it by from now on
        paths.write_atomically(_md5_file(archive), f"{known_hash[4:]}  {archive.name}\n")
    return archive


def _fetch(file: str, known_hash: str | None, folder: Path) -> Path:
    import pooch  # here, because only a download needs it and it warns in a plain notebook

    registry: Mapping[str, str | None] = {file: known_hash}
    site = pooch.create(path=folder, base_url=GROUPLENS, registry=registry, retry_if_failed=1)
    downloader = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(), timeout=(CONNECT_SECONDS, STALL_SECONDS)
    )
    return Path(site.fetch(file, downloader=downloader))


def _md5_file(archive: Path) -> Path:
    return archive.with_name(archive.name + ".md5")


def _verify(path: Path, sha256: str | None) -> None:
    """Refuse a file whose checksum is wrong. It is left as it is: it may be somebody's only copy.

    Without a SHA-256 on record the MD5 kept beside the archive counts; where that is missing too,
    what remains is the archive's own CRC-32 of each file, which `zipfile` checks while it reads.
    """
    kind, expected = "sha256", sha256
    if sha256 is None and _md5_file(path).is_file():
        kind, expected = "md5", _md5_file(path).read_text("utf-8").split()[0]
    if expected is None:
        return
    found = _digest(path, kind)
    if found != expected:
        raise ValueError(
            f"{path} has the wrong checksum: {kind} {found}, expected {expected}; delete the file, "
            "and it is downloaded again"
        )


def _digest(path: Path, kind: str = "sha256") -> str:
    digest = hashlib.new(kind)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
