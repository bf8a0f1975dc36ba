"""Protocols against tables worked by hand and against a plain loop over users."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

import dlcf
from dlcf.evaluation import RankedLists, evaluate, per_user, per_user_errors, rank
from dlcf.models.base import Interactions, Recommender, top_k
from dlcf.splits import split


class Scripted(Recommender):
    """Predicts and ranks by a table given beforehand: the truth of the test is known."""

    name = "scripted"

    def __init__(self, table: dict[tuple[int, int], float]) -> None:
        self.table = table

    def _fit(
        self, data: Interactions, validation: Interactions | None, movies: pd.DataFrame | None
    ) -> None:
        pass

    def _predict(
        self,
        users: NDArray[np.int64],
        movies: NDArray[np.int64],
        timestamps: NDArray[np.int64] | None,
    ) -> NDArray[np.float64]:
        pairs = zip(self.user_ids[users].tolist(), self.movie_ids[movies].tolist(), strict=True)
        return np.array([self.table.get(pair, 0.5) for pair in pairs])


def frame(rows: list[tuple[int, int, float]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["userId", "movieId", "rating"])
    return table.astype({"rating": "float32"})


# User 1 has rated 10 and user 2 has rated 11 and 14; the catalogue is 10 to 14.
TRAIN = frame([(1, 10, 3.0), (2, 11, 4.5), (2, 14, 0.5), (3, 12, 3.0), (3, 13, 3.0)])
TEST = frame([(1, 11, 5.0), (1, 12, 2.0), (1, 13, 4.0), (2, 10, 4.0), (2, 99, 5.0), (3, 10, 1.0)])
TABLE = {
    (1, 10): 5.0, (1, 11): 3.0, (1, 12): 4.0, (1, 13): 2.0, (1, 14): 4.5,
    (2, 10): 4.0, (2, 11): 5.0, (2, 12): 3.0, (2, 13): 3.5, (2, 14): 5.0,
    (3, 10): 2.0,
}  # fmt: skip


@pytest.fixture
def scripted() -> Recommender:
    return Scripted(TABLE).fit(TRAIN)


def test_full_protocol_by_hand(scripted: Recommender) -> None:
    """User 1 is shown 14, 12, 11, 13 and wants 11 and 13; user 2 is shown 10 and wants 10 and 99.

    Movie 10 is in user 1's training set and is not shown, though it has the best score; movie 99
    is outside the catalogue and cannot be shown, but it counts as wanted. User 3 wants nothing.
    """
    result = per_user(scripted, TRAIN, TEST, "full", k=3)
    assert result.index.tolist() == [1, 2]
    assert result["precision"].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert result["recall"].tolist() == [0.5, 0.5]
    ideal = 1 + 1 / np.log2(3)
    assert result["ndcg"].tolist() == pytest.approx([(1 / np.log2(4)) / ideal, 1 / ideal])


def test_rated_protocol_by_hand(scripted: Recommender) -> None:
    """User 1's rated test movies by prediction: 12 (2 stars), 11 (5), 13 (4); k = 2 cuts 13."""
    result = per_user(scripted, TRAIN, TEST, "rated", k=2)
    assert result.loc[1, "precision"] == 0.5
    assert result.loc[1, "recall"] == 0.5
    assert result.loc[1, "ndcg"] == pytest.approx((2 + 5 / np.log2(3)) / (5 + 4 / np.log2(3)))
    assert result.loc[2, ["precision", "recall", "ndcg"]].max() <= 1.0


def test_a_short_list_divides_precision_by_its_own_length(scripted: Recommender) -> None:
    rated = per_user(scripted, TRAIN, TEST, "rated", k=10)
    assert rated["precision"].tolist() == pytest.approx([2 / 3, 1.0])
    full = per_user(scripted, TRAIN, TEST, "full", k=10)
    assert full["precision"].tolist() == pytest.approx([2 / 4, 1 / 3])


def test_a_perfect_model_scores_one(toy_ratings: pd.DataFrame) -> None:
    train, test = dlcf.split(toy_ratings, seed=1)
    truth = {(r.userId, r.movieId): float(r.rating) for r in test.itertuples()}
    result = evaluate(Scripted(truth).fit(train), train, test, "rated")
    known = test["movieId"].isin(train["movieId"]) & test["userId"].isin(train["userId"])
    assert known.all()
    assert result["rmse"] == 0.0
    assert result["ndcg@10"] == pytest.approx(1.0)


