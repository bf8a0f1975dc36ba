"""Attention that is trained towards the Shapley shares, and the faithfulness that models keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from toy_models import SMALL, known_pairs

from dlcf.explain.attribution import shapley_two_players, share, user_share
from dlcf.explain.faithfulness import measure_faithfulness
from dlcf.registry import load_model, make
from dlcf.variants.deepcf import ExplainedDeepCF
from dlcf.variants.networks import FaithfulAttentionNetwork


@pytest.fixture(scope="module")
def deepcf(toy_ratings: pd.DataFrame) -> ExplainedDeepCF:
    model = make("deepcf", epochs=6, learning_rate=0.01, **SMALL).fit(toy_ratings)
    assert isinstance(model, ExplainedDeepCF)
    return model


class TestFaithfulVariant:
    def test_a_trained_weight_is_nearer_to_the_shapley_share(
        self, toy_ratings: pd.DataFrame
    ) -> None:
        settings = {**SMALL, "epochs": 25, "learning_rate": 0.01}
        plain = make("deepcf", **settings).fit(toy_ratings)
        pulled = make("deepcf", faithful_weight=1.0, **settings).fit(toy_ratings)
        assert isinstance(plain, ExplainedDeepCF) and isinstance(pulled, ExplainedDeepCF)
        assert plain.faithfulness is not None and pulled.faithfulness is not None
        assert pulled.faithfulness > plain.faithfulness + 0.2
        assert pulled.faithfulness > 0.5

    def test_the_model_keeps_what_was_measured_on_what_it_held_out(
        self, toy_ratings: pd.DataFrame, tmp_path: Path
    ) -> None:
        train, validation = toy_ratings[:1200], toy_ratings[1200:]
        model = make("deepcf", **SMALL, epochs=3, weights="best").fit(train, validation)
        assert isinstance(model, ExplainedDeepCF)
        known = validation[
            validation["userId"].isin(model.user_ids) & validation["movieId"].isin(model.movie_ids)
        ].sort_values(["userId", "movieId"])
        for which in ("last", "best"):
            model.use_weights(which)
            measured = measure_faithfulness(model, validation)
            assert model.faithfulness == pytest.approx(measured.mean, abs=1e-6)
            weight = user_share(model, known, "attention")
            truth = share(shapley_two_players(model, known))
            assert measured.mean == pytest.approx(stats.spearmanr(weight, truth).statistic)
            assert measured.low <= measured.mean <= measured.high
        loaded = load_model(model.save(tmp_path / "model"))
        assert isinstance(loaded, ExplainedDeepCF)
        assert loaded.faithfulness == model.faithfulness
        assert loaded.explanation_method == "attention"

    def test_without_held_out_ratings_nothing_is_claimed(self, toy_ratings: pd.DataFrame) -> None:
        settings = {**SMALL, "validation_fraction": 0.0, "epochs": 1}
        model = make("deepcf", faithful_weight=0.5, **settings).fit(toy_ratings)
        assert isinstance(model, ExplainedDeepCF)
        assert model.faithfulness is None
        assert model.explanation_method == "attention trained to be faithful"

    def test_the_loss_is_the_cross_entropy_to_the_shares(self, deepcf: ExplainedDeepCF) -> None:
        sizes = len(deepcf.user_ids), len(deepcf.movie_ids)
        layers = SMALL["embedding_size"], SMALL["hidden"], SMALL["dropout"]
        network = FaithfulAttentionNetwork(*sizes, deepcf.scale, *layers, faithful_weight=2.0)
        network.load_state_dict(deepcf.network.state_dict())
        pairs = known_pairs(deepcf)
        users, _, movies, _ = (torch.as_tensor(i) for i in deepcf.positions(pairs))
        target = share(shapley_two_players(deepcf, pairs))
        weight = deepcf.attention_weights(pairs)
        expected = -np.mean(target * np.log(weight[:, 0]) + (1 - target) * np.log(weight[:, 1]))
        before = {name: value.clone() for name, value in network.state_dict().items()}
        network.train()
        assert network.unfaithfulness(users, movies).item() == pytest.approx(2 * expected, rel=1e-5)
        assert network.training and network.tower.training
        for name, value in network.state_dict().items():  # no running statistic was touched
            assert torch.equal(value, before[name]), name
        with pytest.raises(ValueError, match="faithful_weight"):
            make("deepcf", faithful_weight=-1.0)

    def test_the_network_that_ranks_is_pulled_too(self, toy_ratings: pd.DataFrame) -> None:
        model = make("deepcf", ranking_weight=0.5, **SMALL, epochs=1).fit(toy_ratings)
        assert isinstance(model, ExplainedDeepCF)
        network, pairs = model.network, known_pairs(model)
        users, _, movies, _ = (torch.as_tensor(i) for i in model.positions(pairs))
        objectives = []
        for network.faithful_weight in (0.0, 1.0):
            torch.manual_seed(0)
            objectives.append(network.losses(users, movies, torch.full((60,), 3.0))[0].item())
        pull = network.unfaithfulness(users, movies)
        assert objectives[1] - objectives[0] == pytest.approx(pull.item(), abs=1e-5)  # type: ignore[union-attr]
        assert pull > 0.1
