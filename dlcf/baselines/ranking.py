"""Models that rank from who rated what; as ratings they predict the biases, like `Popular`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from threadpoolctl import threadpool_limits

from dlcf.baselines.knn import placed, strongest_of_product
from dlcf.models.base import Arrays, Floats, Growth, Index, Interactions, Recommender, spread
from dlcf.runtime.environment import optional
from dlcf.runtime.settings import setting
from dlcf.serving.history import HistoryRecommender

_LARGEST_SYSTEM = 30_000


@dataclass(kw_only=True, eq=False)
class ImplicitALS(Recommender):
    """iALS: matrix factorisation of implicit feedback (Hu, Koren and Volinsky, 2008).

    Minimises over *all* pairs, by alternating least squares (eq. 3),

    ``sum_{u,i} c_ui (p_ui - x_u . y_i)^2 + regularization (sum_u |x_u|^2 + sum_i |y_i|^2)``,

    where p_ui is 1 and c_ui is `alpha` for a rating of at least `positive_threshold`, p_ui is 0
    and c_ui is 1 elsewhere. Ranks by ``x_u . y_i``.

    Needs `implicit` to fit: ``pip install "dlcf[baselines]"``.

    Parameters
    ----------
    factors, regularization
        Length of the user and movie vectors, and the L2 penalty of both.
    iterations
        Times that users and movies are each solved for.
    alpha, positive_threshold
        Confidence in a positive pair, and the lowest rating that makes one; 0 counts all. `fit`
        raises ValueError where no rating makes one.
    seed
        Of the initial vectors.
    """

    name: ClassVar[str] = "ials"
    factors: int = setting(128, least=1)
    regularization: float = setting(20.0, least=0)
    iterations: int = setting(15, least=1)
    alpha: float = setting(3.0, above=0)
    positive_threshold: float = 4.0
    seed: int = setting(0, least=0)

    def _fit(self, data: Interactions, *_: Any) -> None:
        self._positive = data.ratings >= self.positive_threshold
        if not self._positive.any():
            threshold = f"positive_threshold {self.positive_threshold:g}"
            raise ValueError(f"ials: no rating of train reaches {threshold}; lower it")
        with optional("implicit", f"{self.name} is fitted"):
            import implicit.cpu.als as als
        positive = data.take(self._positive).matrix()
        # It warns and is slow where BLAS has threads too. It gets one of its own: the sums of
        # several come in any order, and so do their last bits.
        with threadpool_limits(1, "blas"):
            model = als.AlternatingLeastSquares(
                self.factors,
                regularization=self.regularization,
                alpha=self.alpha,
                iterations=self.iterations,
                num_threads=1,
                random_state=self.seed,
            )
            model.fit(positive, show_progress=False)
        self._user_factors, self._movie_factors = model.user_factors, model.item_factors

    def _observe(self, growth: Growth) -> None:
        """Fold-in: the vectors of users with new ratings, for the vectors of movies as they are."""
        before, (n_users, n_movies) = growth.before, self._seen.shape
        positive = growth.data.ratings >= self.positive_threshold
        self._positive = growth.merge(before._positive, positive)
        self._user_factors = spread(before._user_factors, growth.users, n_users)
        self._movie_factors = spread(before._movie_factors, growth.movies, n_movies)
        factors = self._movie_factors.astype(np.float64)
        of_all = factors.T @ factors + self.regularization * np.eye(self.factors)
        for user in np.unique(growth.data.users):
            rows = slice(*self._seen.indptr[user : user + 2])
            liked = factors[self._seen.indices[rows][self._positive[rows]]]
            system = of_all + (self.alpha - 1) * liked.T @ liked
            self._user_factors[user] = np.linalg.solve(system, self.alpha * liked.sum(axis=0))

    def _score(self, users: Index, at: float | None) -> NDArray[np.float32]:
        return self._user_factors[users] @ self._movie_factors.T

    def _state(self) -> Arrays:
        factors = {"user_factors": self._user_factors, "movie_factors": self._movie_factors}
        return {**factors, "positive": self._positive}

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        self._user_factors, self._movie_factors = state["user_factors"], state["movie_factors"]
        self._positive = state["positive"]


@dataclass(kw_only=True, eq=False)
class EASE(HistoryRecommender):
    """The linear auto-encoder with a zero diagonal, in closed form (Steck, 2019).

    Ranks by ``X B``, where B minimises ``|X - X B|^2 + regularization |B|^2`` with a diagonal of
    zeros: ``B = I - P diag(P)^-1`` with ``P = (X^T X + regularization I)^-1`` (eq. 8). X is users x
    movies; a rated pair holds ``1 + rating_weight (r - mean)``.

    B is dense and as large as the catalogue squared, so it is never formed. Only ``X P`` is needed,
    which equals ``(X X^T + regularization I)^-1 X``, and the diagonal of P: the system that is
    solved and stored has as many rows as there are users or movies, whichever are fewer. It takes
    about ``24 min(n_users, n_movies)^2`` bytes: `fit` raises ValueError for more than 30,000 users
    *and* movies, which is more than 20 GB.

    Parameters
    ----------
    regularization
        L2 penalty of B, lambda in the paper.
    rating_weight
        Weight of the rating in X; 0 is the binary matrix of the paper. The defaults are best on the
        mean of both validation sets: random splits alone prefer 0.7 to 0.8, temporal ones 1.0.
    """

    name: ClassVar[str] = "ease"
    regularization: float = setting(200.0, above=0)
    rating_weight: float = setting(0.8, least=0)

    def _fit(self, data: Interactions, *_: Any) -> None:
        size = min(data.n_users, data.n_movies)
        if size > _LARGEST_SYSTEM:
            raise ValueError(
                f"ease solves a system of min(n_users, n_movies) = {size} rows, which takes about "
                f"24 * {size}^2 bytes = {24e-9 * size**2:.0f} GB; it stops at {_LARGEST_SYSTEM} "
                "rows: leave out the users or movies with the fewest ratings, or use rp3beta"
            )
        self._values = self._entries(data.ratings)
        matrix = self._matrix().astype(np.float64)
        by_user = data.n_users <= data.n_movies
        gram = (matrix @ matrix.T if by_user else matrix.T @ matrix).toarray()
        gram[np.diag_indices(size)] += self.regularization
        inverse = linalg.inv(gram, overwrite_a=True, check_finite=False)
        if by_user:
            quadratic = matrix.multiply((matrix.T @ inverse).T).sum(axis=0)
            self._diagonal = _diagonal(np.asarray(quadratic).ravel(), self.regularization)
        else:
            self._diagonal = inverse.diagonal().copy()
        self._inverse = inverse.astype(np.float32)

    def _entries(self, ratings: NDArray[Any]) -> NDArray[np.float32]:
        """What X holds for some ratings."""
        return (1.0 + self.rating_weight * (ratings - np.float64(self._mean))).astype(np.float32)

    def _matrix(self) -> sparse.csr_matrix:
        seen = self._seen
        return sparse.csr_matrix((self._values, seen.indices, seen.indptr), shape=seen.shape)

    def item_weights(self, rows: Index, columns: Index | None = None) -> Floats:
        """Entries of B, ``(len(rows), len(columns))``, by positions in `movie_ids`.

        ``B_ij = -P_ij / P_jj`` off the diagonal, 0 on it; all columns by default.
        """
        self._check_fitted()
        # `_fitted_on`, which only a revised model has, is the matrix that B was fitted on.
        matrix = self._fitted_on if self.is_revised else self._matrix()
        columns = np.arange(matrix.shape[1]) if columns is None else columns
        if len(self._inverse) == matrix.shape[0]:  # P = (I - X^T inverse X) / regularization
            half = matrix[:, rows].T @ self._inverse.astype(np.float64)
            product = -np.asarray((matrix[:, columns].T @ half.T).T) / self.regularization
        else:
            product = self._inverse[np.ix_(rows, columns)].astype(np.float64)
        return np.where(rows[:, None] == columns, 0.0, -product / self._diagonal[columns])

    def history_terms(self, user: int, movies: Index) -> Floats:
        """What each rating of a user adds to the scores of some movies, given as positions.

        ``x_uj B_ji``, ``(ratings of the user, len(movies))``; columns sum to the scores.
        """
        self._check_fitted()
        own = self._matrix()[user]
        return own.data[:, None] * self.item_weights(own.indices.astype(np.int64), movies)

    def _training_ratings(self) -> Floats:
        if self.rating_weight == 0:
            problem = "ease with rating_weight=0 sees who rated what and keeps no ratings"
            raise NotImplementedError(f"{problem}; give it a rating_weight")
        return np.round((self._values - 1.0) / self.rating_weight + self._mean, 4)

    def _revise(self, original: Any, user: int, kept: NDArray[np.bool_], ratings: Floats) -> None:
        if not original.is_revised:
            self._fitted_on = original._matrix()
        self._values = self._entries(ratings[kept])

    def _observe(self, growth: Growth) -> None:
        """The weights stay; a new movie has none."""
        before, n_movies = growth.before, len(self.movie_ids)
        self._values = growth.merge(before._values, self._entries(growth.data.ratings))
        fitted_on = before._fitted_on if before.is_revised else before._matrix()
        same = np.arange(fitted_on.shape[0])
        self._fitted_on = placed(fitted_on, same, growth.movies, (len(same), n_movies))
        alone = 1.0 / self.regularization  # the diagonal of P for a movie that nobody rated
        self._diagonal = spread(before._diagonal, growth.movies, n_movies, alone)
        if len(before._inverse) != len(same):
            self._inverse = np.diag(np.full(n_movies, alone, np.float32))
            self._inverse[np.ix_(growth.movies, growth.movies)] = before._inverse
        self.is_revised = True

    def _score(self, users: Index, at: float | None) -> NDArray[np.float32]:
        matrix = self._matrix()
        if self.is_revised:
            rated = np.unique(matrix[users].indices).astype(np.int64)
            return (matrix[users][:, rated] @ self.item_weights(rated)).astype(np.float32)
        if len(self._inverse) == len(self.user_ids):
            product = (matrix.T @ self._inverse[:, users]).T
        else:
            product = matrix[users] @ self._inverse
        return (matrix[users].toarray() - product / self._diagonal).astype(np.float32)

    def _state(self) -> Arrays:
        return {"values": self._values, "inverse": self._inverse, "diagonal": self._diagonal}

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        self._values, self._inverse = state["values"], state["inverse"]
        self._diagonal = state["diagonal"]


def _diagonal(quadratic: NDArray[Any], regularization: float) -> NDArray[Any]:
    """The diagonal of P, given that of ``X^T A X``: ``P = (I - X^T A X) / regularization``."""
    return (1.0 - quadratic) / regularization


@dataclass(kw_only=True, eq=False)
class RP3Beta(Recommender):
    """Random walks user -> movie -> user -> movie, popular ends discounted (Paudel et al., 2017).

    With ``p_vi = 1 / |N(v)|`` and ``p_jv = 1 / |N(j)|`` on the graph of who rated what, a movie j
    leads to another movie i with ``w_ji = sum_v (p_jv p_vi)^alpha / |N(i)|^beta``. Ranks by
    ``sum_{j in N(u)} w_ji``: the first step, ``p_uj``, is the same for all movies of a user. The
    powers are those of P3alpha (Cooper et al., 2014), the discount makes it RP3beta.

    Parameters
    ----------
    alpha, beta
        Power of the transition probabilities, and discount of popularity; 0 is P3alpha. Both are
        below 5: float32 holds what larger powers give as 0.
    neighbors
        Largest w_ji that are kept of each movie j.
    """

    name: ClassVar[str] = "rp3beta"
    alpha: float = setting(0.6, least=0, below=5)
    beta: float = setting(0.4, below=5)
    neighbors: int = setting(500, least=1)

    def _fit(self, data: Interactions, *_: Any) -> None:
        rated = self._seen.astype(np.float64)
        of_user, of_movie = np.diff(rated.indptr), self.movie_counts.astype(np.float64)
        from_user = (sparse.diags(of_user**-self.alpha) @ rated).tocsr()
        from_movie = (sparse.diags(of_movie**-self.alpha) @ rated.T).tocsr()
        discount = of_movie**-self.beta
        self._transition = strongest_of_product(from_movie, from_user, self.neighbors, discount)

    def _observe(self, growth: Growth) -> None:
        shape, movies = (len(self.movie_ids),) * 2, growth.movies
        self._transition = placed(growth.before._transition, movies, movies, shape)

    def _score(self, users: Index, at: float | None) -> NDArray[np.float32]:
        return (self._seen[users] @ self._transition).toarray()

    def _state(self) -> Arrays:
        walk = self._transition
        return {"weight": walk.data, "target": walk.indices, "target_start": walk.indptr}

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        entries = state["weight"], state["target"], state["target_start"]
        n_movies = len(self.movie_ids)
        self._transition = sparse.csr_matrix(entries, shape=(n_movies, n_movies))
