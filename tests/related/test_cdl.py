"""CDL: its loss and its closed forms computed again, and movies that only content tells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tastes import world

from dlcf.evaluation import evaluate
from dlcf.registry import load_model, make

SETTINGS: dict[str, Any] = {
    "factors": 4,
    "hidden": (8,),
    "rounds": 4,
    "epochs": 20,
    "batch_size": 16,
    "learning_rate": 0.02,
    "user_regularization": 0.5,
    "movie_regularization": 0.5,
    "word_weight": 1.0,
}


@pytest.fixture(scope="module")
def model() -> Any:
    train, _, movies = world()
    return make("cdl", **SETTINGS).fit(train, movies=movies)


@pytest.fixture
def in_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def numbers(module: torch.nn.Module) -> dict[str, Any]:
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


def test_the_loss_is_that_of_the_paper(model: Any) -> None:
    network, of = model.network, numbers(model.network)
    rows, coupled = torch.tensor([3, 0, 44, 7]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    v = torch.randn(4, 4)
    clean = model._content.toarray().astype(np.float64)[rows]
    network.noise = 0.0
    found = network.losses(rows, coupled, v)[0].item()
    network.noise = model.noise
    layers = [(of[f"{part}.{i}.weight"], of[f"{part}.{i}.bias"])
              for part in ("encoder", "decoder") for i in (0, 2)]  # fmt: skip
    steps = [clean]
    for weight, bias in layers:
        steps.append(sigmoid(steps[-1] @ weight.T + bias))
    wrong = model.word_weight / 2 * np.square(steps[4] - clean).sum()
    away = np.square(steps[2] - v.double().numpy()).sum(1) @ coupled.numpy()
    size = sum(np.square(part).sum() for layer in layers for part in layer)
    expected = (wrong + model.movie_regularization / 2 * away) / 4
    expected += model.weight_regularization / 2 * size / 45
    assert found == pytest.approx(expected, rel=1e-5)


def test_gradients_by_differences(model: Any, in_double: None) -> None:
    network = model.build_network(model._interactions(world()[0])).double()
    batch = torch.arange(45), (torch.arange(45) < 42).double(), torch.randn(45, 4)

    def loss() -> torch.Tensor:
        torch.manual_seed(5)  # the same corruption each time
        return network.losses(*batch)[0]

    loss().backward()
    for weights in network.parameters():
        assert weights.grad.abs().max() > 0
        place = int(weights.grad.abs().argmax())
        at = weights.data.view(-1)
        value, at[place] = at[place].clone(), at[place] + 1e-5
        above = loss().item()
        at[place] = value - 1e-5
        below = loss().item()
        at[place] = value
        slope = (above - below) / 2e-5
        assert slope == pytest.approx(weights.grad.view(-1)[place].item(), rel=1e-5)


def test_factors_solve_the_equations_of_the_paper(model: Any) -> None:
    train, _, _ = world()
    of = numbers(model.network)
    u, theta = of["user_factors"], model.network.encode().double().numpy()
    liked = train.loc[train["rating"] >= 4]
    rated = np.zeros(model._seen.shape)
    users, _, columns, _ = model.positions(liked)
    rated[users, columns] = 1
    confidence = np.where(rated == 1, model.a, model.b)
    for j, row in enumerate(of["catalogue"].astype(int)):
        c = np.diag(confidence[:, j])
        system = u.T @ c @ u + model.movie_regularization * np.eye(4)
        right = u.T @ c @ rated[:, j] + model.movie_regularization * theta[row]
        np.testing.assert_allclose(of["movie_factors"][row], np.linalg.solve(system, right), 1e-4)
    np.testing.assert_allclose(of["movie_factors"][-3:], theta[-3:], 1e-6)


def test_it_ranks_better_than_popularity_and_knows_new_movies(model: Any, tmp_path: Path) -> None:
    train, test, _ = world()
    popular = make("popular").fit(train)
    found, other = (evaluate(m, train, test)["ndcg@10"] for m in (model, popular))
    assert found > other + 0.2
    assert np.array_equal(model.predict(test), popular.predict(test))
    loaded: Any = load_model(model.save(tmp_path / "model"))
    users = model.user_ids
    for (ids, scores), (_, again) in [
        (model.score_described(users), loaded.score_described(users))
    ]:
        assert np.array_equal(scores, again) and np.array_equal(
            scores[:, :42], model.score_all(users)
        )
        assert ids.tolist() == list(range(1, 46))
        # Of three new movies, one of each genre, the best is of the genre that the user likes.
        assert (scores[:, -3:].argmax(axis=1) == (users - 1) % 3).mean() > 0.9


def test_without_a_positive_pair_it_says_so() -> None:
    train, _, movies = world(9, 9)
    with pytest.raises(ValueError, match="cdl: no rating of train reaches positive_threshold 9"):
        make("cdl", positive_threshold=9).fit(train, movies=movies)
