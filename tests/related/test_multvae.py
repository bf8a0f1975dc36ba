"""Mult-VAE: its bound, computed again, its gradients, and what it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from toy_models import assert_slopes

import dlcf
from dlcf.evaluation import evaluate
from dlcf.registry import load_model, make

SETTINGS = {"hidden_size": 6, "latent_size": 3, "anneal_updates": 8, "positive_threshold": 3.0}


def test_the_bound_and_the_scores_are_those_of_the_formulas(toy_ratings: pd.DataFrame) -> None:
    model = make("multvae", **SETTINGS, epochs=2, batch_size=16).fit(toy_ratings)
    network = model.network  # type: ignore[attr-defined]
    learned = {k: v.double().numpy() for k, v in network.state_dict().items()}
    liked = toy_ratings["rating"] >= 3.0
    x = pd.crosstab(toy_ratings["userId"], toy_ratings["movieId"], liked, aggfunc="sum")
    x = x.fillna(0).to_numpy(float)

    def layer(name: str, of: np.ndarray) -> np.ndarray:
        return of @ learned[f"{name}.weight"].T + learned[f"{name}.bias"]

    normed = x / np.sqrt((x**2).sum(1, keepdims=True))
    of_latent = layer("encoder.2", np.tanh(layer("encoder.0", normed)))
    mean, log_variance = of_latent[:, :3], of_latent[:, 3:]
    logits = layer("decoder.2", np.tanh(layer("decoder.0", mean)))
    likely = (x * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()
    divergence = (np.exp(log_variance) + mean**2 - 1 - log_variance).sum(1).mean() / 2
    beta = 0.2 * 6 / 8  # of 40 users there are 3 batches an epoch, so 6 updates are done
    objective, reported = network.losses(torch.arange(40), torch.ones(40))
    assert int(learned["updates"]) == 6
    assert float(reported) == pytest.approx(-likely, rel=1e-5)
    assert float(objective - reported) == pytest.approx(beta * divergence, rel=1e-3)
    np.testing.assert_allclose(model.score_all(model.user_ids), logits, atol=1e-5)


def test_gradients_are_central_differences(toy_ratings: pd.DataFrame) -> None:
    network = make("multvae", **SETTINGS, epochs=1).fit(toy_ratings).network  # type: ignore[attr-defined]
    network.updates.fill_(5)
    assert_slopes(network.train(), (torch.arange(30), torch.ones(30)))


def test_beta_grows_with_the_updates_and_stays(toy_ratings: pd.DataFrame) -> None:
    network = make("multvae", **SETTINGS, epochs=1).fit(toy_ratings).network  # type: ignore[attr-defined]
    parts = []
    for done in (0, 4, 8, 50):
        network.updates.fill_(done)
        objective, reported = network.losses(torch.arange(40), torch.ones(40))
        parts.append(float(objective - reported))
    assert parts[0] == 0 and parts[3] == parts[2] > 0
    assert parts[1] == pytest.approx(parts[2] / 2, rel=0.01)


def test_low_ratings_are_no_likes_after_loading_too(
    toy_ratings: pd.DataFrame, tmp_path: Path
) -> None:
    """A loaded network is built from the pairs alone; the ratings come with its state."""
    model = make("multvae", **SETTINGS, epochs=1).fit(toy_ratings)
    loaded = load_model(model.save(tmp_path / "m"))
    rows = loaded.network.rated.rows(torch.arange(40))  # type: ignore[attr-defined]
    assert int(rows.sum()) == (toy_ratings["rating"] >= 3.0).sum() < len(toy_ratings)
    assert np.array_equal(loaded.score_all(model.user_ids), model.score_all(model.user_ids))


def test_it_learns_tastes_that_popular_does_not() -> None:
    generator = np.random.default_rng(0)
    cells = [
        (user, 20 * (user % 4) + int(movie))
        for user in range(80)
        for movie in generator.choice(20, 12, replace=False)
    ]
    frame = pd.DataFrame(cells, columns=["userId", "movieId"]).assign(rating=4.0, timestamp=10**9)
    train, test = dlcf.split(frame, "random", seed=0)
    model = make("multvae", hidden_size=32, latent_size=8, epochs=40, learning_rate=0.01)
    found = evaluate(model.fit(train), train, test)["ndcg@10"]
    assert found > evaluate(make("popular").fit(train), train, test)["ndcg@10"] + 0.15
