"""The measured parts of explanations on models whose truth is known; the reader's page and cell."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_explanation import Reading

from dlcf.explain import reader as reader_module
from dlcf.explain.history import leave_one_out, predicted_ratings
from dlcf.explain.reader import (
    Page,
    explain_for,
    find_counterfactual,
    genre_effects,
    page_of,
    reader,
)
from dlcf.explanation import Explanation, HistoryItem
from dlcf.models.base import Recommender
from dlcf.registry import make

USER = 7
WEIGHTS: dict[int, dict[int, float]] = {  # of each rated movie in the prediction of an unrated one
    101: {1: 0.5, 2: -0.25, 3: 0.1, 4: 0.0},
    102: {1: 0.0, 2: 0.1, 3: 0.3, 4: 0.0},
    103: {1: 0.0, 2: 0.0, 3: 0.1, 4: 0.0},
}
MOVIES = pd.DataFrame(
    {
        "movieId": [1, 2, 3, 4, 101, 102, 103],
        "title": ["One", "Two", 'Thr<b>"&ee', "Four", "A", "B", "C"],
        "genres": [["Drama", "War"], ["War"], [], ["Drama"], ["War"], ["Drama"], []],
    }
)


class Linear(Recommender):
    """Predicts ``3 + sum_j w_j (r_j - 3)``: the effect of a rating is ``w_j (r_j - 3)``."""

    name = "linear"
    scale = (0.5, 5.0)
    user_ids = np.array([USER])
    movie_ids = MOVIES["movieId"].to_numpy()
    titles = None
    movie_counts = np.ones(len(MOVIES), dtype=np.int64)

    def __init__(self, ratings: Mapping[int, float], attended: tuple[int, ...] = ()) -> None:
        self.ratings, self.attended = dict(ratings), attended

    def predict(self, pairs: pd.DataFrame) -> np.ndarray:
        weights = [WEIGHTS.get(movie, {}) for movie in pairs["movieId"]]
        rated = [sum(w[j] * (r - 3) for j, r in self.ratings.items() if w) for w in weights]
        return np.clip(3.0 + np.array(rated), *self.scale)

    def score_all(self, user_ids: Any, at: float | None = None) -> np.ndarray:
        return self.predict(pd.DataFrame({"movieId": self.movie_ids})).astype(np.float32)[None]

    def seen(self, user_ids: Any) -> tuple[np.ndarray, np.ndarray]:
        columns = np.flatnonzero(np.isin(self.movie_ids, list(self.ratings)))
        return np.zeros(len(columns), np.int64), columns

    def title(self, movie_id: int) -> str | None:
        return None

    def explain(self, user_id: int, movie_id: int) -> Explanation:
        if not self.attended:
            return super().explain(user_id, movie_id)
        items = tuple(HistoryItem(j, None, self.ratings[j], 0.2) for j in self.attended)
        rating = float(self.predict(pd.DataFrame({"movieId": [movie_id]}))[0])
        return Explanation(
            user_id, movie_id, (rating - 0.5) / 4.5, 0.6, 0.4, rating, self.scale, history=items
        )

    def ratings_of(self, user_id: int) -> pd.DataFrame:
        pairs = self.ratings.items() if user_id == USER else []
        return pd.DataFrame(pairs, columns=["movieId", "rating"])

    def revised(self, user_id: int, changes: Mapping[int, float | None]) -> Linear:
        ratings = {**self.ratings, **changes}
        return Linear({j: r for j, r in ratings.items() if r is not None}, self.attended)

    def _fit(self, *_: Any) -> None: ...

    def _predict(self, *_: Any) -> Any: ...


@pytest.fixture
def linear() -> Linear:
    return Linear({1: 5.0, 2: 4.0, 3: 2.0, 4: 1.0})


@pytest.fixture(scope="module")
def fitted(toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame) -> dict[str, Recommender]:
    small: dict[str, dict[str, Any]] = {
        "item-knn": {"neighbors": 5, "shrinkage": 10.0},
        "ease": {"regularization": 20.0},
        "deepcf": {"epochs": 1, "embedding_size": 8, "hidden": (12, 6), "dropout": (0.2, 0.1)},
        "deepcf-plus": {
            "embedding_size": 4, "history_size": 8, "folds": 2, "cuts": (0.5,),
            "epochs": 2, "batch_size": 256,
        },
    }  # fmt: skip
    return {
        name: make(name, **settings).fit(toy_ratings, movies=toy_movies)
        for name, settings in small.items()
    }


def effects(explanation: Explanation) -> dict[int, float | None]:
    return {item.movie_id: item.effect for item in explanation.history}


class TestEffects:
    def test_they_are_those_of_the_linear_model(self, linear: Linear) -> None:
        found = leave_one_out(linear, USER, [101, 102], [1, 2, 3], predicted_ratings)
        np.testing.assert_allclose(found, [[1.0, 0.0], [-0.25, 0.1], [-0.1, -0.3]], atol=1e-12)
        assert leave_one_out(linear, USER, [101, 102], [], predicted_ratings).shape == (0, 2)

    def test_the_history_is_in_their_order(self, linear: Linear) -> None:
        why = explain_for(linear, USER, 101, movies=MOVIES)
        assert effects(why) == pytest.approx({1: 1.0, 2: -0.25, 3: -0.1, 4: 0.0})
        assert list(effects(why)) == [1, 2, 3, 4]
        assert [item.title for item in why.history] == ["One", "Two", 'Thr<b>"&ee', "Four"]
        assert why.title == "A" and why.rating == pytest.approx(3.65)
        assert math.isnan(why.user_weight) and why.strength == pytest.approx(3.15 / 4.5)

    def test_only_what_is_attended_to_is_left_out(self, linear: Linear) -> None:
        attentive = Linear(linear.ratings, attended=(3, 2))
        why = explain_for(attentive, USER, 101)
        assert effects(why) == pytest.approx({2: -0.25, 3: -0.1})
        assert why.user_weight == 0.6 and why.history[0].weight == 0.2

    def test_where_there_are_too_many_the_related_are_left_out(
        self, fitted: dict[str, Recommender], toy_ratings: pd.DataFrame,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        model = fitted["item-knn"]
        monkeypatch.setattr(reader_module, "MEASURED", 5)
        user = int(model.user_ids[0])
        movie = int(model.recommend(user, 1)["movieId"].iloc[0])
        who = {m: set(rows["userId"]) for m, rows in toy_ratings.groupby("movieId")}
        mine = toy_ratings.loc[toy_ratings["userId"] == user, "movieId"]
        cosine = {m: len(who[m] & who[movie]) / math.sqrt(len(who[m])) for m in mine}
        nearest = sorted(mine, key=lambda m: (-cosine[m], m))[:5]
        assert set(effects(explain_for(model, user, movie))) == set(nearest)

    @pytest.mark.parametrize("name", ["item-knn", "ease", "deepcf-plus"])
    def test_they_are_differences_of_predictions(
        self, fitted: dict[str, Recommender], toy_movies: pd.DataFrame, name: str
    ) -> None:
        model = fitted[name]
        user = int(model.user_ids[3])
        listed = pd.DataFrame({"userId": user, "movieId": model.recommend(user)["movieId"]})
        # Where the scale cuts a prediction, no rating has an effect on it.
        pair = listed.iloc[[np.argmin(model.predict(listed))]]
        movie = int(pair["movieId"].iloc[0])
        why = explain_for(model, user, movie, movies=toy_movies)
        assert why.rating == model.predict(pair)[0]
        assert why.measured and any(abs(item.effect or 0) > 1e-4 for item in why.history)
        for item in why.history[:3]:
            without = model.revised(user, {item.movie_id: None}).predict(pair)[0]
            # deepcf-plus measures its own, with the others' biases as they are.
            near = 2e-3 if name == "deepcf-plus" else 1e-12
            assert item.effect == pytest.approx(why.rating - without, abs=near)
        sizes = [abs(item.effect or 0) for item in why.history]
        assert sizes == sorted(sizes, reverse=True)
        Reading(why._repr_html_())

    def test_a_rating_does_not_explain_itself(self, fitted: dict[str, Recommender]) -> None:
        model = fitted["item-knn"]
        user = int(model.user_ids[0])
        rated = int(model.ratings_of(user)["movieId"].iloc[0])
        why = explain_for(model, user, rated)
        assert why.history and rated not in effects(why)

    def test_a_model_that_keeps_no_ratings_still_explains(
        self, fitted: dict[str, Recommender], toy_movies: pd.DataFrame
    ) -> None:
        model = fitted["deepcf"]
        user, movie = int(model.user_ids[0]), int(model.movie_ids[0])
        why = explain_for(model, user, movie, movies=toy_movies, calibration=lambda s: s)
        assert why.history == () and why.counterfactual is None and why.genres == ()
        said = {"chance": None, "threshold": None, "method": None, "faithfulness": None}
        assert replace(why, **said) == replace(model.explain(user, movie), **said)
        assert why.chance == why.strength and why.threshold == 4.0
        assert why.method == "attention" and why.faithfulness == model.faithfulness

    @pytest.mark.parametrize("name", ["item-knn", "ease", "deepcf", "deepcf-plus"])
    def test_the_unknown_is_explained(
        self, fitted: dict[str, Recommender], toy_movies: pd.DataFrame, name: str
    ) -> None:
        model = fitted[name]
        user, movie = int(model.user_ids[0]), int(model.movie_ids[0])
        for pair in ((-1, movie), (-1, -1)):
            why = explain_for(model, *pair, movies=toy_movies)
            assert why.history == () and why.counterfactual is None and not why.known_user
        assert not explain_for(model, user, -1, movies=toy_movies).known_movie


class TestMethod:
    def test_it_is_what_the_model_says_of_its_weights(self, linear: Linear) -> None:
        attentive = Linear(linear.ratings, attended=(3, 2))
        assert explain_for(attentive, USER, 101).method is None
        attentive.explanation_method, attentive.faithfulness = "attention", 0.25  # type: ignore
        why = explain_for(attentive, USER, 101)
        assert (why.method, why.faithfulness) == ("attention", 0.25)
        assert "(attention; faithfulness 0.25 of 1 on held-out data)" in why.text()


class TestGenres:
    def test_a_film_shares_its_effect_among_its_genres(self) -> None:
        history = [HistoryItem(j, None, 4.0, 0.0, e) for j, e in ((1, 0.4), (2, -0.5), (3, 9.0))]
        history.append(HistoryItem(4, None, 4.0, 0.0, None))
        history.append(HistoryItem(999, None, 4.0, 0.0, 1.0))
        found = genre_effects(history, MOVIES)
        assert [(g.genre, g.ratings) for g in found] == [("War", 2), ("Drama", 1)]
        assert [g.effect for g in found] == pytest.approx([-0.3, 0.2])

    def test_they_sum_to_the_effects_of_films_with_genres(self, linear: Linear) -> None:
        why = explain_for(linear, USER, 101, movies=MOVIES)
        assert sum(g.effect for g in why.genres) == pytest.approx(1.0 - 0.25)


class TestChance:
    def test_it_is_what_the_calibration_says_of_the_strength(self, linear: Linear) -> None:
        def calibration(strength: float) -> float:
            return strength**2

        why = explain_for(linear, USER, 101, calibration=calibration, threshold=3.5)
        assert why.chance == pytest.approx((3.15 / 4.5) ** 2) and why.threshold == 3.5
        assert "chance of 3.5 stars or more 49%" in str(why)
        assert explain_for(linear, USER, 101).chance is None

    def test_a_calibration_knows_its_threshold(self, linear: Linear) -> None:
        class Calibration:
            threshold = 4.5

            def __call__(self, strength: float) -> np.ndarray:
                return np.asarray(0.25)

        why = explain_for(linear, USER, 101, calibration=Calibration(), threshold=3.5)
        assert (why.chance, why.threshold) == (0.25, 4.5)

    @pytest.mark.parametrize("wrong", [1.2, -0.1, math.nan])
    def test_a_wrong_calibration_is_refused(self, linear: Linear, wrong: float) -> None:
        with pytest.raises(ValueError, match="between 0 and 1"):
            explain_for(linear, USER, 101, calibration=lambda strength: wrong)


class TestCounterfactual:
    def test_what_counted_for_is_lowered(self, linear: Linear) -> None:
        what_if = explain_for(linear, USER, 101, movies=MOVIES, k=1).counterfactual
        assert what_if is not None
        assert (what_if.movie_id, what_if.title) == (1, "One")
        assert (what_if.old_rating, what_if.new_rating) == (5.0, 3.0)
        assert what_if.old_prediction == pytest.approx(3.65)
        assert what_if.new_prediction == pytest.approx(2.65)
        # 102 and 103 are predicted 2.8 and 2.9: the movie that led now follows.
        assert what_if.listed and not what_if.listed_then and what_if.k == 1

    def test_it_stays_in_a_longer_list(self, linear: Linear) -> None:
        what_if = explain_for(linear, USER, 101, k=3).counterfactual
        assert what_if is not None and what_if.listed and what_if.listed_then

    def test_what_counted_against_is_raised_and_may_enter(self, linear: Linear) -> None:
        what_if = explain_for(linear, USER, 102, k=1).counterfactual
        assert what_if is not None and what_if.movie_id == 3
        assert (what_if.old_rating, what_if.new_rating) == (2.0, 4.0)
        assert what_if.new_prediction == pytest.approx(3.4)
        assert not what_if.listed and not what_if.listed_then  # 101 is at 3.85
        alone = Linear({2: 3.0, 3: 2.0})
        entered = explain_for(alone, USER, 102, k=1).counterfactual
        assert entered is not None and not entered.listed and entered.listed_then

    def test_it_stays_on_the_scale(self) -> None:
        what_if = explain_for(Linear({3: 1.5}), USER, 103).counterfactual
        assert what_if is not None and what_if.new_rating == 3.5
        for rating, effect, wanted in ((4.5, -0.2, 5.0), (1.0, 0.2, 0.5), (5.0, -0.2, None)):
            model = Linear({3: rating})
            item = HistoryItem(3, None, rating, 0.0, effect)
            given = Explanation(USER, 103, 0.5, 0.5, 0.5, 3.0, (0.5, 5.0), history=(item,))
            found = find_counterfactual(model, given)
            assert (found and found.new_rating) == wanted

    def test_without_an_effect_there_is_none(self) -> None:
        assert explain_for(Linear({4: 1.0}), USER, 101).counterfactual is None
        assert explain_for(Linear({}), USER, 101).counterfactual is None

    @pytest.mark.parametrize("name", ["item-knn", "ease", "deepcf-plus"])
    def test_it_is_what_the_revised_model_does(
        self, fitted: dict[str, Recommender], toy_movies: pd.DataFrame, name: str
    ) -> None:
        model = fitted[name]
        told = 0
        for user in model.user_ids[:4].tolist():
            movie = int(model.recommend(user, 3)["movieId"].iloc[-1])
            what_if = explain_for(model, user, movie, movies=toy_movies, k=3).counterfactual
            if what_if is None:
                continue
            told += 1
            served = model.revised(user, {what_if.movie_id: what_if.new_rating})
            pair = pd.DataFrame({"userId": [user], "movieId": [movie]})
            assert what_if.new_prediction == served.predict(pair)[0]
            assert what_if.listed
            assert what_if.listed_then == (movie in set(served.recommend(user, 3)["movieId"]))
        assert told >= 2


class TestPage:
    def test_it_holds_history_and_explanations(
        self, fitted: dict[str, Recommender], toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
    ) -> None:
        model = fitted["deepcf-plus"]
        user = int(model.user_ids[1])
        page = page_of(model, user, toy_ratings, toy_movies, k=3, calibration=lambda s: s)
        mine = toy_ratings[toy_ratings["userId"] == user]
        best = mine.sort_values(["rating", "timestamp"], ascending=False)[:10]
        assert [item.movie_id for item in page.history] == best["movieId"].tolist()
        assert page.n_ratings == len(mine)
        listed = model.recommend(user, 3)["movieId"]
        alone = [
            explain_for(model, user, m, movies=toy_movies, k=3, calibration=lambda s: s)
            for m in listed
        ]
        # However much was shared; the last bits of a network depend on the size of its batch.
        assert [e.text() for e in page.explanations] == [e.text() for e in alone]
        assert str(page).count("Had you rated") == sum(e.counterfactual is not None for e in alone)

    def test_frames_are_checked_like_those_of_training(
        self, fitted: dict[str, Recommender], toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
    ) -> None:
        model = fitted["item-knn"]
        user = int(model.user_ids[0])
        expected = page_of(model, user, toy_ratings, toy_movies, measured=False)
        as_text = toy_ratings.astype(str), toy_movies.assign(movieId=toy_movies["movieId"].map(str))
        # As texts: from Python 3.13 on, records that hold a NaN do not equal themselves.
        assert repr(page_of(model, user, *as_text, measured=False)) == repr(expected)
        movie = expected.explanations[0].movie_id
        with pytest.raises(ValueError, match="give lists of texts"):
            explain_for(model, user, movie, movies=toy_movies.assign(genres="Drama|War"))

    def test_its_html_is_safe_and_well_formed(
        self, fitted: dict[str, Recommender], toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
    ) -> None:
        model = fitted["item-knn"]
        page = page_of(model, int(model.user_ids[0]), toy_ratings, toy_movies, k=3)
        read = Reading(page._repr_html_())
        assert (
            page._repr_html_()
            == page_of(model, int(model.user_ids[0]), toy_ratings, toy_movies, k=3)._repr_html_()
        )
        assert not read.all("b") and not read.all("script")  # titles hold a <b>
        assert len(read.all("details")) == len(read.all("section")) == 3
        assert [("open" in given) for given in read.all("details")] == [True, False, False]
        assert all("scope" in head for head in read.all("th"))

    def test_the_unknown_user_has_a_page(
        self, fitted: dict[str, Recommender], toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
    ) -> None:
        page = page_of(fitted["item-knn"], -1, toy_ratings, toy_movies, k=2)
        assert page.n_ratings == 0 and len(page.explanations) == 2
        Reading(page._repr_html_())


class Widget:
    """The little of ipywidgets that the cell uses, with its rule that new options choose one."""

    def __init__(
        self, children: Any = (), *, options: Any = (), value: Any = None, **_: Any
    ) -> None:
        self.children, self.watchers = children, []  # type: ignore[var-annotated]
        self._options, self._value = list(options), value

    @property
    def value(self) -> Any:
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        old, self._value = self._value, value
        for call in list(self.watchers) if value != old else []:
            call({"new": value})

    @property
    def options(self) -> list[Any]:
        return self._options

    @options.setter
    def options(self, options: Any) -> None:
        self._options = list(options)
        self.value = self._options[0][1] if self._options else None

    def observe(self, call: Callable[[Any], None], names: str) -> None:
        self.watchers.append(call)

    def unobserve(self, call: Callable[[Any], None], names: str) -> None:
        self.watchers.remove(call)


def live(monkeypatch: pytest.MonkeyPatch, *, stdin: bool = True, kernel: bool = True) -> Any:
    """Stand-ins for ipywidgets, and for a kernel that a person or a headless run asks."""
    widgets = SimpleNamespace(Dropdown=Widget, HTML=Widget, VBox=Widget)
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    asked = {"content": {"allow_stdin": stdin}}
    shell = SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda channel: asked))
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell if kernel else None)
    return widgets


class TestCell:
    def settings(self) -> dict[str, Any]:
        return {"k": 2, "calibration": lambda strength: strength**2}

    def test_it_is_a_page_unless_asked_otherwise(
        self, linear: Linear, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live(monkeypatch)
        ratings = linear.ratings_of(USER).assign(userId=USER)
        shown = reader(linear, ratings, MOVIES, **self.settings())
        assert isinstance(shown, Page)
        assert repr(shown) == repr(page_of(linear, USER, ratings, MOVIES, **self.settings()))

    @pytest.mark.parametrize("why", ["not installed", "no kernel", "headless"])
    def test_it_falls_back_to_the_page(
        self, linear: Linear, monkeypatch: pytest.MonkeyPatch, why: str
    ) -> None:
        live(monkeypatch, stdin=why != "headless", kernel=why != "no kernel")
        if why == "not installed":
            monkeypatch.setitem(sys.modules, "ipywidgets", None)
        ratings = linear.ratings_of(USER).assign(userId=USER)
        assert isinstance(reader(linear, ratings, MOVIES, interactive=True), Page)

    def test_its_choices_show_what_the_functions_give(
        self, fitted: dict[str, Recommender], toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        live(monkeypatch)
        model, first = fitted["item-knn"], int(fitted["item-knn"].user_ids[2])
        asked = {"user_id": first, "interactive": True, **self.settings()}
        cell = reader(model, toy_ratings, toy_movies, **asked)
        user, page, movie, detail = cell.children
        assert user.options == sorted(toy_ratings["userId"].unique())

        def shows(user_id: int, place: int) -> None:
            given = model, user_id, toy_ratings, toy_movies
            wanted = page_of(*given, measured=False, **self.settings())
            assert page.value == wanted._repr_html_()
            assert [m for _, m in movie.options] == model.recommend(user_id, 2)["movieId"].tolist()
            chosen = movie.options[place][1]
            why = explain_for(model, user_id, chosen, movies=toy_movies, **self.settings())
            assert detail.value == why._repr_html_()

        shows(first, 0)
        movie.value = movie.options[1][1]
        shows(first, 1)
        user.value = int(model.user_ids[5])
        shows(int(model.user_ids[5]), 0)

    def test_a_choice_is_measured_once(
        self, linear: Linear, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live(monkeypatch)
        asked: list[int] = []

        def count(model: Any, user_id: int, movie_id: int, **_: Any) -> Explanation:
            asked.append(movie_id)
            return explain_for(model, user_id, movie_id)

        monkeypatch.setattr(reader_module, "explain_for", count)
        ratings = pd.DataFrame({"userId": [USER, 8], "movieId": [1, 1], "rating": [4.0, 4.0]})
        user, _, movie, _ = reader(linear, ratings, MOVIES, interactive=True).children
        assert asked == [101]
        movie.value = 102
        assert asked == [101, 102]
        user.value = 8
        assert len(asked) == 3

    def test_real_widgets_behave_alike(
        self, linear: Linear, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        widgets = pytest.importorskip("ipywidgets")
        live(monkeypatch)
        monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
        ratings = linear.ratings_of(USER).assign(userId=USER)
        cell = reader(linear, ratings, MOVIES, interactive=True, **self.settings())
        assert isinstance(cell, widgets.VBox)
        _, page, movie, detail = cell.children
        movie.value = 103
        why = explain_for(linear, USER, 103, movies=MOVIES, **self.settings())
        assert detail.value == why._repr_html_()
        assert "Recommended to user 7" in page.value
