"""For a person: explanations with their measured parts, and a page of one user's recommendations.

A model's `explain` says what the model says of itself. Here it is enriched by what interventions
show: the user's history is changed, the fitted model serves the changed one
(:meth:`~dlcf.models.base.Recommender.revised`; nothing is trained again), and what changes in the
prediction and in the list of recommendations is told.
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
from numpy.typing import NDArray

from dlcf.explanation import (
    NOTICEABLE,
    Counterfactual,
    Explanation,
    GenreEffect,
    HistoryItem,
    table_of,
)
from dlcf.models.base import Recommender

__all__ = [
    "Page",
    "explain_for",
    "find_counterfactual",
    "genre_effects",
    "page_of",
    "rating_effects",
    "reader",
]

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
    """What the model says of a recommendation, and what was measured of it.

    Parameters
    ----------
    model
        Fitted. One that cannot explain itself is explained by its ratings alone; one that cannot
        serve a changed history gets no effects.
    user_id, movie_id
        MovieLens' ids; unknown ones are explained as the model does.
    movies
        Genres, and titles where the model has none.
    calibration
        From strength in [0, 1] to the chance that the rating is `threshold` stars or more.
    threshold
        In stars; a calibration that has a `threshold` of its own keeps that.
    k
        Length of the list of recommendations that the counterfactual looks at.

    Returns
    -------
    Explanation
        Effects are of the ratings that the model attended to; where it attends to none, of the 64
        whose movies share most raters with this one. They are effects on the predicted rating,
        inside the scale. A model may rank by more than that (`ease` predicts by biases, so that is
        what its effects are of): what becomes of the list, the counterfactual says.

    Raises
    ------
    ValueError
        The calibration gives no chance in [0, 1].
    """
    return _explain_all(model, user_id, [movie_id], movies, calibration, threshold, k)[0]


def rating_effects(
    model: Recommender, user_id: int, movie_ids: Sequence[int], left_out: Sequence[int]
) -> NDArray[np.float64]:
    """How much higher predictions are with a rating of the user than without it.

    Parameters
    ----------
    movie_ids
        Whose predictions, n.
    left_out
        Movies that the user rated, m; each rating is left out alone.

    Returns
    -------
    ndarray
        float64 ``(m, n)``, in stars.
    """
    pairs = pd.DataFrame({"userId": user_id, "movieId": np.asarray(movie_ids, dtype=np.int64)})
    whole = model.predict(pairs)
    less = [model.revised(user_id, {movie: None}).predict(pairs) for movie in left_out]
    return whole - np.reshape(less, (len(left_out), len(whole)))


def genre_effects(history: Iterable[HistoryItem], movies: pd.DataFrame) -> tuple[GenreEffect, ...]:
    """The measured effects by genre, the largest first; a film's genres share its effect equally.

    Ratings of films without a genre belong to none.
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
    return tuple(sorted(found, key=lambda g: (-abs(g.effect), g.genre)))


def find_counterfactual(
    model: Recommender, explanation: Explanation, k: int = 10
) -> Counterfactual | None:
    """The change of one rating by two stars, on the scale, that would have made most difference.

    Of the three ratings with the largest effects, one that counted for the movie is supposed lower,
    one that counted against it higher; of these, the one that moves the prediction most is told,
    with what it does to the user's `k` recommendations.

    Returns
    -------
    Counterfactual or None
        None where no rating has an effect, or none can be moved.
    """
    lists = _lists_of(model, explanation.user_id, k)
    return _find_counterfactual(model, explanation, k, lists)


