"""Explanations of models whose true attributions are known."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from dlcf.explain.faithfulness import (
    agreement,
    calibrate_strength,
    calibration_report,
    curve_areas,
    deletion_and_insertion,
    exchanged_movies,
    history_attributions,
    history_explanations,
    history_faithfulness,
    history_sanity,
    history_stability,
    history_value,
    integrated_gradients,
    leave_one_out,
    leave_out_refitted,
    mean_by_user,
    measure_faithfulness,
    mf_history,
    paired_with_random,
    randomised,
    ridge_attributions,
    sanity_check,
    shapley_two_players,
    share,
    shuffled_labels,
    stability,
    user_share,
)
from dlcf.models.base import Recommender
from dlcf.models.deepcf import AttentionNetwork, DeepCF
from dlcf.models.mf import MatrixFactorization
from dlcf.plus.deepcf_plus import DeepCFPlus
from dlcf.plus.evidence import Context
from dlcf.registry import load_model, make

PLAYER_ATTRIBUTIONS = [shapley_two_players]
if find_spec("captum"):
    PLAYER_ATTRIBUTIONS.append(integrated_gradients)
PLUS = {
    "embedding_size": 4,
    "history_size": 8,
    "folds": 2,
    "cuts": (0.5,),
    "epochs": 2,
    "batch_size": 256,
}
HISTORY_MODELS: dict[str, dict[str, Any]] = {
    "item-knn": {"neighbors": 5, "shrinkage": 10.0},
    "ease": {"regularization": 20.0},
    "deepcf-plus": PLUS,
}


@pytest.fixture(scope="module")
def fitted(toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame) -> dict[str, Recommender]:
    """Models that read a user's history, on the toy world."""
    return {
        name: make(name, **settings).fit(toy_ratings, movies=toy_movies)
        for name, settings in HISTORY_MODELS.items()
    }


@pytest.fixture(params=HISTORY_MODELS)
def reader(request: pytest.FixtureRequest, fitted: dict[str, Recommender]) -> Recommender:
    return fitted[request.param]


def history(ratings: pd.DataFrame, user: int) -> pd.DataFrame:
    return ratings[ratings["userId"] == user].sort_values("movieId")


