"""DeepCoNN: deep cooperative neural networks (Zheng, Noroozi and Yu, 2017)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dlcf.models.base import Arrays, Floats, Index, Interactions, fit_biases
from dlcf.models.network import NetworkRecommender
from dlcf.related.content import ContentMixin, catalogue_rows, vocabulary_of, words_of
from dlcf.related.networks import RatedMovies, RelatedRecommender
from dlcf.runtime.settings import setting
from dlcf.training import Batch, RatingNetwork, TrainingConfig

# What is common to many movies first: a text that is too long loses words of its title or tags.
_ORDER = ("genres", "year", "title", "tags")


class TextTower(nn.Module):
    """Word vectors, a convolution with ReLU, the maximum over positions, and a dense layer."""

    def __init__(self, n_words: int, of: DeepCoNN) -> None:
        super().__init__()
        self.words = nn.Embedding(n_words, of.word_size)
        self.filters = nn.Parameter(torch.randn(of.window, of.word_size, of.filters))
        self.filters.data *= (of.window * of.word_size) ** -0.5
        self.bias = nn.Parameter(torch.zeros(of.filters))
        self.dense = nn.Linear(of.filters, of.factors)

    def forward(self, texts: Tensor, parts: Tensor) -> Tensor:
        """Of `parts`, ``(n, k)``, each of which is k of the texts one after another.

        No window reaches from one text into the next: the maximum over a part is that over its
        texts, each of which is read once. The vocabulary is multiplied with the filters, not the
        texts; a window then adds rows up.
        """
        window = len(self.filters)
        products = nn.functional.pad(self.words.weight @ self.filters, (0, 0, 1, 0))
        padded = nn.functional.pad(texts, (window // 2, (window - 1) // 2))
        places = products.shape[1] * torch.arange(window, device=texts.device)
        windows = (padded.unfold(1, window, 1) + places).reshape(-1, window)
        sums = nn.functional.embedding_bag(windows, products.flatten(0, 1), mode="sum")
        most = torch.relu(sums.view(*texts.shape, -1).amax(1) + self.bias)
        return torch.relu(self.dense(nn.functional.embedding(parts, most).amax(1)))


class CoNN(RatingNetwork):
    """Two towers of text and a factorisation machine; movies are rows of what is described."""

    mean: Tensor
    user_bias: Tensor  # both biases are zeros where the model has none
    movie_bias: Tensor
    row: Tensor  # (n_movies,): the catalogue among the described movies
    text: Tensor  # (n_described + 1, length): words from 1 on, 0 for none; the last is empty
    chosen: Tensor  # (n_users, user_movies): what the text of a user is made of once it is learned

    def __init__(self, data: Interactions, row: Index, text: Index, of: DeepCoNN) -> None:
        super().__init__()
        mean, user_bias, movie_bias = fit_biases(data)
        disliked = data.ratings < mean + user_bias[data.users]
        self.rated = RatedMovies(data, disliked)  # value: whether in the words of dislike
        self.user_movies, self.opinions = of.user_movies, of.opinions
        self.n_words, self.weight_decay = int(text.max()), of.weight_decay
        biases = (torch.from_numpy(of.biases * bias).float() for bias in (user_bias, movie_bias))
        buffers = torch.tensor(mean), *biases, torch.from_numpy(row), torch.from_numpy(text)
        names = "mean", "user_bias", "movie_bias", "row", "text"
        for name, buffer in zip(names, buffers, strict=True):
            self.register_buffer(name, buffer)
        self.user_tower = TextTower(self.n_words * (1 + of.opinions), of)
        self.movie_tower = TextTower(self.n_words, of)
        self.linear = nn.Linear(2 * of.factors, 1)  # w and w_0, which starts from the mean
        self.pairs = nn.Parameter(0.1 * torch.randn(2 * of.factors, of.rank))  # the v_k
        self.register_buffer("chosen", self.draw(torch.arange(data.n_users), None))

    def optimizer(self, config: TrainingConfig) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.parameters(), config.learning_rate, weight_decay=self.weight_decay, fused=True
        )

    def draw(self, users: Tensor, target: Tensor | None) -> Tensor:
        """Places of ratings of each user, with repetition, ``(n, user_movies)``.

        None is that of `target`, a movie of each; -1 where a user rated nothing else.
        """
        first = self.rated.start[users, None]
        count = self.rated.start[users + 1, None] - first - int(target is not None)
        drawn = torch.rand(len(users), self.user_movies, device=users.device) * count
        place = first + drawn.long().clamp(max=(count - 1).clamp(min=0))
        if target is not None:
            own = torch.searchsorted(self.rated.cell, users * self.rated.n_movies + target)
            place = place + (place >= own[:, None])
        return place.where(count > 0, -1)

    def user(self, places: Tensor) -> Tensor:
        """``x_u``, ``(n, factors)``, of the texts of some rated movies."""
        movie = self.rated.movie[places].where(places >= 0, len(self.text) - 1)
        disliked = self.rated.value[places].long() * self.opinions
        which, parts = torch.unique(2 * movie + disliked, return_inverse=True)
        words = self.text[which // 2]
        words = torch.where(words > 0, words + self.n_words * (which % 2)[:, None], 0)
        return self.user_tower(words, parts)

    def movie(self, movies: Tensor) -> Tensor:
        """``y_i``, ``(n, factors)``."""
        which, parts = torch.unique(movies, return_inverse=True)
        return self.movie_tower(self.text[which], parts[:, None])

    def side(self, features: Tensor, of_movie: bool) -> tuple[Tensor, Tensor]:
        """Of half of ``z``: its linear term and the pairs in it, ``(n,)``, and ``sum z_k v_k``."""
        n = len(self.pairs) // 2
        own = slice(n, None) if of_movie else slice(n)
        v = self.pairs[own]
        total = features @ v
        pairs = total.square().sum(1) - features.square() @ v.square().sum(1)
        return features @ self.linear.weight[0, own] + pairs / 2, total

    def rate(self, users: Tensor, movies: Tensor, places: Tensor) -> Tensor:
        """The factorisation machine on ``z = (x_u, y_i)``, given what the users' texts are of.

        ``sum_{k<l} v_k.v_l z_k z_l`` is the pairs in either half plus the product of their totals.
        """
        user, of_user = self.side(self.user(places), of_movie=False)
        movie, of_movie = self.side(self.movie(movies), of_movie=True)
        bias = self.user_bias[users] + self.movie_bias[movies] + self.linear.bias
        return self.mean + bias + user + movie + (of_user * of_movie).sum(1)

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        return self.rate(users, movies, self.chosen[users])

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error; the movie itself is not in the text of the user."""
        users, movies, ratings = batch
        error = nn.functional.mse_loss(self.rate(users, movies, self.draw(users, movies)), ratings)
        return error, error

    @torch.no_grad()
    def score_all(self, users: Tensor) -> Tensor:
        """Ratings of the catalogue: each text once, then one product."""
        user, of_user = self.side(self.user(self.chosen[users]), of_movie=False)
        movie, of_movie = self.side(self.movie(self.row), of_movie=True)
        user, movie = user + self.user_bias[users], movie + self.movie_bias[self.row]
        return self.mean + self.linear.bias + user[:, None] + movie + of_user @ of_movie.T


