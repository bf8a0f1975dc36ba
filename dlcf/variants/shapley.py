"""Shapley values of two players, user and movie, in a prediction (Shapley, 1953)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from dlcf.models.base import Recommender


def shapley(values: Any) -> tuple[Any, Any]:
    """Shapley values ``(...,)`` of a game of two players, user and movie.

    Each is the player's gain, averaged over the two orders of joining; they sum to the gain of both
    over none. `values`, ``(..., 4)``, an array or a tensor, are what the coalitions {}, {user},
    {movie}, {user, movie} are worth.
    """
    none, user, movie, both = (values[..., i] for i in range(4))
    return (user - none + both - movie) / 2, (movie - none + both - user) / 2


def player_share(user: Any, movie: Any) -> Any:
    """``|user| / (|user| + |movie|)`` in [0, 1]: the user's share; 1/2 where both are 0."""
    least = 1e-9
    return (abs(user) + least) / (abs(user) + abs(movie) + 2 * least)


def cold_coalitions(model: Recommender, pairs: pd.DataFrame) -> NDArray[np.float64]:
    """Ratings ``(n, 4)`` by neither, the user, the movie and both, as :func:`shapley` wants.

    Who is absent is an id that training does not know, which any model serves by its fallback.
    """
    nobody = {"userId": int(model.user_ids[-1]) + 1}
    nothing = {"movieId": int(model.movie_ids[-1]) + 1}
    absent: tuple[dict[str, int], ...] = (nobody | nothing, nothing, nobody, {})
    return np.stack([model.predict(pairs.assign(**who)) for who in absent], axis=1)


def share_correlation(weight: NDArray[Any], values: NDArray[np.float64]) -> float | None:
    """Spearman's correlation in [-1, 1] of weights on the user with the user's Shapley shares.

    `weight` is ``(n,)`` in [0, 1]; `values`, ``(n, 4)``, are what the coalitions are worth, see
    :func:`shapley`. None where there are fewer than two pairs, or the weights or the shares are all
    alike.
    """
    share = player_share(*shapley(values))
    if len(share) < 2 or np.ptp(share) == 0 or np.ptp(weight) == 0:
        return None
    return float(stats.spearmanr(weight, share).statistic)


def evenly_spread(n: int, most: int) -> NDArray[np.int64]:
    """Of `n` rows at most `most`, at equal distances, the first and the last among them."""
    return np.linspace(0, n - 1, min(n, most)).astype(np.int64)
