"""Models of the toy world whose explanations are tested."""

from __future__ import annotations

import pandas as pd
import pytest
from toy_models import HISTORY_MODELS, SMALL

from dlcf.models.base import Recommender
from dlcf.registry import make
from dlcf.variants.deepcf import ExplainedDeepCF


@pytest.fixture(scope="module")
def fitted(toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame) -> dict[str, Recommender]:
    """Models that read a user's history, on the toy world."""
    return {
        name: make(name, **settings).fit(toy_ratings, movies=toy_movies)
        for name, settings in HISTORY_MODELS.items()
    }


@pytest.fixture(scope="module")
def deepcf(toy_ratings: pd.DataFrame) -> ExplainedDeepCF:
    model = make("deepcf", epochs=6, learning_rate=0.01, **SMALL).fit(toy_ratings)
    assert isinstance(model, ExplainedDeepCF)
    return model
