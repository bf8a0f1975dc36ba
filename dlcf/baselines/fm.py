"""Bayesian factorisation machines: users and movies, implicit feedback, genres, years and days.

Sampled by `myfm` (Ohtsuki, 2020); predicted here, so that a saved model needs no other library.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from dlcf.models.base import Arrays, Floats, Index, Interactions, Recommender
from dlcf.runtime.environment import optional
from dlcf.runtime.settings import setting

_SECONDS_A_DAY = 86_400
_YEARS = 10  # of release that share a feature
_PAIRS_AT_ONCE = 4096
# "user", "movie" and "day": the index of each rating, and the features, a matrix of each kind.
Parts = dict[str, tuple[Index, list[sparse.csr_matrix]]]


@dataclass(kw_only=True, eq=False)
class FactorizationMachine(Recommender):
    """A factorisation machine of second order (Rendle, 2010, eq. 1) on one-hot user and movie.

    ``r(x) = w_0 + sum_j w_j x_j + sum_{j < l} (v_j . v_l) x_j x_l``, averaged over the samples of
    a Gibbs sampler whose precisions are sampled as well (Freudenthaler, Schmidt-Thieme and Rendle,
    2011), so that nothing is regularised by hand.

    A rating's features are those of its user, of its movie and of its day, ``x = [x_u, x_i, x_t]``.
    With ``a_s = sum_j v_j x_j`` over one of these parts and ``c_s`` all terms inside that part,
    ``r(x) = w_0 + c_u + c_i + c_t + a_u . a_i + a_u . a_t + a_i . a_t`` (as in Rendle's lemma 3.1),
    so that only ``c`` and ``a`` of each user, movie and day are kept and not the features'
    parameters. The mean over samples is exact for ``c``; samples thin only the products.

    Needs `myfm` to fit: ``pip install "dlcf[baselines]"``.

    Parameters
    ----------
    rank
        Length of the feature vectors v.
    sweeps, burn_in
        Gibbs sweeps over all parameters, and the first of them, which do not count.
    samples
        Number of the other sweeps, evenly spaced, that are averaged and stored; all of them where
        there are fewer.
    grouped
        Whether each kind of feature has precisions of its own, or all kinds share theirs. By
        default as :attr:`usually_grouped` of the class: on validation data kinds of their own are
        better with users and movies alone, and worse with implicit feedback.
    seed
        Of the sampler.
    """

    name: ClassVar[str] = "fm"
    rank: int = setting(16, least=1)
    sweeps: int = setting(120, least=1)
    burn_in: int = setting(20, least=0)
    samples: int = setting(100, least=1)
    grouped: bool | None = None
    seed: int = setting(0, least=0)
    usually_grouped: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grouped is None:
            self.grouped = self.usually_grouped
        if self.burn_in >= self.sweeps:
            problem = f"burn_in is {self.burn_in}, sweeps {self.sweeps}"
            raise ValueError(f"{problem}; burn_in must be less than sweeps")

    def _features(self, data: Interactions, movies: pd.DataFrame | None) -> Parts:
        """What a rating consists of."""
        return {
            "user": (data.users, [_one_hot(data.n_users)]),
            "movie": (data.movies, [_one_hot(data.n_movies)]),
        }

    def _fit(self, data: Interactions, validation: Any, movies: pd.DataFrame | None) -> None:
        with optional("myfm", f"{self.name} is fitted"):
            import myfm
        parts = self._features(data, movies)
        tables = {part: sparse.hstack(kinds, "csr") for part, (_, kinds) in parts.items()}
        sizes = [kind.shape[1] for _, kinds in parts.values() for kind in kinds if kind.shape[1]]
        n_samples = min(self.samples, self.sweeps - self.burn_in)
        kept = np.linspace(self.burn_in, self.sweeps - 1, n_samples).astype(int).tolist()
        shape = n_samples, self.rank
        self._vectors = {p: np.empty((t.shape[0], *shape), np.float32) for p, t in tables.items()}
        self._biases = {part: np.zeros(table.shape[0]) for part, table in tables.items()}
        self._intercept = 0.0

        def keep(sweep: int, fitted: Any, *_: Any) -> tuple[bool, None]:
            if sweep not in kept:
                return False, None
            self._intercept += fitted.w0 / n_samples
            first = 0
            for part, table in tables.items():
                rows = slice(first, first + table.shape[1])
                first = rows.stop
                weights, factors = fitted.w[rows], fitted.V[rows]
                vectors = table @ factors
                own = np.square(vectors) - table.power(2) @ np.square(factors)
                self._biases[part] += (table @ weights + own.sum(axis=1) / 2) / n_samples
                self._vectors[part][:, kept.index(sweep)] = vectors / np.sqrt(n_samples)
            return False, None

        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar cannot be switched off
            myfm.MyFMGibbsRegressor(self.rank, random_seed=self.seed).fit(
                None,
                data.ratings.astype(np.float64),
                X_rel=[myfm.RelationBlock(parts[p][0], tables[p]) for p in parts],
                n_iter=self.sweeps,
                n_kept_samples=1,
                group_shapes=sizes if self.grouped else [sum(sizes)],
                callback=keep,
            )
        self._vectors = {part: v.reshape(len(v), -1) for part, v in self._vectors.items()}

    def _predict(self, users: Index, movies: Index, timestamps: Index | None) -> Floats:
        ratings = self._intercept + self._biases["movie"][movies]
        for first in range(0, len(users), _PAIRS_AT_ONCE):
            rows = slice(first, first + _PAIRS_AT_ONCE)
            given = None if timestamps is None else timestamps[rows]
            bias, vectors = self._user_side(users[rows], given)
            product = np.einsum("nr,nr->n", vectors, self._vectors["movie"][movies[rows]])
            ratings[rows] += bias + product
        return ratings

    def _score(self, users: Index, at: float | None) -> NDArray[np.float32]:
        catalogue = slice(len(self.movie_ids))
        when = None if at is None else np.full(len(users), int(at))
        bias, vectors = self._user_side(users, when)
        product = vectors @ self._vectors["movie"][catalogue].T
        ratings = self._intercept + bias[:, None] + self._biases["movie"][catalogue] + product
        return ratings.astype(np.float32)

    def _user_side(
        self, users: Index, timestamps: Index | None
    ) -> tuple[Floats, NDArray[np.float32]]:
        """All that a rating holds beside its movie: c, ``(n,)``, and a, ``(n, rank * samples)``."""
        return self._biases["user"][users], self._vectors["user"][users]

    def _state(self) -> Arrays:
        biases = {f"bias.{part}": bias for part, bias in self._biases.items()}
        vectors = {f"vectors.{part}": table for part, table in self._vectors.items()}
        return {"intercept": np.array(self._intercept), **biases, **vectors}

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        self._intercept = float(state["intercept"])
        self._biases, self._vectors = (
            {key.removeprefix(kind): value for key, value in state.items() if key.startswith(kind)}
            for kind in ("bias.", "vectors.")
        )


@dataclass(kw_only=True, eq=False)
class ImplicitFactorizationMachine(FactorizationMachine):
    """Besides user and movie, who rated what in training, whatever the ratings.

    The user's features also hold ``|N(u)|^-1/2`` for each movie of N(u), those that the user
    rated, as in SVD++ (Koren, 2008, eq. 15), and the movie's features ``|N(i)|^-1/2`` for each
    user of N(i), those who rated it. Parameters as for :class:`FactorizationMachine`.
    """

    name: ClassVar[str] = "fm-implicit"
    usually_grouped: ClassVar[bool] = False

    def _features(self, data: Interactions, movies: pd.DataFrame | None) -> Parts:
        parts = super()._features(data, movies)
        rated = data.matrix().astype(np.float64)
        parts["user"][1].append(_normalized(rated))
        parts["movie"][1].append(_normalized(rated.T.tocsr()))
        return parts


@dataclass(kw_only=True, eq=False)
class SideFactorizationMachine(ImplicitFactorizationMachine):
    """Besides implicit feedback, the movie's genres and year and the day of the rating.

    Whom and what training does not hold is predicted from what is known of it, the rest of its
    features being zeros: a new user from the movie and the day, and a movie without ratings that
    the frame of movies knows from its genres, its year, the user and the day. Only movies that are
    in neither are left to the biases. A day (UTC) without a rating in training has no features.
    Where no `timestamp` is given, in the ranking too, the day is that of the user's last rating.

    Fitted without timestamps or without `movies`, the model leaves the day or the movie's features
    out. There is a feature for each ten years of release: one a year, one for five years, and the
    year as a number were worse on validation data. Parameters as for
    :class:`FactorizationMachine`.
    """

    name: ClassVar[str] = "fm-side"

    def _predict_pairs(self, pairs: pd.DataFrame) -> Floats:
        """As the base's, but new users and movies are predicted by their features, as above."""
        ratings = super()._predict_pairs(pairs)
        users, known_user, movies, known_movie = self.positions(pairs)
        other = pd.Index(self._other_ids).get_indexer(pd.Index(pairs["movieId"]))
        new = (known_movie & ~known_user) | (other >= 0)
        if new.any():
            users = np.where(known_user, users, len(self.user_ids))[new]
            movies = np.where(known_movie, movies, len(self.movie_ids) + other)[new]
            stamps = pairs["timestamp"].to_numpy()[new] if "timestamp" in pairs else None
            ratings[new] = self._predict(users, movies, stamps)
        return ratings

    def _features(self, data: Interactions, movies: pd.DataFrame | None) -> Parts:
        parts = super()._features(data, movies)
        movies = pd.DataFrame({"movieId": []}) if movies is None else movies
        self._other_ids = np.setdiff1d(movies["movieId"].to_numpy(np.int64), self.movie_ids)
        movies = movies.set_index("movieId").reindex([*self.movie_ids, *self._other_ids])
        if "genres" in movies:
            parts["movie"][1].append(_multi_hot(movies["genres"]))
        if "year" in movies:
            years = pd.to_numeric(movies["year"], errors="coerce")
            parts["movie"][1].append(_multi_hot(years // _YEARS))
        self._days: Index = np.empty(0, dtype=np.int64)
        self._last_day: Index = np.zeros(data.n_users + 1, dtype=np.int64)
        if data.timestamps.any():
            self._days, day = np.unique(data.timestamps // _SECONDS_A_DAY, return_inverse=True)
            parts["day"] = day, [_one_hot(len(self._days))]
            np.maximum.at(self._last_day, data.users, day)
            self._last_day[-1] = len(self._days)
        # Behind what training holds, rows of zeros: a new user, movies without ratings, no day.
        rows = {"user": data.n_users + 1, "movie": len(movies), "day": len(self._days) + 1}
        for part, (_, kinds) in parts.items():
            for kind in kinds:
                kind.resize(rows[part], kind.shape[1])
        return parts

    def _user_side(
        self, users: Index, timestamps: Index | None
    ) -> tuple[Floats, NDArray[np.float32]]:
        biases, vectors = super()._user_side(users, timestamps)
        if len(self._days) == 0:
            return biases, vectors
        day = self._last_day[users]
        if timestamps is not None:
            # -1 for a day without a rating in training: the last row, which is of no day.
            day = pd.Index(self._days).get_indexer(pd.Index(timestamps // _SECONDS_A_DAY))
        of_day = self._vectors["day"][day]
        biases = biases + self._biases["day"][day] + np.einsum("nr,nr->n", vectors, of_day)
        return biases, vectors + of_day

    def _state(self) -> Arrays:
        side = {"days": self._days, "last_day": self._last_day, "other_ids": self._other_ids}
        return super()._state() | side

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        super()._restore(state, extra)
        self._days, self._last_day = state["days"], state["last_day"]
        self._other_ids = state["other_ids"]


def _one_hot(size: int) -> sparse.csr_matrix:
    return sparse.identity(size, format="csr", dtype=np.float64)


def _normalized(rated: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows of length 1: every entry of a row with n entries is ``n^-1/2``."""
    entries = np.maximum(np.diff(rated.indptr), 1)
    return sparse.csr_matrix(sparse.diags(entries**-0.5) @ rated)


def _multi_hot(values: pd.Series) -> sparse.csr_matrix:
    """A unit row for each element, which is a value, a list or none; a column for each value."""
    listed = values.reset_index(drop=True).explode().dropna()
    names, column = np.unique(listed.to_numpy(), return_inverse=True)
    entries, shape = (listed.index, column), (len(values), len(names))
    return _normalized(sparse.csr_matrix((np.ones(len(listed)), entries), shape=shape))
