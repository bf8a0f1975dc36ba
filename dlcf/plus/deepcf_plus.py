"""A deep filter that reads evidence: what a user's other ratings say of a movie *at this moment*.

The paper's network knows a user and a movie by an embedding each. Here the embeddings are a small
part; the rating is the movie's damped mean plus a correction that a network reads from evidence:

- the user's other ratings, averaged by attention heads with fixed kernels (near in time, rated by
  the same people, of the same genres, ...) and by heads whose kernel is learned;
- the movie's other ratings, weighted by how their authors agree with the user, and its age.

Two attention weights that sum to 1, as in the paper, gate the user's side and the movie's side
before a tower. Movies are ranked by a second network, which reads what says that a user takes a
movie up, see :mod:`dlcf.plus.ranker`; the best candidates are moved by their predicted ratings.

Training imitates the test: the network learns from ratings that were hidden when their evidence was
computed, see :mod:`dlcf.plus.evidence`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dlcf.explanation import Explanation, HistoryItem, size_of
from dlcf.models.base import Arrays, Floats, Growth, Index, Interactions, Known
from dlcf.models.network import NetworkRecommender
from dlcf.plus.evidence import (
    CELLS_AT_ONCE,
    Context,
    Evidence,
    EvidenceRecommender,
    episodes,
)
from dlcf.plus.ranker import (
    QUESTIONS,
    Candidates,
    ListEvidence,
    Ranker,
    joined,
    lists_of,
    questions,
    train_ranker,
)
from dlcf.plus.scales import N_CHANNELS
from dlcf.plus.subsets import describe_parts
from dlcf.ratings import check_pairs
from dlcf.runtime.settings import setting
from dlcf.training import (
    Batch,
    History,
    RatingNetwork,
    TrainingConfig,
    pick_device,
    predict_in_batches,
    seeded,
)
from dlcf.variants.shapley import cold_coalitions, evenly_spread, share_correlation

NETWORK_FIELDS = ("baseline", "user", "movie", "channels", "count")  # of Evidence
HEADS, HIDDEN = 4, (128, 64)
# Embeddings over-fit within a few epochs unless they are dropped, slow and decay strongly.
ID_DROPOUT, ID_RATE, ID_DECAY = 0.5, 0.04, 10.0
LIKED = 0.8  # of the scale's upper end: 4 of 5 stars
SERVED = 0.5  # of the hidden ratings are learned from a second time, as if asked of now
MOST_HIDDEN = 600_000  # rows that the network learns from, each of some 750 bytes
PAIRS_AT_ONCE = 200_000  # whose evidence is in memory where ratings are predicted
MOST_MEASURED = 2000  # held-out pairs that the faithfulness of the weights is measured on


class EvidenceNetwork(RatingNetwork):
    """Corrects the baseline by the evidence.

    For the channels ``c_j`` of the history, whose first is the deviation ``d_j``, the features x_u
    and x_m of the two sides and the embeddings p, q::

        b = softmax over j and a null entry of B silu(A c_j)   learned attention, a head an output
        o = [sum_j b_j d_j; sum_j b_j]                         what was attended to, and how much
        h_u = silu(U [x_u; o; p]),  h_m = silu(M [x_m; q])
        a = softmax(G [h_u; h_m])                              the paper's two weights, sum 1
        r = baseline + w . silu(T 2 [a_1 h_u; a_2 h_m])
    """

    centre_user: Tensor
    scale_user: Tensor
    centre_movie: Tensor
    scale_movie: Tensor

    def __init__(
        self,
        n_users: int,
        n_movies: int,
        n_features: tuple[int, int],
        embedding_size: int,
        dropout: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout, self.weight_decay = dropout, weight_decay
        for side, size in zip(("user", "movie"), n_features, strict=True):
            self.register_buffer(f"centre_{side}", torch.zeros(size))
            self.register_buffer(f"scale_{side}", torch.ones(size))
        # The last row is of all new users, and stays 0.
        self.user_embedding = nn.Embedding(n_users + 1, embedding_size, padding_idx=n_users)
        self.movie_embedding = nn.Embedding(n_movies, embedding_size)
        for table in (self.user_embedding, self.movie_embedding):
            nn.init.normal_(table.weight, std=0.05)
        nn.init.zeros_(self.user_embedding.weight[-1])
        half = HIDDEN[0] // 2
        self.attention_hidden = _linear(N_CHANNELS, 16)
        self.attention = _linear(16, HEADS)
        self.user_side = _linear(n_features[0] + embedding_size + 2 * HEADS, half)
        self.movie_side = _linear(n_features[1] + embedding_size, half)
        self.gate = _linear(2 * half, 2, 0.1)
        self.tower: nn.Module = _linear(2 * half, HIDDEN[1])
        self.output = _linear(HIDDEN[1], 1, 0.1)

    def standardise(self, user: Tensor, movie: Tensor) -> None:
        """Centre and scale features by what training holds; a constant feature is left at 0."""
        for side, features in (("user", user), ("movie", movie)):
            deviation = features.double().std(dim=0, correction=0)
            deviation[deviation < 1e-6] = 1.0
            getattr(self, f"centre_{side}").copy_(features.double().mean(dim=0))
            getattr(self, f"scale_{side}").copy_(deviation)

    def optimizer(self, config: TrainingConfig) -> torch.optim.Optimizer:
        """AdamW; embeddings get smaller steps and a much stronger decay."""
        embeddings = [self.user_embedding.weight, self.movie_embedding.weight]
        others = [p for name, p in self.named_parameters() if "embedding" not in name]
        rate = config.learning_rate
        groups: list[dict[str, Any]] = [
            {"params": others, "lr": rate, "weight_decay": self.weight_decay},
            {"params": embeddings, "lr": ID_RATE * rate, "weight_decay": ID_DECAY},
        ]
        return torch.optim.AdamW(groups, fused=True)

    def read(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ratings ``(n,)``, gate ``(n, 2)``, attention ``(n, history, heads)``; the inputs are
        users, movies and the first five fields of :class:`Evidence`."""
        users, movies, baseline, user, movie, channels, count = inputs
        user = ((user - self.centre_user) / self.scale_user).clamp(-5, 5)
        movie = ((movie - self.centre_movie) / self.scale_movie).clamp(-5, 5)
        entries = channels.float()
        n, size, n_channels = entries.shape
        # Units and heads x all entries: torch is slow over a last dimension as short as the heads.
        flat, inner, heads = entries.view(-1, n_channels).T, self.attention_hidden, self.attention
        units = nn.functional.silu(torch.addmm(inner.bias[:, None], inner.weight, flat))
        logits = torch.addmm(heads.bias[:, None], heads.weight, units).view(-1, n, size)
        empty = torch.arange(size, device=count.device) >= count[:, None]
        # The padded entry, of logit 0, is the null entry: a head may attend to nothing.
        logits = nn.functional.pad(logits.masked_fill(empty, -30.0), (0, 1))
        weights = torch.softmax(logits, dim=2)[:, :, :size]
        attended = torch.cat([(weights * entries[:, :, 0]).sum(2), weights.sum(2)]).T
        user_id = self._embed(self.user_embedding, users)
        movie_id = self._embed(self.movie_embedding, movies)
        user_side = nn.functional.silu(self.user_side(torch.cat([user, attended, user_id], 1)))
        movie_side = nn.functional.silu(self.movie_side(torch.cat([movie, movie_id], 1)))
        gate = torch.softmax(self.gate(torch.cat([user_side, movie_side], 1)), dim=1)
        gated = torch.cat([gate[:, :1] * user_side, gate[:, 1:] * movie_side], 1)
        hidden = nn.functional.silu(self.tower(self._drop(2 * gated)))
        return baseline + self.output(self._drop(hidden)).squeeze(1), gate, weights.permute(1, 2, 0)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.read(*inputs)[0]

    def _drop(self, values: Tensor) -> Tensor:
        return nn.functional.dropout(values, self.dropout, self.training)

    def _embed(self, table: nn.Embedding, index: Tensor) -> Tensor:
        return nn.functional.dropout(table(index), ID_DROPOUT, self.training)


