"""Finding, downloading and verifying the data."""

from __future__ import annotations

import hashlib
import io
import os
import re
import socket
import stat
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from movielens_files import CSV, HEAD, ITEM, MOVIES_CSV, TAGS_CSV, folder_with, frame, make_archive

from dlcf import data
from dlcf.data import archives
from dlcf.ratings import DTYPES
from dlcf.runtime import paths


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive that counts as the genuine ml-latest-small, outside the folders looked in."""
    archive = make_archive(
        tmp_path / "published" / "ml-latest-small.zip",
        {
            "ml-latest-small/ratings.csv": CSV,
            "ml-latest-small/movies.csv": MOVIES_CSV,
            "ml-latest-small/tags.csv": TAGS_CSV,
        },
    )
    entry = replace(data.DATASETS["ml-latest-small"], sha256=sha256(archive))
    monkeypatch.setitem(data.DATASETS, "ml-latest-small", entry)
    return archive


def put(archive: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / archive.name).write_bytes(archive.read_bytes())
    return folder / archive.name


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A GroupLens of our own: `site["answers"]` are its bodies and announced lengths, in turn."""
    state: dict[str, Any] = {"answers": {}, "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            state["asked"].append(name)
            answers = state["answers"].get(name)
            if not answers:
                self.send_error(404)
                return
            body, length = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(archives, "GROUPLENS", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


# ------------------------------------------------------------------------------------- finding


def test_registry() -> None:
    assert data.DATASETS["ml-10m"].archive == "ml-10m.zip"
    assert data.DATASETS["ml-10m"].folder == "ml-10M100K"
    assert data.DATASETS["ml-1m"].scale == (1, 5)
    assert data.DATASETS["ml-32m"].scale == (0.5, 5)
    for entry in data.DATASETS.values():
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)


def test_unknown_name_lists_the_known_ones() -> None:
    for load in (data.load_ratings, data.load_movies, data.load_tags, data.is_available):
        with pytest.raises(ValueError, match=r"'ml-2m'; use one of ml-latest-small, .*or a folder"):
            load("ml-2m")


def test_folder_without_ratings(tmp_path: Path) -> None:
    for load in (data.load_ratings, data.is_available):
        with pytest.raises(ValueError, match=r"holds none of ratings\.csv, ratings\.dat"):
            load(tmp_path)


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_is_not_the_working_directory(
    empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_with(tmp_path, ratings_csv=CSV)
    monkeypatch.chdir(tmp_path)
    assert len(data.load_ratings(".")) == 3
    for load in (data.load_ratings, data.load_movies, data.is_available, data.resolve_dataset):
        with pytest.raises(ValueError, match="a path is empty"):
            load(empty)


def test_the_users_home_is_meant_by_a_tilde(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_with(tmp_path / "mine", ratings_csv=CSV)
    for name in ("~/mine", Path("~/mine")):
        assert data.is_available(name) and len(data.load_ratings(name)) == 3
    put(small, tmp_path / "archives")
    assert len(data.load_ratings(data_dir="~/archives")) == 3
    monkeypatch.setenv("DLCF_DATA_DIR", "~/archives")
    assert len(data.load_ratings()) == 3


def test_lookup_order(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCF_DATA_DIR", str(tmp_path / "env"))
    given = tmp_path / "given"
    # Every place is filled, the last one first, and told apart by its number of ratings.
    places = [tmp_path / "shared" / "data", paths.DATA, tmp_path / "env", given]
    assert not data.is_available("ml-latest-small", given)
    for number, place in enumerate(places[:-1], start=1):
        folder = place / "ml-latest-small"
        rows = "".join(f"1,{movie},4.0,5\n" for movie in range(number))
        folder_with(folder, ratings_csv=HEAD + rows)
        assert data.is_available("ml-latest-small", given)
        assert len(data.load_ratings(data_dir=given)) == number
    put(small, given)
    pd.testing.assert_frame_equal(data.load_ratings(data_dir=given), frame().astype(DTYPES))
    assert data.load_movies(data_dir=given).shape == (3, 4)
    assert data.load_tags(data_dir=given).shape == (2, 4)
    assert len(list(given.iterdir())) == 1  # nothing is unpacked


@pytest.mark.parametrize("damage", ["truncated", "corrupt", "replaced", "empty"])
def test_wrong_checksum_is_refused_and_the_file_left_alone(small: Path, damage: str) -> None:
    archive = put(small, paths.DATA)
    content = bytearray(archive.read_bytes())
    if damage == "corrupt":
        content[60] ^= 0xFF
    wrong = {
        "truncated": bytes(content[:-40]),
        "corrupt": bytes(content),
        "replaced": b"<html>Please log in</html>",
        "empty": b"",
    }[damage]
    archive.write_bytes(wrong)
    expected = data.DATASETS["ml-latest-small"].sha256
    pattern = f"{archive} has the wrong checksum: sha256 {sha256(archive)}, expected {expected}"
    for load in (data.load_ratings, data.load_movies, data.resolve_dataset, data.is_available):
        with pytest.raises(ValueError, match=re.escape(pattern)):
            load("ml-latest-small")
    assert archive.read_bytes() == wrong


@pytest.mark.parametrize("damage", ["truncated", "corrupt", "replaced"])
def test_damaged_archive_without_a_known_checksum(tmp_path: Path, damage: str) -> None:
    rows = "".join(f"1,{movie},4.0,5\n" for movie in range(1000))
    archive = make_archive(tmp_path / "ml-32m.zip", {"ml-32m/ratings.csv": HEAD + rows})
    assert len(data.load_ratings("ml-32m", tmp_path)) == 1000
    content = bytearray(archive.read_bytes())
    if damage == "corrupt":
        content[100:110] = b"\0" * 10
    archive.write_bytes(
        {"truncated": content[:-30], "corrupt": content, "replaced": b"<html>"}[damage]
    )
    with pytest.raises(ValueError, match=r"ml-32m\.zip is damaged .*; delete it and download"):
        data.load_ratings("ml-32m", tmp_path)


def test_only_expected_members_are_read(small: Path, tmp_path: Path, monkeypatch: Any) -> None:
    members = {
        "../evil.csv": CSV,
        "/evil.csv": CSV,
        "ml-latest-small/../../ratings.csv": HEAD,
        "other/ratings.csv": HEAD,
        "ml-latest-small/ratings.csv": CSV,
    }
    archive = make_archive(tmp_path / "in" / "deep" / "ml-latest-small.zip", members)
    entry = replace(data.DATASETS["ml-latest-small"], sha256=sha256(archive))
    monkeypatch.setitem(data.DATASETS, "ml-latest-small", entry)
    before = sorted(tmp_path.rglob("*"))
    assert len(data.load_ratings(data_dir=archive.parent)) == 3
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match=r"holds none of movies\.csv"):
        data.load_movies(data_dir=archive.parent)


def test_zip_bomb_is_refused(tmp_path: Path) -> None:
    make_archive(tmp_path / "ml-32m.zip", {"ml-32m/ratings.csv": b"0" * 5_000_000})
    with pytest.raises(ValueError, match=r"would unpack to 5000000 bytes, more than MovieLens"):
        data.load_ratings("ml-32m", tmp_path)


# --------------------------------------------------------------------------------- downloading


def test_download_verifies_and_keeps_the_archive(small: Path, site: dict[str, Any]) -> None:
    content = small.read_bytes()
    site["answers"][small.name] = [(content, len(content))]
    assert not data.is_available("ml-latest-small")
    assert not site["asked"]
    assert data.resolve_dataset("ml-latest-small") == "ml-latest-small"
    assert data.is_available("ml-latest-small")
    assert len(data.load_ratings()) == 3
    assert site["asked"] == [small.name]
    assert [file.name for file in paths.DATA.iterdir()] == [small.name]


def test_downloads_have_the_users_permissions(small: Path, site: dict[str, Any]) -> None:
    content = small.read_bytes()
    site["answers"][small.name] = [(content, len(content))]
    before = os.umask(0o027)
    try:
        data.load_ratings()
    finally:
        os.umask(before)
    assert stat.S_IMODE((paths.DATA / small.name).stat().st_mode) == 0o640


def test_download_goes_to_the_folder_named(
    small: Path, site: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = small.read_bytes()
    site["answers"][small.name] = [(content, len(content))]
    monkeypatch.setenv("DLCF_DATA_DIR", str(tmp_path / "env"))
    data.load_ratings()
    assert (tmp_path / "env" / small.name).is_file()
    data.load_ratings(data_dir=tmp_path / "env" / "given")
    assert len(site["asked"]) == 1  # found where the first download put it
    assert not paths.DATA.exists()


@pytest.mark.parametrize("kind", ["truncated", "wrong", "short but announced so", "absent"])
def test_failed_download_leaves_nothing_and_a_later_one_works(
    small: Path, site: dict[str, Any], kind: str
) -> None:
    content = small.read_bytes()
    half = content[: len(content) // 2]
    bad = {
        "truncated": [(half, len(content))],
        "wrong": [(b"x" * len(content), len(content))],
        "short but announced so": [(half, len(half))],
        "absent": [],
    }[kind]
    site["answers"][small.name] = list(bad)
    with pytest.raises(data.DataUnavailableError, match="put ml-latest-small") as caught:
        data.load_ratings()
    assert str(paths.DATA) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(site["asked"]) == 2  # one retry
    assert not list(paths.DATA.glob("*"))
    site["answers"][small.name] = [*bad, (content, len(content))]  # a retry succeeds
    assert len(data.load_ratings()) == 3


def test_failed_download_leaves_a_good_copy_elsewhere_untouched(
    small: Path, site: dict[str, Any], tmp_path: Path
) -> None:
    good = put(small, paths.DATA)
    before = good.stat()
    site["answers"][small.name] = [(b"wrong", 5)]
    with pytest.raises(ValueError, match="hash"):
        archives._download(data.DATASETS["ml-latest-small"], tmp_path / "new")
    site["answers"]["ml-32m.zip"] = [(b"wrong", 5)]
    with pytest.raises(data.DataUnavailableError):
        data.load_ratings("ml-32m")
    assert (good.stat().st_mtime_ns, good.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert len(data.load_ratings()) == 3


def test_md5_is_fetched_where_no_sha256_is_on_record(site: dict[str, Any], tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "ml-10m.zip", {"ml-10M100K/ratings.dat": "1::2::3.5::4\n"})
    content = archive.read_bytes()
    digest = hashlib.md5(content).hexdigest()
    site["answers"]["ml-10m.zip"] = [(content, len(content))]
    page = b"0" * 32
    site["answers"]["ml-10m.zip.md5"] = [(page, len(page))]
    with pytest.raises(data.DataUnavailableError, match="hash"):
        data.load_ratings("ml-10m")
    page = b"<html>"
    site["answers"]["ml-10m.zip.md5"] = [(page, len(page))]
    with pytest.raises(data.DataUnavailableError, match="holds no checksum"):
        data.load_ratings("ml-10m")
    assert not list(paths.DATA.glob("*"))
    page = f"MD5 (ml-10m.zip) = {digest}\n".encode()
    site["answers"]["ml-10m.zip.md5"] = [(page, len(page))]
    assert data.load_ratings("ml-10m")["rating"].tolist() == [3.5]
    for page in (f"{digest}  ml-10m.zip\n", f"MD5 (ml-10m.zip) = {digest.upper()}\n", digest):
        (paths.DATA / "ml-10m.zip.md5").write_text(page)
        assert data.load_ratings("ml-10m")["rating"].tolist() == [3.5]
    (paths.DATA / "ml-10m.zip.md5").write_text("")
    with pytest.raises(ValueError, match=r"ml-10m\.zip\.md5 holds no checksum"):
        data.load_ratings("ml-10m")
    (paths.DATA / "ml-10m.zip.md5").write_text(page)
    (paths.DATA / "ml-10m.zip").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"wrong checksum: md5 .*, expected {digest}"):
        data.load_ratings("ml-10m")


def test_nothing_reachable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(data.DataUnavailableError, match=r"ml-25m is in none of .* DLCF_DATA_DIR"):
        data.resolve_dataset("ml-25m")
    with pytest.raises(data.DataUnavailableError, match="ERROR: No matching distribution"):
        data.load_ratings("ml-100k")
    assert capsys.readouterr().out == ""
    with pytest.raises(data.DataUnavailableError, match=r"ml-100k is in none of .* No matching"):
        data.resolve_dataset("ml-latest-small")


def test_the_reason_is_the_first_one_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what `requests` and `urllib3` wrap it in, which was cut off before it came to it."""

    def no_name(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    monkeypatch.setattr(archives, "GROUPLENS", "https://files.grouplens.org/datasets/movielens/")
    with pytest.raises(data.DataUnavailableError) as caught:
        data.load_ratings()
    said = str(caught.value)
    assert "ml-latest-small.zip: [Errno -2] Name or service not known): put" in said
    assert "\n" not in said and "Max retries" not in said
    assert caught.value.__cause__ is None and caught.value.__context__ is None


# ------------------------------------------------------------------------------- package index

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n"


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that brings a small wheel, which counts as the genuine one; returns its calls."""
    calls: list[list[str]] = []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{archives.RECBOLE_FOLDER}/ml-100k.inter", INTER)
        archive.writestr(f"{archives.RECBOLE_FOLDER}/ml-100k.item", ITEM)
    content = buffer.getvalue()

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        target = Path(command[command.index("--dest") + 1])
        (target / "recbole-1.2.1-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(archives, "RECBOLE_SHA256", hashlib.sha256(content).hexdigest())
    return calls


def test_ml_100k_stands_in_once_it_is_here(
    wheel: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert data.resolve_dataset("ml-latest-small") == "ml-100k"
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "running on ml-100k instead" in printed
    assert data.is_available("ml-100k")


def test_ml_100k_comes_from_the_package_index_at_last(wheel: list[list[str]]) -> None:
    ratings = data.load_ratings("ml-100k")
    assert ratings.to_numpy().tolist() == [[196, 242, 3, 881250949]]
    assert data.load_movies("ml-100k")["title"].tolist()[0] == "Toy Story"
    assert data.load_tags("ml-100k").empty
    assert data.is_available("ml-100k")
    assert len(wheel) == 1
    assert {"download", "--no-deps", "--only-binary=:all:", "recbole==1.2.1"} <= set(wheel[0])
    names = sorted(file.name for file in (paths.DATA / "ml-100k").iterdir())
    assert names == ["ml-100k.inter", "ml-100k.item"]


def test_wrong_wheel_is_refused(
    wheel: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = data.fetch_ml100k_from_package_index(tmp_path / "kept") / "ml-100k.inter"
    monkeypatch.setattr(archives, "RECBOLE_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"recbole.*wrong checksum.*expected 0000"):
        data.fetch_ml100k_from_package_index(tmp_path / "kept")
    with pytest.raises(ValueError, match="wrong checksum"):
        data.load_ratings("ml-100k")
    assert kept.read_text() == INTER
    assert not list(paths.DATA.glob("*"))


def test_pip_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(data.DataUnavailableError, match="no answer within five minutes"):
        data.fetch_ml100k_from_package_index()
