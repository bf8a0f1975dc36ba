"""Attributions to user and movie, of models whose true ones are known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from toy_models import known_pairs

from dlcf.explain.attribution import (
    integrated_gradients,
    shapley_two_players,
    share,
    user_share,
)
from dlcf.models.deepcf import AttentionNetwork
from dlcf.registry import make
from dlcf.variants.deepcf import ExplainedDeepCF
from dlcf.variants.networks import rate_embeddings

PLAYER_ATTRIBUTIONS = [shapley_two_players]
if find_spec("captum"):
    PLAYER_ATTRIBUTIONS.append(integrated_gradients)


def shapley_by_orders(values: np.ndarray) -> np.ndarray:
    """The textbook's definition: the mean gain over the orders in which the players join."""
    none, user, movie, both = values
    orders = [(user - none, both - user), (both - movie, movie - none)]
    return np.mean(orders, axis=0)


class HandMade(ExplainedDeepCF):
    """A fitted model whose embeddings have one dimension and whose rating is what is given."""

    def __init__(self, rate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(embedding_size=1, hidden=(2,), dropout=(0.0,))
        self.scale = (0.5, 5.0)
        self.user_ids, self.movie_ids = np.arange(1, 6), np.arange(11, 15)
        self.network = AttentionNetwork(5, 4, self.scale, 1, (2,), (0.0,)).eval()
        self.p, self.q = np.array([-2.0, -1, 0, 1, 2]), np.array([-3.0, 0, 1, 6])
        with torch.no_grad():
            self.network.user_embedding.weight.copy_(torch.tensor(self.p)[:, None])
            self.network.movie_embedding.weight.copy_(torch.tensor(self.q)[:, None])
        self.network.rate = lambda weight, user, movie: rate(user[:, 0], movie[:, 0])  # type: ignore[method-assign]

    def pairs(self) -> pd.DataFrame:
        user, movie = np.meshgrid(self.user_ids, self.movie_ids, indexing="ij")
        return pd.DataFrame({"userId": user.ravel(), "movieId": movie.ravel()})

    def embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        """Of :meth:`pairs`, as deviations from the means (0 of the users, 1 of the movies)."""
        return np.repeat(self.p, 4), np.tile(self.q, 5) - 1


class TestPlayers:
    def test_an_additive_network_has_its_terms_as_shapley_values(self) -> None:
        model = HandMade(lambda user, movie: 3 + 0.2 * user - 0.1 * movie)
        p, q = model.embeddings()
        expected = np.stack([0.2 * p, -0.1 * q], axis=1)
        for method in PLAYER_ATTRIBUTIONS:
            found = method(model, model.pairs())
            np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_a_product_is_shared_equally(self) -> None:
        """v = p (q - 1) is worth nothing to either alone."""
        model = HandMade(lambda user, movie: 3 + 0.1 * user * (movie - 1))
        p, q = model.embeddings()
        expected = np.stack([0.05 * p * q] * 2, axis=1)
        for method in PLAYER_ATTRIBUTIONS:
            found = method(model, model.pairs())
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(share(expected), 0.5)

    def test_who_is_ignored_gets_nothing(self) -> None:
        model = HandMade(lambda user, movie: 3 + 0.2 * torch.tanh(movie) + 0 * user)
        for method in PLAYER_ATTRIBUTIONS:
            found = method(model, model.pairs())
            np.testing.assert_allclose(found[:, 0], 0, atol=1e-7)
            assert np.abs(found[:, 1]).max() > 0.1

    def test_both_methods_are_complete_on_a_trained_network(self, deepcf: ExplainedDeepCF) -> None:
        pairs = known_pairs(deepcf)
        values = deepcf.coalition_values(pairs)
        np.testing.assert_allclose(values[:, 3], deepcf.predict(pairs), atol=1e-5)
        gain = values[:, 3] - values[:, 0]
        found = shapley_two_players(deepcf, pairs)
        np.testing.assert_allclose(found.sum(axis=1), gain, atol=1e-6)
        np.testing.assert_allclose(found, [shapley_by_orders(v) for v in values], atol=1e-6)
        pytest.importorskip("captum")
        errors = [
            np.abs(integrated_gradients(deepcf, pairs, steps).sum(axis=1) - gain).max()
            for steps in (16, 1024)
        ]
        assert errors[1] < 3e-3 < errors[0]  # kinks of the rectifiers: the quadrature is not exact

    def test_the_mean_embeddings_are_absent(self, deepcf: ExplainedDeepCF) -> None:
        pairs = known_pairs(deepcf)
        network = deepcf.network
        user, movie = network.user_embedding.weight, network.movie_embedding.weight
        users, _, movies, _ = deepcf.positions(pairs)
        means = user.mean(0).expand(len(pairs), -1), movie.mean(0).expand(len(pairs), -1)
        with torch.no_grad():
            coalitions = [(means[0], means[1]), (user[users], means[1]), (means[0], movie[movies])]
            expected = torch.stack([rate_embeddings(network, *pair) for pair in coalitions], dim=1)
        np.testing.assert_allclose(deepcf.coalition_values(pairs)[:, :3], expected, atol=1e-6)

    def test_a_cold_start_of_the_biases_is_known_in_closed_form(
        self, toy_ratings: pd.DataFrame
    ) -> None:
        model = make("bias").fit(toy_ratings)
        pairs = toy_ratings[["userId", "movieId"]]
        users, _, movies, _ = model.positions(pairs)
        expected = np.stack([model._user_bias[users], model._movie_bias[movies]], axis=1)
        inside = (model.predict(pairs) > 0.5) & (model.predict(pairs) < 5.0)
        found = shapley_two_players(model, pairs, "cold")
        assert inside.mean() > 0.9
        np.testing.assert_allclose(found[inside], expected[inside], atol=1e-12)

    @pytest.mark.parametrize("name", ["global-mean", "mf", "item-knn"])
    def test_cold_values_are_efficient_for_any_model(
        self, name: str, toy_ratings: pd.DataFrame
    ) -> None:
        model = make(name, **({"epochs": 2} if name == "mf" else {})).fit(toy_ratings)
        pairs = toy_ratings[["userId", "movieId"]][:50]
        found = shapley_two_players(model, pairs, "cold").sum(axis=1)
        nobody = model.predict(pd.DataFrame({"userId": [-1], "movieId": [-1]}))
        np.testing.assert_allclose(found, model.predict(pairs) - nobody, atol=1e-12)

    def test_shares(self) -> None:
        values = np.array([[1.0, 3.0], [-1.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
        np.testing.assert_allclose(share(values), [0.25, 0.5, 0.0, 0.5], atol=1e-8)

    def test_refusals(self, deepcf: ExplainedDeepCF, toy_ratings: pd.DataFrame) -> None:
        bias = make("bias").fit(toy_ratings)
        pairs = toy_ratings[["userId", "movieId"]][:3]
        unknown = pairs.assign(movieId=[int(pairs["movieId"].iloc[0]), -1, -1])
        with pytest.raises(ValueError, match="row 1: movieId -1"):
            shapley_two_players(deepcf, unknown)
        with pytest.raises(ValueError, match="baseline='cold'"):
            shapley_two_players(bias, pairs)
        with pytest.raises(ValueError, match="mean, cold"):
            shapley_two_players(deepcf, pairs, "zero")
        with pytest.raises(ValueError, match="no attention weights"):
            user_share(bias, pairs, "attention")
        with pytest.raises(ValueError, match="choose one of"):
            user_share(deepcf, pairs, "guess")

    def test_gradients_need_embeddings(self, deepcf: ExplainedDeepCF) -> None:
        pytest.importorskip("captum")
        with pytest.raises(ValueError, match="row 0: userId -1"):
            integrated_gradients(deepcf, pd.DataFrame({"userId": [-1], "movieId": [2]}))

    def test_without_captum_it_says_what_to_install(
        self, deepcf: ExplainedDeepCF, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "captum.attr", None)
        with pytest.raises(ImportError, match=r"dlcf\[explain\]"):
            integrated_gradients(deepcf, known_pairs(deepcf))
