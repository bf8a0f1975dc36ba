"""A world of three genres: what a user likes is said by the genre, and by nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd

GENRES = ("comedy", "drama", "war")


def world(n_users: int = 60, n_movies: int = 45, seed: int = 0) -> tuple[pd.DataFrame, ...]:
    """Train and test ratings, and the movies; three of these, 43 to 45, are rated in test only.

    User u likes genre ``u % 3``, of which she rates two in three movies, else one in five. Movie m
    is of genre ``m % 3``.
    """
    generator = np.random.default_rng(seed)
    movies = pd.DataFrame(
        {
            "movieId": np.arange(1, n_movies + 1),
            "title": [f"Film {m}" for m in range(n_movies)],
            "year": pd.array([2000] * n_movies, dtype="Int16"),
            "genres": [[GENRES[m % 3].title()] for m in range(n_movies)],
        }
    )
    user, movie = (axis.ravel() for axis in np.indices((n_users, n_movies)))
    likes = user % 3 == movie % 3
    chosen = generator.random(len(user)) < np.where(likes, 0.67, 0.2)
    stars = np.where(likes, 4.5, 2.5) + generator.choice([-0.5, 0.0, 0.5], len(user))
    ratings = pd.DataFrame(
        {
            "userId": user + 1,
            "movieId": movie + 1,
            "rating": stars.astype(np.float32),
            "timestamp": 10**9 + np.arange(len(user)),
        }
    )[chosen]
    new = ratings["movieId"] > n_movies - 3
    held_out = new | (generator.random(len(ratings)) < 0.25)
    return ratings[~held_out], ratings[held_out], movies
