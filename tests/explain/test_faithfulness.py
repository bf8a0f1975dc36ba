"""Agreement of explanations with known truths, and its intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from toy_models import Additive

from dlcf.explain.faithfulness import (
    agreement,
    curve_areas,
    history_faithfulness,
    mean_by_user,
    paired_with_random,
)
from dlcf.explain.history import DELETION, leave_one_out


class TestCurves:
    def test_the_true_order_has_the_best_areas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = np.random.default_rng(5)
        model = Additive({int(i): float(v) for i, v in enumerate(generator.normal(size=12))})
        truth = pd.DataFrame({99: pd.Series(model.effect)})
        known = {"true": truth, "wrong": -truth, DELETION: leave_one_out(model, 1, [99])}
        monkeypatch.setattr(
            "dlcf.explain.faithfulness.history_attributions",
            lambda model, user, movies, method: known[method],
        )
        pairs = pd.DataFrame({"userId": [1], "movieId": [99]})
        areas = curve_areas(model, pairs, ["true", "wrong"]).set_index("order")
        assert set(areas.index) == {"true", "wrong", "random", "popularity"}
        assert areas["deletion"].idxmin() == "true" and areas["deletion"].idxmax() == "wrong"
        assert areas["insertion"].idxmax() == "true" and areas["insertion"].idxmin() == "wrong"
        found = history_faithfulness(model, pairs, ["true", "wrong"]).set_index("method")
        assert found.loc["true", "correlation"] == pytest.approx(1.0)
        assert found.loc["wrong", "correlation"] == pytest.approx(-1.0)

    def test_the_seed_draws_the_random_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = Additive({i: float(i) for i in range(12)})
        truth = pd.DataFrame({99: pd.Series(model.effect)})
        monkeypatch.setattr(
            "dlcf.explain.faithfulness.history_attributions", lambda *arguments: truth
        )
        pairs = pd.DataFrame({"userId": [1], "movieId": [99]})
        first, again, other = (
            curve_areas(model, pairs, ["true"], seed=s).set_index("order") for s in (0, 0, 1)
        )
        assert first.equals(again)
        differs = (first["deletion"] != other["deletion"]).to_dict()
        assert differs == {"true": False, "random": True, "popularity": False}

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


class TestIntervals:
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
