"""The study of the related systems: what is hidden, who is told what, and means by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dlcf.paper import related
from dlcf.paper.related import Cell, by_content, left_out, load_related, ranked_cold
from dlcf.registry import make
from dlcf.splits import split

MDA = {"factors": 3, "iterations": 2}


@pytest.fixture
def tags(toy_ratings: pd.DataFrame) -> pd.DataFrame:
    """Two tags: of a pair that is rated, and of one that is not."""
    pair = toy_ratings.iloc[[0]][["userId", "movieId"]].assign(tag="slow burning")
    return pd.concat([pair, pair.assign(userId=10**6, tag="unheard of")], ignore_index=True)


def test_the_latest_rating_is_ranked_whatever_its_stars(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    cell = Cell("one left out", "ease", 0)
    found = left_out(make("ease"), toy_ratings, toy_movies, "", cell)
    train, test = split(toy_ratings, "leave-last-out", seed=0)
    model = make("ease").fit(train)
    hits = [
        movie in model.recommend(user, k=10)["movieId"].tolist()
        for user, movie in test[["userId", "movieId"]].to_numpy()
    ]
    assert found["recall, full"].mean() == pytest.approx(np.mean(hits))
    assert len(found) == toy_ratings["userId"].nunique()
    # Of sixty movies all that are not rated are among the hundred that are drawn.
    assert found["recall, sampled"].tolist() == found["recall, full"].tolist()


def test_cold_movies_have_no_rating_in_train(
    toy_ratings: pd.DataFrame,
    toy_movies: pd.DataFrame,
    tags: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: dict[str, Any] = {}

    def fit(self: Any, train: pd.DataFrame, validation: Any = None, movies: Any = None) -> Any:
        told["train"], told["movies"] = train, movies
        return usual(self, train, validation, movies)

    usual = related.Recommender.fit
    monkeypatch.setattr(related.Recommender, "fit", fit)
    monkeypatch.setattr(related, "load_tags", lambda _: tags)
    columns = {"nothing": ["movieId"], "genres": ["movieId", "genres"]}
    columns["all"] = [*toy_movies.columns, "tags"]
    for name, expected in columns.items():
        cell = Cell("content", "mda-cf", 3, name, MDA)
        found = by_content(make("mda-cf", **MDA), toy_ratings, toy_movies, "", cell)
        assert list(told["movies"]) == expected
        train = told["train"]
        rest = toy_ratings.drop(train.index)
        cold = ~rest["movieId"].isin(train["movieId"])
        assert rest.loc[cold, "movieId"].nunique() == 6  # a tenth of sixty
        assert found["ratings, cold"].sum() == cold.sum()
        assert found["ratings, warm"].sum() == (~cold).sum() == pytest.approx(135, abs=40)
        squared = (usual(make("mda-cf", **MDA), train, None, told["movies"]).predict(rest)
                   - rest["rating"]) ** 2  # fmt: skip
        assert found["squared, cold"].sum() == pytest.approx(squared[cold].sum())
        assert found["squared, warm"].sum() == pytest.approx(squared[~cold].sum())
    first = (toy_ratings["userId"].iloc[0], toy_ratings["movieId"].iloc[0])
    with_tag = dict(zip(told["movies"]["movieId"], told["movies"]["tags"], strict=True))
    known = ((train["userId"] == first[0]) & (train["movieId"] == first[1])).any()
    assert with_tag[first[1]] == (["slow burning"] if known else [])
    assert sum(map(len, with_tag.values())) == int(known)


def test_only_cold_movies_are_ranked_against_each_other() -> None:
    class Known:
        user_ids = np.array([1, 2, 3])

        def score_described(self, users: Any) -> Any:
            scores = {1: [9, 1, 2, 3], 2: [9, 3, 2, 1], 3: [9, 0, 0, 5]}
            return np.array([10, 11, 12, 13]), np.array([scores[u] for u in users], np.float32)

    rows = [(1, 12, 4.0), (1, 13, 4.5), (1, 11, 2.0), (2, 13, 5.0), (3, 11, 1.0), (7, 11, 5.0)]
    test = pd.DataFrame(rows, columns=["userId", "movieId", "rating"])
    known: Any = Known()
    found = ranked_cold(known, test, np.array([11, 12, 13]))
    # User 1 likes the first two of the three; user 2 the last; 3 none; 7 is not known.
    assert found.to_dict() == pytest.approx({1: 1.0, 2: 0.5})


def test_the_study_keeps_and_compares(
    dataset: str,
    cache: Path,
    tmp_path: Path,
    tags: pd.DataFrame,
    toy_movies: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(related, "load_movies", lambda _: toy_movies)
    monkeypatch.setattr(related, "ONE_OUT", {"ease": {}, "popular": {}})
    monkeypatch.setattr(related, "CONTENT", {"mda-cf": MDA})
    monkeypatch.setattr(related, "DRAWS", (0, 1))
    monkeypatch.setattr(related, "COSTS", ("bias", "mda-cf"))
    monkeypatch.setattr(related, "load_tags", lambda _: tags)
    output = tmp_path / "related.json"
    chosen = ["--dataset", dataset, "--workers", "1", "--output", str(output)]
    assert related.main(chosen) == 0
    first = load_related(output)
    monkeypatch.setattr(related, "left_out", None)  # all is kept
    assert related.main(chosen) == 0
    again = load_related(output)
    costs = again.pop("costs"), first.pop("costs")
    assert again == first
    assert [{name: of["floats"] for name, of in c.items() if name != "ratings"} for c in costs] == [
        {"bias": 1 + 40 + 60, "mda-cf": 1 + 40 + 60 + 20 * (40 + 60)}
    ] * 2
    tables = [Cell("one left out", m, s, "all").measure(dataset) for m in ("ease", "popular")
              for s in (0, 1)]  # fmt: skip
    full = first["one left out"]["ndcg, full"]
    means = [pd.concat(tables[i : i + 2])["ndcg, full"].mean() for i in (0, 2)]
    assert [full["models"][m][0] for m in ("ease", "popular")] == pytest.approx(means, abs=1e-5)
    assert full["pairs"]["ease; popular"][0] == pytest.approx(means[0] - means[1], abs=2e-5)
    content = first["content"]["mda-cf"]
    assert content["rmse, cold"]["models"].keys() == {"nothing", "genres", "all"}
    assert content.keys() == {"rmse, warm", "ndcg, warm", "rmse, cold", "ndcg, cold"}
