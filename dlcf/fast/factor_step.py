"""The training step of matrix factorisation by hand.

It replaces autograd's step on :class:`~dlcf.models.mf.FactorNetwork`, where the graph of small
operations costs far more than the arithmetic of a batch. The gradient, the one that autograd takes,
is one loop over the ratings (:func:`dlcf.fast.kernels.factor_gradient`), and the rows of the tables
take Adam's steps only where a batch touches them (:class:`~dlcf.fast.adam.DeferredAdam`). Orders
are drawn as autograd's step draws them, so the result is the same but for rounding and for what
deferring leaves of epsilon.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlcf.fast import kernels
from dlcf.fast.adam import DeferredAdam, DistinctRows, FlatAdam
from dlcf.models.mf import FactorNetwork
from dlcf.runtime.distributed import share, sum_array_over_processes, sum_over_processes
from dlcf.training import Batch, TrainingConfig, TrainingStep

__all__ = ["FactorStep"]


class FactorStep(TrainingStep):
    """A training step of :class:`~dlcf.models.mf.FactorNetwork` on the CPU.

    A row of the one table is a user's or a movie's factors, then the bias.
    """

    def __init__(self, network: FactorNetwork, train: Batch, config: TrainingConfig) -> None:
        self.network = network
        nothing = torch.empty(0)  # the optimiser holds the learning rate, and no more
        self.optimizer = FlatAdam(nothing, nothing, config.learning_rate)
        self.batch_size = config.batch_size
        users, movies, ratings = train
        self.pairs = torch.stack([users, movies + len(network.user_bias.weight)], dim=1).numpy()
        self.deviations = ratings.numpy() - network.mean.numpy()
        self.penalties = network.regularization, network.bias_regularization
        self.order = torch.empty(0, dtype=torch.int64)
        self.tables = DeferredAdam(self._table().numpy())
        n_rows, size = config.batch_size + 1, self.tables.table.shape[1]
        self._distinct = DistinctRows(len(self.tables.table), n_rows)
        self._grad_rows = np.empty((2 * n_rows, size), dtype=self.tables.table.dtype)

    def begin_epoch(self) -> None:
        self.order = torch.randperm(len(self.pairs))
        self.tables.plan_steps(-(-len(self.pairs) // self.batch_size))

    def __call__(self, start: int, stop: int) -> Tensor:
        order = self.order[start:stop].numpy()
        n, own = len(order), share(len(order))
        learning_rate = self.optimizer.param_groups[0]["lr"]
        pairs = self.pairs[order]
        rows, position = self._distinct(pairs)
        self.tables.catch_up(rows, learning_rate)
        grad_rows = self._grad_rows[: len(rows)]
        deviations = self.deviations[order[own]]
        batch = self.tables.rows, pairs[own], position[own], deviations, n
        squares = kernels.factor_gradient(*batch, *self.penalties, grad_rows)
        self.tables.update(rows, sum_array_over_processes(grad_rows), learning_rate)
        return sum_over_processes(torch.tensor(squares / n))

    def flush(self) -> None:
        self.tables.flush(self.optimizer.param_groups[0]["lr"])
        self._write_back()

    def state_dict(self) -> dict[str, Any]:
        return {
            "tables": self.tables.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order,
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tables.load_state_dict(state["tables"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order = state["order"]
        torch.set_rng_state(state["random"])
        self._write_back()

    def _table(self) -> Tensor:
        network = self.network
        users = torch.cat([network.user_factors.weight, network.user_bias.weight], dim=1)
        movies = torch.cat([network.movie_factors.weight, network.movie_bias.weight], dim=1)
        return torch.cat([users, movies]).detach()

    @torch.no_grad()
    def _write_back(self) -> None:
        """Copy what was learned into the network."""
        network, table = self.network, torch.from_numpy(self.tables.table)
        n_users = len(network.user_bias.weight)
        for factors, bias, rows in (
            (network.user_factors, network.user_bias, table[:n_users]),
            (network.movie_factors, network.movie_bias, table[n_users:]),
        ):
            factors.weight.copy_(rows[:, :-1])
            bias.weight.copy_(rows[:, -1:])
