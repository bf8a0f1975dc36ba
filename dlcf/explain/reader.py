"""For a person: explanations with measured effects, and a page of one user's recommendations.

A model's `explain` is enriched by interventions: the fitted model serves a changed history of the
user (:meth:`~dlcf.models.base.Recommender.revised`; nothing is trained again), and the changes of
the prediction and of the list of recommendations are reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from dlcf.explain.history import leave_one_out, pairs_of, predicted_ratings
from dlcf.explanation import (
    NOTICEABLE,
    Counterfactual,
    Explanation,
    GenreEffect,
    HistoryItem,
    for_output,
    size_of,
    table_of,
    title_of,
)
from dlcf.models.base import Recommender
from dlcf.ratings import check_movies, check_ratings

STEP = 2.0  # stars by which a counterfactual moves a rating
TRIED = 3  # ratings that a counterfactual is looked for among
MEASURED = 64  # ratings that are left out, where the model does not say which it attended to
SHOWN = 10  # ratings of the history on a page

Calibration = Callable[[float], float]
Lists = Callable[[int | None, float | None], frozenset[int]]


def explain_for(
    model: Recommender,
    user_id: int,
    movie_id: int,
    *,
    movies: pd.DataFrame | None = None,
    calibration: Calibration | None = None,
    threshold: float = 4.0,
    k: int = 10,
) -> Explanation:
    """The model's explanation of a recommendation, with measured effects.

    Effects are those that the model measured itself, as `deepcf-plus` does; else of the ratings it
    attended to; where it attends to none, of the 64 whose movies share most raters with this one.
    They are single deletions, in stars of the predicted rating, also for a model that ranks by
    something else, as `ease` does.

    Parameters
    ----------
    model
        Fitted. One that cannot explain itself is explained by its ratings alone; one that cannot
        serve a changed history gets no effects.
    movies
        Genres, and titles where the model has none.
    calibration, threshold
        From strength in [0, 1] to the chance in [0, 1], else ValueError, that the rating is
        `threshold` stars or more; a `threshold` of the calibration's own takes precedence.
    k
        Length of the list of recommendations that the counterfactual looks at.
    """
    movies = None if movies is None else check_movies(movies, source="movies")
    titles = _titles_of(movies)
    stated = _stated(model, user_id, movie_id, titles, calibration, threshold)
    return _measured(model, user_id, [stated], movies, k)[0]


def genre_effects(history: Iterable[HistoryItem], movies: pd.DataFrame) -> tuple[GenreEffect, ...]:
    """The measured effects by genre, the largest first; a movie's genres share its effect equally.

    Ratings of movies without a genre belong to none.
    """
    genres_of = movies.drop_duplicates("movieId").set_index("movieId")["genres"]
    total: dict[str, list[float]] = {}
    for item in history:
        if item.effect is None or item.movie_id not in genres_of.index:
            continue
        genres = genres_of[item.movie_id]
        for genre in genres:
            total.setdefault(genre, []).append(item.effect / len(genres))
    found = [GenreEffect(genre, sum(shares), len(shares)) for genre, shares in total.items()]
    return tuple(sorted(found, key=lambda g: (-size_of(g), g.genre)))


def find_counterfactual(
    model: Recommender, explanation: Explanation, k: int = 10, lists: Lists | None = None
) -> Counterfactual | None:
    """The change of one rating by two stars, on the scale, with the largest consequence.

    Of the three ratings with the largest effects, those that raised the prediction are lowered and
    the others raised; the change that moves the prediction most is returned, with its consequence
    for the user's `k` recommendations, which `lists` gives where they are known already. None where
    no rating has an effect, or none can be moved.
    """
    low, high = explanation.scale
    user_id, movie_id = explanation.user_id, explanation.movie_id
    moved: list[tuple[float, HistoryItem, float]] = []
    for item in sorted(explanation.measured, key=size_of, reverse=True)[:TRIED]:
        effect = item.effect or 0.0
        rating = float(np.clip(item.rating - math.copysign(STEP, effect), low, high))
        if abs(effect) < NOTICEABLE or rating == item.rating:
            continue
        revised = model.revised(user_id, {item.movie_id: rating})
        moved.append((float(predicted_ratings(revised, user_id, [movie_id])[0]), item, rating))
    if not moved:
        return None
    predicted, item, rating = max(moved, key=lambda change: abs(change[0] - explanation.rating))
    lists = _lists_of(model, user_id, k) if lists is None else lists
    return Counterfactual(
        movie_id=item.movie_id,
        title=item.title,
        old_rating=item.rating,
        new_rating=rating,
        old_prediction=explanation.rating,
        new_prediction=predicted,
        k=k,
        listed=movie_id in lists(None, None),
        listed_then=movie_id in lists(item.movie_id, rating),
    )


@dataclass(frozen=True)
class Page:
    """One user's history and recommendations, as text and as HTML.

    Of the user's `n_ratings` ratings the `history` holds some, the highest first; `explanations`
    are of the recommendations, best first.
    """

    user_id: int
    n_ratings: int
    history: tuple[HistoryItem, ...]
    explanations: tuple[Explanation, ...]

    def text(self) -> str:
        """The page in lines of text."""
        lines = [f"{self._caption()}:"]
        lines += [f"  {item.rating:.1f}  {title_of(item)}" for item in self.history]
        lines += ["", f"Recommended to user {self.user_id}:"]
        for rank, explanation in enumerate(self.explanations, 1):
            first, *rest = explanation.text().splitlines()
            lines += [f"{rank:3}. {first}", *(f"     {line}".rstrip() for line in rest), ""]
        return for_output("\n".join(lines).rstrip())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.text())

    def html(self) -> str:
        """HTML without script; the first explanation is open, the others fold out."""
        rows = [(title_of(item), f"{item.rating:.1f}") for item in self.history]
        parts = [table_of(self._caption(), ("Movie", "Stars given"), [("", rows)])]
        parts.append(f"<p>Recommended to user {self.user_id}, best first:</p>\n<ol>")
        for rank, explanation in enumerate(self.explanations):
            head = f"{title_of(explanation)}: {explanation.rating:.1f} of {explanation.scale[1]:g}"
            parts.append(
                f"<li><details{'' if rank else ' open'}><summary>{escape(head)}</summary>\n"
                f"{explanation.html()}\n</details></li>"
            )
        body = "\n".join([*parts, "</ol>"])
        return f'<article aria-label="Recommendations for user {self.user_id}">\n{body}\n</article>'

    __str__ = text
    _repr_html_ = html

    def _caption(self) -> str:
        n = len(self.history)
        return f"The best {n} of the {self.n_ratings} ratings of user {self.user_id}"


def page_of(
    model: Recommender,
    user_id: int,
    ratings: pd.DataFrame,
    movies: pd.DataFrame,
    *,
    calibration: Calibration | None = None,
    threshold: float = 4.0,
    k: int = 10,
    measured: bool = True,
) -> Page:
    """One user's history, recommendations, and the explanation of each.

    `ratings` are what the model was fitted on. Recommendations are explained as by
    :func:`explain_for`, whose parameters the others are; where `measured` is False, which takes no
    time, as by the model itself.
    """
    ratings, movies = check_ratings(ratings), check_movies(movies)
    own = ratings[ratings["userId"] == user_id]
    latest = own["timestamp"] if "timestamp" in own else own["movieId"]
    order = np.lexsort((own["movieId"], -latest, -own["rating"]))[:SHOWN]
    title = _titles_of(movies)
    history = tuple(
        HistoryItem(int(movie), title.get(movie), float(rating), 0.0)
        for movie, rating in own[["movieId", "rating"]].iloc[order].itertuples(index=False)
    )
    listed = model.recommend(user_id, k)["movieId"].tolist()
    found = [_stated(model, user_id, m, title, calibration, threshold) for m in listed]
    if measured:
        found = _measured(model, user_id, found, movies, k)
    return Page(int(user_id), len(own), history, tuple(found))


def reader(
    model: Recommender,
    ratings: pd.DataFrame,
    movies: pd.DataFrame,
    *,
    user_id: int | None = None,
    interactive: bool = False,
    **settings: Any,
) -> Any:
    """The last expression of a notebook's cell: a page of one user, or a choice of users.

    Parameters
    ----------
    model, ratings, movies, **settings
        As in :func:`page_of`; the users to choose from are those of `ratings`.
    user_id
        Whose page is shown first; by default that of the lowest id.
    interactive
        Choose a user and a recommendation from drop-downs; an explanation is measured when it is
        asked for. It needs `ipywidgets` (``pip install "dlcf[widgets]"``) and a person at the
        notebook; where either is missing, as in a headless run, the page of one user is shown.
    """
    first = int(ratings["userId"].min()) if user_id is None else int(user_id)
    widgets = _live_widgets() if interactive else None
    if widgets is None:
        return page_of(model, first, ratings, movies, **settings)
    users = sorted({first, *ratings["userId"].astype(int)})
    user = widgets.Dropdown(options=users, value=first, description="User")
    movie = widgets.Dropdown(description="Explain")
    page, detail = widgets.HTML(), widgets.HTML()

    def explain(_: Any = None) -> None:
        if movie.value is None:  # nothing is left to recommend
            detail.value = ""
            return
        detail.value = "<p>Measuring …</p>"
        found = explain_for(model, user.value, movie.value, movies=movies, **settings)
        detail.value = found.html()

    def turn(_: Any = None) -> None:
        shown = page_of(model, user.value, ratings, movies, measured=False, **settings)
        page.value = shown.html()
        movie.unobserve(explain, names="value")  # new options are not the reader's choice
        movie.options = [(title_of(e), e.movie_id) for e in shown.explanations]
        movie.observe(explain, names="value")
        explain()

    user.observe(turn, names="value")
    movie.observe(explain, names="value")
    turn()
    return widgets.VBox([user, page, movie, detail])


def _live_widgets() -> ModuleType | None:
    """`ipywidgets`, where it is installed and a person can use it."""
    try:
        import ipywidgets
        from IPython.core.getipython import get_ipython
    except ImportError:
        return None
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return None
    # A headless run (papermill, nbconvert, nbval) says that nobody can be asked for input.
    request = kernel.get_parent("shell").get("content", {})
    return ipywidgets if request.get("allow_stdin", False) else None


def _stated(
    model: Recommender,
    user_id: int,
    movie_id: int,
    titles: Mapping[int, str],
    calibration: Calibration | None,
    threshold: float,
) -> Explanation:
    """The model's own explanation, or its prediction where it has none, and the chance."""
    try:
        explanation = model.explain(user_id, movie_id)
    except NotImplementedError:
        pair = pairs_of(user_id, [movie_id])
        _, (known_user,), _, (known_movie,) = model.positions(pair)
        known = {"known_user": bool(known_user), "known_movie": bool(known_movie)}
        rating = float(model.predict(pair)[0])
        explanation = Explanation.of_rating(
            user_id, movie_id, rating, model.scale, math.nan, title=model.title(movie_id), **known
        )
    changes: dict[str, Any] = {"title": explanation.title or titles.get(movie_id)}
    if explanation.known_user and explanation.known_movie and explanation.method is None:
        for name, source in (("method", "explanation_method"), ("faithfulness", "faithfulness")):
            changes[name] = getattr(model, source, None)
    if calibration is not None:
        chance = float(calibration(explanation.strength))
        if not 0.0 <= chance <= 1.0:
            problem = f"calibration gives {chance} for a strength of {explanation.strength:.3f}"
            raise ValueError(f"{problem}; it must give a chance between 0 and 1")
        changes |= {"chance": chance, "threshold": getattr(calibration, "threshold", threshold)}
    return replace(explanation, **changes)


