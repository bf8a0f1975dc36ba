"""Explanations that depend on what was learned, and ones that do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from toy_models import known_pairs

from dlcf.explain.history import history_attributions
from dlcf.explain.sanity import (
    exchanged_movies,
    history_explanations,
    history_sanity,
    history_stability,
    randomised,
    sanity_check,
    shuffled_labels,
    stability,
)
from dlcf.models.base import Recommender
from dlcf.plus.deepcf_plus import DeepCFPlus
from dlcf.registry import make
from dlcf.variants.deepcf import ExplainedDeepCF


class TestSanityAndStability:
    def test_a_randomised_network_is_untrained_and_the_original_is_kept(
        self, deepcf: ExplainedDeepCF
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

    def test_an_explanation_that_stays_is_told_from_one_that_goes(self) -> None:
        generator = np.random.default_rng(0)
        users, trained = np.repeat(np.arange(60), 10), generator.random(600)
        assert sanity_check(users, trained, trained**3).low == pytest.approx(1.0)
        assert sanity_check(users, trained, -trained).high == pytest.approx(-1.0)
        other = sanity_check(users, trained, generator.random(600))
        assert other.low < 0 < other.high and abs(other.mean) < 0.15

    @pytest.mark.parametrize("agreement", [0.4, -0.6])
    def test_the_number_is_a_correlation_and_few_users_are_little_evidence(
        self, agreement: float
    ) -> None:
        """Of 200 users with 20 values each the interval is about 0.03 wide to either side."""
        generator = np.random.default_rng(6)
        users, (trained, noise) = np.repeat(np.arange(200), 20), generator.normal(size=(2, 4000))
        other = agreement * trained + np.sqrt(1 - agreement**2) * noise
        found = sanity_check(users, trained, other)
        assert found.mean == pytest.approx(agreement, abs=0.05)
        few = sanity_check(users[:60], trained[:60], other[:60])
        assert few.high - few.low > 3 * (found.high - found.low)

    @pytest.mark.parametrize("destroy", [shuffled_labels, exchanged_movies])
    def test_the_seed_says_what_is_destroyed(
        self, destroy: Callable[..., pd.DataFrame], toy_ratings: pd.DataFrame
    ) -> None:
        first, again, other = (destroy(toy_ratings, seed) for seed in (0, 0, 1))
        assert first.equals(again) and not first.equals(other)

    def test_within_an_explanation_its_level_does_not_count(self) -> None:
        """The parts of each share a level that no model had to learn; their order is noise."""
        generator = np.random.default_rng(4)
        explanation = np.repeat(np.arange(120), 15)
        users, level = explanation // 2, 10.0 * explanation
        trained, other = level + generator.random((2, len(level)))
        assert sanity_check(users, trained, other).low > 0.9
        within = sanity_check(users, trained, other, within=explanation)
        assert abs(within.mean) < 0.1 and within.low < 0.05
        flipped = stability(users, [trained, 2 * level - trained], within=explanation)
        assert flipped.as_dict() == pytest.approx({"mean": -1.0, "low": -1.0, "high": -1.0})
        both = stability(users, [trained, level + (trained - level) ** 3, other], explanation)
        assert both.mean == pytest.approx((1 + 2 * within.mean) / 3)
        assert sanity_check(users, trained, 3 * trained, within=explanation).low > 0.99
        several = sanity_check(users, trained, [other, trained, -trained], within=explanation)
        assert several.mean == pytest.approx(within.mean / 3)
        separate = sanity_check(users, trained, [other, trained, -trained])
        assert separate.mean == pytest.approx(stats.spearmanr(trained, other)[0] / 3)

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
        assert check.high < 0.5
        assert check.mean == pytest.approx(np.mean(correlations))
        assert history_sanity(model, [model], pairs)["terms"].low == pytest.approx(1)
        assert history_stability([model, model], pairs, ["terms"])["terms"].low == pytest.approx(1)
        given = [m.ratings_of(u)["rating"] for m in (model, lost) for u in kept]
        rating = np.concatenate(given).reshape(2, -1)
        assert sanity_check(found["userId"], *rating, within=within).low == pytest.approx(1)

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
                given = part.set_index("ratedId")[method].to_dict()
                assert given == pytest.approx(expected.to_dict(), abs=1e-6)

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
