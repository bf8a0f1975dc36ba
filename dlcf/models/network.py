"""What every model that is a trained network shares: hold-out, training, weights, saving."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlcf.models.base import Arrays, Floats, Index, Interactions, Recommender
from dlcf.training import (
    Batch,
    History,
    RatingNetwork,
    TrainingConfig,
    pick_device,
    predict_in_batches,
    seeded,
    train_network,
)

WEIGHTS = ("last", "best")

# By the exact type of a network: its ratings of all movies for users (int64 ``(n,)``),
# ``(n, n_movies)``, with less arithmetic than pair by pair.
FASTER_SCORES: dict[type[RatingNetwork], Callable[[Any, Tensor], Tensor]] = {}


class NetworkRecommender(Recommender):
    """A recommender whose ratings come from a :class:`~dlcf.training.RatingNetwork`.

    Both the weights of the last epoch and those of the best validation epoch are kept and saved;
    :meth:`use_weights` chooses between them without training again.
    """

    # The weights that are kept, and the prefix of their names in a saved model.
    saved_as: ClassVar[dict[str, str]] = {which: which for which in WEIGHTS}

    seed: int
    device: str
    validation_fraction: float
    weights: str

    history: History
    _states: dict[str, dict[str, Tensor]]
    network: Any  # the RatingNetwork that `build_network` gave

    def use_weights(self, which: str) -> NetworkRecommender:
        """Predict with the ``"last"`` or ``"best"`` epoch's weights; returns the model itself."""
        if which not in self.saved_as:
            raise ValueError(f"weights are {which!r}; choose one of {', '.join(self.saved_as)}")
        self._check_fitted()
        self.weights = which
        self.network.load_state_dict(self._states[which])
        return self

    def training_config(self) -> TrainingConfig:
        """The part of the hyper-parameters that the training loop reads."""
        wanted = {field.name for field in fields(TrainingConfig)}
        return TrainingConfig(**{k: v for k, v in self.config.items() if k in wanted})

    def torch_device(self) -> torch.device:
        """Where the network is."""
        self._check_fitted()
        return next(self.network.parameters()).device

    @abstractmethod
    def build_network(self, data: Interactions) -> RatingNetwork:
        """A fresh network for the vocabularies and the ratings of `data`."""

    def _fit(
        self, data: Interactions, validation: Interactions | None, movies: pd.DataFrame | None
    ) -> None:
        if validation is None:
            data, validation = hold_out(data, self.validation_fraction, self.seed)
        device = pick_device(self.device)
        held_out = None if validation is None else _tensors(validation, device)
        self._train(data, _tensors(data, device), held_out)
        self._after_training(held_out)

    def _train(self, data: Interactions, train: Batch, held_out: Batch | None) -> None:
        """Build a network for `data`, train it on the rows of `train`, and keep its weights."""
        config, device = self.training_config(), pick_device(self.device)
        with seeded(self.seed, device):
            self.network = self.build_network(data).to(device)
            self._before_training(train)
            self.history, best = train_network(self.network, train, held_out, config)
        last = {name: value.clone() for name, value in self.network.state_dict().items()}
        self._states = {which: {"last": last, "best": best}[which] for which in self.saved_as}
        self.network.load_state_dict(self._states[self.weights])

    def _before_training(self, train: Batch) -> None:
        """For what a network takes from the rows before it learns from them; nothing here."""

    def _after_training(self, held_out: Batch | None) -> None:
        """For what is to be measured on the ratings held out, of both weights; nothing here."""

    def _predict(self, users: Index, movies: Index, timestamps: Index | None) -> Floats:
        device = self.torch_device()
        index = torch.as_tensor(users, device=device), torch.as_tensor(movies, device=device)
        return predict_in_batches(self.network, *index).cpu().double().numpy()

    def _score(self, users: Index, at: float | None) -> NDArray[np.float32]:
        kind = type(self.network)
        score_all = FASTER_SCORES.get(kind, getattr(kind, "score_all", None))
        if score_all is None:
            return super()._score(users, at)
        index = torch.as_tensor(users, device=self.torch_device())
        return score_all(self.network, index).cpu().numpy()

    def _state(self) -> Arrays:
        return {
            f"{prefix}.{name}": value.cpu().numpy()
            for which, prefix in self.saved_as.items()
            for name, value in self._states[which].items()
        }

    def _extra(self) -> dict[str, Any]:
        return {"history": self.history.as_dict()}

    def _restore(self, state: Arrays, extra: dict[str, Any]) -> None:
        self.history = History(**extra["history"])
        self._states = {}
        for which, prefix in self.saved_as.items():
            named = {k.partition(".")[2]: v for k, v in state.items() if k.startswith(f"{prefix}.")}
            self._states[which] = {name: torch.from_numpy(value) for name, value in named.items()}
        users, movies = (array.astype(np.int64) for array in self._seen.nonzero())
        # Ratings only set initial values, which the saved weights replace.
        stars, time = self._seen.data, np.zeros_like(users)
        data = Interactions(users, movies, stars, time, *self._seen.shape)
        device = pick_device(self.device)
        with seeded(self.seed, device):
            self.network = self.build_network(data).to(device).eval()
        for name, buffer in list(self.network.named_buffers()):
            saved = self._states[self.weights][name]
            if saved.shape != buffer.shape:  # what users rated, less what was held out
                setattr(self.network, name, saved.to(device))
        for which in (*self.saved_as, self.weights):  # all of them, so that each is known to fit
            self.network.load_state_dict(self._states[which])


def hold_out(
    data: Interactions, fraction: float, seed: int
) -> tuple[Interactions, Interactions | None]:
    """Set a random share of the ratings aside; none where it would round to nothing."""
    n_held_out = int(fraction * len(data))
    if n_held_out == 0:
        return data, None
    order = np.random.default_rng(seed).permutation(len(data))
    return data.take(np.sort(order[n_held_out:])), data.take(np.sort(order[:n_held_out]))


def _tensors(data: Interactions, device: torch.device) -> Batch:
    columns = data.users, data.movies, data.ratings
    return tuple(torch.as_tensor(column, device=device) for column in columns)