@dataclass(frozen=True)
class Page:
    """What a reader sees of one user.

    Attributes
    ----------
    user_id
        MovieLens' id.
    n_ratings
        How many ratings the user gave.
    history
        Some of them, the highest first.
    explanations
        Of the user's recommendations, best first.
    """

    user_id: int
    n_ratings: int
    history: tuple[HistoryItem, ...]
    explanations: tuple[Explanation, ...]

    def text(self) -> str:
        """The page in lines of text."""
        lines = [f"{self._caption()}:"]
        lines += [f"  {item.rating:.1f}  {_title(item)}" for item in self.history]
        lines += ["", f"Recommended to user {self.user_id}:"]
        for rank, explanation in enumerate(self.explanations, 1):
            first, *rest = explanation.text().splitlines()
            lines += [f"{rank:3}. {first}", *(f"     {line}".rstrip() for line in rest), ""]
        return "\n".join(lines).rstrip()

    def __str__(self) -> str:
        return self.text()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.text())

    def _repr_html_(self) -> str:
        """The page as HTML without script; the first explanation is open, the others fold out."""
        rows = [(_title(item), f"{item.rating:.1f}") for item in self.history]
        parts = [table_of(self._caption(), ("Movie", "Stars given"), [("", rows)])]
        parts.append(f"<p>Recommended to user {self.user_id}, best first:</p>\n<ol>")
        for rank, explanation in enumerate(self.explanations):
            head = f"{_title(explanation)}: {explanation.rating:.1f} of {explanation.scale[1]:g}"
            parts.append(
                f"<li><details{'' if rank else ' open'}><summary>{escape(head)}</summary>\n"
                f"{explanation._repr_html_()}\n</details></li>"
            )
        body = "\n".join([*parts, "</ol>"])
        return f'<article aria-label="Recommendations for user {self.user_id}">\n{body}\n</article>'

    def _caption(self) -> str:
        return (
            f"The best {len(self.history)} of the {self.n_ratings} ratings of user {self.user_id}"
        )


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

    Parameters
    ----------
    ratings
        What the model was fitted on.
    measured
        Explain as :func:`explain_for`, some seconds each; else as the model itself, at once.
    model, user_id, movies, calibration, threshold, k
        As in :func:`explain_for`.
    """
    own = ratings[ratings["userId"] == user_id]
    latest = own["timestamp"] if "timestamp" in own else own["movieId"]
    order = np.lexsort((own["movieId"], -latest, -own["rating"]))[:SHOWN]
    title = _titles_of(movies)
    history = tuple(
        HistoryItem(int(movie), title.get(movie), float(rating), 0.0)
        for movie, rating in own[["movieId", "rating"]].iloc[order].itertuples(index=False)
    )
    listed = model.recommend(user_id, k)["movieId"].tolist()
    if measured:
        explanations = _explain_all(model, user_id, listed, movies, calibration, threshold, k)
    else:
        explanations = [_said(model, user_id, m, title, calibration, threshold) for m in listed]
    return Page(int(user_id), len(own), history, tuple(explanations))


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
    ratings
        What the model was fitted on; the users to choose from are its users.
    user_id
        Whose page is shown first; by default that of the lowest id.
    interactive
        Choose a user and one of the user's recommendations from drop-downs; an explanation is
        measured once it is asked for. It needs `ipywidgets` (``pip install "dlcf[widgets]"``) and
        somebody at the notebook. Where either is missing, as in a headless run, and by default, the
        page of one user is shown, which a notebook can keep as its output.
    model, movies, **settings
        As in :func:`page_of`: `calibration`, `threshold`, `k`.

    Returns
    -------
    Page or ipywidgets.VBox
        Either shows itself.
    """
    first = int(ratings["userId"].min()) if user_id is None else int(user_id)
    widgets = _live_widgets() if interactive else None
    if widgets is None:
        return page_of(model, first, ratings, movies, **settings)
    return _cell(widgets, model, first, ratings, movies, settings)


def _cell(
    widgets: Any,
    model: Recommender,
    first: int,
    ratings: pd.DataFrame,
    movies: pd.DataFrame,
    settings: dict[str, Any],
) -> Any:
    """Drop-downs of users and of their recommendations, the page and the chosen explanation."""
    users = sorted({first, *ratings["userId"].astype(int)})
    user = widgets.Dropdown(options=users, value=first, description="User")
    movie = widgets.Dropdown(description="Explain")
    page, detail = widgets.HTML(), widgets.HTML()

    def explain(_: Any = None) -> None:
        if movie.value is None:  # nothing is left to recommend
            detail.value = ""
            return
        detail.value = "<p>Leaving out ratings, one at a time …</p>"
        found = explain_for(model, user.value, movie.value, movies=movies, **settings)
        detail.value = found._repr_html_()

    def turn(_: Any = None) -> None:
        shown = page_of(model, user.value, ratings, movies, measured=False, **settings)
        page.value = shown._repr_html_()
        movie.unobserve(explain, names="value")  # new options are no choice of the reader's
        movie.options = [(_title(e), e.movie_id) for e in shown.explanations]
        movie.observe(explain, names="value")
        explain()

    user.observe(turn, names="value")
    movie.observe(explain, names="value")
    turn()
    return widgets.VBox([user, page, movie, detail])


def _live_widgets() -> ModuleType | None:
    """`ipywidgets`, where it is installed and a person can use it.

    A headless run (papermill, nbconvert, nbval) tells the kernel that nobody can be asked for
    input; a notebook that is open in front of somebody does not.
    """
    try:
        import ipywidgets
        from IPython.core.getipython import get_ipython
    except ImportError:
        return None
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return None
    request = kernel.get_parent("shell").get("content", {})
    return ipywidgets if request.get("allow_stdin", False) else None


def _explain_all(
    model: Recommender,
    user_id: int,
    movie_ids: Sequence[int],
    movies: pd.DataFrame | None,
    calibration: Calibration | None,
    threshold: float,
    k: int,
) -> list[Explanation]:
    """:func:`explain_for` of some movies; what they have in common is computed once."""
    titles = _titles_of(movies)
    found = [_said(model, user_id, m, titles, calibration, threshold) for m in movie_ids]
    found = _with_effects(model, user_id, found, titles)
    lists = _lists_of(model, user_id, k)
    enriched = []
    for explanation in found:
        if movies is not None and "genres" in movies:
            genres = genre_effects(explanation.history, movies)
            explanation = replace(explanation, genres=genres)
        counterfactual = _find_counterfactual(model, explanation, k, lists)
        enriched.append(replace(explanation, counterfactual=counterfactual))
    return enriched


