"""What a model says for a recommendation, as a sentence, as text and as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import isnan
from typing import Any, TypeVar

__all__ = ["Counterfactual", "Explanation", "GenreEffect", "HistoryItem", "table_of"]

SHOWN = 5  # ratings and genres that are listed on each side
NOTICEABLE = 0.005  # stars; less would be shown as 0.00
BAR = 20  # characters
LEFT = 'style="text-align:left"'


@dataclass(frozen=True)
class HistoryItem:
    """A rating that the user gave in training, and what a prediction made of it.

    Attributes
    ----------
    movie_id, title
        The movie; its title where the model was fitted with one.
    rating
        In stars.
    weight
        Attention in [0, 1]; those of one explanation sum to at most 1. 0 where the model has none.
    effect
        Stars by which the prediction is higher with this rating than without it: positive where
        the rating counted for the movie. None where it was not measured.
    """

    movie_id: int
    title: str | None
    rating: float
    weight: float
    effect: float | None = None


@dataclass(frozen=True)
class GenreEffect:
    """What the measured ratings of a genre did to a prediction.

    Attributes
    ----------
    genre
        Its name.
    effect
        In stars: the sum over the ratings of the genre, each shared equally by the film's genres.
    ratings
        How many they are.
    """

    genre: str
    effect: float
    ratings: int


@dataclass(frozen=True)
class Counterfactual:
    """What the model would say, had the user rated one movie differently.

    Attributes
    ----------
    movie_id, title
        The movie whose rating is changed; its title where known.
    old_rating, new_rating
        In stars, as given and as supposed.
    old_prediction, new_prediction
        Predicted rating of the explained movie, in stars.
    k
        Length of the list of recommendations.
    listed, listed_then
        Whether the explained movie is among the `k` best now, and with the supposed rating.
    """

    movie_id: int
    title: str | None
    old_rating: float
    new_rating: float
    old_prediction: float
    new_prediction: float
    k: int
    listed: bool
    listed_then: bool

    def sentence(self) -> str:
        """What would have been, in one sentence to the user."""
        old, new = f"{self.old_prediction:.1f}", f"{self.new_prediction:.1f}"
        predicted = (
            f"predicted {new} and not {old}" if new != old else f"predicted {old} all the same"
        )
        moved = {
            (True, True): f"it would have stayed in your top {self.k}",
            (True, False): f"it would have left your top {self.k}",
            (False, True): f"it would have entered your top {self.k}",
            (False, False): f"it is not in your top {self.k} either way",
        }[self.listed, self.listed_then]
        return (
            f"Had you rated {_named(self)} {self.new_rating:.1f} and not {self.old_rating:.1f}, "
            f"this movie would have been {predicted}; {moved}."
        )


Counted = TypeVar("Counted", HistoryItem, GenreEffect)


@dataclass(frozen=True)
class Explanation:
    """Why a model recommends a movie to a user, in the terms of the paper, and what was measured.

    A model's `explain` gives the first fields; :func:`dlcf.explain.reader.explain_for` measures the rest.

    Attributes
    ----------
    user_id, movie_id
        MovieLens' ids.
    strength
        Recommendation strength in [0, 1]; the paper's is the sigmoid output of its network.
    user_weight, movie_weight
        Weight of user preferences and of movie characteristics; they sum to 1. NaN where the model
        has no such weights.
    rating
        Predicted rating, `strength` on the rating scale.
    scale
        Lowest and highest rating.
    title
        The movie's title where the model was fitted with one.
    known_user, known_movie
        False where training holds no rating of the user or movie, so that nothing was learned.
    history
        The ratings that the model attended to, the highest weight first, where it attends to any;
        once their effects are measured, the largest effect first.
    method
        How the two weights were obtained, such as "attention" or "shapley".
    faithfulness
        How well such weights go with exact Shapley values over held-out ratings, a correlation in
        [-1, 1]: 1 is perfect, 0 is chance. None where it was not measured.
    chance, threshold
        Calibrated chance in [0, 1] that the user's rating is `threshold` stars or more.
    genres
        The genres of the measured ratings, the largest effect first.
    counterfactual
        A rating that would have made a difference, had it been another.
    """

    user_id: int
    movie_id: int
    strength: float
    user_weight: float
    movie_weight: float
    rating: float
    scale: tuple[float, float]
    title: str | None = None
    known_user: bool = True
    known_movie: bool = True
    history: tuple[HistoryItem, ...] = ()
    method: str | None = None
    faithfulness: float | None = None
    chance: float | None = None
    threshold: float | None = None
    genres: tuple[GenreEffect, ...] = ()
    counterfactual: Counterfactual | None = None

    @classmethod
    def of_rating(
        cls,
        user_id: int,
        movie_id: int,
        rating: float,
        scale: tuple[float, float],
        user_weight: float,
        **more: Any,
    ) -> Explanation:
        """From a predicted rating and the user's weight, in [0, 1] or NaN; `more` are fields."""
        low, high = scale
        return cls(
            user_id=int(user_id),
            movie_id=int(movie_id),
            strength=(rating - low) / (high - low),
            user_weight=user_weight,
            movie_weight=1.0 - user_weight,
            rating=rating,
            scale=scale,
            **more,
        )

    def sentence(self) -> str:
        """One plain sentence for a person."""
        chance = f", {self._chance()}" if self.chance is not None else ""
        verdict = (
            f"{_named(self)} is predicted {self.rating:.1f} of {self.scale[1]:g} for user "
            f"{self.user_id} (recommendation strength {self.strength:.0%}{chance})"
        )
        if not (self.known_user or self.known_movie):
            return f"{verdict}: neither has a rating yet, so this is the average of all ratings."
        if not self.known_user:
            return f"{verdict}: the user has no rating yet, so only the movie counts."
        if not self.known_movie:
            return f"{verdict}: the movie has no rating yet, so only the user counts."
        reason = self._reason()
        if isnan(self.user_weight):
            return f"{verdict}{reason}."
        if round(self.user_weight, 2) == round(self.movie_weight, 2):
            shares = "the user's preferences and the movie's characteristics count alike"
            return f"{verdict}; {shares}{reason}."
        share = max(self.user_weight, self.movie_weight)
        leader, other = "the user's preferences", "the movie's characteristics"
        if self.movie_weight > self.user_weight:
            leader, other = other, leader
        what = "attention" if self.method in (None, "attention") else "weight"
        return f"{verdict}; {leader} carry {share:.0%} of the {what}, {other} the rest{reason}."

    def text(self) -> str:
        """Some lines for a terminal: the sentence, the weights as a bar, what counted, what if."""
        lines = [self.sentence()]
        if not isnan(self.user_weight):
            full = round(BAR * self.user_weight)
            lines += ["", f"[{'#' * full}{'.' * (BAR - full)}] {self._weights()}"]
        if self.measured:
            lines += ["", f"{self._caption()}:"]
            for word, items in self._sides(self.history):
                lines += [f"  counted {word}:{'' if items else ' none'}"]
                lines += [f"    {i.effect:+.2f}  {i.rating:.1f} for {_named(i)}" for i in items]
        if self.genres:
            lines += ["", self._genres()]
        if self.counterfactual:
            lines += ["", self.counterfactual.sentence()]
        return "\n".join(lines)

    @property
    def measured(self) -> tuple[HistoryItem, ...]:
        """The ratings of the history whose effect was measured."""
        return tuple(item for item in self.history if item.effect is not None)

    def __str__(self) -> str:
        return self.sentence()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For IPython's terminal, and for the plain text beside the HTML in a notebook."""
        printer.text(self.text())

    def _repr_html_(self) -> str:
        """Self-contained, without script, colours of its own, or anything that varies by run."""
        name = escape(f"Explanation of {_named(self)} for user {self.user_id}")
        parts = [f"<p>{escape(self.sentence())}</p>"]
        if not isnan(self.user_weight):
            parts.append(self._html_bar())
        if self.measured:
            rows = [
                (
                    f"Counted {word}",
                    [(_named(i), f"{i.rating:.1f}", f"{i.effect:+.2f}") for i in items],
                )
                for word, items in self._sides(self.history)
            ]
            heads = ("Rating left out", "Stars given", "Effect in stars")
            parts.append(table_of(self._caption(), heads, rows))
        if self.genres:
            parts.append(f"<p>{escape(self._genres())}</p>")
        if self.counterfactual:
            parts.append(f"<p>{escape(self.counterfactual.sentence())}</p>")
        body = "\n".join(parts)
        return f'<section aria-label="{name}" style="max-width:46em">\n{body}\n</section>'

    def _html_bar(self) -> str:
        """The user's share filled, the movie's empty, and both in words."""
        user, movie = self._percent()
        label = f"Bar of the two weights: user {user}%, movie {movie}%"
        # Borders and not backgrounds, which are lost in print and in high contrast.
        return (
            f'<div role="img" aria-label="{label}" style="border:1px solid;max-width:24em">'
            f'<div style="border-top:0.7em solid;width:{user}%"></div></div>\n'
            f"<p>{escape(self._weights())}</p>"
        )

    def _percent(self) -> tuple[int, int]:
        user = round(100 * self.user_weight)
        return user, 100 - user

    def _weights(self) -> str:
        user, movie = self._percent()
        text = f"{user}% the user's preferences (filled), {movie}% the movie's characteristics"
        if self.method:
            text += f" ({self.method}; faithfulness "
            known = self.faithfulness is not None
            text += f"{self.faithfulness:.2f} of 1 on held-out data)" if known else "not measured)"
        return text

    def _chance(self) -> str:
        return f"chance of {self.threshold:g} stars or more {self.chance:.0%}"

    def _caption(self) -> str:
        n = len(self.measured)
        what = "1 rating, left out" if n == 1 else f"{n} ratings, left out one at a time"
        return f"Stars by which the prediction is higher with a rating than without it ({what})"

    def _sides(self, effects: Sequence[Counted]) -> list[tuple[str, list[Counted]]]:
        """What counted for and what against, the largest effect first, the negligible left out."""
        known = [(item.effect or 0.0, item) for item in effects]
        known.sort(key=lambda pair: -abs(pair[0]))
        return [
            (word, [item for effect, item in known if sign * effect >= NOTICEABLE][:SHOWN])
            for word, sign in (("for", 1), ("against", -1))
        ]

    def _genres(self) -> str:
        sides = [
            f"{word} {', '.join(f'{g.genre} {g.effect:+.2f}' for g in genres) or 'none'}"
            for word, genres in self._sides(self.genres)
        ]
        return f"Genres of these ratings, in stars: {'; '.join(sides)}."

    def _reason(self) -> str:
        """The two ratings of the history that count most, as the end of a sentence."""
        history = self.history[:2]
        if self.measured:
            counted = [item for _, items in self._sides(self.history) for item in items]
            history = tuple(sorted(counted, key=lambda item: -abs(item.effect or 0.0))[:2])
            if not history:
                return "; no rating that was left out makes a difference by itself"
        shown = [f"{item.rating:.1f} for {_named(item)}{_stars(item)}" for item in history]
        count = "count" if len(shown) > 1 else "counts"
        return f"; of the user's ratings, {' and '.join(shown)} {count} most" if shown else ""


