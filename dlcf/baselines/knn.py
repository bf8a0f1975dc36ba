"""Neighbourhood models: from the movies that a user rated, or from the users who rated a movie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from dlcf.models.base import Arrays, Floats, Growth, Index, Interactions, Recommender, top_k
from dlcf.runtime.settings import setting
from dlcf.serving.history import HistoryRecommender

ROWS_AT_ONCE = 128


@dataclass(kw_only=True, eq=False)
class _Neighborhood(Recommender):
    """What both models share; a row is a movie or a user, a column one of the other kind.

    The rating of row i in column u is

    ``r_ui = b_ui + sum_{j in S} s_ij (r_uj - b_uj) / (damping + sum_{j in S} s_ij)``

    (Koren, 2010, eq. 3, with damping as in the biases), where b is the baseline estimate of the
    biases and S the `neighbors` rows j most similar to i of those with a rating in column u,
    without i itself and without those whose similarity is not positive. Where S is empty the
    baseline stands.
    """

    of_movies: ClassVar[bool]  # whether the rows are movies
    neighbors: int = setting(40, least=1)
    shrinkage: float = setting(100.0, least=0)
    damping: float = setting(0.3, least=0)
    min_support: int = setting(2, least=0)
    ranking_neighbors: int = setting(100, least=1)

    def _baseline(self, users: Index, movies: Index) -> Floats:
        return super()._predict(users, movies, None)

    def _fit(self, data: Interactions, *_: Any) -> None:
        self._set_deviations(data.ratings - self._baseline(data.users, data.movies))
        self._neighbors = cosine_neighbors(self._seen_rows, self.ranking_neighbors)

    def _set_deviations(self, values: Floats) -> None:
        """Take ``r_ui - b_ui`` of the training ratings, in (user, movie) order."""
        self._values = values
        both = self._of_seen(values), self._seen
        by_row = (matrix.T.tocsr() if self.of_movies else matrix for matrix in both)
        self._deviations, self._seen_rows = by_row

    def _of_seen(self, values: Floats) -> sparse.csr_matrix:
        """Users x movies, from a value of each rating in train."""
        seen = self._seen
        return sparse.csr_matrix((values, seen.indices, seen.indptr), shape=seen.shape)

    def _similarities(self, rows: Index) -> Floats:
        """Shrunk Pearson-baseline correlation of some rows with all, ``(len(rows), n_rows)``.

        ``s_ij = (n_ij - 1) / (n_ij - 1 + shrinkage) rho_ij``, where n_ij columns are common to both
        rows and rho_ij is the correlation of their deviations from the baseline over these columns
        (Koren, 2010, eq. 2; n - 1 for n as in Koren and Bell, 2011). Zero where n_ij is below
        `min_support`, and of a row with itself.
        """
        deviations, seen = self._deviations, self._seen_rows
        squares = deviations.power(2)
        common = (seen[rows] @ seen.T).toarray()
        product = (deviations[rows] @ deviations.T).toarray()
        size = (squares[rows] @ seen.T).toarray() * (seen[rows] @ squares.T).toarray()
        usable = (common >= max(self.min_support, 2)) & (size > 0)
        usable[np.arange(len(rows)), rows] = False
        similarity = np.zeros_like(product)
        common = common[usable] - 1.0
        weight = common / (common + self.shrinkage)
        similarity[usable] = weight * product[usable] / np.sqrt(size[usable])
        return similarity

    def _predict(self, users: Index, movies: Index, timestamps: Index | None) -> Floats:
        rows, columns = (movies, users) if self.of_movies else (users, movies)
        ratings, rated = self._baseline(users, movies), self._rated()
        targets, target_of = np.unique(rows, return_inverse=True)
        by_target = np.argsort(target_of, kind="stable")
        for first in range(0, len(targets), ROWS_AT_ONCE):
            similarity = self._similarities(targets[first : first + ROWS_AT_ONCE])
            bounds = np.searchsorted(target_of[by_target], [first, first + ROWS_AT_ONCE])
            pairs = by_target[slice(*bounds)]
            row = target_of[pairs] - first
            ratings[pairs] += self._deviation(similarity, row, rated, columns[pairs])
        return ratings

    def _rated(self) -> sparse.csr_matrix:
        """``r_ui - b_ui`` of the ratings that are averaged, columns x rows."""
        return self._deviations.T.tocsr()

    def _deviation(
        self, similarity: Floats, target: Index, rated: sparse.csr_matrix, columns: Index
    ) -> Floats:
        """The neighbours' mean deviation for pairs of a row of `similarity` and a column."""
        own = rated[columns]  # a row a pair
        pair = np.repeat(np.arange(len(columns)), np.diff(own.indptr))
        weight = similarity[target[pair], own.indices]
        positive = weight > 0
        pair, weight, deviation = pair[positive], weight[positive], own.data[positive]
        order = np.lexsort((-weight, pair))
        pair = pair[order]  # stays sorted, so that a place within its pair is a difference
        nearest = np.arange(len(pair)) - np.searchsorted(pair, pair) < self.neighbors
        pair, order = pair[nearest], order[nearest]
        weight = weight[order]
        total = np.bincount(pair, weight, minlength=len(columns)) + self.damping
        value = np.bincount(pair, weight * deviation[order], minlength=len(columns))
        return np.divide(value, total, out=np.zeros(len(columns)), where=total > 0)

    def _state(self) -> Arrays:
        near = self._neighbors
        nearest = {"similarity": near.data, "nearest": near.indices, "nearest_start": near.indptr}
        return {"deviations": self._values, **nearest}

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        self._set_deviations(state["deviations"])
        n_rows = self._seen_rows.shape[0]
        nearest = state["similarity"], state["nearest"], state["nearest_start"]
        self._neighbors = sparse.csr_matrix(nearest, shape=(n_rows, n_rows))


