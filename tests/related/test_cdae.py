"""CDAE: its equations by hand, the corruption, and that it learns with each loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from two_tastes import check_gradients, ndcg, small_data

from dlcf.registry import make
from dlcf.related.cdae import DenoisingNetwork

LOSSES = ("square", "logistic", "pairwise")


def network_of(**settings: Any) -> DenoisingNetwork:
    torch.manual_seed(1)
    settings = {"factors": 2, "negatives": 3, **settings}
    network = make("cdae", **settings).build_network(small_data())  # type: ignore[attr-defined]
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return network


@pytest.mark.parametrize("activation", ["sigmoid", "identity"])
@pytest.mark.parametrize("loss", LOSSES)
def test_scores_and_objective_are_those_of_the_equations(loss: str, activation: str) -> None:
    network = network_of(loss=loss, activation=activation, corruption=0.0, weight_decay=0.3)
    weights = {name: value.double().numpy() for name, value in network.state_dict().items()}
    rated = {0: [0, 2], 1: [1], 2: [0, 1, 3]}
    scores = np.empty((3, 4))
    for user, movies in rated.items():
        row = np.isin(np.arange(4), movies).astype(float)
        z = weights["encoder.weight"] @ row + weights["encoder.bias"] + weights["user.weight"][user]
        z = 1 / (1 + np.exp(-z)) if activation == "sigmoid" else z
        scores[user] = weights["decoder.weight"] @ z + weights["decoder.bias"]
    batch = torch.tensor([2, 0]), torch.zeros(2)
    np.testing.assert_allclose(network.score_all(batch[0]), scores[[2, 0]], rtol=1e-4, atol=1e-5)

    torch.manual_seed(3)
    pairs = [(user, movie) for user in (2, 0) for movie in rated[user]]
    drawn = network.rated.negatives(torch.tensor([user for user, _ in pairs]), 3)
    expected = 0.0
    for (user, movie), negatives in zip(pairs, drawn.tolist(), strict=True):
        s, t = scores[user, movie], scores[user, negatives]
        if loss == "square":
            expected += (1 - s) ** 2 / 2 + (t**2).sum() / 2
        elif loss == "logistic":
            expected += np.log1p(np.exp(-s)) + np.log1p(np.exp(t)).sum()
        else:
            expected += np.log1p(np.exp(t - s)).sum()
    size = sum(float(parameter.detach().square().sum()) for parameter in network.parameters())
    torch.manual_seed(3)
    objective, reported = network.losses(*batch)
    assert reported.item() == pytest.approx(expected / 2, rel=1e-4)
    assert objective.item() == pytest.approx(expected / 2 + 0.15 * size, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_the_objective(loss: str) -> None:
    network = network_of(loss=loss, corruption=0.5, weight_decay=0.3)
    check_gradients(network, torch.tensor([2, 0]), torch.zeros(2))


def test_what_is_read_is_corrupted_in_training_alone() -> None:
    network = network_of(corruption=0.75)
    users = torch.tensor([2]).repeat(4000)
    read = network.rated.rows(users, 0.75)
    assert set(read.unique().tolist()) == {0.0, 4.0} and not read[:, 2].any()
    assert (read[:, [0, 1, 3]] > 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert network.rated.rows(users[:1]).tolist() == [[1.0, 1.0, 0.0, 1.0]]
    trained = network.train().scores(users)
    assert len(trained.unique(dim=0)) == 8  # each of three movies is there or not
    assert len(network.eval().scores(users).unique(dim=0)) == 1


def test_users_who_rated_the_same_differ_by_their_own_vectors() -> None:
    network = network_of().eval()
    with torch.no_grad():
        before = network.scores(torch.arange(3))
        network.user.weight[1] += 1.0
        after = network.scores(torch.arange(3))
    assert (before != after).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("loss", LOSSES)
def test_it_tells_two_tastes_apart(loss: str) -> None:
    settings = {"epochs": 30, "batch_size": 16, "learning_rate": 0.01, "factors": 8}
    assert ndcg("cdae", loss=loss, weight_decay=0.001, **settings) > ndcg("popular") + 0.1
