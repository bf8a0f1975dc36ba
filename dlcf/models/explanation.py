"""What a model says for a recommendation."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Explanation", "HistoryItem"]


@dataclass(frozen=True)
class HistoryItem:
    """A rating that the user gave in training, and how much attention a prediction paid to it.

    Attributes
    ----------
    movie_id, title
        The movie; its title where the model was fitted with one.
    rating
        In stars.
    weight
        In [0, 1]; those of one explanation sum to at most 1.
    """

    movie_id: int
    title: str | None
    rating: float
    weight: float


@dataclass(frozen=True)
class Explanation:
    """Why a model recommends a movie to a user, in the terms of the paper.

    Attributes
    ----------
    user_id, movie_id
        MovieLens' ids.
    strength
        Recommendation strength in [0, 1]; the paper's is the sigmoid output of its network.
    user_weight, movie_weight
        Attention on user preferences and on movie characteristics; they sum to 1.
    rating
        Predicted rating, `strength` on the rating scale.
    scale
        Lowest and highest rating.
    title
        The movie's title where the model was fitted with one.
    known_user, known_movie
        False where training holds no rating of the user or movie, so that nothing was learned.
    history
        The ratings that the model attended to, the highest weight first, where it attends to any.
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

    def sentence(self) -> str:
        """One plain sentence for a person."""
        movie = f"“{self.title}”" if self.title else f"movie {self.movie_id}"
        verdict = (
            f"{movie} is predicted {self.rating:.1f} of {self.scale[1]:g} for user {self.user_id} "
            f"(recommendation strength {self.strength:.0%})"
        )
        if not (self.known_user or self.known_movie):
            return f"{verdict}: neither has a rating yet, so this is the average of all ratings."
        if not self.known_user:
            return f"{verdict}: the user has no rating yet, so only the movie counts."
        if not self.known_movie:
            return f"{verdict}: the movie has no rating yet, so only the user counts."
        reason = self._reason()
        if round(self.user_weight, 2) == round(self.movie_weight, 2):
            shares = "the user's preferences and the movie's characteristics count alike"
            return f"{verdict}; {shares}{reason}."
        share = max(self.user_weight, self.movie_weight)
        leader, other = "the user's preferences", "the movie's characteristics"
        if self.movie_weight > self.user_weight:
            leader, other = other, leader
        return f"{verdict}; {leader} carry {share:.0%} of the attention, {other} the rest{reason}."

    def _reason(self) -> str:
        """The two ratings of the history with the highest weights, as the end of a sentence."""
        history = self.history[:2]
        titles = [f"“{item.title}”" if item.title else f"movie {item.movie_id}" for item in history]
        shown = [f"{i.rating:.1f} for {title}" for i, title in zip(history, titles, strict=True)]
        return f"; of the user's ratings, {' and '.join(shown)} count most" if shown else ""

    def __str__(self) -> str:
        return self.sentence()
