"""The paper's network with other losses: attention trained to be faithful, an output that ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dlcf.models.base import Interactions
from dlcf.models.deepcf import AttentionNetwork, initialise
from dlcf.variants.shapley import player_share, shapley


def rated_movies(start: Tensor, movie: Tensor, users: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `users` ``(n,)`` rated in training, one user after the other.

    `start` and `movie` are `indptr` and `indices` of the users x movies matrix in CSR form. Back
    come the movies; where each user's begin, ``(n,)``; and how many they are, ``(n,)``.
    """
    count = start[users + 1] - start[users]
    first = torch.cumsum(count, 0) - count
    offset = torch.arange(int(count.sum()), device=users.device)
    return movie[torch.repeat_interleave(start[users] - first, count) + offset], first, count


@torch.no_grad()
def coalitions(network: AttentionNetwork, users: Tensor, movies: Tensor) -> Tensor:
    """Ratings ``(n, 4)`` by neither, the user, the movie and both, as :func:`shapley` wants.

    Who is absent is replaced by the mean embedding of the vocabulary. Without dropout and with the
    batch norms' running statistics, also in training.
    """
    was_training = network.training
    network.eval()
    user, movie = network.user_embedding(users), network.movie_embedding(movies)
    tables = network.user_embedding, network.movie_embedding
    no_user, no_movie = (table.weight.mean(dim=0, keepdim=True) for table in tables)
    values = [
        rate_embeddings(network, no_user, no_movie).expand(len(users)),
        rate_embeddings(network, user, no_movie.expand_as(movie)),
        rate_embeddings(network, no_user.expand_as(user), movie),
        rate_embeddings(network, user, movie),
    ]
    network.train(was_training)
    return torch.stack(values, dim=1)


def rate_embeddings(network: AttentionNetwork, user: Tensor, movie: Tensor) -> Tensor:
    """Ratings ``(n,)`` of embeddings ``(n, embedding_size)``, with the attention they draw."""
    return network.rate(network.weigh(user, movie), user, movie)


class FaithfulAttentionNetwork(AttentionNetwork):
    """The paper's network, whose attention is pulled to the Shapley shares of the embeddings.

    The loss of a batch is its squared error plus `faithful_weight` times the cross-entropy between
    the two weights and the shares, :func:`shapley` of :func:`coalitions`, which are not
    differentiated. The other arguments are those of :class:`AttentionNetwork`.
    """

    def __init__(self, *sizes: Any, faithful_weight: float) -> None:
        super().__init__(*sizes)
        self.faithful_weight = faithful_weight

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        users, movies, _ = batch
        error, _ = super().losses(*batch)
        return error + self.unfaithfulness(users, movies), error

    def unfaithfulness(self, users: Tensor, movies: Tensor) -> Tensor | float:
        """The part of the objective that pulls the weights to the Shapley shares."""
        if self.faithful_weight == 0:
            return 0.0
        share = player_share(*shapley(coalitions(self, users, movies)))
        weight = self.attend(users, movies)[0].clamp(min=1e-6).log()
        gap = -(share * weight[:, 0] + (1 - share) * weight[:, 1]).mean()
        return self.faithful_weight * gap


class RankingAttentionNetwork(FaithfulAttentionNetwork):
    """The paper's network with a second output, which is trained to rank.

    Beside the rating, it gives every movie a score for a user, in the manner of SVD++ (Koren, 2008)
    and of the softmax likelihood of Liang et al. (2018): with ``y_j`` a second vector of movie j,
    and ``q_i`` the embedding that the rating uses::

        z_ui = 10 (c_i + q_i . |N(u)|^-1/2 sum_{j in N(u)} y_j)

    N(u) are the movies that the user rated in training. The loss of a batch is its squared error
    plus ``ranking_weight`` times the cross-entropy of the softmax of ``z_u`` over the catalogue at
    the rated movies; a movie is left out of N(u) when it is itself the target, and of the rest a
    random half is hidden.
    """

    rated_start: Tensor
    rated_movie: Tensor

    def __init__(
        self, data: Interactions, ranking_weight: float, faithful_weight: float, *sizes: Any
    ) -> None:
        super().__init__(data.n_users, data.n_movies, *sizes, faithful_weight=faithful_weight)
        self.ranking_weight = ranking_weight
        self.history_embedding = nn.Embedding(*self.movie_embedding.weight.shape)
        initialise(self.history_embedding)
        self.ranking_bias = nn.Parameter(torch.zeros(data.n_movies))
        rated = data.matrix()
        self.register_buffer("rated_start", torch.as_tensor(rated.indptr, dtype=torch.int64))
        self.register_buffer("rated_movie", torch.as_tensor(rated.indices, dtype=torch.int64))

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        users, movies, _ = batch
        objective, error = super().losses(*batch)
        logits = self._logits(self._history(users, hidden=0.5, targets=movies))
        ranking = self.ranking_weight * nn.functional.cross_entropy(logits, movies)
        return objective + ranking, error

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        """Ranking scores of every movie, ``(n, n_movies)``."""
        return self._logits(self._history(users))

    def _logits(self, history: Tensor) -> Tensor:
        # Adam moves each weight by about the learning rate, whatever the gradient: without the
        # factor the logits would need the epochs in which the rating over-fits.
        return 10.0 * torch.addmm(self.ranking_bias, history, self.movie_embedding.weight.T)

    def _history(self, users: Tensor, hidden: float = 0.0, targets: Tensor | None = None) -> Tensor:
        """``|N(u)|^-1/2 sum y_j`` for each user, ``(n, embedding_size)``."""
        movie, first, count = rated_movies(self.rated_start, self.rated_movie, users)
        weight = torch.repeat_interleave(count.clamp(min=1).rsqrt(), count)
        if targets is not None:
            weight = weight * (movie != torch.repeat_interleave(targets, count))
        if hidden:
            weight = nn.functional.dropout(weight, hidden)
        return nn.functional.embedding_bag(
            movie, self.history_embedding.weight, first, mode="sum", per_sample_weights=weight
        )
