"""The one training loop: Adam, a plateau schedule, early stopping, history, progress.

It trains any :class:`RatingNetwork`. Batches are cut from tensors by index: a data loader that
collates row by row costs more than the network's own arithmetic at these sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

__all__ = [
    "History",
    "RatingNetwork",
    "TrainingConfig",
    "mean_squared_error",
    "pick_device",
    "predict_in_batches",
    "seeded",
    "train_network",
]

# The network's inputs, then the ratings; equally many rows in each.
Batch = tuple[Tensor, ...]
SCHEDULES = ("plateau", "one-cycle")


class RatingNetwork(nn.Module):
    """A network that predicts ratings.

    Subclasses implement ``forward(*inputs)``; the first two inputs are user and movie indices,
    int64 ``(n,)``, and what comes back is float32 ``(n,)`` in rating units.
    """

    def optimizer(self, config: TrainingConfig) -> torch.optim.Optimizer:
        """Adam (Kingma and Ba, 2015) over all parameters by default."""
        return torch.optim.Adam(self.parameters(), config.learning_rate, fused=True)

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """What one batch is trained on and what is reported of it.

        Parameters
        ----------
        *batch
            The inputs of ``forward``, then the ratings.

        Returns
        -------
        objective, error
            The objective, which may hold regularisation, and the mean squared error alone; the
            same by default.
        """
        *inputs, ratings = batch
        error = nn.functional.mse_loss(self(*inputs), ratings)
        return error, error


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained; the defaults are the paper's.

    Attributes
    ----------
    epochs, batch_size, learning_rate
        Passes over the data, ratings a step, Adam's step size.
    schedule
        ``"plateau"``: ReduceLROnPlateau on validation loss. ``"one-cycle"``: a tenth of the steps
        up to `learning_rate`, then down to zero (Smith and Topin, 2018); needs no validation data.
    lr_factor, lr_patience
        Of ``"plateau"``: multiply the learning rate by the factor after more than `lr_patience`
        epochs without improvement.
    early_stopping
        Stop after this many epochs without improvement; None never stops.
    seed
        Draws the initial weights, the order of the ratings and the dropout.
    device
        ``"cpu"``, ``"cuda"``, ... or ``"auto"``: CUDA where there is one.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    schedule: str = "plateau"
    lr_factor: float = 0.5
    lr_patience: int = 2
    early_stopping: int | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give a positive number")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; choose {' or '.join(SCHEDULES)}")


@dataclass
class History:
    """What happened in each epoch; losses are mean squared errors in squared rating units.

    The train loss is the mean over the epoch's batches as they were trained on, weighted by their
    rows (dropout on, penalty left out); the validation loss is over all validation rows, with the
    network in evaluation mode.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """Number (from 1) of the epoch with the lowest validation loss; the last without one."""
        if not self.validation_loss:
            return len(self.train_loss)
        return 1 + min(range(len(self.validation_loss)), key=self.validation_loss.__getitem__)

    def as_dict(self) -> dict[str, Any]:
        """The three lists by name."""
        return asdict(self)


def pick_device(device: str = "auto") -> torch.device:
    """The device that a name means; ``"auto"`` is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from `seed` inside; the caller's state is left as it was."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def train_network(
    network: RatingNetwork, train: Batch, validation: Batch | None, config: TrainingConfig
) -> tuple[History, dict[str, Tensor]]:
    """Train in place; call it inside :func:`seeded`.

    Parameters
    ----------
    network
        Already on the device; it leaves with the weights of the last epoch, in evaluation mode.
    train, validation
        The network's inputs, then the ratings (float32), with `n` rows each, on the same device.
        Without validation rows a plateau is never seen and the best epoch is the last.
    config
        See :class:`TrainingConfig`.

    Returns
    -------
    history
        Losses and learning rates by epoch.
    best_state
        A copy of the weights of the epoch with the lowest validation loss.

    Raises
    ------
    ValueError
        There are fewer than two ratings: batch normalisation has no variance to work with.
    """
    ratings = train[-1]
    if len(ratings) < 2:
        raise ValueError(f"a network needs at least 2 ratings to train on, not {len(ratings)}")
    optimizer = network.optimizer(config)
    plateau, one_cycle = _schedule(optimizer, config, len(ratings))
    history = History()
    best_state: dict[str, Tensor] = {}
    bar = tqdm(range(config.epochs), desc="epochs", disable=None, leave=False)
    for _ in bar:
        network.train()
        total = torch.zeros((), dtype=torch.float64, device=ratings.device)
        order = torch.randperm(len(ratings), device=ratings.device)
        for rows in _batches(order, config.batch_size):
            objective, error = network.losses(*(tensor[rows] for tensor in train))
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()
            if one_cycle is not None:
                one_cycle.step()
            total += error.detach() * len(rows)
        history.learning_rate.append(optimizer.param_groups[0]["lr"])
        history.train_loss.append(float(total) / len(ratings))
        network.eval()
        if validation is not None and len(validation[-1]):
            history.validation_loss.append(mean_squared_error(network, validation))
            if plateau is not None:
                plateau.step(history.validation_loss[-1])
            bar.set_postfix(validation_loss=f"{history.validation_loss[-1]:.4f}")
        epoch = len(history.train_loss)
        if history.best_epoch == epoch:
            best_state = copy.deepcopy(network.state_dict())
        elif (
            config.early_stopping is not None
            and epoch - history.best_epoch >= config.early_stopping
        ):
            break
    return history, best_state


@torch.no_grad()
def predict_in_batches(network: RatingNetwork, *inputs: Tensor, batch_size: int = 16384) -> Tensor:
    """The network's output for all rows; memory is bounded by `batch_size`, not by the rows."""
    parts = zip(*(tensor.split(batch_size) for tensor in inputs), strict=True)
    return torch.cat([network(*part) for part in parts])


def mean_squared_error(network: RatingNetwork, data: Batch) -> float:
    """Over all rows, each counted once: a mean of batch means would overweight a short batch."""
    *inputs, ratings = data
    error = predict_in_batches(network, *inputs) - ratings
    return float(error.double().square().mean())


def _schedule(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, n_rows: int
) -> tuple[
    torch.optim.lr_scheduler.ReduceLROnPlateau | None, torch.optim.lr_scheduler.OneCycleLR | None
]:
    """The schedule that is stepped after each epoch, and the one after each batch."""
    if config.schedule == "plateau":
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=config.lr_factor, patience=config.lr_patience
        )
        return plateau, None
    steps = config.epochs * len(_batches(torch.arange(n_rows), config.batch_size))
    # At exactly ten steps the tenth that leads up would end where it begins: a division by zero.
    steps = max(steps, 11)
    highest = [group["lr"] for group in optimizer.param_groups]
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, highest, total_steps=steps, pct_start=0.1
    )
    return None, one_cycle


def _batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Cut `order` in batches; a single row left over joins the batch before it.

    Batch normalisation cannot train on one row: its variance is undefined.
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
