"""CKE: the graph, the three losses, and movies that nobody rated."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import dlcf
from dlcf.evaluation import per_user
from dlcf.registry import load_model, make
from dlcf.related.cke import CKE, KnowledgeNetwork, knowledge_of

SETTINGS = {"factors": 8, "hidden": 8, "batch_size": 128, "learning_rate": 0.02}


def tastes() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Users of even numbers rate comedies, the others dramas; movies from 100 on nobody rated."""
    generator = np.random.default_rng(2)
    cells = [
        (user, 2 * movie + user % 2)
        for user in range(60)
        for movie in generator.choice(30, 12, replace=False)
    ]
    ratings = pd.DataFrame(cells, columns=["userId", "movieId"]).assign(rating=4.0, timestamp=0)
    ids = [*range(60), *range(100, 120)]
    genres = [["Drama"] if movie % 2 else ["Comedy"] for movie in ids]
    return ratings, pd.DataFrame({"movieId": ids, "title": "Film", "genres": genres})


@pytest.fixture(scope="module")
def model() -> CKE:
    ratings, movies = tastes()
    return make("cke", **SETTINGS, epochs=12).fit(ratings, movies=movies)  # type: ignore[return-value]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def test_the_graph_holds_what_movies_share() -> None:
    movies = pd.DataFrame(
        {
            "movieId": [5, 6, 7, 8],
            "title": ["Godfather, The", "Godfather: Part II, The", "Rocky", "Rocky IV (Red)"],
            "year": pd.array([1972, 1974, 1976, None], dtype="Int16"),
            "genres": [["Drama", "Crime"], ["Drama"], [], []],
            "tags": [["mafia boss"], [], ["mafia"], []],
        }
    )
    known = knowledge_of(movies, np.array([5, 6, 7, 8, 9]))
    # Movies 0 to 4, then drama, mafia, the seventies, and the two series.
    drama, mafia, seventies, first, second = range(5, 10)
    expected = {(0, 0, drama), (1, 0, drama), (0, 1, mafia), (2, 1, mafia)}
    expected |= {(movie, 2, seventies) for movie in range(3)}
    expected |= {(0, 3, first), (1, 3, first), (2, 3, second), (3, 3, second)}
    assert set(map(tuple, known["triples"].tolist())) == expected
    assert known["things"].tolist() == [[5, 1], [6, 1], [7, 1], [8, 2]]
    assert np.diff(known["word_start"])[4] == 0  # nothing is said of movie 9


def test_scores_are_those_of_the_sum_of_parts(model: CKE) -> None:
    state = {name: value.double().numpy() for name, value in model.network.state_dict().items()}
    bag = np.zeros((len(model.described), len(state["words.weight"])))
    word, start = model._known["word"], model._known["word_start"]
    bag[np.repeat(np.arange(len(bag)), np.diff(start)), word] = 1.0
    hidden = sigmoid(bag @ state["words.weight"] + state["words_bias"])
    text = sigmoid(hidden @ state["middle.weight"].T + state["middle.bias"])
    vectors = state["offset.weight"] + state["entity.weight"][: len(bag)] + text
    expected = state["user.weight"] @ vectors.T
    np.testing.assert_allclose(model.score_described(model.user_ids)[1], expected, atol=1e-4)
    np.testing.assert_allclose(model.score_all(model.user_ids), expected[:, :60], atol=1e-4)


def network(**settings: float) -> KnowledgeNetwork:
    """In double precision, away from where it starts."""
    ratings, movies = tastes()
    model = CKE(factors=3, hidden=4, epochs=1, **settings)  # type: ignore[arg-type]
    of = model.fit(ratings[:80], movies=movies).network.double()  # type: ignore[attr-defined]
    assert isinstance(of, KnowledgeNetwork)
    for parameter in of.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return of.train()


