"""The contract that every model keeps: fit, predict, score, recommend, save, load."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from dlcf.ratings import check_ids, check_movies, check_pairs, check_ratings, rating_scale
from dlcf.runtime.frames import Rows
from dlcf.runtime.saving import write_folder
from dlcf.runtime.settings import check_settings, whole

FORMAT = 1
USER_DAMPING, MOVIE_DAMPING = 5.0, 3.0  # of the biases that serve as a fallback
_USERS_AT_ONCE = 64
Arrays = dict[str, NDArray[Any]]
Index = NDArray[np.int64]
Floats = NDArray[np.float64]
Known = NDArray[np.bool_]


@dataclass(frozen=True)
class Interactions:
    """Ratings with contiguous indices, as models see them; a row of each column is a rating."""

    users: Index  # rows of the model's `user_ids`
    movies: Index  # rows of its `movie_ids`
    ratings: NDArray[np.float32]  # on the data's scale
    timestamps: Index  # seconds UTC; zeros where the frame had none
    n_users: int  # sizes of the two vocabularies
    n_movies: int

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: NDArray[Any]) -> Interactions:
        """The given rows (positions or mask), with the same vocabularies."""
        columns = self.users, self.movies, self.ratings, self.timestamps
        users, movies, ratings, timestamps = (column[rows] for column in columns)
        return Interactions(users, movies, ratings, timestamps, self.n_users, self.n_movies)

    def matrix(self) -> sparse.csr_matrix:
        """Users x movies in CSR form, float32, 1 where there is a rating."""
        ones, shape = np.ones(len(self), dtype=np.float32), (self.n_users, self.n_movies)
        return sparse.csr_matrix((ones, (self.users, self.movies)), shape=shape)


@dataclass(frozen=True)
class Growth:
    """From a model, `before`, to the same with more ratings, `data`.

    `users` and `movies` say where the entries of the vocabularies of `before` stand now; `order`
    sorts the ratings of `before`, followed by the new ones, by user and movie.
    """

    before: Any
    users: Index
    movies: Index
    data: Interactions
    order: Index

    def merge(self, old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
        """A value of each rating, in the order of the model's ratings now."""
        return np.concatenate([old, new])[self.order]


