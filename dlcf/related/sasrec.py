"""SASRec: self-attention over what a user rated, in order of time (Kang and McAuley, 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dlcf.models.base import Interactions
from dlcf.related.networks import Histories, RankingNetwork, RatedMovies, RelatedRecommender
from dlcf.runtime.settings import setting
from dlcf.training import Batch


class Block(nn.Module):
    """Self-attention, then a layer for each place: each is ``x + dropout(g(layer_norm(x)))``."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.first, self.second = nn.Linear(size, size), nn.Linear(size, size)
        self.attention_norm, self.forward_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, visible: Tensor) -> Tensor:
        normed = self.attention_norm(states)
        logits = self.query(normed) @ self.key(normed).mT / math.sqrt(states.shape[-1])
        weights = logits.masked_fill(~visible, -math.inf).softmax(-1)
        states = states + self.dropout(weights @ self.value(normed))
        inner = torch.relu(self.first(self.forward_norm(states)))
        return states + self.dropout(self.second(inner))


class SequenceNetwork(RankingNetwork):
    """The state after each movie of a window; its dot products with all movies are the scores."""

    def __init__(self, data: Interactions, of: SASRec) -> None:
        super().__init__()
        self.length, self.negatives, size = of.length, of.negatives, of.embedding_size
        self.rated, self.history = RatedMovies(data), Histories(data)
        self.movies = nn.Embedding(data.n_movies, size)
        self.places = nn.Embedding(of.length, size)
        for table in (self.movies, self.places):
            nn.init.xavier_normal_(table.weight)
        self.dropout = nn.Dropout(of.dropout_rate)
        self.blocks = nn.ModuleList(Block(size, of.dropout_rate) for _ in range(of.blocks))
        self.norm = nn.LayerNorm(size)

    def window(self, users: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """The `length` movies before each `stop`, and which are the user's; ``(n, length)``.

        A short history is at the end of its window, so that the latest place is always the last.
        """
        place = stop[:, None] + torch.arange(-self.length, 0, device=stop.device)
        own = place >= self.history.start[users][:, None]
        return self.history.movie[place.clamp(min=0)], own

    def states(self, movies: Tensor, own: Tensor) -> Tensor:
        """``(n, length, embedding_size)``; a state depends on the movies up to its place."""
        size = self.movies.embedding_dim
        states = self.dropout(self.movies(movies) * math.sqrt(size) + self.places.weight)
        states = states * own[:, :, None]
        diagonal = torch.eye(self.length, dtype=torch.bool, device=own.device)
        visible = (own[:, None, :] | diagonal).tril()  # a place before all movies sees itself
        for block in self.blocks:
            states = block(states, visible)
        return self.norm(states)

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy of each next movie and of movies that the user did not rate."""
        users, stop, _ = batch
        movies, own = self.window(users, stop - 1)
        following, _ = self.window(users, stop)
        state, following = self.states(movies, own)[own], following[own]
        drawn = self.rated.negatives(users[:, None].expand_as(own)[own], self.negatives)
        right = (state * self.movies(following)).sum(1)
        wrong = (self.movies(drawn) @ state[:, :, None]).squeeze(2)
        entropy = nn.functional.softplus(-right) + nn.functional.softplus(wrong).sum(1)
        loss = entropy.sum() / max(len(entropy), 1)
        return loss, loss

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        """Dot products of the state after the latest movie with every movie."""
        window = self.window(users, self.history.start[users + 1])
        return self.states(*window)[:, -1] @ self.movies.weight.T


@dataclass(kw_only=True, eq=False)
class SASRec(RelatedRecommender):
    """SASRec (Kang and McAuley, 2018).

    The movies ``s_1, s_2, ...`` of a user, in order of time, are embedded, ``M_s + P_t``; blocks of
    self-attention that sees no later place, ``softmax(Q K^T / sqrt(d)) V``, and of a point-wise
    feed-forward network, ``relu(S W1 + b1) W2 + b2``, follow, each as ``x + dropout(g(norm(x)))``.
    With F_t, the state after movie s_t, movie i is ranked by ``r_it = F_t . M_i``. It minimises

    ``-sum_t [log sigma(r_{s_{t+1}, t}) + sum_{j not rated} log(1 - sigma(r_jt))]``,

    where j is drawn anew in each step.

    Otherwise than in the paper:

    - A history longer than `length` is cut in windows, and all of them are learned from; the paper
      keeps the last one. Scores are of the last one.
    - There may be more than one j a place, and their terms are summed.
    - Keys and values are of the normed states, as in the paper's text; its code norms queries only.

    Without timestamps the order is that of the movies.

    Parameters
    ----------
    embedding_size
        d, of movies, places and states.
    length
        Movies that a state can see.
    blocks, dropout_rate
        How many blocks, and the dropout of the embeddings and in the blocks.
    negatives
        Movies that the user did not rate, for each that she rated.
    epochs, batch_size, learning_rate, seed, device
        See :class:`dlcf.training.TrainingConfig`; a batch is of windows.
    """

    name: ClassVar[str] = "sasrec"
    embedding_size: int = setting(48, least=1)
    length: int = setting(50, least=1)
    blocks: int = setting(1, least=0)
    dropout_rate: float = setting(0.3, least=0, below=1)
    negatives: int = setting(32, least=1)
    epochs: int = setting(20, least=1)
    batch_size: int = setting(64, least=1)
    learning_rate: float = setting(3e-3, above=0)
    seed: int = setting(0, least=0)
    device: str = "auto"

    def rows(self, data: Interactions) -> Batch:
        """Users, and where their windows stop: each rating but a user's first is predicted once."""
        count = np.bincount(data.users, minlength=data.n_users)
        windows = np.maximum(-(-(count - 1) // self.length), 1)
        users = np.repeat(np.arange(data.n_users), windows)
        number = np.arange(len(users)) - np.repeat(np.cumsum(windows) - windows, windows)
        stop = np.cumsum(count)[users] - self.length * number
        return torch.from_numpy(users), torch.from_numpy(stop), torch.ones(len(users))

    def build_network(self, data: Interactions) -> SequenceNetwork:
        return SequenceNetwork(data, self)
