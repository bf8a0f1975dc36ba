"""The chance that a strength stands for, in worlds where it is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from dlcf.explain.calibration import calibrate_strength, calibration_report
from dlcf.models.base import Recommender


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
