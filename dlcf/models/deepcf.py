"""The paper's model: embeddings, an attention layer of two weights, a deep tower, a sigmoid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlcf.models.base import Interactions
from dlcf.models.network import WEIGHTS, NetworkRecommender
from dlcf.runtime.settings import setting
from dlcf.training import RatingNetwork


class AttentionNetwork(RatingNetwork):
    """Attention over two embeddings, then a tower.

    For a user embedding ``p`` and a movie embedding ``q``::

        a = softmax(A [p; q] + c)                 two weights that sum to 1
        x = [a_1 p; a_2 q]
        x = dropout(relu(batch_norm(W x + b)))    once for each hidden layer
        s = sigmoid(w . x + b)                    the recommendation strength
        r = low + (high - low) s                  the rating

    `scale` is ``low`` and ``high``, `embedding_size` the length of ``p`` and of ``q``; `hidden` and
    `dropout` are units and dropout rate of each hidden layer.
    """

    def __init__(
        self,
        n_users: int,
        n_movies: int,
        scale: tuple[float, float],
        embedding_size: int = 128,
        hidden: Sequence[int] = (512, 256, 128, 64),
        dropout: Sequence[float] = (0.3, 0.2, 0.2, 0.1),
    ) -> None:
        super().__init__()
        self.scale = scale
        self.user_embedding = nn.Embedding(n_users, embedding_size)
        self.movie_embedding = nn.Embedding(n_movies, embedding_size)
        self.attention = nn.Linear(2 * embedding_size, 2)
        layers: list[nn.Module] = []
        n_inputs = 2 * embedding_size
        for size, rate in zip(hidden, dropout, strict=True):
            linear = nn.Linear(n_inputs, size)
            layers += [linear, nn.BatchNorm1d(size), nn.ReLU(), nn.Dropout(rate)]
            n_inputs = size
        self.tower = nn.Sequential(*layers)
        self.output = nn.Linear(n_inputs, 1)
        self.apply(initialise)

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        weight, user, movie = self.attend(users, movies)
        return self.rate(weight, user, movie)

    def attend(self, users: Tensor, movies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two weights ``(n, 2)`` and both embeddings ``(n, embedding_size)``."""
        user, movie = self.user_embedding(users), self.movie_embedding(movies)
        return self.weigh(user, movie), user, movie

    def weigh(self, user: Tensor, movie: Tensor) -> Tensor:
        """The attention ``(n, 2)`` that embeddings draw; rows sum to 1."""
        return torch.softmax(self.attention(torch.cat([user, movie], dim=1)), dim=1)

    def rate(self, weight: Tensor, user: Tensor, movie: Tensor) -> Tensor:
        """Ratings ``(n,)`` of weighted embeddings."""
        attended = torch.cat([weight[:, :1] * user, weight[:, 1:] * movie], dim=1)
        strength = torch.sigmoid(self.output(self.tower(attended))).squeeze(1)
        low, high = self.scale
        return low + (high - low) * strength


def initialise(module: nn.Module) -> None:
    """Give one layer fresh parameters: Xavier's weights (Glorot and Bengio, 2010), biases of 0."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.xavier_uniform_(module.weight)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.BatchNorm1d):
        module.reset_parameters()


@dataclass(kw_only=True, eq=False)
class DeepCF(NetworkRecommender):
    """The paper's deep collaborative filter; its defaults are the paper's.

    Parameters
    ----------
    embedding_size
        Length of the user and movie embeddings.
    hidden, dropout
        Units and dropout rate of each hidden layer.
    epochs, batch_size, learning_rate, lr_factor, lr_patience, early_stopping, seed, device,
    precision
        See :class:`dlcf.training.TrainingConfig`.
    validation_fraction
        Share of train held out for the learning-rate schedule where no validation frame is given.
    weights
        Predict with the weights of the ``"last"`` epoch, as the paper's figures suggest, or of the
        ``"best"`` epoch on validation.
    """

    name: ClassVar[str] = "deepcf"
    embedding_size: int = setting(128, least=1)
    hidden: Sequence[int] = setting((512, 256, 128, 64), least=1)
    dropout: Sequence[float] = setting((0.3, 0.2, 0.2, 0.1), least=0, below=1)
    epochs: int = setting(10, least=1)
    batch_size: int = setting(64, least=2)  # batch normalisation needs two
    learning_rate: float = setting(1e-3, above=0)
    lr_factor: float = setting(0.5, above=0, below=1)
    lr_patience: int = setting(2, least=0)
    early_stopping: int | None = setting(None, least=1)
    validation_fraction: float = setting(0.1, least=0, below=1)
    weights: str = setting("last", choices=WEIGHTS)
    seed: int = setting(0, least=0)
    device: str = "auto"
    precision: str = setting("float32", choices=("float32", "bf16"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hidden:
            raise ValueError("hidden is (); give at least one layer")
        if len(self.hidden) != len(self.dropout):
            problem = f"{len(self.hidden)} hidden layers but {len(self.dropout)} dropout rates"
            raise ValueError(f"{problem}; give one a layer")

    def build_network(self, data: Interactions) -> AttentionNetwork:
        layers = self.embedding_size, self.hidden, self.dropout
        return AttentionNetwork(data.n_users, data.n_movies, self.scale, *layers)

    def attention_weights(self, pairs: pd.DataFrame) -> NDArray[np.float64]:
        """Weights on user preferences and movie characteristics, ``(n, 2)``, rows sum to 1.

        `pairs` is a frame with `userId`, `movieId`. Where the user is unknown the row is (0, 1),
        where the movie is, (1, 0), where both are, (1/2, 1/2): there is no embedding to attend to.
        """
        users, known_user, movies, known_movie = self.positions(pairs)
        user_weight = np.where(known_user == known_movie, 0.5, known_user)
        known = known_user & known_movie
        if known.any():
            device = self.torch_device()
            index = (torch.as_tensor(i[known], device=device) for i in (users, movies))
            with torch.no_grad():
                user_weight[known] = self.network.attend(*index)[0][:, 0].cpu().numpy()
        return np.stack([user_weight, 1.0 - user_weight], axis=1)
