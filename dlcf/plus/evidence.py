"""What the other ratings say of a rating: evidence, computed from visible ratings alone.

**No rating is evidence of itself.** A rating that is to be predicted must not have touched its own
evidence. Leaving only its own entry out is not enough: the movie's mean, the user's mean and the
residuals of the user's *other* ratings hold a trace of it, which a network finds and a test does
not have. So training imitates the test: an episode hides a part of the ratings, a :class:`Context`
is computed from the visible rest alone, and the hidden ratings are learned from. Random episodes
hide each rating once (the test is a random sample); future episodes cut histories and hide what
comes next (the test lies ahead). For the same reason a pair of the training set is predicted from
the context that hides its fold.

Evidence looks both ways in time. After a random split, the ratings that a user gave just before and
just after the one in question are visible; after a temporal split only earlier ones of the same
user are. What is visible decides, not the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from dlcf.models.base import (
    MOVIE_DAMPING,
    USER_DAMPING,
    Arrays,
    Growth,
    Index,
    Interactions,
    fit_biases,
)
from dlcf.plus.scales import FASTER_EVIDENCE, N_CHANNELS, SESSION, TIME_SCALES
from dlcf.ratings import check_pairs
from dlcf.serving.history import HistoryRecommender

Values = NDArray[Any]
YEAR = 31_557_600.0  # seconds
CELLS_AT_ONCE = 2_000_000  # pairs x history entries


@dataclass(frozen=True)
class SideInformation:
    """What is known of movies beside ratings: unit rows of genres, and years of release."""

    genres: NDArray[np.float32]
    years: NDArray[np.float32]

    @cached_property
    def kinds(self) -> tuple[Values, Index, Values, Index]:
        """Distinct rows of genres and each movie's among them; the same of years."""
        genres, genre = np.unique(self.genres, axis=0, return_inverse=True)
        return genres, genre.ravel(), *np.unique(self.years, return_inverse=True)


@dataclass(frozen=True)
class Evidence:
    """What a context says of n pairs; see :meth:`Context.describe`."""

    baseline: Values  # float32 (n,), the mean rating plus the movie's bias
    user: Values  # float32 (n, features), of the user's side
    movie: Values  # float32 (n, features), of the movie's side
    # float16 (n, history_size, 8): deviation, distance in time, kernel in time, before or after,
    # co-ratings, agreement, genres, years of the most relevant ratings in the history.
    channels: Values
    count: Index  # int64 (n,): only the first `count` entries of a row of `channels` are filled
    history: NDArray[np.int32]  # (n, history_size), their positions in the context's ratings