class TestRevised:
    USER, OTHER = 13, 23

    def everything(self, model: Recommender, user: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = pd.DataFrame({"userId": user, "movieId": model.movie_ids})
        return model.predict(pairs), model.score_all([user])[0]

    def test_knows_the_ratings(self, reader: Recommender, toy_ratings: pd.DataFrame) -> None:
        known = reader.ratings_of(self.USER)
        rated = history(toy_ratings, self.USER)
        assert known["movieId"].tolist() == rated["movieId"].tolist()
        np.testing.assert_array_equal(known["rating"], rated["rating"])
        assert reader.ratings_of(-1).empty

    def test_no_change_no_difference(self, reader: Recommender, toy_ratings: pd.DataFrame) -> None:
        rated = history(toy_ratings, self.USER)
        same = reader.revised(self.USER, dict(zip(rated["movieId"], rated["rating"], strict=True)))
        for user in (self.USER, self.OTHER):
            for new, old in zip(
                self.everything(same, user), self.everything(reader, user), strict=True
            ):
                np.testing.assert_allclose(new, old, atol=2e-5)

    def test_a_removed_rating_is_not_seen(
        self, reader: Recommender, toy_ratings: pd.DataFrame
    ) -> None:
        gone, changed, *_ = history(toy_ratings, self.USER)["movieId"]
        before = self.everything(reader, self.USER)
        other = self.everything(reader, self.OTHER)
        served = reader.revised(self.USER, {gone: None, changed: 0.5})
        known = served.ratings_of(self.USER).set_index("movieId")["rating"]
        assert gone not in known.index and known[changed] == 0.5
        assert gone in set(served.recommend(self.USER, k=1000)["movieId"])
        assert any(
            np.abs(new - old).max() > 1e-4
            for new, old in zip(self.everything(served, self.USER), before, strict=True)
        )
        # The model itself is left as it was, and revisions compose.
        for now, then in zip(self.everything(reader, self.USER), before, strict=True):
            np.testing.assert_array_equal(now, then)
        twice = reader.revised(self.USER, {gone: None}).revised(self.USER, {changed: 0.5})
        for new, old in zip(
            self.everything(twice, self.USER), self.everything(served, self.USER), strict=True
        ):
            np.testing.assert_allclose(new, old, atol=2e-5)
        if reader.name != "deepcf-plus":  # whose evidence holds what others think
            for new, old in zip(self.everything(served, self.OTHER), other, strict=True):
                np.testing.assert_allclose(new, old, atol=2e-5)

    def test_an_empty_history_is_served(
        self, reader: Recommender, toy_ratings: pd.DataFrame
    ) -> None:
        rated = history(toy_ratings, self.USER)["movieId"]
        served = reader.revised(self.USER, dict.fromkeys(rated))
        rating, score = self.everything(served, self.USER)
        assert np.isfinite(rating).all() and np.isfinite(score).all()
        assert served.ratings_of(self.USER).empty

    def test_ease_is_linear_in_the_history(
        self, fitted: dict[str, Recommender], toy_ratings: pd.DataFrame
    ) -> None:
        model = fitted["ease"]
        rated = history(toy_ratings, self.USER)["movieId"].tolist()
        change = model.score_all([self.USER]) - model.revised(
            self.USER, {rated[0]: None}
        ).score_all([self.USER])
        position = np.flatnonzero(model.movie_ids == rated[0])
        value = model._matrix()[np.flatnonzero(model.user_ids == self.USER)[0], position[0]]  # type: ignore[attr-defined]
        expected = value * model.item_weights(position)  # type: ignore[attr-defined]
        np.testing.assert_allclose(change, expected, atol=1e-5)

    def test_ease_weights_solve_the_problem_either_way(self) -> None:
        """``B = I - P / diag(P)``, whether there are fewer users or fewer movies."""
        generator = np.random.default_rng(0)
        for n_users, n_movies in ((12, 7), (7, 12)):
            user, movie = np.nonzero(generator.random((n_users, n_movies)) < 0.6)
            rating = generator.integers(1, 6, len(user)).astype(np.float32)
            frame = pd.DataFrame({"userId": user, "movieId": movie, "rating": rating})
            model = make("ease", regularization=3.0).fit(frame)
            x = model._matrix().toarray().astype(float)  # type: ignore[attr-defined]
            p = np.linalg.inv(x.T @ x + 3.0 * np.eye(x.shape[1]))
            expected = np.eye(x.shape[1]) - p / np.diag(p)
            weights = model.item_weights(np.arange(x.shape[1]))  # type: ignore[attr-defined]
            np.testing.assert_allclose(weights, expected, atol=1e-5)

    def test_refuses_what_it_cannot_do(
        self, fitted: dict[str, Recommender], toy_ratings: pd.DataFrame, tmp_path: Path
    ) -> None:
        model = fitted["item-knn"]
        movie = int(history(toy_ratings, self.USER)["movieId"].iloc[0])
        with pytest.raises(ValueError, match="no rating in train"):
            model.revised(-1, {movie: None})
        with pytest.raises(ValueError, match="did not rate"):
            model.revised(self.USER, {-5: None})
        with pytest.raises(ValueError, match="off the scale"):
            model.revised(self.USER, {movie: 7.0})
        with pytest.raises(ValueError, match="save what it came from"):
            model.revised(self.USER, {movie: None}).save(tmp_path / "model")
        for name in ("bias", "user-knn"):
            with pytest.raises(NotImplementedError, match=name):
                make(name).fit(toy_ratings).revised(self.USER, {movie: None})


def shapley_by_orders(values: np.ndarray) -> np.ndarray:
    """The textbook's definition: the mean gain over the orders in which the players join."""
    none, user, movie, both = values
    orders = [(user - none, both - user), (both - movie, movie - none)]
    return np.mean(orders, axis=0)


class HandMade(DeepCF):
    """A fitted `DeepCF` whose embeddings have one dimension and whose rating is what is given."""

    def __init__(self, rate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(embedding_size=1, hidden=(2,), dropout=(0.0,))
        self.scale = (0.5, 5.0)
        self.user_ids, self.movie_ids = np.arange(1, 6), np.arange(11, 15)
        self.network = AttentionNetwork(5, 4, self.scale, 1, (2,), (0.0,)).eval()
        self.p, self.q = np.array([-2.0, -1, 0, 1, 2]), np.array([-3.0, 0, 1, 6])
        with torch.no_grad():
            self.network.user_embedding.weight.copy_(torch.tensor(self.p)[:, None])
            self.network.movie_embedding.weight.copy_(torch.tensor(self.q)[:, None])
        self.network.rate = lambda user, movie: rate(user[:, 0], movie[:, 0])  # type: ignore[method-assign]

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

    def test_both_methods_are_complete_on_a_trained_network(self, deepcf: DeepCF) -> None:
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

    def test_the_mean_embeddings_are_absent(self, deepcf: DeepCF) -> None:
        pairs = known_pairs(deepcf)
        network = deepcf.network
        user, movie = network.user_embedding.weight, network.movie_embedding.weight
        users, _, movies, _ = deepcf.positions(pairs)
        means = user.mean(0).expand(len(pairs), -1), movie.mean(0).expand(len(pairs), -1)
        with torch.no_grad():
            coalitions = [(means[0], means[1]), (user[users], means[1]), (means[0], movie[movies])]
            expected = torch.stack([network.rate(*pair) for pair in coalitions], dim=1)
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

    def test_refusals(self, deepcf: DeepCF, toy_ratings: pd.DataFrame) -> None:
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

    def test_gradients_need_embeddings(self, deepcf: DeepCF) -> None:
        pytest.importorskip("captum")
        with pytest.raises(ValueError, match="row 0: userId -1"):
            integrated_gradients(deepcf, pd.DataFrame({"userId": [-1], "movieId": [2]}))

    def test_without_captum_it_says_what_to_install(
        self, deepcf: DeepCF, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "captum.attr", None)
        with pytest.raises(ImportError, match=r"dlcf\[explain\]"):
            integrated_gradients(deepcf, known_pairs(deepcf))


def known_pairs(model: Recommender, n: int = 60) -> pd.DataFrame:
    generator = np.random.default_rng(3)
    return pd.DataFrame(
        {
            "userId": generator.choice(model.user_ids, n),
            "movieId": generator.choice(model.movie_ids, n),
        }
    )


SMALL = {"embedding_size": 8, "hidden": (12, 6), "dropout": (0.0, 0.0), "validation_fraction": 0.2}


@pytest.fixture(scope="module")
def deepcf(toy_ratings: pd.DataFrame) -> DeepCF:
    model = make("deepcf", epochs=6, learning_rate=0.01, **SMALL).fit(toy_ratings)
    assert isinstance(model, DeepCF)
    return model


class TestFaithfulVariant:
    def test_a_trained_weight_is_nearer_to_the_shapley_share(
        self, toy_ratings: pd.DataFrame
    ) -> None:
        settings = {**SMALL, "epochs": 25, "learning_rate": 0.01}
        plain = make("deepcf", **settings).fit(toy_ratings)
        pulled = make("deepcf", faithful_weight=1.0, **settings).fit(toy_ratings)
        assert isinstance(plain, DeepCF) and isinstance(pulled, DeepCF)
        assert plain.faithfulness is not None and pulled.faithfulness is not None
        assert pulled.faithfulness > plain.faithfulness + 0.2
        assert pulled.faithfulness > 0.5

    def test_the_model_keeps_what_was_measured_on_what_it_held_out(
        self, toy_ratings: pd.DataFrame, tmp_path: Path
    ) -> None:
        train, validation = toy_ratings[:1200], toy_ratings[1200:]
        model = make("deepcf", **SMALL, epochs=3, weights="best").fit(train, validation)
        assert isinstance(model, DeepCF)
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
        assert isinstance(loaded, DeepCF)
        assert loaded.faithfulness == model.faithfulness
        assert loaded.explanation_method == "attention"

    def test_without_held_out_ratings_nothing_is_claimed(self, toy_ratings: pd.DataFrame) -> None:
        settings = {**SMALL, "validation_fraction": 0.0, "epochs": 1}
        model = make("deepcf", faithful_weight=0.5, **settings).fit(toy_ratings)
        assert isinstance(model, DeepCF)
        assert model.faithfulness is None
        assert model.explanation_method == "attention trained to be faithful"

    def test_the_loss_is_the_cross_entropy_to_the_shares(self, deepcf: DeepCF) -> None:
        network = copy.deepcopy(deepcf.network)
        network.faithful_weight = 2.0
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
        assert isinstance(model, DeepCF)
        network, pairs = model.network, known_pairs(model)
        users, _, movies, _ = (torch.as_tensor(i) for i in model.positions(pairs))
        objectives = []
        for network.faithful_weight in (0.0, 1.0):
            torch.manual_seed(0)
            objectives.append(network.losses(users, movies, torch.full((60,), 3.0))[0].item())
        pull = network.unfaithfulness(users, movies)
        assert objectives[1] - objectives[0] == pytest.approx(pull.item(), abs=1e-5)  # type: ignore[union-attr]
        assert pull > 0.1


class KnownGate(DeepCFPlus):
    """Rates ``3 + a_u + b_i`` of those it knows, so the Shapley values are the terms; the gate
    gives the user's share, to a power."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power, self.scale, self.titles = power, (0.5, 5.0), None
        self.user_ids, self.movie_ids = np.arange(1, 31), np.arange(101, 141)
        generator = np.random.default_rng(6)
        self.a, self.b = generator.uniform(-0.9, 0.9, 30), generator.uniform(-0.9, 0.9, 40)

    def terms(self, pairs: pd.DataFrame) -> np.ndarray:
        users, known_user, movies, known_movie = self.positions(pairs)
        terms = np.where(known_user, self.a[users], 0), np.where(known_movie, self.b[movies], 0)
        return np.stack(terms, axis=1)

    def predict(self, pairs: pd.DataFrame) -> np.ndarray:
        return 3 + self.terms(pairs).sum(axis=1)

    def attention_weights(self, pairs: pd.DataFrame) -> np.ndarray:
        weight = share(self.terms(pairs)) ** self.power
        return np.stack([weight, 1 - weight], axis=1)

    def _read(self, *arguments: Any) -> Any:
        return iter(())


class TestFaithfulGate:
    @pytest.mark.parametrize(("power", "truth"), [(1.0, 1.0), (3.0, 1.0), (-1.0, -1.0)])
    def test_a_known_gate_is_measured_and_says_so(self, power: float, truth: float) -> None:
        model = KnownGate(power)
        pairs = known_pairs(model, 400)
        user, movie = (int(i) for i in pairs.iloc[0])
        assert "attention; faithfulness not measured" in model.explain(user, movie).text()
        unknown = pd.DataFrame({"userId": [-1, 1], "movieId": [101, -1]})
        assert model.measure_faithfulness(pd.concat([pairs, unknown])) == pytest.approx(truth)
        why = model.explain(user, movie)
        assert (why.method, why.faithfulness) == ("attention", model.faithfulness)
        assert f"attention; faithfulness {truth:.2f} of 1 on held-out data" in why.text()
        measured = measure_faithfulness(model, pairs, "cold")
        assert measured.mean == pytest.approx(truth)

    def test_a_gate_that_never_moves_is_not_measurable(self) -> None:
        model = KnownGate(0.0)
        assert model.measure_faithfulness(known_pairs(model)) is None
        assert model.measure_faithfulness(known_pairs(model)[:0]) is None

    def test_fit_measures_on_the_validation_frame(
        self, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame, tmp_path: Path
    ) -> None:
        train, validation = toy_ratings[::2], toy_ratings[1::2]
        model = make("deepcf-plus", **PLUS).fit(train, validation, toy_movies)
        assert isinstance(model, DeepCFPlus)
        known = validation["userId"].isin(train["userId"]) & validation["movieId"].isin(
            train["movieId"]
        )
        weight = user_share(model, validation[known], "attention")
        truth = share(shapley_two_players(model, validation[known], "cold"))
        expected = stats.spearmanr(weight, truth).statistic
        assert model.faithfulness == pytest.approx(expected)
        loaded = load_model(model.save(tmp_path / "model"))
        assert loaded.explain(13, 2).faithfulness == model.faithfulness
        assert model.fit(train, movies=toy_movies).explain(13, 2).faithfulness is None


class TestSanityAndStability:
    def test_a_randomised_network_is_untrained_and_the_original_is_kept(
        self, deepcf: DeepCF
    ) -> None:
        pairs = known_pairs(deepcf)
        before = deepcf.predict(pairs)
        first, again = randomised(deepcf, 1).predict(pairs), randomised(deepcf, 1).predict(pairs)
        np.testing.assert_array_equal(deepcf.predict(pairs), before)
        np.testing.assert_array_equal(first, again)
        assert np.abs(np.corrcoef(first, before)[0, 1]) < 0.5
        untrained = randomised(deepcf, 1)
        assert untrained.faithfulness is None  # type: ignore[attr-defined]
        np.testing.assert_array_equal(untrained.use_weights("best").predict(pairs), first)  # type: ignore[attr-defined]
        assert np.abs(randomised(deepcf, 2).predict(pairs) - first).max() > 1e-3
        with pytest.raises(ValueError, match="use deepcf"):
            randomised(make("bias"))

    def test_a_randomised_reader_keeps_its_evidence_alone(
        self, fitted: dict[str, Recommender]
    ) -> None:
        model = fitted["deepcf-plus"]
        assert isinstance(model, DeepCFPlus)
        before = {name: value.clone() for name, value in model.network.state_dict().items()}
        untrained = randomised(model, 1)
        assert isinstance(untrained, DeepCFPlus) and untrained.faithfulness is None
        learned = dict(untrained.network.named_parameters())
        for name, value in untrained.network.state_dict().items():
            assert torch.equal(value, before[name]) == (
                name not in learned or (name.endswith("bias") and not before[name].any())
            ), name
            assert torch.equal(model.network.state_dict()[name], before[name]), name
        for name, gain in (("user_side", 1.0), ("gate", 0.1)):  # the scale of a fresh layer
            weight = learned[f"{name}.weight"].detach()
            assert weight.std().item() == pytest.approx(gain * weight.shape[1] ** -0.5, rel=0.15)
        pairs = known_pairs(model)
        first, again = randomised(model, 1).predict(pairs), randomised(model, 1).predict(pairs)
        np.testing.assert_array_equal(first, again)
        assert np.abs(randomised(model, 2).predict(pairs) - first).max() > 1e-3

    def test_shuffled_labels_are_the_same_labels(self, toy_ratings: pd.DataFrame) -> None:
        dealt = shuffled_labels(toy_ratings, seed=1)
        assert dealt[["userId", "movieId"]].equals(toy_ratings[["userId", "movieId"]])
        assert sorted(dealt["rating"]) == sorted(toy_ratings["rating"])
        assert abs(np.corrcoef(dealt["rating"], toy_ratings["rating"])[0, 1]) < 0.1

    @pytest.mark.parametrize("destroy", [shuffled_labels, exchanged_movies])
    def test_the_users_that_are_kept_stay(
        self, destroy: Callable[..., pd.DataFrame], toy_ratings: pd.DataFrame
    ) -> None:
        kept = toy_ratings["userId"].unique()[:5]
        found = destroy(toy_ratings, 1, kept)
        own = toy_ratings["userId"].isin(kept)
        pd.testing.assert_frame_equal(found[own], toy_ratings[own])
        assert (found[~own] != toy_ratings[~own]).any(axis=1).mean() > 0.7

    def test_exchanged_movies_are_the_same_ratings_under_other_names(
        self, toy_ratings: pd.DataFrame
    ) -> None:
        found = exchanged_movies(toy_ratings, seed=1)
        columns = ["userId", "rating", "timestamp"]
        assert found[columns].equals(toy_ratings[columns])
        name = dict(zip(toy_ratings["movieId"], found["movieId"], strict=True))
        assert toy_ratings["movieId"].map(name).equals(found["movieId"])
        assert sorted(name) == sorted(name.values())

    def test_an_explanation_that_stays_fails_and_one_that_goes_passes(self) -> None:
        generator = np.random.default_rng(0)
        users, trained = np.repeat(np.arange(60), 10), generator.random(600)
        same = sanity_check(users, trained, trained**3)
        assert not same.passed and same.correlation.mean == pytest.approx(1.0)
        assert not sanity_check(users, trained, -trained).passed
        other = sanity_check(users, trained, generator.random(600))
        assert other.passed and abs(other.correlation.mean) < 0.15
        assert not sanity_check(users, trained, generator.random(600), limit=0.01).passed

    def test_within_an_explanation_its_level_does_not_count(self) -> None:
        """The parts of each share a level that no model had to learn; their order is noise."""
        generator = np.random.default_rng(4)
        explanation = np.repeat(np.arange(120), 15)
        users, level = explanation // 2, 10.0 * explanation
        trained, other = level + generator.random((2, len(level)))
        assert not sanity_check(users, trained, other).passed
        within = sanity_check(users, trained, other, within=explanation)
        assert within.passed and abs(within.correlation.mean) < 0.1
        flipped = stability(users, [trained, 2 * level - trained], within=explanation)
        assert flipped.as_dict() == pytest.approx({"mean": -1.0, "low": -1.0, "high": -1.0})
        both = stability(users, [trained, level + (trained - level) ** 3, other], explanation)
        assert both.mean == pytest.approx((1 + 2 * within.correlation.mean) / 3)
        assert not sanity_check(users, trained, 3 * trained, within=explanation).passed
        several = sanity_check(users, trained, [other, trained, -trained], within=explanation)
        assert several.correlation.mean == pytest.approx(within.correlation.mean / 3)
        apart = sanity_check(users, trained, [other, trained, -trained])
        assert apart.correlation.mean == pytest.approx(stats.spearmanr(trained, other)[0] / 3)

    def test_an_explanation_without_an_order_is_no_agreement(self) -> None:
        users = explanation = np.repeat(np.arange(8), 4)
        said = np.tile([1.0, 2.0, 3.0, 4.0], 8)
        silent = np.zeros(32)
        assert stability(users, [said, silent], explanation).mean == 0.0
        half = np.where(explanation < 4, said, 0.0)  # the other half says nothing by either
        assert stability(users, [half, half], explanation).low == pytest.approx(1.0)
        with pytest.raises(ValueError, match="nothing to compare"):
            stability(users, [silent, silent], explanation)

    def test_of_two_worlds_the_item_weights_are_sane_and_the_ratings_are_not(self) -> None:
        """Two groups of users with movies of their own: what of the history is of the movie's
        world counts, and that is what is lost where the movies are exchanged."""
        generator = np.random.default_rng(5)
        movies = [
            np.concatenate(
                [generator.choice(30, 14, replace=False) + 30 * world,
                 generator.choice(30, 6, replace=False) + 30 * (1 - world)]
            )
            for world in np.arange(200) % 2
        ]  # fmt: skip
        train = pd.DataFrame(
            {
                "userId": np.repeat(np.arange(200), 20),
                "movieId": np.concatenate(movies),
                "rating": generator.integers(6, 11, 4000).astype(np.float32) / 2,
            }
        )
        kept = np.arange(30)
        model, lost = (
            make("ease", regularization=5.0, rating_weight=0.1).fit(t)
            for t in (train, exchanged_movies(train, 2, kept))
        )
        unseen = [int(np.setdiff1d(np.arange(30) + 30 * (u % 2), movies[u])[0]) for u in kept]
        pairs = pd.DataFrame({"userId": kept, "movieId": unseen})
        found, other = history_explanations(model, pairs), history_explanations(lost, pairs)
        same_world = found["ratedId"] // 30 == found["movieId"] // 30
        near, far = (found.loc[rows, "terms"].mean() for rows in (same_world, ~same_world))
        assert near > 0.02 > 0 > far
        keys = ["userId", "movieId", "ratedId", "explanation"]
        pd.testing.assert_frame_equal(found[keys], other[keys])
        within = found["explanation"]
        check = history_sanity(model, [lost], pairs)["terms"]
        correlations = [
            stats.spearmanr(found.loc[rows, "terms"], other.loc[rows, "terms"]).statistic
            for rows in within.groupby(within).groups.values()
        ]
        assert check.passed
        assert check.correlation.mean == pytest.approx(np.mean(correlations))
        assert not history_sanity(model, [model], pairs)["terms"].passed
        assert history_stability([model, model], pairs, ["terms"])["terms"].low == pytest.approx(1)
        given = [m.ratings_of(u)["rating"] for m in (model, lost) for u in kept]
        rating = np.concatenate(given).reshape(2, -1)
        assert not sanity_check(found["userId"], *rating, within=within).passed

    def test_explanations_are_the_attributions_in_rows(
        self, fitted: dict[str, Recommender]
    ) -> None:
        model = fitted["deepcf-plus"]
        pairs = pd.DataFrame({"userId": [23, 13, 13], "movieId": [2, 9, 2]})
        found = history_explanations(model, pairs)
        assert found.columns[4:].tolist() == ["attention", "attention x deviation"]
        assert found["explanation"].unique().tolist() == [0, 1, 2]
        for (user, movie), part in found.groupby(["userId", "movieId"]):
            for method in found.columns[4:]:
                expected = history_attributions(model, user, [movie], method)[movie]
                assert part.set_index("ratedId")[method].to_dict() == expected.to_dict()

    def test_stability_is_the_mean_over_pairs_of_models(self) -> None:
        generator = np.random.default_rng(1)
        users = np.repeat(np.arange(30), 4)
        values = generator.random((3, 120))
        values[1] = values[0] ** 2
        found = stability(users, values)
        expected = stats.spearmanr(values.T).statistic[np.triu_indices(3, 1)].mean()
        assert found.mean == pytest.approx(expected)
        assert found.low < found.mean < found.high
        assert stability(users, values[:2]).low == pytest.approx(1.0)
        with pytest.raises(ValueError, match="two models"):
            stability(users, values[:1])

    def test_agreement_and_its_gap(self) -> None:
        generator = np.random.default_rng(2)
        attention = generator.random(200)
        shares = {"attention": attention, "same": attention, "flipped": 1 - attention}
        found = agreement(np.repeat(np.arange(20), 10), shares)
        assert found.loc["same", "correlation"] == pytest.approx(1.0)
        assert found.loc["flipped", "high"] == pytest.approx(-1.0)
        assert found.loc["same", "gap"] == 0.0
        assert found.loc["flipped", "gap"] == pytest.approx(np.abs(2 * attention - 1).mean())

    def test_the_interval_grows_with_the_clusters(self) -> None:
        """Ten copies of each row are no more information where the copies are one user's."""
        values = np.random.default_rng(3).normal(size=40)
        copies, users = np.repeat(values, 10), np.repeat(np.arange(40), 10)
        single, clustered = mean_by_user(np.arange(40), values), mean_by_user(users, copies)
        assert clustered.as_dict() == pytest.approx(single.as_dict())
        naive = mean_by_user(np.arange(400), copies)
        assert naive.high - naive.low < 0.5 * (single.high - single.low)


class Additive(Recommender):
    """Rates ``3 + sum over the history of effect of the rated movie``: each rating's part is known.

    Even a history model of the test's own must keep the contract; only what is called is written.
    """

    name = "additive"

    def __init__(self, effect: dict[int, float]) -> None:
        self.effect = effect
        self.movie_ids, self.user_ids = np.array([*effect, 99]), np.array([1])
        self.movie_counts = np.array([*range(1, len(effect) + 1), 1])
        self.gone: set[int] = set()

    def _fit(self, data: Any, validation: Any, movies: Any) -> None: ...

    def _predict(self, users: Any, movies: Any, timestamps: Any) -> Any: ...

    def predict(self, pairs: pd.DataFrame) -> np.ndarray:
        total = sum(value for movie, value in self.effect.items() if movie not in self.gone)
        return np.full(len(pairs), 3.0 + total)

    def ratings_of(self, user_id: int) -> pd.DataFrame:
        kept = [movie for movie in self.effect if movie not in self.gone]
        return pd.DataFrame({"movieId": kept, "rating": 4.0})

    def revised(self, user_id: int, changes: Mapping[int, float | None]) -> Recommender:
        served = copy.copy(self)
        served.gone = self.gone | set(changes)
        return served


class TestHistory:
    USER = 13

    def targets(self, model: Recommender, n: int = 6) -> list[int]:
        return [int(movie) for movie in model.recommend(self.USER, k=n)["movieId"]]

    def test_leaving_out_finds_the_parts_of_an_additive_model(self) -> None:
        effect = {1: 0.5, 2: -0.25, 3: 0.0, 4: 0.125}
        found = leave_one_out(Additive(effect), 1, [99])
        assert found[99].to_dict() == pytest.approx(effect)
        assert leave_one_out(Additive(effect), 1, [99], [2])[99].to_dict() == {2: -0.25}

    def test_curves_of_an_additive_model_are_its_sums(self) -> None:
        model = Additive({1: 0.5, 2: -0.25, 3: 0.0, 4: 0.125})
        fractions = [0, 0.25, 0.5, 0.75, 1]
        deletion, insertion = deletion_and_insertion(model, 1, 99, [1, 4, 3, 2], fractions)
        assert deletion.tolist() == [3.375, 2.875, 2.75, 2.75, 3.0]
        assert insertion.tolist() == [3.0, 3.5, 3.625, 3.625, 3.375]

    def test_the_true_order_has_the_best_areas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = np.random.default_rng(5)
        model = Additive({int(i): float(v) for i, v in enumerate(generator.normal(size=12))})
        truth = pd.DataFrame({99: pd.Series(model.effect)})
        wrong = -truth
        monkeypatch.setattr(
            "dlcf.explain.history_attributions",
            lambda model, user, movies, method: {"true": truth, "wrong": wrong}[method],
        )
        pairs = pd.DataFrame({"userId": [1], "movieId": [99]})
        areas = curve_areas(model, pairs, ["true", "wrong"]).set_index("order")
        assert set(areas.index) == {"true", "wrong", "random", "popularity"}
        assert areas["deletion"].idxmin() == "true" and areas["deletion"].idxmax() == "wrong"
        assert areas["insertion"].idxmax() == "true" and areas["insertion"].idxmin() == "wrong"
        found = history_faithfulness(model, pairs, ["true", "wrong"]).set_index("method")
        assert found.loc["true", "correlation"] == pytest.approx(1.0)
        assert found.loc["wrong", "correlation"] == pytest.approx(-1.0)

    def test_differences_to_random_are_paired(self) -> None:
        users = np.repeat(np.arange(30), 2)
        base = np.random.default_rng(0).normal(3, 1, 60)
        tables = [
            pd.DataFrame(
                {
                    "userId": users,
                    "movieId": np.arange(60),
                    "order": order,
                    "deletion": base + gap,
                    "insertion": base - gap,
                }
            )
            for order, gap in (("random", 0.0), ("terms", -0.2))
        ]
        found = paired_with_random(pd.concat(tables))
        for name, value in (("deletion", -0.2), ("insertion", 0.2)):
            for end in ("", ", low", ", high"):  # the pairs differ widely, the differences do not
                assert found.loc["terms", f"{name} - random{end}"] == pytest.approx(value)
        assert found.loc["terms", "deletion"] == pytest.approx(base.mean() - 0.2)
        assert found.loc["terms", "deletion, low"] < found.loc["terms", "deletion"] - 0.1

    def test_terms_sum_to_what_they_explain(self, fitted: dict[str, Recommender]) -> None:
        knn, ease = fitted["item-knn"], fitted["ease"]
        for model in (knn, ease):
            targets = self.targets(model)
            total = history_attributions(model, self.USER, targets).sum().to_numpy()
            value = history_value(model, self.USER, targets)
            if model is knn:
                value = value - make_baseline(knn, self.USER, targets)
            np.testing.assert_allclose(total, value, atol=1e-5)
            assert np.abs(total).max() > 0.01

    def test_for_a_linear_model_terms_are_occlusion(self, fitted: dict[str, Recommender]) -> None:
        model = fitted["ease"]
        targets = self.targets(model)
        terms = history_attributions(model, self.USER, targets)
        pd.testing.assert_frame_equal(
            terms, history_attributions(model, self.USER, targets, "occlusion"), atol=1e-5
        )
        pairs = pd.DataFrame({"userId": self.USER, "movieId": targets})
        assert history_faithfulness(model, pairs)["correlation"].min() > 0.999

    def test_knn_terms_are_zero_beyond_the_neighbours(self, fitted: dict[str, Recommender]) -> None:
        terms = history_attributions(fitted["item-knn"], self.USER, self.targets(fitted["ease"]))
        assert (terms != 0).sum().max() == 5  # `neighbors` of the fixture

    def test_attention_is_that_of_explain(self, fitted: dict[str, Recommender]) -> None:
        model = fitted["deepcf-plus"]
        assert isinstance(model, DeepCFPlus)
        targets = self.targets(model)
        found = history_attributions(model, self.USER, targets)
        signed = history_attributions(model, self.USER, targets, "attention x deviation")
        for movie in targets:
            why = model.explain(self.USER, movie)
            weights = {item.movie_id: item.weight for item in why.history}
            assert len(weights) == 8  # `history_size` of the fixture
            shown = found[movie][found[movie] != 0]
            assert shown.to_dict() == pytest.approx(weights, abs=1e-6)
            pair = pd.DataFrame({"userId": [self.USER], "movieId": [movie]})
            assert model.attention_weights(pair)[0, 0] == pytest.approx(why.user_weight, abs=1e-6)
        users, _, _, _ = model.positions(pd.DataFrame({"userId": [self.USER], "movieId": [1]}))
        rows = model._context.history(int(users[0]))
        deviation = pd.Series(
            model._context.deviations(int(users[0]))[1],
            model.movie_ids[model._context.movies[rows]],
        )
        expected = found.mul(deviation.sort_index(), axis=0)
        np.testing.assert_allclose(signed, expected, atol=1e-3)  # channels are half precision

    def test_leaving_out_is_a_context_without_the_rating(
        self, fitted: dict[str, Recommender], toy_ratings: pd.DataFrame
    ) -> None:
        """Checked against evidence that is computed from a train without the rating."""
        model = fitted["deepcf-plus"]
        assert isinstance(model, DeepCFPlus)
        targets = self.targets(model)
        gone = int(history(toy_ratings, self.USER)["movieId"].iloc[2])
        found = leave_one_out(model, self.USER, targets, [gone])
        data = model._data
        user = int(np.flatnonzero(model.user_ids == self.USER)[0])
        movie = int(np.flatnonzero(model.movie_ids == gone)[0])
        context = Context(data.take(~((data.users == user) & (data.movies == movie))), model._side)
        users = np.full(len(targets), user)
        columns = np.searchsorted(model.movie_ids, targets)
        inputs = model._inputs(context, users, columns, model._times(users, None))
        with torch.no_grad():
            without = np.clip(model.network(*inputs).double().numpy(), 0.5, 5.0)
        expected = history_value(model, self.USER, targets) - without
        np.testing.assert_allclose(found.loc[gone], expected, atol=1e-6)
        assert np.abs(expected).max() > 1e-4

    def test_refitting_without_a_rating_is_fitting_without_it(
        self, fitted: dict[str, Recommender], toy_ratings: pd.DataFrame
    ) -> None:
        model = fitted["ease"]
        targets, gone = self.targets(model), int(history(toy_ratings, self.USER)["movieId"].iloc[0])
        found = leave_out_refitted(model, toy_ratings, self.USER, targets, [gone])
        rest = toy_ratings[~((toy_ratings["userId"] == 13) & (toy_ratings["movieId"] == gone))]
        again = make("ease", **model.config).fit(rest)
        expected = history_value(model, 13, targets) - history_value(again, 13, targets)
        np.testing.assert_allclose(found.loc[gone], expected)
        with pytest.raises(ValueError, match="did not rate"):
            leave_out_refitted(model, toy_ratings, self.USER, targets, [-1])

    def test_refusals(self, fitted: dict[str, Recommender], deepcf: DeepCF) -> None:
        with pytest.raises(NotImplementedError, match="deepcf does not read"):
            history_attributions(deepcf, self.USER, [2])
        with pytest.raises(ValueError, match="terms, occlusion"):
            history_attributions(fitted["ease"], self.USER, [2], "attention")
        with pytest.raises(ValueError, match="not in train"):
            history_attributions(fitted["ease"], self.USER, [-1])


def make_baseline(model: Recommender, user_id: int, movie_ids: list[int]) -> np.ndarray:
    pairs = pd.DataFrame({"userId": user_id, "movieId": movie_ids})
    users, _, movies, _ = model.positions(pairs)
    return model._mean + model._user_bias[users] + model._movie_bias[movies]


class TestRidge:
    def test_leaving_out_is_exact_and_the_influence_near(self) -> None:
        generator = np.random.default_rng(0)
        x, penalty = generator.normal(size=(40, 4)), np.array([0.5, 1.0, 2.0, 3.0])
        y = x @ [1.0, -1.0, 0.5, 0.0] + generator.normal(0, 0.3, 40)
        query = generator.normal(size=4)

        def predict(kept: np.ndarray) -> float:
            a = x[kept].T @ x[kept] + np.diag(penalty)
            return float(query @ np.linalg.solve(a, x[kept].T @ y[kept]))

        everything = np.arange(40)
        full = predict(everything)
        found = ridge_attributions(x, y, penalty, query)
        expected = [full - predict(everything[everything != j]) for j in everything]
        np.testing.assert_allclose(found["leave_one_out"], expected, atol=1e-12)
        assert found["terms"].sum() == pytest.approx(full)
        correlation = np.corrcoef(found["influence"], found["leave_one_out"])[0, 1]
        assert 0.98 < correlation < 1 - 1e-6
        assert (found["influence"].abs() <= found["leave_one_out"].abs() + 1e-15).all()

    def test_mf_solves_for_its_user(self, toy_ratings: pd.DataFrame) -> None:
        model = make("mf", factors=3, epochs=60, learning_rate=0.01).fit(toy_ratings)
        assert isinstance(model, MatrixFactorization)
        rated = history(toy_ratings, 13)
        found, rating = mf_history(model, toy_ratings, 13, 2)
        assert found.index.tolist() == rated["movieId"].tolist()
        # Plain gradient descent on the user's part of the loss, with the movies fixed.
        network = model.network
        columns = torch.as_tensor(np.searchsorted(model.movie_ids, rated["movieId"]))
        parts = network.movie_factors.weight.detach().double()[columns]
        level = (network.mean + network.movie_bias.weight[:, 0]).detach().double()
        target = torch.tensor(rated["rating"].to_numpy(np.float64))
        bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
        vector = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        descent = torch.optim.LBFGS([bias, vector], max_iter=200, tolerance_grad=1e-12)

        def loss() -> torch.Tensor:
            descent.zero_grad()
            error = target - level[columns] - bias - parts @ vector
            penalty = model.regularization * (vector**2).sum() + model.bias_regularization * bias**2
            value = (error**2).mean() + penalty
            value.backward()
            return value

        descent.step(loss)
        query = int(np.flatnonzero(model.movie_ids == 2)[0])
        with torch.no_grad():
            by_descent = level[query] + bias + network.movie_factors.weight[query].double() @ vector
        assert rating == pytest.approx(float(by_descent), abs=1e-5)
        pair = pd.DataFrame({"userId": [13], "movieId": [2]})
        assert rating == pytest.approx(model.predict(pair)[0], abs=0.15)
        with pytest.raises(ValueError, match="not of svdpp"):
            mf_history(make("svdpp"), toy_ratings, 13, 2)


class Strengths(Recommender):
    """Predicts what it is told, by the movie's id."""

    name = "strengths"

    def __init__(self, strength: np.ndarray) -> None:
        self.strength, self.scale = strength, (0.0, 5.0)

    def _fit(self, data: Any, validation: Any, movies: Any) -> None: ...

    def _predict(self, users: Any, movies: Any, timestamps: Any) -> Any: ...

    def predict(self, pairs: pd.DataFrame) -> np.ndarray:
        return 5.0 * self.strength[pairs["movieId"]]


class TestCalibration:
    def world(self, seed: int) -> tuple[Strengths, pd.DataFrame]:
        """8,000 ratings by 200 users, liked with a chance of the strength squared."""
        generator = np.random.default_rng(seed)
        strength = generator.random(8000)
        rating = np.where(generator.random(8000) < strength**2, 4.5, 2.0)
        users = generator.integers(200, size=8000)
        frame = pd.DataFrame({"userId": users, "movieId": np.arange(8000), "rating": rating})
        return Strengths(strength), frame

    def test_it_finds_the_true_chance(self) -> None:
        chance = calibrate_strength(*self.world(0))
        grid = np.linspace(0.05, 0.95, 19)
        np.testing.assert_allclose(chance(grid), grid**2, atol=0.06)
        assert (np.diff(chance(np.linspace(0, 1, 500))) >= 0).all()
        assert chance(0.0) >= 0 and chance(1.0) <= 1

    def test_the_error_falls_and_the_intervals_say_so(self) -> None:
        found = calibration_report(calibrate_strength(*self.world(0)), *self.world(1))
        assert found.error_before.mean == pytest.approx(1 / 6, abs=0.01)  # integral of s - s^2
        assert found.error_after.mean < 0.03
        assert found.difference.high < -0.1
        assert found.error_before.low < 1 / 6 < found.error_before.high
        assert found.before["cases"].sum() == found.after["cases"].sum() == 8000

    def test_isotonic_regression_agrees_with_scikit_learn(self) -> None:
        isotonic = pytest.importorskip("sklearn.isotonic")
        model, frame = self.world(2)
        chance = calibrate_strength(model, frame)
        strength = model.predict(frame) / 5
        reference = isotonic.IsotonicRegression().fit(strength, frame["rating"] >= 4.0)
        np.testing.assert_allclose(
            chance(np.array(chance.strength)), reference.predict(chance.strength), atol=1e-9
        )
