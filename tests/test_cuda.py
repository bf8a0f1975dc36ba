"""Networks on CUDA; skipped where there is none or, as in `make test`, it is hidden (conftest)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from toy_models import TINY

import dlcf
from dlcf.registry import load_model, make
from dlcf.runtime.checkpoints import checkpoints

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA is not available here")

NETWORKS: dict[str, dict[str, Any]] = {
    "mf": TINY["mf"],
    "svdpp": TINY["svdpp"],
    "deepcf": TINY["deepcf"],
    "deepcf bf16": TINY["deepcf"] | {"precision": "bf16"},
    "deepcf ranking": TINY["deepcf"] | {"ranking_weight": 1.0},
    "deepcf faithful": TINY["deepcf"] | {"faithful_weight": 0.5},
    "deepcf-plus": TINY["deepcf-plus"],
}


def fitted(name: str, train: pd.DataFrame, movies: pd.DataFrame, **settings: Any) -> Any:
    return make(name.split()[0], **{**NETWORKS[name], **settings}).fit(train, movies=movies)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_cuda_is_the_same_on_a_cpu(
    name: str, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame, tmp_path: Path
) -> None:
    model = fitted(name, toy_ratings, toy_movies)
    assert {p.device.type for p in model.network.parameters()} == {"cuda"}
    loaded = load_model(model.save(tmp_path / "m"), device="cpu")
    users = model.user_ids[:5]
    for ask in ("score_all", "predict"):
        of = users if ask == "score_all" else toy_ratings
        on_cuda, on_cpu = (getattr(which, ask)(of) for which in (model, loaded))
        np.testing.assert_allclose(on_cpu, on_cuda, atol=2e-2 if "bf16" in name else 1e-4)
    assert len(model.recommend(int(users[0]), 5)) == 5
    user, movie = toy_ratings[["userId", "movieId"]].iloc[0].tolist()
    if name.startswith("deepcf"):
        weights = [which.explain(user, movie).user_weight for which in (model, loaded)]
        assert weights[0] == pytest.approx(weights[1], abs=1e-2 if "bf16" in name else 1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_seed_gives_the_same_bits(
    name: str, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    first, again = (fitted(name, toy_ratings, toy_movies, epochs=3) for _ in range(2))
    assert first.predict(toy_ratings).tobytes() == again.predict(toy_ratings).tobytes()


@pytest.mark.parametrize("name", ["mf", "svdpp"])  # no masks, which each device draws in its way
def test_cuda_trains_what_a_cpu_trains(
    name: str, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ordered(n: int, device: torch.device) -> torch.Tensor:  # torch draws another on CUDA
        return torch.arange(n).roll(n // 3).to(device)

    monkeypatch.setattr(torch, "randperm", ordered)
    with dlcf.fast.disabled():
        on_cpu, on_cuda = (
            fitted(name, toy_ratings, toy_movies, epochs=30, device=device)
            for device in ("cpu", "cuda")
        )
    found, expected = on_cuda.predict(toy_ratings), on_cpu.predict(toy_ratings)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.std(expected) > 0.05


class Interrupted(Exception):
    """Raised where a process would have been killed."""


@pytest.mark.parametrize("name", NETWORKS)
def test_an_interrupted_run_ends_with_the_same_bits(
    name: str,
    toy_ratings: pd.DataFrame,
    toy_movies: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = fitted(name, toy_ratings, toy_movies, epochs=4, batch_size=500)
    network = type(expected.network)
    losses, calls = network.losses, 0

    def stopped(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Interrupted
        return losses(*given)

    with checkpoints(tmp_path, steps=1):
        monkeypatch.setattr(network, "losses", stopped)
        with pytest.raises(Interrupted):
            fitted(name, toy_ratings, toy_movies, epochs=4, batch_size=500)
        monkeypatch.setattr(network, "losses", losses)
        found = fitted(name, toy_ratings, toy_movies, epochs=4, batch_size=500)
    assert found.predict(toy_ratings).tobytes() == expected.predict(toy_ratings).tobytes()


def test_one_thread_scores_on_both(toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame) -> None:
    users = np.unique(toy_ratings["userId"])[:4]
    on_cuda, on_cpu = (
        fitted("deepcf", toy_ratings, toy_movies, device=device) for device in ("cuda", "cpu")
    )
    for model in (on_cuda, on_cpu, on_cuda):
        pairs = pd.DataFrame(
            [(user, movie) for user in users for movie in model.movie_ids],
            columns=["userId", "movieId"],
        )
        scores = model.predict(pairs).reshape(len(users), -1)
        np.testing.assert_allclose(model.score_all(users), scores, atol=1e-4)