def test_the_structural_loss_is_that_of_transr() -> None:
    of = network(regularization=0.0)
    torch.manual_seed(5)
    found = float(of.structural_loss(40).detach())
    torch.manual_seed(5)
    drawn, uniform = torch.randint(len(of.triples), (40,)), torch.rand(40)
    entity, relation = of.entity.weight.detach().numpy(), of.relation.weight.detach().numpy()
    matrix, triples = of.projection.detach().numpy(), of.triples.tolist()
    losses = []
    for place, u in zip(drawn.tolist(), uniform.tolist(), strict=True):
        movie, r, thing = triples[place]
        first, count = of.things[r].tolist()
        other = first + int(u * count)
        if [movie, r, other] in triples:
            continue
        near, far = (
            np.sum((entity[movie] @ matrix[r] + relation[r] - entity[t] @ matrix[r]) ** 2)
            for t in (thing, other)
        )
        losses.append(np.log1p(np.exp(near - far)))
    assert 5 < len(losses) < 40  # of comedies and dramas, about half are drawn true again
    assert found == pytest.approx(np.mean(losses), rel=1e-6)


def test_gradients_are_those_of_the_objective() -> None:
    of = network(regularization=0.3, text_weight=0.7, structure_weight=1.3)
    batch = torch.arange(6), torch.arange(6), torch.ones(6)

    def objective() -> torch.Tensor:
        torch.manual_seed(1)
        return of.losses(*batch)[0]

    of.zero_grad()
    objective().backward()
    for name, parameter in of.named_parameters():
        assert parameter.grad is not None, name
        place = int(parameter.grad.abs().argmax())
        flat = parameter.data.view(-1)
        values = []
        for step in (1e-5, -2e-5):
            flat[place] += step
            values.append(float(objective().detach()))
        flat[place] += 1e-5
        slope = (values[0] - values[1]) / 2e-5
        assert float(parameter.grad.view(-1)[place]) == pytest.approx(slope, rel=1e-4), name


def test_it_ranks_better_than_popularity() -> None:
    ratings, movies = tastes()
    train, test = dlcf.split(ratings)
    found = {
        name: per_user(make(name, **of).fit(train, movies=movies), train, test)["ndcg"].mean()
        for name, of in (("popular", {}), ("cke", {**SETTINGS, "epochs": 12}))
    }
    assert found["cke"] > 1.3 * found["popular"]


@pytest.mark.parametrize("part", ["structure", "text"])
def test_either_part_tells_movies_apart_that_nobody_rated(part: str) -> None:
    ratings, movies = tastes()
    other = {"structure": "text", "text": "structure"}[part]
    model = CKE(**SETTINGS, epochs=12, **{other: False})  # type: ignore[arg-type]
    scores = model.fit(ratings, movies=movies).score_described(range(60))[1]  # type: ignore[attr-defined]
    assert scores.shape == (60, 80) and model.described[60] == 100
    even, odd = scores[:, 60::2].mean(1), scores[:, 61::2].mean(1)
    assert ((even > odd) == (np.arange(60) % 2 == 0)).mean() > 0.95


def test_without_parts_there_is_nothing_to_tell_them_apart_by(model: CKE) -> None:
    assert not model.network.offset.weight[60:].any() and model.network.offset.weight[:60].any()
    ratings, movies = tastes()
    plain = CKE(**SETTINGS, epochs=1, structure=False, text=False)  # type: ignore[arg-type]
    scores = plain.fit(ratings, movies=movies).score_described([0, 1])[1]  # type: ignore[attr-defined]
    assert np.all(scores[:, 60:] == 0.0) and np.any(scores[:, :60] != 0.0)
    with pytest.raises(ValueError, match="userId 77 is unknown"):
        plain.score_described([0, 77])


def test_a_saved_model_ranks_unrated_movies_the_same(model: CKE, tmp_path: object) -> None:
    loaded = load_model(model.save(f"{tmp_path}/m"))
    assert isinstance(loaded, CKE)
    assert np.array_equal(loaded.score_described([3, 4])[1], model.score_described([3, 4])[1])
