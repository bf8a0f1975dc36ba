"""Where MovieLens' archives are found, fetched, verified and opened.

The data sets are those of Harper and Konstan, "The MovieLens Datasets: History and Context", ACM
TiiS 5(4), 2015. Nothing is unpacked: members of an archive are read in place, by known names.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dlcf.ratings import HALF_STARS, WHOLE_STARS
from dlcf.runtime import paths

GROUPLENS = "https://files.grouplens.org/datasets/movielens/"
TIMEOUT = (3, 10)  # seconds for the connection, and for each part of an answer
LARGEST_MEMBER = 4 * 2**30  # bytes; ratings.csv of ml-32m, the largest file read here, has 0.9e9
LARGEST_RATIO = 200  # of unpacked to packed size; MovieLens' text files stay below 10
RECBOLE = "recbole==1.2.1"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
RECBOLE_FOLDER = "recbole/dataset_example/ml-100k"
RATINGS_FILES = ("ratings.csv", "ratings.dat", "u.data", "ml-100k.inter")


class DataUnavailableError(OSError):
    """The data set is neither on this machine nor can it be downloaded."""


@dataclass(frozen=True)
class Dataset:
    """A published MovieLens archive, the folder inside it, and its scale of ratings in stars.

    Where `sha256` is None, no digest is on record, and the MD5 that GroupLens publishes next to
    the archive is fetched with it.
    """

    archive: str
    folder: str
    scale: tuple[float, float]
    sha256: str | None


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


def is_available(name: str | Path, data_dir: str | Path | None = None) -> bool:
    """Whether `load_ratings`, which takes the same arguments, would need no network."""
    return (found := _find(name, data_dir)) is not None and bool(found.first(RATINGS_FILES))


def resolve_dataset(name: str, data_dir: str | Path | None = None) -> str:
    """The data set to work on: `name`, which is downloaded where it has to be, or a substitute.

    The substitute is "ml-100k", said in one printed line, where "ml-latest-small" cannot be
    reached: a machine that can install Python packages can install ML-100K with them. Arguments
    and errors are those of `load_ratings`; on return, the data set is on this machine.
    """
    try:
        obtain(name, data_dir)
        return name
    except DataUnavailableError:
        if name != "ml-latest-small":
            raise
    problem = f"{name} is not on this machine and GroupLens cannot be reached"
    print(f"{problem}: running on ml-100k instead.", flush=True)
    obtain("ml-100k", data_dir)
    return "ml-100k"


def fetch_ml100k_from_package_index(folder: Path | None = None) -> Path:
    """Take ML-100K out of RecBole's wheel, for machines that reach a package index only.

    pip downloads the wheel without its dependencies; nothing is installed. The folder returned is
    ``ml-100k/`` in `folder`, or else where downloads go, and holds ``ml-100k.inter`` (100,000
    ratings of 1,682 movies by 943 users) and ``ml-100k.item``. DataUnavailableError where pip
    cannot download the wheel, ValueError where its checksum is wrong.
    """
    target = paths.path(folder or _folders(None)[0]) / "ml-100k"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--retries=1", "--timeout=5"]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            command += ["--dest", scratch, RECBOLE]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        except subprocess.TimeoutExpired:
            reason = "no answer within five minutes"
        wheel = next(Path(scratch).glob("*.whl"), None)
        if wheel is None:
            raise DataUnavailableError(f"pip cannot download {RECBOLE}: {reason}")
        _verify(wheel, RECBOLE_SHA256)
        source = Source(wheel, RECBOLE_FOLDER)
        # The ratings come last, because the folder is later found by them.
        for file in ("ml-100k.item", "ml-100k.inter"):
            with source.open(file) as stream:
                paths.write_atomically(target / file, stream.read())
    return target


@dataclass(frozen=True)
class Source:
    """A folder in MovieLens form, or the archive that holds one."""

    path: Path
    folder: str = ""

    def has(self, file: str) -> bool:
        if self.path.is_dir():
            return (self.path / file).is_file()
        with self._archive() as archive:
            return f"{self.folder}/{file}" in archive.namelist()

    def first(self, files: tuple[str, ...]) -> str:
        """The first of `files` that is here."""
        found = next(filter(self.has, files), None)
        if found is None:
            raise ValueError(f"{self.path} holds none of {', '.join(files)}; add one of them")
        return found

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
            size = member.file_size
            if size > min(LARGEST_MEMBER, LARGEST_RATIO * member.compress_size):
                problem = f"{member.filename} would unpack to {size} bytes, more than MovieLens has"
                raise ValueError(f"{self.path}: {problem}; delete it and download it again")
            with archive.open(member) as stream:
                yield stream

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            problem = f"{self.path} is damaged ({error}); delete it and download it again"
            raise ValueError(problem) from error


def _folders(data_dir: str | Path | None) -> list[Path]:
    """Folders looked in, in order; the first is the one that downloads go to."""
    named = (data_dir, os.getenv("DLCF_DATA_DIR"))
    given = [paths.path(folder) for folder in named if folder]
    return [*given, paths.DATA, paths.ROOT.parent / "shared" / "data"]


def _find(name: str | Path, data_dir: str | Path | None) -> Source | None:
    """The data set where it is on this machine."""
    if isinstance(name, Path) or name not in DATASETS:
        if (folder := paths.path(name)).is_dir():
            return Source(folder)
        known = f"use one of {', '.join(DATASETS)}, or a folder that holds ratings.csv"
        raise ValueError(f"unknown data set {str(name)!r}; {known} in MovieLens form")
    dataset = DATASETS[name]
    for folder in _folders(data_dir):
        archive = folder / dataset.archive
        if archive.is_file():
            _verify(archive, dataset.sha256)
            return Source(archive, dataset.folder)
        for extracted in map(Source, (folder / name, folder / dataset.folder)):
            if extracted.path.is_dir() and any(map(extracted.has, RATINGS_FILES)):
                return extracted
    return None


def obtain(name: str | Path, data_dir: str | Path | None) -> Source:
    """The data set from this machine, or else downloaded to it."""
    found = _find(name, data_dir)
    if found is not None:
        return found
    name = str(name)
    dataset, folders = DATASETS[name], _folders(data_dir)
    try:
        return Source(_download(dataset, folders[0]), dataset.folder)
    except (OSError, ValueError) as error:  # no connection, no such page, or a wrong checksum
        first: BaseException = error
        while (cause := first.__cause__ or first.__context__) is not None:
            first = cause  # the others wrap it in more and more words
        reasons = [f"{GROUPLENS}{dataset.archive}: {str(first) or type(first).__name__}"]
    if name == "ml-100k":
        try:
            return Source(fetch_ml100k_from_package_index(folders[0]))
        except OSError as error:
            reasons.append(str(error))
    raise DataUnavailableError(
        f"{name} is in none of {', '.join(map(str, folders))}, and cannot be downloaded "
        f"({'; '.join(textwrap.shorten(reason, 300) for reason in reasons)}): put "
        f"{dataset.archive} into {folders[0]}, or set DLCF_DATA_DIR to the folder that holds it"
    )


def _download(dataset: Dataset, folder: Path) -> Path:
    """Fetch an archive from GroupLens; it takes its name in `folder` only once it is verified."""
    if dataset.sha256 is not None:
        return _fetch(dataset.archive, f"sha256:{dataset.sha256}", folder)
    with tempfile.TemporaryDirectory() as scratch:
        page = _fetch(dataset.archive + ".md5", None, Path(scratch)).read_text("utf-8")
    md5 = _md5_in(page, f"{GROUPLENS}{dataset.archive}.md5")
    archive = _fetch(dataset.archive, f"md5:{md5}", folder)
    # Kept beside the archive, to verify it by from now on.
    paths.write_atomically(archive.with_suffix(".zip.md5"), page)
    return archive


def _md5_in(page: str, source: object) -> str:
    """The checksum in ``HASH  name`` or in ``MD5 (name) = HASH``."""
    found = re.search(r"(?<!\S)[0-9a-fA-F]{32}(?!\S)", page)
    if found is None:
        raise ValueError(f"{source} holds no checksum; replace it by the one that GroupLens has")
    return found[0].lower()


def _fetch(file: str, known_hash: str | None, folder: Path) -> Path:
    import pooch  # here, because only a download needs it and it warns in a plain notebook

    site = pooch.create(folder, GROUPLENS, registry={file: known_hash}, retry_if_failed=1)
    fetch = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)

    def download(url: str, temporary: str, *more: Any) -> None:
        Path(temporary).unlink()  # pooch makes it for nobody but the user, whatever the umask
        fetch(url, temporary, *more)

    return Path(site.fetch(file, downloader=download))


def _verify(path: Path, sha256: str | None) -> None:
    """Refuse a file whose checksum is wrong. It is left as it is: it may be somebody's only copy.

    Without a SHA-256 on record the MD5 kept beside the archive counts, and without that one the
    CRC-32 of each member, which `zipfile` checks while it reads.
    """
    kind, expected, md5_file = "sha256", sha256, path.with_suffix(".zip.md5")
    if sha256 is None and md5_file.is_file():
        kind, expected = "md5", _md5_in(md5_file.read_text("utf-8", "replace"), md5_file)
    if expected is not None and (found := digest_of(path, kind)) != expected:
        problem = f"{path} has the wrong checksum: {kind} {found}, expected {expected}"
        raise ValueError(f"{problem}; delete the file, and it is downloaded again")


def digest_of(path: Path, kind: str = "sha256") -> str:
    """Hexadecimal digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
