"""Item2vec: its loss and scores by hand, what it draws, and what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from toy_models import assert_slopes

import dlcf
from dlcf.evaluation import evaluate
from dlcf.registry import load_model, make

SETTINGS: dict[str, Any] = {"embedding_size": 4, "epochs": 1}


def softplus(x: float) -> float:
    return float(np.log1p(np.exp(x)))


def test_the_loss_is_that_of_the_pairs() -> None:
    """Movies 0 and 1 are pairs of one another; nearly all noise is movie 0, which two rated."""
    frame = pd.DataFrame({"userId": [1, 1, 2], "movieId": [5, 6, 5], "rating": 4.0})
    for window in (None, 1):
        model: Any = make("item2vec", **SETTINGS, power=60.0, negatives=3, window=window).fit(frame)
        u, v = (t.weight.detach().numpy() for t in (model.network.target, model.network.context))
        expected = softplus(-u[0] @ v[1]) + 3 * softplus(u[0] @ v[0])
        expected += softplus(-u[1] @ v[0]) + 3 * softplus(u[1] @ v[0])
        rows = model.rows(model._interactions(frame))
        with torch.no_grad():
            found = [float(model.network.losses(*rows)[0]) for _ in range(200 if window else 1)]
        # Of a window, half of the draws lie outside, so the two pairs are not equally many.
        assert np.mean(found) == pytest.approx(expected / 2, rel=0.02 if window else 1e-5)


def test_gradients_are_central_differences(toy_ratings: pd.DataFrame) -> None:
    model: Any = make("item2vec", **SETTINGS, subsampling=0.01).fit(toy_ratings)
    batch = model.rows(model._interactions(toy_ratings))
    assert_slopes(model.network, tuple(column[::20] for column in batch))


def test_scores_are_means_over_the_history(toy_ratings: pd.DataFrame) -> None:
    for by in ("cosine", "context"):
        model: Any = make("item2vec", **SETTINGS, ranks_by=by).fit(toy_ratings)
        u, v = (t.weight.detach() for t in (model.network.target, model.network.context))
        if by == "cosine":
            u = v = u / u.square().sum(1, keepdim=True).sqrt()
        for user in model.user_ids[[0, 5, 39]]:
            rated = toy_ratings["movieId"][toy_ratings["userId"] == user]
            movies = np.searchsorted(model.movie_ids, rated)
            expected = sum(u[movie] @ v.T for movie in movies) / len(movies)
            np.testing.assert_allclose(model.score_all([user])[0], expected, atol=1e-5)


def test_contexts_come_from_the_window_the_nearer_the_more_often(
    toy_ratings: pd.DataFrame,
) -> None:
    model: Any = make("item2vec", **SETTINGS, window=3, contexts=4000).fit(toy_ratings[:100])
    start = model.network.history.start
    first, stop = int(start[1]), int(start[2])
    place = torch.tensor([first + 5, first, stop - 1])
    drawn, inside = model.network.draw_contexts(torch.tensor([1, 1, 1]), place)
    assert inside[0].all() and 0.4 < float(inside[1:].float().mean()) < 0.6
    assert bool(((first <= drawn) & (drawn < stop)).all())
    step = (drawn - place[:, None])[0]
    found = [float((step == d).float().mean()) for d in (-3, -2, -1, 1, 2, 3)]
    np.testing.assert_allclose(found, np.array([1, 2, 3, 3, 2, 1]) / 12, atol=0.03)


def test_contexts_of_a_set_are_all_others_equally(toy_ratings: pd.DataFrame) -> None:
    model: Any = make("item2vec", **SETTINGS, contexts=6000).fit(toy_ratings[:100])
    start = model.network.history.start
    first, stop = int(start[1]), int(start[2])
    drawn, real = model.network.draw_contexts(torch.tensor([1]), torch.tensor([first + 2]))
    share = np.bincount(drawn[0].numpy() - first, minlength=stop - first) / 6000
    others = np.delete(share, 2)
    assert real.all() and share[2] == 0
    np.testing.assert_allclose(others, 1 / len(others), atol=0.02)


def test_noise_and_subsampling_follow_the_counts(toy_ratings: pd.DataFrame) -> None:
    model: Any = make("item2vec", **SETTINGS, power=-0.5, subsampling=0.02).fit(toy_ratings)
    count = toy_ratings.groupby("movieId").size().to_numpy()
    noise = model.network.noise.numpy()
    np.testing.assert_allclose(noise / noise.sum(), count**-0.5 / (count**-0.5).sum(), rtol=1e-5)
    kept = np.minimum(1, np.sqrt(0.02 / (count / count.sum())))
    np.testing.assert_allclose(model.network.kept.numpy(), kept, rtol=1e-5)
    assert kept.min() < 0.9 and kept.max() == 1


def test_it_learns_tastes_that_popular_does_not(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    cells = [
        (user, 20 * (user % 4) + int(movie))
        for user in range(80)
        for movie in generator.choice(20, 12, replace=False)
    ]
    frame = pd.DataFrame(cells, columns=["userId", "movieId"]).assign(rating=4.0, timestamp=10**9)
    train, test = dlcf.split(frame, "random", seed=0)
    popular = evaluate(make("popular").fit(train), train, test)["ndcg@10"]
    for by in ("cosine", "context"):
        model = make("item2vec", embedding_size=8, epochs=30, learning_rate=0.01, ranks_by=by)
        assert evaluate(model.fit(train), train, test)["ndcg@10"] > 2 * popular
        loaded = load_model(model.save(tmp_path / by))
        assert np.array_equal(loaded.score_all(model.user_ids), model.score_all(model.user_ids))
