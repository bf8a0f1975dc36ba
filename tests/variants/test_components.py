"""The paper's network with one decision changed: what is said to change does, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dlcf.fast.attention_step import UnattendedStep
from dlcf.models.deepcf import AttentionNetwork, DeepCF
from dlcf.training import AutogradStep, TrainingConfig, training_step
from dlcf.variants.components import (
    ComponentDeepCF,
    ComponentNetwork,
    DecayedNetwork,
    UnattendedNetwork,
)

SMALL = {"epochs": 3, "embedding_size": 6, "hidden": (8, 5), "dropout": (0.2, 0.0)}
LAYERS = (6, 7, (0.5, 5.0), 4, (8, 5), (0.0, 0.0))


def fit(ratings: pd.DataFrame, **settings: Any) -> ComponentDeepCF:
    model = ComponentDeepCF(**{**SMALL, **settings})
    model.fit(ratings)
    return model


def pairs(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(0, size, (n,), generator=generator) for size in (6, 7))


def test_with_nothing_changed_it_is_the_papers(toy_ratings: pd.DataFrame) -> None:
    paper = DeepCF(**SMALL).fit(toy_ratings)
    ours = fit(toy_ratings)
    assert np.array_equal(ours.predict(toy_ratings), paper.predict(toy_ratings))
    held_out = np.random.default_rng(0).permutation(len(toy_ratings))[: len(toy_ratings) // 10]
    rows = toy_ratings.sort_values(["userId", "movieId"]).drop(columns="timestamp")
    rows = rows.drop(index=rows.index[held_out])
    for which in ("last", "best"):
        error = ours.use_weights(which).predict(rows) - rows["rating"]
        assert ours.train_error[which] == pytest.approx(float((error**2).mean()), rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": "none"},
        {"attention": "gates"},
        {"attention": "per dimension"},
        {"batch_norm": False},
        {"weight_decay": 0.01},
        {"output_scale": (1.0, 5.0)},
    ],
    ids=str,
)
def test_every_change_changes_what_is_predicted(
    toy_ratings: pd.DataFrame, settings: dict[str, Any]
) -> None:
    found, paper = fit(toy_ratings, **settings).predict(toy_ratings), fit(toy_ratings)
    assert np.abs(found - paper.predict(toy_ratings)).max() > 0.01


def test_without_attention_both_weights_stay_one_half(toy_ratings: pd.DataFrame) -> None:
    weights = fit(toy_ratings, attention="none").attention_weights(toy_ratings)
    assert (weights == 0.5).all()
    assert fit(toy_ratings).attention_weights(toy_ratings).std() > 0.001


def test_without_attention_the_step_by_hand_is_autograds() -> None:
    torch.manual_seed(0)
    fast, plain = UnattendedNetwork(*LAYERS).double(), UnattendedNetwork(*LAYERS).double()
    plain.load_state_dict(fast.state_dict())
    users, movies = pairs()
    data = users, movies, torch.linspace(0.5, 5.0, 40, dtype=torch.float64)
    config = TrainingConfig(batch_size=10, learning_rate=0.01, device="cpu")
    step, reference = training_step(fast, data, config), AutogradStep(plain, data, config)
    assert type(step) is UnattendedStep
    for _ in range(3):
        for one in (step, reference):
            one.begin_epoch()
        reference.order = torch.from_numpy(step.order)
        for start in range(0, 40, 10):
            assert float(step(start, start + 10)) == pytest.approx(
                float(reference(start, start + 10)), rel=1e-4
            )
        step.flush()
    before, after = fast.eval()(users, movies), plain.eval()(users, movies)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


def test_gates_need_not_sum_to_one_and_dimensions_do() -> None:
    torch.manual_seed(0)
    users, movies = pairs()
    gates = ComponentNetwork(*LAYERS, attention="gates", batch_norm=True).attend(users, movies)[0]
    assert gates.shape == (40, 2) and not torch.allclose(gates.sum(1), torch.ones(40), atol=1e-3)
    network = ComponentNetwork(*LAYERS, attention="per dimension", batch_norm=True)
    weight, user, movie = network.eval().attend(users, movies)
    assert weight.shape == (40, 8) and torch.allclose(weight[:, :4] + weight[:, 4:], torch.ones(1))
    inputs = torch.cat([weight[:, :4] * user, weight[:, 4:] * movie], dim=1)
    strength = torch.sigmoid(network.output(network.tower(inputs))).squeeze(1)
    torch.testing.assert_close(network(users, movies), 0.5 + 4.5 * strength)


def test_gates_with_equal_inputs_are_the_papers_tower() -> None:
    """Weights of a network copied into a variant whose attention is forced to the same values."""
    torch.manual_seed(0)
    users, movies = pairs()
    paper = UnattendedNetwork(*LAYERS).eval()
    gates = ComponentNetwork(*LAYERS, attention="gates", batch_norm=True).eval()
    gates.load_state_dict(paper.state_dict())  # sigmoid(0) is 1/2 as well
    torch.testing.assert_close(gates(users, movies), paper(users, movies))


def test_without_batch_norm_there_is_none() -> None:
    network = ComponentNetwork(*LAYERS, attention="two weights", batch_norm=False)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in network.modules())
    assert len(network.tower) == len(AttentionNetwork(*LAYERS).tower) - 2


def test_weight_decay_shrinks_embeddings(toy_ratings: pd.DataFrame) -> None:
    network = DecayedNetwork(*LAYERS)
    network.decay = 0.1
    group = network.optimizer(TrainingConfig()).param_groups[0]
    assert (group["weight_decay"], group["lr"]) == (0.1, 1e-3)
    sizes = [
        float(fit(toy_ratings, weight_decay=decay).network.user_embedding.weight.detach().norm())
        for decay in (0.0, 0.1)
    ]
    assert sizes[1] < 0.95 * sizes[0]


def test_the_sigmoid_can_have_another_scale(toy_ratings: pd.DataFrame) -> None:
    assert fit(toy_ratings, output_scale=(2.0, 3.0)).predict(toy_ratings).max() <= 3.0
    assert fit(toy_ratings).predict(toy_ratings).max() > 3.0


def test_variants_are_trained_by_the_fastest_step_that_knows_them() -> None:
    users, movies = pairs()
    data, config = (users, movies, torch.ones(40)), TrainingConfig(device="cpu")
    for network, step in (
        (UnattendedNetwork(*LAYERS), UnattendedStep),
        (ComponentNetwork(*LAYERS, attention="gates", batch_norm=True), AutogradStep),
        (DecayedNetwork(*LAYERS), AutogradStep),  # decay moves every row at every step
    ):
        assert type(training_step(network, data, config)) is step
