"""Collaborative knowledge base embedding (Zhang, Yuan, Lian, Xie and Ma, 2016)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, softplus

from dlcf.models.base import Arrays, Index, Interactions
from dlcf.related.content import (
    ContentMixin,
    bag_of_words,
    catalogue_rows,
    vocabulary_of,
    words_of,
)
from dlcf.related.networks import RankingNetwork, RatedMovies, RelatedRecommender, places
from dlcf.runtime.settings import setting
from dlcf.training import Batch

_TEXT_SHARE = 8  # of this many pairs of a step, a text is rebuilt


def knowledge_of(movies: pd.DataFrame | None, described: Index) -> Arrays:
    """Graph and bags of words of the described movies, as the network stores them.

    Movies come before things; a thing of one movie alone ties nothing together and is left out.
    """
    said = [words_of(movies, described, [part]) for part in ("genres", "tags", "year")]
    triples, things, n = [np.zeros((0, 3), np.int64)], [np.zeros((0, 2), np.int64)], len(described)
    for names in (*said, _series(movies, described)):
        if vocabulary := vocabulary_of(names):
            movie, thing = bag_of_words(names, vocabulary).nonzero()
            relation = np.full(len(movie), len(things) - 1)
            triples.append(np.column_stack([movie, relation, thing + n]).astype(np.int64))
            things.append(np.array([[n, len(vocabulary)]]))
            n += len(vocabulary)
    words = words_of(movies, described)
    bags = bag_of_words(words, vocabulary_of(words))
    bag = {"word_start": bags.indptr.astype(np.int64), "word": bags.indices.astype(np.int64)}
    return {"triples": np.concatenate(triples), "things": np.concatenate(things), **bag}


def _series(movies: pd.DataFrame | None, described: Index) -> list[list[str]]:
    """What a title begins with, before a colon or a number; remakes of one title share it too."""
    if movies is None or "title" not in movies:
        return [[] for _ in described]
    stem = {}
    for movie, title in zip(movies["movieId"].tolist(), movies["title"], strict=True):
        plain = re.sub(r"\s*\(.*|, (the|an?)$", "", str(title or "").lower())
        plain = re.sub(r"(\s+part)?\s+([ivx]+|\d+)$", "", plain.split(":")[0].strip())
        stem[movie] = [plain] if plain else []
    return [stem.get(movie, []) for movie in described.tolist()]


class KnowledgeNetwork(RankingNetwork):
    """``e_i = eta_i + v_i + x_i``; movies are rows of what is described."""

    row: Tensor  # (n_movies,): the catalogue among the described movies
    triples: Tensor  # (n, 3): movie, relation, thing
    things: Tensor  # (n_relations, 2): the first thing of a relation, and how many it has
    true: Tensor  # (n,): movie * n_entities + thing of the triples, in ascending order
    word_start: Tensor  # (n_described + 1,): where the words of a movie begin
    word: Tensor  # of each movie, one after another

    def __init__(self, data: Interactions, row: Index, known: Arrays, of: CKE) -> None:
        super().__init__()
        self.rated = RatedMovies(data)
        self.regularization, self.noise = of.regularization, of.noise
        self.structure_weight, self.text_weight = of.structure_weight, of.text_weight
        n_relations, n_words = len(known["things"]), int(known["word"].max(initial=-1)) + 1
        self.n_described = len(known["word_start"]) - 1
        self.n_entities = self.n_described + int(known["things"][:, 1].sum())
        movie, _, thing = known["triples"].T
        true = np.sort(movie * self.n_entities + thing)
        for name, array in {**known, "row": row, "true": true}.items():
            self.register_buffer(name, torch.from_numpy(array))
        self.has_structure, self.has_text = of.structure * n_relations > 0, of.text * n_words > 0
        self.user = nn.Embedding(data.n_users, of.factors)
        self.offset = nn.Embedding(self.n_described, of.factors)
        if self.has_structure:
            self.entity = nn.Embedding(self.n_entities, of.factors)
            self.relation = nn.Embedding(n_relations, of.factors)
            self.projection = nn.Parameter(torch.eye(of.factors).repeat(n_relations, 1, 1))
        if self.has_text:
            self.words = nn.Embedding(n_words, of.hidden)
            self.words_bias = nn.Parameter(torch.zeros(of.hidden))
            self.middle = nn.Linear(of.hidden, of.factors)
            widened = nn.Linear(of.factors, of.hidden), nn.Sigmoid()
            self.decoder = nn.Sequential(*widened, nn.Linear(of.hidden, n_words), nn.Sigmoid())
        for table in self.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=0.1)
        nn.init.zeros_(self.offset.weight)  # where it stays for movies that nobody rated

    def text(self, rows: Tensor, noise: float = 0.0) -> Tensor:
        """The middle layer ``x``, ``(n, factors)``, of bags that lose a share of their words."""
        _, place = places(self.word_start, rows)
        count = self.word_start[rows + 1] - self.word_start[rows]
        kept = torch.ones_like(place, dtype=self.words.weight.dtype)
        if noise:
            kept.bernoulli_(1 - noise)
        bags = self.word[place], self.words.weight, torch.cumsum(count, 0) - count
        hidden = embedding_bag(*bags, mode="sum", per_sample_weights=kept)
        return torch.sigmoid(self.middle(torch.sigmoid(hidden + self.words_bias)))

    def movies(self, rows: Tensor, noise: float = 0.0) -> Tensor:
        """``e``, ``(n, factors)``."""
        movie = self.offset(rows)
        if self.has_structure:
            movie = movie + self.entity(rows)
        return movie + self.text(rows, noise) if self.has_text else movie

    def structural_loss(self, n: int) -> Tensor:
        """Of `n` true triples, each beside another thing of its relation, which must be further."""
        device = self.triples.device
        drawn = torch.randint(len(self.triples), (n,), device=device)
        movie, relation, thing = self.triples[drawn].T
        first, count = self.things[relation].T
        other = first + (torch.rand(n, device=device) * count).long()
        cell = movie * self.n_entities + other
        place = torch.searchsorted(self.true, cell).clamp(max=len(self.true) - 1)
        false = (self.true[place] != cell).to(self.projection.dtype)  # else it is true as well
        ends = self.entity(torch.cat([movie, thing, other]))
        head, *tails = ends.split(n)
        every = torch.einsum("tnd,rdk->tnrk", head - torch.stack(tails), self.projection)
        moved = every[:, torch.arange(n, device=device), relation]
        near, far = (moved + self.relation(relation)).square().sum(2)
        fixed = self.relation.weight.square().sum() + self.projection.square().sum()
        penalty = self.regularization * (ends.square().sum() + fixed) / n
        return (softplus(near - far) * false).sum() / false.sum().clamp(min=1) + penalty

    def textual_loss(self, n: int) -> Tensor:
        """Squared errors of `n` bags that are rebuilt from what noise left of them."""
        rows = torch.randint(self.n_described, (n,), device=self.row.device)
        rebuilt = self.decoder(self.text(rows, self.noise))
        bag = torch.zeros_like(rebuilt)
        row, place = places(self.word_start, rows)
        bag[row, self.word[place]] = 1.0
        return (rebuilt - bag).square().sum(1).mean()

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """``-ln sigma(u.e_j - u.e_j')`` and its penalty, plus the losses of the parts."""
        users, movies, _ = batch
        n = len(users)
        rows = self.row[torch.cat([movies, self.rated.negatives(users, 1)[:, 0]])]
        user, (better, worse) = self.user(users), self.movies(rows, self.noise).split(n)
        ranking = softplus(-(user * (better - worse)).sum(1)).mean()
        size = user.square().sum(1).mean() + 2 * self.offset(rows).square().sum(1).mean()
        objective = ranking + self.regularization * size
        if self.has_structure:
            objective = objective + self.structure_weight * self.structural_loss(n)
        if self.has_text:
            objective = objective + self.text_weight * self.textual_loss(-(-n // _TEXT_SHARE))
        return objective, ranking

    @torch.no_grad()
    def score_all(self, users: Tensor, rows: Tensor | None = None) -> Tensor:
        """Of the catalogue, or of other described movies."""
        return self.user(users) @ self.movies(self.row if rows is None else rows).T


@dataclass(kw_only=True, eq=False)
class CKE(ContentMixin, RelatedRecommender):
    """Movies as an offset, a place in a graph and a text (Zhang, Yuan, Lian, Xie and Ma, 2016).

    Ranks by ``u.e_i`` with ``e_i = eta_i + v_i + x_i``, and predicts ratings by the biases. Three
    losses are minimised together:

    - ranking: ``-ln sigma(u.e_j - u.e_j')`` of a movie j that the user rated and a j' that she did
      not;
    - structure, Bayesian TransR (after Lin et al., 2015): ``-ln sigma(d(h, r, t') - d(h, r, t))``
      with ``d(h, r, t) = |v_h M_r + r - v_t M_r|^2``, of a triple of the graph and a false t';
    - text: squared error of a denoising auto-encoder of the bag of words, with sigmoids, whose
      middle layer is ``x_i``.

    The graph holds what movies share: genres, words of tags where they are given, decades, series.

    Otherwise than in the paper:

    - There are no posters, so that the visual part is left out.
    - Triples and texts of a step are drawn from all, not from those of the movies that it ranks: so
      movies without ratings are learned as well. t' is a thing of the same relation.
    - ``x_i`` is the layer itself, as where the paper's Gaussians have no variance. One penalty
      serves users, offsets and structure; the auto-encoder has none. Adam trains all.

    Parameters
    ----------
    factors, hidden
        Length of the vectors, and of the auto-encoder's layers around the middle.
    structure, text
        Whether ``v_i`` and ``x_i`` take part: the paper's ablation.
    structure_weight, text_weight
        Of the losses of the parts; that of ranking is 1.
    noise
        Share of a movie's words that training hides.
    regularization
        L2 penalty on what a batch touches.
    positive_threshold
        The least rating that counts as one; the highest there is where none reaches it.
    epochs, batch_size, learning_rate, seed, device
        See :class:`dlcf.training.TrainingConfig`.
    """

    name: ClassVar[str] = "cke"
    factors: int = setting(64, least=1)
    hidden: int = setting(100, least=1)
    structure: bool = True
    text: bool = True
    structure_weight: float = setting(1.0, above=0)
    text_weight: float = setting(0.02, above=0)
    noise: float = setting(0.3, least=0, below=1)
    regularization: float = setting(0.02, least=0)
    positive_threshold: float = setting(4.0, least=0)
    epochs: int = setting(40, least=1)
    batch_size: int = setting(1024, least=1)
    learning_rate: float = setting(6e-3, above=0)
    seed: int = setting(0, least=0)
    device: str = "auto"

    def _fit(self, data: Interactions, validation: Any, movies: pd.DataFrame | None) -> None:
        self._known = knowledge_of(movies, self.describe(movies))
        super()._fit(data, validation, movies)

    def rows(self, data: Interactions) -> Batch:
        least = min(self.positive_threshold, float(data.ratings.max()))
        liked = data.take(data.ratings >= least)
        return tuple(map(torch.from_numpy, (liked.users, liked.movies, liked.ratings)))

    def build_network(self, data: Interactions) -> KnowledgeNetwork:
        row = catalogue_rows(self.described, self.movie_ids)
        return KnowledgeNetwork(data, row, self._known, self)

    def _score_unrated(self, users: Index, rows: Index) -> NDArray[np.float32]:
        """What is said of them ranks them; they have no offset."""
        index = (torch.as_tensor(of, device=self.torch_device()) for of in (users, rows))
        return self.network.score_all(*index).cpu().numpy()

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        names = "triples", "things", "word_start", "word"
        self._known = {name: state[f"network.{name}"] for name in names}
        super()._restore(state, extra)
