"""Trials of the tuning: what is measured of a model, and on what."""

from __future__ import annotations

import pandas as pd
import pytest

from dlcf.explain.faithfulness import measure_faithfulness
from dlcf.metrics import rmse
from dlcf.registry import make
from dlcf.splits import train_validation_test
from dlcf.studies import tune

SMALL = {
    "embedding_size": 4, "hidden": (8,), "dropout": (0.0,), "epochs": 1, "faithful_weight": 0.5,
}  # fmt: skip


def test_a_trial_is_measured_on_the_validation_part(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "load_ratings", lambda _: toy_ratings)
    monkeypatch.setattr(tune, "load_movies", lambda _: toy_movies)
    found = tune.run_trial("deepcf", SMALL)
    assert set(found) == set(tune.SPLITS)
    train, validation, _ = train_validation_test(toy_ratings, "random", seed=tune.SEED)
    model = make("deepcf", **SMALL).fit(train, movies=toy_movies)
    error = rmse(validation["rating"].to_numpy(), model.predict(validation))
    assert found["random"]["rmse"] == pytest.approx(error, abs=1e-5)
    agreement = measure_faithfulness(model, validation).mean
    assert found["random"]["faithfulness"] == pytest.approx(agreement, abs=1e-5)
    # A model without attention weights has none that could be faithful.
    assert set(tune.run_trial("bias", {})["random"]) == {"rmse", "ndcg@10"}
