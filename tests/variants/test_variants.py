"""The paper's network taken further: without the additions it is the paper's, weight for weight."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from dlcf.models.deepcf import AttentionNetwork, DeepCF
from dlcf.registry import make
from dlcf.variants.deepcf import ExplainedDeepCF
from dlcf.variants.networks import (
    FaithfulAttentionNetwork,
    RankingAttentionNetwork,
    coalitions,
)
from dlcf.variants.shapley import evenly_spread

SMALL = {"embedding_size": 8, "hidden": (12, 6), "dropout": (0.2, 0.1)}


def test_without_additions_it_is_the_papers_model(toy_ratings: pd.DataFrame) -> None:
    plain = DeepCF(**SMALL, epochs=2).fit(toy_ratings)
    explained = make("deepcf", **SMALL, epochs=2).fit(toy_ratings)
    assert type(explained) is ExplainedDeepCF
    assert type(explained.network) is type(plain.network) is AttentionNetwork
    assert np.array_equal(plain.predict(toy_ratings), explained.predict(toy_ratings))
    assert np.array_equal(plain.score_all([3, 13]), explained.score_all([3, 13]))


def test_the_faithful_term_is_the_cross_entropy_with_the_shapley_shares() -> None:
    network = FaithfulAttentionNetwork(5, 6, (0.5, 5.0), 4, (6,), (0.0,), faithful_weight=0.3)
    users, movies = torch.tensor([0, 1, 4, 2]), torch.tensor([5, 0, 3, 3])
    none, user, movie, both = coalitions(network, users, movies).unbind(1)
    gain = [(user - none + both - movie) / 2, (movie - none + both - user) / 2]
    share = gain[0].abs() / (gain[0].abs() + gain[1].abs())
    weight = network.attend(users, movies)[0]
    expected = -(share * weight[:, 0].log() + (1 - share) * weight[:, 1].log()).mean()
    term = network.unfaithfulness(users, movies)
    torch.testing.assert_close(term, 0.3 * expected, atol=1e-5, rtol=1e-5)
    objective, error = network.eval().losses(users, movies, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(objective - error, term, atol=1e-6, rtol=1e-5)


def test_coalitions_leave_training_and_its_statistics_as_they_were() -> None:
    network = AttentionNetwork(5, 6, (0.5, 5.0), 4, (6,), (0.5,)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    values = coalitions(network, torch.tensor([0, 1]), torch.tensor([2, 2]))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.eval()
    rated = network(torch.tensor([0, 1]), torch.tensor([2, 2]))
    torch.testing.assert_close(values[:, 3], rated)


@pytest.mark.parametrize("name", ["ranking_weight", "faithful_weight"])
def test_a_weight_below_zero_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1"):
        make("deepcf", **{name: -1.0})


def test_rows_are_spread_evenly_from_the_first_to_the_last() -> None:
    assert evenly_spread(11, 3).tolist() == [0, 5, 10]
    assert evenly_spread(3, 5).tolist() == [0, 1, 2]
    assert evenly_spread(0, 5).tolist() == []


def test_the_ranking_output_follows_the_formula(toy_ratings: pd.DataFrame) -> None:
    """Scores are 10 (c_i + q_i . |N(u)|^-1/2 sum y_j); the rating stays the rating's."""
    settings = {"ranking_weight": 0.5, "epochs": 3, "validation_fraction": 0.0}
    model = make("deepcf", **SMALL, **settings).fit(toy_ratings)
    assert isinstance(model, DeepCF)
    network = model.network
    assert isinstance(network, RankingAttentionNetwork)
    users = model.user_ids[[7, 2, 7]]
    rated = torch.as_tensor(model._seen.toarray())[[7, 2, 7]]
    history = rated @ network.history_embedding.weight / rated.sum(1, keepdim=True).sqrt()
    expected = 10 * (network.ranking_bias + history @ network.movie_embedding.weight.T)
    np.testing.assert_allclose(model.score_all(users), expected.detach().numpy(), atol=1e-4)
    pairs = pd.DataFrame({"userId": users[0], "movieId": model.movie_ids})
    index = torch.full((len(model.movie_ids),), 7), torch.arange(len(model.movie_ids))
    rating = AttentionNetwork.forward(network, *index).detach().numpy()
    np.testing.assert_allclose(model.predict(pairs), rating, atol=1e-5)
    with pytest.raises(ValueError, match="ranking_weight"):
        make("deepcf", ranking_weight=-1.0)


def test_the_ranking_output_never_sees_its_target(toy_ratings: pd.DataFrame) -> None:
    settings = {"ranking_weight": 0.5, "epochs": 1, "validation_fraction": 0.0}
    model = make("deepcf", **SMALL, **settings).fit(toy_ratings)
    network = model.network  # type: ignore[attr-defined]
    user = torch.tensor([3])
    row, target = model._seen[[3]].nonzero()[1], int(model._seen[[3]].nonzero()[1][0])
    weights = network.history_embedding.weight[torch.as_tensor(row[row != target])]
    expected = weights.sum(0) / len(row) ** 0.5
    found = network._history(user, targets=torch.tensor([target]))[0]
    torch.testing.assert_close(found, expected)


def test_the_ranking_loss_hides_half_of_the_history(toy_ratings: pd.DataFrame) -> None:
    settings = {"ranking_weight": 0.5, "epochs": 1, "validation_fraction": 0.0}
    model = make("deepcf", **SMALL, **settings).fit(toy_ratings)
    network = model.network.eval()  # type: ignore[attr-defined]
    users, movies, ratings = torch.tensor([3, 7]), torch.tensor([1, 2]), torch.tensor([3.0, 4.0])
    asked = []
    history = network._history

    def watched(users: torch.Tensor, hidden: float = 0.0, targets: object = None) -> torch.Tensor:
        asked.append((hidden, targets is movies))
        return history(users, hidden, targets)

    network._history = watched
    objectives = {network.losses(users, movies, ratings)[0].item() for _ in range(5)}
    assert asked == [(0.5, True)] * 5 and len(objectives) == 5
    many = torch.stack([history(users, hidden=0.5) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(many, history(users), atol=0.02, rtol=0.05)