class Context:
    """What can be known from a visible set of ratings: no other counts.

    `side` is of all movies that pairs may name, in column order; `mean` stands where no rating is
    visible. Ratings are kept in the order of users and times, and of movies in `seen`, `residual`
    and `taste`, sparse ``(n_movies, n_users)``: 44 bytes a rating, and some 120 more while they are
    put so; nothing is as large as users times movies.
    """

    def __init__(self, data: Interactions, side: SideInformation, mean: float = 0.0) -> None:
        data = in_time(data)
        users, movies, self.side = data.users, data.movies, side
        self.movies, self.times = movies, data.timestamps.astype(float)
        self.newest = int(data.timestamps.max(initial=0))
        self.user_count = np.bincount(users, minlength=data.n_users)
        self.movie_count = np.bincount(movies, minlength=data.n_movies)
        self.start = np.concatenate([[0], np.cumsum(self.user_count)])
        unknown = mean, np.zeros(data.n_users), np.zeros(data.n_movies)
        biases = fit_biases(data, sweeps=10) if len(data) else unknown
        self.mean, user_bias, self.movie_bias = biases
        movie_weight = self.movie_count + MOVIE_DAMPING
        centred = data.ratings.astype(float) - self.mean
        residual = centred - self.movie_bias[movies] - user_bias[users]
        # The deviation of a rating from what the *others* think of the movie.
        own = centred - user_bias[users]
        total = self.movie_bias[movies] * movie_weight[movies]
        self.deviation = centred - (total - own) / (movie_weight[movies] - 1)
        squares = np.bincount(movies, residual**2, data.n_movies)
        spread = residual.var() if len(data) else 0.0
        self.movie_spread = np.sqrt((squares + 3 * spread) / (self.movie_count + 3))
        usual = np.bincount(users, self.deviation, data.n_users) / (self.user_count + 1)

        self.taste_of = (self.deviation - usual[users]).astype(np.float32)  # of each rating
        # Movies x users, because evidence is gathered movie by movie.
        shape, place = (data.n_movies, data.n_users), np.arange(len(data))
        by_movie = sparse.csr_array((place, (movies, users)), shape=shape)

        def matrix(values: Values) -> sparse.csr_array:
            kept = values.astype(np.float32)[by_movie.data]
            return sparse.csr_array((kept, by_movie.indices, by_movie.indptr), shape=shape)

        self.seen, self.residual = matrix(np.ones(len(data))), matrix(residual)
        self.taste = matrix(self.taste_of)

    def describe(self, users: Index, movies: Index, times: Values, history_size: int) -> Evidence:
        """Evidence of pairs that are not in the context; each row depends on its own pair alone.

        Times are in seconds; `history_size` is how many ratings of the history the learned
        attention sees. Of a user without visible ratings, ``n_users`` where it has no position,
        only the movie says something.
        """
        new = self.is_new(users)
        if new.any():
            old = ~new
            found = self._describe_new(movies, times, history_size)
            if old.any():
                known = self.describe(users[old], movies[old], times[old], history_size)
                for name, values in vars(known).items():
                    getattr(found, name)[old] = values
            return found
        faster = FASTER_EVIDENCE.get("describe")
        if faster:
            return Evidence(*faster(self, users, movies, times, history_size))
        parts, rows = [], []
        order = np.argsort(users, kind="stable")
        for of_user in np.split(order, np.flatnonzero(np.diff(users[order])) + 1):
            at_once = max(1, CELLS_AT_ONCE // int(self.user_count[users[of_user[0]]]))
            for first in range(0, len(of_user), at_once):
                chunk = of_user[first : first + at_once]
                user = int(users[chunk[0]])
                rows.append(chunk)
                parts.append(self._describe_user(user, movies[chunk], times[chunk], history_size))
        back = np.argsort(np.concatenate(rows))
        return Evidence(*(np.concatenate(arrays)[back] for arrays in zip(*parts, strict=True)))

    def is_new(self, users: Index) -> NDArray[np.bool_]:
        """Whether nothing that they rated is visible."""
        return np.append(self.user_count, 0)[users] == 0

    def _describe_new(self, movies: Index, times: Values, size: int) -> Evidence:
        """Evidence of pairs whose users have no visible rating."""
        n, facts = len(movies), list(self.of_movies(movies, times).values())
        # What an empty history has that is not 0: a damped spread, and nothing near in time.
        usual = {"spread": np.sqrt(2.4 / 3), "previous gap": 20.0, "next gap": 20.0}
        user = np.array([usual.get(name, 0.0) for name in self.feature_names()[0]], np.float32)
        zeros = [np.zeros(n)] * 3  # of the movie's raters, none of whom agrees
        return Evidence(
            (self.mean + self.movie_bias[movies]).astype(np.float32),
            np.tile(user, (n, 1)),
            np.stack([*zeros, *facts], axis=1).astype(np.float32),
            np.zeros((n, size, N_CHANNELS), np.float16),
            np.zeros(n, np.int64),
            np.zeros((n, size), np.int32),
        )

    def _describe_user(self, user: int, movies: Index, times: Values, size: int) -> list[Values]:
        """The fields of `Evidence` for pairs of one user."""
        kernels = self.kernels(user, movies, times)
        baseline = (self.mean + self.movie_bias[movies]).astype(np.float32)
        sides = self.user_evidence(user, times, kernels), self.movie_evidence(user, movies, times)
        features = (np.stack(list(of.values()), axis=1).astype(np.float32) for of in sides)
        return [baseline, *features, *self._history(user, kernels, size)]

    def feature_names(self) -> tuple[list[str], list[str]]:
        """What the columns of `Evidence.user` and `Evidence.movie` hold."""
        if not len(self.movies):  # names are read off a history
            nothing, rating = np.zeros(1, np.int64), np.ones(1, np.float32)
            one = Interactions(nothing, nothing, rating, nothing, 1, len(self.side.years))
            return Context(one, self.side).feature_names()
        movies, times, user = np.zeros(1, np.int64), np.zeros(1), int(self.user_count.argmax())
        of_user = self.user_evidence(user, times, self.kernels(user, movies, times))
        return list(of_user), list(self.movie_evidence(user, movies, times))

    def history(self, user: int) -> slice:
        """Where the user's ratings are, in the order of their times."""
        return slice(int(self.start[user]), int(self.start[user + 1]))

    def deviations(self, user: int) -> tuple[float, NDArray[np.float32]]:
        """The user's damped mean deviation, and each rating's deviation from it."""
        deviation = self.deviation[self.history(user)].astype(np.float32)
        mean = float(deviation.sum() / (len(deviation) + USER_DAMPING))
        return mean, deviation - np.float32(mean)

    def kernels(self, user: int, movies: Index, times: Values) -> Arrays:
        """How near each pair is to each rating of the user's history, ``(pairs, history)`` each.

        ``co-rated`` = n_ij / sqrt((n_i + 10) (n_j + 9)) with n_ij users who rated both movies;
        ``agree`` = sum_v residual_vi taste_vj / (n_ij + 15); ``genre``, the cosine of the genres;
        ``year`` = exp(-|years| / 5); ``session`` = exp(-gap / 10 min); ``gap``, seconds, signed.
        """
        rows = self.history(user)
        rated = self.movies[rows]
        gap = times[:, None] - self.times[rows]
        both, product = (
            (left[movies] @ right[rated].T).toarray()
            for left, right in ((self.seen, self.seen), (self.residual, self.taste))
        )
        size = (self.movie_count[movies][:, None] + 10) * (self.movie_count[rated] + 9)
        years = self.side.years[movies][:, None] - self.side.years[rated]
        return {
            "gap": gap.astype(np.float32),
            "session": _decay(gap, TIME_SCALES[SESSION]),
            "co-rated": both / np.sqrt(size).astype(np.float32),
            "agree": product / (both + 15),
            "genre": self.side.genres[movies] @ self.side.genres[rated].T,
            "year": np.exp(-np.abs(years) / 5),
        }

    def user_evidence(self, user: int, times: Values, kernels: Arrays) -> Arrays:
        """What the user's other ratings say; ``(pairs,)`` each, in rating units or logs of mass."""
        mean, deviation = self.deviations(user)
        n = len(deviation)
        spread = np.sqrt((deviation.var() * n + 2.4) / (n + 3))
        usual = {"mean": mean, "count": np.log1p(n), "spread": spread}
        evidence: Arrays = {k: np.full(len(times), v) for k, v in usual.items()}
        for name, weights, null, factor in time_heads(kernels):
            value, mass = _attend(weights, deviation, null)
            evidence |= {name: value, f"{name} mass": np.log1p(factor * mass)}
        evidence |= self._neighbours(user, times, deviation)
        for name, weights, null, factor in content_heads(kernels):
            value, mass = _attend(weights, deviation, null)
            evidence |= {name: value, f"{name} mass": np.log1p(factor * mass)}
        evidence["agree, signed"] = kernels["agree"] @ deviation / (n + 30) * 10
        evidence["co-rated sum"] = np.log1p(kernels["co-rated"].sum(axis=1))
        return evidence

    def _neighbours(self, user: int, times: Values, deviation: Values) -> Arrays:
        """The ratings just before and just after, and where in the history the time lies."""
        history = self.times[self.history(user)]
        n = len(history)
        before = np.searchsorted(history, times, "right") - 1
        after = np.searchsorted(history, times, "left")
        evidence: Arrays = {"position": after / n}
        for name, entry in (("previous", before), ("next", after)):
            exists, entry = (entry >= 0) & (entry < n), np.clip(entry, 0, n - 1)
            gap = np.log1p(np.abs(times - history[entry]))
            evidence[name] = np.where(exists, deviation[entry], 0.0)
            evidence[f"{name} gap"] = np.where(exists, gap, 20.0)
        return evidence

    def movie_evidence(self, user: int, movies: Index, times: Values) -> Arrays:
        """What the movie's other ratings say, and what the movie is; ``(pairs,)`` each."""
        rated = self.movies[self.history(user)]
        shared = self.seen[rated].sum(axis=0)  # movies that each user shares with this one
        product = self.deviations(user)[1] @ self.taste[rated]
        product[user] = 0.0
        agreement = product / (shared + 15)
        overlap = shared / np.sqrt((self.user_count[user] + 20.0) * (self.user_count + 20.0))
        seen, residual = self.seen[movies], self.residual[movies]
        weight = np.maximum(agreement, 0)
        return {
            "raters who agree": residual @ weight / (seen @ weight + 0.3),
            "raters, signed": residual @ agreement / (self.movie_count[movies] + 5) * 5,
            "raters who overlap": residual @ overlap / (seen @ overlap + 0.3),
            **self.of_movies(movies, times),
        }

    def of_movies(self, movies: Index, times: Values) -> Arrays:
        """The part of :meth:`movie_evidence` that is the same for all users."""
        count, year = self.movie_count[movies], self.side.years[movies]
        # What is asked of later than all that is visible is nothing that training has seen.
        date = np.minimum(times, self.newest) / YEAR + 1970
        genres = self.side.genres[movies]
        return {
            "count": np.log1p(count),
            "bias": self.movie_bias[movies],
            "spread": self.movie_spread[movies],
            "year": (year - 1990) / 20,
            "age": np.log1p(np.maximum(date - year, 0)),
            "date": date - 2005,
            **{f"genre {k}": genres[:, k] for k in range(genres.shape[1])},
        }

    def _history(self, user: int, kernels: Arrays, size: int) -> tuple[Values, ...]:
        """Channels, count and positions of the most relevant ratings of the history."""
        n_pairs, n = kernels["gap"].shape
        count = min(size, n)
        key = relevance(kernels)
        top = np.argpartition(-key, count - 1, axis=1)[:, :count]
        top.sort(axis=1)
        kernel = {name: np.take_along_axis(k, top, axis=1) for name, k in kernels.items()}
        filled = entries(kernel, self.deviations(user)[1][top])
        channels = np.zeros((n_pairs, size, N_CHANNELS), np.float16)
        channels[:, :count] = filled
        positions = np.zeros((n_pairs, size), np.int32)
        positions[:, :count] = self.start[user] + top
        return channels, np.full(n_pairs, count), positions


Heads = Iterator[tuple[str, Values, float, float]]


def time_heads(kernels: Arrays) -> Heads:
    """Attention heads with a fixed kernel in time: name, weights, null entry, factor of the mass.

    Weights are ``(pairs, history)``; a head says :func:`_attend` and ``log(1 + factor mass)``.
    """
    for scale in TIME_SCALES:
        yield f"time {scale:g}", _decay(kernels["gap"], scale), 1.5, 1.0


def content_heads(kernels: Arrays) -> Heads:
    """As :func:`time_heads`, of movies that the same people rated, of the same genres, ..."""
    rated, genre, session = kernels["co-rated"], kernels["genre"], kernels["session"]
    yield "co-rated", rated**2, 0.05, 10.0
    yield "agree", np.maximum(kernels["agree"], 0), 0.3, 10.0
    yield "genre", genre**4, 3.0, 10.0
    yield "year", kernels["year"], 3.0, 10.0
    yield "genre, session", genre**2 * session, 1.5, 10.0
    yield "co-rated, session", rated * session, 0.3, 10.0
    yield "co-rated, genre", rated * genre, 0.5, 10.0


def relevance(kernels: Arrays) -> Index:
    """By which the ratings are chosen that the learned attention sees, ``(pairs, history)``."""
    near = kernels["session"] + 3 * kernels["co-rated"] + 0.5 * kernels["genre"] ** 2
    near = near + 0.2 * np.maximum(kernels["agree"], 0)
    # Rounded and made distinct, so that ties do not hang on the last bits of the sums.
    n = near.shape[1]
    return np.rint(1e5 * near).astype(np.int64) * n - np.arange(n)


def entries(kernels: Arrays, deviation: Values) -> Values:
    """What is said of each rating of the history, ``(pairs, history, N_CHANNELS)``."""
    gap = kernels["gap"]
    filled = (
        deviation,
        np.log1p(np.abs(gap)) / 10,
        _decay(gap, TIME_SCALES[1]),
        np.sign(gap),
        3 * kernels["co-rated"],
        2 * kernels["agree"],
        kernels["genre"],
        kernels["year"],
    )
    return np.stack(filled, axis=2)


def _decay(gap: Values, scale: float) -> NDArray[np.float32]:
    """``exp(-|gap| / scale)``."""
    return np.exp(-np.abs(gap).astype(np.float32) / np.float32(scale))


def _attend(weights: Values, values: Values, null: float) -> tuple[Values, Values]:
    """``sum_j w_j v_j / (sum_j w_j + null)`` and the mass ``sum_j w_j`` of each row.

    The null entry holds the value 0; it takes the weight where nothing is near.
    """
    mass = weights.sum(axis=1)
    return weights @ values / (mass + null), mass


def in_time(data: Interactions) -> Interactions:
    """The ratings in the order of users and times; those of a user at one time keep theirs."""
    step = np.diff(data.users)
    if ((step > 0) | ((step == 0) & (np.diff(data.timestamps) >= 0))).all():
        return data
    return data.take(np.lexsort((data.timestamps, data.users)))


def folds_of(n: int, folds: int, seed: int) -> Index:
    """The random fold, from 0 to ``folds - 1``, of each of `n` ratings; sizes differ by one."""
    return np.random.default_rng(seed).permutation(n) % folds


def elapsed_of(data: Interactions, generator: np.random.Generator) -> Values:
    """Share of a user's ratings that came before each, ``(len(data),)``; ties are drawn."""
    order = np.lexsort((generator.random(len(data)), data.timestamps, data.users))
    count = np.bincount(data.users, minlength=data.n_users)
    rank = np.empty(len(data))
    rank[order] = np.arange(len(data)) - (np.cumsum(count) - count)[data.users[order]]
    return rank / count[data.users]


def episodes(
    data: Interactions, folds: int, cuts: Sequence[float], seed: int
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """What is visible and what is hidden in each training episode.

    First `folds` random episodes, each of which hides one fold. Then, for each cut c, the users
    are dealt into `folds` groups; an episode cuts the histories of one group at the fraction c,
    hides the following quarter of c, and drops what comes later; other users stay visible. The last
    episode hides all ratings of one group of users, who are new. The two masks, ``(len(data),)``,
    are disjoint, and neither is empty.
    """
    generator = np.random.default_rng([seed, 1])
    fold = folds_of(len(data), folds, seed)
    elapsed = elapsed_of(data, generator)
    *groups, new = (generator.permutation(data.n_users) % folds for _ in range(len(cuts) + 1))

    def masks() -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        for k in range(folds):
            yield fold != k, fold == k
        for cut, group in zip(cuts, groups, strict=True):
            later, following = elapsed >= cut, elapsed < 1.25 * cut
            for k in range(folds):
                chosen = later & (group[data.users] == k)
                yield ~chosen, chosen & following
        yield new[data.users] != 0, new[data.users] == 0

    return ((visible, hidden) for visible, hidden in masks() if visible.any() and hidden.any())


class EvidenceRecommender(HistoryRecommender):
    """A recommender that sees each pair from a context that does not hold its rating.

    Subclasses call `prepare` in `_fit`, and describe pairs by the contexts that `_contexts` gives.
    `data` are the ratings of train, `context` is theirs; `side` has as columns the movies of train,
    those that only the frame of movies knows, and a last one for all others.
    """

    folds: int
    seed: int

    def _predict_pairs(self, pairs: pd.DataFrame) -> NDArray[np.float64]:
        """There is evidence of every pair: of what is unknown there is less."""
        users, known, _, _ = self.positions(pairs)
        columns = self._columns(pairs["movieId"].to_numpy())
        return self._predict(
            np.where(known, users, self.data.n_users), columns, self._stamps(pairs)
        )

    def evidence(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """What the fixed kernels say of pairs, before any network reads it.

        One row a pair, with the index of `pairs`; columns are (side, name) of
        :meth:`Context.user_evidence` and :meth:`Context.movie_evidence`. ValueError where nothing
        that the user rated is visible, but at most the rating of the pair itself.
        """
        pairs = check_pairs(pairs, source="pairs")
        users, known, _, _ = self.positions(pairs)
        movies = self._columns(pairs["movieId"].to_numpy())
        times = self._times(users, self._stamps(pairs))
        sides = zip(("user", "movie"), self.context.feature_names(), strict=True)
        names = [(side, name) for side, of_side in sides for name in of_side]
        values = np.empty((len(pairs), len(names)))
        for context, rows in self._contexts(users, movies):
            blind = rows[~known[rows] | (context.user_count[users[rows]] == 0)]
            if len(blind):
                user = pairs["userId"].iloc[blind[0]]
                raise ValueError(f"pairs: user {user} has no other rating in train, so no evidence")
            found = context.describe(users[rows], movies[rows], times[rows], 1)
            values[rows] = np.concatenate([found.user, found.movie], axis=1)
        columns = pd.MultiIndex.from_tuples(names, names=["side", "name"])
        return pd.DataFrame(values, columns=columns, index=pairs.index)

    def prepare(self, data: Interactions, movies: pd.DataFrame | None) -> None:
        """Take the ratings of train and, where there is one, the frame of movies."""
        self._take_side_information(movies)
        self._take_ratings(data)

    def _take_side_information(self, movies: pd.DataFrame | None) -> None:
        movies = pd.DataFrame({"movieId": []}) if movies is None else movies
        self._other_ids = np.setdiff1d(movies["movieId"].to_numpy(np.int64), self.movie_ids)
        n_columns = len(self.movie_ids) + len(self._other_ids) + 1
        column = self._columns(movies["movieId"].to_numpy())
        years: Values = np.full(n_columns, np.nan)
        if "year" in movies:
            known = pd.to_numeric(movies["year"], errors="coerce")
            years[column] = known.to_numpy(dtype=float, na_value=np.nan)
        # An unknown year is the median; where none is known they are all alike and say nothing.
        usual = 1990.0 if np.isnan(years).all() else np.nanmedian(years)
        years = np.where(np.isnan(years), usual, years)
        lists = movies["genres"].tolist() if "genres" in movies else []
        names = sorted({genre for genres in lists for genre in genres})
        genres = np.zeros((n_columns, max(len(names), 1)), np.float32)
        for row, listed in zip(column, lists, strict=False):
            genres[row, [names.index(genre) for genre in listed]] = 1.0
        genres /= np.sqrt(np.maximum(genres.sum(axis=1, keepdims=True), 1.0))
        self.side = SideInformation(genres, years.astype(np.float32))

    def _take_ratings(self, data: Interactions) -> None:
        """Compute `context`, and draw the folds."""
        self.data = replace(data, n_movies=len(self.side.years))
        self._timed = bool(data.timestamps.any())
        self._fold = folds_of(len(data), self.folds, self.seed)
        self.context = Context(self.data, self.side, self._mean)
        latest = np.append(self.context.times, 0.0)[self.context.start[1:] - 1]
        self._latest = np.append(latest, self.context.newest)  # of a new user

    def _contexts(self, users: Index, movies: Index) -> Iterator[tuple[Context, Index]]:
        """The context that each pair is seen from, with the rows of its pairs.

        It is that of all of train or, for a pair of train, that of the folds that it is not in.
        """
        keys = self.data.users * self.data.n_movies + self.data.movies
        wanted = users * self.data.n_movies + movies
        position = np.searchsorted(keys, wanted)
        rated = np.append(keys, -1)[position] == wanted
        fold = np.where(rated, np.append(self._fold, -1)[position], -1)
        for k in np.unique(fold):
            context = self.context
            if k >= 0:
                context = Context(self.data.take(self._fold != k), self.side, self._mean)
            yield context, np.flatnonzero(fold == k)

    def _columns(self, movie_ids: NDArray[Any]) -> Index:
        """The side information's column of each MovieLens id."""
        known = pd.Index(np.concatenate([self.movie_ids, self._other_ids]))
        column = known.get_indexer(pd.Index(movie_ids))
        return np.where(column < 0, len(known), column)

    def _columns_in(self, before: EvidenceRecommender) -> Index:
        """Where each column of the side information was in that of a model with fewer ratings."""
        ids = np.concatenate([self.movie_ids, self._other_ids])
        return np.append(before._columns(ids), len(before.side.years) - 1)

    @staticmethod
    def _stamps(pairs: pd.DataFrame) -> Values | None:
        return pairs["timestamp"].to_numpy() if "timestamp" in pairs else None

    def _times(self, users: NDArray[Any], timestamps: NDArray[Any] | None) -> Values:
        """Seconds of each pair; all 0 where training had no times."""
        if not self._timed:
            return np.zeros(len(users))
        latest = self._latest[users] + 3600.0
        if timestamps is None:
            return latest
        given = np.asarray(timestamps, dtype=float)
        return np.where(np.isnan(given), latest, given)

    def _training_ratings(self) -> Values:
        return self.data.ratings

    def _revise(self, original: Any, user: int, kept: NDArray[np.bool_], ratings: Values) -> None:
        """All evidence is computed from the changed ratings; the moment that is asked of stays."""
        data = replace(self.data, ratings=ratings.astype(np.float32)).take(kept)
        self._take_ratings(data)
        self._fold, self._latest = original._fold[kept], original._latest

    def _observe(self, growth: Growth) -> None:
        """All evidence is computed from all ratings, whose folds are drawn anew."""
        before, new = growth.before, growth.data
        if before._timed and not new.timestamps.any():
            raise ValueError(
                f"ratings have no times, which this {self.name} learned from; add them"
            )
        self._other_ids = np.setdiff1d(before._other_ids, self.movie_ids)
        columns = self._columns_in(before)
        self.side = SideInformation(before.side.genres[columns], before.side.years[columns])
        old = before.data
        merged = (
            growth.merge(growth.users[old.users], new.users),
            growth.merge(growth.movies[old.movies], new.movies),
            growth.merge(old.ratings, new.ratings),
            # Where training had no times, the network cannot read them.
            growth.merge(old.timestamps, new.timestamps * before._timed),
        )
        self._take_ratings(Interactions(*merged, *self._seen.shape))

    def _state(self) -> Arrays:
        return super()._state() | {
            "ratings": self.data.ratings,
            "timestamps": self.data.timestamps,
            "other_ids": self._other_ids,
            "genres": self.side.genres,
            "years": self.side.years,
        }

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        self._other_ids = state["other_ids"]
        self.side = SideInformation(state["genres"], state["years"])
        users, movies = (index.astype(np.int64) for index in self._seen.nonzero())
        known = state["ratings"], state["timestamps"], *self._seen.shape
        self._take_ratings(Interactions(users, movies, *known))
        super()._restore(state, extra)
