"""NeuMF: its equations by hand, the parts, pre-training, and what is a negative."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from two_tastes import check_gradients, ndcg, small_data

from dlcf.registry import make
from dlcf.related import neumf
from dlcf.related.neumf import PARTS, NeuralNetwork


def network_of(variant: str, **settings: Any) -> NeuralNetwork:
    """Of vectors so large that every part shows."""
    torch.manual_seed(1)
    settings = {"factors": 2, "layers": 2, "negatives": 3, **settings}
    network = make("neumf", variant=variant, **settings).build_network(small_data())  # type: ignore[attr-defined]
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return network


def by_hand(network: NeuralNetwork, variant: str, user: int, movie: int) -> float:
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    read = []
    for i, part in enumerate(PARTS[variant]):
        p, q = (
            weights[f"parts.{i}.{of}.weight"][row] for of, row in (("user", user), ("movie", movie))
        )
        if part == "dot":
            return weights[f"parts.{i}.bias"] + p[-1] + q[-1] + p[:-1] @ q[:-1]
        if part == "gmf":
            read.append(p * q)
            continue
        layer = np.concatenate([p, q])
        for name in (f"parts.{i}.first", f"parts.{i}.tower.1"):
            layer = np.maximum(weights[f"{name}.weight"] @ layer + weights[f"{name}.bias"], 0)
        read.append(layer)
    return float(weights["output.weight"][0] @ np.concatenate(read) + weights["output.bias"][0])


@pytest.mark.parametrize("variant", PARTS)
def test_the_logits_are_those_of_the_equations(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(variant)
    expected = [[by_hand(network, variant, u, i) for i in range(4)] for u in (2, 0, 1)]
    users = torch.tensor([2, 0, 1])
    np.testing.assert_allclose(network.score_all(users), expected, rtol=1e-4, atol=1e-5)
    together = network.score_all(users)
    monkeypatch.setattr(neumf, "_FLOATS_AT_ONCE", 1)  # one user after another
    torch.testing.assert_close(network.score_all(users), together)


@pytest.mark.parametrize("variant", PARTS)
def test_the_objective_is_cross_entropy_and_its_gradient_that(variant: str) -> None:
    network = network_of(variant, regularization=0.3)
    users, movies = torch.tensor([0, 2, 1]), torch.tensor([2, 0, 1])
    torch.manual_seed(3)
    negatives = network.rated.negatives(users, 3)
    logits = network.score_all(users).double()
    error = penalty = 0.0
    for row in range(3):
        among = [int(movies[row]), *negatives[row].tolist()]
        for place, movie in enumerate(among):
            chance = float(torch.sigmoid(logits[row, movie]))
            error -= np.log(chance if place == 0 else 1 - chance) / 12
            for part in network.parts:
                user_size, movie_size = (
                    table.weight[at].square().sum().item()
                    for table, at in ((part.user, users[row]), (part.movie, movie))
                )
                penalty += 0.3 * (user_size + movie_size) / 12
    torch.manual_seed(3)
    objective, reported = network.losses(users, movies, torch.ones(3))
    assert reported.item() == pytest.approx(error, rel=1e-4)
    assert objective.item() == pytest.approx(error + penalty, rel=1e-4)
    check_gradients(network, users, movies, torch.ones(3))


def test_negatives_are_what_a_user_did_not_rate() -> None:
    network = network_of("gmf")
    drawn = network.rated.negatives(torch.tensor([0, 1, 2]), 400)
    assert [sorted(set(row.tolist())) for row in drawn[:2]] == [[1, 3], [0, 2, 3]]
    assert 0.25 < (drawn[1] == 0).float().mean() < 0.42  # a third each
    assert (drawn[2] == 2).float().mean() > 0.9  # of four movies the only one that is left


def test_pretrained_parts_have_an_equal_say() -> None:
    """The blended logit is the mean of those of the two, whose vectors are taken over."""
    network = network_of("neumf")
    alone = [network.alone(part) for part in network.parts]
    network.blend([part.output for part in alone])
    users = torch.arange(3)
    mean = (alone[0].score_all(users) + alone[1].score_all(users)) / 2
    torch.testing.assert_close(network.score_all(users), mean)


@pytest.mark.parametrize("settings", [{"variant": v} for v in PARTS] + [{"pretrain": True}])
def test_it_tells_two_tastes_apart(settings: dict[str, Any]) -> None:
    fixed = {"factors": 4, "epochs": 12, "batch_size": 64, "learning_rate": 0.02}
    assert (
        ndcg("neumf", regularization=0.0, negatives=4, **fixed, **settings) > ndcg("popular") + 0.1
    )
