"""Collaborative deep learning: an auto-encoder of content and factors (Wang, Wang and Yeung)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from dlcf.models.base import Arrays, Floats, Index, Interactions
from dlcf.related.content import ContentMixin, catalogue_rows, content_of
from dlcf.related.factors import solve_factors
from dlcf.related.networks import RankingNetwork, RatedMovies, RelatedRecommender
from dlcf.runtime.settings import setting
from dlcf.training import Batch, History, pick_device, seeded, train_network

_AT_ONCE = 1024  # movies that are encoded at a time


class ContentAutoencoder(RankingNetwork):
    """f_e encodes a movie's words, f_r decodes them; u and v are solved for outside.

    Its rows are those of the described movies, whether the movie has a v yet, and v.
    """

    user_factors: Tensor
    movie_factors: Tensor  # of the described
    catalogue: Tensor  # the rows of those that the model was fitted on

    def __init__(
        self, content: sparse.csr_matrix, n_users: int, catalogue: Index, model: CollaborativeDL
    ) -> None:
        super().__init__()
        row, word = (place.astype(np.int64) for place in content.nonzero())
        nothing = np.zeros(len(row), dtype=np.float32), np.zeros(len(row), dtype=np.int64)
        self.words = RatedMovies(Interactions(row, word, *nothing, *content.shape))
        sizes = content.shape[1], *model.hidden, model.factors
        self.encoder, self.decoder = _sigmoids(*sizes), _sigmoids(*sizes[::-1])
        self.noise = model.noise
        # The objective is per movie, and the penalty of the weights is that of all movies.
        of_weights = model.weight_regularization / content.shape[0]
        self.penalties = model.word_weight, model.movie_regularization, of_weights
        self.register_buffer("user_factors", torch.zeros(n_users, model.factors))
        self.register_buffer("movie_factors", torch.zeros(content.shape[0], model.factors))
        self.register_buffer("catalogue", torch.from_numpy(catalogue))

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        rows, coupled, factors = batch
        clean = self.words.rows(rows)
        code = self.encoder(clean * (torch.rand_like(clean) >= self.noise))
        lambda_n, lambda_v, lambda_w = self.penalties
        wrong = (self.decoder(code) - clean).square().sum(1)
        away = coupled * (code - factors).square().sum(1)
        size = sum(weights.square().sum() for weights in self.parameters())
        objective = (lambda_n * wrong + lambda_v * away).mean() / 2 + lambda_w / 2 * size
        return objective, objective

    @torch.no_grad()
    def encode(self) -> Tensor:
        """f_e of all described movies, without noise."""
        rows = torch.arange(len(self.movie_factors), device=self.catalogue.device)
        return torch.cat([self.encoder(self.words.rows(some)) for some in rows.split(_AT_ONCE)])

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        return self.user_factors[users] @ self.movie_factors[self.catalogue].T


@dataclass(kw_only=True, eq=False)
class CollaborativeDL(ContentMixin, RelatedRecommender):
    """CDL: factors beside the middle of a denoising auto-encoder (Wang, Wang and Yeung, 2015).

    With X_c the words of movies, X_0 the same with some set to 0, f_e the encoder up to the middle
    layer and f_r encoder and decoder, it maximises the joint likelihood

    ``- lambda_u / 2 sum_i |u_i|^2 - lambda_w / 2 sum_l (|W_l|^2 + |b_l|^2)``
    ``- lambda_v / 2 sum_j |v_j - f_e(X_0j)|^2 - lambda_n / 2 sum_j |f_r(X_0j) - X_cj|^2``
    ``- sum_ij C_ij / 2 (R_ij - u_i . v_j)^2``,

    where R_ij is 1 and C_ij is a for a rating of at least `positive_threshold`, R_ij is 0 and C_ij
    is b elsewhere. By turns the auto-encoder takes steps for the v_j as they are, and u and v are
    solved for (coordinate ascent): ``u_i = (V C_i V^T + lambda_u I)^-1 V C_i R_i`` and
    ``v_j = (U C_j U^T + lambda_v I)^-1 (U C_j R_j + lambda_v f_e(X_j))``. Ranks by ``u_i . v_j``;
    v of a movie that nobody rated is f_e, which :meth:`score_described` ranks as well.

    Otherwise than in the paper:

    - Words of titles, genres, decades and tags, 0 or 1, in the place of abstracts and plots.
    - All layers are trained at once, by Adam, and begin as an auto-encoder alone, not layer by
      layer. The middle takes part in u's and v's steps without noise, and there is no dropout.

    Parameters
    ----------
    factors, hidden, words
        Size of the middle layer, of those between it and the words, and of the vocabulary at most.
    a, b, positive_threshold
        Confidence in a positive pair and in any other, 1 and 0.01 in the paper, whose data are
        sparser; the lowest rating that makes one, 0 counts all. `fit` raises ValueError where no
        rating makes one.
    user_regularization, movie_regularization, word_weight, weight_regularization
        lambda_u, lambda_v, lambda_n and lambda_w.
    noise
        Probability that a word is set to 0.
    rounds
        Turns of the auto-encoder and the factors.
    epochs, batch_size, learning_rate
        Of the auto-encoder in each round: passes over the movies, movies a step, Adam's step size.
    seed, device
        See :class:`~dlcf.training.TrainingConfig`.
    """

    name: ClassVar[str] = "cdl"
    factors: int = setting(100, least=1)
    hidden: Sequence[int] = setting((200,), least=1)
    words: int = setting(1000, least=1)
    a: float = setting(1.0, above=0)
    b: float = setting(0.15, above=0)
    positive_threshold: float = 4.0
    user_regularization: float = setting(5.0, above=0)
    movie_regularization: float = setting(5.0, above=0)
    word_weight: float = setting(0.1, least=0)
    weight_regularization: float = setting(0.1, least=0)
    noise: float = setting(0.3, least=0, below=1)
    rounds: int = setting(10, least=1)
    epochs: int = setting(1, least=1)
    batch_size: int = setting(128, least=1)
    learning_rate: float = setting(3e-3, above=0)
    seed: int = setting(0, least=0)
    device: str = "auto"

    def rows(self, data: Interactions) -> Batch:
        n = len(self.described)
        return torch.arange(n), torch.zeros(n), torch.zeros(n, self.factors)

    def build_network(self, data: Interactions) -> ContentAutoencoder:
        catalogue = catalogue_rows(self.described, self.movie_ids)
        return ContentAutoencoder(self._content, data.n_users, catalogue, self)

    def _fit(self, data: Interactions, validation: Any, movies: pd.DataFrame | None) -> None:
        if data.ratings.max() < self.positive_threshold:
            threshold = f"positive_threshold {self.positive_threshold:g}"
            raise ValueError(f"cdl: no rating of train reaches {threshold}; lower it")
        self._content = content_of(movies, self.describe(movies), most=self.words)
        super()._fit(data, validation, movies)

    def _train(self, data: Interactions, train: Batch, held_out: Batch | None) -> None:
        """The auto-encoder alone, then u and v, and both by turns."""
        config, device = self.training_config(), pick_device(self.device)
        liked = self.a * data.take(data.ratings >= self.positive_threshold).matrix()
        liked_by = liked.T.tocsr()
        rows, coupled, targets = train
        self.history = History()
        # Sums of several threads of NumPy's come in any order.
        with seeded(self.seed, device), threadpool_limits(1, "blas"):
            self.network = network = self.build_network(data).to(device)
            catalogue = network.catalogue
            # As the model draws v: about f_e, with a variance of 1 / lambda_v.
            offset = torch.randn(data.n_movies, self.factors) / self.movie_regularization**0.5
            for turn in range(self.rounds):
                history, _ = train_network(network, (rows, coupled, targets), None, config)
                self.history.train_loss += history.train_loss
                self.history.learning_rate += history.learning_rate
                vectors = network.encode()
                encoded = vectors[catalogue].cpu().double().numpy()
                if turn == 0:
                    v = encoded + offset.double().numpy()
                u = self._solve(liked, v, self.user_regularization, np.zeros(1))
                v = self._solve(liked_by, u, self.movie_regularization, encoded)
                network.user_factors.copy_(torch.from_numpy(u))
                vectors[catalogue] = torch.from_numpy(v).to(vectors)
                network.movie_factors.copy_(vectors)
                coupled = torch.zeros_like(vectors[:, 0]).index_fill(0, catalogue, 1.0)[rows]
                targets = vectors[rows]
        self._states = {"last": {name: x.clone() for name, x in network.state_dict().items()}}

    def _solve(self, entries: Any, others: Floats, penalty: float, mean: Floats) -> Floats:
        """The factors of one side, for those of the other and the means that they are drawn to."""
        common = self.b * others.T @ others + penalty * np.eye(self.factors)
        return solve_factors(entries, others, self.a - self.b, common, penalty * mean)

    def _score_unrated(self, users: Index, rows: Index) -> NDArray[np.float32]:
        network = self.network
        return (network.user_factors[users] @ network.movie_factors[rows].T).cpu().numpy()

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        values, words, start = (state[f"network.words.{k}"] for k in ("value", "movie", "start"))
        shape = len(start) - 1, state["network.encoder.0.weight"].shape[1]
        self._content = sparse.csr_matrix((values, words, start), shape=shape)
        super()._restore(state, extra)


def _sigmoids(*sizes: int) -> nn.Sequential:
    """Layers of these sizes, a sigmoid after each."""
    layers = [[nn.Linear(*ends), nn.Sigmoid()] for ends in pairwise(sizes)]
    return nn.Sequential(*chain.from_iterable(layers))
