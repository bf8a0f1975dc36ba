"""The paper's model: embeddings, an attention layer of two weights, a deep tower, a sigmoid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from dlcf.explanation import Explanation
from dlcf.fast.attention_step import AttentionStep
from dlcf.fast.catalogue import FoldedTower, bfloat16_is_fast
from dlcf.fast.deferred_step import can_defer, deferred_step
from dlcf.models.base import Arrays, IndexArrays, Interactions, Recommender
from dlcf.models.network import WEIGHTS, NetworkRecommender, rated_movies
from dlcf.training import Batch, RatingNetwork, TrainingConfig, TrainingStep

__all__ = [
    "AttentionNetwork",
    "DeepCF",
    "RankingAttentionNetwork",
    "cold_coalitions",
    "player_share",
    "shapley",
    "share_correlation",
]

MOST_MEASURED = 5000  # held-out pairs that the faithfulness of the weights is measured on


def shapley(values: Any) -> tuple[Any, Any]:
    """Shapley values (1953) of a game of two players, user and movie.

    Parameters
    ----------
    values
        ``(..., 4)``, an array or a tensor: what the coalitions {}, {user}, {movie}, {user, movie}
        are worth.

    Returns
    -------
    user, movie
        ``(...,)``: each player's gain, averaged over the two orders of joining. They sum to the
        gain of both over none.
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

    Parameters
    ----------
    weight
        ``(n,)`` in [0, 1].
    values
        ``(n, 4)``, what the coalitions are worth, see :func:`shapley`.

    Returns
    -------
    float or None
        None where there are fewer than two pairs, or the weights or the shares are all alike.
    """
    share = player_share(*shapley(values))
    if len(share) < 2 or np.ptp(share) == 0 or np.ptp(weight) == 0:
        return None
    return float(stats.spearmanr(weight, share).statistic)


class AttentionNetwork(RatingNetwork):
    """Attention over two embeddings, then a tower.

    For a user embedding ``p`` and a movie embedding ``q``::

        a = softmax(A [p; q] + c)                 two weights that sum to 1
        x = [a_1 p; a_2 q]
        x = dropout(relu(batch_norm(W x + b)))    once for each hidden layer
        s = sigmoid(w . x + b)                    the recommendation strength
        r = low + (high - low) s                  the rating

    With a positive `faithful_weight` the loss of a batch is its squared error plus that weight
    times the cross-entropy between the two weights and the Shapley shares of the two embeddings,
    :func:`shapley` of :meth:`coalitions`, which are not differentiated.
    """

    faithful_weight = 0.0

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
            layers += [
                nn.Linear(n_inputs, size),
                nn.BatchNorm1d(size),
                nn.ReLU(),
                nn.Dropout(rate),
            ]
            n_inputs = size
        self.tower = nn.Sequential(*layers)
        self.output = nn.Linear(n_inputs, 1)
        self._folded: FoldedTower | None = None
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def attend(self, users: Tensor, movies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The two weights ``(n, 2)`` and both embeddings ``(n, embedding_size)``."""
        user, movie = self.user_embedding(users), self.movie_embedding(movies)
        logits = self.attention(torch.cat([user, movie], dim=1))
        return torch.softmax(logits, dim=1), user, movie

    def strength(self, users: Tensor, movies: Tensor) -> Tensor:
        """The sigmoid output in [0, 1], ``(n,)``."""
        weight, user, movie = self.attend(users, movies)
        attended = torch.cat([weight[:, :1] * user, weight[:, 1:] * movie], dim=1)
        return torch.sigmoid(self.output(self.tower(attended))).squeeze(1)

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        low, high = self.scale
        return low + (high - low) * self.strength(users, movies)

    def rate(self, user: Tensor, movie: Tensor) -> Tensor:
        """Ratings ``(n,)`` of embeddings ``(n, embedding_size)``, with the attention they draw."""
        weight = torch.softmax(self.attention(torch.cat([user, movie], dim=1)), dim=1)
        attended = torch.cat([weight[:, :1] * user, weight[:, 1:] * movie], dim=1)
        low, high = self.scale
        return low + (high - low) * torch.sigmoid(self.output(self.tower(attended))).squeeze(1)

    @torch.no_grad()
    def coalitions(self, users: Tensor, movies: Tensor) -> Tensor:
        """Ratings ``(n, 4)`` by neither, the user, the movie and both, as :func:`shapley` wants.

        Who is absent is replaced by the mean embedding of the vocabulary. Without dropout and
        with the batch norms' running statistics, also in training.
        """
        was_training = self.training
        self.eval()
        user, movie = self.user_embedding(users), self.movie_embedding(movies)
        no_user, no_movie = (
            table.weight.mean(dim=0, keepdim=True)
            for table in (self.user_embedding, self.movie_embedding)
        )
        neither = self.rate(no_user, no_movie).expand(len(users))
        alone = (
            self.rate(user, no_movie.expand_as(movie)),
            self.rate(no_user.expand_as(user), movie),
        )
        values = torch.stack([neither, *alone, self.rate(user, movie)], dim=1)
        self.train(was_training)
        return values

    def unfaithfulness(self, users: Tensor, movies: Tensor) -> Tensor | float:
        """The part of the objective that pulls the weights to the Shapley shares."""
        if self.faithful_weight == 0:
            return 0.0
        share = player_share(*shapley(self.coalitions(users, movies)))
        weight = self.attend(users, movies)[0].clamp(min=1e-6).log()
        gap = -(share * weight[:, 0] + (1 - share) * weight[:, 1]).mean()
        return self.faithful_weight * gap

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        users, movies, ratings = batch
        error = nn.functional.mse_loss(self(users, movies), ratings)
        return error + self.unfaithfulness(users, movies), error

    def training_step(self, train: Batch, config: TrainingConfig) -> TrainingStep:
        """By hand where that is possible.

        Other losses than the paper's have autograd, and dense Adam: they look at whole tables.
        """
        if type(self) is not AttentionNetwork or self.faithful_weight != 0:
            return super().training_step(train, config)
        if config.precision == "float32" and can_defer(train, config):
            return AttentionStep(self, train, config)
        return deferred_step(self, train, config, (self.user_embedding, self.movie_embedding))

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        """Ratings of every movie, ``(n, n_movies)``: what `forward` gives, with less arithmetic."""
        return self.rating(self.folded_tower().logits(self.user_embedding(users)))

    def folded_tower(self) -> FoldedTower:
        """Made once for the weights as they are."""
        made_of = [(t.data_ptr(), t._version) for t in (*self.parameters(), *self.buffers())]
        if self._folded is None or self._folded.made_of != made_of:
            self._folded = FoldedTower(self)
            self._folded.made_of = made_of
        return self._folded

    def rating(self, logits: Tensor) -> Tensor:
        """Ratings that the output neuron's values stand for."""
        low, high = self.scale
        return low + (high - low) * torch.sigmoid(logits)

    def folded_layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of the hidden layers with their batch norms folded in.

        The norms are fixed after training.
        """
        folded = []
        modules = list(self.tower)
        for linear, norm in zip(modules[0::4], modules[1::4], strict=True):
            assert isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d)
            assert norm.running_mean is not None and norm.running_var is not None
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            shift = (linear.bias - norm.running_mean) * gain + norm.bias
            folded.append((linear.weight * gain[:, None], shift))
        return folded


class RankingAttentionNetwork(AttentionNetwork):
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
        self,
        data: Interactions,
        scale: tuple[float, float],
        embedding_size: int,
        hidden: Sequence[int],
        dropout: Sequence[float],
        ranking_weight: float,
    ) -> None:
        super().__init__(data.n_users, data.n_movies, scale, embedding_size, hidden, dropout)
        self.ranking_weight = ranking_weight
        self.history_embedding = nn.Embedding(data.n_movies, embedding_size)
        nn.init.xavier_uniform_(self.history_embedding.weight)
        self.ranking_bias = nn.Parameter(torch.zeros(data.n_movies))
        rated = data.matrix()
        self.register_buffer("rated_start", torch.as_tensor(rated.indptr, dtype=torch.int64))
        self.register_buffer("rated_movie", torch.as_tensor(rated.indices, dtype=torch.int64))

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        users, movies, ratings = batch
        error = nn.functional.mse_loss(self(users, movies), ratings)
        history = self._history(users, hidden=0.5, targets=movies)
        logits = self._logits(history)
        ranking = self.ranking_weight * nn.functional.cross_entropy(logits, movies)
        return error + ranking + self.unfaithfulness(users, movies), error

    @torch.no_grad()
    def rank_all(self, users: Tensor) -> Tensor:
        """Ranking scores of every movie, ``(n, n_movies)``."""
        return self._logits(self._history(users))

    def _logits(self, history: Tensor) -> Tensor:
        # Adam moves each weight by about the learning rate, whatever the gradient: without the
        # factor the logits would need the epochs in which the rating over-fits.
        score = torch.addmm(self.ranking_bias, history, self.movie_embedding.weight.T)
        return 10.0 * score

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


class DeepCF(NetworkRecommender):
    """The paper's deep collaborative filter; its defaults are the paper's.

    Parameters
    ----------
    embedding_size
        Length of the user and movie embeddings.
    hidden, dropout
        Units and dropout rate of each hidden layer.
    epochs, batch_size, learning_rate, lr_factor, lr_patience, early_stopping
        See :class:`dlcf.training.TrainingConfig`.
    validation_fraction
        Share of train held out for the learning-rate schedule where no validation frame is given.
    ranking_weight
        Weight of the ranking loss, 0 or more. Where it is positive the network has a second output
        (:class:`RankingAttentionNetwork`) and `score_all` and `recommend` rank by it; `predict` and
        `explain` stay the rating's. The paper has none: it ranks by the rating.
    faithful_weight
        Weight of the loss that pulls the attention weights to the Shapley shares of the two
        embeddings, 0 or more; see :class:`AttentionNetwork`. The paper has none.
    weights
        Predict with the weights of the ``"last"`` epoch, as the paper's figures suggest, or of the
        ``"best"`` epoch on validation.
    seed, device, precision
        See :class:`dlcf.training.TrainingConfig`.
    """

    name = "deepcf"
    _network: AttentionNetwork

    def __init__(
        self,
        *,
        embedding_size: int = 128,
        hidden: Sequence[int] = (512, 256, 128, 64),
        dropout: Sequence[float] = (0.3, 0.2, 0.2, 0.1),
        epochs: int = 10,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        lr_factor: float = 0.5,
        lr_patience: int = 2,
        early_stopping: int | None = None,
        validation_fraction: float = 0.1,
        ranking_weight: float = 0.0,
        faithful_weight: float = 0.0,
        weights: str = "last",
        seed: int = 0,
        device: str = "auto",
        precision: str = "float32",
    ) -> None:
        if ranking_weight < 0:
            raise ValueError(f"ranking_weight is {ranking_weight}; give 0 or more")
        if faithful_weight < 0:
            raise ValueError(f"faithful_weight is {faithful_weight}; give 0 or more")
        if len(hidden) != len(dropout):
            raise ValueError(
                f"{len(hidden)} hidden layers but {len(dropout)} dropout rates; give one a layer"
            )
        self.embedding_size = embedding_size
        self.hidden = tuple(hidden)
        self.dropout = tuple(dropout)
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.lr_factor = lr_factor
        self.lr_patience = lr_patience
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.ranking_weight = ranking_weight
        self.faithful_weight = faithful_weight
        self.weights = weights
        self.seed = seed
        self.device = device
        self.precision = precision

    def explain(self, user_id: int, movie_id: int) -> Explanation:
        """Strength and attention weights of one recommendation.

        The weights are those of :meth:`attention_weights`, labelled by what they are and how
        faithful they measured; for an unknown user or movie the strength is that of the fallback's
        rating.
        """
        pair = pd.DataFrame({"userId": [user_id], "movieId": [movie_id]})
        rating = float(self.predict(pair)[0])
        user_weight, movie_weight = self.attention_weights(pair)[0].tolist()
        _, known_user, _, known_movie = self._indices(pair)
        low, high = self.scale
        return Explanation(
            user_id=int(user_id),
            movie_id=int(movie_id),
            strength=(rating - low) / (high - low),
            user_weight=user_weight,
            movie_weight=movie_weight,
            rating=rating,
            scale=self.scale,
            title=self.title(movie_id),
            known_user=bool(known_user[0]),
            known_movie=bool(known_movie[0]),
            method=self.explanation_method,
            faithfulness=self.faithfulness,
        )

    def attention_weights(self, pairs: pd.DataFrame) -> NDArray[np.float64]:
        """Weights on user preferences and movie characteristics.

        Parameters
        ----------
        pairs
            Frame with `userId`, `movieId`.

        Returns
        -------
        ndarray
            float64 ``(n, 2)``, rows sum to 1. Where the user is unknown the row is (0, 1), where
            the movie is, (1, 0), where both are, (1/2, 1/2): there is no embedding to attend to.
        """
        users, known_user, movies, known_movie = self._indices(pairs)
        user_weight = np.where(known_user == known_movie, 0.5, known_user)
        known = known_user & known_movie
        if known.any():
            index = (torch.as_tensor(i[known], device=self._device()) for i in (users, movies))
            with torch.no_grad():
                user_weight[known] = self._network.attend(*index)[0][:, 0].cpu().numpy()
        return np.stack([user_weight, 1.0 - user_weight], axis=1)

    @property
    def explanation_method(self) -> str:
        """What the two weights of :meth:`explain` are."""
        return "attention trained to be faithful" if self.faithful_weight > 0 else "attention"

    @property
    def faithfulness(self) -> float | None:
        """Spearman's correlation of the user's weight and its Shapley share, in [-1, 1].

        Measured after `fit` on held-out ratings of known users and movies, 5,000 at most: those of
        the validation frame, else the part of train that was held out. None where there were none,
        or the weights or shares are all alike. `dlcf.explain.measure_faithfulness` measures it on
        other pairs, with an interval.
        """
        return self._faithfulness[self.weights]

    def coalition_values(self, pairs: pd.DataFrame) -> NDArray[np.float64]:
        """Ratings without both embeddings, with the user's, with the movie's, with both.

        An absent embedding is replaced by the mean of its table, over users or movies of train.

        Returns
        -------
        ndarray
            float64 ``(n, 4)``; the last column is the prediction.

        Raises
        ------
        ValueError
            A user or a movie is unknown: it has no embedding to leave out.
        """
        return self._coalitions(*self.embedded_pairs(pairs))

    def embedded_pairs(self, pairs: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions of the pairs' users and movies; ValueError where one has no embedding."""
        users, known_user, movies, known_movie = self._indices(pairs)
        for column, known in (("userId", known_user), ("movieId", known_movie)):
            if not known.all():
                row = int(np.flatnonzero(~known)[0])
                raise ValueError(
                    f"pairs, row {row}: {column} {pairs[column].iloc[row]} is not in train and has "
                    "no embedding; leave such rows out"
                )
        return users, movies

    def _coalitions(self, users: NDArray[Any], movies: NDArray[Any]) -> NDArray[np.float64]:
        index = (torch.as_tensor(i, device=self._device()).split(4096) for i in (users, movies))
        values = [self._network.coalitions(*part) for part in zip(*index, strict=True)]
        return torch.cat(values).cpu().double().numpy()

    def _after_training(self, held_out: Batch | None) -> None:
        self._faithfulness: dict[str, float | None] = {}
        for which in WEIGHTS:
            self._network.load_state_dict(self._states[which])
            self._faithfulness[which] = self._measure(held_out)
        self._network.load_state_dict(self._states[self.weights])

    def _measure(self, held_out: Batch | None) -> float | None:
        """See :attr:`faithfulness`."""
        if held_out is None or len(held_out[0]) == 0:
            return None
        size = min(len(held_out[0]), MOST_MEASURED)
        rows = np.linspace(0, len(held_out[0]) - 1, size).astype(np.int64)
        users, movies = (index[torch.from_numpy(rows)] for index in held_out[:2])
        values = self._coalitions(users.cpu().numpy(), movies.cpu().numpy())
        with torch.no_grad():
            weight = self._network.attend(users, movies)[0][:, 0].cpu().numpy()
        return share_correlation(weight, values)

    def _extra(self) -> dict[str, Any]:
        return super()._extra() | {"faithfulness": self._faithfulness}

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        super()._restore(state, extra)
        self._faithfulness = extra.get("faithfulness", dict.fromkeys(WEIGHTS))

    def _build(self, data: Interactions) -> RatingNetwork:
        shape = self.embedding_size, self.hidden, self.dropout
        if self.ranking_weight > 0:
            network: AttentionNetwork = RankingAttentionNetwork(
                data, self.scale, *shape, self.ranking_weight
            )
        else:
            network = AttentionNetwork(data.n_users, data.n_movies, self.scale, *shape)
        network.faithful_weight = self.faithful_weight
        return network

    def _score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        index = torch.as_tensor(users, device=self._device())
        if isinstance(self._network, RankingAttentionNetwork):
            return self._network.rank_all(index).cpu().numpy()
        return self._network.score_all(index).cpu().numpy()

    def _list_scores(
        self, users: NDArray[np.int64], left_out: IndexArrays, k: int
    ) -> NDArray[np.float32]:
        if not self._screens(k):
            return super()._list_scores(users, left_out, k)
        network = self._network
        assert isinstance(network, AttentionNetwork)
        with torch.no_grad():
            embeddings = network.user_embedding(torch.as_tensor(users))
        return network.folded_tower().list_scores(embeddings, left_out, k)

    def _screens(self, k: int) -> bool:
        """Whether guesses pay: for short lists of a large catalogue, on a suitable processor.

        They do not where the last ones left half of the scores to be computed.
        """
        network = self._network
        if type(network) is not AttentionNetwork or self._device().type != "cpu":
            return False
        suitable = bfloat16_is_fast() and len(self.hidden) > 1 and len(self.movie_ids) >= 100 * k
        return suitable and network.folded_tower().share_scored < 0.5
