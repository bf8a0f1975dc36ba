"""Explanations of a recommendation, as a sentence, as text and as HTML."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import isnan
from typing import Any
from unicodedata import category

SHOWN = 5  # ratings and genres that are listed on each side
NOTICEABLE = 0.005  # stars; less would be shown as 0.00
BAR = 20  # characters
LEFT = 'style="text-align:left"'
STEERING = ("Cc", "Cf", "Zl", "Zp")  # categories of Unicode: controls, formats, ends of lines
JOINERS = "\u200c\u200d"  # formats that some scripts are written with


@dataclass(frozen=True)
class HistoryItem:
    """A rating in stars that the user gave in training, and what is known of it in a prediction.

    The attention `weight` is in [0, 1]; those of one explanation sum to at most 1, and are 0 where
    the model has none. It is a number of the model's forward pass and no measure of importance.
    `effect` is that of a single deletion: the stars by which the prediction is higher with this
    rating than without it, all others kept; None where it was not measured.
    """

    movie_id: int
    title: str | None
    rating: float
    weight: float
    effect: float | None = None


@dataclass(frozen=True)
class GenreEffect:
    """Summed single deletions of a genre's ratings; a movie's genres share its effect equally."""

    genre: str
    effect: float
    ratings: int


@dataclass(frozen=True)
class Counterfactual:
    """The prediction of a movie, had the user rated another, `movie_id`, differently.

    All in stars: that rating as given and as supposed, and the predicted ratings. `listed` and
    `listed_then` say whether the explained movie is among the `k` best now, and with the supposed
    rating.
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
        """One sentence, addressed to the user."""
        old, new = f"{self.old_prediction:.1f}", f"{self.new_prediction:.1f}"
        predicted = f"{new} and not {old}" if new != old else f"{old} all the same"
        moved = {
            (True, True): f"it would have stayed in your top {self.k}",
            (True, False): f"it would have left your top {self.k}",
            (False, True): f"it would have entered your top {self.k}",
            (False, False): f"it is not in your top {self.k} either way",
        }[self.listed, self.listed_then]
        return (
            f"Had you rated {_named(self)} {self.new_rating:.1f} and not {self.old_rating:.1f}, "
            f"this movie would have been predicted {predicted}; {moved}."
        )


