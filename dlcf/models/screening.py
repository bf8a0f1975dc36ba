"""Top lists of a costly scorer without scoring every movie: guess cheaply, then score in order.

Users' scores over the catalogue are nearly combinations of a few other users' scores. A
:class:`Screen` holds the scores of some users over the whole catalogue. For another user it scores
a random sample of the movies, finds the combination that fits the sample best, and so has a guess
for every movie; then it scores movies in the order of their guesses until the list stands. No
guess is ever in a list: what is ranked are the scores themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Screen"]

USERS, SAMPLE = 64, 512
FIRST, MARGIN = 512, 4
RIDGE = 1e-2  # per sampled movie, in squared units of the scores


class Screen:
    """Guesses of scores, and the lists that come of them.

    Parameters
    ----------
    basis
        Scores of some users over the catalogue, ``(n_users, n_movies)``, on an unbounded scale.
    seed
        Draws the sample of movies.
    """

    def __init__(self, basis: Tensor, seed: int = 0) -> None:
        self.basis = torch.cat([basis, torch.ones_like(basis[:1])])
        generator = torch.Generator().manual_seed(seed)
        sample = torch.randperm(basis.shape[1], generator=generator)[:SAMPLE]
        self.sample = sample.to(basis.device)
        sampled = self.basis[:, self.sample].double()
        penalty = RIDGE * len(sample) * torch.eye(len(self.basis), device=basis.device).double()
        self.solution = torch.linalg.solve(sampled @ sampled.T + penalty, sampled).to(basis.dtype)

    @staticmethod
    def pays(n_users: int, n_movies: int) -> bool:
        """Whether a screen for so many users and movies costs less than it saves."""
        return n_users >= 2 * USERS and n_movies >= 4 * (SAMPLE + FIRST)

    def best(
        self, score: Callable[[Tensor], Tensor], k: int, excluded: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The `k` best movies of one user.

        Movies are scored in the order of their guesses, 512 of them, then twice as many, until
        all of the best `k` come from the first quarter of what was scored. This is a margin, not a
        proof: a movie whose guess is far too low could be missed.

        Parameters
        ----------
        score
            Gives the scores of the movies named, for this user.
        k
            Length of the list; fewer come back where the catalogue is short.
        excluded
            Movies that must not be in the list.

        Returns
        -------
        movies, scores
            ``(k,)``, best first, equal scores by the lower movie.
        """
        guess = (self.solution @ score(self.sample)) @ self.basis
        guess[excluded] = -torch.inf
        n_candidates = len(guess) - len(excluded)
        k = min(k, n_candidates)
        n = min(max(FIRST, MARGIN * k), n_candidates)
        order = guess.argsort(descending=True)[:n_candidates]
        scores = score(order[:n])
        while True:
            places = torch.argsort(order[:n])  # equal scores go by the lower movie
            places = places[scores[places].argsort(descending=True, stable=True)[:k]]
            if n == n_candidates or int(places.max()) < n // MARGIN:
                return order[places], scores[places]
            n = min(2 * n, n_candidates)
            scores = torch.cat([scores, score(order[len(scores) : n])])
