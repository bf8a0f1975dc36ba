"""The fast step: deferred Adam is dense Adam, the hand-written gradient is autograd's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from dlcf.fast import kernels
from dlcf.fast.adam import DeferredAdam, FlatAdam
from dlcf.fast.attention_step import AttentionStep
from dlcf.models.deepcf import AttentionNetwork
from dlcf.registry import fit_together, make
from dlcf.runtime.paths import ROOT
from dlcf.training import (
    AutogradStep,
    Batch,
    TrainingConfig,
    mean_squared_error,
    seeded,
    train_network,
)


@pytest.mark.parametrize("flush_every", [7, 150])
@pytest.mark.parametrize(("epsilon", "tolerance"), [(1e-16, 1e-10), (1e-8, 1e-4)])
def test_deferred_adam_is_dense_adam(flush_every: int, epsilon: float, tolerance: float) -> None:
    """In float64, so that what differs is the method.

    Without epsilon it is exact. With Adam's, gradients of 1e-4 in the first steps, whose root mean
    square is not far above epsilon yet, leave some thousandths of a step of 0.01.
    """
    generator = np.random.default_rng(0)
    start = generator.normal(size=(12, 4))
    dense = torch.nn.Parameter(torch.from_numpy(start.copy()))
    learning_rate = 0.01
    reference = torch.optim.Adam([dense], learning_rate, eps=epsilon)
    deferred = DeferredAdam(start, epsilon=epsilon)
    for step in range(150):
        if step % flush_every == 0:
            deferred.flush(learning_rate)
            np.testing.assert_allclose(deferred.table, dense.data, rtol=0, atol=tolerance)
            if step == 98:  # as a plateau does
                learning_rate = reference.param_groups[0]["lr"] = 0.003
            deferred.plan_steps(flush_every)
        # Row 11 never has a gradient, row 0 only in the first step.
        chosen = generator.choice(10, 2, replace=False) + 1 if step else np.array([0, 3])
        deferred.catch_up(chosen, learning_rate)
        np.testing.assert_allclose(
            deferred.table[chosen], dense.data[chosen], rtol=0, atol=tolerance
        )
        gradient = generator.normal(size=(2, 4)) * 10.0 ** generator.integers(-4, 1)
        dense.grad = torch.zeros_like(dense)
        dense.grad[torch.from_numpy(chosen)] = torch.from_numpy(gradient)
        reference.step()
        deferred.update(chosen, gradient, learning_rate)
    deferred.flush(learning_rate)
    np.testing.assert_allclose(deferred.table, dense.data, rtol=0, atol=tolerance)
    assert np.array_equal(deferred.table[11], start[11])
    # One step is 0.01; lazy Adam, whose rows stand still without a gradient, would stop there.
    assert np.abs(deferred.table[0] - start[0]).min() > 0.05


def test_flat_adam_is_adam() -> None:
    generator = np.random.default_rng(0)
    start = torch.from_numpy(generator.normal(size=50))
    dense = torch.nn.Parameter(start.clone())
    reference = torch.optim.Adam([dense], 0.01)
    weights, gradient = start.clone(), torch.zeros_like(start)
    flat = FlatAdam(weights, gradient, 0.01)
    for step in range(40):
        gradient.copy_(torch.from_numpy(generator.normal(size=50) * 10.0 ** (step % 5 - 4)))
        dense.grad = gradient.clone()
        reference.step()
        flat.update()
        if step == 20:
            reference.param_groups[0]["lr"] = flat.param_groups[0]["lr"] = 0.003
    torch.testing.assert_close(weights, dense.data, rtol=1e-12, atol=1e-12)


def toy_batch(n: int, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    users, movies = generator.integers(0, 5, n), generator.integers(0, 7, n)
    ratings = generator.integers(1, 11, n) / 2
    return tuple(torch.from_numpy(array) for array in (users, movies, ratings))


def kept(step: AttentionStep, bits: NDArray[np.uint16]) -> list[Tensor]:
    """The factor of each unit, layer by layer: 0 where it is dropped."""
    parts = np.split(bits, [layer.first_bit for layer in step.layers][1:], axis=1)
    return [
        torch.from_numpy(np.where(own >= layer.dropped, layer.scale, 0.0))
        for layer, own in zip(step.layers, parts, strict=True)
    ]


def test_a_part_of_a_batch_has_its_part_of_the_gradient() -> None:
    """As for a process among several; without batch norms' moments, which they exchange."""
    pairs = np.array([[0, 5], [1, 6], [0, 7], [2, 5]])
    slot, rows, position = np.full(12, -1), np.empty(8, dtype=np.int64), np.empty((4, 2), np.int64)
    for _ in range(2):  # the slots are left as they were found
        assert kernels.distinct_rows(pairs, slot, rows, position) == 6
        assert rows[:6].tolist() == [0, 5, 1, 6, 7, 2]
        assert np.array_equal(rows[position], pairs)
    hidden = np.random.default_rng(0).normal(size=(4, 3))
    weights, ratings = np.array([0.3, -0.2, 0.5]), np.array([1.0, 2.0, 4.5, 5.0])
    whole, parts = [np.zeros((4, 3)), np.zeros(3)], [np.zeros((4, 3)), np.zeros(3)]
    squares, grad_bias = kernels.output(hidden, weights, 0.1, ratings, 0.5, 4.5, 4, *whole)
    for part in (slice(0, 1), slice(1, 4)):
        grad_weights = np.zeros(3)
        found = kernels.output(
            hidden[part], weights, 0.1, ratings[part], 0.5, 4.5, 4, parts[0][part], grad_weights
        )
        parts[1] += grad_weights
        squares, grad_bias = squares - found[0], grad_bias - found[1]
    assert abs(squares) < 1e-12 and abs(grad_bias) < 1e-12
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_dropout_keeps_the_expected_share() -> None:
    network = AttentionNetwork(5, 7, (0.5, 5.0), 3, (512, 256), (0.3, 0.0))
    step = AttentionStep(network, toy_batch(9, 0), TrainingConfig())
    first, second = (kept(step, step.draw_bits(64)) for _ in range(2))
    n = first[0].numel()
    share = float((first[0] > 0).double().mean())
    assert abs(share - 0.7) < 4 * (0.3 * 0.7 / n) ** 0.5
    assert first[0].unique().tolist() == pytest.approx([0.0, 1 / 0.7], abs=1e-4)
    agree = float(((first[0] > 0) == (second[0] > 0)).double().mean())
    assert agree == pytest.approx(0.7**2 + 0.3**2, abs=0.02)
    assert bool((first[1] == 1).all())


