"""SASRec: its states, computed again, its windows, and that the order of a history counts."""

from __future__ import annotations

import itertools
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

SETTINGS: dict[str, Any] = {"embedding_size": 5, "length": 6, "blocks": 2, "batch_size": 32}


def chains(n_users: int = 150, n_movies: int = 30, n: int = 8) -> pd.DataFrame:
    """Each user rates movies that follow each other, in order of time, from some movie on."""
    generator = np.random.default_rng(0)
    start = generator.integers(n_movies, size=n_users)
    user, place = np.divmod(np.arange(n_users * n), n)
    movie = (start[user] + place) % n_movies
    return pd.DataFrame(
        {"userId": user, "movieId": movie, "rating": 4.0, "timestamp": 10**9 + place}
    )


def normed(x: np.ndarray, learned: dict[str, np.ndarray], name: str) -> np.ndarray:
    spread = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    scaled = (x - x.mean(axis=-1, keepdims=True)) / spread
    return scaled * learned[f"{name}.weight"] + learned[f"{name}.bias"]


def test_scores_are_those_of_the_formulas(toy_ratings: pd.DataFrame) -> None:
    """Without padding: the movies of a window alone, one place after the other."""
    short = toy_ratings.groupby("userId").head(4).drop(toy_ratings.index[0])
    model = make("sasrec", **SETTINGS, epochs=2).fit(short)
    learned = {k: v.double().numpy() for k, v in model.network.state_dict().items()}  # type: ignore[attr-defined]
    for user in model.user_ids[:4]:
        own = short[short["userId"] == user].sort_values(["timestamp", "movieId"])
        movies = np.searchsorted(model.movie_ids, own["movieId"])[-6:]
        x = learned["movies.weight"][movies] * 5**0.5 + learned["places.weight"][-len(movies) :]
        for block in ("blocks.0", "blocks.1"):
            each = normed(x, learned, f"{block}.attention_norm")
            query, key, value = (
                each @ learned[f"{block}.{name}.weight"].T for name in ("query", "key", "value")
            )
            for t in range(len(x)):
                weights = np.exp(key[: t + 1] @ query[t] / 5**0.5)
                x[t] += weights @ value[: t + 1] / weights.sum()
            inner = normed(x, learned, f"{block}.forward_norm")
            inner = inner @ learned[f"{block}.first.weight"].T + learned[f"{block}.first.bias"]
            outer = np.maximum(inner, 0) @ learned[f"{block}.second.weight"].T
            x = x + outer + learned[f"{block}.second.bias"]
        expected = normed(x, learned, "norm")[-1] @ learned["movies.weight"].T
        np.testing.assert_allclose(model.score_all([user])[0], expected, atol=1e-5)


def test_gradients_are_central_differences(toy_ratings: pd.DataFrame) -> None:
    model: Any = make("sasrec", **SETTINGS, epochs=1, negatives=2).fit(toy_ratings)
    batch = model.rows(model._interactions(toy_ratings))
    assert_slopes(model.network.train(), tuple(column[:20] for column in batch))


def test_windows_predict_each_rating_but_the_first_once(toy_ratings: pd.DataFrame) -> None:
    model: Any = make("sasrec", **SETTINGS, epochs=1).fit(toy_ratings)
    users, stop, _ = model.rows(model._interactions(toy_ratings))
    movies, own = model.network.window(users, stop - 1)
    following, _ = model.network.window(users, stop)
    found = [[] for _ in model.user_ids]  # type: ignore[var-annotated]
    for row in np.lexsort((stop, users)):
        found[users[row]] += list(
            zip(movies[row][own[row]].tolist(), following[row][own[row]].tolist(), strict=True)
        )
    for user, pairs in zip(model.user_ids, found, strict=True):
        own_ratings = toy_ratings[toy_ratings["userId"] == user]
        order = own_ratings.sort_values(["timestamp", "movieId"])["movieId"]
        places = np.searchsorted(model.movie_ids, order).tolist()
        assert pairs == list(itertools.pairwise(places))


def test_the_loss_is_the_entropy_of_the_next_movie_and_of_others() -> None:
    frame = pd.DataFrame(
        {"userId": [1] * 5 + [2], "movieId": [3, 1, 4, 2, 5, 6], "rating": 4.0}
    ).assign(timestamp=[10**9 + i for i in range(6)])
    model: Any = make("sasrec", **SETTINGS, epochs=1, negatives=2).fit(frame)
    network = model.network
    network.rated.negatives = lambda users, n: torch.full((len(users), n), 5)
    window = network.window(torch.tensor([0]), torch.tensor([4]))
    with torch.no_grad():
        scores = (network.states(*window)[0] @ network.movies.weight.T).double().numpy()
        found, _ = network.losses(torch.tensor([0]), torch.tensor([5]), torch.ones(1))
    entropy = [
        np.log1p(np.exp(-scores[place, movie])) + 2 * np.log1p(np.exp(scores[place, 5]))
        for place, movie in zip(range(2, 6), (0, 3, 1, 4), strict=True)
    ]
    assert float(found) == pytest.approx(np.mean(entropy), rel=1e-5)


def test_negatives_are_never_what_the_user_rated(toy_ratings: pd.DataFrame) -> None:
    model: Any = make("sasrec", **SETTINGS, epochs=1).fit(toy_ratings.iloc[::3])
    users = np.tile(np.arange(40), 20)
    drawn = model.network.rated.negatives(torch.from_numpy(users), 5).numpy()
    assert not model._seen[np.repeat(users, 5), drawn.ravel()].any()
    assert len(np.unique(drawn)) == len(model.movie_ids)


def test_a_state_depends_on_no_later_movie(toy_ratings: pd.DataFrame) -> None:
    network: Any = make("sasrec", **SETTINGS, epochs=1).fit(toy_ratings).network  # type: ignore[attr-defined]
    movies, own = torch.arange(12).view(2, 6), torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    before = network.states(movies, own)
    for changed in range(6):
        other = movies.clone()
        other[:, changed] += 20
        moved = (network.states(other, own) - before).abs().amax(2) > 1e-6
        assert moved[0].tolist() == [place >= changed for place in range(6)]
        assert moved[1].tolist() == [place >= changed >= 2 for place in range(6)]


def test_the_next_of_a_chain_is_learned_and_the_order_is_saved(tmp_path: Path) -> None:
    frame = chains()
    train, test = dlcf.split(frame, "leave-last-out", seed=0)
    settings = {"embedding_size": 16, "length": 8, "epochs": 30, "learning_rate": 0.01}
    model = make("sasrec", **settings).fit(train)
    found = evaluate(model, train, test)["ndcg@10"]
    assert found > 0.8 > evaluate(make("popular").fit(train), train, test)["ndcg@10"] + 0.3
    loaded = load_model(model.save(tmp_path / "m"))
    assert np.array_equal(loaded.score_all(model.user_ids), model.score_all(model.user_ids))
    backwards = make("sasrec", **settings).fit(
        train.assign(timestamp=-train["timestamp"] + 2 * 10**9)
    )
    assert evaluate(backwards, train, test)["ndcg@10"] < found - 0.3
