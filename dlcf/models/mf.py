"""Matrix factorisation with biases (Koren, Bell and Volinsky, 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlcf.models.base import Floats, Interactions
from dlcf.models.network import WEIGHTS, NetworkRecommender
from dlcf.runtime.settings import setting
from dlcf.training import RatingNetwork


class FactorNetwork(RatingNetwork):
    """``r_ui = mu + b_u + b_i + p_u . q_i`` (Koren, Bell and Volinsky, 2009, eq. 4)."""

    mean: Tensor

    def __init__(
        self, data: Interactions, factors: int, regularization: float, bias_regularization: float
    ) -> None:
        super().__init__()
        self.regularization = regularization
        self.bias_regularization = bias_regularization
        self.register_buffer("mean", torch.tensor(float(data.ratings.mean(dtype=np.float64))))
        self.user_factors = nn.Embedding(data.n_users, factors)
        self.movie_factors = nn.Embedding(data.n_movies, factors)
        self.user_bias = nn.Embedding(data.n_users, 1)
        self.movie_bias = nn.Embedding(data.n_movies, 1)
        for table in (self.user_factors, self.movie_factors):
            nn.init.normal_(table.weight, std=0.05)
        for table in (self.user_bias, self.movie_bias):
            nn.init.zeros_(table.weight)

    def users(self, users: Tensor) -> Tensor:
        """The users' factors, ``(n, factors)``."""
        return self.user_factors(users)

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        biases = self.user_bias(users), self.movie_bias(movies)
        return self._rate(self.users(users), self.movie_factors(movies), *biases)

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error plus ``lambda (|p_u|^2 + |q_i|^2) + lambda_b (b_u^2 + b_i^2)`` (eq. 5)."""
        users, movies, ratings = batch
        user, movie = self.users(users), self.movie_factors(movies)
        user_bias, movie_bias = self.user_bias(users), self.movie_bias(movies)
        predicted = self._rate(user, movie, user_bias, movie_bias)
        error = nn.functional.mse_loss(predicted, ratings)
        size = user.square().sum(1) + movie.square().sum(1)
        bias = user_bias.square() + movie_bias.square()
        penalty = self.regularization * size.mean() + self.bias_regularization * bias.mean()
        return error + penalty, error

    def _rate(self, user: Tensor, movie: Tensor, user_bias: Tensor, movie_bias: Tensor) -> Tensor:
        return self.mean + (user_bias + movie_bias).squeeze(1) + (user * movie).sum(1)

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        """Ratings of every movie, ``(n, n_movies)``, in one matrix product."""
        interaction = self.users(users) @ self.movie_factors.weight.T
        return self.mean + self.user_bias(users) + self.movie_bias.weight.T + interaction


@dataclass(kw_only=True, eq=False)
class MatrixFactorization(NetworkRecommender):
    """Biased matrix factorisation, trained by mini-batch Adam.

    Parameters
    ----------
    factors
        Length of the user and movie vectors.
    regularization, bias_regularization
        L2 penalties of eq. 5, on the rows that a batch touches.
    epochs, batch_size, learning_rate, seed, device
        See :class:`dlcf.training.TrainingConfig`.
    validation_fraction
        Share of train held out where no validation frame is given. The default holds out nothing:
        the number of epochs was chosen once, on validation data, and all of train is used.
    weights
        ``"last"`` or ``"best"`` epoch.
    """

    name: ClassVar[str] = "mf"
    factors: int = setting(50, least=1)
    regularization: float = setting(0.12, least=0)
    bias_regularization: float = setting(0.01, least=0)
    epochs: int = setting(20, least=1)
    batch_size: int = setting(512, least=1)
    learning_rate: float = setting(2e-3, above=0)
    validation_fraction: float = setting(0.0, least=0, below=1)
    weights: str = setting("last", choices=WEIGHTS)
    seed: int = setting(0, least=0)
    device: str = "auto"

    def build_network(self, data: Interactions) -> FactorNetwork:
        return FactorNetwork(data, self.factors, self.regularization, self.bias_regularization)

    def movie_factors(self) -> NDArray[np.float32]:
        """The movies' vectors, ``(n_movies, factors)``, rows in `movie_ids` order."""
        self._check_fitted()
        return self.network.movie_factors.weight.detach().cpu().numpy()

    def movie_parts(self) -> tuple[Floats, Floats]:
        """The movies' vectors ``(n_movies, factors)`` and the mean plus their biases, in stars."""
        self._check_fitted()
        level = self.network.mean + self.network.movie_bias.weight[:, 0]
        return self.movie_factors().astype(np.float64), level.detach().cpu().double().numpy()
