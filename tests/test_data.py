"""Reading, checking and finding the data; nothing here reaches beyond this machine."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcf import data
from dlcf.runtime import paths

ROWS = [(1, 10, 4.0, 964982703), (1, 20, 3.5, 964981247), (2, 10, 0.5, 847434962)]
CSV = "userId,movieId,rating,timestamp\n" + "".join(f"{u},{m},{r},{t}\n" for u, m, r, t in ROWS)
MOVIES_CSV = (
    "movieId,title,genres\n"
    '10,"Matrix, The (1999)",Action|Sci-Fi\n'
    "20,Null,(no genres listed)\n"
    "30,NA (2012) ,Film-Noir\n"
)
TAGS_CSV = "userId,movieId,tag,timestamp\n2,10,NA,1445714994\n2,10,it's great,1445714996\n"


def make_archive(
    path: Path, files: dict[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def frame(rows: list[tuple[Any, ...]] = ROWS, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=data.COLUMNS).assign(**columns)


def folder_with(folder: Path, **files: str | bytes) -> Path:
    """A folder with the files given; the name's last underscore stands for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        file = folder / ".".join(name.rsplit("_", 1))
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout of its own, without data, and with nobody to ask."""
    monkeypatch.delenv("DLCF_DATA_DIR", raising=False)
    monkeypatch.setattr(paths, "ROOT", tmp_path / "checkout")
    monkeypatch.setattr(paths, "DATA", tmp_path / "checkout" / "data")
    monkeypatch.setattr(data, "GROUPLENS", "http://127.0.0.1:9/")  # the discard port: refused

    def no_pip(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution")

    monkeypatch.setattr(subprocess, "run", no_pip)
    monkeypatch.setattr("time.sleep", lambda _: None)


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


Answer = Callable[[str], tuple[bytes, int]]


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
    monkeypatch.setattr(data, "GROUPLENS", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


# ------------------------------------------------------------------------------------- forms


def test_csv_folder_has_the_four_dtypes_and_the_order_of_the_file(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "mine", ratings_csv=CSV)
    ratings = data.load_ratings(str(folder))
    expected = frame().astype(data.DTYPES)
    pd.testing.assert_frame_equal(ratings, expected)
    assert isinstance(ratings.index, pd.RangeIndex)
    pd.testing.assert_frame_equal(data.load_ratings(folder), expected)
    assert data.load_tags(folder).empty
    assert list(data.load_tags(folder).dtypes.astype(str))[::2] == ["int64", "object"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ratings.csv", "\ufeff" + CSV),
        ("ratings.csv", CSV.replace("\n", "\r\n")),
        ("ratings.csv", CSV + "\n"),
        ("ratings.csv", "movieId,userId,extra,rating,timestamp\n"
         + "".join(f"{m},{u},x,{r},{t}\n" for u, m, r, t in ROWS)),
        ("ratings.dat", "".join(f"{u}::{m}::{r}::{t}\n" for u, m, r, t in ROWS)),
        ("u.data", "".join(f"{u}\t{m}\t{r}\t{t}\n" for u, m, r, t in ROWS)),
        ("ml-100k.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
         + "".join(f"{u}\t{m}\t{r}\t{t}.0\n" for u, m, r, t in ROWS)),
    ],
)  # fmt: skip
def test_every_form_of_the_ratings_reads_the_same(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    pd.testing.assert_frame_equal(data.load_ratings(tmp_path), frame().astype(data.DTYPES))


def test_movies_and_tags_csv(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "mine", movies_csv=MOVIES_CSV, tags_csv=TAGS_CSV)
    movies = data.load_movies(folder)
    assert movies["movieId"].dtype == "int64"
    assert movies["title"].tolist() == ["Matrix, The", "Null", "NA"]
    assert str(movies["year"].dtype) == "Int16"
    assert movies["year"].fillna(0).tolist() == [1999, 0, 2012]
    assert movies["genres"].tolist() == [["Action", "Sci-Fi"], [], ["Film-Noir"]]
    tags = data.load_tags(folder)
    assert tags["tag"].tolist() == ["NA", "it's great"]
    assert tags["timestamp"].tolist() == [1445714994, 1445714996]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_movies_and_tags_dat(tmp_path: Path, encoding: str) -> None:
    movies_dat = "1::Léon: The Professional (1994)::Crime|Drama\n2::Star Wars (1977)::Sci-Fi\n"
    folder = folder_with(
        tmp_path / "mine",
        movies_dat=movies_dat.encode(encoding),
        tags_dat="15::1::a::b: é::1215184630\n".encode(encoding),
    )
    movies = data.load_movies(folder)
    assert movies["title"].tolist() == ["Léon: The Professional", "Star Wars"]
    assert movies["genres"].tolist() == [["Crime", "Drama"], ["Sci-Fi"]]
    assert data.load_tags(folder).to_dict("list") == {
        "userId": [15], "movieId": [1], "tag": ["a::b: é"], "timestamp": [1215184630]
    }  # fmt: skip


def test_movies_of_ml_100k(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path / "mine",
        u_genre="unknown|0\nAction|1\nFilm-Noir|2\n\n",
        u_item=(
            "1|Cérémonie, La (1995)|01-Jan-1995||http://x|0|1|1\n"
            "2|Land Before Time III (1995) (V)|01-Jan-1995||http://x|0|0|1\n"
            "267|unknown||||1|0|0\n"
        ).encode("latin-1"),
    )
    movies = data.load_movies(folder)
    assert movies["title"].tolist() == ["Cérémonie, La", "Land Before Time III", "unknown"]
    assert movies["year"].fillna(0).tolist() == [1995, 1995, 0]
    assert movies["genres"].tolist() == [["Action", "Film-Noir"], ["Film-Noir"], []]
    (folder / "u.genre").unlink()
    with pytest.raises(ValueError, match=r"holds no u\.genre"):
        data.load_movies(folder)


ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tToy Story\t1995\tAnimation Children's Sci-Fi\n"
    "267\tunkonwn\tunkonwn\tunknown\n"
    "1412\tLand Before Time III (1995)\tV\tAnimation\n"
)


def test_movies_of_recbole(tmp_path: Path) -> None:
    (tmp_path / "ml-100k.item").write_text(ITEM)
    movies = data.load_movies(tmp_path)
    assert movies["title"].tolist() == ["Toy Story", "unknown", "Land Before Time III"]
    assert movies["year"].fillna(0).tolist() == [1995, 0, 1995]
    assert movies["genres"].tolist() == [["Animation", "Children's", "Sci-Fi"], [], ["Animation"]]


@pytest.mark.parametrize(
    ("text", "title", "year"),
    [
        ("Toy Story (1995)", "Toy Story", 1995),
        ("Matrix, The (1999)", "Matrix, The", 1999),
        ("Justice League: Doom (2012) ", "Justice League: Doom", 2012),
        ("Death Note: Desu nôto (2006–2007)", "Death Note: Desu nôto", 2006),
        ("Fawlty Towers (1975-1979)", "Fawlty Towers", 1975),
        ("Stranger Things (2016– )", "Stranger Things", 2016),
        ("Das Millionenspiel (1970 )", "Das Millionenspiel", 1970),
        ("City of Lost Children, The (Cité des enfants perdus, La) (1995)",
         "City of Lost Children, The (Cité des enfants perdus, La)", 1995),
        ("9 (2009)", "9", 2009),
        ("1984 (1956)", "1984", 1956),
        ("2010 (1984) (1985)", "2010 (1984)", 1985),
        ("(500) Days of Summer (2009)", "(500) Days of Summer", 2009),
        ("Babylon 5", "Babylon 5", None),
        ("(1995)", "(1995)", None),
        ("Land Before Time III (1995) (V)", "Land Before Time III", 1995),
    ],
)  # fmt: skip
def test_titles(tmp_path: Path, text: str, title: str, year: int | None) -> None:
    folder = folder_with(tmp_path / "t", movies_csv=f'movieId,title,genres\n1,"{text}",Drama\n')
    movie = data.load_movies(folder).iloc[0]
    assert movie["title"] == title
    assert (None if movie["year"] is pd.NA else movie["year"]) == year


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 2**62),
            st.integers(1, 2**62),
            st.integers(1, 10).map(lambda halves: halves / 2),
            st.integers(0, 2**40),
        ),
        min_size=1,
        unique_by=lambda row: row[:2],
    )
)
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("round")
    ratings = frame(rows).astype(data.DTYPES)
    ratings.to_csv(folder / "ratings.csv", index=False)
    pd.testing.assert_frame_equal(data.load_ratings(folder), ratings)
    assert data.check_ratings(ratings) is ratings


# ------------------------------------------------------------------------------ errors of files

HEAD = "userId,movieId,rating,timestamp\n"
GOOD = "1,10,4.0,5\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "ratings.csv is empty"),
        (HEAD, "ratings.csv is empty"),
        ("\n\n", "ratings.csv is empty"),
        ("userId,movieId,timestamp\n1,2,3\n", "column 'rating' is missing; add it"),
        ("userId,movieId,rating\n1,2,3\n", "column 'timestamp' is missing; add it"),
        (HEAD + GOOD + "1,11,,5\n", "ratings.csv, row 3: rating is missing (NaN); fill it in"),
        (HEAD + GOOD + "1,11,4.0\n", "ratings.csv, row 3: timestamp is missing (NaN)"),
        (HEAD + GOOD + ",11,4.0,5\n", "ratings.csv, row 3: userId is missing (NaN)"),
        (HEAD + GOOD + "1,11,five,5\n", "ratings.csv, row 3: rating 'five' is not a number"),
        (HEAD + GOOD + "1,11,inf,5\n", "ratings.csv, row 3: rating inf is infinite"),
        (HEAD + GOOD + "1,11,7.0,5\n",
         "ratings.csv, row 3: rating 7.0 is off the scale 0.5 to 5.0; correct or drop the row"),
        (HEAD + "\n" + GOOD + "\n1,11,0.0,5\n", "ratings.csv, row 5: rating 0.0 is off the scale"),
        (HEAD + GOOD + "1.5,11,4.0,5\n", "ratings.csv, row 3: userId 1.5 is not a whole number"),
        (HEAD + GOOD + "1,99999999999999999999,4.0,5\n",
         "row 3: movieId 99999999999999999999 is not a whole number of 64 bits"),
        (HEAD + GOOD + "2,10,4.0,5\n1,10,3.0,6\n",
         "ratings.csv, row 4: duplicate pair of userId 1 and movieId 10, which row 2 holds too"),
        (HEAD + GOOD + "1,2,3,4,5,6\n", "ratings.csv is malformed: "),
        (HEAD + GOOD + '"1,2,3,4\n', "ratings.csv is malformed: "),
        (b"\xff\xfe\x00\x01\x02\x03\n\x80\x81", "column 'userId' is missing"),
        (HEAD.encode() + b"1,1\xe9,4.0,5\n", "ratings.csv, row 2: movieId '1\ufffd' is not a num"),
    ],
)  # fmt: skip
def test_wrong_csv_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load_ratings(folder_with(tmp_path / "mine", ratings_csv=content))


def test_lines_are_counted_from_one_without_a_header(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "mine", u_data="1\t10\t4\t5\n1\t11\t9\t5\n")
    with pytest.raises(ValueError, match=r"u\.data, row 2: rating 9 is off the scale"):
        data.load_ratings(folder)


def test_wrong_lines_of_movies_and_tags_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", movies_dat="1::A (1990)::Drama\n2::B\n")
    with pytest.raises(ValueError, match=r"movies\.dat, row 2: not movieId, title, genres"):
        data.load_movies(folder)
    folder = folder_with(tmp_path / "b", movies_csv="movieId,title,genres\n1,A,x\n1,B,x\n")
    with pytest.raises(ValueError, match=r"movies\.csv, row 3: movieId 1 is listed twice"):
        data.load_movies(folder)
    folder = folder_with(tmp_path / "c", movies_csv="movieId,genres\n1,x\n")
    with pytest.raises(ValueError, match="column 'title' is missing"):
        data.load_movies(folder)
    folder = folder_with(tmp_path / "d", movies_csv="")
    with pytest.raises(ValueError, match=r"movies\.csv is malformed"):
        data.load_movies(folder)
    folder = folder_with(tmp_path / "e", tags_csv="userId,movieId,tag,timestamp\nx,1,y,2\n")
    with pytest.raises(ValueError, match=r"tags\.csv, row 2: userId 'x' is not a number"):
        data.load_tags(folder)


# ----------------------------------------------------------------------------- errors of frames


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
        (frame(timestamp=pd.to_datetime(["2020-01-01"] * 3)), "row 0: timestamp '2020-01-0"),
        (frame(userId=[1, 2, 1], movieId=[9, 9, 9]),
         "row 2: duplicate pair of userId 1 and movieId 9, which row 0 holds too; keep one"),
        (frame(userId=[2**62, -(2**62), 2**62], movieId=[9, 9, 9]), "row 2: duplicate pair"),
    ],
)  # fmt: skip
def test_wrong_ratings_frame_is_refused(wrong: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        data.check_ratings(wrong)


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
    checked = data.check_ratings(given, scale=(1, 5))
    assert list(checked.dtypes.astype(str)) == ["int64", "int64", "float32"]
    assert list(checked.columns) == ["userId", "movieId", "rating"]
    assert list(checked.index) == [7, 8, 9]
    assert list(given.columns) == ["extra", "rating", "movieId", "userId"]
    with pytest.raises(ValueError, match="test set: column 'timestamp' is missing"):
        data.check_ratings(given, source="test set", require_timestamp=True)
    with pytest.raises(ValueError, match=r"rating 1 is off the scale 2 to 5"):
        data.check_ratings(given, scale=(2, 5))
    with pytest.raises(TypeError, match="ratings frame is a list"):
        data.check_ratings([1, 2])  # type: ignore[arg-type]


def test_check_pairs() -> None:
    pairs = data.check_pairs(frame([*ROWS, *ROWS]))
    assert list(pairs.columns) == ["userId", "movieId"]
    assert len(pairs) == 6
    assert pairs.dtypes.astype(str).tolist() == ["int64", "int64"]
    empty = data.check_pairs(pd.DataFrame({"userId": [], "movieId": []}))
    assert empty.dtypes.astype(str).tolist() == ["int64", "int64"]
    assert data.check_pairs(pd.DataFrame(columns=["userId", "movieId"])).shape == (0, 2)
    with pytest.raises(ValueError, match="pairs frame: column 'movieId' is missing"):
        data.check_pairs(pd.DataFrame({"userId": [1]}))
    with pytest.raises(ValueError, match="pairs frame, row 1: userId is missing"):
        data.check_pairs(pd.DataFrame({"userId": [1, None], "movieId": [1, 2]}))


@pytest.mark.parametrize(
    ("ratings", "scale"),
    [([1, 5], (1, 5)), ([3], (1, 5)), ([3.5, 4], (0.5, 5)), ([0.5, 1], (0.5, 5))],
)
def test_rating_scale(ratings: list[float], scale: tuple[float, float]) -> None:
    assert data.rating_scale(pd.DataFrame({"rating": ratings})) == scale


@pytest.mark.parametrize("ratings", [[], [6.0], [np.nan], [0.0, 3.0]])
def test_rating_scale_refuses_what_is_on_no_scale(ratings: list[float]) -> None:
    with pytest.raises(ValueError, match="ratings frame"):
        data.rating_scale(pd.DataFrame({"rating": ratings}))


def test_fingerprint_depends_on_the_content_alone() -> None:
    ratings = frame().astype(data.DTYPES)
    expected = "95d6dee2d22b42f1b7c2930e351baa2daee10c165ce17e598dc7068ea6637768"
    assert data.fingerprint(ratings) == expected  # pinned: the same on every platform
    assert data.fingerprint(ratings.set_index(pd.Index([5, 6, 7]))) == expected
    changed = [
        ratings[::-1],
        ratings[data.COLUMNS[::-1]],
        ratings[:2],
        ratings.assign(rating=ratings["rating"] - 0.5),
        ratings.rename(columns={"rating": "stars"}),
        ratings.astype({"rating": "float64"}),
    ]
    assert len({expected, *map(data.fingerprint, changed)}) == len(changed) + 1
    assert data.fingerprint(pd.DataFrame({"genres": [["a"], []]})) != data.fingerprint(
        pd.DataFrame({"genres": [[], ["a"]]})
    )


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
    with pytest.raises(ValueError, match=r"holds none of ratings\.csv, ratings\.dat"):
        data.load_ratings(tmp_path)


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
    pd.testing.assert_frame_equal(data.load_ratings(data_dir=given), frame().astype(data.DTYPES))
    assert data.load_movies(data_dir=given).shape == (3, 4)
    assert data.load_tags(data_dir=given).shape == (2, 4)
    assert len(list(given.iterdir())) == 1  # nothing is unpacked


def test_scale_of_the_data_set_is_enforced(tmp_path: Path) -> None:
    folder_with(tmp_path / "ml-1m", ratings_dat="1::2::4::5\n1::3::3.5::6\n1::4::0.5::6\n")
    with pytest.raises(ValueError, match=r"row 3: rating 0.5 is off the scale 1.0 to 5.0"):
        data.load_ratings("ml-1m", tmp_path)


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


# ----------------------------------------------------------------------------------- downloading


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
        data._download(data.DATASETS["ml-latest-small"], tmp_path / "new")
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
    (paths.DATA / "ml-10m.zip").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"wrong checksum: md5 .*, expected {digest}"):
        data.load_ratings("ml-10m")


def test_nothing_reachable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(data.DataUnavailableError, match=r"ml-25m is in none of .* DLCF_DATA_DIR"):
        data.resolve_dataset("ml-25m")
    with pytest.raises(data.DataUnavailableError, match="ERROR: No matching distribution"):
        data.load_ratings("ml-100k")
    assert capsys.readouterr().out == ""
    assert data.resolve_dataset("ml-latest-small") == "ml-100k"
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "running on ml-100k instead" in printed


# --------------------------------------------------------------------------------- package index

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n"


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that brings a small wheel, which counts as the genuine one; returns its calls."""
    calls: list[list[str]] = []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{data.RECBOLE_FOLDER}/ml-100k.inter", INTER)
        archive.writestr(f"{data.RECBOLE_FOLDER}/ml-100k.item", ITEM)
    content = buffer.getvalue()

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        target = Path(command[command.index("--dest") + 1])
        (target / "recbole-1.2.1-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(data, "RECBOLE_SHA256", hashlib.sha256(content).hexdigest())
    return calls


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
    monkeypatch.setattr(data, "RECBOLE_SHA256", "0" * 64)
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


# ---------------------------------------------------------------------------------- the real data


def real(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(data.__file__).resolve().parents[1]
    monkeypatch.setattr(paths, "ROOT", root)
    monkeypatch.setattr(paths, "DATA", root / "data")
    if not data.is_available(name):
        pytest.skip(f"{name} is not on this machine")


def test_real_ml_latest_small(monkeypatch: pytest.MonkeyPatch) -> None:
    real("ml-latest-small", monkeypatch)
    ratings = data.load_ratings("ml-latest-small")
    assert ratings.shape == (100_836, 4)
    assert (ratings["userId"].nunique(), ratings["movieId"].nunique()) == (610, 9_724)
    assert data.rating_scale(ratings) == (0.5, 5.0)
    assert ratings.iloc[0].tolist() == [1, 1, 4.0, 964982703]
    movies = data.load_movies("ml-latest-small")
    assert len(movies) == 9_742
    assert set(ratings["movieId"]) <= set(movies["movieId"])
    assert movies["year"].isna().sum() == 12
    assert movies["year"].min() == 1902
    assert movies["genres"].map(len).eq(0).sum() == 34
    assert not movies["title"].str.contains(r"\(\d{4}").any()
    assert len(data.load_tags("ml-latest-small")) == 3_683


def test_real_ml_100k(monkeypatch: pytest.MonkeyPatch) -> None:
    real("ml-100k", monkeypatch)
    ratings = data.load_ratings("ml-100k")
    assert len(ratings) == 100_000
    assert (ratings["userId"].nunique(), ratings["movieId"].nunique()) == (943, 1_682)
    assert data.rating_scale(ratings) == (1.0, 5.0)
    movies = data.load_movies("ml-100k").set_index("movieId")
    assert len(movies) == 1_682
    assert movies.loc[1].tolist()[:2] == ["Toy Story", 1995]
    assert movies.loc[267, "title"] == "unknown"
