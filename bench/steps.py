"""What one training step costs: textbook loop, ours, the floor; and as the vocabulary grows.

Each function but :func:`vocabulary_step_times` trains the paper's network on made-up ratings of the
shape of ml-latest-small and gives seconds a step, at torch's thread count. Call them in turn,
several times, in one process, and divide medians: on a computer with other work only ratios mean
anything. With one thread, ``clock=time.process_time`` leaves out what other programs take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dlcf.models.base import Interactions
from dlcf.models.deepcf import AttentionNetwork
from dlcf.models.network import NetworkRecommender
from dlcf.registry import make
from dlcf.training import (
    AutogradStep,
    Batch,
    TrainingConfig,
    TrainingStep,
    seeded,
    training_step,
)

__all__ = [
    "fast_step_time",
    "floor_time",
    "made_up_ratings",
    "textbook_fit",
    "textbook_step_time",
    "vocabulary_step_times",
]

N_USERS, N_MOVIES, SCALE = 610, 9724, (0.5, 5.0)
EMBEDDING_SIZE, HIDDEN = 128, (512, 256, 128, 64)
WARM_UP = 5

Clock = Callable[[], float]


def made_up_ratings(n: int, seed: int = 0) -> Batch:
    """Users, movies (int64) and ratings (float32), ``(n,)``; few users and movies have most."""
    generator = np.random.default_rng(seed)
    users = (N_USERS * generator.random(n) ** 2).astype(np.int64)
    movies = (N_MOVIES * generator.random(n) ** 3).astype(np.int64)
    ratings = generator.integers(1, 11, n).astype(np.float32) / 2
    return tuple(torch.from_numpy(array) for array in (users, movies, ratings))


def textbook_step_time(
    steps: int = 50, batch_size: int = 64, clock: Clock = time.perf_counter
) -> float:
    """The loop of the tutorials: DataLoader over TensorDataset, autograd, default Adam."""
    training = _textbook_steps(
        _network(0), made_up_ratings((WARM_UP + steps) * batch_size), batch_size
    )
    for _ in range(WARM_UP):
        next(training)
    start = clock()
    for _ in training:
        pass
    return (clock() - start) / steps


def textbook_fit(train: Batch, seed: int, epochs: int, batch_size: int = 64) -> AttentionNetwork:
    """The paper's network after so many epochs of that loop; nothing else is done.

    Parameters
    ----------
    train
        Users, movies and ratings; the indices are those of ml-latest-small at most.
    """
    network = _network(seed)
    for _ in _textbook_steps(network, train, batch_size, epochs):
        pass
    return network


def _textbook_steps(
    network: AttentionNetwork, train: Batch, batch_size: int, epochs: int = 1
) -> Iterator[None]:
    """One step each time that the next is asked for; a last batch that is not full is left out.

    If it held one rating, batch norms would refuse it.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    criterion = nn.MSELoss()
    loader = DataLoader(TensorDataset(*train), batch_size, shuffle=True, drop_last=True)
    for _ in range(epochs):
        for users, movies, ratings in loader:
            loss = criterion(network(users, movies), ratings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def fast_step_time(
    steps: int = 50, batch_size: int = 64, clock: Clock = time.perf_counter
) -> float:
    """The step that `deepcf` trains with; drawing the order of an epoch counts."""
    step = _fast_step(0, steps, batch_size)
    for index in range(WARM_UP):
        step(index * batch_size, (index + 1) * batch_size)
    step.flush()
    start = clock()
    step.begin_epoch()
    for index in range(steps):
        step(index * batch_size, (index + 1) * batch_size)
    return (clock() - start) / steps


def floor_time(steps: int = 50, batch_size: int = 64, clock: Clock = time.perf_counter) -> float:
    """The twelve matrix products of forward and backward alone, into memory that is there."""
    sizes = (2 * EMBEDDING_SIZE, *HIDDEN)
    values = [torch.randn(batch_size, size) for size in sizes]
    gradients = [torch.randn(batch_size, size) for size in sizes]
    outputs = [torch.empty(batch_size, size) for size in sizes]
    weights = [torch.randn(outs, ins) for ins, outs in pairwise(sizes)]
    weight_gradients = [torch.empty_like(weight) for weight in weights]
    start = 0.0
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            start = clock()
        for layer, weight in enumerate(weights):
            torch.mm(values[layer], weight.T, out=outputs[layer + 1])
        for layer, weight in enumerate(weights):
            torch.mm(gradients[layer + 1], weight, out=outputs[layer])
            torch.mm(gradients[layer + 1].T, values[layer], out=weight_gradients[layer])
    return (clock() - start) / steps


def vocabulary_step_times(
    model: str, n_rows: int, steps: int, dense_steps: int, clock: Clock = time.perf_counter
) -> tuple[float, float, float]:
    """Seconds of a step where users and movies are `n_rows` together, all equally often drawn.

    Parameters
    ----------
    model
        ``"mf"`` or ``"deepcf"``; its usual settings.
    steps, dense_steps
        How many steps are timed, of ours and of dense Adam's.

    Returns
    -------
    ours, dense, flush
        A step as the model trains; one by autograd and dense Adam; and what bringing all rows up
        to date takes, once an epoch.
    """
    recommender = make(model)
    assert isinstance(recommender, NetworkRecommender)
    recommender.scale = SCALE
    batch_size, n = recommender.batch_size, n_rows // 2
    config = TrainingConfig(batch_size=batch_size, device="cpu")
    generator = np.random.default_rng(0)
    users, movies = generator.integers(0, n, (2, (WARM_UP + steps) * batch_size))
    ratings = (generator.integers(1, 11, len(users)) / 2).astype(np.float32)
    data = Interactions(users, movies, ratings, np.zeros_like(users), n, n)
    train = tuple(torch.from_numpy(array) for array in (users, movies, ratings))

    def seconds(step: TrainingStep, n_steps: int) -> float:
        step.begin_epoch()
        for index in range(WARM_UP + n_steps):
            if index == WARM_UP:
                start = clock()
            step(index * batch_size, (index + 1) * batch_size)
        return (clock() - start) / n_steps

    with seeded(0, torch.device("cpu")):
        network = recommender.build_network(data).train()
        dense = seconds(AutogradStep(network, train, config), dense_steps)
        step = training_step(network, train, config)
        ours = seconds(step, steps)
    start = clock()
    step.flush()
    return ours, dense, clock() - start


def _network(seed: int) -> AttentionNetwork:
    with seeded(seed, torch.device("cpu")):
        return AttentionNetwork(N_USERS, N_MOVIES, SCALE, EMBEDDING_SIZE, HIDDEN)


def _fast_step(seed: int, steps: int, batch_size: int) -> TrainingStep:
    train = made_up_ratings((WARM_UP + steps) * batch_size, seed)
    config = TrainingConfig(seed=seed, batch_size=batch_size)
    step = training_step(_network(seed), train, config)
    step.begin_epoch()
    return step