def textbook_losses(train: Batch, validation: Batch, seed: int, epochs: int) -> list[float]:
    """Validation losses of the loop of the tutorials, epoch by epoch."""
    torch.manual_seed(seed)
    network = paper_network(train)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(epochs):
        network.train()
        for users, movies, ratings in DataLoader(TensorDataset(*train), 64, shuffle=True):
            loss = torch.nn.functional.mse_loss(network(users, movies), ratings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(mean_squared_error(network.eval(), validation))
    return losses


def paper_network(train: Batch) -> AttentionNetwork:
    return AttentionNetwork(610, 1 + int(train[1].max()), (0.5, 5.0))


def fast_losses(train: Batch, validation: Batch, seed: int, epochs: int) -> list[float]:
    config = TrainingConfig(epochs=epochs, seed=seed, device="cpu")
    with seeded(seed, torch.device("cpu")):
        history, _ = train_network(paper_network(train), train, validation, config)
    return history.validation_loss


def test_the_loss_curve_is_the_textbook_loops(ratings: pd.DataFrame) -> None:
    """Means over seeds lie within their standard errors, on a tenth of the real ratings.

    Three epochs, in which the loss first falls and then rises; the seeds are fixed, so the outcome
    is too. Lazy Adam, whose embeddings stand still without a gradient, is many errors away.
    """
    sample = ratings.sample(10000, random_state=0)
    users = torch.from_numpy(np.unique(sample["userId"], return_inverse=True)[1])
    movies = torch.from_numpy(np.unique(sample["movieId"], return_inverse=True)[1])
    batch = users, movies, torch.tensor(sample["rating"].to_numpy())
    train, validation = (tuple(t[part] for t in batch) for part in (slice(8000), slice(8000, None)))
    curves = [
        np.array([losses(train, validation, seed, 3) for seed in range(5)])
        for losses in (textbook_losses, fast_losses)
    ]
    textbook, fast = (curve.mean(axis=0) for curve in curves)
    errors = np.sqrt(sum(curve.var(axis=0, ddof=1) / len(curve) for curve in curves))
    assert (errors < 0.02).all(), errors
    assert (np.abs(fast - textbook) < 3 * errors).all(), (fast - textbook, errors)


SETTINGS = {"embedding_size": 8, "hidden": (16, 8), "dropout": (0.3, 0.1), "epochs": 4}


def test_models_fitted_together_are_those_fitted_alone(toy_ratings: pd.DataFrame) -> None:
    """Learning rates fall and training stops at different epochs; each model has its own."""
    torch.set_num_threads(2)  # reset_randomness puts it back
    settings = {**SETTINGS, "epochs": 12, "lr_patience": 0, "early_stopping": 2}
    settings["learning_rate"] = 0.01
    together = fit_together("deepcf", [3, 0, 7], toy_ratings, **settings)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = [make("deepcf", seed=seed, **settings).fit(toy_ratings) for seed in (3, 0, 7)]
    stopped = {len(model.history.train_loss) for model in alone}  # type: ignore[attr-defined]
    assert len(stopped) > 1, "choose other settings: all stop at the same epoch"
    for one, other in zip(together, alone, strict=True):
        assert one.config == other.config
        assert one.history == other.history  # type: ignore[attr-defined]
        assert np.array_equal(one.predict(toy_ratings), other.predict(toy_ratings))
    assert np.abs(together[0].predict(toy_ratings) - together[1].predict(toy_ratings)).max() > 0.1


@pytest.mark.parametrize("name", ["bias", "mf", "deepcf-plus"])
def test_any_model_can_be_fitted_for_several_seeds(name: str, toy_ratings: pd.DataFrame) -> None:
    settings = {"epochs": 2, "folds": 2} if name == "deepcf-plus" else {}
    alone = [make(name, seed=seed, **settings).fit(toy_ratings) for seed in (0, 1)]
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        together = fit_together(name, [0, 1], toy_ratings, **settings)
        torch.set_num_threads(1)
        for model, other in zip(together, alone, strict=True):
            assert np.array_equal(model.predict(toy_ratings), other.predict(toy_ratings))
    assert fit_together(name, [], toy_ratings, **settings) == []


def test_bf16_stays_close(toy_ratings: pd.DataFrame) -> None:
    """Against autograd in float32, which has the same order and dropout."""
    users, movies, ratings = toy_batch(400, 0)
    data = users, movies, ratings.float()
    predictions = {}
    for precision in ("float32", "bf16"):
        config = TrainingConfig(precision=precision, batch_size=100, device="cpu")
        with seeded(0, torch.device("cpu")):
            network = AttentionNetwork(5, 7, (0.5, 5.0), 8, (16, 8), (0.3, 0.1)).train()
            step = AutogradStep(network, data, config)
            for _ in range(5):
                step.begin_epoch()
                for start in range(0, 400, 100):
                    step(start, start + 100)
        assert all(p.dtype == torch.float32 for p in network.parameters())
        predictions[precision] = network.eval()(users, movies).detach()
    difference = (predictions["bf16"] - predictions["float32"]).abs()
    assert 0 < float(difference.max()) < 0.1
    with pytest.raises(ValueError, match="precision is 'int8'; give float32 or bf16"):
        TrainingConfig(precision="int8")
    fitted = make("deepcf", seed=0, precision="bf16", **SETTINGS).fit(toy_ratings)
    assert np.isfinite(fitted.predict(toy_ratings)).all()


def test_a_first_run_has_the_bits_of_the_second(toy_ratings: pd.DataFrame, tmp_path: Path) -> None:
    """The first compiles the loops, the second loads them from the cache."""
    toy_ratings.to_csv(tmp_path / "ratings.csv", index=False)
    program = """
import sys, pandas as pd
from dlcf.registry import make
train = pd.read_csv(sys.argv[1]).astype({"rating": "float32"})
deep = {"embedding_size": 8, "hidden": (16, 8), "dropout": (0.3, 0.1), "epochs": 3}
for name, settings in {"deepcf": deep, "mf": {"epochs": 3}, "svdpp": {"epochs": 3}}.items():
    model = make(name, seed=0, **settings)
    print(model.fit(train).predict(train).tobytes().hex())
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(tmp_path / "ratings.csv")]
    runs = [
        subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True).stdout
        for _ in range(2)
    ]
    assert any((tmp_path / "numba").rglob("kernels.deferred_adam-*.nbc"))
    assert runs[0] == runs[1]


def test_a_first_fit_does_not_load_torchs_compiler() -> None:
    """That takes longer than a small fit, in every process."""
    program = """
import sys, pandas as pd
from dlcf.registry import make
users, movies = [1, 1, 2, 2], [1, 2, 1, 3]
train = pd.DataFrame({"userId": users, "movieId": movies, "rating": [1.0, 4.0, 3.0, 5.0]})
for name, settings in {"mf": {}, "deepcf": {"hidden": (4,), "dropout": (0.0,)}}.items():
    make(name, epochs=1, **settings).fit(train.astype({"rating": "float32"}))
sys.exit("torch._dynamo" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_seed_draws_the_order_and_the_dropout() -> None:
    """With the same initial weights: they are drawn elsewhere."""
    network = AttentionNetwork(5, 6, (0.5, 5.0), 4, (8,), (0.5,))
    index = torch.arange(60)
    train = index % 5, index % 6, torch.rand(60)
    drawn = []
    for seed in (0, 0, 1):
        step = AttentionStep(network, train, TrainingConfig(seed=seed))
        step.begin_epoch()
        drawn.append((step.order.tolist(), step.draw_bits(9).tolist()))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0] and drawn[0][1] != drawn[2][1]
    assert sorted(drawn[2][0]) == list(range(60))
