"""mDA-CF: closed forms against sums over all corruptions, and movies that only content tells."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from tastes import world

from dlcf.evaluation import evaluate
from dlcf.metrics import rmse
from dlcf.registry import load_model, make
from dlcf.related import mda_cf
from dlcf.related.factors import solve_factors
from dlcf.related.mda_cf import SideEncoder

SETTINGS: dict[str, Any] = {"factors": 4, "alpha": 1.0, "beta": 1.0, "coupling": 0.5}


def corrupted_loss(side: SideEncoder, noise: float, weights: Any, decoder: Any, u: Any) -> float:
    """``E |X - W X~|^2 + coupling |P U^T - W X|^2``, the mean over all masks, one by one."""
    total = 0.0
    x = side.features.toarray()
    for mask in product((0.0, 1.0), repeat=x.shape[1]):
        probability = np.prod(np.where(np.array(mask) == 1, 1 - noise, noise))
        total += probability * np.square(x - (x * mask) @ weights.T).sum()
    return total + side.coupling * np.square(u @ decoder.T - x @ weights.T).sum()


def slope(function: Any, at: Any, step: float = 1e-5) -> Any:
    """Central differences."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        change = np.zeros_like(at)
        change[place] = step
        found[place] = (function(at + change) - function(at - change)) / (2 * step)
    return found


def test_factors_solve_their_normal_equations() -> None:
    generator = np.random.default_rng(1)
    dense = generator.normal(size=(5, 6)) * (generator.random((5, 6)) < 0.5)
    dense[2] = 0.0  # a row without entries has its prior
    y, prior, common = generator.normal(size=(6, 3)), generator.normal(size=(5, 3)), 2 * np.eye(3)
    x = solve_factors(sparse.csr_matrix(dense), y, 0.7, common, prior)
    for n, row in enumerate(dense):
        system = common + 0.7 * sum(np.outer(y[m], y[m]) for m in np.flatnonzero(row))
        np.testing.assert_allclose(system @ x[n], row @ y + prior[n], atol=1e-12)
    np.testing.assert_allclose(x[2], prior[2] / 2)


def test_weights_are_the_minimum_over_all_corruptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mda_cf, "_RIDGE", 0.0)
    generator = np.random.default_rng(2)
    x, u = generator.integers(0, 2, (9, 4)).astype(float), generator.normal(size=(9, 2))
    side = SideEncoder(sparse.csr_matrix(x), u, noise=0.3, coupling=0.4)
    of_weights = slope(lambda w: corrupted_loss(side, 0.3, w, side.decoder, u), side.weights)
    np.testing.assert_allclose(of_weights, 0.0, atol=1e-6)
    wrong = slope(lambda w: corrupted_loss(side, 0.2, w, side.decoder, u), side.weights)
    assert np.abs(wrong).max() > 0.1
    before = side.weights
    side.fit(u)
    of_decoder = slope(lambda p: corrupted_loss(side, 0.3, before, p, u), side.decoder)
    np.testing.assert_allclose(of_decoder, 0.0, atol=1e-6)


def test_no_iteration_raises_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    train, _, movies = world(24, 18)
    sides: list[SideEncoder] = []
    begin = SideEncoder.__init__

    def kept(self: SideEncoder, *arguments: Any) -> None:
        sides.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(SideEncoder, "__init__", kept)
    bias = make("bias").fit(train)
    residual = train["rating"].to_numpy(np.float64) - bias.predict(train)

    def objective(iterations: int) -> float:
        sides.clear()
        model: Any = make("mda-cf", **SETTINGS, iterations=iterations, words=6).fit(
            train, movies=movies
        )
        u, v = model._user_factors, model._movie_factors[model._catalogue]
        users, _, of, _ = model.positions(train)
        total = SETTINGS["alpha"] * np.square(residual - (u[users] * v[of]).sum(1)).sum()
        total += SETTINGS["beta"] * (np.square(u).sum() + np.square(v).sum())
        for side, factors in zip(sides, (u, v), strict=True):
            total += corrupted_loss(side, model.noise, side.weights, side.decoder, factors)
        return total

    values = [objective(n) for n in (1, 2, 3, 5, 9, 40)]
    assert values[0] > values[-1] + 1 and (np.diff(values) < 1e-3).all()


def test_it_rates_better_than_the_biases_and_knows_new_movies(tmp_path: Path) -> None:
    train, test, movies = world()
    model = make("mda-cf", **{**SETTINGS, "coupling": 5.0}).fit(train, movies=movies)
    bias = make("bias").fit(train)
    new = ~test["movieId"].isin(train["movieId"])
    for part in (test[~new], test[new]):
        expected = rmse(part["rating"], bias.predict(part))
        assert rmse(part["rating"], model.predict(part)) < 0.7 * expected
    loaded: Any = load_model(model.save(tmp_path / "model"))
    assert np.array_equal(loaded.predict(test), model.predict(test))
    ids, scores = loaded.score_described([1, 2])
    assert ids.tolist() == movies["movieId"].tolist()
    pairs = pd.DataFrame({"userId": 2, "movieId": ids})
    np.testing.assert_allclose(np.clip(scores[1], 0.5, 5.0), model.predict(pairs), atol=1e-5)
    with pytest.raises(ValueError, match="userId 999 is unknown; give users"):
        loaded.score_described([1, 999])


def test_what_is_not_rated_may_count_and_then_it_ranks() -> None:
    train, test, movies = world()
    settings = {**SETTINGS, "unrated_weight": 0.1}
    model: Any = make("mda-cf", **settings).fit(train, movies=movies)
    popular = make("popular").fit(train)
    found, other = (evaluate(m, train, test)["ndcg@10"] for m in (model, popular))
    assert found > other + 0.2
    assert np.array_equal(model.predict(test), popular.predict(test))
    _, scores = model.score_described([1])
    assert scores[0, -3] > scores[0, -2:].max()  # the new movie of her genre
