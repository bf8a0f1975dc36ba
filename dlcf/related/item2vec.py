"""Item2vec: skip-gram with negative sampling over histories (Barkan and Koenigstein, 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dlcf.models.base import Interactions
from dlcf.related.networks import Histories, RankingNetwork, RelatedRecommender
from dlcf.runtime.settings import setting
from dlcf.training import Batch

RANKS_BY = ("cosine", "context")


class SkipGramNetwork(RankingNetwork):
    """Two vectors of each movie: one where it is the target, one where it is a context."""

    noise: Tensor  # (n_movies,) how often each movie is drawn as a negative, in proportion
    kept: Tensor  # (n_movies,) the chance that subsampling keeps a rating of the movie

    def __init__(
        self,
        data: Interactions,
        embedding_size: int,
        window: int | None,
        contexts: int,
        negatives: int,
        power: float,
        subsampling: float | None,
        recent: int | None,
        ranks_by: str,
    ) -> None:
        super().__init__()
        self.window, self.contexts, self.negatives = window, contexts, negatives
        self.recent, self.ranks_by = recent, ranks_by
        self.history = Histories(data)
        count = torch.bincount(self.history.movie, minlength=data.n_movies).double()
        share = count / len(data)
        kept = torch.ones_like(share) if subsampling is None else (subsampling / share).sqrt()
        self.register_buffer("noise", (share / share.max()).pow(power).float())
        self.register_buffer("kept", kept.clamp(max=1).float())
        self.target = nn.Embedding(data.n_movies, embedding_size)
        self.context = nn.Embedding(data.n_movies, embedding_size)
        for table in (self.target, self.context):
            nn.init.normal_(table.weight, std=embedding_size**-0.5)

    def draw_contexts(self, users: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Places of ratings near that at `place`, and whether each is one; ``(n, contexts)``."""
        first, stop = self.history.start[users][:, None], self.history.start[users + 1][:, None]
        chance = torch.rand(len(users), self.contexts, device=users.device)
        if self.window is None:
            others = stop - first - 1
            further = 1 + (chance * others).long().clamp(max=(others - 1).clamp(min=0))
            drawn = first + (place[:, None] - first + further) % (stop - first)
            return drawn, (others > 0).expand_as(drawn)
        # Distance d with a chance in proportion to window + 1 - d: that of word2vec, where a window
        # reaches 1, 2, ... or `window` places, each as often.
        near = torch.arange(self.window, 0, -1, dtype=chance.dtype, device=users.device)
        step = 1 + torch.multinomial(near, chance.numel(), replacement=True).view_as(chance)
        drawn = place[:, None] + torch.where(chance < 0.5, -step, step)
        inside = (first <= drawn) & (drawn < stop)
        return torch.where(inside, drawn, place[:, None]), inside

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the log-likelihood of drawn pairs, with negatives, a pair."""
        users, place, _ = batch
        movie = self.history.movie[place]
        drawn, real = self.draw_contexts(users, place)
        other = self.history.movie[drawn]
        chance = self.kept[movie][:, None] * self.kept[other]
        kept = real & (torch.rand_like(chance) < chance)
        noise = torch.multinomial(self.noise, len(movie), replacement=True)
        target = self.target(movie)
        right = nn.functional.softplus(-(self.context(other) @ target[:, :, None]).squeeze(2))
        wrong = nn.functional.softplus(target @ self.context(noise).T).mean(1, keepdim=True)
        each = right + self.negatives * wrong
        loss = (each * kept).sum() / kept.sum().clamp(min=1)
        return loss, loss

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        """Mean over the user's movies of their cosines, or of the logits of contexts."""
        movies, first = self.history.latest(users, self.recent)
        target = self.target.weight
        vectors = nn.functional.normalize(target) if self.ranks_by == "cosine" else target
        of_users = nn.functional.embedding_bag(movies, vectors, first, mode="mean")
        return of_users @ (vectors if self.ranks_by == "cosine" else self.context.weight).T


@dataclass(kw_only=True, eq=False)
class Item2Vec(RelatedRecommender):
    """Item2vec (Barkan and Koenigstein, 2016): word2vec of histories (Mikolov et al., 2013).

    For pairs of movies j, i that the same user rated it maximises

    ``log sigma(u_j . v_i) + sum_{k drawn} log sigma(-u_j . v_k)``,

    where the movies k are drawn with a chance in proportion to ``count_k^power``.
    """

    name: ClassVar[str] = "item2vec"
    embedding_size: int = setting(100, least=1)
    window: int | None = setting(None, least=1)
    contexts: int = setting(4, least=1)
    negatives: int = setting(5, least=1)
    power: float = 0.0
    subsampling: float | None = setting(None, above=0)
    recent: int | None = setting(None, least=1)
    ranks_by: str = setting("context", choices=RANKS_BY)
    epochs: int = setting(20, least=1)
    batch_size: int = setting(256, least=1)
    learning_rate: float = setting(2e-3, above=0)
    seed: int = setting(0, least=0)
    device: str = "auto"

    def rows(self, data: Interactions) -> Batch:
        """A row is a rating: its user, and its place in all histories, one after the other."""
        return torch.from_numpy(data.users), torch.arange(len(data)), torch.ones(len(data))

    def build_network(self, data: Interactions) -> SkipGramNetwork:
        return SkipGramNetwork(
            data,
            self.embedding_size,
            self.window,
            self.contexts,
            self.negatives,
            self.power,
            self.subsampling,
            self.recent,
            self.ranks_by,
        )
