"""What the related systems share: who rated what, movies that nobody rated, and training.

They are trained by the one loop of :mod:`dlcf.training`, on rows of their own: pairs, users,
windows. What they minimise is the network's own affair, and their losses by epoch are of that.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlcf.models.base import Floats, Index, Interactions, Recommender
from dlcf.models.network import NetworkRecommender
from dlcf.training import Batch, RatingNetwork, pick_device

_REDRAWN = 10  # times at most that negatives are drawn anew which the user rated


class RatedMovies(nn.Module):
    """Who rated what, ``r`` of each, as buffers of a network, in CSR form."""

    start: Tensor  # (n_users + 1,)
    movie: Tensor  # (n ratings,), of each user in ascending order
    value: Tensor  # (n ratings,) float32: 1, or what is given
    cell: Tensor  # (n ratings,), users * n_movies + movies, in ascending order

    def __init__(self, data: Interactions, value: NDArray[Any] | None = None) -> None:
        super().__init__()
        self.n_movies = data.n_movies
        start = np.concatenate([[0], np.cumsum(np.bincount(data.users, minlength=data.n_users))])
        stored = np.ones(len(data)) if value is None else value
        self.register_buffer("start", torch.from_numpy(start))
        self.register_buffer("movie", torch.from_numpy(data.movies))
        self.register_buffer("value", torch.from_numpy(stored.astype(np.float32)))
        self.register_buffer("cell", torch.from_numpy(data.users * data.n_movies + data.movies))

    def rows(self, users: Tensor, dropped: float = 0.0) -> Tensor:
        """Dense rows of some users, ``(n, n_movies)``; 0 where there is no rating.

        A share `dropped` of the ratings, drawn anew, is 0 too; the others make up for it.
        """
        row, place = places(self.start, users)
        dense = self.value.new_zeros(len(users), self.n_movies)
        dense[row, self.movie[place]] = nn.functional.dropout(self.value[place], dropped)
        return dense

    def negatives(self, users: Tensor, n: int) -> Tensor:
        """Movies drawn uniformly among those a user did not rate, int64 ``(len(users), n)``.

        A user who rated nearly everything may get what she rated.
        """
        drawn = torch.randint(self.n_movies, (len(users) * n,), device=users.device)
        first = users.repeat_interleave(n) * self.n_movies
        unsure = torch.arange(len(drawn), device=users.device)
        for _ in range(_REDRAWN):
            wanted = first[unsure] + drawn[unsure]
            place = torch.searchsorted(self.cell, wanted).clamp(max=len(self.cell) - 1)
            unsure = unsure[self.cell[place] == wanted]
            if not len(unsure):
                break
            drawn[unsure] = torch.randint(self.n_movies, (len(unsure),), device=users.device)
        return drawn.view(len(users), n)


class Histories(nn.Module):
    """What each user rated, in order of time, as buffers of a network, in CSR form.

    Ratings of the same moment, and those without one, are in order of their movies.
    """

    start: Tensor  # (n_users + 1,)
    movie: Tensor  # (n ratings,)

    def __init__(self, data: Interactions) -> None:
        super().__init__()
        order = np.lexsort((data.movies, data.timestamps, data.users))
        start = np.concatenate([[0], np.cumsum(np.bincount(data.users, minlength=data.n_users))])
        self.register_buffer("start", torch.from_numpy(start))
        self.register_buffer("movie", torch.from_numpy(data.movies[order]))

    def of(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """The movies of some users, one user after the other, and where each user's begin."""
        row, place = places(self.start, users)
        own = torch.arange(len(users), device=users.device)
        return self.movie[place], torch.searchsorted(row, own)


def places(start: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of some rows in CSR form, of each entry the position of its row in `rows`, and its place."""
    count = start[rows + 1] - start[rows]
    row = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), count)
    first = torch.repeat_interleave(start[rows] - torch.cumsum(count, 0) + count, count)
    return row, first + torch.arange(len(row), device=rows.device)


class RelatedRecommender(NetworkRecommender):
    """Of a network that ranks, and predicts by the biases unless a subclass does better.

    The network has ``losses(*rows)``, ``forward`` where it predicts ratings, and ``score_all``.
    """

    saved_as: ClassVar[dict[str, str]] = {"last": "network"}
    weights = "last"
    validation_fraction = 0.0

    @abstractmethod
    def rows(self, data: Interactions) -> Batch:
        """What is drawn batches from: tensors of equal length, the last of floats."""

    def _fit(self, data: Interactions, validation: Any, movies: pd.DataFrame | None) -> None:
        device = pick_device(self.device)
        rows = self.rows(data)
        if len(rows[-1]) == 1:  # one row has no variance, and no batch
            rows = tuple(column.repeat(2, *[1] * (column.ndim - 1)) for column in rows)
        self._train(data, tuple(column.to(device) for column in rows), None)

    def _predict(self, users: Index, movies: Index, timestamps: Index | None) -> Floats:
        return Recommender._predict(self, users, movies, timestamps)


class RankingNetwork(RatingNetwork):
    """A network that only ranks: it has ``losses`` and ``score_all``, and predicts no ratings."""

    def forward(self, *inputs: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} ranks; it predicts no ratings")

    @abstractmethod
    def score_all(self, users: Tensor) -> Tensor:
        """Scores of the catalogue, ``(len(users), n_movies)``, without gradients."""
