"""The training loop: its arithmetic, its schedule, its random state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dlcf.training import (
    Batch,
    History,
    RatingNetwork,
    TrainingConfig,
    mean_squared_error,
    pick_device,
    predict_in_batches,
    seeded,
    train_network,
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
