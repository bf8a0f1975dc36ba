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

import torch
from numpy.typing import NDArray
from torch import nn

from dlcf.fast import kernels
from dlcf.fast.adam import FlatAdam, Ints, PairStep
from dlcf.models.mf import FactorNetwork
from dlcf.training import Batch, TrainingConfig


class FactorStep(PairStep):
    """A training step of :class:`~dlcf.models.mf.FactorNetwork` on the CPU.

    A row of the one table is a user's or a movie's factors, then the bias.
    """

    def __init__(self, network: FactorNetwork, train: Batch, config: TrainingConfig) -> None:
        self.network = network
        nothing = torch.empty(0)  # the optimiser holds the learning rate, and no more
        self.optimizer = FlatAdam(nothing, nothing, config.learning_rate)
        self.deviations = train[2].numpy() - network.mean.numpy()
        self.penalties = network.regularization, network.bias_regularization
        table = torch.cat([torch.cat([f.weight, b.weight], dim=1) for f, b in _sides(network)])
        super().__init__(table.detach(), len(network.user_bias.weight), train, config)

    def begin_epoch(self) -> None:
        self.order = torch.randperm(len(self.pairs)).numpy()
        super().begin_epoch()

    def differentiate(self, order: Ints, position: Ints, n: int, grad_rows: NDArray[Any]) -> float:
        batch = self.embeddings.rows, self.pairs[order], position, self.deviations[order], n
        return kernels.factor_gradient(*batch, *self.penalties, grad_rows)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "random": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["random"])
        super().load_state_dict(state)

    @torch.no_grad()
    def _write_back(self) -> None:
        sides = _sides(self.network)
        rows = torch.from_numpy(self.embeddings.table).split(
            [len(bias.weight) for _, bias in sides]
        )
        for (factors, bias), learned in zip(sides, rows, strict=True):
            factors.weight.copy_(learned[:, :-1])
            bias.weight.copy_(learned[:, -1:])


def _sides(network: FactorNetwork) -> list[tuple[nn.Embedding, nn.Embedding]]:
    """Factors and bias of the users, and of the movies."""
    users, movies = network.user_factors, network.movie_factors
    return [(users, network.user_bias), (movies, network.movie_bias)]
