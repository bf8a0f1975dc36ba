"""Neural collaborative filtering (He et al., 2017), and the dot product that it is held against."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dlcf.models.base import Interactions
from dlcf.related.networks import RankingNetwork, RatedMovies, RelatedRecommender
from dlcf.runtime.settings import setting
from dlcf.training import Batch, train_network

_FLOATS_AT_ONCE = 2**23  # of a layer's outputs while the catalogue is scored
PARTS = {"neumf": ("gmf", "mlp"), "gmf": ("gmf",), "mlp": ("mlp",), "dot": ("dot",)}


class Product(nn.Module):
    """GMF: ``p_u * q_i``, element by element."""

    def __init__(self, data: Interactions, factors: int, layers: int) -> None:
        super().__init__()
        self.user, self.movie = _table(data.n_users, factors), _table(data.n_movies, factors)

    def halves(self, user: Tensor, movie: Tensor) -> tuple[Tensor, Tensor]:
        """What is computed of a user's and of a movie's vector alone."""
        return user, movie

    def join(self, user: Tensor, movie: Tensor) -> Tensor:
        """What the output layer reads, of both halves."""
        return user * movie


class Tower(Product):
    """MLP: ``[p_u; q_i]`` through layers of ReLU, each half as wide as the one before."""

    def __init__(self, data: Interactions, factors: int, layers: int) -> None:
        widths = [factors * 2**i for i in reversed(range(layers))]
        size = max(1, widths[0] // 2)
        super().__init__(data, size, layers)
        self.first = nn.Linear(2 * size, widths[0])
        deeper = [(nn.Linear(wide, narrow), nn.ReLU()) for wide, narrow in pairwise(widths)]
        self.tower = nn.Sequential(nn.ReLU(), *(layer for both in deeper for layer in both))

    def halves(self, user: Tensor, movie: Tensor) -> tuple[Tensor, Tensor]:
        of_user, of_movie = self.first.weight.chunk(2, dim=1)
        return nn.functional.linear(user, of_user, self.first.bias), movie @ of_movie.T

    def join(self, user: Tensor, movie: Tensor) -> Tensor:
        return self.tower(user + movie)


class Dot(Product):
    """``b + b_u + b_i + p_u . q_i``; the last column of a table holds the biases."""

    def __init__(self, data: Interactions, factors: int, layers: int) -> None:
        super().__init__(data, factors + 1, layers)
        self.bias = nn.Parameter(torch.zeros(()))

    def join(self, user: Tensor, movie: Tensor) -> Tensor:
        dot = (user[..., :-1] * movie[..., :-1]).sum(-1, keepdim=True)
        return self.bias + user[..., -1:] + movie[..., -1:] + dot


class NeuralNetwork(RankingNetwork):
    """The logit of a pair: one output layer over what the parts make of it."""

    parts: Any  # a ModuleList of Product, or of what is made of it
    output: Any  # a Linear; of the dot product nothing is done to what is a logit already

    def __init__(self, data: Interactions, model: NeuMF) -> None:
        super().__init__()
        self.rated = RatedMovies(data)
        self.negatives, self.regularization = model.negatives, model.regularization
        kinds = {"gmf": Product, "mlp": Tower, "dot": Dot}
        names = PARTS[model.variant]
        self.parts = nn.ModuleList(kinds[n](data, model.factors, model.layers) for n in names)
        dot = model.variant == "dot"
        self.output = nn.Identity() if dot else nn.Linear(model.factors * len(names), 1)

    def logits(self, halves: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Of every user with every movie of its row, ``(n, k)``."""
        joined = [part.join(*of) for part, of in zip(self.parts, halves, strict=True)]
        return self.output(torch.cat(joined, -1)).squeeze(-1)

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each positive and its negatives, then the L2 penalty of their vectors.

        The sampled form of the paper's eq. 7, as a mean over the pairs.
        """
        users, movies, _ = batch
        among = torch.cat([movies[:, None], self.rated.negatives(users, self.negatives)], 1)
        vectors = [(part.user(users)[:, None], part.movie(among)) for part in self.parts]
        halves = [part.halves(*of) for part, of in zip(self.parts, vectors, strict=True)]
        logits = self.logits(halves)
        target = torch.zeros_like(logits)
        target[:, 0] = 1.0
        error = nn.functional.binary_cross_entropy_with_logits(logits, target)
        sizes = [of.square().sum(-1).mean() for both in vectors for of in both]
        return error + self.regularization * torch.stack(sizes).sum(), error

    def alone(self, part: nn.Module) -> NeuralNetwork:
        """One part, this network's own, below an output layer of its own."""
        network = copy.deepcopy(self)
        network.parts = nn.ModuleList([part])
        weight = self.output.weight
        network.output = nn.Linear(weight.shape[1] // len(self.parts), 1).to(weight.device)
        return network

    @torch.no_grad()
    def blend(self, outputs: list[nn.Linear]) -> None:
        """Output weights of the parts side by side; each has an equal say (eq. 13)."""
        self.output.weight.copy_(torch.cat([o.weight for o in outputs], 1) / len(outputs))
        self.output.bias.copy_(torch.stack([o.bias for o in outputs]).mean(0))

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        """Logits of every movie; the halves once each, what joins them in blocks of users."""
        halves = [part.halves(part.user(users), part.movie.weight) for part in self.parts]
        at_once = max(1, _FLOATS_AT_ONCE // max(movie.numel() for _, movie in halves))
        blocks = [
            self.logits([(user[i : i + at_once, None], movie[None]) for user, movie in halves])
            for i in range(0, len(users), at_once)
        ]
        return torch.cat(blocks) if blocks else users.new_zeros(0, self.rated.n_movies).float()


@dataclass(kw_only=True, eq=False)
class NeuMF(RelatedRecommender):
    """Neural matrix factorisation (He, Liao, Zhang, Nie, Hu and Chua, WWW 2017).

    The probability that a user rates a movie at all is ``sigmoid(h . [phi_gmf; phi_mlp])``: GMF is
    the element-wise product of a user's and a movie's vector, MLP a tower of ReLU layers over both,
    and each has vectors of its own. Cross-entropy over all rated pairs and `negatives` sampled ones
    for each, drawn anew in each epoch. Ranks by the logit; the ratings are the biases'.

    ``"dot"`` is the plain dot product with biases, which beats the others where it is tuned as well
    (Rendle, Krichene, Zhang and Anderson, RecSys 2020); it is trained in the same way.

    Otherwise than in the paper:

    - the output has a bias, as in the authors' code, and the vectors an L2 penalty;
    - a movie that the user rated is never a negative, except of a user who rated nearly all;
    - NeuMF after pre-training goes on with Adam, not with plain gradient descent.

    Parameters
    ----------
    variant
        ``"neumf"``, or a part of it alone: ``"gmf"``, ``"mlp"``; or ``"dot"``.
    pretrain
        NeuMF starts from GMF and MLP that were trained as long, whose output weights count a half
        each (alpha = 0.5). The other variants have nothing to start from.
    factors
        Length of the vectors of GMF and the dot product, and of what the tower ends with.
    layers
        Of the tower; the first is ``2^(layers - 1)`` times as wide as the last, the vectors below
        it half as long as it is wide.
    negatives
        Movies without a rating that are drawn for each with one.
    regularization
        L2 penalty on the vectors that a batch touches.
    epochs, batch_size, learning_rate, seed, device
        See :class:`dlcf.training.TrainingConfig`; a row of a batch is a rated pair.
    """

    name: ClassVar[str] = "neumf"
    variant: str = setting("neumf", choices=tuple(PARTS))
    pretrain: bool = False
    factors: int = setting(32, least=1)
    layers: int = setting(3, least=1)
    negatives: int = setting(10, least=1)
    regularization: float = setting(0.0, least=0)
    epochs: int = setting(12, least=1)
    batch_size: int = setting(1024, least=1)
    learning_rate: float = setting(2e-3, above=0)
    seed: int = setting(0, least=0)
    device: str = "auto"

    def rows(self, data: Interactions) -> Batch:
        columns = data.users, data.movies, data.ratings
        return tuple(torch.from_numpy(column) for column in columns)

    def build_network(self, data: Interactions) -> NeuralNetwork:
        return NeuralNetwork(data, self)

    def _before_training(self, train: Batch) -> None:
        if self.variant == "neumf" and self.pretrain:
            networks = [self.network.alone(part) for part in self.network.parts]
            for network in networks:
                train_network(network, train, None, self.training_config())
            self.network.blend([network.output for network in networks])


def _table(rows: int, size: int) -> nn.Embedding:
    table = nn.Embedding(rows, size)
    nn.init.normal_(table.weight, std=0.01)
    return table
