"""The contract that every model keeps: fit, predict, score, recommend, explain, save, load."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse

from dlcf.explanation import Explanation
from dlcf.fast import kernels
from dlcf.ratings import check_pairs, check_ratings, rating_scale

__all__ = ["Interactions", "Recommender", "top_k"]

FORMAT = 1
USER_DAMPING, MOVIE_DAMPING = 5.0, 3.0  # of the biases that serve as a fallback
_USERS_AT_ONCE = 64
Arrays = dict[str, NDArray[Any]]
IndexArrays = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows and columns


@dataclass(frozen=True)
class Interactions:
    """Ratings with contiguous indices, as models see them.

    Attributes
    ----------
    users, movies
        int64 ``(n,)``, rows of the model's `user_ids` and `movie_ids`.
    ratings
        float32 ``(n,)``, on the data's scale.
    timestamps
        int64 ``(n,)``, seconds UTC; zeros where the frame had none.
    n_users, n_movies
        Sizes of the two vocabularies.
    """

    users: NDArray[np.int64]
    movies: NDArray[np.int64]
    ratings: NDArray[np.float32]
    timestamps: NDArray[np.int64]
    n_users: int
    n_movies: int

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: NDArray[Any]) -> Interactions:
        """The given rows (positions or mask), with the same vocabularies."""
        return Interactions(
            self.users[rows],
            self.movies[rows],
            self.ratings[rows],
            self.timestamps[rows],
            self.n_users,
            self.n_movies,
        )

    def matrix(self, values: NDArray[Any] | None = None) -> sparse.csr_matrix:
        """Users x movies in CSR form, holding `values` (ones by default)."""
        data = np.ones(len(self), dtype=np.float32) if values is None else values
        shape = (self.n_users, self.n_movies)
        return sparse.csr_matrix((data, (self.users, self.movies)), shape=shape)


def top_k(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Columns of the `k` highest scores of each row, best first, ties by the lower column.

    Parameters
    ----------
    scores
        ``(n, m)``; a column that must not be chosen holds ``-inf``.
    k
        At most `m` columns come back.

    Returns
    -------
    ndarray
        int64 ``(n, min(k, m))``.
    """
    k = min(k, scores.shape[1])
    if k == scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")
    kth_best = np.partition(scores, -k, axis=1)[:, -k, None]
    chosen = scores >= kth_best
    if np.count_nonzero(chosen) > k * len(scores):
        # A partition breaks ties arbitrarily: of the columns that tie with the k-th, keep the
        # lowest.
        above, tied = scores > kth_best, scores == kth_best
        room = k - above.sum(axis=1, keepdims=True)
        chosen = above | (tied & (np.cumsum(tied, axis=1) <= room))
    columns = (np.flatnonzero(chosen) % scores.shape[1]).reshape(len(scores), k)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