def test_the_threshold_decides_what_is_relevant(toy_ratings: pd.DataFrame) -> None:
    train, test = dlcf.split(toy_ratings, seed=1)
    model = dlcf.make("bias").fit(train)
    low, high = (evaluate(model, train, test, "rated", threshold=t) for t in (1.0, 4.5))
    assert low["precision@10"] > high["precision@10"]
    assert low["rmse"] == high["rmse"]


@pytest.mark.parametrize("protocol", ["rated", "full"])
@pytest.mark.parametrize("name", ["bias", "popular", "mf"])
def test_protocols_match_a_plain_loop(toy_ratings: pd.DataFrame, protocol: str, name: str) -> None:
    """A second implementation: sort each user's candidates in pandas and count."""
    train, test = dlcf.split(toy_ratings, "user-temporal")
    model = dlcf.make(name).fit(train)
    k, threshold = 5, 4.0
    rows = {}
    for user, rated in test.groupby("userId"):
        relevant = set(rated.loc[rated["rating"] >= threshold, "movieId"])
        if not relevant:
            continue
        if protocol == "rated":
            score = pd.Series(model.predict(rated), index=rated["movieId"])
            gain = rated.set_index("movieId")["rating"].astype(float)
        else:
            score = pd.Series(model.score_all([user])[0], index=model.movie_ids)
            score = score.drop(train.loc[train["userId"] == user, "movieId"])
            gain = pd.Series(1.0, index=list(relevant)).reindex(score.index, fill_value=0.0)
        shown = score.sort_values(ascending=False).index[:k]
        if score.loc[shown].min() == score.drop(shown).max():
            continue  # a tie at the end of the list, where the order is a matter of choice
        if score.loc[shown].duplicated().any():
            continue
        discount = 1 / np.log2(np.arange(len(shown)) + 2)
        best = gain.sort_values(ascending=False).to_numpy()[:k]
        rows[user] = (
            len(relevant & set(shown)) / len(shown),
            len(relevant & set(shown)) / len(relevant),
            float(gain.loc[shown] @ discount / (best @ discount[: len(best)])),
        )
    assert len(rows) > 10
    ours = per_user(model, train, test, protocol, k, threshold)
    np.testing.assert_allclose(ours.loc[list(rows)].to_numpy(), list(rows.values()), rtol=1e-9)


def test_equal_scores_do_not_favour_low_ids() -> None:
    ratings = pd.DataFrame(
        {"userId": np.repeat(np.arange(200), 11), "movieId": np.tile(np.arange(11) * 9, 200)}
    ).assign(rating=np.float32(3.0))
    ratings = ratings[ratings["movieId"] != 9 * (ratings["userId"] % 11)]
    test = pd.DataFrame({"userId": np.arange(200), "movieId": 9 * (np.arange(200) % 11)})
    model = dlcf.make("global-mean").fit(ratings)
    result = evaluate(model, ratings.iloc[:400], test.assign(rating=np.float32(5.0)), k=1)
    assert result["precision@1"] < 0.3


def test_sampled_candidates_come_with_a_warning_and_flatter(toy_ratings: pd.DataFrame) -> None:
    """Fewer rivals make every list better; of 60 movies a sample of 100 is all of them."""
    train, test = dlcf.split(toy_ratings, seed=2)
    model = dlcf.make("popular").fit(train)
    full = evaluate(model, train, test, "full", k=5)
    with pytest.warns(UserWarning, match="Krichene and Rendle"):
        everything = evaluate(model, train, test, "sampled", k=5)
    assert everything == full
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlcf.evaluation._SAMPLED_MOVIES", 5)
        with pytest.warns(UserWarning):
            few = evaluate(model, train, test, "sampled", k=5)
        with pytest.warns(UserWarning):
            assert evaluate(model, train, test, "sampled", k=5) == few
    assert few["ndcg@5"] > 1.2 * full["ndcg@5"] and few["rmse"] == full["rmse"]


