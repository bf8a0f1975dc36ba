"""Ratings of a whole catalogue by the folded tower are those of the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import dlcf
from dlcf.fast.catalogue import FoldedTower, score_all
from dlcf.models.base import top_k
from dlcf.models.deepcf import AttentionNetwork
from dlcf.models.network import NetworkRecommender

N_USERS, N_MOVIES = 7, 3000


def network_of(
    seed: int,
    hidden: tuple[int, ...] = (48, 32, 16),
    weight_scale: float = 1.0,
    embedding_scale: float = 30.0,
) -> AttentionNetwork:
    """Weights, biases and batch norms away from where training begins; scores of all sizes."""
    torch.manual_seed(seed)
    network = AttentionNetwork(N_USERS, N_MOVIES, (0.5, 5.0), 16, hidden, (0.1,) * len(hidden))
    for name, tensor in network.state_dict().items():
        if name.endswith("embedding.weight"):
            tensor.mul_(embedding_scale)
        elif name.endswith("running_var"):
            tensor.copy_(torch.rand_like(tensor) + 0.1)
        elif tensor.dtype == torch.float32:
            tensor.mul_(weight_scale).add_(0.2 * torch.randn_like(tensor))
    return network.eval()


def dead(network: AttentionNetwork) -> None:
    network.output.weight.data.zero_()  # all movies tie


def saturated(network: AttentionNetwork) -> None:
    network.output.bias.data.fill_(40.0)  # ratings tie, what they are made of does not


def silent(network: AttentionNetwork) -> None:
    cast(Tensor, network.tower[1].bias.data).fill_(-1e3)  # no unit of the first layer is open


def uneven(network: AttentionNetwork) -> None:
    linear = network.tower[4]
    linear.weight.data[::3] *= 1e3
    linear.weight.data[1] = 0
    network.tower[8].weight.data[:, ::3] /= 1e3


NETWORKS: dict[str, Callable[[], AttentionNetwork]] = {
    "usual": lambda: network_of(0),
    "small weights": lambda: network_of(1, weight_scale=0.1),
    "large weights": lambda: network_of(2, weight_scale=5.0),
    "alike": lambda: network_of(3, embedding_scale=0.01),
    "two layers": lambda: network_of(4, hidden=(24, 8)),
    "five layers": lambda: network_of(5, hidden=(64, 48, 32, 16, 8)),
}
CHANGES = {change.__name__: change for change in (dead, saturated, silent, uneven)}


def changed(name: str) -> AttentionNetwork:
    if name in NETWORKS:
        return NETWORKS[name]()
    network = network_of(6)
    CHANGES[name](network)
    return network


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", [*NETWORKS, *CHANGES])
def test_scores_are_the_networks(name: str, n_threads: int) -> None:
    """Against the network in float64, pair by pair."""
    torch.set_num_threads(n_threads)  # reset_randomness puts it back
    network = changed(name)
    found = score_all(network, torch.arange(N_USERS))
    assert torch.get_num_threads() == n_threads
    users = torch.arange(N_USERS).repeat_interleave(N_MOVIES)
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(users, torch.arange(N_MOVIES).repeat(N_USERS))
    np.testing.assert_allclose(found.flatten(), exact, rtol=0, atol=2e-5)
    # Scores of some users are those of all.
    torch.testing.assert_close(
        score_all(network, torch.tensor([4, 1])), found[[4, 1]], rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("name", [*NETWORKS, *CHANGES])
def test_lists_are_the_exact_ones(name: str) -> None:
    """Wherever neighbours in the list are not so close that rounding may order them."""
    network = changed(name)
    users = torch.arange(N_USERS).repeat_interleave(N_MOVIES)
    with torch.no_grad():
        exact = network(users, torch.arange(N_MOVIES).repeat(N_USERS)).view(N_USERS, N_MOVIES)
    columns = top_k(score_all(network, torch.arange(N_USERS)).numpy(), 10)
    expected = top_k(exact.numpy(), 11)
    best = np.take_along_axis(exact.numpy(), expected, axis=1)
    steps = -np.diff(best, axis=1, prepend=np.inf)
    distinct = (steps[:, :10] > 1e-5) & (steps[:, 1:] > 1e-5)
    assert distinct.any() or name in ("alike", "large weights", "dead", "silent", "saturated")
    assert np.array_equal(columns[distinct], expected[:, :10][distinct])


def test_logits_in_float64_are_the_networks() -> None:
    network = network_of(0).double()
    user = network.user_embedding.weight.detach()
    low, high = network.scale
    ratings = low + (high - low) * torch.sigmoid(FoldedTower(network).logits(user))
    users = torch.arange(N_USERS).repeat_interleave(N_MOVIES)
    with torch.no_grad():
        exact = network(users, torch.arange(N_MOVIES).repeat(N_USERS)).view(N_USERS, N_MOVIES)
    torch.testing.assert_close(ratings, exact, rtol=1e-12, atol=1e-12)


def test_what_is_not_a_number_stays_so() -> None:
    network = network_of(0)
    network.output.bias.data.fill_(torch.nan)
    assert bool(score_all(network, torch.arange(N_USERS)).isnan().all())
    network = network_of(0)
    network.tower[4].weight.data[3] = torch.inf  # of a unit that is closed for some pairs
    network.tower[4].bias.data[3] = -1e30
    users = torch.arange(N_USERS).repeat_interleave(N_MOVIES)
    with torch.no_grad():
        exact = network(users, torch.arange(N_MOVIES).repeat(N_USERS)).view(N_USERS, N_MOVIES)
    found = score_all(network, torch.arange(N_USERS))
    torch.testing.assert_close(found, exact, rtol=0, atol=2e-6, equal_nan=True)


def test_weights_that_were_written_to_have_a_tower_of_their_own() -> None:
    network, users = network_of(0), torch.arange(N_USERS)
    before = score_all(network, users)
    assert torch.equal(score_all(network, users), before)
    with torch.no_grad():
        network.output.bias.add_(0.5)
    after = score_all(network, users)
    assert bool((after >= before).all()) and bool((after > before + 0.01).any())
    network.load_state_dict(network_of(1).state_dict())
    assert torch.equal(score_all(network, users), score_all(network_of(1), users))


def test_a_models_lists_are_the_same_with_and_without(ratings: pd.DataFrame) -> None:
    """On the real ratings, of the last weights and of the best."""
    model = cast(NetworkRecommender, dlcf.make("deepcf", epochs=1, batch_size=1024).fit(ratings))
    some = model.user_ids[::60]
    for weights in ("last", "best"):
        model.use_weights(weights)
        found = model.recommend_all(some)
        with dlcf.fast.disabled():
            plain = model.recommend_all(some)
        assert found["movieId"].tolist() == plain["movieId"].tolist()
        np.testing.assert_allclose(found["score"], plain["score"], atol=2e-6)
