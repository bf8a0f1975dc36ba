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

    def __init__(self, data: Interactions, of: Item2Vec) -> None:
        super().__init__()
        self.window, self.contexts, self.negatives = of.window, of.contexts, of.negatives
        self.ranks_by = of.ranks_by
        self.history = Histories(data)
        count = torch.bincount(self.history.movie, minlength=data.n_movies).double()
        share = count / len(data)
        kept = (of.subsampling / share).sqrt() if of.subsampling else torch.ones_like(share)
        self.register_buffer("noise", (share / share.max()).pow(of.power).float())
        self.register_buffer("kept", kept.clamp(max=1).float())
        self.target = nn.Embedding(data.n_movies, of.embedding_size)
        self.context = nn.Embedding(data.n_movies, of.embedding_size)
        for table in (self.target, self.context):
            nn.init.normal_(table.weight, std=of.embedding_size**-0.5)

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
        movies, first = self.history.of(users)
        target = self.target.weight
        vectors = nn.functional.normalize(target) if self.ranks_by == "cosine" else target
        of_users = nn.functional.embedding_bag(movies, vectors, first, mode="mean")
        return of_users @ (vectors if self.ranks_by == "cosine" else self.context.weight).T


@dataclass(kw_only=True, eq=False)
class Item2Vec(RelatedRecommender):
    """Item2vec (Barkan and Koenigstein, 2016): word2vec of histories (Mikolov et al., 2013).

    For pairs of movies j, i that the same user rated it maximises

    ``log sigma(u_j . v_i) + sum_{k drawn} log sigma(-u_j . v_k)``,

    where u are the vectors of targets, v those of contexts, and the movies k are drawn with a
    chance in proportion to ``count_k^power``: of whole histories, or of those that the user rated
    shortly before or after, as in a sentence. A rating of a movie with share f of all ratings takes
    part with a chance of ``sqrt(subsampling / f)``. Movie i is ranked by the mean of ``u_j . v_i``
    over the movies j that the user rated, or by that of the cosine of u_j and u_i.

    Otherwise than in the papers:

    - Item2vec's are cosines. They leave out how many rated a movie, and their lists are worse. So
      are negatives by ``count^0.75``: with a power of 0 the dot products know what is popular
      (Caselles-Dupre, Lesaint and Royo-Letelier, 2018, found that the power decides).
    - Each rating is a target once an epoch, with `contexts` drawn anew, not with all of them: time
      and memory are linear in the ratings, and a user weighs as much as she has ratings, not pairs.
    - The targets of a step share as many drawn movies, with a mean in the place of the sum over
      them, times `negatives`. The expectation is the same.
    - What subsampling leaves out is drawn nevertheless, and does not count.
    - Adam in the place of stochastic gradient descent.

    Parameters
    ----------
    embedding_size
        Length of the vectors.
    window
        How many ratings before and after are contexts, in order of time, the nearer the more often;
        None takes the whole history, as a set. Without timestamps the order is that of the movies.
    contexts, negatives
        Contexts drawn of each rating in each epoch, and the weight of the negatives of each pair.
    power
        Of the counts, for negatives: 1 draws them like ratings, 0 all alike, below 0 rare ones.
    subsampling
        The share of the ratings from which on a movie's are thinned out; None leaves them all.
    ranks_by
        ``"context"``, the dot products, or ``"cosine"``.
    epochs, batch_size, learning_rate, seed, device
        See :class:`dlcf.training.TrainingConfig`; a batch is of ratings.
    """

    name: ClassVar[str] = "item2vec"
    embedding_size: int = setting(64, least=1)
    window: int | None = setting(None, least=1)
    contexts: int = setting(8, least=1)
    negatives: int = setting(5, least=1)
    power: float = 0.0
    subsampling: float | None = setting(None, above=0)
    ranks_by: str = setting("context", choices=RANKS_BY)
    epochs: int = setting(30, least=1)
    batch_size: int = setting(512, least=1)
    learning_rate: float = setting(3e-3, above=0)
    seed: int = setting(0, least=0)
    device: str = "auto"

    def rows(self, data: Interactions) -> Batch:
        """A row is a rating: its user, and its place in all histories, one after the other."""
        return torch.from_numpy(data.users), torch.arange(len(data)), torch.ones(len(data))

    def build_network(self, data: Interactions) -> SkipGramNetwork:
        return SkipGramNetwork(data, self)