def table_of(
    caption: str, heads: Sequence[str], groups: Sequence[tuple[str, Sequence[Sequence[str]]]]
) -> str:
    """An HTML table whose rows come in named groups; everything is escaped.

    Parameters
    ----------
    caption
        What the table shows.
    heads
        One of each column.
    groups
        Name and rows of each group, a row as long as `heads`; a group without a name gets no
        heading, one without rows says "none".
    """
    columns = "".join(f'<th scope="col" {LEFT}>{escape(head)}</th>' for head in heads)
    lines = [
        f"<table>\n<caption {LEFT}>{escape(caption)}</caption>",
        f"<thead><tr>{columns}</tr></thead>",
    ]
    for name, rows in groups:
        lines.append("<tbody>")
        if name:
            text = escape(name if rows else f"{name}: none")
            head = f'<th scope="rowgroup" colspan="{len(heads)}" {LEFT}>{text}</th>'
            lines.append(f"<tr>{head}</tr>")
        for first, *others in rows:
            cells = "".join(f"<td {LEFT}>{escape(cell)}</td>" for cell in others)
            lines.append(f'<tr><th scope="row" {LEFT}>{escape(first)}</th>{cells}</tr>')
        lines.append("</tbody>")
    return "\n".join([*lines, "</table>"])


def _named(movie: Explanation | HistoryItem | Counterfactual) -> str:
    return f"“{movie.title}”" if movie.title else f"movie {movie.movie_id}"


def _stars(item: HistoryItem) -> str:
    return "" if item.effect is None else f" ({item.effect:+.2f} stars)"
