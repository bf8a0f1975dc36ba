"""Small settings of models on the toy world, and pairs to ask them about."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dlcf.models.base import Recommender
from dlcf.training import RatingNetwork, TrainingConfig, seeded, train_network

SMALL: dict[str, Any] = {
    "embedding_size": 8,
    "hidden": (12, 6),
    "dropout": (0.0, 0.0),
    "validation_fraction": 0.2,
}  # of deepcf
PLUS: dict[str, Any] = {
    "embedding_size": 4,
    "history_size": 8,
    "folds": 2,
    "cuts": (0.5,),
    "epochs": 2,
    "batch_size": 256,
}
# The smallest that show anything; a model that is not named has few settings.
TINY: dict[str, dict[str, Any]] = {
    "mf": {"epochs": 1, "factors": 3},
    "svdpp": {"epochs": 1, "factors": 3},
    "deepcf": {"epochs": 1, "embedding_size": 4, "hidden": (6,), "dropout": (0.1,)},
    "deepcf-plus": {"epochs": 1, "folds": 2, "cuts": (0.5,), "candidates": 5, "history_size": 4},
    "fm": {"rank": 2, "sweeps": 4, "burn_in": 1},
    "fm-implicit": {"rank": 2, "sweeps": 4, "burn_in": 1},
    "fm-side": {"rank": 2, "sweeps": 4, "burn_in": 1},
    "ials": {"factors": 3, "iterations": 2},
    "cdl": {"factors": 3, "hidden": (4,), "rounds": 2, "epochs": 1},
    "mda-cf": {"factors": 3, "iterations": 2},
    "neumf": {"epochs": 1, "factors": 2},
    "cdae": {"epochs": 1, "factors": 3},
    "multvae": {"epochs": 1, "hidden_size": 6, "latent_size": 3},
    "sasrec": {"epochs": 1, "embedding_size": 4, "length": 5, "blocks": 1},
    "item2vec": {"epochs": 1, "embedding_size": 4},
    "cke": {"epochs": 1, "factors": 3, "hidden": 4},
    "deepconn": {"epochs": 1, "word_size": 4, "filters": 3, "factors": 3, "rank": 2},
}
# The library that a model is fitted with, where it is an optional one.
OPTIONAL = {"fm": "myfm", "fm-implicit": "myfm", "fm-side": "myfm", "ials": "implicit"}


@cache
def can_be_fitted(name: str) -> bool:
    """Whether a model's library can be imported: it may lack, or be built for another Python."""
    try:
        import_module(OPTIONAL.get(name, "dlcf"))
    except ImportError:
        return False
    return True


HISTORY_MODELS: dict[str, dict[str, Any]] = {
    "item-knn": {"neighbors": 5, "shrinkage": 10.0},
    "ease": {"regularization": 20.0},
    "deepcf-plus": PLUS,
}


def history(ratings: pd.DataFrame, user: int) -> pd.DataFrame:
    return ratings[ratings["userId"] == user].sort_values("movieId")


def known_pairs(model: Recommender, n: int = 60) -> pd.DataFrame:
    generator = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "userId": generator.choice(model.user_ids, n),
            "movieId": generator.choice(model.movie_ids, n),
        }
    )


class Additive(Recommender):
    """Rates ``3 + sum over the history of effect of the rated movie``: each rating's part is known.

    Even a history model of the test's own must keep the contract; only what is called is written.
    """

    name = "additive"

    def __init__(self, effect: dict[int, float]) -> None:
        self.effect = effect
        self.movie_ids, self.user_ids = np.array([*effect, 99]), np.array([1])
        self.movie_counts = np.array([*range(1, len(effect) + 1), 1])
        self.gone: set[int] = set()

    def _fit(self, data: Any, validation: Any, movies: Any) -> None: ...

    def _predict(self, users: Any, movies: Any, timestamps: Any) -> Any: ...

    def predict(self, pairs: pd.DataFrame) -> np.ndarray:
        total = sum(value for movie, value in self.effect.items() if movie not in self.gone)
        return np.full(len(pairs), 3.0 + total)

    def ratings_of(self, user_id: int) -> pd.DataFrame:
        kept = [movie for movie in self.effect if movie not in self.gone]
        return pd.DataFrame({"movieId": kept, "rating": 4.0})

    def revised(self, user_id: int, changes: Mapping[int, float | None]) -> Recommender:
        served = copy.copy(self)
        served.gone = self.gone | set(changes)
        return served


class Redundant(Additive):
    """Rates 3, a star more for any of the movies `same`, or only for all of them if `both`, and
    half a star more for movie 3 where it is none of them."""

    name = "redundant"

    def __init__(self, same: tuple[int, ...] = (1, 2), both: bool = False) -> None:
        super().__init__({1: 0.0, 2: 0.0, 3: 0.0})
        self.same, self.both = same, both

    def predict(self, pairs: pd.DataFrame) -> np.ndarray:
        there = [movie not in self.gone for movie in self.same]
        star = all(there) if self.both else any(there)
        half = 3 not in self.same and 3 not in self.gone
        return np.full(len(pairs), 3.0 + star + 0.5 * half)


def assert_slopes(network: RatingNetwork, batch: tuple[Tensor, ...]) -> None:
    """Gradients of the objective are its central differences; what it draws is drawn again."""
    network.double().zero_grad()
    state = {name: value.clone() for name, value in network.named_buffers()}

    def objective() -> Tensor:
        for name, buffer in network.named_buffers():
            buffer.copy_(state[name])
        torch.manual_seed(3)
        return network.losses(*batch)[0]

    torch.set_default_dtype(torch.float64)  # or the differences would be lost in rounding
    try:
        objective().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
            way, ends = torch.randn_like(parameter), []
            with torch.no_grad():
                for step in (1e-5, -2e-5, 1e-5):
                    parameter += step * way
                    ends.append(float(objective()))
            expected = float((parameter.grad * way).sum())
            assert abs((ends[0] - ends[1]) / 2e-5 - expected) < 1e-6 * max(1.0, abs(expected)), name
    finally:
        torch.set_default_dtype(torch.float32)


class UserRatings(RatingNetwork):
    """A learned number for each of 7 users: a rating trains that of its user alone."""

    def __init__(self) -> None:
        super().__init__()
        self.rating = nn.Embedding(7, 1)

    def optimizer(self, config: TrainingConfig) -> torch.optim.Optimizer:
        """Steps as long as the gradients, so that a wrong factor shows; Adam's hide it."""
        return torch.optim.SGD(self.parameters(), config.learning_rate)

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        return self.rating(users).squeeze(1)


def user_ratings(seed: int, batch_size: int) -> dict[str, Tensor]:
    """What torch's autograd makes of a rating of each user, and the losses on the way."""
    users, ratings = torch.arange(7), torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0, 1.0, 2.0])
    config = TrainingConfig(epochs=3, batch_size=batch_size, learning_rate=0.1)
    with seeded(seed, torch.device("cpu")):
        network = UserRatings()
        history, _ = train_network(network, (users, users, ratings), None, config)
    return {
        "ratings": network.rating.weight.detach(),
        "losses": torch.tensor(history.train_loss),
    }
