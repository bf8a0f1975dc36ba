"""What a user takes up: candidates for a list, and the network that puts them in order.

A predicted rating says how a movie would be liked by somebody who chose it, not whether it would be
chosen. So the list has a network of its own. A few hundred candidates are collected by closed-form
scores (item-item weights of the whole and of the recent history, which movies follow each other in
histories, similar users, popularity); what these scores and the moment say of each candidate is
read by a small network, which is trained to give the movies that a user then rated, above all
those that were liked, the largest share of a softmax over the candidates (ListNet; Cao et al.,
2007).

As in :mod:`dlcf.plus.evidence`, training imitates the question: histories are cut and what follows
is hidden (``"next"``), or a random part is hidden (``"missing"``), and evidence is computed from
the visible rest alone. What is missing is in the middle of what is known and what is next is not:
no one order serves both, and the ratings themselves do not say which is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, sparse
from torch import nn

from dlcf.models.base import MOVIE_DAMPING, USER_DAMPING, Index, Interactions, Known, top_k
from dlcf.plus.evidence import YEAR, SideInformation, elapsed_of, folds_of, in_time
from dlcf.training import seeded

Values = NDArray[Any]
MOST_MOVIES = 5000  # the most rated ones are candidates: item-item weights are dense
MOST_LISTS = 1500  # of a question, to train on, or all users' once; few users are asked again
USERS_AT_ONCE = 128
MOMENTS = 128  # at which popularity is counted
RECENT = (3, 10, 30)  # ratings
FOLLOWING = 30  # places between two ratings that still follow each other
CROWDED = 0.25  # share of the pairs of movies that do, from which a dense matrix is faster
POPULARITY = (0.1, 1.0, 4.0)  # years
HIDDEN = (64, 32)
LISTS_AT_ONCE = 32
EPOCHS, MOST_STEPS, RATE, DECAY = 8, 1000, 0.003, 0.01
QUESTIONS = ("next", "missing")
CUTS = (0.6, 0.8, 0.45)  # of histories: what follows is next
FOLDS = 5  # of all ratings: one of them is missing
# How many candidates each score gives.
COLLECTED = {"all": 150, "last 10": 100, "follows, last 10": 100, "beside, last 30": 50,
             "popular, 1 years": 50, "popular": 30, "similar users": 50}  # fmt: skip


@dataclass(frozen=True)
class Candidates:
    """Movies that may be shown, by user."""

    row: Index  # (n,), ascending: the position of the user among those asked for
    movies: Index  # (n,), positions
    features: NDArray[np.float32]  # (n, features)


class ListEvidence:
    """What a visible set of ratings says of who takes up what.

    Memory is linear in the ratings plus ``12 m^2`` bytes, for the m <= 5,000 most rated movies.
    """

    def __init__(
        self, data: Interactions, side: SideInformation, regularization: float, weight: float
    ) -> None:
        count = np.bincount(data.movies, minlength=data.n_movies)
        most = np.argsort(-count, kind="stable")[:MOST_MOVIES]
        self.items = np.sort(most[count[most] > 0])
        place = np.full(data.n_movies, -1)
        place[self.items] = np.arange(len(self.items))
        data = in_time(data.take(place[data.movies] >= 0))
        users, items, times = data.users, place[data.movies], data.timestamps.astype(float)
        self.shape = data.n_users, len(self.items)
        self.user_count = np.bincount(users, minlength=data.n_users)
        self.start = np.concatenate([[0], np.cumsum(self.user_count)])
        self.timed = bool(times.any())
        # Without times nothing is recent, and nothing follows.
        back = (self.start[users + 1] - 1 - np.arange(len(users))) * self.timed
        self.latest = np.append(times, 0.0)[self.start[1:] - 1]
        self.first = np.append(times, 0.0)[np.minimum(self.start[:-1], max(len(times) - 1, 0))]
        deviation = data.ratings - np.float32(data.ratings.mean() if len(data) else 0)
        self.count = count[self.items].astype(np.float32)
        total = np.bincount(items, deviation, len(self.items))
        self.bias = (total / (self.count + MOVIE_DAMPING)).astype(np.float32)
        residual = deviation - self.bias[items]
        total = np.bincount(users, residual, data.n_users)
        self.user_bias = (total / (self.user_count + USER_DAMPING)).astype(np.float32)

        def rated(values: Values) -> sparse.csr_matrix:
            return sparse.csr_matrix((values.astype(np.float32), (users, items)), self.shape)

        value = np.maximum(1 + weight * deviation, 0)
        self.rated, self.value = rated(np.ones(len(data))), rated(value)
        self.residual = rated(residual)
        self.recent = {k: rated(value * np.exp(-back / k)) for k in RECENT}
        # What is further back than 8 k counts less than a thousandth of the latest.
        late = {k: np.exp(-back / k) * (back <= 8 * k) for k in RECENT}
        self.decayed = {k: rated((0.2 + value) * late[k]) for k in RECENT}
        for history in self.decayed.values():
            history.eliminate_zeros()
        self.profile = {k: rated(np.exp(-back / k)) for k in (10, 100)}
        length = np.sqrt(np.maximum(self.user_count, 1))
        self.unit = (sparse.diags(1 / length) @ self.rated).tocsr().astype(np.float32)
        self.weights = ItemWeights(self.value, regularization)
        follows = self._transitions(users, items)
        beside = (follows + follows.T).tocsr()
        full = beside.nnz > CROWDED * len(self.items) ** 2
        self.follows, self.beside = (m.toarray() if full else m for m in (follows, beside))
        self._popularity(items, times)
        self.genres, self.years = side.genres[self.items], side.years[self.items]
        # Years in pairs, from that of the oldest movie.
        pair = np.clip((self.years - self.years.min(initial=np.inf)) // 2, 0, 60).astype(int)
        self.year_of = sparse.csr_matrix(np.eye(61, dtype=np.float32)[pair])
        self.near_year = np.exp(-np.abs(np.subtract.outer(np.arange(61), np.arange(61))) / 1.5)
        self.since = np.full(len(self.items), np.inf)
        np.minimum.at(self.since, items, times)

    def item_scores(self, users: Index, n_movies: int) -> NDArray[np.float32]:
        """Item-item scores of the whole history, ``(len(users), n_movies)``; 0 outside `items`."""
        scores = np.zeros((len(users), n_movies), np.float32)
        inside = self.items < n_movies
        for first in range(0, len(users), USERS_AT_ONCE):
            some = slice(first, first + USERS_AT_ONCE)
            of_users = self.weights.scores(self.value[users[some]])
            scores[some, self.items[inside]] = of_users[:, inside]
        return scores

    def _transitions(self, users: Index, items: Index) -> sparse.csr_matrix:
        """How often one movie is rated within some places after another, damped by both counts."""
        follows = sparse.csr_matrix((self.shape[1],) * 2, dtype=np.float32)
        for gap in range(1, FOLLOWING * self.timed + 1):
            same = users[gap:] == users[:-gap]
            pairs = items[:-gap][same], items[gap:][same]
            value = np.full(int(same.sum()), 1 / np.log2(1 + gap), np.float32)
            follows = follows + sparse.csr_matrix((value, pairs), follows.shape)
        damped = sparse.diags((1 / np.sqrt(self.count + 5)).astype(np.float32))
        return (damped @ follows @ damped).tocsr().astype(np.float32)

    def _popularity(self, items: Index, times: Values) -> None:
        """Ratings of each movie near some moments, those at which most histories end."""
        ends = self.latest[self.user_count > 0]
        self.moments = (
            np.unique(np.quantile(ends, np.linspace(0, 1, MOMENTS))) if len(ends) else ends
        )
        self.popular = {}
        for scale in POPULARITY:
            near = counts_near(self.moments, items, times, scale * YEAR, self.shape[1])
            self.popular[scale] = np.log1p(near).astype(np.float32)

    def collect(self, users: Index, at: Values) -> Iterator[Candidates]:
        """Candidates of users who have visible ratings, by blocks of users.

        `at` are the moments that are asked of, in seconds, ``(len(users),)``.
        """
        for first in range(0, len(users), USERS_AT_ONCE):
            some = slice(first, first + USERS_AT_ONCE)
            found = self._collect(users[some], at[some])
            yield replace(found, row=found.row + first)

    def _collect(self, users: Index, at: Values) -> Candidates:
        seen = self.rated[users].toarray() > 0
        nearest = np.abs(at[:, None] - self.moments).argmin(axis=1)
        similar = np.asarray((self.unit[users] @ self.unit.T).todense()) ** 2
        similar[np.arange(len(users)), users] = 0.0
        # Those that are asked of the whole catalogue give candidates; their ranks are told too.
        scores: dict[str, Values] = {"all": self.weights.scores(self.value[users])}
        for k in RECENT:
            scores[f"last {k}"] = self.weights.scores(self.recent[k][users])
            history = self.decayed[k][users]
            scores[f"follows, last {k}"] = _dense(history @ self.follows)
            scores[f"beside, last {k}"] = _dense(history @ self.beside)
        scores["similar users"] = similar @ self.value
        scores["popular"] = np.broadcast_to(np.log1p(self.count), seen.shape)
        for scale, popular in self.popular.items():
            scores[f"popular, {scale:g} years"] = popular[nearest]
        chosen = np.zeros(seen.shape, bool)
        for name, size in COLLECTED.items():
            best = top_k(np.where(seen, -np.inf, scores[name]), size)
            np.put_along_axis(chosen, best, True, axis=1)
        row, item = np.nonzero(chosen & ~seen)
        columns = []
        starts = np.searchsorted(row, np.arange(len(users)))
        place = np.arange(len(row)) - starts[row]
        for name, score in scores.items():
            value = score[row, item]
            order = np.lexsort((-value, row))
            rank = np.empty(len(row))
            rank[order] = place
            columns.append(np.log1p(rank))
            if not name.startswith("popular"):
                largest = np.where(seen, 0, score).max(axis=1, initial=1e-6)
                value = value / largest[row]
            columns.append(value)
        given = similar @ self.residual, similar @ self.rated
        agreed, asked = (values[row, item] for values in given)
        columns.append(self.bias[item])
        columns.append(self.bias[item] + self.user_bias[users[row]] + agreed / (asked + 0.3))
        for k in self.profile:
            history = self.profile[k][users]
            genres = history @ self.genres
            genres /= np.linalg.norm(genres, axis=1, keepdims=True) + 1e-6
            columns.append(np.einsum("ng,ng->n", genres[row], self.genres[item]))
            years = np.asarray((history @ self.year_of).todense())
            years = years / np.maximum(years.sum(axis=1, keepdims=True), 1e-6) @ self.near_year
            columns.append(years[row, self.year_of.indices[item]])
        age = at[row] / YEAR + 1970 - self.years[item]
        since = (at[row] - self.since[item]) / YEAR
        columns += [_signed_log(age), age < 0.5, _signed_log(10 * since)]
        span = np.maximum(at - self.first[users], 0) / 86400
        columns += [np.log1p(self.user_count[users])[row], np.log1p(span)[row]]
        features = np.stack([np.asarray(c, np.float32) for c in columns], axis=1)
        return Candidates(row, self.items[item], features)


def counts_near(moments: Values, items: Index, times: Values, scale: float, n: int) -> Values:
    """Of each moment, ascending, and item, ``sum exp(-|t - moment| / scale)`` over its times t.

    ``(len(moments), n)``; one pass over the times before, and one over those after: from a moment
    to the next, all that was summed decays alike.
    """
    near = np.zeros((len(moments), n))
    for sign in (1, -1):
        clock = sign * times
        order = np.argsort(clock, kind="stable")
        ends = np.searchsorted(clock[order], sign * moments, "right" if sign == 1 else "left")
        total, begin, last = np.zeros(n), 0, -np.inf
        for j in np.arange(len(moments))[::sign]:
            at, rows = sign * moments[j], order[begin : ends[j]]
            passed = np.bincount(items[rows], np.exp((clock[rows] - at) / scale), n)
            total = total * np.exp((last - at) / scale) + passed
            near[j] += total
            begin, last = ends[j], at
    return near


class ItemWeights:
    """The closed-form item-item weights B of EASE, for histories that it was not fitted on.

    ``x B = x - (x P) / diag P`` with ``P = (X^T X + regularization I)^-1``; where there are fewer
    users than movies, ``x P = (x - (x X^T) (X X^T + regularization I)^-1 X) / regularization``.
    """

    def __init__(self, matrix: sparse.csr_matrix, regularization: float) -> None:
        self.by_user = matrix.shape[0] < matrix.shape[1]
        self.matrix, self.regularization = matrix, regularization
        gram = (matrix @ matrix.T if self.by_user else matrix.T @ matrix).toarray()
        gram[np.diag_indices(len(gram))] += regularization
        if self.by_user:
            dense = matrix.toarray()
            self.solved = linalg.solve(gram, dense, assume_a="pos", check_finite=False)
            quadratic = np.einsum("ui,ui->i", dense, self.solved)
            self.diagonal = (1 - quadratic) / regularization
        else:
            self.solved = linalg.inv(gram, check_finite=False)
            self.diagonal = self.solved.diagonal().copy()

    def scores(self, history: sparse.csr_matrix) -> NDArray[np.float32]:
        """``x B`` of each row, ``(rows, n_movies)``."""
        dense = history.toarray()
        if self.by_user:
            explained = (history @ self.matrix.T).toarray() @ self.solved
            product = (dense - explained) / self.regularization
        else:
            product = history @ self.solved
        return dense - product / self.diagonal


def _dense(product: Any) -> Values:
    return product.toarray() if sparse.issparse(product) else product


def _signed_log(values: Values) -> Values:
    return np.sign(values) * np.log1p(np.abs(values))


class Ranker(nn.Module):
    """Two hidden layers on standardised features, one logit a candidate."""

    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, n_features: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))
        layers: list[nn.Module] = []
        for inputs, outputs in zip((n_features, *HIDDEN), HIDDEN, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.SiLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits ``(...)`` of features ``(..., n_features)``."""
        return self.layers(self.standard(features)).squeeze(-1)

    def standard(self, features: torch.Tensor) -> torch.Tensor:
        """Features in deviations from their centre, at most five."""
        return ((features - self.centre) / self.scale).clamp_(-5, 5)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """As :meth:`forward`, of arrays."""
        with torch.no_grad():
            return self(torch.from_numpy(features)).numpy()

    @classmethod
    def of(cls, state: dict[str, NDArray[Any]]) -> Ranker | None:
        """With the parameters that a saved model holds; None where it holds none."""
        if not state:
            return None
        named = {k.removeprefix("ranker."): torch.from_numpy(v) for k, v in state.items()}
        network = cls(len(named["centre"]))
        network.load_state_dict(named)
        return network.eval()