def _said(
    model: Recommender,
    user_id: int,
    movie_id: int,
    titles: Mapping[int, str],
    calibration: Calibration | None,
    threshold: float,
) -> Explanation:
    """What the model says of itself, or its prediction where it says nothing, and the chance."""
    try:
        explanation = model.explain(user_id, movie_id)
    except NotImplementedError:
        pair = pd.DataFrame({"userId": [user_id], "movieId": [movie_id]})
        rating, (low, high) = float(model.predict(pair)[0]), model.scale
        explanation = Explanation(
            user_id=int(user_id),
            movie_id=int(movie_id),
            strength=(rating - low) / (high - low),
            user_weight=math.nan,
            movie_weight=math.nan,
            rating=rating,
            scale=model.scale,
            title=model.title(movie_id),
            known_user=bool(np.isin(user_id, model.user_ids)),
            known_movie=bool(np.isin(movie_id, model.movie_ids)),
        )
    explanation = replace(explanation, title=explanation.title or titles.get(movie_id))
    if explanation.known_user and explanation.known_movie and explanation.method is None:
        explanation = replace(
            explanation,
            method=getattr(model, "explanation_method", None),
            faithfulness=getattr(model, "faithfulness", None),
        )
    if calibration is None:
        return explanation
    chance = _checked_chance(calibration, explanation.strength)
    threshold = getattr(calibration, "threshold", threshold)
    return replace(explanation, chance=chance, threshold=threshold)


def _with_effects(
    model: Recommender, user_id: int, found: list[Explanation], titles: Mapping[int, str]
) -> list[Explanation]:
    """The explanations with measured histories, where the model can serve a changed one."""
    try:
        rated = model.ratings_of(user_id)
    except NotImplementedError:
        return found
    own = [
        HistoryItem(int(movie), model.title(movie) or titles.get(movie), float(rating), 0.0)
        for movie, rating in rated.itertuples(index=False)
    ]
    histories = [e.history or _related(model, own, e.movie_id) for e in found]
    histories = [
        [item for item in history if item.movie_id != e.movie_id]
        for e, history in zip(found, histories, strict=True)
    ]
    left_out = sorted({item.movie_id for history in histories for item in history})
    effects = rating_effects(model, user_id, [e.movie_id for e in found], left_out)
    row = {movie: effects[i] for i, movie in enumerate(left_out)}
    measured = []
    for column, history in enumerate(histories):
        items = [replace(item, effect=float(row[item.movie_id][column])) for item in history]
        items.sort(key=lambda item: (-abs(item.effect or 0.0), item.movie_id))
        measured.append(replace(found[column], history=tuple(items)))
    return measured


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


def _find_counterfactual(
    model: Recommender, explanation: Explanation, k: int, lists: Lists
) -> Counterfactual | None:
    low, high = explanation.scale
    pair = pd.DataFrame({"userId": [explanation.user_id], "movieId": [explanation.movie_id]})
    best: tuple[HistoryItem, float, float] | None = None
    for item in sorted(explanation.measured, key=lambda item: -abs(item.effect or 0.0))[:TRIED]:
        effect = item.effect or 0.0
        rating = float(np.clip(item.rating - math.copysign(STEP, effect), low, high))
        if abs(effect) < NOTICEABLE or rating == item.rating:
            continue
        revised = model.revised(explanation.user_id, {item.movie_id: rating})
        predicted = float(revised.predict(pair)[0])
        if best is None or abs(predicted - explanation.rating) > abs(best[2] - explanation.rating):
            best = item, rating, predicted
    if best is None:
        return None
    item, rating, predicted = best
    return Counterfactual(
        movie_id=item.movie_id,
        title=item.title,
        old_rating=item.rating,
        new_rating=rating,
        old_prediction=explanation.rating,
        new_prediction=predicted,
        k=k,
        listed=explanation.movie_id in lists(None, None),
        listed_then=explanation.movie_id in lists(item.movie_id, rating),
    )


def _lists_of(model: Recommender, user_id: int, k: int) -> Lists:
    """The user's `k` recommendations, now or with one rating changed; each is computed once."""

    @cache
    def listed(movie_id: int | None, rating: float | None) -> frozenset[int]:
        served = model if movie_id is None else model.revised(user_id, {movie_id: rating})
        return frozenset(served.recommend(user_id, k)["movieId"])

    return listed


def _checked_chance(calibration: Calibration, strength: float) -> float:
    chance = float(calibration(strength))
    if not 0.0 <= chance <= 1.0:
        raise ValueError(
            f"calibration gives {chance} for a strength of {strength:.3f}; it must give a chance "
            "between 0 and 1"
        )
    return chance


def _titles_of(movies: pd.DataFrame | None) -> dict[int, str]:
    if movies is None:
        return {}
    return dict(zip(movies["movieId"].tolist(), movies["title"].tolist(), strict=True))


def _title(movie: HistoryItem | Explanation) -> str:
    return movie.title or f"movie {movie.movie_id}"