class Recommender(ABC):
    """A model of ratings that can also rank; subclasses implement `_fit`, and most `_predict`.

    A model is a dataclass whose fields are its hyper-parameters. Every model learns user and movie
    biases besides, which serve what it cannot:

    - an unknown user is predicted the global mean plus the movie's bias and is recommended the
      movies with the most ratings;
    - an unknown movie is predicted the global mean plus the user's bias and is never recommended.

    RuntimeError where a model is asked for what it would know only once it is fitted.
    """

    name: ClassVar[str]

    user_ids: Index
    movie_ids: Index
    movie_counts: Index  # training ratings of each movie
    scale: tuple[float, float]
    titles: list[str] | None
    user_damping, movie_damping = USER_DAMPING, MOVIE_DAMPING  # of the biases

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def hyper_parameters(cls) -> list[str]:
        """Names of the keyword arguments that the model takes."""
        return [field.name for field in fields(cls)]  # type: ignore[arg-type]

    @property
    def config(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return {name: getattr(self, name) for name in self.hyper_parameters()}

    def fit(
        self,
        train: pd.DataFrame,
        validation: pd.DataFrame | None = None,
        movies: pd.DataFrame | None = None,
    ) -> Recommender:
        """Learn from `train`; returns the model itself.

        ValueError where a frame is empty or wrong names the column, the row and the remedy; a model
        that was fitted before stays as it was.

        Parameters
        ----------
        train
            Ratings: `userId`, `movieId`, `rating`, and `timestamp` for models that use time.
        validation
            Ratings to choose epochs and learning rates on. Where it is None, a model that needs
            one holds out part of `train`.
        movies
            Titles and genres, for models and explanations that use them.
        """
        train = check_ratings(train, source="train")
        scale = rating_scale(train)
        if validation is not None:
            validation = check_ratings(validation, source="validation", scale=scale)
        movies = None if movies is None else check_movies(movies)
        fitted = copy.copy(self)
        fitted._learn(train, validation, movies, scale)
        self.__dict__ = fitted.__dict__  # only now: what failed would leave half of a model
        return self

    def _learn(
        self,
        train: pd.DataFrame,
        validation: pd.DataFrame | None,
        movies: pd.DataFrame | None,
        scale: tuple[float, float],
    ) -> None:
        """Vocabularies and biases, then what the model learns; the frames are checked."""
        self.scale = scale
        self.user_ids = np.unique(train["userId"].to_numpy())
        self.movie_ids = np.unique(train["movieId"].to_numpy())
        self.titles = None
        if movies is not None and "title" in movies:
            titles = movies.set_index("movieId")["title"]
            self.titles = titles.reindex(self.movie_ids, fill_value="").tolist()
        data = self._interactions(train)
        self._seen = data.matrix()
        self._seen.sort_indices()
        self.movie_counts = np.bincount(data.movies, minlength=data.n_movies)
        self._mean, self._user_bias, self._movie_bias = fit_biases(data)
        self._fit(data, None if validation is None else self._interactions(validation), movies)
        for name, array in self._state().items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                problem = f"{self.name}: {name} is not finite after training"
                raise ValueError(f"{problem}; lower the learning rate or regularise more")

    def predict(self, pairs: pd.DataFrame) -> Floats:
        """Predicted ratings, float64 ``(n,)``, inside the scale; unknown ids are served.

        `pairs` is a frame with `userId`, `movieId` and, for models that use time, `timestamp`.
        """
        self._check_fitted()
        ratings = self._predict_pairs(check_pairs(pairs, source="pairs"))
        if not np.isfinite(ratings).all():
            raise ValueError(f"{self.name} predicts what is not finite; fit the model again")
        return np.clip(ratings, *self.scale)

    def _predict_pairs(self, pairs: pd.DataFrame) -> Floats:
        """:meth:`predict` of a frame that is checked; a model may serve the unknown otherwise."""
        users, known_user, movies, known_movie = self.positions(pairs)
        user_bias = np.where(known_user, self._user_bias[users], 0.0)
        movie_bias = np.where(known_movie, self._movie_bias[movies], 0.0)
        ratings = self._mean + user_bias + movie_bias
        known = known_user & known_movie
        if known.any():
            time = pairs["timestamp"].to_numpy()[known] if "timestamp" in pairs else None
            ratings[known] = self._predict(users[known], movies[known], time)
        return ratings

    def score_all(
        self, user_ids: Sequence[int] | NDArray[Any], at: float | None = None
    ) -> NDArray[np.float32]:
        """Ranking scores of the whole catalogue; they need not be ratings.

        float32 ``(len(user_ids), len(self.movie_ids))``, columns in `movie_ids` order. `user_ids`
        are MovieLens'; unknown ones get the number of ratings of each movie. `at` is the moment
        that is asked of, in seconds UTC, for a model that uses time; by default it is shortly after
        the latest rating that the model knows of the user.
        """
        self._check_fitted()
        if at is not None and not np.isfinite(at):
            raise ValueError(f"at is {at}; give seconds since 1970, or leave it out for now")
        users, known = _positions(self.user_ids, check_ids(user_ids, "userId"))
        scores = np.empty((len(users), len(self.movie_ids)), dtype=np.float32)
        scores[~known] = self.movie_counts
        if known.any():
            scores[known] = self._score(users[known], at)
        if not np.isfinite(scores).all():
            raise ValueError(f"{self.name} gives scores that are not finite; change its settings")
        return scores

    def recommend(
        self, user_id: int, k: int = 10, exclude_seen: bool = True, at: float | None = None
    ) -> pd.DataFrame:
        """The best `k` movies for a user: `movieId` and `score`, best first.

        There are fewer than `k` rows where the catalogue is short. `at` is as in `score_all`.
        """
        return self.recommend_all([user_id], k, exclude_seen, at).drop(columns="userId")

    def recommend_all(
        self,
        user_ids: Sequence[int] | NDArray[Any] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        at: float | None = None,
    ) -> pd.DataFrame:
        """The lists of :meth:`recommend` for many users, which takes less than one after another.

        `userId`, `movieId` and `score`, in the order of `user_ids`, each list best first; by
        default of all users that the model was fitted on.
        """
        self._check_fitted()
        k = whole("k", k, 1)
        wanted = self.user_ids if user_ids is None else check_ids(user_ids, "userId")
        lists = []
        for first in range(0, max(len(wanted), 1), _USERS_AT_ONCE):
            block = wanted[first : first + _USERS_AT_ONCE]
            scores = self.score_all(block, at)
            if exclude_seen:
                scores[self.seen(block)] = -np.inf
            columns = top_k(scores, k)
            best = np.take_along_axis(scores, columns, axis=1)
            row, place = np.nonzero(best > -np.inf)
            movies, score = self.movie_ids[columns[row, place]], best[row, place]
            lists.append(pd.DataFrame({"userId": block[row], "movieId": movies, "score": score}))
        return pd.concat(lists, ignore_index=True)

    def seen(self, user_ids: Sequence[int] | NDArray[Any]) -> tuple[Index, Index]:
        """What the users rated in training, as (position in `user_ids`, column) index arrays."""
        self._check_fitted()
        users, known = _positions(self.user_ids, check_ids(user_ids, "userId"))
        row, column = self._seen[users[known]].nonzero()
        return np.flatnonzero(known)[row], column.astype(np.int64)

    def positions(self, pairs: pd.DataFrame) -> tuple[Index, Known, Index, Known]:
        """Rows of users in `user_ids` (0 of unknown ones), whether known; the same of movies."""
        self._check_fitted()
        rows = Rows(pairs, "pairs")
        users = _positions(self.user_ids, rows.whole_numbers("userId"))
        return *users, *_positions(self.movie_ids, rows.whole_numbers("movieId"))

    def title(self, movie_id: int) -> str | None:
        """The movie's title; None where the model was fitted without titles or without it."""
        self._check_fitted()
        position, known = _positions(self.movie_ids, check_ids([movie_id], "movieId"))
        if self.titles is None or not known[0]:
            return None
        return self.titles[position[0]] or None

    def explain(self, user_id: int, movie_id: int, at: float | None = None) -> Any:
        """Why the model predicts what it does; NotImplementedError where it cannot say."""
        problem = f"{self.name} has no attention weights to explain a recommendation with"
        raise NotImplementedError(f"{problem}; use a model such as deepcf")

    def revised(self, user_id: int, changes: Mapping[int, float | None]) -> Recommender:
        """This model with some of a user's ratings changed; NotImplementedError where it cannot."""
        raise NotImplementedError(self._no_history())

    def ratings_of(self, user_id: int) -> pd.DataFrame:
        """What the model knows that a user rated; NotImplementedError where it keeps no ratings."""
        raise NotImplementedError(self._no_history())

    def observe(self, ratings: pd.DataFrame) -> Recommender:
        """A model that also knows these ratings, of known or new users; nothing is trained.

        New users and movies join the vocabularies. Biases are damped means that go on with the
        residuals of the new ratings; what is averaged for a user, or left out of a list, counts
        them; what was learned from all ratings together stays. This model is left as it is.

        ValueError where the frame is wrong or holds a pair that is known already;
        NotImplementedError where a model knows ratings only through training.
        """
        self._check_fitted()
        ratings = check_ratings(ratings, source="ratings", scale=self.scale)
        model = copy.copy(self)
        model.user_ids = np.union1d(self.user_ids, ratings["userId"])
        model.movie_ids = np.union1d(self.movie_ids, ratings["movieId"])
        users = np.searchsorted(model.user_ids, self.user_ids)
        movies = np.searchsorted(model.movie_ids, self.movie_ids)
        data = model._interactions(ratings)
        rated_by, rated = self._seen.nonzero()
        old = users[rated_by] * data.n_movies + movies[rated]
        cells = np.concatenate([old, data.users * data.n_movies + data.movies])
        order = np.argsort(cells, kind="stable")
        row, column = np.divmod(cells[order], data.n_movies)
        twice = np.flatnonzero((np.diff(row) == 0) & (np.diff(column) == 0))
        if len(twice):
            user, movie = model.user_ids[row[twice[0]]], model.movie_ids[column[twice[0]]]
            problem = f"ratings: user {user} rated movie {movie} before"
            raise ValueError(f"{problem}; give new ratings only")
        ones, shape = np.ones(len(cells), dtype=np.float32), (data.n_users, data.n_movies)
        model._seen = sparse.csr_matrix((ones, (row, column)), shape=shape)
        user_bias = spread(self._user_bias, users, data.n_users)
        movie_bias = spread(self._movie_bias, movies, data.n_movies)
        user_counts = spread(np.diff(self._seen.indptr), users, data.n_users)
        movie_counts = spread(self.movie_counts, movies, data.n_movies)
        stars = data.ratings - np.float64(self._mean)
        of_users = data.users, stars - movie_bias[data.movies]
        of_movies = data.movies, stars - user_bias[data.users]
        model._user_bias = _gone_on(user_bias, user_counts + self.user_damping, *of_users)
        model._movie_bias = _gone_on(movie_bias, movie_counts + self.movie_damping, *of_movies)
        model.movie_counts = movie_counts + np.bincount(data.movies, minlength=data.n_movies)
        if self.titles is not None:
            titles = np.array(self.titles, dtype=object)
            model.titles = spread(titles, movies, data.n_movies, "").tolist()
        model._observe(Growth(self, users, movies, data, order))
        return model

    def save(self, folder: str | Path) -> Path:
        """Write `model.json` and a safetensors file; returns the folder, which appears whole.

        A model that was there before is replaced only once the new one is written.
        """
        self._check_fitted()
        learned: Arrays = {
            "user_ids": self.user_ids,
            "movie_ids": self.movie_ids,
            "seen_indptr": self._seen.indptr,
            "seen_indices": self._seen.indices,
            "movie_count": self.movie_counts,
            "mean": np.array(self._mean),
            "user_bias": self._user_bias,
            "movie_bias": self._movie_bias,
        }
        learned |= {f"model.{key}": value for key, value in self._state().items()}
        description = {
            "format": FORMAT,
            "name": self.name,
            "config": self.config,
            "scale": self.scale,
            "titles": self.titles,
            "extra": self._extra(),
        }
        return write_folder(folder, learned, description)

    def restore(self, arrays: Arrays, description: Mapping[str, Any]) -> None:
        """Take back what :meth:`save` wrote; :func:`dlcf.load_model` calls it on a new model."""
        self.user_ids, self.movie_ids = arrays["user_ids"], arrays["movie_ids"]
        self.scale = (description["scale"][0], description["scale"][1])
        self.titles = description["titles"]
        indices, indptr = arrays["seen_indices"], arrays["seen_indptr"]
        ones = np.ones(len(indices), dtype=np.float32)
        shape = len(self.user_ids), len(self.movie_ids)
        self._seen = sparse.csr_matrix((ones, indices, indptr), shape=shape)
        self.movie_counts = arrays["movie_count"]
        self._mean = float(arrays["mean"])
        self._user_bias, self._movie_bias = arrays["user_bias"], arrays["movie_bias"]
        prefix = "model."
        state = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        self._restore(state, description["extra"])

    # ------------------------------------------------------------------ what a model implements

    @abstractmethod
    def _fit(
        self, data: Interactions, validation: Interactions | None, movies: pd.DataFrame | None
    ) -> None:
        """Learn from indexed ratings; `validation` holds only known users and movies."""

    def _predict(self, users: Index, movies: Index, timestamps: Index | None) -> Floats:
        """Ratings of known pairs, clipped to the scale afterwards; by default the biases'."""
        return self._mean + self._user_bias[users] + self._movie_bias[movies]

    def _score(self, users: Index, at: float | None) -> NDArray[np.float32]:
        """Of known users, `at` as in :meth:`score_all`; by default the predicted ratings."""
        n_movies = len(self.movie_ids)
        pairs_of_user = np.repeat(users, n_movies), np.tile(np.arange(n_movies), len(users))
        when = None if at is None else np.full(n_movies * len(users), int(at))
        ratings = self._predict(*pairs_of_user, when)
        return ratings.reshape(len(users), n_movies).astype(np.float32)

    def _observe(self, growth: Growth) -> None:
        """Take in the new ratings; vocabularies, `_seen`, counts and biases have them already."""
        problem = f"{self.name} knows ratings only through training"
        raise NotImplementedError(f"{problem}; fit it again on all of them")

    def _state(self) -> Arrays:
        """What `_fit` learned, as named arrays."""
        return {}

    def _extra(self) -> dict[str, Any]:
        """What `_fit` learned besides, as JSON values."""
        return {}

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:  # noqa: B027
        """Take back what `_state` and `_extra` gave; a model that learns no more has nothing to."""

    # ---------------------------------------------------------------------------------- helpers

    def _check_fitted(self) -> None:
        if not hasattr(self, "movie_ids"):
            raise RuntimeError(f"this {self.name} model is not fitted yet; call fit(train) first")

    def _no_history(self) -> str:
        return (
            f"{self.name} keeps no ratings of its users, only what it learned from them; fit it "
            "again on a changed train, or use deepcf-plus, item-knn or ease"
        )

    def _interactions(self, ratings: pd.DataFrame) -> Interactions:
        """The ratings of known pairs, in (user, movie) order: the frame's order does not matter."""
        users, known_user, movies, known_movie = self.positions(ratings)
        stars = ratings["rating"].to_numpy(np.float32)
        time = np.zeros(len(ratings), dtype=np.int64)
        if "timestamp" in ratings:
            time = ratings["timestamp"].to_numpy(np.int64)
        n_users, n_movies = len(self.user_ids), len(self.movie_ids)
        data = Interactions(users, movies, stars, time, n_users, n_movies)
        known = np.flatnonzero(known_user & known_movie)
        # A stable sort takes little where the ratings are in order already, as data sets are.
        key = users[known] * n_movies + movies[known]
        return data.take(known[np.argsort(key, kind="stable")])


def fit_biases(
    data: Interactions,
    user_damping: float = USER_DAMPING,
    movie_damping: float = MOVIE_DAMPING,
    sweeps: int = 15,
) -> tuple[float, Floats, Floats]:
    """Global mean, user biases and movie biases, in rating units, by alternating damped means.

    Minimises ``sum (r - mu - b_u - b_i)^2 + user_damping |b_u|^2 + movie_damping |b_i|^2``, the
    baseline estimate of Koren, Bell and Volinsky (2009), with mu held at the mean rating.
    """
    users, movies = data.users, data.movies
    mean = float(data.ratings.mean(dtype=np.float64))
    residual = data.ratings.astype(np.float64) - mean
    user_weight = np.bincount(users, minlength=data.n_users) + user_damping
    movie_weight = np.bincount(movies, minlength=data.n_movies) + movie_damping
    user_bias, movie_bias = np.zeros(data.n_users), np.zeros(data.n_movies)
    for _ in range(sweeps):
        movie_bias = np.bincount(movies, residual - user_bias[users], data.n_movies) / movie_weight
        user_bias = np.bincount(users, residual - movie_bias[movies], data.n_users) / user_weight
    return mean, user_bias, movie_bias


def spread(values: NDArray[Any], places: Index, size: int, empty: float | str = 0) -> NDArray[Any]:
    """`size` rows or values, `values` at `places` and `empty` elsewhere."""
    array = np.full((size, *values.shape[1:]), empty, dtype=values.dtype)
    array[places] = values
    return array


def _gone_on(bias: Floats, weight: Floats, index: Index, residual: Floats) -> Floats:
    """Biases, each a sum of residuals over its weight, with one residual more an index."""
    total = bias * weight + np.bincount(index, residual, len(bias))
    return total / (weight + np.bincount(index, minlength=len(bias)))


def top_k(scores: NDArray[Any], k: int) -> Index:
    """Columns of the `k` highest scores of each row, best first, ties by the lower column.

    Of scores ``(n, m)``, in which a column that must not be chosen holds ``-inf``, int64
    ``(n, min(k, m))``.
    """
    k = min(k, scores.shape[1])
    if k == scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")
    kth_best = np.partition(scores, -k, axis=1)[:, -k, None]
    chosen = scores >= kth_best
    if np.count_nonzero(chosen) > k * len(scores):
        # A partition breaks ties arbitrarily: keep the lowest columns of those that tie.
        above, tied = scores > kth_best, scores == kth_best
        room = k - above.sum(axis=1, keepdims=True)
        chosen = above | (tied & (np.cumsum(tied, axis=1) <= room))
    columns = (np.flatnonzero(chosen) % scores.shape[1]).reshape(len(scores), k)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def _positions(ids: Index, wanted: Index) -> tuple[Index, Known]:
    """Where each wanted id stands in the sorted `ids`, 0 where it does not, and whether it does."""
    position = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    known = ids[position] == wanted
    return np.where(known, position, 0), known