@dataclass(frozen=True)
class Explanation:
    """Why a model recommends a movie to a user.

    A model's `explain` gives its prediction and weights; :func:`dlcf.explain.reader.explain_for`
    adds measured effects, `chance`, `genres` and `counterfactual`.

    Attributes
    ----------
    user_id, movie_id, title
        MovieLens' ids; the movie's title where known.
    strength
        Recommendation strength in [0, 1]; the paper's is the sigmoid output of its network.
    user_weight, movie_weight
        Weight of user preferences and of movie characteristics; they sum to 1. NaN where the model
        has no such weights.
    rating, scale
        Predicted rating, `strength` on the rating scale; lowest and highest rating.
    known_user, known_movie
        False where training holds no rating of the user or movie.
    history
        Ratings of the user: those that the model attended to, the highest weight first, or, where
        their effects were measured, the largest effect first.
    method, faithfulness
        How the two weights were obtained, such as "attention" or "shapley", and the correlation in
        [-1, 1] of such weights with exact Shapley values over held-out ratings, where measured.
    chance, threshold
        Calibrated chance in [0, 1] that the user's rating is `threshold` stars or more.
    genres, counterfactual
        The genres of the measured ratings, the largest effect first; a change of one rating.
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
        # The same NaN twice: only then are two explanations without weights equal.
        weights = user_weight, user_weight if isnan(user_weight) else 1.0 - user_weight
        strength = strength_of(rating, scale)
        return cls(int(user_id), int(movie_id), strength, *weights, rating, scale, **more)

    def sentence(self) -> str:
        """One plain sentence for a person."""
        chance = ""
        if self.chance is not None:
            chance = f", chance of {self.threshold:g} stars or more {self.chance:.0%}"
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
        said = [verdict, self._reason()]
        if not isnan(self.user_weight):
            said.append(self._weights())
        return "; ".join(part for part in said if part) + "."

    def text(self) -> str:
        """Lines for a terminal: the sentence, a bar of the weights, effects, counterfactual."""
        lines = [self.sentence()]
        if not isnan(self.user_weight):
            full = round(BAR * self.user_weight)
            lines += ["", f"[{'#' * full}{'.' * (BAR - full)}] {self._caption_of_bar()}"]
        if self.measured:
            lines += ["", f"{self._caption()}:"]
            for word, items in self._sides(self.history):
                lines += [f"  {word}:{'' if items else ' none'}"]
                lines += [f"    {i.effect:+.2f}  {i.rating:.1f} for {_named(i)}" for i in items]
        for line in self._last_lines():
            lines += ["", line]
        return for_output("\n".join(lines))

    @property
    def measured(self) -> tuple[HistoryItem, ...]:
        """The ratings of the history whose effect was measured."""
        return tuple(item for item in self.history if item.effect is not None)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.text())

    def html(self) -> str:
        """Self-contained HTML without script or colours of its own, the same in every run."""
        name = escape(f"Explanation of {_named(self)} for user {self.user_id}")
        parts = [f"<p>{escape(self.sentence())}</p>"]
        if not isnan(self.user_weight):
            user, movie = self._percent()
            label = f"Bar of the two weights: user {user}%, movie {movie}%"
            # Borders and not backgrounds, which are lost in print and in high contrast.
            parts.append(
                f'<div role="img" aria-label="{label}" style="border:1px solid;max-width:24em">'
                f'<div style="border-top:0.7em solid;width:{user}%"></div></div>\n'
                f"<p>{escape(self._caption_of_bar())}</p>"
            )
        if self.measured:
            heads = ("Rating left out", "Stars given", "Effect in stars")
            rows = []
            for word, items in self._sides(self.history):
                cells = [(_named(i), f"{i.rating:.1f}", f"{i.effect:+.2f}") for i in items]
                rows.append((word.capitalize(), cells))
            parts.append(table_of(self._caption(), heads, rows))
        parts += [f"<p>{escape(line)}</p>" for line in self._last_lines()]
        body = "\n".join(parts)
        return f'<section aria-label="{name}" style="max-width:46em">\n{body}\n</section>'

    def __str__(self) -> str:
        return for_output(self.sentence())

    _repr_html_ = html

    def _percent(self) -> tuple[int, int]:
        user = round(100 * self.user_weight)
        return user, 100 - user

    def _weights(self) -> str:
        """The two weights by name; what they are worth is said below the bar."""
        user, movie = self._percent()
        name = "weights" if self.method and "attention" not in self.method else "attention weights"
        return f"{name}: user's preferences {user}%, movie's characteristics {movie}%"

    def _caption_of_bar(self) -> str:
        user, movie = self._percent()
        text = f"{user}% the user's preferences (filled), {movie}% the movie's characteristics"
        if not self.method:
            return text
        if self.faithfulness is None:
            return f"{text} ({self.method}; faithfulness not measured)"
        return f"{text} ({self.method}; faithfulness {self.faithfulness:.2f} of 1 on held-out data)"

    def _caption(self) -> str:
        n = len(self.measured)
        what = "1 rating, left out" if n == 1 else f"{n} ratings, left out one at a time"
        return f"Stars by which the prediction is higher with a rating than without it ({what})"

    def _sides(self, effects: Sequence[Any]) -> list[tuple[str, list[Any]]]:
        """What raises and what lowers, the largest effect first, the negligible left out."""
        known = sorted(effects, key=size_of, reverse=True)
        return [
            (word, [i for i in known if sign * (i.effect or 0.0) >= NOTICEABLE][:SHOWN])
            for word, sign in (("raise it", 1), ("lower it", -1))
        ]

    def _last_lines(self) -> list[str]:
        """The genres and the counterfactual, where there are any."""
        lines = []
        if self.genres:
            sides = [
                f"{word}: {', '.join(f'{g.genre} {g.effect:+.2f}' for g in genres) or 'none'}"
                for word, genres in self._sides(self.genres)
            ]
            lines.append(f"Their sums by genre, in stars: {_harmless('; '.join(sides))}.")
        if self.counterfactual:
            lines.append(self.counterfactual.sentence())
        return lines

    def _reason(self) -> str:
        """What leaving out one rating changes most; else the highest attention, by that name."""
        if not self.measured:
            attended = [item for item in self.history if item.weight > 0][:2]
            shown = [f"{i.rating:.1f} for {_named(i)} ({i.weight:.2f})" for i in attended]
            return f"highest attention weights: {' and '.join(shown)}" if shown else ""
        sides = [item for _, items in self._sides(self.history) for item in items]
        largest = sorted(sides, key=size_of, reverse=True)[:2]
        if not largest:
            return "no rating that was left out makes a difference by itself"
        shown = [
            f"{size_of(i):.2f} stars {'lower' if (i.effect or 0) > 0 else 'higher'} without "
            f"{i.rating:.1f} for {_named(i)}"
            for i in largest
        ]
        return f"it would be {', and '.join(shown)}"


def size_of(item: HistoryItem | GenreEffect) -> float:
    """The effect in stars, whether it counts for or against; 0 where it was not measured."""
    return abs(item.effect or 0.0)


def strength_of(rating: Any, scale: tuple[float, float]) -> Any:
    """Recommendation strength in [0, 1] of predicted ratings, a number or an array of them."""
    low, high = scale
    return (rating - low) / (high - low)


def table_of(
    caption: str, heads: Sequence[str], groups: Sequence[tuple[str, Sequence[Sequence[str]]]]
) -> str:
    """An HTML table whose rows come in named groups; all text is escaped.

    `heads` names the columns. `groups` holds the name and the rows of each group, a row as long as
    `heads`; a group without a name gets no heading, one without rows says "none".
    """
    columns = "".join(f'<th scope="col" {LEFT}>{escape(head)}</th>' for head in heads)
    lines = [f"<table>\n<caption {LEFT}>{escape(caption)}</caption>"]
    lines.append(f"<thead><tr>{columns}</tr></thead>")
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


def title_of(movie: Explanation | HistoryItem | Counterfactual) -> str:
    """The title as a person may be shown it, or the id where there is none."""
    return _harmless(movie.title) if movie.title else f"movie {movie.movie_id}"


def for_output(text: str) -> str:
    """Text whose characters standard output can write; escapes stand for the others."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _named(movie: Explanation | HistoryItem | Counterfactual) -> str:
    return f"“{title_of(movie)}”" if movie.title else title_of(movie)


def _harmless(text: str) -> str:
    """With escapes for what steers a terminal, ends a line or turns what follows round."""
    shown = text.encode("utf-8", "backslashreplace").decode()
    return "".join(
        c.encode("unicode_escape").decode() if category(c) in STEERING and c not in JOINERS else c
        for c in shown
    )
