"""Measures beyond accuracy on cases worked by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import dlcf
from dlcf.analysis.beyond import (
    calibration,
    error_by,
    expected_calibration_error,
    gini,
    list_quality,
    measure,
)


def test_gini_at_its_limits_and_by_hand() -> None:
    assert gini([3, 3, 3, 3]) == pytest.approx(0.0)
    assert gini([0, 0, 0, 8]) == pytest.approx(0.75)
    assert gini([1, 2, 3]) == pytest.approx(2 / 9)
    for wrong in ([], [0, 0], [-1, 2]):
        with pytest.raises(ValueError, match="exposure"):
            gini(wrong)


def test_list_quality_by_hand() -> None:
    """Movie 1 is rated by all four users, 2 by two, 3 by one and 4 by one; two lists of two."""
    pairs = [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (3, 3), (4, 4)]
    train = pd.DataFrame(pairs, columns=["userId", "movieId"]).assign(rating=4.0)
    movies = pd.DataFrame({"movieId": [1, 2, 3, 4], "genres": [["A", "B"], ["B"], [], ["A", "B"]]})
    found = list_quality(np.array([[1, 2], [4, 1]]), train, movies)
    assert found["coverage"] == 3 / 4
    assert found["novelty"] == pytest.approx((0 + 1 + 2 + 0) / 4)
    assert found["diversity"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["gini"] == pytest.approx(gini([2, 1, 0, 1]))
    assert found["ratings of a listed movie"] == 3.0
    short = list_quality(np.array([[1, -1], [4, 1]]), train, movies)
    assert short["coverage"] == 2 / 4 and short["diversity"] == pytest.approx(0.0)


def test_calibration_by_hand() -> None:
    table = calibration([0.1, 0.3, 0.9, 1.0], [0, 1, 1, 1], [0.0, 0.5, 1.0])
    assert table["confidence"].tolist() == pytest.approx([0.2, 0.95])
    assert table["outcome"].tolist() == [0.5, 1.0]
    assert table["cases"].tolist() == [2, 2]
    assert expected_calibration_error(table) == pytest.approx((0.3 + 0.05) / 2)
    with pytest.raises(ValueError, match="outside the bins"):
        calibration([1.1], [1], [0.0, 1.0])


def test_a_calibrated_model_has_a_small_error() -> None:
    generator = np.random.default_rng(0)
    chance = generator.random(20_000)
    honest = calibration(chance, generator.random(20_000) < chance, np.linspace(0, 1, 11).tolist())
    boastful = calibration(chance**0.3, generator.random(20_000) < chance, [0, 0.25, 0.5, 0.75, 1])
    assert expected_calibration_error(honest) < 0.02 < 0.2 < expected_calibration_error(boastful)


def test_errors_are_binned_by_whole_numbers() -> None:
    found = error_by([1.0, 4.0, 9.0, 16.0], [0, 1, 2, 40], [0, 1, 3])
    assert found["0"] == {"rmse": 1.0, "ratings": 1.0}
    assert found["1-2"]["rmse"] == pytest.approx(np.sqrt(6.5))
    assert found["3+"] == {"rmse": 4.0, "ratings": 1.0}


def test_the_measures_agree_with_the_evaluation(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    train, test = dlcf.split(toy_ratings, seed=0)
    model = dlcf.make("mf", epochs=5, factors=4).fit(train)
    numbers, errors, lists = measure(model, train, test, toy_movies)
    for protocol in ("rated", "full"):
        expected = dlcf.evaluate(model, train, test, protocol)
        assert numbers["rmse"] == pytest.approx(expected["rmse"])
        for name in ("precision", "recall", "ndcg"):
            assert numbers[protocol][name] == pytest.approx(expected[f"{name}@10"])
    assert numbers["at k"]["10"]["ndcg"] == pytest.approx(numbers["full"]["ndcg"])
    by_movie = numbers["rmse by ratings of the movie"].values()
    assert sum(group["ratings"] for group in by_movie) == len(test) == errors["ratings"].sum()
    assert len(lists) == dlcf.evaluate(model, train, test)["users"]
