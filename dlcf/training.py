"""The one training loop: optimiser, schedule, early stopping, history, checkpoints, progress.

It trains any :class:`RatingNetwork`, batch by batch, with a :class:`TrainingStep`: the plain one is
:class:`AutogradStep`, and :data:`FASTER_STEPS` is where a faster one for a type of network can be
put. Batches are cut from tensors by index: a data loader that collates row by row costs more than
the network's own arithmetic at these sizes.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from tqdm import tqdm

from dlcf.runtime.checkpoints import Checkpoint
from dlcf.runtime.distributed import n_processes, share, sum_over_processes
from dlcf.runtime.settings import check_settings, setting

LOG = logging.getLogger(__name__)  # on level INFO, a line an epoch where no bar is shown
# The network's inputs, then the ratings; equally many rows in each.
Batch = tuple[Tensor, ...]


class RatingNetwork(nn.Module):
    """A network that predicts ratings.

    Subclasses implement ``forward(*inputs)``; the first two inputs are user and movie indices,
    int64 ``(n,)``, and what comes back is float32 ``(n,)`` in rating units. One that scores the
    whole catalogue otherwise than pair by pair has ``score_all(users)``, ``(n, n_movies)``.
    """

    def optimizer(self, config: TrainingConfig) -> torch.optim.Optimizer:
        """Adam (Kingma and Ba, 2015) over all parameters by default."""
        return torch.optim.Adam(self.parameters(), config.learning_rate, fused=True)

    def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """The objective of one batch, ``()``, and the mean squared error that is reported of it.

        A batch is the inputs of ``forward``, then the ratings. The objective may hold
        regularisation; by default the two are the same.
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
    precision
        ``"float32"``, or ``"bf16"``: matrix products in bfloat16, weights and sums in float32.
    """

    epochs: int = setting(10, least=1)
    batch_size: int = setting(64, least=1)
    learning_rate: float = setting(1e-3, above=0)
    schedule: str = setting("plateau", choices=("plateau", "one-cycle"))
    lr_factor: float = setting(0.5, above=0, below=1)
    lr_patience: int = setting(2, least=0)
    early_stopping: int | None = setting(None, least=1)
    seed: int = setting(0, least=0)
    device: str = "auto"
    precision: str = setting("float32", choices=("float32", "bf16"))

    def __post_init__(self) -> None:
        check_settings(self)


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

    as_dict = asdict  # the fields by name


class TrainingStep(ABC):
    """What is done with a batch."""

    optimizer: torch.optim.Optimizer  # whose learning rate the schedule changes

    @abstractmethod
    def begin_epoch(self) -> None:
        """Draw the order of the ratings."""

    @abstractmethod
    def __call__(self, start: int, stop: int) -> Tensor:
        """Train on the ratings at places `start` to `stop` of the order.

        Returns the mean squared error, ``()``, which the next call may overwrite.
        """

    @abstractmethod
    def flush(self) -> None:
        """Bring the network's weights up to date; they may lag behind within an epoch."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from: weights, moments, order, random state."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave; what follows is the same, bit for bit."""


