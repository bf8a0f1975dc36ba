"""Adam for embedding tables at the cost of the rows that a step touches, not of the whole table.

Adam (Kingma and Ba, 2015) moves *every* row of a table at *every* step, though a batch of 64
ratings gives a gradient to at most 128 of some 10,000 rows: the others go on by their momentum.
What they do is known in advance. With g = 0 the moments only decay, so k steps after its last
gradient, at step s, a row with moments m and v moves by ::

    lr m / (sqrt(v) + eps_s)  r^k  c_{s+k},   r = beta1 / sqrt(beta2),
    c_j = sqrt(1 - beta2^j) / (1 - beta1^j),  eps_s = eps sqrt(1 - beta2^s)

and all the steps it missed are one product, ``lr m / (sqrt(v) + eps_s)`` times the partial sum of
``r^k c_{s+k}``, a series tabulated beforehand. So a row is left alone until a batch needs it, is
then *caught up* with one product, and takes its step; before anybody else looks at the table, all
rows are caught up. Nothing is skipped, unlike in "lazy" or "sparse" Adam, whose rows without a
gradient stand still: the result is dense Adam's but for rounding and for eps, which is held at its
share of sqrt(v) while a row is left alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["DeferredAdam", "FlatAdam"]

# A power below this is taken as zero: denormal floats are slow, and nothing that small is left.
NEGLIGIBLE = 1e-30
ROWS_AT_ONCE = 65536


class DeferredAdam:
    """Dense Adam over the rows of a table, computed only where rows are fetched.

    A step is :meth:`fetch`, then :meth:`update` with the gradient of what was fetched. Between two
    calls of :meth:`settle` the learning rate must not change.

    Parameters
    ----------
    table
        Float ``(n_rows, size)``; it is copied, `table` is where the learned values are.
    betas, epsilon
        Adam's.
    """

    def __init__(
        self, table: Tensor, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
    ) -> None:
        self.betas = betas
        self.epsilon = epsilon
        # Values, mean gradient and mean square side by side: one read and one write for a row.
        self.rows = torch.stack([table, torch.zeros_like(table), torch.zeros_like(table)], dim=1)
        self.table = self.rows[:, 0]
        # The step up to which a row is right.
        self.last = torch.zeros(len(table), dtype=torch.int64, device=table.device)
        self.steps = 0
        self.expect(0)

    def expect(self, n_steps: int) -> None:
        """Tabulate the series for the next `n_steps` steps; call it right after :meth:`settle`."""
        beta1, beta2 = self.betas
        self._origin = self.steps
        self._horizon = n_steps
        step = self._origin + np.arange(n_steps + 1)
        ratio = beta1 / np.sqrt(beta2)
        correction = np.sqrt(1 - beta2 ** (step + 1.0)) / (1 - beta1 ** (step + 1.0))
        # series[s] = sum_{k >= 1} r^k c_{s+k}; behind the horizon c is taken as constant, and those
        # terms cancel in every partial sum.
        series = np.empty(n_steps + 1)
        tail = correction[-1] * ratio / (1 - ratio)
        for index in range(n_steps, 0, -1):
            series[index] = tail
            tail = ratio * (correction[index - 1] + tail)
        series[0] = tail
        epsilon = self.epsilon * np.sqrt(1 - beta2**step)
        # A row that never had a gradient has m = v = 0 at step 0: 0 / 0 without this.
        by_step = np.stack([series, np.maximum(epsilon, np.finfo(np.float32).tiny)], axis=1)
        gap = np.arange(n_steps + 1)
        by_gap = np.stack([beta**gap for beta in (ratio, beta1, beta2)], axis=1)
        by_gap[by_gap < NEGLIGIBLE] = 0.0
        self._by_step, self._by_gap = (
            torch.as_tensor(table, dtype=self.table.dtype, device=self.table.device)
            for table in (by_step, by_gap)
        )

    def fetch(self, rows: Tensor, rate: float | Tensor) -> Tensor:
        """Values of distinct `rows` after all steps so far, ``(n, size)``.

        Parameters
        ----------
        rows
            int64 ``(n,)``, each row once.
        rate
            The learning rate, or one for each row, ``(n, 1)``.
        """
        self._fetched = rows
        self._current = self.rows.index_select(0, rows)
        values, mean, square = self._current.unbind(1)
        last = self.last.index_select(0, rows)
        by_gap = self._by_gap.index_select(0, self.steps - last)
        series, epsilon = self._by_step.index_select(0, last - self._origin).split(1, dim=1)
        missed = series - by_gap[:, :1] * self._by_step[self.steps - self._origin, 0]
        values.addcdiv_(mean * (missed * rate), square.sqrt().add_(epsilon), value=-1)
        self._current[:, 1:].mul_(by_gap[:, 1:, None])
        return values

    def update(self, gradient: Tensor, rate: float | Tensor) -> None:
        """One step of Adam for the rows that were fetched; for all others it is deferred.

        Parameters
        ----------
        gradient
            ``(n, size)``, by the values that :meth:`fetch` gave.
        rate
            As for :meth:`fetch`.
        """
        beta1, beta2 = self.betas
        self.steps += 1
        values, mean, square = self._current.unbind(1)
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction = (1 - beta2**self.steps) ** 0.5
        scale = square.sqrt().add_(self.epsilon * correction)
        step = mean * (rate * (correction / (1 - beta1**self.steps)))
        values.addcdiv_(step, scale, value=-1)
        self._store()

    def settle(self, rate: float | Tensor) -> None:
        """Catch all rows up; `rate` is a number, or one for each row, ``(n_rows, 1)``."""
        for rows in torch.arange(len(self.table), device=self.table.device).split(ROWS_AT_ONCE):
            self.fetch(rows, rate if isinstance(rate, float) else rate[rows])
            self._store()

    def state_dict(self) -> dict[str, Any]:
        """Table and moments as they are, not caught up: going on from here changes no bit."""
        names = {"origin": self._origin, "horizon": self._horizon, "steps": self.steps}
        return {"rows": self.rows, "last": self.last, **names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.rows.copy_(state["rows"])
        self.last.copy_(state["last"])
        self.steps = state["origin"]
        self.expect(state["horizon"])
        self.steps = state["steps"]

    def _store(self) -> None:
        self.rows.index_copy_(0, self._fetched, self._current)
        self.last.index_fill_(0, self._fetched, self.steps)


class FlatAdam(torch.optim.Optimizer):
    """Torch's fused Adam on one flat tensor; the kernel alone, without a walk over parameters.

    Parameters
    ----------
    weights, gradient
        ``(n,)``; the gradient is read from the same tensor at every step.
    learning_rate
        Schedules change it in ``param_groups``.
    """

    def __init__(self, weights: Tensor, gradient: Tensor, learning_rate: float) -> None:
        super().__init__([torch.nn.Parameter(weights)], {"lr": learning_rate})
        self._weights = weights
        self._gradient = gradient
        moments = {"mean": torch.zeros_like(weights), "square": torch.zeros_like(weights)}
        self._own = {**moments, "steps": torch.zeros((), dtype=torch.float32)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the weights by the gradient as it stands."""
        torch._fused_adam_(
            [self._weights],
            [self._gradient],
            [self._own["mean"]],
            [self._own["square"]],
            [],
            [self._own["steps"].add_(1)],
            lr=self.param_groups[0]["lr"],
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """The moments, the number of steps and the learning rate."""
        return {**self._own, "learning_rate": self.param_groups[0]["lr"]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        for name, own in self._own.items():
            own.copy_(state[name])
        self.param_groups[0]["lr"] = state["learning_rate"]