def _measured(
    model: Recommender, user_id: int, stated: list[Explanation], movies: pd.DataFrame | None, k: int
) -> list[Explanation]:
    """Explanations with effects, where the model can serve a changed history; in one go."""
    try:
        rated = model.ratings_of(user_id)
    except NotImplementedError:
        return stated
    titles = _titles_of(movies)
    own = [
        HistoryItem(int(movie), model.title(movie) or titles.get(movie), float(rating), 0.0)
        for movie, rating in rated.itertuples(index=False)
    ]
    histories = [
        ()
        if e.measured
        else [i for i in e.history or _related(model, own, e.movie_id) if i.movie_id != e.movie_id]
        for e in stated
    ]
    left_out = sorted({item.movie_id for history in histories for item in history})
    targets = [e.movie_id for e in stated]
    effects = leave_one_out(model, user_id, targets, left_out, predicted_ratings)
    lists = _lists_of(model, user_id, k)
    found = []
    for explanation, history in zip(stated, histories, strict=True):
        effect = effects[explanation.movie_id]
        items = [replace(item, effect=float(effect[item.movie_id])) for item in history]
        items.sort(key=lambda item: (-size_of(item), item.movie_id))
        items = items or [
            replace(i, title=i.title or titles.get(i.movie_id)) for i in explanation.history
        ]
        explanation = replace(explanation, history=tuple(items))
        if movies is not None and "genres" in movies:
            explanation = replace(explanation, genres=genre_effects(items, movies))
        counterfactual = find_counterfactual(model, explanation, k, lists)
        found.append(replace(explanation, counterfactual=counterfactual))
    return found