class AutogradStep(TrainingStep):
    """Torch's autograd on :meth:`RatingNetwork.losses`, then the network's optimiser.

    Several processes share each batch by DistributedDataParallel. Dropout, and the moments of batch
    norms, are then each process's own.
    """

    def __init__(self, network: RatingNetwork, train: Batch, config: TrainingConfig) -> None:
        self.network = network
        self.train = train
        self.optimizer = network.optimizer(config)
        self.order = torch.empty(0, dtype=torch.int64)
        self.losses: nn.Module = _Losses(network, config.precision == "bf16")
        if n_processes() > 1:
            self.losses = DistributedDataParallel(self.losses)

    def begin_epoch(self) -> None:
        self.order = torch.randperm(len(self.train[-1]), device=self.train[-1].device)
        if n_processes() > 1:
            torch.distributed.broadcast(self.order, 0)

    def __call__(self, start: int, stop: int) -> Tensor:
        rows = self.order[start:stop]
        own = rows[share(len(rows))]
        # Gradients are averaged over processes, whose parts need not be equal; a process whose part
        # is empty takes part with a rating that counts nothing.
        weight = len(own) / len(rows)
        batch = (tensor[own if len(own) else rows[:1]] for tensor in self.train)
        objective, error = self.losses(*batch)
        self.optimizer.zero_grad()
        (objective if n_processes() == 1 else objective * weight * n_processes()).backward()
        self._update_weights()
        return sum_over_processes(error.detach() * weight)

    def _update_weights(self) -> None:
        self.optimizer.step()

    def flush(self) -> None:
        """Nothing to do: the optimiser works on the network's own weights."""

    def state_dict(self) -> dict[str, Any]:
        device = self.train[-1].device
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order,
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.train[-1].device
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order = state["order"].to(device)
        torch.set_rng_state(state["random"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], device)


