"""Models that keep their users' ratings, and can serve a user as if some of them were others."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dlcf.models.base import USER_DAMPING, Recommender
from dlcf.ratings import check_ids


class HistoryRecommender(Recommender):
    """A model that computes what it says of a user from the user's ratings when it is asked.

    Subclasses implement `_training_ratings` and `_revise`.
    """

    is_revised = False  # it serves other ratings than it could be restored with

    def _learn(self, *given: Any) -> None:
        self.is_revised = False
        super()._learn(*given)

    def revised(self, user_id: int, changes: Mapping[int, float | None]) -> HistoryRecommender:
        """This model, serving one user as if some of the user's ratings were others.

        What the model makes of a history is computed again from the changed one: the user's bias,
        the ratings that are averaged, the movies that are left out of recommendations. What was
        learned from all ratings together (similarities, item weights, networks, other users) stays
        as it is: nothing is trained again. No changes, the same answers.

        `changes` are MovieLens' ids of movies that the user rated in train, each with its new
        rating, or with None where it is taken away. ValueError where the user is unknown, a movie
        is none that the user rated, or a rating is off the scale. What comes back keeps the whole
        contract but `save`, and may be revised again; this model is left as it is.
        """
        self._check_fitted()
        ratings = self._training_ratings()
        rows = self._rows_of(user_id)
        if rows is None:
            raise ValueError(f"user {user_id} has no rating in train that could be changed")
        rated = {int(self.movie_ids[self._seen.indices[i]]): i for i in range(*rows)}
        new, kept = np.array(ratings, dtype=np.float64), np.ones(len(ratings), dtype=bool)
        low, high = self.scale
        for movie_id, rating in changes.items():
            if movie_id not in rated:
                raise ValueError(f"user {user_id} did not rate movie {movie_id} in train")
            if rating is not None and not low <= rating <= high:
                raise ValueError(
                    f"rating {rating} of movie {movie_id} is off the scale, {low:g} to {high:g}"
                )
            kept[rated[movie_id]] = rating is not None
            new[rated[movie_id]] = low if rating is None else rating
        served = copy.copy(self)
        served.is_revised = True
        served._seen = self._seen.copy()
        served._seen.data = kept.astype(self._seen.dtype)
        served._seen.eliminate_zeros()
        own = np.arange(*rows)[kept[slice(*rows)]]
        left = new[own] - self._mean - self._movie_bias[self._seen.indices[own]]
        user = int(np.searchsorted(self.user_ids, user_id))
        served._user_bias = self._user_bias.copy()
        served._user_bias[user] = left.sum() / (len(own) + USER_DAMPING)
        served._revise(self, user, kept, new)
        return served

    def ratings_of(self, user_id: int) -> pd.DataFrame:
        """What a user rated in train: `movieId` ascending, `rating`; empty for an unknown user."""
        self._check_fitted()
        ratings = self._training_ratings()
        rows = slice(*(self._rows_of(user_id) or (0, 0)))
        movie_ids = self.movie_ids[self._seen.indices[rows]]
        return pd.DataFrame({"movieId": movie_ids, "rating": ratings[rows].astype(np.float64)})

    def save(self, folder: str | Path) -> Path:
        """As :meth:`Recommender.save`; ValueError for one that serves what it was not fitted on."""
        if self.is_revised:
            raise ValueError(
                f"this {self.name} serves ratings that it was not fitted on; save what it came from"
            )
        return super().save(folder)

    @abstractmethod
    def _training_ratings(self) -> NDArray[Any]:
        """The ratings of train, in (user, movie) order as in `_seen`."""

    @abstractmethod
    def _revise(
        self, original: Any, user: int, kept: NDArray[np.bool_], ratings: NDArray[np.float64]
    ) -> None:
        """Serve ``ratings[kept]``, of which only those of `user`, a position, have changed.

        Called on a shallow copy of `original` with `_seen` and `_user_bias` revised already; both
        arrays are in the order of the original's :meth:`_training_ratings`.
        """

    def _rows_of(self, user_id: int) -> tuple[int, int] | None:
        """Where the user's ratings begin and end in `_seen`; None for an unknown user."""
        (user_id,) = check_ids([user_id], "userId").tolist()
        user = int(np.searchsorted(self.user_ids, user_id))
        if user == len(self.user_ids) or self.user_ids[user] != user_id:
            return None
        first, last = self._seen.indptr[user : user + 2]
        return int(first), int(last)