@dataclass(kw_only=True, eq=False)
class DeepCoNN(ContentMixin, RelatedRecommender):
    """Ratings from the text of the user and that of the movie (Zheng, Noroozi and Yu, 2017).

    Each text goes through word vectors V, filters ``ReLU(V_{1:n} * K_j + b_j)``, the maximum over
    positions, and a dense layer with ReLU: ``x_u`` of the user, ``y_i`` of the movie. A
    factorisation machine rates both together, ``z = (x_u, y_i)``:
    ``w_0 + sum_k w_k z_k + sum_{k<l} v_k.v_l z_k z_l``. Minimises the squared error. A movie
    without ratings is predicted from its text.

    Otherwise than in the paper:

    - MovieLens has no reviews. The text of a movie is its words: genres, decade, title, tags where
      they are given. The text of a user is that of movies that she rated: nothing of what she
      thinks is in it, and who liked what enters only by which movies they are.
    - With `opinions`, the words of movies that she rated below her own mean are other words, as if
      negated; this alone tells liking from disliking.
    - A user's text is of `user_movies` movies, drawn anew in each step and never with the one that
      is rated, whose review the paper's has in training; a fixed draw serves predictions.
    - With `biases`, what those of :func:`dlcf.models.base.fit_biases` leave is learned. Both this
      and `opinions` are better on validation data; without them it is the paper's.
    - Word vectors are learned, not taken from a larger corpus; AdamW, not RMSprop; no dropout.

    Parameters
    ----------
    word_size, filters, window
        Length of word vectors, number of filters, words that each covers.
    movie_words, user_movies
        Words at most of a movie; movies in the text of a user.
    opinions, biases
        See above.
    factors, rank
        Length of ``x_u`` and ``y_i``, and of the vectors of the factorisation machine.
    weight_decay
        Of AdamW, on all parameters.
    epochs, batch_size, learning_rate, seed, device
        See :class:`dlcf.training.TrainingConfig`.
    """

    name: ClassVar[str] = "deepconn"
    word_size: int = setting(32, least=1)
    filters: int = setting(32, least=1)
    window: int = setting(3, least=1)
    movie_words: int = setting(10, least=1)
    user_movies: int = setting(30, least=1)
    opinions: bool = True
    biases: bool = True
    factors: int = setting(16, least=1)
    rank: int = setting(8, least=1)
    weight_decay: float = setting(0.01, least=0)
    epochs: int = setting(12, least=1)
    batch_size: int = setting(1024, least=1)
    learning_rate: float = setting(4e-3, above=0)
    seed: int = setting(0, least=0)
    device: str = "auto"

    def _fit(self, data: Interactions, validation: Any, movies: pd.DataFrame | None) -> None:
        words = words_of(movies, self.describe(movies), _ORDER)
        number = {word: i for i, word in enumerate(vocabulary_of(words), start=1)}
        self._text = np.zeros((len(self.described) + 1, self.movie_words), dtype=np.int64)
        for text, of_movie in zip(self._text, words, strict=False):
            known = [number[word] for word in of_movie if word in number][: self.movie_words]
            text[: len(known)] = known
        super()._fit(data, validation, movies)

    def rows(self, data: Interactions) -> Batch:
        columns = data.users, self._row()[data.movies], data.ratings
        return tuple(map(torch.from_numpy, columns))

    def build_network(self, data: Interactions) -> CoNN:
        row = self._row()
        described = replace(data, movies=row[data.movies], n_movies=len(self.described))
        return CoNN(described, row, self._text, self)

    def _predict(self, users: Index, movies: Index, timestamps: Index | None) -> Floats:
        return self._predict_unrated(users, self._row()[movies])

    def _predict_unrated(self, users: Index, rows: Index) -> Floats:
        return NetworkRecommender._predict(self, users, rows, None)

    def _row(self) -> Index:
        return catalogue_rows(self.described, self.movie_ids)

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        self._text = state["network.text"]
        super()._restore(state, extra)
