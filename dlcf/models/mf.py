"""Matrix factorisation with biases, and SVD++ (Koren, Bell and Volinsky, 2009; Koren, 2008)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlcf.fast.deferred_step import can_defer, deferred_step
from dlcf.fast.factor_step import FactorStep
from dlcf.models.base import Interactions
from dlcf.models.network import NetworkRecommender, rated_movies
from dlcf.training import Batch, RatingNetwork, TrainingConfig, TrainingStep

__all__ = ["MatrixFactorization", "SVDPlusPlus"]


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

    def training_step(self, train: Batch, config: TrainingConfig) -> TrainingStep:
        """By hand where that is possible.

        Else by autograd, deferred for all tables but SVD++'s implicit factors, of which a batch
        reads nearly all.
        """
        by_hand = config.precision == "float32" and can_defer(train, config)
        if type(self) is FactorNetwork and by_hand:
            return FactorStep(self, train, config)
        tables = self.user_factors, self.movie_factors, self.user_bias, self.movie_bias
        return deferred_step(self, train, config, tables)

    def _rate(self, user: Tensor, movie: Tensor, user_bias: Tensor, movie_bias: Tensor) -> Tensor:
        return self.mean + (user_bias + movie_bias).squeeze(1) + (user * movie).sum(1)

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        """Ratings of every movie, ``(n, n_movies)``, in one matrix product."""
        interaction = self.users(users) @ self.movie_factors.weight.T
        return self.mean + self.user_bias(users) + self.movie_bias.weight.T + interaction


class ImplicitFactorNetwork(FactorNetwork):
    """SVD++: ``p_u`` becomes ``p_u + |N(u)|^-1/2 sum_{j in N(u)} y_j`` (Koren, 2008, eq. 15).

    N(u) is the set of movies that the user rated in training, whatever the ratings. The penalty
    is on the sum, which is the vector that predicts.
    """

    rated_start: Tensor
    rated_movie: Tensor

    def __init__(
        self, data: Interactions, factors: int, regularization: float, bias_regularization: float
    ) -> None:
        super().__init__(data, factors, regularization, bias_regularization)
        self.implicit_factors = nn.Embedding(data.n_movies, factors)
        nn.init.normal_(self.implicit_factors.weight, std=0.05)
        rated = data.matrix()
        self.register_buffer("rated_start", torch.as_tensor(rated.indptr, dtype=torch.int64))
        self.register_buffer("rated_movie", torch.as_tensor(rated.indices, dtype=torch.int64))

    def users(self, users: Tensor) -> Tensor:
        return self.user_factors(users) + self._implicit(users)

    def _implicit(self, users: Tensor) -> Tensor:
        """``|N(u)|^-1/2 sum_{j in N(u)} y_j``, once for each distinct user of the batch."""
        distinct, position = torch.unique(users, return_inverse=True)
        movies, first, count = rated_movies(self.rated_start, self.rated_movie, distinct)
        total = nn.functional.embedding_bag(movies, self.implicit_factors.weight, first, mode="sum")
        normed = total / count.clamp(min=1).sqrt()[:, None]
        # Not normed[position], whose gradient several threads sum in whatever order they come.
        return normed.index_select(0, position)


class MatrixFactorization(NetworkRecommender):
    """Biased matrix factorisation, trained by mini-batch Adam.

    Parameters
    ----------
    factors
        Length of the user and movie vectors.
    regularization, bias_regularization
        L2 penalties of eq. 5, on the rows that a batch touches.
    epochs, batch_size, learning_rate
        See :class:`dlcf.training.TrainingConfig`.
    validation_fraction
        Share of train held out where no validation frame is given. The default holds out nothing:
        the number of epochs was chosen once, on validation data, and all of train is used.
    weights
        ``"last"`` or ``"best"`` epoch.
    seed, device
        See :class:`dlcf.training.TrainingConfig`.
    """

    name = "mf"
    _network_class: type[FactorNetwork] = FactorNetwork
    _network: FactorNetwork

    def __init__(
        self,
        *,
        factors: int = 50,
        regularization: float = 0.12,
        bias_regularization: float = 0.01,
        epochs: int = 20,
        batch_size: int = 512,
        learning_rate: float = 2e-3,
        validation_fraction: float = 0.0,
        weights: str = "last",
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        self.factors = factors
        self.regularization = regularization
        self.bias_regularization = bias_regularization
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.weights = weights
        self.seed = seed
        self.device = device

    def _build(self, data: Interactions) -> RatingNetwork:
        return self._network_class(
            data, self.factors, self.regularization, self.bias_regularization
        )

    def _score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._network.score_all(torch.as_tensor(users, device=self._device())).cpu().numpy()

    def movie_factors(self) -> NDArray[np.float32]:
        """The movies' vectors, ``(n_movies, factors)``, rows in `movie_ids` order."""
        self._check_fitted()
        return self._network.movie_factors.weight.detach().cpu().numpy()

    def movie_parts(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The movies' vectors ``(n_movies, factors)`` and the mean plus their biases, in stars."""
        level = self._network.mean + self._network.movie_bias.weight[:, 0]
        return self.movie_factors().astype(np.float64), level.detach().cpu().double().numpy()


class SVDPlusPlus(MatrixFactorization):
    """SVD++: matrix factorisation with the user's set of rated movies as implicit feedback.

    Parameters
    ----------
    factors, regularization, bias_regularization, epochs, batch_size, learning_rate
        As for :class:`MatrixFactorization`.
    validation_fraction, weights, seed, device
        As for :class:`MatrixFactorization`.
    """

    name = "svdpp"
    _network_class = ImplicitFactorNetwork

    def __init__(
        self,
        *,
        factors: int = 50,
        regularization: float = 0.14,
        bias_regularization: float = 0.01,
        epochs: int = 20,
        batch_size: int = 1024,
        learning_rate: float = 3e-3,
        validation_fraction: float = 0.0,
        weights: str = "last",
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        super().__init__(
            factors=factors,
            regularization=regularization,
            bias_regularization=bias_regularization,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validation_fraction=validation_fraction,
            weights=weights,
            seed=seed,
            device=device,
        )
