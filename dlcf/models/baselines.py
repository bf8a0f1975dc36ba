"""Baselines without latent factors: the global mean, the biases, the most popular movies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dlcf.models.base import Growth, Index, Interactions, Recommender, fit_biases
from dlcf.runtime.settings import setting


@dataclass(kw_only=True, eq=False)
class GlobalMean(Recommender):
    """Every rating is predicted the mean of all training ratings; every movie ranks alike."""

    name: ClassVar[str] = "global-mean"

    def _fit(
        self, data: Interactions, validation: Interactions | None, movies: pd.DataFrame | None
    ) -> None:
        # The mean is the only thing this model may know: cold pairs get it as well.
        self._forget(data)

    def _observe(self, growth: Growth) -> None:
        self._forget(growth.data)

    def _forget(self, data: Interactions) -> None:
        self._user_bias, self._movie_bias = np.zeros(data.n_users), np.zeros(data.n_movies)


@dataclass(kw_only=True, eq=False)
class Bias(Recommender):
    """The baseline estimate: ``r_ui = mu + b_u + b_i`` (Koren, Bell and Volinsky, 2009, eq. 4).

    Parameters
    ----------
    user_damping, movie_damping
        Ratings' worth of evidence for a bias of zero; a bias is a mean over its ratings plus
        these.
    """

    name: ClassVar[str] = "bias"
    user_damping: float = setting(Recommender.user_damping, least=0)
    movie_damping: float = setting(Recommender.movie_damping, least=0)

    def _fit(
        self, data: Interactions, validation: Interactions | None, movies: pd.DataFrame | None
    ) -> None:
        found = fit_biases(data, self.user_damping, self.movie_damping)
        self._mean, self._user_bias, self._movie_bias = found

    def _observe(self, growth: Growth) -> None:
        """Biases and counts are all that it has."""


@dataclass(kw_only=True, eq=False)
class Popular(Bias):
    """Ranks by the number of training ratings, the same list for all; predicts as `Bias` does."""

    name: ClassVar[str] = "popular"

    def _score(self, users: Index, at: float | None) -> NDArray[np.float32]:
        return np.tile(self.movie_counts.astype(np.float32), (len(users), 1))
