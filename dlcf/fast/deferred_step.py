"""Autograd's training step for embedding tables of which a batch touches few rows.

It replaces the plain autograd step, in which dense Adam walks over a whole table at every step and
autograd fills a gradient as large, nearly all of it zeros. A table's gradient is sparse instead,
the rows that a batch looked up, and Adam's step is :class:`~dlcf.fast.adam.DeferredAdam`'s, equal
to dense Adam's. A hook on the embedding brings rows up to date right before the network reads them,
so that no network has to say which rows it needs. All other weights are the network's own
optimiser's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dlcf.fast.adam import DeferredAdam
from dlcf.training import AutogradStep, Batch, RatingNetwork, TrainingConfig


class DeferredStep(AutogradStep):
    """Autograd, with Adam's steps for the rows of `tables` deferred.

    They are embeddings of the network, which reads them only by calling them; Adam's settings are
    torch's defaults for them.
    """

    def __init__(
        self,
        network: RatingNetwork,
        train: Batch,
        config: TrainingConfig,
        tables: Iterable[nn.Embedding],
    ) -> None:
        self.n_steps = -(-len(train[-1]) // config.batch_size)
        self.tables = [_Table(embedding) for embedding in tables]
        super().__init__(network, train, config)

    def begin_epoch(self) -> None:
        super().begin_epoch()
        for table in self.tables:
            table.adam.plan_steps(self.n_steps)

    def __call__(self, start: int, stop: int) -> Tensor:
        for table in self.tables:
            table.open(self.optimizer.param_groups[0]["lr"])
        return super().__call__(start, stop)

    def _update_weights(self) -> None:
        for table in self.tables:
            table.update()
        super()._update_weights()

    def flush(self) -> None:
        for table in self.tables:
            table.close()

    def state_dict(self) -> dict[str, Any]:
        tables = [table.adam.state_dict() for table in self.tables]
        return {**super().state_dict(), "tables": tables}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for table, kept in zip(self.tables, state["tables"], strict=True):
            table.adam.load_state_dict(kept)


class _Table:
    """An embedding; while it is open, its weights are those that :class:`DeferredAdam` works on."""

    def __init__(self, embedding: nn.Embedding) -> None:
        self.embedding = embedding
        self.adam = DeferredAdam(embedding.weight.detach().numpy())
        self._own = embedding.weight.data
        self._hook: Any = None

    def open(self, learning_rate: float) -> None:
        """Open it, unless it is; the learning rate is the same until :meth:`close`."""
        if self._hook is not None:
            return
        self._learning_rate = learning_rate
        self.embedding.sparse = True
        self.embedding.weight.data = torch.from_numpy(self.adam.table)
        self._hook = self.embedding.register_forward_pre_hook(self._catch_up)

    def close(self) -> None:
        """Bring all rows up to date and give the embedding its own weights back."""
        self.adam.flush(self._learning_rate)
        self._own.copy_(self.embedding.weight.data)
        self.embedding.weight.data = self._own
        self.embedding.sparse = False
        self._hook.remove()
        self._hook = None

    def update(self) -> None:
        """One step by the gradient, which is consumed: no other optimiser may see it."""
        gradient = self.embedding.weight.grad
        assert gradient is not None
        self.embedding.weight.grad = None
        gradient = gradient.coalesce()
        rows, values = gradient.indices()[0].numpy(), gradient.values().numpy()
        self.adam.update(rows, values, self._learning_rate)

    def _catch_up(self, embedding: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.adam.catch_up(inputs[0].numpy(), self._learning_rate)
