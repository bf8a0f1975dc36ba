"""What the tests share: a small synthetic world, the real ratings, and a reset of randomness."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import matplotlib

matplotlib.use("agg")

import numpy as np
import pandas as pd
import pytest
import torch

import dlcf
from dlcf.data import is_available

PAPER_DATA = "ml-latest-small"
# What is expected was computed on a CPU. Only tests/test_cuda.py is of CUDA: DLCF_TEST_CUDA=1.
if not os.environ.get("DLCF_TEST_CUDA"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Here and not in a fixture: those of a module are set up before those of a function, and a model
# that is fitted on two threads has other bits than on one.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def reset_randomness() -> Iterator[None]:
    """Global generators start equal in every test; DLCF_FREE_SEED=1 frees them to find luck."""
    seed = random.SystemRandom().randrange(2**31) if os.environ.get("DLCF_FREE_SEED") else 1234
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_ratings() -> pd.DataFrame:
    """1,500 half-star ratings of 60 movies by 40 users, made from biases and two factors."""
    generator = np.random.default_rng(7)
    n_users, n_movies, n = 40, 60, 1500
    popularity = 1.0 / (np.arange(n_movies) + 5.0)
    pairs: set[tuple[int, int]] = set()
    while len(pairs) < n:
        user = int(generator.integers(n_users))
        movie = int(generator.choice(n_movies, p=popularity / popularity.sum()))
        pairs.add((user, movie))
    user, movie = np.array(sorted(pairs)).T
    taste, trait = generator.normal(size=(n_users, 2)), generator.normal(size=(n_movies, 2))
    mood, fame = generator.normal(0, 0.4, n_users), generator.normal(0, 0.5, n_movies)
    value = 3.4 + mood[user] + fame[movie] + 0.4 * (taste[user] * trait[movie]).sum(1)
    value += generator.normal(0, 0.4, n)
    return pd.DataFrame(
        {
            "userId": 10 * user + 3,
            "movieId": 7 * movie + 2,
            "rating": (np.clip(np.round(2 * value) / 2, 0.5, 5.0)).astype(np.float32),
            "timestamp": generator.integers(900_000_000, 1_500_000_000, n),
        }
    )


@pytest.fixture(scope="session")
def toy_movies(toy_ratings: pd.DataFrame) -> pd.DataFrame:
    """Titles of the toy movies."""
    ids = np.unique(toy_ratings["movieId"])
    return pd.DataFrame(
        {
            "movieId": ids,
            "title": [f"Film {i} <b>" for i in ids],
            "year": pd.array([1990 + i % 20 for i in ids], dtype="Int16"),
            "genres": [["Drama", "Comedy"][: 1 + i % 2] for i in ids],
        }
    )


@pytest.fixture(scope="session")
def ratings() -> pd.DataFrame:
    """The paper's real ratings."""
    if not is_available(PAPER_DATA):
        pytest.skip(f"{PAPER_DATA} cannot be reached from here")
    return dlcf.load_ratings(PAPER_DATA)
