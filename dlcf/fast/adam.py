"""Adam for embedding tables at the cost of the rows that a step touches, not of the whole table.

It replaces dense Adam (Kingma and Ba, 2015), which moves every row of a table at every step, though
a batch of 64 ratings gives a gradient to at most 128 of some 10,000 rows. A row without a gradient
only goes on by its momentum, in a way that is known in advance, so it is left alone until a batch
needs it and all the steps that it missed are then taken in one. No step is skipped, unlike in
"lazy" or "sparse" Adam, whose rows stand still without a gradient: the result is dense Adam's but
for rounding and for epsilon, which keeps its share of sqrt(v) while a row is left alone.

With g = 0 the moments only decay, so k steps after its last gradient, at step s, a row with moments
m and v moves by ::

    lr m / (sqrt(v) + eps_s)  r^k  c_{s+k},   r = beta1 / sqrt(beta2),
    c_j = sqrt(1 - beta2^j) / (1 - beta1^j),  eps_s = eps sqrt(1 - beta2^s)

and the steps that it missed are one product, ``lr m / (sqrt(v) + eps_s)`` times a partial sum of
``r^k c_{s+k}``, a series that is tabulated beforehand. Before anybody else reads the table, all
rows are caught up.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dlcf.fast import kernels
from dlcf.runtime.distributed import share, sum_over_processes
from dlcf.training import Batch, TrainingConfig, TrainingStep

Ints = NDArray[np.int64]

# A power below this is taken as zero: denormal floats are slow, and nothing that small is left.
NEGLIGIBLE = 1e-30
BETAS = (0.9, 0.999)
EPSILON = 1e-8


class DeferredAdam:
    """Dense Adam over the rows of a table, computed only where rows are touched.

    A step is :meth:`catch_up`, then :meth:`update` of the same rows. Between two calls of
    :meth:`flush` the learning rate must not change. The table, float ``(n_rows, size)``, is copied;
    the attribute `table` is where the learned values are.
    """

    def __init__(self, table: NDArray[Any], epsilon: float = EPSILON) -> None:
        self.epsilon = epsilon
        # Value, mean gradient and mean square of a row side by side, one stretch of memory.
        self.rows = np.stack([table, np.zeros_like(table), np.zeros_like(table)], axis=1)
        self.table = self.rows[:, 0]
        # The step up to which a row is right.
        self.last = np.zeros(len(table), dtype=np.int64)
        self.steps = 0
        self.plan_steps(0)

    def plan_steps(self, n_steps: int) -> None:
        """Tabulate the series for the next `n_steps` steps; call it right after :meth:`flush`."""
        beta1, beta2 = BETAS
        self._origin = self.steps
        self._horizon = n_steps
        step = self._origin + np.arange(n_steps + 1)
        ratio = beta1 / np.sqrt(beta2)
        correction = np.sqrt(1 - beta2 ** (step + 1.0)) / (1 - beta1 ** (step + 1.0))
        # series[s] = sum_{k >= 1} r^k c_{s+k}, from the end: series[s] = r (c_{s+1} + series[s+1]).
        # Behind the horizon c is taken as constant; those terms cancel in every partial sum.
        series = np.empty(n_steps + 1)
        tail = correction[-1] * ratio / (1 - ratio)
        for index in range(n_steps, 0, -1):
            series[index] = tail
            tail = ratio * (correction[index - 1] + tail)
        series[0] = tail
        epsilon = self.epsilon * np.sqrt(1 - beta2**step)
        # A row that never had a gradient has m = v = 0 at step 0: 0 / 0 without this.
        self._per_step = np.stack([series, np.maximum(epsilon, np.finfo(np.float32).tiny)], axis=1)
        gap = np.arange(n_steps + 1)
        self._per_gap = np.stack([beta**gap for beta in (ratio, beta1, beta2)], axis=1)
        self._per_gap[self._per_gap < NEGLIGIBLE] = 0.0

    def catch_up(self, rows: NDArray[np.int64], learning_rate: float) -> None:
        """Make `rows` ``(n,)`` of the table right after all steps so far; rows may be repeated."""
        until = self.steps, self._origin, self._per_step, self._per_gap
        kernels.catch_up(self.rows, self.last, rows, *until, learning_rate)

    def update(self, rows: NDArray[np.int64], gradient: NDArray[Any], learning_rate: float) -> None:
        """One step of Adam for `rows`, which were caught up; for all others it is deferred.

        `rows` ``(n,)`` names each row once; `gradient` ``(n, size)`` is that of their values.
        """
        self.steps += 1
        beta1, beta2 = BETAS
        corrected = learning_rate / (1 - beta1**self.steps), (1 - beta2**self.steps) ** -0.5
        kernels.deferred_adam(self.rows, rows, gradient, *corrected, *BETAS, self.epsilon)
        self.last[rows] = self.steps

    def flush(self, learning_rate: float) -> None:
        """Catch all rows up."""
        self.catch_up(np.arange(len(self.table)), learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """Table and moments as they are, not caught up: going on from here changes no bit."""
        names = {"origin": self._origin, "horizon": self._horizon, "steps": self.steps}
        return {"rows": torch.from_numpy(self.rows), "last": torch.from_numpy(self.last), **names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.rows[:] = state["rows"].numpy()
        self.last[:] = state["last"].numpy()
        self.steps = state["origin"]
        self.plan_steps(state["horizon"])
        self.steps = state["steps"]


class PairStep(TrainingStep):
    """A training step by hand on pairs of rows of one table, whose Adam is deferred.

    The rows of `table` are those of all users, then those of all movies; `train` and `config` are
    as for :func:`dlcf.training.train_network`.
    """

    optimizer: FlatAdam

    def __init__(self, table: Tensor, n_users: int, train: Batch, config: TrainingConfig) -> None:
        self.pairs = torch.stack([train[0], train[1] + n_users], dim=1).numpy()
        self.order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.embeddings = DeferredAdam(table.numpy())
        self.batch_size = config.batch_size
        # A single row left over joins the batch before it (dlcf.training).
        self.n_rows = min(config.batch_size, len(self.pairs)) + 1
        # For the rows that a batch names, each once; np.unique would sort them.
        self._slot = np.full(len(table), -1)
        self._rows = np.empty(2 * self.n_rows, dtype=np.int64)
        self._position = np.empty((self.n_rows, 2), dtype=np.int64)
        self._grad_rows = table.new_empty(2 * self.n_rows, table.shape[1]).numpy()
        self._error = torch.zeros(())

    def begin_epoch(self) -> None:
        self.embeddings.plan_steps(-(-len(self.pairs) // self.batch_size))

    def __call__(self, start: int, stop: int) -> Tensor:
        order, learning_rate = self.order[start:stop], self.optimizer.param_groups[0]["lr"]
        n, own = len(order), share(len(order))
        position = self._position[:n]
        count = kernels.distinct_rows(self.pairs[order], self._slot, self._rows, position)
        rows, grad_rows = self._rows[:count], self._grad_rows[:count]
        self.embeddings.catch_up(rows, learning_rate)
        squares = self.differentiate(order[own], position[own], n, grad_rows)
        self.embeddings.update(rows, sum_over_processes(grad_rows), learning_rate)
        return sum_over_processes(self._error.fill_(squares / n))

    @abstractmethod
    def differentiate(self, order: Ints, position: Ints, n: int, grad_rows: NDArray[Any]) -> float:
        """Forward and backward on the ratings `order`, some of a batch of `n`.

        Leaves the gradient of the mean squared error of the batch in `grad_rows`, in which
        `position` says where the rows of each pair are, and takes the step of weights that are in
        no table; returns the sum of squared errors.
        """

    def flush(self) -> None:
        self.embeddings.flush(self.optimizer.param_groups[0]["lr"])
        self._write_back()

    @abstractmethod
    def _write_back(self) -> None:
        """Copy what was learned into the network."""

    def state_dict(self) -> dict[str, Any]:
        order, optimizer = torch.from_numpy(self.order), self.optimizer.state_dict()
        return {"embeddings": self.embeddings.state_dict(), "optimizer": optimizer, "order": order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.embeddings.load_state_dict(state["embeddings"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order = state["order"].numpy()
        self._write_back()


class FlatAdam(torch.optim.Optimizer):
    """Adam on one flat tensor, in one pass over it.

    `weights` and `gradient` are ``(n,)`` on the CPU; the gradient is read from the same tensor at
    every step. Schedules change the learning rate in ``param_groups``.
    """

    def __init__(self, weights: Tensor, gradient: Tensor, learning_rate: float) -> None:
        super().__init__([torch.nn.Parameter(weights)], {"lr": learning_rate})
        self._mean, self._square = torch.zeros_like(weights), torch.zeros_like(weights)
        self._steps = torch.zeros(())
        tensors = weights, gradient, self._mean, self._square
        self._lists = [*([tensor] for tensor in tensors), [], [self._steps]]
        options = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPSILON, "weight_decay": 0.0}
        switches = {"amsgrad": False, "maximize": False, "grad_scale": None, "found_inf": None}
        self._options: dict[str, Any] = options | switches

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The one group; torch's own method would import torch's compiler, which is slow."""
        self.param_groups.append({**self.defaults, **param_group})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """:meth:`update`, with the hooks that torch puts around the step of every optimiser."""
        self.update()

    def update(self) -> None:
        """One step by the gradient as it stands, without those hooks.

        It calls the operation that ``torch.optim.Adam(fused=True)`` ends in.
        """
        self._steps += 1
        torch._fused_adam_(*self._lists, lr=self.param_groups[0]["lr"], **self._options)

    def state_dict(self) -> dict[str, Any]:
        """The moments, the number of steps and the learning rate."""
        moments = {"mean": self._mean, "square": self._square}
        return {**moments, "steps": self._steps, "learning_rate": self.param_groups[0]["lr"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._mean.copy_(state["mean"])
        self._square.copy_(state["square"])
        self._steps.fill_(float(state["steps"]))
        self.param_groups[0]["lr"] = state["learning_rate"]