class _Losses(nn.Module):
    """`losses` as the `forward` of a module, which is what DistributedDataParallel wraps."""

    def __init__(self, network: RatingNetwork, bf16: bool) -> None:
        super().__init__()
        self.network = network
        self.bf16 = bf16

    def forward(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(batch[-1].device.type, torch.bfloat16, enabled=self.bf16):
            return self.network.losses(*batch)


# By the exact type of a network, since a subclass may compute something else. A maker gives None
# where it cannot train with these settings.
StepMaker = Callable[[Any, Batch, TrainingConfig], "TrainingStep | None"]
FASTER_STEPS: dict[type[RatingNetwork], StepMaker] = {}


def training_step(network: RatingNetwork, train: Batch, config: TrainingConfig) -> TrainingStep:
    """A faster step where there is one for this type of network, else :class:`AutogradStep`."""
    faster = FASTER_STEPS.get(type(network))
    step = faster(network, train, config) if faster else None
    return step or AutogradStep(network, train, config)


def pick_device(device: str = "auto") -> torch.device:
    """The device that a name means; ``"auto"`` is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but CUDA is not available here; use 'cpu'")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; give 'auto', 'cpu' or 'cuda'") from error


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

    Losses and learning rates by epoch come back, and a copy of the weights of the epoch with the
    lowest validation loss. ValueError where there are fewer than two ratings: batch normalisation
    has no variance to work with.

    Parameters
    ----------
    network
        Already on the device; it leaves with the weights of the last epoch, in evaluation mode.
    train, validation
        The network's inputs, then the ratings (float32), with `n` rows each, on the same device.
        Without validation rows a plateau is never seen and the best epoch is the last.
    config
        See :class:`TrainingConfig`.
    """
    if len(train[-1]) < 2:
        raise ValueError(f"a network needs at least 2 ratings to train on, not {len(train[-1])}")
    run = _Run(network, train, validation, config)
    trained = config, type(run.step).__qualname__  # each kind of step has bits of its own
    checkpoint = Checkpoint(network, [train, validation], trained)
    state = checkpoint.load()
    if state is not None:
        try:
            run.load_state_dict(state)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            problem = f"{checkpoint.folder} is of another version of this code ({error!r})"
            raise ValueError(f"{problem}; delete it, or keep checkpoints elsewhere") from error
        LOG.info("from a checkpoint: %d of %d epochs are done", run.epoch, config.epochs)
    with tqdm(total=config.epochs, desc="epochs", disable=None, leave=False) as bar:
        while run.epoch < config.epochs and not run.stopped:
            bar.n = run.epoch
            losses = run.history.validation_loss
            bar.set_postfix({"validation_loss": losses[-1]} if losses else {})
            start = time.perf_counter()
            run.train_epoch(checkpoint)
            checkpoint.save(run.state_dict())
            if bar.disable:
                LOG.info("%s, %.1f s", run.last_line(), time.perf_counter() - start)
    network.eval()
    return run.history, run.best


class _Run:
    """One network's way through the epochs; `state_dict` holds all that a resumed run needs."""

    def __init__(
        self, network: RatingNetwork, train: Batch, validation: Batch | None, config: TrainingConfig
    ) -> None:
        self.network, self.validation, self.config = network, validation, config
        self.n_rows = len(train[-1])
        self.step = training_step(network, train, config)
        self.batches = _batches(self.n_rows, config.batch_size)
        self.schedule = _schedule(self.step.optimizer, config, len(self.batches))
        self.history = History()
        self.best: dict[str, Tensor] = {}
        self.epoch = self.batch = 0
        self.total = torch.zeros((), dtype=torch.float64, device=train[-1].device)

    @property
    def stopped(self) -> bool:
        """Whether validation has not improved for as long as early stopping waits."""
        patience = self.config.early_stopping
        return patience is not None and self.epoch - self.history.best_epoch >= patience

    def last_line(self) -> str:
        """The epoch that was last done, in words."""
        history = self.history
        losses = {"train": history.train_loss[-1:], "validation": history.validation_loss[-1:]}
        said = [f"{name} loss {loss:.4f}" for name, values in losses.items() for loss in values]
        return f"epoch {self.epoch} of {self.config.epochs}: {', '.join(said)}"

    def train_epoch(self, checkpoint: Checkpoint) -> None:
        """From where it stands to the end of the epoch."""
        self.network.train()
        if self.batch == 0:
            self.step.begin_epoch()
            self.total.zero_()
        for start, stop in self.batches[self.batch :]:
            self.total += self.step(start, stop) * (stop - start)
            if isinstance(self.schedule, OneCycleLR):
                self.schedule.step()
            self.batch += 1
            if checkpoint.due(self.batch) and self.batch < len(self.batches):
                checkpoint.save(self.state_dict())
        self.step.flush()
        self.network.eval()
        self._record(float(self.total) / self.n_rows)
        self.epoch, self.batch = self.epoch + 1, 0

    def _record(self, train_loss: float) -> None:
        history = self.history
        history.learning_rate.append(self.step.optimizer.param_groups[0]["lr"])
        history.train_loss.append(train_loss)
        if self.validation is not None and len(self.validation[-1]):
            history.validation_loss.append(mean_squared_error(self.network, self.validation))
            if isinstance(self.schedule, ReduceLROnPlateau):
                self.schedule.step(history.validation_loss[-1])
        if history.best_epoch == len(history.train_loss):
            weights = self.network.state_dict()
            self.best = {name: value.clone() for name, value in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "total": self.total,
            "history": self.history.as_dict(),
            "best": self.best,
            "schedule": self.schedule.state_dict(),
            "step": self.step.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.total.copy_(state["total"])
        self.history = History(**state["history"])
        device = self.total.device
        self.best = {name: value.to(device) for name, value in state["best"].items()}
        self.step.load_state_dict(state["step"])
        self.schedule.load_state_dict(state["schedule"])


def _schedule(
    optimizer: torch.optim.Optimizer, config: TrainingConfig, n_batches: int
) -> ReduceLROnPlateau | OneCycleLR:
    if config.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, factor=config.lr_factor, patience=config.lr_patience)
    # Of ten steps the tenth that leads up would end where it begins: a division by zero.
    steps = max(config.epochs * n_batches, 11)
    highest = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, highest, total_steps=steps, pct_start=0.1)


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


def _batches(n_rows: int, batch_size: int) -> Sequence[tuple[int, int]]:
    """Where each batch begins and ends; a single row left over joins the batch before it.

    Batch normalisation cannot train on one row: its variance is undefined.
    """
    starts = list(range(0, n_rows, batch_size))
    if len(starts) > 1 and starts[-1] == n_rows - 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n_rows], strict=True))