def _related(model: Recommender, own: Sequence[HistoryItem], movie_id: int) -> list[HistoryItem]:
    """The ratings of the movies most like one, by the cosine of who rated them."""
    row, column = model.seen(model.user_ids)
    raters = row[model.movie_ids[column] == movie_id]
    n_movies = len(model.movie_ids)
    common = np.bincount(column[np.isin(row, raters)], minlength=n_movies)
    cosine = common / np.sqrt(np.maximum(np.bincount(column, minlength=n_movies), 1))
    place = np.searchsorted(model.movie_ids, [item.movie_id for item in own])
    nearest = np.argsort(-cosine[place], kind="stable")[:MEASURED]
    return [own[i] for i in nearest]


def _lists_of(model: Recommender, user_id: int, k: int) -> Lists:
    """The user's `k` recommendations, now or with one rating changed; each is computed once."""

    @cache
    def listed(movie_id: int | None, rating: float | None) -> frozenset[int]:
        served = model if movie_id is None else model.revised(user_id, {movie_id: rating})
        return frozenset(served.recommend(user_id, k)["movieId"])

    return listed


def _titles_of(movies: pd.DataFrame | None) -> dict[int, str]:
    if movies is None:
        return {}
    return dict(zip(movies["movieId"].tolist(), movies["title"].tolist(), strict=True))
