"""Matrix factorisation with marginalised denoising auto-encoders (Li, Kawale and Fu, 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from dlcf.models.base import Arrays, Floats, Index, Interactions
from dlcf.related.content import ContentMixin, catalogue_rows, content_of
from dlcf.related.factors import solve_factors
from dlcf.runtime.settings import setting

_RIDGE = 1e-5  # of systems that may be singular: words that always go together, few users
_DAMPING = 5.0  # ratings' worth of evidence that a user likes a genre as much as others


class SideEncoder:
    """One side's marginalised denoising auto-encoder W, ``(d, d)``, and P, ``(d, k)``.

    `features` is ``(n, d)``: the X of the equations, transposed. `factors` are ``(n, k)``.
    """

    def __init__(
        self, features: sparse.csr_matrix, factors: Floats, noise: float, coupling: float
    ) -> None:
        self.features, self.coupling = features, coupling
        self.scatter = (features.T @ features).toarray()
        kept = 1.0 - noise
        self.with_noisy = kept * self.scatter  # the mean of X X~^T
        self.of_noisy = kept**2 * self.scatter  # the mean of X~ X~^T
        np.fill_diagonal(self.of_noisy, kept * self.scatter.diagonal())
        self.weights = np.eye(len(self.scatter))
        self.fit(factors)

    def fit(self, factors: Floats) -> None:
        """P, then W: each the minimum with all else held."""
        carried = self.features.T @ factors
        gram = factors.T @ factors + _RIDGE * np.eye(factors.shape[1])
        self.decoder = np.linalg.solve(gram, (self.weights @ carried).T).T
        system = self.of_noisy + self.coupling * self.scatter + _RIDGE * np.eye(len(self.scatter))
        wanted = self.with_noisy + self.coupling * self.decoder @ carried.T
        self.weights = np.linalg.solve(system, wanted.T).T

    def prior(self, features: sparse.csr_matrix) -> tuple[Floats, Floats]:
        """What coupling adds to the normal equations of factors: ``P^T P`` and ``P^T W x``."""
        encoded = features @ (self.decoder.T @ self.weights).T
        return self.coupling * self.decoder.T @ self.decoder, self.coupling * encoded


@dataclass(kw_only=True, eq=False)
class MarginalizedCF(ContentMixin):
    """mDA-CF: factors from which denoised side information is decoded (Li, Kawale and Fu, 2015).

    With side information X of users and Y of movies, one in each column, R the ratings, and A 1
    where there is one, it minimises

    ``L(W_1, P_1, X, U) + L(W_2, P_2, Y, V) + alpha |A o (R - U V^T)|^2 + beta (|U|^2 + |V|^2)``,

    ``L(W, P, X, U) = E |X - W X~|^2 + coupling |P U^T - W X|^2``.

    X~ is X with each entry set to 0 with probability `noise`. The mean over its draws is closed
    (Chen et al., 2012): with ``S = X X^T`` and ``q = 1 - noise``, that of ``X X~^T`` is ``q S``,
    and that of ``X~ X~^T`` is ``q^2 S`` off the diagonal, ``q S`` on it. P, W, U and V are solved
    for in turn, with the others held, so that no step raises the objective.

    Otherwise than in the paper:

    - MovieLens says nothing of these users. X holds what their training ratings say: the share of
      them that has a genre or decade, and the damped mean of their residuals.
    - R holds what the biases leave of the ratings; predictions add the biases again.
    - U and V are solved for row by row. Small ridges keep the systems of P and W solvable.
    - One layer on each side, without a constant among the features.
    - A movie without ratings has the factors that minimise the rest of the objective.
    - `unrated_weight` ranks by who rated what.

    Parameters
    ----------
    factors, iterations
        Length of the factors, and times that everything is solved for.
    alpha, beta, coupling
        Weights of the ratings, of the penalty of the factors, and of ``|P U^T - W X|^2``.
    noise
        Probability that an entry of the side information is set to 0.
    words
        Words of movies that are used, the most frequent; W_2 is as large as their number squared.
    unrated_weight
        0 rates and ranks by predicted ratings, as in the paper. Above 0, R is 1 for what was rated
        and 0 for all else, which counts that much: it ranks, and predicts ratings by the biases.
    seed
        Of the initial factors.
    """

    name: ClassVar[str] = "mda-cf"
    factors: int = setting(20, least=1)
    iterations: int = setting(10, least=1)
    alpha: float = setting(0.07, above=0)
    beta: float = setting(0.7, above=0)
    coupling: float = setting(5.0, least=0)
    noise: float = setting(0.1, least=0, below=1)
    words: int = setting(1000, least=1)
    unrated_weight: float = setting(0.0, least=0)
    seed: int = setting(0, least=0)

    def _fit(self, data: Interactions, validation: Any, movies: pd.DataFrame | None) -> None:
        self._catalogue = catalogue_rows(self.describe(movies), self.movie_ids)
        content = content_of(movies, self.described, most=self.words).astype(np.float64)
        rated = content[self._catalogue]
        residual = data.ratings - self._baseline(data.users, data.movies)
        kinds = content_of(movies, self.movie_ids, least=1, parts=("genres", "year"))
        profiles = _profiles(data, residual, kinds.astype(np.float64))
        target = np.ones(len(data)) if self.unrated_weight else residual
        shape = data.n_users, data.n_movies
        by_user = sparse.csr_matrix((self.alpha * target, (data.users, data.movies)), shape=shape)
        by_movie = by_user.T.tocsr()
        generator = np.random.default_rng(self.seed)
        u, v = (generator.normal(0.0, 0.1, (n, self.factors)) for n in shape)
        with threadpool_limits(1, "blas"):  # sums of several threads come in any order
            of_users = SideEncoder(profiles, u, self.noise, self.coupling)
            of_movies = SideEncoder(rated, v, self.noise, self.coupling)
            for _ in range(self.iterations):
                u = self._solve(by_user, v, *of_users.prior(profiles))
                v = self._solve(by_movie, u, *of_movies.prior(rated))
                of_users.fit(u)
                of_movies.fit(v)
            gram, encoded = of_movies.prior(content)
            unrated = np.linalg.solve(gram + self.beta * np.eye(self.factors), encoded.T).T
        self._user_factors, self._movie_factors = u, unrated
        self._movie_factors[self._catalogue] = v

    def _solve(self, entries: Any, others: Floats, gram: Floats, encoded: Floats) -> Floats:
        """The factors of one side, for those of the other and what coupling adds."""
        of_all = self.alpha * self.unrated_weight * others.T @ others
        common = gram + of_all + self.beta * np.eye(self.factors)
        weight = self.alpha * (1.0 - self.unrated_weight)
        return solve_factors(entries, others, weight, common, encoded)

    def _baseline(self, users: Index, movies: Index) -> Floats:
        return super()._predict(users, movies, None)

    def _predict(self, users: Index, movies: Index, timestamps: Index | None) -> Floats:
        rating = self._baseline(users, movies)
        return rating + self._interest(users, self._catalogue[movies])

    def _predict_unrated(self, users: Index, rows: Index) -> Floats:
        return super()._predict_unrated(users, rows) + self._interest(users, rows)

    def _interest(self, users: Index, rows: Index) -> Floats:
        """What the factors add to the biases."""
        if self.unrated_weight:
            return np.zeros(len(users))
        return (self._user_factors[users] * self._movie_factors[rows]).sum(axis=1)

    def _score(self, users: Index, at: float | None) -> NDArray[np.float32]:
        scores = self._user_factors[users] @ self._movie_factors[self._catalogue].T
        return self._in_stars(scores, users, self._movie_bias)

    def _score_unrated(self, users: Index, rows: Index) -> NDArray[np.float32]:
        return self._in_stars(self._user_factors[users] @ self._movie_factors[rows].T, users, 0.0)

    def _in_stars(self, scores: Floats, users: Index, movie_bias: Any) -> NDArray[np.float32]:
        if not self.unrated_weight:
            scores = scores + (self._mean + self._user_bias[users, None] + movie_bias)
        return scores.astype(np.float32)

    def _state(self) -> Arrays:
        factors = {"user_factors": self._user_factors, "movie_factors": self._movie_factors}
        return super()._state() | factors

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        super()._restore(state, extra)
        self._user_factors, self._movie_factors = state["user_factors"], state["movie_factors"]
        self._catalogue = catalogue_rows(self.described, self.movie_ids)


def _profiles(data: Interactions, residual: Floats, kinds: sparse.csr_matrix) -> sparse.csr_matrix:
    """Of each user the share of ratings of each kind of movie, then the mean residual of those."""
    rated = data.matrix().astype(np.float64)
    liked = sparse.csr_matrix((residual, (data.users, data.movies)), shape=rated.shape)
    count, total = (rated @ kinds).toarray(), (liked @ kinds).toarray()
    share = count / np.bincount(data.users, minlength=data.n_users)[:, None]
    return sparse.csr_matrix(np.hstack([share, total / (count + _DAMPING)]))