@dataclass(kw_only=True, eq=False)
class ItemKNN(_Neighborhood, HistoryRecommender):
    """Movies like those that the user rated (Sarwar et al., 2001; Koren, 2010).

    The rating adds to the baseline what the user thought of the `neighbors` most similar movies
    among those the user rated. The ranking is by ``sum_{j in N(u)} cos(j, i)`` over the user's
    movies N(u), of which only the `ranking_neighbors` nearest i of each j count; the cosine is
    that of the binary columns of the rating matrix.

    Parameters
    ----------
    neighbors
        Most neighbours that a predicted rating takes into account.
    shrinkage
        Common ratings' worth of evidence for a similarity of zero.
    damping
        Similarity's worth of evidence for a rating at the baseline.
    min_support
        Common ratings below which two movies are not similar; one is never enough.
    ranking_neighbors
        Neighbours of each movie in the ranking.
    """

    name: ClassVar[str] = "item-knn"
    of_movies: ClassVar[bool] = True
    ranking_neighbors: int = setting(30, least=1)

    def _score(self, users: Index, at: float | None) -> NDArray[np.float32]:
        return (self._seen[users] @ self._neighbors).toarray()

    def history_terms(self, user: int, movies: Index) -> Floats:
        """What each rating of a user adds to the baseline of some movies, given as positions.

        ``s_ij (r_uj - b_uj) / (damping + sum_j s_ij)`` in stars, ``(ratings of the user,
        len(movies))``; 0 of a rating that is not among the neighbours.
        """
        self._check_fitted()
        own = self._rated()[user]
        weight = np.maximum(self._similarities(movies)[:, own.indices], 0.0)
        place = np.argsort(np.argsort(-weight, axis=1, kind="stable"), axis=1)
        weight[place >= self.neighbors] = 0.0
        total = weight.sum(axis=1, keepdims=True) + self.damping
        weight = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
        return (weight * own.data).T

    def _observe(self, growth: Growth) -> None:
        before, (n_users, n_movies) = growth.before, self._seen.shape
        ratings = growth.merge(before._training_ratings(), growth.data.ratings)
        of_movies, all_movies = (growth.movies, growth.users), (growth.movies, growth.movies)
        self._deviations = placed(before._deviations, *of_movies, (n_movies, n_users))
        self._seen_rows = placed(before._seen_rows, *of_movies, (n_movies, n_users))
        self._neighbors = placed(before._neighbors, *all_movies, (n_movies, n_movies))
        self._revised_ratings = self._of_seen(ratings - self._baseline(*self._seen.nonzero()))
        self.is_revised = True

    def _rated(self) -> sparse.csr_matrix:
        # `_revised_ratings`, which only a revised model has: its deviations, users x movies.
        return self._revised_ratings if self.is_revised else super()._rated()

    def _training_ratings(self) -> Floats:
        ratings = self._rated().data + self._baseline(*self._seen.nonzero())
        return np.round(ratings, 6)  # as given: the sum has other last bits

    def _revise(self, original: Any, user: int, kept: NDArray[np.bool_], ratings: Floats) -> None:
        self._revised_ratings = self._of_seen(ratings[kept] - self._baseline(*self._seen.nonzero()))


