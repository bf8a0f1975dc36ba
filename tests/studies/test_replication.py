"""The search over protocols agrees with the package's own protocol, and with hand-made cases."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import dlcf
from dlcf.studies.replication import CHOICES, PAPER, distance, effects, nearest, protocol_table


@pytest.fixture
def predictions(toy_ratings: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    train, test = dlcf.split(toy_ratings, seed=0)
    model = dlcf.make("bias").fit(train)
    frame = test.sort_values(["userId", "movieId"])
    return {("random", "last"): frame.assign(predicted=model.predict(frame))}


def test_every_combination_is_there_once(
    predictions: dict[tuple[str, str], pd.DataFrame],
) -> None:
    table = protocol_table(predictions)
    assert len(table) == np.prod([len(values) for values in CHOICES.values()])
    assert not table.drop(columns=list(PAPER)).duplicated().any()


def test_one_of_them_is_our_rated_protocol(
    toy_ratings: pd.DataFrame, predictions: dict[tuple[str, str], pd.DataFrame]
) -> None:
    train, test = dlcf.split(toy_ratings, seed=0)
    ours = dlcf.evaluate(dlcf.make("bias").fit(train), train, test, "rated", threshold=3.5)
    found = protocol_table(predictions).query(
        "rounding == 'none' and threshold == 3.5 and users == 'with a relevant movie' and "
        "`precision divides by` == 'list length' and gain == 'rating'"
    )
    assert len(found) == 1
    for name, key in [("RMSE", "rmse"), ("precision@10", "precision@10"), ("F@10", "f1@10")]:
        assert found[name].iloc[0] == pytest.approx(ours[key], abs=1e-9)
    assert found["NDCG@10"].iloc[0] == pytest.approx(ours["ndcg@10"], abs=2e-3)


def test_divisors_and_users_by_hand() -> None:
    """User 1: ratings 5, 4, 1 predicted 4, 2, 3; user 2: one rating of 1 predicted 5. k is 2."""
    frame = pd.DataFrame(
        {
            "userId": [1, 1, 1, 2],
            "rating": [5.0, 4.0, 1.0, 1.0],
            "predicted": [4.0, 2.0, 3.0, 5.0],
        }
    )
    table = protocol_table({("random", "last"): frame}, k=2)
    table = table[(table["rounding"] == "none") & (table["gain"] == "relevant")]
    table = table[table["threshold"] == 4.0].set_index(["users", "precision divides by"])
    # User 1 is shown the 5 (predicted 4) and the 1 (predicted 3); only the first is recommended.
    expected = {
        ("with a relevant movie", "list length"): (1 / 2, 1 / 2),
        ("with a relevant movie", "recommended"): (1.0, 1 / 2),
        ("with k test ratings", "k"): (1 / 2, 1 / 2),
        ("all", "k"): (1 / 4, 1 / 4),
        ("all", "recommended"): (1 / 2, 1 / 4),
    }
    for key, (precision, recall) in expected.items():
        assert table.loc[key, "precision@10"] == pytest.approx(precision), key
        assert table.loc[key, "recall@10"] == pytest.approx(recall), key
    ideal = 1 + 1 / np.log2(3)
    assert table.loc[("with k test ratings", "k"), "NDCG@10"] == pytest.approx(1 / ideal)


def test_the_nearest_is_the_nearest(predictions: dict[tuple[str, str], pd.DataFrame]) -> None:
    table = protocol_table(predictions)
    target = table.loc[17, list(PAPER)].to_dict()
    best = nearest(table, 3, target)
    assert best["distance"].iloc[0] == 0.0 and best["distance"].is_monotonic_increasing
    assert distance(table, target).iloc[17] == 0.0


def test_effects_change_one_choice_at_a_time(
    predictions: dict[tuple[str, str], pd.DataFrame],
) -> None:
    table = protocol_table(predictions)
    base = table.iloc[0].to_dict()
    found = effects(table, base)
    assert len(found) == sum(len(values) - 1 for values in CHOICES.values())
    thresholds = found[found["choice"] == "threshold"]
    assert (thresholds[["RMSE", "MAE"]] == 0).all(axis=None)
    assert (thresholds["precision@10"] < 0).all()
