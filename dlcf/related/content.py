"""What is said of a movie, rated or not: words of its title, genres, year and tags."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from dlcf.models.base import Arrays, Floats, Index, Interactions, Recommender
from dlcf.ratings import check_ids

PARTS = ("title", "genres", "year", "tags")


def with_tags(movies: pd.DataFrame, tags: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """`movies` with a column `tags`: lists of what users said of movies that they rated in train.

    A tag of a pair that train lacks would tell of a test rating: whoever tags a movie has seen it.
    """
    known = tags.merge(train[["userId", "movieId"]], on=["userId", "movieId"])
    by_movie: dict[Any, Any] = known.groupby("movieId")["tag"].agg(list).to_dict()
    return movies.assign(
        tags=pd.Series([by_movie.get(m, []) for m in movies["movieId"]], movies.index)
    )


def words_of(
    movies: pd.DataFrame | None, movie_ids: Index, parts: Sequence[str] = PARTS
) -> list[list[str]]:
    """The words of each movie, in the order of `parts`; none of a movie that the frame lacks.

    Titles and tags give their lower-case words of two letters or more, genres and decades one word
    each (``genre:drama``, ``decade:1990``), so that they are not mistaken for others.
    """
    if movies is None:
        return [[] for _ in movie_ids]
    row = {movie: i for i, movie in enumerate(movies["movieId"].tolist())}
    columns = {part: movies[part].tolist() for part in parts if part in movies}
    read = {"title": _plain, "tags": lambda tags: _plain(" ".join(map(str, tags))),
            "genres": lambda of: [f"genre:{genre.lower()}" for genre in of],
            "year": lambda y: [] if pd.isna(y) else [f"decade:{int(y) // 10 * 10}"]}  # fmt: skip
    return [
        [word for part, values in columns.items() for word in read[part](values[row[movie]])]
        if movie in row
        else []
        for movie in movie_ids.tolist()
    ]


def vocabulary_of(words: Iterable[Sequence[str]], least: int = 2, most: int = 8000) -> list[str]:
    """Words that at least `least` movies have, the most frequent first, ties by the alphabet."""
    count = Counter(word for of_movie in words for word in set(of_movie))
    kept = sorted((word for word in count if count[word] >= least), key=lambda w: (-count[w], w))
    return kept[:most]


def bag_of_words(words: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> sparse.csr_matrix:
    """1 where a movie has a word, float32 ``(len(words), len(vocabulary))``."""
    column = {word: i for i, word in enumerate(vocabulary)}
    cells = sorted({(i, column[w]) for i, of in enumerate(words) for w in of if w in column})
    row, place = np.array(cells, dtype=np.int64).reshape(-1, 2).T
    ones, shape = np.ones(len(cells), dtype=np.float32), (len(words), len(vocabulary))
    return sparse.csr_matrix((ones, (row, place)), shape=shape)


def content_of(
    movies: pd.DataFrame | None,
    movie_ids: Index,
    most: int = 8000,
    least: int = 2,
    parts: Sequence[str] = PARTS,
) -> sparse.csr_matrix:
    """The bag of words of movies, by the vocabulary that they have; of one column at least."""
    words = words_of(movies, movie_ids, parts)
    return bag_of_words(words, vocabulary_of(words, least, most) or ["none"])


class ContentMixin(Recommender):
    """Predicts, or ranks, movies without ratings from what is said of them.

    A subclass calls :meth:`describe` in `_fit`, and gives `_predict_unrated`; one whose scores are
    no ratings gives `_score_unrated` too.
    """

    described: Index  # ids of the movies that are described: the catalogue's and the frame's

    def describe(self, movies: pd.DataFrame | None) -> Index:
        """Set and return `described`, ascending; rows of the content are in that order."""
        ids = self.movie_ids if movies is None else movies["movieId"].to_numpy()
        self.described = np.union1d(self.movie_ids, ids)
        return self.described

    def _predict_unrated(self, users: Index, rows: Index) -> Floats:
        """Ratings by known users of movies without ratings, given as rows of `described`.

        By default those of the biases.
        """
        return self._mean + self._user_bias[users]

    def _score_unrated(self, users: Index, rows: Index) -> NDArray[np.float32]:
        """Scores of the same, ``(len(users), len(rows))``; predicted ratings by default."""
        pairs = np.repeat(users, len(rows)), np.tile(rows, len(users))
        return self._predict_unrated(*pairs).reshape(-1, len(rows)).astype(np.float32)

    def score_described(
        self, user_ids: Sequence[int] | NDArray[Any]
    ) -> tuple[Index, NDArray[np.float32]]:
        """Ids of all movies that are described, and their scores, ``(len(user_ids), len(ids))``.

        It is :meth:`score_all` with the movies that nobody rated. ValueError for unknown users.
        """
        self._check_fitted()
        ids = check_ids(user_ids, "userId")
        unknown = np.setdiff1d(ids, self.user_ids)
        if len(unknown):
            raise ValueError(f"userId {unknown[0]} is unknown; give users of the train frame")
        users = np.searchsorted(self.user_ids, ids)
        scores = np.empty((len(users), len(self.described)), dtype=np.float32)
        rated = np.isin(self.described, self.movie_ids)
        scores[:, rated] = self._score(users, None)
        scores[:, ~rated] = self._score_unrated(users, np.flatnonzero(~rated))
        return self.described, scores

    def _predict_pairs(self, pairs: pd.DataFrame) -> Floats:
        ratings = super()._predict_pairs(pairs)
        users, known_user, _, known_movie = self.positions(pairs)
        ids = pairs["movieId"].to_numpy()
        row = np.minimum(np.searchsorted(self.described, ids), len(self.described) - 1)
        unrated = known_user & ~known_movie & (self.described[row] == ids)
        if unrated.any():
            ratings[unrated] = self._predict_unrated(users[unrated], row[unrated])
        return ratings

    def _state(self) -> Arrays:
        return super()._state() | {"described": self.described}

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        self.described = state["described"]
        super()._restore({k: v for k, v in state.items() if k != "described"}, extra)


def catalogue_rows(described: Index, movie_ids: Index) -> Index:
    """Where the movies of the catalogue stand among those that are described."""
    return np.searchsorted(described, movie_ids)


def mean_rating(data: Interactions) -> float:
    """Of all ratings, in double precision."""
    return float(data.ratings.mean(dtype=np.float64))


def _plain(text: Any) -> list[str]:
    return re.findall(r"[^\W_]{2,}", str(text).lower())