class Recommender(ABC):
    """A model of ratings that can also rank; subclasses implement `_fit` and `_predict`.

    The hyper-parameters are the keyword arguments of a subclass's ``__init__``, each stored under
    its own name. Every model learns user and movie biases besides, which serve what it cannot:

    - an unknown user is predicted the global mean plus the movie's bias and is recommended the
      movies with the most ratings;
    - an unknown movie is predicted the global mean plus the user's bias and is never recommended.
    """

    name: ClassVar[str]

    user_ids: NDArray[np.int64]
    movie_ids: NDArray[np.int64]
    scale: tuple[float, float]
    titles: list[str] | None
    is_revised: bool = False  # made by `revised`: serves, but is not saved

    @property
    def config(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return {name: getattr(self, name) for name in self.hyper_parameters()}

    @classmethod
    def hyper_parameters(cls) -> list[str]:
        """Names of the keyword arguments that the model takes."""
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def fit(
        self,
        train: pd.DataFrame,
        validation: pd.DataFrame | None = None,
        movies: pd.DataFrame | None = None,
    ) -> Recommender:
        """Learn from `train`.

        Parameters
        ----------
        train
            Ratings: `userId`, `movieId`, `rating`, and `timestamp` for models that use time.
        validation
            Ratings to choose epochs and learning rates on. Where it is None, a model that needs
            one holds out part of `train`.
        movies
            Titles and genres, for models and explanations that use them.

        Returns
        -------
        Recommender
            The model itself.

        Raises
        ------
        ValueError
            A frame is empty or wrong; the message names the column, the row and the remedy. A
            model that was fitted before stays as it was.
        """
        data, held_out = self._index(train, validation, movies)
        self._fit(data, held_out, movies)
        return self

    def _index(
        self,
        train: pd.DataFrame,
        validation: pd.DataFrame | None,
        movies: pd.DataFrame | None,
    ) -> tuple[Interactions, Interactions | None]:
        """Check the frames, learn vocabularies and biases, and number users and movies."""
        check_ratings(train, source="train")
        scale = rating_scale(train)
        if validation is not None:
            check_ratings(validation, source="validation", scale=scale)
        self.scale = scale
        self.user_ids = np.unique(train["userId"].to_numpy())
        self.movie_ids = np.unique(train["movieId"].to_numpy())
        self.titles = _titles(movies, self.movie_ids)
        data = self._interactions(train)
        self._seen = data.matrix()
        self._seen.sort_indices()
        self._movie_count = np.bincount(data.movies, minlength=data.n_movies)
        self._mean, self._user_bias, self._movie_bias = fit_biases(data)
        held_out = None
        if validation is not None:
            _, known_user, _, known_movie = self._indices(validation)
            held_out = self._interactions(validation[known_user & known_movie])
        return data, held_out

    def predict(self, pairs: pd.DataFrame) -> NDArray[np.float64]:
        """Predicted ratings.

        Parameters
        ----------
        pairs
            Frame with `userId`, `movieId` and, for models that use time, `timestamp`.

        Returns
        -------
        ndarray
            float64 ``(n,)``, inside the rating scale; unknown users and movies are served.
        """
        self._check_fitted()
        check_pairs(pairs, source="pairs")
        users, known_user, movies, known_movie = self._indices(pairs)
        ratings = (
            self._mean
            + np.where(known_user, self._user_bias[users], 0.0)
            + np.where(known_movie, self._movie_bias[movies], 0.0)
        )
        known = known_user & known_movie
        if known.any():
            time = pairs["timestamp"].to_numpy()[known] if "timestamp" in pairs else None
            ratings[known] = self._predict(users[known], movies[known], time)
        return np.clip(ratings, *self.scale)

    def score_all(self, user_ids: Sequence[int] | NDArray[Any]) -> NDArray[np.float32]:
        """Ranking scores of the whole catalogue; they need not be ratings.

        Parameters
        ----------
        user_ids
            MovieLens' ids; unknown ones get the number of ratings of each movie.

        Returns
        -------
        ndarray
            float32 ``(len(user_ids), len(self.movie_ids))``, columns in `movie_ids` order.
        """
        self._check_fitted()
        users, known = _positions(self.user_ids, np.asarray(user_ids))
        scores = np.empty((len(users), len(self.movie_ids)), dtype=np.float32)
        scores[~known] = self._movie_count
        if known.any():
            scores[known] = self._score(users[known])
        return scores

    def recommend(self, user_id: int, k: int = 10, exclude_seen: bool = True) -> pd.DataFrame:
        """The best `k` movies for a user.

        Returns
        -------
        DataFrame
            `movieId` and `score`, best first; fewer than `k` rows where the catalogue is short.
        """
        return self.recommend_all([user_id], k, exclude_seen).drop(columns="userId")

    def recommend_all(
        self,
        user_ids: Sequence[int] | NDArray[Any] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
    ) -> pd.DataFrame:
        """The lists of :meth:`recommend` for many users, which takes less than one after another.

        Parameters
        ----------
        user_ids
            MovieLens' ids; by default all users that the model was fitted on.

        Returns
        -------
        DataFrame
            `userId`, `movieId` and `score`, in the order of `user_ids`, each list best first.
        """
        self._check_fitted()
        if k < 1:
            raise ValueError(f"k is {k}; ask for at least one recommendation")
        wanted = np.asarray(self.user_ids if user_ids is None else user_ids)
        users, known = _positions(self.user_ids, wanted)
        columns = np.empty((len(users), min(k, len(self.movie_ids))), dtype=np.int64)
        scores = np.empty(columns.shape, dtype=np.float32)
        if not known.all():
            columns[~known] = top_k(self._movie_count[None], k)
            scores[~known] = self._movie_count[columns[~known]]
        if known.any():
            columns[known], scores[known] = self._best(users[known], k, exclude_seen)
        row, place = np.nonzero(scores > -np.inf)
        return pd.DataFrame(
            {
                "userId": wanted[row],
                "movieId": self.movie_ids[columns[row, place]],
                "score": scores[row, place],
            }
        )

    def seen(self, user_ids: Sequence[int] | NDArray[Any]) -> IndexArrays:
        """What the users rated in training, as (position in `user_ids`, column) index arrays."""
        users, known = _positions(self.user_ids, np.asarray(user_ids))
        row, column = self._seen[users[known]].nonzero()
        return np.flatnonzero(known)[row], column.astype(np.int64)

    def title(self, movie_id: int) -> str | None:
        """The movie's title; None where the model was fitted without titles or without it."""
        position, known = _positions(self.movie_ids, np.array([movie_id]))
        if self.titles is None or not known[0]:
            return None
        return self.titles[position[0]] or None

    def explain(self, user_id: int, movie_id: int) -> Explanation:
        """Why the model predicts what it does; only models with attention can say.

        Raises
        ------
        NotImplementedError
            The model has no attention weights to show.
        """
        raise NotImplementedError(
            f"{self.name} has no attention weights to explain a recommendation with; "
            "use a model such as deepcf"
        )

    def revised(self, user_id: int, changes: Mapping[int, float | None]) -> Recommender:
        """This model, serving one user as if some of the user's ratings were others.

        What the model makes of a history is computed again from the changed one: the user's bias,
        the ratings that are averaged, the movies that are left out of recommendations. What was
        learned from all ratings together (similarities, item weights, networks, other users) stays
        as it is: nothing is trained again. No changes, the same answers.

        Parameters
        ----------
        user_id
            A user of train.
        changes
            MovieLens' ids of movies that the user rated in train, each with its new rating, or with
            None where it is taken away.

        Returns
        -------
        Recommender
            A model on the whole contract but `save`; this one is left as it is. It may be revised
            again.

        Raises
        ------
        ValueError
            The user is unknown, a movie is none that the user rated, or a rating is off the scale.
        NotImplementedError
            The model keeps no ratings: what it knows of a user is in trained numbers.
        """
        self._check_fitted()
        ratings = self._training_ratings()
        (user,), (known,) = _positions(self.user_ids, np.array([user_id]))
        if not known:
            raise ValueError(f"user {user_id} has no rating in train that could be changed")
        first, last = (int(i) for i in self._seen.indptr[user : user + 2])
        rated = {int(self.movie_ids[self._seen.indices[i]]): i for i in range(first, last)}
        new, kept = np.array(ratings, dtype=np.float64), np.ones(len(ratings), dtype=bool)
        low, high = self.scale
        for movie_id, rating in changes.items():
            if movie_id not in rated:
                raise ValueError(f"user {user_id} did not rate movie {movie_id} in train")
            if rating is not None and not low <= rating <= high:
                raise ValueError(
                    f"rating {rating} of movie {movie_id} is off the scale, {low:g} to {high:g}"
                )
            kept[rated[movie_id]] = rating is not None
            new[rated[movie_id]] = low if rating is None else rating
        served = copy.copy(self)
        served.is_revised = True
        served._seen = self._seen.copy()
        served._seen.data = kept.astype(self._seen.dtype)
        served._seen.eliminate_zeros()
        own = np.arange(first, last)[kept[first:last]]
        left = new[own] - self._mean - self._movie_bias[self._seen.indices[own]]
        served._user_bias = self._user_bias.copy()
        served._user_bias[user] = left.sum() / (len(own) + USER_DAMPING)
        served._revise(self, int(user), kept, new)
        return served

    def ratings_of(self, user_id: int) -> pd.DataFrame:
        """What the model knows that a user rated in train.

        Returns
        -------
        DataFrame
            `movieId` ascending, `rating`; empty for an unknown user.

        Raises
        ------
        NotImplementedError
            As :meth:`revised`.
        """
        self._check_fitted()
        ratings = self._training_ratings()
        (user,), (known,) = _positions(self.user_ids, np.array([user_id]))
        rows = slice(*self._seen.indptr[user : user + 2]) if known else slice(0, 0)
        movie_ids = self.movie_ids[self._seen.indices[rows]]
        return pd.DataFrame({"movieId": movie_ids, "rating": ratings[rows].astype(np.float64)})

    def _training_ratings(self) -> NDArray[Any]:
        """The ratings of train, in (user, movie) order as in `_seen`."""
        raise NotImplementedError(
            f"{self.name} keeps no ratings of its users, only what it learned from them; fit it "
            "again on a changed train, or use deepcf-plus, item-knn or ease"
        )

    def _revise(
        self, original: Any, user: int, kept: NDArray[np.bool_], ratings: NDArray[np.float64]
    ) -> None:
        """Serve ``ratings[kept]``, of which only those of `user`, a position, have changed.

        Called on a shallow copy of `original` with `_seen` and `_user_bias` revised already; both
        arrays are in the order of the original's :meth:`_training_ratings`.
        """
        raise NotImplementedError(f"{self.name} cannot serve a changed history")

    def save(self, folder: str | Path) -> Path:
        """Write the model as `model.safetensors` and `model.json`; the folder appears whole.

        Returns
        -------
        Path
            The folder. A model that was there before is replaced only once the new one is written.
        """
        self._check_fitted()
        if self.is_revised:
            raise ValueError(f"this {self.name} was revised for one user; save what it came from")
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        fitted: Arrays = {
            "user_ids": self.user_ids,
            "movie_ids": self.movie_ids,
            "seen_indptr": self._seen.indptr,
            "seen_indices": self._seen.indices,
            "movie_count": self._movie_count,
            "mean": np.array(self._mean),
            "user_bias": self._user_bias,
            "movie_bias": self._movie_bias,
        }
        fitted |= {f"model.{key}": value for key, value in self._state().items()}
        description = {
            "format": FORMAT,
            "name": self.name,
            "config": self.config,
            "scale": self.scale,
            "titles": self.titles,
            "extra": self._extra(),
        }
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            contiguous = {key: np.asarray(value, order="C") for key, value in fitted.items()}
            save_file(contiguous, temporary / "model.safetensors")
            text = json.dumps(description, indent=1, ensure_ascii=False)
            (temporary / "model.json").write_text(text, encoding="utf-8")
            if folder.exists():
                replaced = temporary.with_name(temporary.name + "-old")
                folder.rename(replaced)
                temporary.rename(folder)
                shutil.rmtree(replaced)
            else:
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def _load(self, folder: Path, description: Mapping[str, Any]) -> None:
        arrays = load_file(folder / "model.safetensors")
        self.user_ids, self.movie_ids = arrays["user_ids"], arrays["movie_ids"]
        self.scale = (description["scale"][0], description["scale"][1])
        self.titles = description["titles"]
        indices = arrays["seen_indices"]
        ones = np.ones(len(indices), dtype=np.float32)
        shape = (len(self.user_ids), len(self.movie_ids))
        self._seen = sparse.csr_matrix((ones, indices, arrays["seen_indptr"]), shape=shape)
        self._movie_count = arrays["movie_count"]
        self._mean = float(arrays["mean"])
        self._user_bias, self._movie_bias = arrays["user_bias"], arrays["movie_bias"]
        prefix = "model."
        state = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        self._restore(state, description["extra"])

    @abstractmethod
    def _fit(
        self, data: Interactions, validation: Interactions | None, movies: pd.DataFrame | None
    ) -> None:
        """Learn from indexed ratings; `validation` holds only known users and movies."""

    @abstractmethod
    def _predict(
        self,
        users: NDArray[np.int64],
        movies: NDArray[np.int64],
        timestamps: NDArray[np.int64] | None,
    ) -> NDArray[np.float64]:
        """Ratings of known pairs; they are clipped to the scale afterwards."""

    def _score(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Ranking scores of known users over the catalogue; predicted ratings by default."""
        n_movies = len(self.movie_ids)
        pairs_of_user = np.repeat(users, n_movies), np.tile(np.arange(n_movies), len(users))
        ratings = self._predict(*pairs_of_user, None)
        return ratings.reshape(len(users), n_movies).astype(np.float32)

    def _list_scores(
        self, users: NDArray[np.int64], left_out: IndexArrays, k: int
    ) -> NDArray[np.float32]:
        """Ranking scores of known users, ``-inf`` for what is left out of their lists.

        A model may give ``-inf`` also to what it can tell to be below a user's `k` best.
        """
        scores = self.score_all(self.user_ids[users])
        scores[left_out] = -np.inf
        return scores

    def _best(
        self, users: NDArray[np.int64], k: int, exclude_seen: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Columns and scores of each known user's list, ``(n, min(k, n_movies))``.

        Places that the catalogue cannot fill have score ``-inf``.
        """
        parts = []
        for block in np.split(users, range(_USERS_AT_ONCE, len(users), _USERS_AT_ONCE)):
            left_out = self.seen(self.user_ids[block] if exclude_seen else [])
            scores = self._list_scores(block, left_out, k)
            columns = top_k(scores, k)
            parts.append((columns, np.take_along_axis(scores, columns, axis=1)))
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _state(self) -> Arrays:
        """What `_fit` learned, as named arrays."""
        return {}

    def _extra(self) -> dict[str, Any]:
        """What `_fit` learned besides, as JSON values."""
        return {}

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:  # noqa: B027
        """Take back what `_state` and `_extra` gave; a model that learns no more has nothing to."""

    def _check_fitted(self) -> None:
        if not hasattr(self, "movie_ids"):
            raise RuntimeError(f"this {self.name} model is not fitted yet; call fit(train) first")

    def _indices(
        self, pairs: pd.DataFrame
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64], NDArray[np.bool_]]:
        """Index of each user and whether it is known; the same of each movie."""
        users = _positions(self.user_ids, pairs["userId"])
        return *users, *_positions(self.movie_ids, pairs["movieId"])

    def _interactions(self, ratings: pd.DataFrame) -> Interactions:
        """Known ratings, in (user, movie) order so that the order of the frame does not matter."""
        users, _, movies, _ = self._indices(ratings)
        if "timestamp" in ratings:
            timestamps = ratings["timestamp"].to_numpy(np.int64)
        else:
            timestamps = np.zeros(len(ratings), dtype=np.int64)
        stars = ratings["rating"].to_numpy(np.float32)
        data = Interactions(
            users, movies, stars, timestamps, len(self.user_ids), len(self.movie_ids)
        )
        # A stable sort takes little where the ratings are in order already, as data sets are.
        return data.take(np.argsort(users * data.n_movies + movies, kind="stable"))


def fit_biases(
    data: Interactions,
    user_damping: float = USER_DAMPING,
    movie_damping: float = MOVIE_DAMPING,
    sweeps: int = 15,
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Global mean, user biases and movie biases by alternating damped means.

    Minimises ``sum (r - mu - b_u - b_i)^2 + user_damping |b_u|^2 + movie_damping |b_i|^2``, the
    baseline estimate of Koren, Bell and Volinsky (2009), with mu held at the mean rating.

    Returns
    -------
    mean, user_bias, movie_bias
        In rating units; shapes ``()``, ``(n_users,)``, ``(n_movies,)``.
    """
    mean = float(data.ratings.mean(dtype=np.float64))
    residual = data.ratings.astype(np.float64) - mean
    users, movies = data.users, data.movies
    user_weight = np.bincount(users, minlength=data.n_users) + user_damping
    movie_weight = np.bincount(movies, minlength=data.n_movies) + movie_damping
    user_bias = np.zeros(data.n_users)
    movie_bias = np.zeros(data.n_movies)
    for _ in range(sweeps):
        kernels.residual_sums(residual, movies, users, user_bias, movie_bias)
        movie_bias /= movie_weight
        kernels.residual_sums(residual, users, movies, movie_bias, user_bias)
        user_bias /= user_weight
    return mean, user_bias, movie_bias


def _positions(
    ids: NDArray[np.int64], wanted: pd.Series | NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where each wanted id stands in the sorted `ids`, 0 where it does not, and whether it does."""
    wanted = np.asarray(wanted)
    position = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    known = ids[position] == wanted
    return np.where(known, position, 0), known


def _titles(movies: pd.DataFrame | None, movie_ids: NDArray[np.int64]) -> list[str] | None:
    if movies is None:
        return None
    title = movies.drop_duplicates("movieId").set_index("movieId")["title"]
    return title.reindex(movie_ids).fillna("").astype(str).tolist()
