"""The search over protocols agrees with the package's own protocol, and with hand-made cases."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import dlcf
from dlcf.studies.replication import CHOICES, PAPER, distance, effects, protocol_table


@pytest.fixture
def predictions(toy_ratings: pd.DataFrame) -> pd.DataFrame:
    train, test = dlcf.split(toy_ratings, seed=0)
    model = dlcf.make("bias").fit(train)
    frame = test.sort_values(["userId", "movieId"])
    return frame.assign(predicted=model.predict(frame))


def test_every_combination_is_there_once(predictions: pd.DataFrame) -> None:
    table = protocol_table(predictions)
    assert len(table) == np.prod([len(values) for values in CHOICES.values()])
    assert not table.drop(columns=list(PAPER)).duplicated().any()


def test_one_of_them_is_our_rated_protocol(
    toy_ratings: pd.DataFrame, predictions: pd.DataFrame
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
    table = protocol_table(frame, k=2)
    table = table[(table["rounding"] == "none") & (table["gain"] == "relevant")]
    table = table[table["threshold"] == 4.0].set_index(["users", "precision divides by"])
    # User 1 is shown the 5 (predicted 4) and the 1 (predicted 3); only the first is recommended.
    expected = {
        ("with a relevant movie", "list length"): (1 / 2, 1 / 2),
        ("with a relevant movie", "predicted 4.0 or more"): (1.0, 1 / 2),
        ("with k test ratings", "k"): (1 / 2, 1 / 2),
        ("all", "k"): (1 / 4, 1 / 4),
        ("all", "predicted 4.0 or more"): (1 / 2, 1 / 4),
        # Of its list user 1 is recommended both from 3.0 on; relevant are ratings of 4.0 or more.
        ("with a relevant movie", "predicted 3.0 or more"): (1 / 2, 1 / 2),
        # Pooled: one hit among three listed movies, and of two relevant ones.
        ("pooled", "list length"): (1 / 3, 1 / 2),
        ("pooled", "k"): (1 / 4, 1 / 2),
        ("pooled", "predicted 4.0 or more"): (1 / 2, 1 / 2),
        ("pooled", "predicted 4.5 or more"): (0.0, 0.0),
    }
    for key, (precision, recall) in expected.items():
        assert table.loc[key, "precision@10"] == pytest.approx(precision), key
        assert table.loc[key, "recall@10"] == pytest.approx(recall), key
    ideal = 1 + 1 / np.log2(3)
    for users in ("with k test ratings", "pooled"):
        assert table.loc[(users, "k"), "NDCG@10"] == pytest.approx(1 / ideal)


def test_every_choice_matters(predictions: pd.DataFrame) -> None:
    table = protocol_table(predictions)
    base = table.iloc[0].to_dict()
    changed = effects(table, base).set_index(["choice", "value"]).abs().max(axis=1)
    assert (changed > 1e-4).all(), changed


def test_distance_is_the_largest_difference(predictions: pd.DataFrame) -> None:
    table = protocol_table(predictions)
    target = table.loc[17, list(PAPER)].to_dict()
    found = distance(table, target)
    assert found.idxmin() <= 17 and found.iloc[17] == 0.0
    assert distance(table.assign(MAE=table["MAE"] - 7.0), target).iloc[17] == pytest.approx(7.0)


def test_effects_change_one_choice_at_a_time(predictions: pd.DataFrame) -> None:
    table = protocol_table(predictions)
    base = table.iloc[0].to_dict()
    found = effects(table, base)
    assert len(found) == sum(len(values) - 1 for values in CHOICES.values())
    thresholds = found[found["choice"] == "threshold"]
    assert (thresholds[["RMSE", "MAE"]] == 0).all(axis=None)
    assert (thresholds["precision@10"] < 0).all()
    # A value that stands beside no such base is left out.
    lone = table.assign(threshold=table["threshold"].where(table["gain"] != "rating", 3.0))
    lone = lone.drop_duplicates(list(CHOICES))
    assert "threshold" not in set(effects(lone, base)["choice"])
