"""The step of matrix factorisation by hand: dense Adam's weights, for the rows of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dlcf.baselines.svdpp import ImplicitFactorNetwork
from dlcf.fast import kernels
from dlcf.fast.attention_step import AttentionStep
from dlcf.fast.factor_step import FactorStep
from dlcf.models.base import Interactions
from dlcf.models.deepcf import AttentionNetwork
from dlcf.models.mf import FactorNetwork
from dlcf.training import (
    FASTER_STEPS,
    AutogradStep,
    Batch,
    RatingNetwork,
    TrainingConfig,
    TrainingStep,
    seeded,
    train_network,
    training_step,
)
from dlcf.variants.networks import FaithfulAttentionNetwork

N_USERS, N_MOVIES, N_RATINGS, BATCH_SIZE = 30, 50, 203, 10
CONFIG = TrainingConfig(
    epochs=6, batch_size=BATCH_SIZE, learning_rate=0.02, lr_patience=0, device="cpu"
)


def toy_interactions() -> Interactions:
    """The last user and the last movie have no rating; learning from the noise, plateaus come."""
    generator = np.random.default_rng(0)
    users = generator.integers(0, N_USERS - 1, N_RATINGS)
    movies = generator.integers(0, N_MOVIES - 1, N_RATINGS)
    ratings = (generator.integers(1, 11, N_RATINGS) / 2).astype(np.float32)
    return Interactions(users, movies, ratings, np.zeros_like(users), N_USERS, N_MOVIES)


def toy_batch(dtype: torch.dtype = torch.float64) -> Batch:
    data = toy_interactions()
    ratings = torch.from_numpy(data.ratings).to(dtype)
    return torch.from_numpy(data.users), torch.from_numpy(data.movies), ratings


def factors() -> RatingNetwork:
    return FactorNetwork(toy_interactions(), 4, 0.1, 0.01)


def implicit_factors() -> RatingNetwork:
    return ImplicitFactorNetwork(toy_interactions(), 4, 0.1, 0.01)


def attention() -> RatingNetwork:
    return AttentionNetwork(N_USERS, N_MOVIES, (0.5, 5.0), 4, (6,), (0.3,))


def trained(
    make: Callable[[], RatingNetwork],
    step: Callable[[RatingNetwork, Batch, TrainingConfig], TrainingStep],
) -> tuple[RatingNetwork, list[float]]:
    """In float64, and the losses and learning rates of the epochs."""
    batch = toy_batch()
    train, validation = (tuple(t[rows] for t in batch) for rows in (slice(163), slice(163, None)))
    with seeded(0, torch.device("cpu")), pytest.MonkeyPatch.context() as patch:
        network = make().double()
        patch.setitem(FASTER_STEPS, type(network), step)
        history, _ = train_network(network, train, validation, CONFIG)
    return network, [*history.train_loss, *history.learning_rate]


def test_the_weights_are_dense_adams() -> None:
    """What is left is epsilon's part (dlcf.fast.adam), far less than one step of 0.02."""
    dense, expected = trained(factors, AutogradStep)
    network, losses = trained(factors, FactorStep)
    assert losses[-1] < CONFIG.learning_rate, "choose other data: the learning rate never falls"
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for found, wanted in zip(network.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_the_gradient_by_hand_is_autograds() -> None:
    """Of a part of a batch, on rows that it shares."""
    network = FactorNetwork(toy_interactions(), 4, 0.1, 0.01).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    users, movies, ratings = (tensor[:40] for tensor in toy_batch())
    step = FactorStep(network, (users, movies, ratings), CONFIG)
    rows, position = np.unique(step.pairs, return_inverse=True)
    position = position.reshape(step.pairs.shape)
    grad_rows = np.empty((len(rows), 5))
    batch = step.embeddings.rows, step.pairs, position, step.deviations, 100
    squares = kernels.factor_gradient(*batch, *step.penalties, grad_rows)
    objective, error = network.losses(users, movies, ratings)
    assert squares / 40 == pytest.approx(error.item(), rel=1e-12)
    (objective * 0.4).backward()
    sides = (network.user_factors, network.user_bias), (network.movie_factors, network.movie_bias)
    expected = [torch.cat([t.weight.grad for t in side], dim=1) for side in sides]  # type: ignore[misc]
    found = torch.zeros_like(torch.cat(expected))
    found[torch.from_numpy(rows)] = torch.from_numpy(grad_rows)
    torch.testing.assert_close(found, torch.cat(expected))
    assert float(found.abs().max()) > 0.01


def test_a_step_by_hand_touches_the_rows_of_its_batch_alone() -> None:
    network = factors().train()
    assert isinstance(network, FactorNetwork)
    step = training_step(network, toy_batch(torch.float32), CONFIG)
    assert isinstance(step, FactorStep)
    step.begin_epoch()
    for start in (0, BATCH_SIZE):
        before = step.embeddings.rows.copy()
        step(start, start + BATCH_SIZE)
        changed = np.flatnonzero((step.embeddings.rows != before).any(axis=(1, 2)))
        touched = np.unique(step.pairs[step.order[start : start + BATCH_SIZE]])
        assert np.array_equal(changed, touched)


@pytest.mark.parametrize(
    ("network", "config", "step"),
    [
        (factors, {}, FactorStep),
        (attention, {}, AttentionStep),
        (implicit_factors, {}, AutogradStep),
        (attention, {"precision": "bf16"}, AutogradStep),
        # A learning rate that changes at every step cannot be deferred.
        (attention, {"schedule": "one-cycle"}, AutogradStep),
        (attention, {"device": "meta"}, AutogradStep),
    ],
)
def test_networks_choose_their_step(
    network: Callable[[], RatingNetwork], config: dict[str, Any], step: type[TrainingStep]
) -> None:
    given = TrainingConfig(**{"device": "cpu", **config})
    train = tuple(tensor.to(given.device) for tensor in toy_batch(torch.float32))
    assert type(training_step(network().to(given.device), train, given)) is step


def test_losses_that_look_at_whole_tables_stay_dense() -> None:
    layers = 4, (6,), (0.3,)
    network = FaithfulAttentionNetwork(N_USERS, N_MOVIES, (0.5, 5.0), *layers, faithful_weight=0.5)
    assert type(training_step(network, toy_batch(torch.float32), CONFIG)) is AutogradStep
