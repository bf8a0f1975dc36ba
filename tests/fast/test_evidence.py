"""The compiled evidence: taken by the hook, alike on any number of threads, and of models too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import dlcf
from dlcf.fast import evidence as fast
from dlcf.models.base import Interactions
from dlcf.plus.evidence import Context, Evidence, SideInformation
from dlcf.plus.scales import FASTER_EVIDENCE
from dlcf.registry import make

SETTINGS: dict[str, Any] = {"epochs": 1, "folds": 2, "cuts": (0.5,), "batch_size": 256}
FIELDS = ("baseline", "user", "movie", "channels", "count", "history")


def of_ratings(ratings: pd.DataFrame) -> tuple[Context, tuple[Any, ...]]:
    """A context of some ratings, and pairs that ask for the others."""
    columns = [np.unique(ratings[name], return_inverse=True)[1] for name in ("userId", "movieId")]
    sizes = [int(column.max()) + 1 for column in columns]
    rows = ratings["rating"].to_numpy(np.float32), ratings["timestamp"].to_numpy(np.int64)
    data = Interactions(*columns, *rows, *sizes)
    genres = np.eye(3, dtype=np.float32)[np.arange(sizes[1]) % 3]
    side = SideInformation(genres, (1980 + np.arange(sizes[1]) % 20).astype(np.float32))
    hidden = np.arange(len(data)) % 3 == 0
    asked = data.take(hidden)
    pairs = asked.users, asked.movies, asked.timestamps.astype(float)
    return Context(data.take(~hidden), side), pairs


def test_bits_do_not_hang_on_the_number_of_threads(toy_ratings: pd.DataFrame) -> None:
    context, pairs = of_ratings(toy_ratings)
    one = context.describe(*pairs, 8)
    for n_threads in (2, 3, 7):
        torch.set_num_threads(n_threads)
        several = context.describe(*pairs, 8)
        for name in FIELDS:
            assert np.array_equal(getattr(one, name), getattr(several, name)), name


def test_it_is_used_unless_it_is_disabled(
    toy_ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, pairs = of_ratings(toy_ratings)
    asked = []

    def watched(*given: Any) -> Any:
        asked.append(given)
        return fast.describe(*given)

    monkeypatch.setitem(FASTER_EVIDENCE, "describe", watched)
    assert isinstance(context.describe(*pairs, 8), Evidence) and len(asked) == 1
    with dlcf.fast.disabled():
        context.describe(*pairs, 8)
    assert len(asked) == 1


def test_models_predict_the_same_without_it(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    model = make("deepcf-plus", seed=0, **SETTINGS).fit(toy_ratings, movies=toy_movies)
    others = toy_ratings.assign(movieId=toy_ratings["movieId"].to_numpy()[::-1])
    found = model.predict(others)
    with dlcf.fast.disabled():
        np.testing.assert_allclose(model.predict(others), found, atol=1e-4)
        plain = make("deepcf-plus", seed=0, **SETTINGS).fit(toy_ratings, movies=toy_movies)
    np.testing.assert_allclose(plain.predict(others), found, atol=2e-3)
