"""Collaborative denoising auto-encoders (Wu, DuBois, Zheng and Ester, 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dlcf.models.base import Interactions
from dlcf.related.networks import RankingNetwork, RatedMovies, RelatedRecommender, places
from dlcf.runtime.settings import setting
from dlcf.training import Batch


class DenoisingNetwork(RankingNetwork):
    """``z_u = h(W^T y_u + V_u + b)``, and the scores of all movies ``W' z_u + b'``."""

    def __init__(self, data: Interactions, model: CDAE) -> None:
        super().__init__()
        self.rated = RatedMovies(data)
        self.corruption, self.negatives = model.corruption, model.negatives
        self.loss, self.weight_decay = model.loss, model.weight_decay
        self.activation = {"sigmoid": nn.Sigmoid(), "identity": nn.Identity()}[model.activation]
        self.encoder = nn.Linear(data.n_movies, model.factors)
        self.user = nn.Embedding(data.n_users, model.factors)
        self.decoder = nn.Linear(model.factors, data.n_movies)
        for table in (self.encoder, self.user, self.decoder):
            nn.init.normal_(table.weight, std=0.05)
        for layer in (self.encoder, self.decoder):
            nn.init.zeros_(layer.bias)

    def scores(self, users: Tensor) -> Tensor:
        """Of every movie; what is read of the users is corrupted while training.

        A one is dropped with probability q, and those that stay are ``1 / (1 - q)``.
        """
        read = self.rated.rows(users, self.corruption if self.training else 0.0)
        return self.decoder(self.activation(self.encoder(read) + self.user(users)))

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Mean over users of the sum over their ratings and negatives, then half the L2 penalty."""
        users, _ = batch
        row, place = places(self.rated.start, users)
        negatives = self.rated.negatives(users[row], self.negatives)
        # A table of one column: the gradients of its rows are summed in the same order every time.
        table = self.scores(users).reshape(-1, 1)
        first = row[:, None] * self.rated.n_movies
        rated = self.rated.movie[place][:, None]
        positive, negative = (
            nn.functional.embedding(first + movies, table)[..., 0] for movies in (rated, negatives)
        )
        error = self._loss(positive, negative) / len(users)
        size = torch.stack([parameter.square().sum() for parameter in self.parameters()]).sum()
        return error + 0.5 * self.weight_decay * size, error

    def _loss(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Of scores ``(n, 1)`` and ``(n, negatives)``, summed."""
        if self.loss == "pairwise":
            return nn.functional.softplus(negative - positive).sum()
        if self.loss == "logistic":
            softplus = nn.functional.softplus
            return softplus(-positive).sum() + softplus(negative).sum()
        return 0.5 * ((1 - positive).square().sum() + negative.square().sum())

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        return self.scores(users)


@dataclass(kw_only=True, eq=False)
class CDAE(RelatedRecommender):
    """Collaborative denoising auto-encoder (Wu, DuBois, Zheng and Ester, WSDM 2016).

    ``z_u = h(W^T y~_u + V_u + b)`` and ``s_u = W' z_u + b'``: y~_u is the user's row of zeros and
    ones, of which training drops a share q of the ones and multiplies the others by
    ``1 / (1 - q)``; V_u is a vector of the user's own. What the user rated, dropped or not, is told
    from sampled movies that she did not rate. With y of 1 and 0 for these, the losses are

    - ``square``: ``(y - s)^2 / 2``;
    - ``logistic``: ``-y log sigmoid(s) - (1 - y) log(1 - sigmoid(s))``;
    - ``pairwise``: ``log(1 + exp(s_j - s_i))`` for a rated movie i and each j sampled for it,

    plus ``weight_decay / 2`` times the squares of all weights. The objective is a mean over users
    of sums over their movies. Ranks by s; the ratings are the biases'.

    Otherwise than in the paper:

    - a step is of a batch of users by Adam, not of one user by AdaGrad;
    - the square loss compares s itself; no sigmoid is put upon it.

    Parameters
    ----------
    factors
        Length of the hidden layer, of W, V and W'.
    corruption
        q, the chance that a rated movie is left out of what is read.
    activation
        h: ``"sigmoid"`` or ``"identity"``.
    loss
        ``"square"``, ``"logistic"`` or ``"pairwise"``.
    negatives
        Movies without a rating that are drawn for each with one, anew each time.
    weight_decay
        Lambda, the L2 penalty.
    epochs, batch_size, learning_rate, seed, device
        See :class:`dlcf.training.TrainingConfig`; a row of a batch is a user.
    """

    name: ClassVar[str] = "cdae"
    factors: int = setting(100, least=1)
    corruption: float = setting(0.5, least=0, below=1)
    activation: str = setting("sigmoid", choices=("sigmoid", "identity"))
    loss: str = setting("logistic", choices=("square", "logistic", "pairwise"))
    negatives: int = setting(5, least=1)
    weight_decay: float = setting(0.003, least=0)
    epochs: int = setting(50, least=1)
    batch_size: int = setting(32, least=1)
    learning_rate: float = setting(1e-2, above=0)
    seed: int = setting(0, least=0)
    device: str = "auto"

    def rows(self, data: Interactions) -> Batch:
        return torch.arange(data.n_users), torch.zeros(data.n_users)

    def build_network(self, data: Interactions) -> DenoisingNetwork:
        return DenoisingNetwork(data, self)