def test_top_k_breaks_ties_by_column() -> None:
    scores = np.array([[1.0, 3.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    assert top_k(scores, 2).tolist() == [[1, 2], [0, 1]]
    assert top_k(scores, 9).tolist() == [[1, 2, 3, 0, 4], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "by-moon"}, "unknown protocol 'by-moon'; choose one of rated, full$"),
        ({"k": 0}, "k is 0"),
        ({"k": 2.0}, "k is 2.0"),
        ({"threshold": 6.0}, "no test rating reaches"),
    ],
)
def test_wrong_arguments_are_named(
    scripted: Recommender, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(scripted, TRAIN, TEST, **arguments)  # type: ignore[arg-type]


class Constant(Recommender):
    """Every movie has the same score."""

    name = "constant"

    def _fit(self, data: Any, validation: Any, movies: Any) -> None:
        pass

    def _predict(self, users: Any, movies: Any, timestamps: Any) -> Any:
        return np.full(len(users), 3.0)


def test_ties_of_the_catalogue_do_not_go_to_low_ids(toy_ratings: pd.DataFrame) -> None:
    """Ids grow with a movie's age in the data set: by id, a tie would favour old movies."""
    train, test = split(toy_ratings, seed=0)
    model = dataclass(Constant)().fit(train)
    lists = rank(model, train, test, "full", k=5)
    place = np.searchsorted(model.movie_ids, lists.movies)
    middle = (len(model.movie_ids) - 1) / 2
    assert abs(place.mean() - middle) < 0.25 * middle
    again = rank(model, train, test, "full", k=5)
    assert np.array_equal(lists.movies, again.movies)
    # The order is one for all users: who has seen neither of two movies is shown the same first.
    order = {movie: i for i, movie in enumerate(lists.movies[0])}
    for shown in lists.movies[1:]:
        known = [order[movie] for movie in shown if movie in order]
        assert known == sorted(known)


def same(first: RankedLists, second: RankedLists) -> bool:
    names = [field.name for field in fields(RankedLists)]
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


class Levels(Recommender):
    """One movie is the best, the others have four scores: ties within a list, and at its end."""

    name = "levels"

    def _fit(self, data: Any, validation: Any, movies: Any) -> None:
        pass

    def _predict(self, users: Any, movies: Any, timestamps: Any) -> Any:
        ids = self.movie_ids[movies]
        return np.where(ids == self.movie_ids[0], 5.0, 1.0 + ids % 4)


def test_what_is_measured_and_on_how_much(scripted: Recommender) -> None:
    found = evaluate(scripted, TRAIN, TEST, "full", k=3)
    lists = ["precision@3", "recall@3", "f1@3", "ndcg@3"]
    assert list(found) == ["rmse", "mae", *lists, "ratings", "users"]
    error = scripted.predict(TEST) - TEST["rating"]
    assert found["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert found["mae"] == pytest.approx(error.abs().mean())
    precision, recall = 1 / 3, 0.5
    assert found["f1@3"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert (found["ratings"], found["users"]) == (6, 2)
    assert per_user(scripted, TRAIN, TEST).index.name == "userId"
    assert per_user_errors(scripted, TEST).index.name == "userId"


def test_the_defaults_are_the_catalogue_ten_places_and_four_stars(
    toy_ratings: pd.DataFrame,
) -> None:
    train, test = split(toy_ratings, seed=1)
    model = dlcf.make("bias").fit(train)
    given = "full", 10, 4.0
    assert evaluate(model, train, test) == evaluate(model, train, test, *given)
    assert per_user(model, train, test).equals(per_user(model, train, test, *given))
    assert same(rank(model, train, test), rank(model, train, test, *given))


def test_lists_by_hand(scripted: Recommender) -> None:
    """Longer than the catalogue: places behind the last movie are -1, and no hits."""
    full = rank(scripted, TRAIN, TEST, "full", k=6)
    assert full.users.tolist() == [1, 2]
    assert full.movies.tolist() == [[14, 12, 11, 13, -1, -1], [10, 13, 12, -1, -1, -1]]
    assert full.hits.tolist() == [[False, False, True, True, False, False], [True] + 5 * [False]]
    assert full.ideal.tolist() == 2 * [[True, True] + 4 * [False]]
    assert full.length.tolist() == [4, 3] and full.n_relevant.tolist() == [2, 2]
    rated = rank(scripted, TRAIN, TEST, "rated", k=4)
    assert rated.movies.tolist() == [[12, 11, 13, -1], [10, 99, -1, -1]]
    assert rated.gains.tolist() == [[2.0, 5.0, 4.0, 0.0], [4.0, 5.0, 0.0, 0.0]]
    assert rated.ideal.tolist() == [[5.0, 4.0, 2.0, 0.0], [5.0, 4.0, 0.0, 0.0]]
    assert rated.length.tolist() == [3, 2]
    for lists in (full, rated):
        assert lists.hits.dtype == bool
        assert lists.length.dtype == lists.n_relevant.dtype == np.int64
    assert rank(scripted, TRAIN, TEST, "full", k=1).length.tolist() == [1, 1]
    with pytest.warns(UserWarning):
        sampled = rank(scripted, TRAIN, TEST, "sampled", k=6)
    assert same(sampled, full)  # of five movies a sample of 100 is all of them


def test_a_list_without_a_movie_is_one_wrong_place(scripted: Recommender) -> None:
    seen = frame([(2, movie, 3.0) for movie in range(10, 15)])
    lists = rank(scripted, seen, TEST[TEST["userId"] == 2], "full", k=3)
    assert lists.movies.tolist() == [[-1, -1, -1]] and lists.length.tolist() == [1]


@pytest.mark.parametrize("protocol", ["rated", "full"])
def test_ids_of_movies_are_only_names(protocol: str) -> None:
    """0 and numbers below it, too."""
    lists = []
    for shift in (0, 12):
        table = {(user, movie - shift): stars for (user, movie), stars in TABLE.items()}
        train, test = (t.assign(movieId=t["movieId"] - shift) for t in (TRAIN, TEST))
        lists.append(rank(Scripted(table).fit(train), train, test, protocol, k=3))
    first, second = lists
    assert np.array_equal(first.hits, second.hits)
    assert first.length.tolist() == second.length.tolist()
    assert (first.movies[first.movies > 0] - 12).tolist() == second.movies[
        first.movies > 0
    ].tolist()


@pytest.mark.parametrize("protocol", ["rated", "full"])
def test_a_list_is_the_head_of_a_longer_one(protocol: str, toy_ratings: pd.DataFrame) -> None:
    """Ties included: they are in one order, wherever a list is cut."""
    train, test = split(toy_ratings, seed=0)
    user = test["userId"].iloc[0]
    train = train[train["userId"] != user]  # of whom nothing is known: all movies are candidates
    model = Levels().fit(train)
    longest = rank(model, train, test, protocol, k=60)
    for k in range(1, 60):
        assert same(rank(model, train, test, protocol, k=k), longest.cut(k)), k
    constant = Constant().fit(train)
    one = test[test["userId"] == user]
    longest = rank(constant, train, one, protocol, k=60)
    assert same(rank(constant, train, one, protocol, k=10), longest.cut(10))


def test_how_many_users_are_ranked_at_once_does_not_matter(
    toy_ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = split(toy_ratings, seed=2)
    model = Levels().fit(train)
    monkeypatch.setattr("dlcf.evaluation._SAMPLED_MOVIES", 5)
    found: dict[str, list[RankedLists]] = {"full": [], "sampled": []}
    for at_once in (64, 7):
        monkeypatch.setattr("dlcf.evaluation._USERS_AT_ONCE", at_once)
        found["full"].append(rank(model, train, test, "full"))
        with pytest.warns(UserWarning):
            found["sampled"].append(rank(model, train, test, "sampled"))
    for lists in found.values():
        assert same(*lists)


def test_sampled_candidates_are_the_relevant_movies_and_so_many_others(
    toy_ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = split(toy_ratings, seed=2)
    monkeypatch.setattr("dlcf.evaluation._SAMPLED_MOVIES", 5)
    with pytest.warns(UserWarning):
        lists = rank(Levels().fit(train), train, test, "sampled", k=60)
    assert np.isin(test["movieId"], train["movieId"]).all()
    assert lists.hits.sum(axis=1).tolist() == lists.n_relevant.tolist()
    assert lists.length.tolist() == (lists.n_relevant + 5).tolist()


def test_frames_are_called_what_they_are(scripted: Recommender) -> None:
    for train, test, name in ((TRAIN[:0], TEST, "train"), (TRAIN, TEST[:0], "test")):
        with pytest.raises(ValueError, match=f"^{name} is empty"):
            rank(scripted, train, test)
    with pytest.raises(ValueError, match=r"^test is empty"):
        per_user_errors(scripted, TEST[:0])
