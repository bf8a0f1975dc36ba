"""Attributions to the ratings of a history, of models whose true ones are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from toy_models import Additive, Redundant, history

from dlcf.explain.faithfulness import history_faithfulness
from dlcf.explain.history import (
    deletion_and_insertion,
    history_attributions,
    history_value,
    leave_one_out,
    shapley_history,
    values_from,
)
from dlcf.models.base import Recommender
from dlcf.plus.deepcf_plus import NETWORK_FIELDS, DeepCFPlus
from dlcf.plus.evidence import Context
from dlcf.variants.deepcf import ExplainedDeepCF


class TestHistory:
    USER = 13

    def targets(self, model: Recommender, n: int = 6) -> list[int]:
        return [int(movie) for movie in model.recommend(self.USER, k=n)["movieId"]]

    def test_leaving_out_finds_the_parts_of_an_additive_model(self) -> None:
        effect = {1: 0.5, 2: -0.25, 3: 0.0, 4: 0.125}
        found = leave_one_out(Additive(effect), 1, [99])
        assert found[99].to_dict() == pytest.approx(effect)
        assert leave_one_out(Additive(effect), 1, [99], [2])[99].to_dict() == {2: -0.25}

    def test_shapley_values_of_an_additive_model_are_its_parts(self) -> None:
        effect = {1: 0.5, 2: -0.25, 3: 0.0, 4: 0.125}
        found = shapley_history(Additive(effect), 1, 99, permutations=4)
        assert found["shapley"].to_dict() == pytest.approx(effect)
        assert found["first half"].to_dict() == pytest.approx(found["second half"].to_dict())

    def test_two_ratings_that_say_the_same_share_it(self) -> None:
        """Either of 1 and 2 gives a star, both together no more; 3 gives half a star.

        By hand: in half of the orders 1 comes before 2 and gets the star. Taking one of them away
        changes nothing, so neither has the effect of a deletion.
        """
        found = shapley_history(Redundant(), 1, 99, permutations=4)
        assert found["shapley"].to_dict() == pytest.approx({1: 0.5, 2: 0.5, 3: 0.5})
        assert leave_one_out(Redundant(), 1, [99])[99].to_dict() == {1: 0.0, 2: 0.0, 3: 0.5}

    def test_an_interaction_of_two_ratings_is_shared_equally(self) -> None:
        """1 and 2 give a star together and nothing alone: half a star each, whatever the order."""
        found = shapley_history(Redundant(both=True), 1, 99, permutations=4, seed=3)
        assert found["shapley"].to_dict() == pytest.approx({1: 0.5, 2: 0.5, 3: 0.5})
        assert leave_one_out(Redundant(both=True), 1, [99])[99].to_dict() == {1: 1, 2: 1, 3: 0.5}

    def test_three_ratings_that_say_the_same_need_many_orders(self) -> None:
        """A third each; the first of an order gets it all, so four orders cannot show it."""
        model = Redundant(same=(1, 2, 3))
        few = shapley_history(model, 1, 99, permutations=4)
        many = shapley_history(model, 1, 99, permutations=2000)
        for found in (few, many):
            assert found["shapley"].sum() == pytest.approx(1.0, abs=1e-12)
        assert many["shapley"].to_numpy() == pytest.approx(np.full(3, 1 / 3), abs=0.04)
        assert few["shapley"].to_dict() != pytest.approx(many["shapley"].to_dict(), abs=0.04)
        again, other = (shapley_history(model, 1, 99, 40, seed) for seed in (0, 1))
        assert not again.equals(other) and again.equals(shapley_history(model, 1, 99, 40, 0))
        for wrong in (0, 6):
            with pytest.raises(ValueError, match="multiple of 4"):
                shapley_history(model, 1, 99, wrong)

    def test_shapley_values_of_a_reader_are_complete(self, fitted: dict[str, Recommender]) -> None:
        model = fitted["deepcf-plus"]
        assert isinstance(model, DeepCFPlus)
        movie, n = self.targets(model)[0], len(model.ratings_of(self.USER))
        for timestamp in (None, 1_200_000_000.0):
            found = shapley_history(model, self.USER, movie, 8, timestamp=timestamp)
            kept = np.array([np.ones(n, bool), np.zeros(n, bool)])
            whole, none = values_from(model, self.USER, movie, kept, timestamp=timestamp)
            pair = pd.DataFrame({"userId": [self.USER], "movieId": [movie]})
            shown = model.predict(pair if timestamp is None else pair.assign(timestamp=timestamp))
            assert whole == pytest.approx(shown[0], abs=5e-5)
            for column in found:
                assert found[column].sum() == pytest.approx(whole - none, abs=1e-5)
        assert (found["first half"] - found["second half"]).abs().max() > 1e-4
        listed = history_attributions(model, self.USER, [movie], "shapley")[movie]
        pd.testing.assert_series_equal(
            listed, shapley_history(model, self.USER, movie)["shapley"], check_names=False
        )

    def test_curves_of_an_additive_model_are_its_sums(self) -> None:
        model = Additive({1: 0.5, 2: -0.25, 3: 0.0, 4: 0.125})
        fractions = [0, 0.25, 0.5, 0.75, 1]
        deletion, insertion = deletion_and_insertion(model, 1, 99, [1, 4, 3, 2], fractions)
        assert deletion.tolist() == [3.375, 2.875, 2.75, 2.75, 3.0]
        assert insertion.tolist() == [3.0, 3.5, 3.625, 3.625, 3.375]

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

    def test_for_a_linear_model_terms_are_deletions(self, fitted: dict[str, Recommender]) -> None:
        model = fitted["ease"]
        targets = self.targets(model)
        terms = history_attributions(model, self.USER, targets)
        pd.testing.assert_frame_equal(
            terms, history_attributions(model, self.USER, targets, "single deletion"), atol=1e-5
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
            assert sum(weight > 0 for weight in weights.values()) == 8  # `history_size`
            assert found[movie].to_dict() == pytest.approx(weights, abs=1e-6)
            pair = pd.DataFrame({"userId": [self.USER], "movieId": [movie]})
            assert model.attention_weights(pair)[0, 0] == pytest.approx(why.user_weight, abs=1e-6)
        users, _, _, _ = model.positions(pd.DataFrame({"userId": [self.USER], "movieId": [1]}))
        rows = model.context.history(int(users[0]))
        deviation = pd.Series(
            model.context.deviations(int(users[0]))[1],
            model.movie_ids[model.context.movies[rows]],
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
        data = model.data
        user = int(np.flatnonzero(model.user_ids == self.USER)[0])
        movie = int(np.flatnonzero(model.movie_ids == gone)[0])
        context = Context(data.take(~((data.users == user) & (data.movies == movie))), model.side)
        users = np.full(len(targets), user)
        columns = np.searchsorted(model.movie_ids, targets)
        times = model._times(users, None).astype(float)
        evidence = context.describe(users, columns, times, model.history_size)
        arrays = users, columns, *(getattr(evidence, name) for name in NETWORK_FIELDS)
        inputs = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        with torch.no_grad():
            without = np.clip(model.network(*inputs).double().numpy(), 0.5, 5.0)
        expected = history_value(model, self.USER, targets) - without
        # There the other people's biases are computed again too.
        np.testing.assert_allclose(found.loc[gone], expected, atol=2e-3)
        assert np.abs(expected).max() > 0.02

    def test_refusals(self, fitted: dict[str, Recommender], deepcf: ExplainedDeepCF) -> None:
        with pytest.raises(NotImplementedError, match="deepcf does not read"):
            history_attributions(deepcf, self.USER, [2])
        with pytest.raises(ValueError, match="terms, single deletion"):
            history_attributions(fitted["ease"], self.USER, [2], "attention")
        with pytest.raises(ValueError, match="not in train"):
            history_attributions(fitted["ease"], self.USER, [-1])


def make_baseline(model: Recommender, user_id: int, movie_ids: list[int]) -> np.ndarray:
    pairs = pd.DataFrame({"userId": user_id, "movieId": movie_ids})
    users, _, movies, _ = model.positions(pairs)
    return model._mean + model._user_bias[users] + model._movie_bias[movies]
