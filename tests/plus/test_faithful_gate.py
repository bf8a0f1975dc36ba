"""The gate of deepcf-plus says how faithful it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from toy_models import PLUS, known_pairs

from dlcf.explain.attribution import shapley_two_players, share, user_share
from dlcf.explain.faithfulness import measure_faithfulness
from dlcf.plus.deepcf_plus import DeepCFPlus
from dlcf.registry import load_model, make


class KnownGate(DeepCFPlus):
    """Rates ``3 + a_u + b_i`` of those it knows, so the Shapley values are the terms; the gate
    gives the user's share, to a power."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self._faithfulness = None
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
