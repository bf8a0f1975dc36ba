"""The training loop: its arithmetic, its schedule, its random state."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlcf.runtime.checkpoints import Checkpoint, checkpoints
from dlcf.training import (
    FASTER_STEPS,
    AutogradStep,
    Batch,
    History,
    RatingNetwork,
    TrainingConfig,
    mean_squared_error,
    pick_device,
    predict_in_batches,
    seeded,
    train_network,
    training_step,
)

CPU = torch.device("cpu")


class Constant(RatingNetwork):
    """Predicts one learned number for everything: its optimum is the mean of the ratings."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([start]))

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        return self.value.expand(len(users))


class Table(RatingNetwork):
    """A rating for each user, seen through dropout: training and evaluation must differ."""

    def __init__(self, n_users: int) -> None:
        super().__init__()
        self.rating = nn.Embedding(n_users, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        return self.dropout(self.rating(users)).squeeze(1)


def batch(ratings: list[float]) -> Batch:
    index = torch.arange(len(ratings))
    return index, index, torch.tensor(ratings)


def test_it_finds_the_optimum_of_a_convex_problem() -> None:
    network = Constant()
    config = TrainingConfig(epochs=400, batch_size=4, learning_rate=0.05)
    with seeded(0, CPU):
        history, _ = train_network(network, batch([1.0, 2.0, 3.0, 6.0]), None, config)
    assert network.value.item() == pytest.approx(3.0, abs=1e-2)
    assert history.train_loss[-1] == pytest.approx(3.5, abs=1e-2)
    assert history.best_epoch == 400


def test_losses_weigh_rows_not_batches() -> None:
    """Five rows in batches of 4: the short batch must count a fifth, not a half."""
    data = batch([0.0, 0.0, 0.0, 0.0, 5.0])
    assert mean_squared_error(Constant().eval(), data) == pytest.approx(5.0)
    config = TrainingConfig(epochs=1, batch_size=3, learning_rate=1e-12)
    with seeded(0, CPU):
        history, _ = train_network(Constant(), data, data, config)
    assert history.train_loss == pytest.approx([5.0], abs=1e-5)
    assert history.validation_loss == pytest.approx([5.0], abs=1e-5)


def test_the_learning_rate_falls_when_validation_stalls() -> None:
    config = TrainingConfig(epochs=9, learning_rate=1e-3, lr_factor=0.5, lr_patience=2)
    data = batch([1.0, 2.0])
    with seeded(0, CPU):
        history, _ = train_network(Constant(1.5), data, data, config)
    halvings = [round(1e-3 / rate) for rate in history.learning_rate]
    assert halvings == [1, 1, 1, 1, 2, 2, 2, 4, 4]


def test_one_cycle_goes_up_and_then_down_to_nothing() -> None:
    """100 steps: the rate after each tenth, read where an epoch begins."""
    config = TrainingConfig(epochs=10, batch_size=5, learning_rate=0.1, schedule="one-cycle")
    data = batch([1.0, 2.0] * 25)
    with seeded(0, CPU):
        history, _ = train_network(Constant(1.5), data, None, config)
    rate = history.learning_rate
    assert max(rate) == pytest.approx(0.1, rel=0.02) and rate.index(max(rate)) <= 1
    assert rate[1:] == sorted(rate[1:], reverse=True)
    assert rate[-1] < 1e-4
    with pytest.raises(ValueError, match="schedule is 'cosine'; give plateau or one-cycle"):
        TrainingConfig(schedule="cosine")


def test_early_stopping_and_the_best_weights() -> None:
    """Training pulls to 5, validation wants 0: the first epoch is the best."""
    network = Constant(0.0)
    config = TrainingConfig(epochs=50, learning_rate=0.1, early_stopping=3)
    with seeded(0, CPU):
        history, best = train_network(network, batch([5.0, 5.0]), batch([0.0]), config)
    assert len(history.validation_loss) == 4
    assert history.best_epoch == 1
    assert best["value"].item() == pytest.approx(0.1, abs=1e-4)
    assert network.value.item() > 0.3


def test_the_network_leaves_in_evaluation_mode() -> None:
    network = Table(4)
    data = batch([1.0, 2.0, 3.0, 4.0])
    with seeded(0, CPU):
        history, _ = train_network(network, data, data, TrainingConfig(epochs=2))
    assert not network.training
    assert mean_squared_error(network, data) == history.validation_loss[-1]


def test_a_seed_fixes_the_run_and_leaves_the_callers_state() -> None:
    data = batch([float(i % 5) for i in range(50)])
    config = TrainingConfig(epochs=3, batch_size=8, learning_rate=0.1)
    states = []
    for seed in (0, 0, 1):
        before = torch.get_rng_state()
        with seeded(seed, CPU):
            network = Table(50)
            train_network(network, data, None, config)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(network.rating.weight.detach().clone())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_predicting_in_batches_changes_nothing() -> None:
    network = Table(30).eval()
    users, movies, _ = batch([0.0] * 30)
    whole = predict_in_batches(network, users, movies, batch_size=100)
    assert torch.equal(predict_in_batches(network, users, movies, batch_size=7), whole)


def test_too_little_and_too_wrong() -> None:
    with pytest.raises(ValueError, match="at least 2 ratings"):
        train_network(Constant(), batch([1.0]), None, TrainingConfig())
    for name in ("epochs", "batch_size", "learning_rate"):
        with pytest.raises(ValueError, match=f"{name} is -1"):
            TrainingConfig(**{name: -1})


def test_the_device_is_picked_or_obeyed() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device("auto").type == expected
    assert pick_device("cpu").type == "cpu"


def test_best_epoch_counts_from_one() -> None:
    assert History([3.0, 2.0, 1.0], [5.0, 4.0, 6.0], [1.0] * 3).best_epoch == 2
    assert History([3.0, 2.0], [], [1.0] * 2).best_epoch == 2


def test_one_cycle_keeps_the_ratio_of_the_rates() -> None:
    """Of 100 steps the tenth is at the top, for every group of weights."""
    rates = []

    class TwoSpeeds(Constant):
        def __init__(self) -> None:
            super().__init__(1.5)
            self.slow = nn.Parameter(torch.zeros(1))

        def optimizer(self, config: TrainingConfig) -> torch.optim.Optimizer:
            slow = {"params": [self.slow], "lr": 0.01 * config.learning_rate}
            self.made = torch.optim.Adam([{"params": [self.value]}, slow], config.learning_rate)
            return self.made

        def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
            rates.append([group["lr"] for group in self.made.param_groups])
            return super().losses(*batch)

        def forward(self, users: Tensor, movies: Tensor) -> Tensor:
            return super().forward(users, movies) + self.slow

    config = TrainingConfig(epochs=10, batch_size=5, learning_rate=0.1, schedule="one-cycle")
    with seeded(0, CPU):
        train_network(TwoSpeeds(), batch([1.0, 2.0] * 25), None, config)
    fast, slow = torch.tensor(rates, dtype=torch.float64).T
    torch.testing.assert_close(slow, 0.01 * fast)
    assert len(fast) == 100 and fast.argmax() == 9 and fast.max().item() == pytest.approx(0.1)
    assert (fast[:9].diff() > 0).all() and (fast[9:].diff() < 0).all()


class Noting(RatingNetwork):
    """A linear layer whose outputs are noted: how many rows at a time, and in which type."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.sizes: list[int] = []
        self.types: set[torch.dtype] = set()

    def forward(self, users: Tensor, movies: Tensor) -> Tensor:
        found = self.layer(users[:, None].float())
        self.sizes.append(len(found))
        self.types.add(found.dtype)
        return found.squeeze(1).float()


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "sizes"),
    [
        (4, 2, [2, 2]),
        (5, 2, [2, 3]),  # a row that is left over joins the batch before it
        (4, 3, [4]),
        (8, 3, [3, 3, 2]),
        (3, 3, [3]),
        (2, 5, [2]),
        (3, 1, [1, 2]),
    ],
)
def test_batches_hold_all_rows_and_none_is_of_one_left_over(
    n_rows: int, batch_size: int, sizes: list[int]
) -> None:
    network = Noting()
    config = TrainingConfig(epochs=1, batch_size=batch_size)
    train_network(network, batch([1.0] * n_rows), None, config)
    assert network.sizes == sizes


@pytest.mark.parametrize(
    ("precision", "kind"), [("float32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_is_that_of_the_products(precision: str, kind: torch.dtype) -> None:
    network = Noting()
    train_network(network, batch([1.0, 2.0]), None, TrainingConfig(epochs=1, precision=precision))
    assert network.types == {kind} and network.layer.weight.dtype == torch.float32


def test_the_loss_of_many_batches_is_exact() -> None:
    """Squares that fill the 24 bits of float32: their sum is kept in more, row by row."""
    ratings = [2048.0] * 8 + [1.0] * 395
    config = TrainingConfig(epochs=1, batch_size=4, learning_rate=1e-30)
    with seeded(0, CPU):
        history, _ = train_network(Constant(), batch(ratings), None, config)
    assert history.train_loss == pytest.approx([(8 * 2048**2 + 395) / 403], rel=1e-9)


def test_the_error_is_between_prediction_and_rating() -> None:
    assert mean_squared_error(Constant(1.0), batch([3.0, 4.0])) == 6.5


def test_the_shortest_cycle_ends_at_next_to_nothing() -> None:
    """Eleven steps are the fewest in which the rate goes up and all the way down."""
    rates = []

    class Watched(Constant):
        def optimizer(self, config: TrainingConfig) -> torch.optim.Optimizer:
            self.made = super().optimizer(config)
            return self.made

        def losses(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
            rates.append(self.made.param_groups[0]["lr"])
            return super().losses(*batch)

    config = TrainingConfig(epochs=11, learning_rate=0.1, schedule="one-cycle")
    train_network(Watched(), batch([1.0, 2.0]), None, config)
    assert len(rates) == 11 and rates[1] == max(rates) > 0.09
    assert rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] < 1e-5


class Counting(AutogradStep):
    """Stands for a faster step."""


def test_a_faster_step_is_for_one_type_of_network(monkeypatch: pytest.MonkeyPatch) -> None:
    class Special(Constant):
        """Computes what a faster step for `Constant` need not."""

    monkeypatch.setitem(FASTER_STEPS, Constant, Counting)
    data, config = batch([1.0, 2.0]), TrainingConfig()
    assert type(training_step(Constant(), data, config)) is Counting
    assert type(training_step(Special(), data, config)) is AutogradStep
    monkeypatch.setitem(FASTER_STEPS, Constant, lambda *_: None)
    assert type(training_step(Constant(), data, config)) is AutogradStep


@pytest.mark.parametrize("cuda", [False, True])
def test_what_a_device_is_called(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert pick_device() == pick_device("auto") == torch.device("cuda" if cuda else "cpu")
    if cuda:
        assert pick_device("cuda:0") == torch.device("cuda", 0)
    else:
        with pytest.raises(ValueError, match="device is 'cuda:0', but CUDA is not available"):
            pick_device("cuda:0")
    with pytest.raises(ValueError, match="device is 'by-moon'; give 'auto', 'cpu' or 'cuda'"):
        pick_device("by-moon")


def test_every_epoch_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Where there is no terminal to show a bar on."""
    caplog.set_level("INFO", "dlcf.training")
    data, ones = batch([3.0, 3.0]), batch([1.0])
    config = TrainingConfig(epochs=3, learning_rate=1e-12)
    train_network(Constant(), data, ones, config)
    train_network(Constant(), data, None, config)
    lines = [re.fullmatch(r"(.*), (\d+\.\d) s", line) for line in caplog.messages]
    losses = 3 * ["train loss 9.0000, validation loss 1.0000"] + 3 * ["train loss 9.0000"]
    expected = [f"epoch {1 + i % 3} of 3: {said}" for i, said in enumerate(losses)]
    assert [line and line[1] for line in lines] == expected
    assert all(line and float(line[2]) < 60 for line in lines)


class Stopped(Exception):
    """Raised where a process would have been killed."""


def stop_after(saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training ends with an error once so many checkpoints are written."""
    save, left = Checkpoint.save, iter(range(saves - 1))

    def save_and_stop(checkpoint: Checkpoint, state: Any) -> None:
        save(checkpoint, state)
        if next(left, None) is None:
            raise Stopped

    monkeypatch.setattr(Checkpoint, "save", save_and_stop)


STEADY = TrainingConfig(
    epochs=5, batch_size=4, learning_rate=0.1, lr_patience=0, early_stopping=4, seed=3
)


def trained(config: TrainingConfig) -> tuple[Table, History, dict[str, Tensor]]:
    """14 rows in batches of 4, 4, 4 and 2, so that dropout, order and moments all matter."""
    data = batch([float(i % 5) for i in range(14)])
    with seeded(config.seed, CPU):
        network = Table(14)
        history, best = train_network(network, data, tuple(t[:6] for t in data), config)
    return network, history, best


@pytest.mark.parametrize("schedule", ["plateau", "one-cycle"])
@pytest.mark.parametrize("saves", range(1, 15))
def test_training_goes_on_from_any_checkpoint(
    saves: int,
    schedule: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two in each epoch, one of them after its third batch; what follows has the same bits."""
    config = replace(STEADY, schedule=schedule)
    expected, expected_history, expected_best = trained(config)
    with monkeypatch.context() as patch, checkpoints(tmp_path, steps=3):
        stop_after(saves, patch)
        with suppress(Stopped):
            trained(config)
    caplog.set_level("INFO", "dlcf.training")
    caplog.clear()  # another test may have left the level as low
    with checkpoints(tmp_path, steps=3):
        network, history, best = trained(config)
    epochs = len(history.train_loss)
    done = min(saves // 2, epochs)
    assert caplog.messages[0] == f"from a checkpoint: {done} of 5 epochs are done"
    assert len(caplog.messages) == 1 + epochs - done
    assert history == expected_history
    assert torch.equal(network.rating.weight, expected.rating.weight)
    assert torch.equal(best["rating.weight"], expected_best["rating.weight"])


def test_checkpoints_are_written_after_so_many_steps_and_after_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four steps an epoch: after the second, and once at the end, which is the fourth."""
    saved = []
    save = Checkpoint.save

    def noted(checkpoint: Checkpoint, state: Any) -> None:
        saved.append((state["epoch"], state["batch"]))
        save(checkpoint, state)

    monkeypatch.setattr(Checkpoint, "save", noted)
    with checkpoints(tmp_path, steps=2):
        trained(replace(STEADY, epochs=2))
    assert saved == [(0, 2), (1, 0), (1, 2), (2, 0)]


def test_another_training_has_checkpoints_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other settings, ratings, initial weights or kinds of step: each of them is another."""
    config = TrainingConfig(epochs=1)
    data, other = batch([1.0, 2.0]), batch([1.0, 3.0])

    def folders() -> int:
        return len(list(tmp_path.iterdir()))

    with checkpoints(tmp_path):
        for number, (network, train, validation, given) in enumerate(
            [
                (Constant(), data, None, config),
                (Constant(), data, None, replace(config, learning_rate=0.5)),
                (Constant(), other, None, config),
                (Constant(), data, other, config),
                (Constant(1.0), data, None, config),
            ]
        ):
            train_network(network, train, validation, given)
            assert folders() == number + 1
        train_network(Constant(), data, None, config)
        assert folders() == 5
        monkeypatch.setitem(FASTER_STEPS, Constant, Counting)
        train_network(Constant(), data, None, config)
        assert folders() == 6


def test_a_checkpoint_that_does_not_fit_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with checkpoints(tmp_path):
        trained(STEADY)
        monkeypatch.setattr(Checkpoint, "load", lambda _: {"epoch": 1})
        with pytest.raises(ValueError, match=r"is of another version of this code .*; delete it"):
            trained(STEADY)