def questions(data: Interactions, which: str, seed: int) -> Iterator[tuple[Known, Known]]:
    """What is visible and what is hidden, ``(len(data),)`` each, of each episode of a question."""
    episodes = min(len(CUTS), -(-MOST_LISTS // data.n_users))
    if which in ("next", "both"):
        elapsed = elapsed_of(data, np.random.default_rng([seed, 4]))
        for cut in CUTS[:episodes]:
            yield elapsed < cut, (elapsed >= cut) & (elapsed < 1.25 * cut)
    if which in ("missing", "both"):
        fold = folds_of(len(data), FOLDS, seed)
        for k in range(episodes):
            yield fold != k, fold == k


def gains_of(found: Candidates, users: Index, hidden: Interactions, liked: float) -> Values:
    """1 for a hidden rating of at least `liked`, 0.1 for another, 0 for none."""
    keys = hidden.users * hidden.n_movies + hidden.movies
    order = np.argsort(keys)
    wanted = users[found.row] * hidden.n_movies + found.movies
    place = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    row = order[place]
    value = np.where(hidden.ratings[row] >= liked, 1.0, 0.1)
    return np.where(keys[row] == wanted, value, 0.0).astype(np.float32)


@dataclass(frozen=True)
class Lists:
    """Candidates of many users with what they took up of them, one after another."""

    features: torch.Tensor  # float32 (n, features)
    gains: torch.Tensor  # float32 (n,)
    start: Index  # (lists + 1,): where each list begins


def lists_of(
    episodes: Iterator[tuple[Interactions, Interactions]],
    side: SideInformation,
    regularization: float,
    weight: float,
    liked: float,
    seed: int,
) -> Lists | None:
    """What the episodes teach: the lists in which something hidden is a candidate."""
    generator = np.random.default_rng([seed, 2])
    features: list[torch.Tensor] = []
    gains, lengths = [], []
    for visible, hidden in episodes:
        evidence = ListEvidence(visible, side, regularization, weight)
        users = np.unique(hidden.users)
        users = users[evidence.user_count[users] > 0]
        if len(users) > MOST_LISTS:
            users = np.sort(generator.choice(users, MOST_LISTS, replace=False))
        for found in evidence.collect(users, evidence.latest[users] + 3600.0):
            gain = gains_of(found, users, hidden, liked)
            taken = np.bincount(found.row, gain, len(users)) > 0
            kept = taken[found.row]
            features.append(torch.from_numpy(found.features[kept]))
            gains.append(gain[kept])
            lengths.append(np.bincount(found.row[kept], minlength=len(users))[taken])
    if not sum(map(len, gains)):
        return None
    start = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    taken_up = torch.from_numpy(np.concatenate(gains))
    return Lists(joined(features, torch.device("cpu")), taken_up, start)


def joined(parts: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """All parts one after another; they are let go of one by one, being most of the memory."""
    sizes, first = [len(part) for part in parts], parts[0]
    whole = torch.empty(sum(sizes), *first.shape[1:], dtype=first.dtype, device=device)
    for place, values in enumerate(whole.split(sizes)):
        values.copy_(parts[place])
        parts[place] = first[:0]
    return whole


def train_ranker(lists: Lists, seed: int) -> Ranker:
    """Minimise the cross-entropy of gains and softmax in each list; longer gains weigh more."""
    generator = np.random.default_rng([seed, 3])
    with seeded(seed, torch.device("cpu")):
        network = Ranker(lists.features.shape[1])
        network.centre.copy_(lists.features.mean(dim=0))
        deviation = lists.features.std(dim=0, correction=0)
        network.scale.copy_(torch.where(deviation < 1e-6, 1.0, deviation))
        standard = network.standard(lists.features)
        total = np.add.reduceat(lists.gains.numpy(), lists.start[:-1])
        importance = torch.from_numpy(np.log2(1 + total) / np.log2(1 + total).mean())
        batches = -(-len(total) // LISTS_AT_ONCE)
        epochs = max(2, min(EPOCHS, MOST_STEPS // batches))
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs * batches)
        length = np.diff(lists.start)
        for _ in range(epochs):
            order = generator.permutation(len(total))
            for some in np.array_split(order, batches):
                place = np.arange(length[some].max())
                inside = torch.from_numpy(place < length[some][:, None])
                rows = np.minimum(lists.start[some][:, None] + place, len(lists.gains) - 1)
                logits = network.layers(standard[rows]).squeeze(-1).masked_fill(~inside, -30.0)
                gains = lists.gains[rows] * inside
                share = gains / gains.sum(dim=1, keepdim=True)
                entropy = -(share * torch.log_softmax(logits, dim=1)).sum(dim=1)
                loss = (entropy * importance[some]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return network.eval()