def _linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """A layer with weights of standard deviation ``gain / sqrt(inputs)`` and biases of 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=gain * inputs**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


@dataclass(kw_only=True, eq=False)
class DeepCFPlus(EvidenceRecommender, NetworkRecommender):
    """Evidence of other ratings, read by a gated network; see the module's description.

    Its predictions and lists depend on the moment that is asked of: where none is given, it is an
    hour after the user's latest rating, or of a new user the latest time of all. A movie without
    training ratings is predicted from the user's evidence and its genres and year, and a new user
    from what is known of the movie.

    Memory of `fit` is about 350 bytes a rating, 1,050 a row that the network learns from,
    ``20 embedding_size + 100`` a user or movie, and what the ranker's evidence takes, see
    :class:`~dlcf.plus.ranker.ListEvidence`. At the usual cuts there are 2.5 rows a rating; beyond
    600,000, the network learns from all that is hidden of users drawn at random in each episode,
    about as many.

    Parameters
    ----------
    preset
        ``"full"`` or ``"quick"``: how many `epochs` there are where they are not given, 4 or 2.
    embedding_size
        Length of the user and movie embeddings.
    history_size
        Ratings of the history that the learned attention sees, the most relevant ones.
    tower_dropout
        Dropout rate before and after the tower's layer.
    folds, cuts
        Of the training episodes, see :func:`episodes`; no cuts, no future episodes.
    epochs, batch_size, learning_rate, seed, device
        See :class:`dlcf.training.TrainingConfig`; the schedule is ``"one-cycle"``.
    weight_decay
        Of AdamW, for all but the embeddings.
    ranking
        What a list is to hold: what the user takes up ``"next"``, what is ``"missing"`` among the
        ratings, ``"both"``, or the best by ``"item-item"`` scores alone; choose it on validation
        data that are held out as the test is.
    regularization, rating_weight
        Of the item-item scores: L2 penalty, and a in the weight ``max(1 + a (r - mean), 0)`` of a
        rating r.
    rerank, candidates
        The logits of the best `candidates` are raised by ``rerank (r - mean r)``, with r their
        predicted ratings.
    """

    name: ClassVar[str] = "deepcf-plus"
    preset: str = setting("full", choices=("full", "quick"))
    embedding_size: int = setting(16, least=1)
    history_size: int = setting(32, least=1)
    tower_dropout: float = setting(0.1, least=0, below=1)
    folds: int = setting(5, least=2)
    cuts: Sequence[float] = setting((0.4, 0.6, 0.8), above=0, below=1)
    epochs: int | None = setting(None, least=1)
    batch_size: int = setting(1024, least=1)
    learning_rate: float = setting(0.005, above=0)
    weight_decay: float = setting(0.02, least=0)
    ranking: str = setting("both", choices=("both", *QUESTIONS, "item-item"))
    regularization: float = setting(300.0, above=0)
    rating_weight: float = setting(0.65, least=0)
    rerank: float = 0.8
    candidates: int = setting(50, least=1)
    seed: int = setting(0, least=0)
    device: str = "auto"
    PRESETS: ClassVar[dict[str, int]] = {"full": 4, "quick": 2}  # epochs
    network_class: ClassVar[type[EvidenceNetwork]] = EvidenceNetwork
    saved_as: ClassVar[dict[str, str]] = {"last": "network"}
    weights = "last"  # where a one-cycle ends is what it is for
    explanation_method = "attention"  # what the two weights of `explain` are

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is None:
            self.epochs = self.PRESETS[self.preset]

    def explain(self, user_id: int, movie_id: int, at: float | None = None) -> Explanation:
        """Strength, the gate's two weights, and what each of the user's ratings changes.

        The effect of a rating is the prediction minus that without it, by :meth:`predict_from`. Its
        attention weight is the mean over the learned heads, 0 where they do not see it. Where user
        or movie is unknown, or the user has no other rating, there is no history, and the weights
        are those of what is known. `at` is the time of the prediction, as in :meth:`predict`.
        """
        pair = pd.DataFrame({"userId": [user_id], "movieId": [movie_id]})
        pair = pair if at is None else pair.assign(timestamp=at)
        pair = check_pairs(pair, source="pair")
        rating = float(self.predict(pair)[0])
        users, (known_user,), movies, (known_movie,) = self.positions(pair)
        user_weight = 0.5 if known_user == known_movie else float(known_user)
        items: tuple[HistoryItem, ...] = ()
        if known_user and known_movie:
            user_weight = 0.0
            stamps = self._stamps(pair)
            for context, _, evidence, gate, weights in self._read(users, movies, stamps):
                user_weight = float(gate[0, 0])
                attention = np.zeros(len(context.movies))
                seen = slice(evidence.count[0])
                attention[evidence.history[0, seen]] = weights[0, seen]
                items = self._items(pair, context, attention)
        return Explanation.of_rating(
            user_id,
            movie_id,
            rating,
            self.scale,
            user_weight,
            title=self.title(movie_id),
            known_user=bool(known_user),
            known_movie=bool(known_movie),
            history=items,
            method=self.explanation_method,
            faithfulness=self.faithfulness,
        )

    def predict_from(self, pair: pd.DataFrame, kept: Known) -> Floats:
        """Predicted ratings of one pair, had its user given only some of the ratings.

        What other people's ratings say stays as it is: see :mod:`dlcf.plus.subsets`. `pair` is a
        row as in :meth:`predict`, of a user of train; `kept` is bool ``(m, ratings of the user)``,
        in the order of :meth:`ratings_of`. Ratings ``(m,)``, inside the scale; without any rating,
        it is that of a user who has none.
        """
        pair = check_pairs(pair, source="pair")
        users, (known_user,), _, _ = self.positions(pair)
        if not known_user:
            raise ValueError(f"user {pair['userId'].iloc[0]} has no rating in train to leave out")
        movies = self._columns(pair["movieId"].to_numpy())
        times, user, movie = self._times(users, self._stamps(pair)), int(users[0]), int(movies[0])
        (context, _), device = next(self._contexts(users, movies)), self.torch_device()
        visible = context.movies[context.history(user)]
        kept = kept[:, np.searchsorted(self._seen[user].indices, visible)]
        _, new = self._inputs(context, np.array([self.data.n_users]), movies, times)
        newcomer = predict_in_batches(self.network, *(t.to(device) for t in new))
        ratings = np.full(len(kept), float(newcomer[0]))
        some = np.flatnonzero(kept.any(axis=1))
        at_once = max(1, CELLS_AT_ONCE // (len(visible) + int(context.movie_count[movie]) + 256))
        for first in range(0, len(some), at_once):
            rows = some[first : first + at_once]
            where = context, user, movie, float(times[0])
            evidence = describe_parts(*where, kept[rows], self.history_size)
            fields = (torch.from_numpy(getattr(evidence, name)) for name in NETWORK_FIELDS)
            named = (torch.full((len(rows),), index) for index in (user, movie))
            inputs = (tensor.to(device) for tensor in (*named, *fields))
            ratings[rows] = predict_in_batches(self.network, *inputs, batch_size=4096).cpu().numpy()
        return np.clip(ratings, *self.scale)

    def deletions(self, pair: pd.DataFrame, places: Index) -> Floats:
        """The prediction of one pair minus that without one of the user's ratings, for each place.

        `places` are in the order of :meth:`ratings_of`; nobody else's ratings change.
        """
        (user,), *_ = self.positions(pair)
        kept = np.ones((1 + len(places), self._seen[user].nnz), bool)
        kept[1 + np.arange(len(places)), places] = False
        whole, *without = self.predict_from(pair, kept)
        return whole - np.array(without)

    def _items(
        self, pair: pd.DataFrame, context: Context, attention: Floats
    ) -> tuple[HistoryItem, ...]:
        """The user's visible ratings with their attention, the largest effect first."""
        rated = self.ratings_of(int(pair["userId"].iloc[0]))
        (user,), *_ = self.positions(pair)
        rows = context.history(user)
        place = np.searchsorted(rated["movieId"], self.movie_ids[context.movies[rows]])
        own = rated.iloc[place]
        columns = own["movieId"], own["rating"], attention[rows], self.deletions(pair, place)
        values = zip(*(column.tolist() for column in columns), strict=True)
        found = [HistoryItem(movie, self.title(movie), *others) for movie, *others in values]
        return tuple(sorted(found, key=lambda item: (-size_of(item), item.movie_id)))

    def untrained(self, seed: int = 0) -> DeepCFPlus:
        """A copy whose network has fresh initial parameters; features stay centred and scaled."""
        self._check_fitted()
        model = copy.copy(self)
        model._start_network(seed)
        model.network.load_state_dict(dict(self.network.named_buffers()), strict=False)
        model._faithfulness = None
        return model

    def _start_network(self, seed: int) -> None:
        device = pick_device(self.device)
        with seeded(seed, device):
            self.network = self.build_network(self.data).to(device).eval()
        self._states = {"last": self.network.state_dict()}

    @property
    def faithfulness(self) -> float | None:
        """Spearman's correlation of the user's weight and its Shapley share, in [-1, 1].

        An absent user or movie is an unknown one, :func:`~dlcf.variants.shapley.cold_coalitions`.
        None until `fit`, by a validation frame, or :meth:`measure_faithfulness` measured it.
        """
        self._check_fitted()
        return self._faithfulness

    def measure_faithfulness(self, pairs: pd.DataFrame) -> float | None:
        """:attr:`faithfulness` on held-out pairs; from then on `explain` says so.

        None where the weights or the shares are all alike. Pairs of unknown users and movies are
        left out; of the rest 2,000 at most are read, evenly spread.
        """
        _, known_user, _, known_movie = self.positions(pairs)
        known = np.flatnonzero(known_user & known_movie)
        some = pairs.iloc[known[evenly_spread(len(known), MOST_MEASURED)]]
        weight = self.attention_weights(some)[:, 0]
        self._faithfulness = share_correlation(weight, cold_coalitions(self, some))
        return self._faithfulness

    def attention_weights(self, pairs: pd.DataFrame) -> Floats:
        """The gate, ``(n, 2)``: weights on the user's and the movie's side, which sum to 1.

        `pairs` are as in :meth:`predict`; the unknown has the weights that :meth:`explain` gives.
        """
        pairs = check_pairs(pairs, source="pairs")
        users, known_user, movies, known_movie = self.positions(pairs)
        user_weight = np.where(known_user == known_movie, 0.5, known_user)
        known = np.flatnonzero(known_user & known_movie)
        user_weight[known] = 0.0
        stamps = self._stamps(pairs.iloc[known])
        for _, rows, _, gate, _ in self._read(users[known], movies[known], stamps):
            user_weight[known[rows]] = gate[:, 0]
        return np.stack([user_weight, 1.0 - user_weight], axis=1)

    def history_attention(self, users: Index, movies: Index, signed: bool = False) -> Floats:
        """Learned attention on each rating of one user's history, the mean over the heads.

        Of n pairs, as positions with the same user, ``(ratings of the user, n)``; 0 of ratings that
        are not among the `history_size`. If `signed`, it is multiplied by the rating's deviation,
        which is what the attention averages.
        """
        self._check_fitted()
        own = self._seen[users[0]].indices
        found = np.zeros((len(own), len(movies)))
        for context, rows, evidence, _, weights in self._read(users, movies, None):
            values = weights * evidence.channels[:, :, 0] if signed else weights
            entry, place = np.nonzero(np.arange(values.shape[1]) < evidence.count[:, None])
            column = context.movies[evidence.history[entry, place]]
            found[np.searchsorted(own, column), rows[entry]] = values[entry, place]
        return found

    def _read(
        self, users: Index, movies: Index, timestamps: Index | None
    ) -> Iterator[tuple[Context, Index, Evidence, Floats, Floats]]:
        """By context: its pairs with a history, their evidence, gates, and attention by rating."""
        times, device = self._times(users, timestamps), self.torch_device()
        for context, all_rows in self._contexts(users, movies):
            seen = all_rows[context.user_count[users[all_rows]] > 0]
            for first in range(0, len(seen), 4096):
                rows = seen[first : first + 4096]
                evidence, inputs = self._inputs(context, users[rows], movies[rows], times[rows])
                with torch.no_grad():
                    _, gate, attention = self.network.read(*(t.to(device) for t in inputs))
                weights = attention.double().mean(dim=2).cpu().numpy()
                yield context, rows, evidence, gate.double().cpu().numpy(), weights

    def _fit(
        self, data: Interactions, validation: Interactions | None, movies: pd.DataFrame | None
    ) -> None:
        if len(data) < 2:
            raise ValueError(f"{self.name} needs at least 2 ratings to train on, not {len(data)}")
        self.prepare(data, movies)
        self._learn_to_rank()
        train = self.hidden_ratings(episodes(self.data, self.folds, self.cuts, self.seed))
        held_out = None
        if validation is not None:
            views = self._contexts(validation.users, validation.movies)
            held_out = self._batch((context, validation.take(rows)) for context, rows in views)
        self.train_on(train, held_out)
        if validation is not None:
            self.measure_faithfulness(self._pairs(validation))

    def _learn_to_rank(self) -> None:
        """Train the ranker; there is none where no list holds a movie that was taken up."""
        self._ranker: Ranker | None = None
        if self.ranking == "item-item":
            return
        take, liked = self.data.take, LIKED * self.scale[1]
        masks = questions(self.data, self.ranking, self.seed)
        seen = ((take(visible), take(hidden)) for visible, hidden in masks)
        about = self.side, self.regularization, self.rating_weight
        lists = lists_of(seen, *about, liked, self.seed)
        if lists is not None:
            self._ranker = train_ranker(lists, self.seed)

    def _pairs(self, data: Interactions) -> pd.DataFrame:
        """MovieLens' ids and times of ratings."""
        users, movies = self.user_ids[data.users], self.movie_ids[data.movies]
        pairs = pd.DataFrame({"userId": users, "movieId": movies})
        return pairs.assign(timestamp=data.timestamps) if data.timestamps.any() else pairs

    def hidden_ratings(self, masks: Iterable[tuple[Known, Known]]) -> Batch | None:
        """Inputs and ratings of what :func:`episodes` hide; None where there is no evidence.

        Half of them come twice, because a movie is recommended before anybody knows when it is
        rated: at their time, and an hour after the user's last visible rating or, one in two, at
        the latest time of all that is visible. Beyond `MOST_HIDDEN` rows, only the ratings of users
        drawn at random in each episode.
        """
        data = self.data
        order = np.lexsort((data.timestamps, data.users))
        in_order = data.take(order)  # once: every context wants it so
        hidden_times = 1 + sum(min(cut / 4, 1 - cut) for cut in self.cuts) + 1 / self.folds
        share = MOST_HIDDEN / ((1 + SERVED * self._timed) * hidden_times * len(data))
        generator = np.random.default_rng([self.seed, 2])

        def views() -> Iterator[tuple[Context, Interactions]]:
            for seen, hidden in masks:
                if share < 1:
                    hidden = hidden & (generator.random(data.n_users) < share)[data.users]
                context, given = Context(in_order.take(seen[order]), self.side), data.take(hidden)
                yield context, given
                if self._timed:
                    draw = generator.random(len(given))
                    again, now = given.take(draw < SERVED), draw[draw < SERVED] < SERVED / 2
                    last = context.times[context.start[again.users + 1] - 1] + 3600
                    now |= context.is_new(again.users)
                    when = np.where(now, context.newest, last).astype(np.int64)
                    yield context, replace(again, timestamps=when)

        return self._batch(views())

    def train_on(self, hidden: Batch | None, held_out: Batch | None = None) -> None:
        """Train a fresh network on :meth:`hidden_ratings`, once ratings and movies are prepared."""
        self._faithfulness = None
        if hidden is not None and len(hidden[0]) >= 2:
            self._train(self.data, hidden, held_out)
            return
        # Nobody has two ratings: there is no evidence to learn from.
        self.history = History()
        self._start_network(self.seed)
        for parameter in self.network.parameters():
            nn.init.zeros_(parameter)

    def _observe(self, growth: Growth) -> None:
        """The network stays; a new user has an embedding of zeros, as dropout gives in training."""
        super()._observe(growth)
        weights = dict(growth.before._states["last"])
        columns = torch.from_numpy(self._columns_in(growth.before))
        weights["movie_embedding.weight"] = weights["movie_embedding.weight"][columns]
        known = weights["user_embedding.weight"]
        weights["user_embedding.weight"] = known.new_zeros(self.data.n_users + 1, known.shape[1])
        weights["user_embedding.weight"][torch.from_numpy(growth.users)] = known[:-1]
        self._start_network(self.seed)
        self.network.load_state_dict(weights)
        self._states = {"last": weights}

    def _before_training(self, train: Batch) -> None:
        self.network.standardise(train[3], train[4])

    def training_config(self) -> TrainingConfig:
        return replace(super().training_config(), schedule="one-cycle")

    def _take_ratings(self, data: Interactions) -> None:
        super()._take_ratings(data)
        self.__dict__.pop("list_evidence", None)

    @cached_property
    def list_evidence(self) -> ListEvidence:
        """What all ratings say of who takes up what; computed once a list is asked for."""
        self._check_fitted()
        return ListEvidence(self.data, self.side, self.regularization, self.rating_weight)

    def build_network(self, data: Interactions) -> EvidenceNetwork:
        user, movie = self.context.feature_names()
        sizes = data.n_users, len(self.side.years), (len(user), len(movie)), self.embedding_size
        return self.network_class(*sizes, self.tower_dropout, self.weight_decay)

    def _batch(self, views: Iterable[tuple[Context, Interactions]]) -> Batch | None:
        """Inputs and ratings of what each context hides; None where there is none."""
        columns: list[list[Tensor]] = [[] for _ in range(3 + len(NETWORK_FIELDS))]
        for context, hidden in views:
            if len(hidden):
                given = hidden.timestamps if hidden.timestamps.any() else None
                times = self._times(hidden.users, given)
                _, inputs = self._inputs(context, hidden.users, hidden.movies, times)
                stars = torch.from_numpy(hidden.ratings)
                for column, values in zip(columns, (*inputs, stars), strict=True):
                    column.append(values)
        if not columns[0]:
            return None
        device = pick_device(self.device)
        return tuple(joined(column, device) for column in columns)

    def _inputs(
        self, context: Context, users: Index, movies: Index, times: NDArray[Any]
    ) -> tuple[Evidence, Batch]:
        """Evidence of pairs; the network's inputs, on the CPU."""
        evidence = context.describe(users, movies, times, self.history_size)
        users = np.where(context.is_new(users), self.data.n_users, users)
        arrays = users, movies, *(getattr(evidence, name) for name in NETWORK_FIELDS)
        return evidence, tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)

    def _predict(self, users: Index, movies: Index, timestamps: Index | None) -> Floats:
        times, device = self._times(users, timestamps), self.torch_device()
        ratings = np.empty(len(users))
        for context, rows in self._contexts(users, movies):
            for first in range(0, len(rows), PAIRS_AT_ONCE):
                some = rows[first : first + PAIRS_AT_ONCE]
                _, inputs = self._inputs(context, users[some], movies[some], times[some])
                on_device = (tensor.to(device) for tensor in inputs)
                predicted = predict_in_batches(self.network, *on_device, batch_size=4096)
                ratings[some] = predicted.cpu().numpy()
        return ratings

    def _score(self, users: Index, at: float | None) -> NDArray[np.float32]:
        """The ranker's logits of candidates; below them, all others by their item-item scores."""
        n_movies, evidence = len(self.movie_ids), self.list_evidence
        scores = np.tile(self.movie_counts.astype(np.float32), (len(users), 1))
        active = np.flatnonzero(evidence.user_count[users] > 0)
        if not len(active):
            return scores
        some = users[active]
        scores[active] = evidence.item_scores(some, n_movies)
        if self._ranker is None or self.ranking == "item-item":
            return scores
        times = self._times(some, None if at is None else np.full(len(some), at))
        for found in evidence.collect(some, times):
            logits = self._ranker.logits(found.features)
            logits += self._raised(some[found.row], found, logits, times[found.row])
            row = active[found.row]
            least = np.full(len(users), np.inf, np.float32)
            np.minimum.at(least, row, logits)
            asked = np.unique(row)
            others = scores[asked]
            below = others - others.max(axis=1, keepdims=True) - 1.0
            scores[asked] = least[asked, None] + below
            scores[row, found.movies] = logits
        return scores

    def _raised(
        self, users: Index, found: Candidates, logits: NDArray[np.float32], times: Floats
    ) -> NDArray[np.float32]:
        """By how much the predicted rating raises a candidate; 0 of those that are not the best."""
        raised = np.zeros_like(logits)
        order = np.lexsort((-logits, found.row))
        row = found.row[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        best = order[place < self.candidates]
        if self.rerank and len(best):
            ratings = self._predict(users[best], found.movies[best], times[best].astype(np.int64))
            ratings = np.clip(ratings, *self.scale)
            row = found.row[best]
            total, count = np.bincount(row, ratings), np.bincount(row)
            raised[best] = self.rerank * (ratings - (total / np.maximum(count, 1))[row])
        return raised

    def _state(self) -> Arrays:
        ranker = {} if self._ranker is None else self._ranker.state_dict()
        return super()._state() | {f"ranker.{k}": v.numpy() for k, v in ranker.items()}

    def _extra(self) -> dict[str, Any]:
        return super()._extra() | {"faithfulness": self._faithfulness}

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        self._faithfulness = extra.get("faithfulness")
        self._ranker = Ranker.of({k: v for k, v in state.items() if k.startswith("ranker.")})
        super()._restore(state, extra)
