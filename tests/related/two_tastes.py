"""A world in which who likes what is known, and the derivative of an objective by differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from dlcf.evaluation import per_user
from dlcf.models.base import Interactions
from dlcf.registry import make
from dlcf.training import RatingNetwork


def two_tastes() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and test: 60 users, each of whom rates movies of one half of 60 alone."""
    generator = np.random.default_rng(5)
    cells = [
        (user, movie)
        for user in range(60)
        for movie in 30 * (user % 2) + generator.permutation(30)[:16]
    ]
    frame = pd.DataFrame(cells, columns=["userId", "movieId"]).assign(rating=4.0)
    test = frame.groupby("userId").tail(4)
    return frame.drop(test.index).reset_index(drop=True), test.reset_index(drop=True)


def ndcg(name: str, **settings: Any) -> float:
    train, test = two_tastes()
    return float(per_user(make(name, **settings).fit(train), train, test)["ndcg"].mean())


def small_data() -> Interactions:
    """Three users; the last one rated all four movies but one."""
    users, movies = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 2, 1, 0, 1, 3])
    return Interactions(users, movies, np.full(6, 4.0, np.float32), np.zeros_like(users), 3, 4)


def check_gradients(network: RatingNetwork, *batch: torch.Tensor) -> None:
    """Of every parameter's first and last elements; what is drawn is the same each time."""
    network.double()

    def objective() -> torch.Tensor:
        torch.manual_seed(3)
        return network.losses(*batch)[0]

    network.zero_grad()
    objective().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for i in {0, len(flat) // 2, len(flat) - 1}:
            around = []
            for step in (1e-6, -1e-6):
                flat[i] += step
                around.append(float(objective().detach()))
                flat[i] -= step
            difference = (around[0] - around[1]) / 2e-6
            assert abs(difference - float(gradient[i])) < 1e-6, f"{name}, element {i}"
