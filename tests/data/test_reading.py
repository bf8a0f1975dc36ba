"""Reading ratings, movies and tags, and what is said of a wrong file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from movielens_files import CSV, HEAD, ITEM, MOVIES_CSV, ROWS, TAGS_CSV, folder_with, frame

from dlcf import data
from dlcf.data import archives
from dlcf.ratings import COLUMNS, DTYPES, check_ratings, rating_scale
from dlcf.runtime import paths

# --------------------------------------------------------------------------------------- forms


def test_csv_folder_has_the_four_dtypes_and_the_order_of_the_file(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "mine", ratings_csv=CSV)
    ratings = data.load_ratings(str(folder))
    expected = frame().astype(DTYPES)
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
    pd.testing.assert_frame_equal(data.load_ratings(tmp_path), frame().astype(DTYPES))


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
            st.integers(0, 2**32 - 1),
        ),
        min_size=1,
        unique_by=lambda row: row[:2],
    )
)
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("round")
    ratings = frame(rows).astype(DTYPES)
    ratings.to_csv(folder / "ratings.csv", index=False)
    pd.testing.assert_frame_equal(data.load_ratings(folder), ratings)
    assert check_ratings(ratings) is ratings


# ----------------------------------------------------------------------------- errors of files

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
        (HEAD.replace("\n", ",rating\n") + "1,11,4.0,5,1.0\n",
         "ratings.csv: column 'rating' comes twice; drop one of them"),
        (HEAD.replace("rating", "rating,rating") + "1,11,4.0,1.0,5\n",
         "ratings.csv: column 'rating' comes twice; drop one of them"),
        (HEAD + "9007199254740993,11,4.0,5\n5.0,11,4.0,5\n",
         "ratings.csv, row 2: userId 9007199254740993 is too large to be exact as a decimal"),
        (HEAD + GOOD + "1,11,4.0,-9223372036854775808\n",
         "ratings.csv, row 3: timestamp -9223372036854775808 is before 1901; "),
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


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"movies_dat": "1::A (1990)::War\n2::Face::Off (1997)::Action\n"},
         "movies.dat, row 2: not movieId, title, genres with '::' between; correct or"),
        ({"u_genre": "Action|0\nCrime|1\n", "u_item": "1|A|x||u|0|1\n2|B|x||u|0|1|1\n"},
         "u.item, row 2: not movieId, title, "),
        ({"u_genre": "Action|0\nCrime|War|1\n", "u_item": "1|A|x||u|0|1\n"},
         "u.genre, row 2: not genre, number"),
        ({"ml-100k_item": ITEM + "3\tC\t1995\tWar\tDrama\n"}, "ml-100k.item, row 5: not item_id"),
        ({"movies_csv": "movieId,title,genres,title\n2,Heat (1995),Crime,Other\n"},
         "movies.csv: column 'title' comes twice; drop one of them"),
    ],
)  # fmt: skip
def test_more_fields_or_columns_than_there_are_is_refused(
    files: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load_movies(folder_with(tmp_path / "mine", **files))


def test_a_column_of_a_numbered_name_is_another(tmp_path: Path) -> None:
    head, *rows = CSV.splitlines()
    csv = [head + ",rating.1,,", *(row + ",1.0,," for row in rows)]
    folder = folder_with(tmp_path / "mine", ratings_csv="\n".join(csv))
    pd.testing.assert_frame_equal(data.load_ratings(folder), frame().astype(DTYPES))


def test_scale_of_the_data_set_is_enforced(tmp_path: Path) -> None:
    folder_with(tmp_path / "ml-1m", ratings_dat="1::2::4::5\n1::3::3.5::6\n1::4::0.5::6\n")
    with pytest.raises(ValueError, match=r"row 3: rating 0.5 is off the scale 1.0 to 5.0"):
        data.load_ratings("ml-1m", tmp_path)


def damaged(rows: list[str], where: int, damage: str) -> tuple[bytes, str]:
    """The file with a row damaged, and what is said of it; rows hold no line end."""
    row = rows[where]
    separator = "," if "," in row else "\t"
    rows = list(rows)
    if damage == "NUL in a number":
        rows[where] = row[:1] + "\0" + row[1:]
    elif damage == "hole":
        rows[where] = row[:2] + "\0" * 300
    elif damage == "hole over line ends":
        rows[where : where + 2] = [row[:3] + "\0" * 40 + rows[where + 1][-6:]]
    elif damage == "a field more":
        rows[where] += separator + "5"
    elif damage == "truncated":
        where = len(rows) - 1
        rows[where] = rows[where].rpartition(separator)[0]
        return "\n".join(rows).encode(), f"row {where + 1}"
    return ("\n".join(rows) + "\n").encode(), f"row {where + 1}"


DAMAGES = ["NUL in a number", "hole", "hole over line ends", "a field more", "truncated"]
LONG = [(user, 10 * user, 3.5 if user % 2 else 4.0, 964982703 + user) for user in range(11, 400)]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("where", [1, 2, 200])
@pytest.mark.parametrize("file", ["ratings.csv", "u.data", "ratings.dat", "ml-100k.inter"])
@pytest.mark.filterwarnings("ignore::pandas.errors.ParserWarning")
def test_damaged_ratings_are_refused(file: str, where: int, damage: str, tmp_path: Path) -> None:
    separator = {"ratings.csv": ",", "ratings.dat": "::"}.get(file, "\t")
    rows = [separator.join(map(str, row)) for row in LONG]
    if file in ("ratings.csv", "ml-100k.inter"):
        rows.insert(0, separator.join(COLUMNS))
    else:
        where -= 1
    if damage == "a field more" and file == "ratings.dat":
        rows[where] += "::5"
        content, row = "\n".join(rows).encode(), f"row {where + 1}"
    elif damage == "truncated" and file == "ratings.dat":
        rows[-1] = rows[-1].rpartition("::")[0]
        content, row = "\n".join(rows).encode(), f"row {len(rows)}"
    else:
        content, row = damaged(rows, where, damage)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(file)) as caught:
        data.load_ratings(tmp_path)
    assert re.search(f"{row}:|line {row[4:]},", str(caught.value)), caught.value


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("where", [1, 2, 200])
def test_damaged_movies_are_refused(where: int, damage: str, tmp_path: Path) -> None:
    rows = [f"{row[0]},Some Title ({row[0] + 1600}),Drama|War" for row in LONG]
    content, row = damaged(["movieId,title,genres", *rows], where, damage)
    (tmp_path / "movies.csv").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape("movies.csv")) as caught:
        data.load_movies(tmp_path)
    assert re.search(f"{row}:|line {row[4:]},", str(caught.value)), caught.value


def test_a_nul_in_other_files_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a", movies_dat="1::A (1990)::War\n2::B\0 (1991)::War\n")
    with pytest.raises(ValueError, match=r"movies\.dat, row 2: a NUL byte"):
        data.load_movies(folder)
    folder = folder_with(tmp_path / "b", tags_csv=TAGS_CSV.replace("it's", "it\0s"))
    with pytest.raises(ValueError, match=r"tags\.csv, row 3: a NUL byte"):
        data.load_tags(folder)


def test_whole_files_are_read_the_fast_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlcf.data.reading._read_carefully", None)
    for file, separator in (("ratings.csv", ","), ("ratings.dat", "::"), ("u.data", "\t")):
        rows = [separator.join(map(str, row)) for row in LONG]
        head = [",".join(COLUMNS)] if file == "ratings.csv" else []
        folder = tmp_path / file.replace(".", "-")
        folder.mkdir()
        (folder / file).write_text("\n".join([*head, *rows]) + "\n\n")
        pd.testing.assert_frame_equal(data.load_ratings(folder), frame(LONG).astype(DTYPES))


# ------------------------------------------------------------------------------- the real data


def real(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(archives.__file__).resolve().parents[2]
    monkeypatch.setattr(paths, "ROOT", root)
    monkeypatch.setattr(paths, "DATA", root / "data")
    if not data.is_available(name):
        pytest.skip(f"{name} is not on this machine")


def test_real_ml_latest_small(monkeypatch: pytest.MonkeyPatch) -> None:
    real("ml-latest-small", monkeypatch)
    ratings = data.load_ratings("ml-latest-small")
    assert ratings.shape == (100_836, 4)
    assert (ratings["userId"].nunique(), ratings["movieId"].nunique()) == (610, 9_724)
    assert rating_scale(ratings) == (0.5, 5.0)
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
    assert rating_scale(ratings) == (1.0, 5.0)
    movies = data.load_movies("ml-100k").set_index("movieId")
    assert len(movies) == 1_682
    assert movies.loc[1].tolist()[:2] == ["Toy Story", 1995]
    assert movies.loc[267, "title"] == "unknown"