@dataclass(kw_only=True, eq=False)
class UserKNN(_Neighborhood):
    """Users like this one (Resnick et al., 1994; Herlocker et al., 1999).

    As :class:`ItemKNN` with users and movies exchanged: the rating adds to the baseline what the
    `neighbors` most similar users among the movie's raters thought of it. The ranking is by
    ``sum_v cos(u, v)`` over those of the user's `ranking_neighbors` nearest users v who rated the
    movie. Parameters are those of :class:`ItemKNN`, of users.
    """

    name: ClassVar[str] = "user-knn"
    of_movies: ClassVar[bool] = False

    def _ratings(self) -> Floats:
        """The training ratings, in (user, movie) order."""
        return self._values + self._baseline(*self._seen.nonzero())

    def _observe(self, growth: Growth) -> None:
        """Which users are alike is what it knows, so that is computed from all ratings."""
        ratings = growth.merge(growth.before._ratings(), growth.data.ratings)
        self._set_deviations(ratings - self._baseline(*self._seen.nonzero()))
        self._neighbors = cosine_neighbors(self._seen_rows, self.ranking_neighbors)

    def _score(self, users: Index, at: float | None) -> NDArray[np.float32]:
        return (self._neighbors[users] @ self._seen).toarray()


def placed(
    matrix: sparse.csr_matrix, rows: Index, columns: Index, shape: tuple[int, int]
) -> sparse.csr_matrix:
    """A matrix of `shape` in which the old rows and columns stand where these say."""
    old = matrix.tocoo()
    return sparse.csr_matrix((old.data, (rows[old.row], columns[old.col])), shape=shape)


def strongest_of_product(
    left: sparse.csr_matrix, right: sparse.csr_matrix, k: int, scale: Floats | float = 1.0
) -> sparse.csr_matrix:
    """The `k` largest positive entries of each row of ``left @ right * scale``, off the diagonal.

    Of `left` ``(n, m)``, `right` ``(m, n)`` and a `scale` of each column, float32 ``(n, n)``, all
    other entries zero; of equal ones the lower columns are kept. The product is formed some rows
    at a time.
    """
    kept = []
    for start in range(0, left.shape[0], ROWS_AT_ONCE):
        block = (left[start : start + ROWS_AT_ONCE] @ right).toarray()
        itself = np.arange(len(block))
        block[itself, start + itself] = 0.0
        block *= scale
        columns = np.sort(top_k(block, k), axis=1)
        values = np.take_along_axis(block, columns, axis=1).astype(np.float32)
        first = np.arange(0, columns.size + 1, columns.shape[1])
        rows = sparse.csr_matrix((values.ravel(), columns.ravel(), first), shape=block.shape)
        rows.data[rows.data < 0] = 0.0
        rows.eliminate_zeros()
        kept.append(rows)
    return sparse.vstack(kept, "csr")


def cosine_neighbors(matrix: sparse.csr_matrix, k: int) -> sparse.csr_matrix:
    """Cosine of every row with its `k` nearest other rows, ``x_i . x_j / (|x_i| |x_j|)``.

    Of a matrix ``(n, m)`` without empty rows, float32 ``(n, n)``, zero on the diagonal; rows
    without a common column are no neighbours.
    """
    length = np.sqrt(np.asarray(matrix.power(2).sum(axis=1)).ravel())
    unit = (sparse.diags(1.0 / length) @ matrix).tocsr()
    return strongest_of_product(unit, unit.T.tocsr(), k)
