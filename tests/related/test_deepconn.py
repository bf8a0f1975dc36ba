"""DeepCoNN: the towers, the factorisation machine, and what the text of a user is made of."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import dlcf
from dlcf.metrics import rmse
from dlcf.registry import load_model, make
from dlcf.related.deepconn import CoNN, DeepCoNN

SETTINGS = {"epochs": 20, "batch_size": 256, "learning_rate": 0.01, "filters": 16, "word_size": 8}


def tastes() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Even users like comedies and not dramas, the others the reverse; everybody sees both.

    Movies from 100 on nobody rated.
    """
    generator = np.random.default_rng(4)
    cells = [(u, m) for u in range(60) for m in generator.choice(60, 25, replace=False)]
    ratings = pd.DataFrame(cells, columns=["userId", "movieId"]).assign(timestamp=0)
    agrees = ratings["userId"] % 2 == ratings["movieId"] % 2
    noise = generator.normal(0, 0.3, len(ratings))
    stars = np.round(2 * (2.5 + 1.5 * agrees + noise)) / 2
    ids = [*range(60), *range(100, 110)]
    movies = pd.DataFrame({"movieId": ids, "title": "Film"})
    movies["genres"] = [["Drama"] if movie % 2 else ["Comedy"] for movie in ids]
    return ratings.assign(rating=np.clip(stars, 0.5, 5.0)), movies


@pytest.fixture(scope="module")
def model() -> DeepCoNN:
    ratings, movies = tastes()
    train, _ = dlcf.split(ratings)
    return make("deepconn", **SETTINGS).fit(train, movies=movies)  # type: ignore[return-value]


def network(**settings: object) -> CoNN:
    """In double precision, of movies with several words and users with one rating and more."""
    generator = np.random.default_rng(0)
    words = ["red", "blue", "green", "old", "new"]
    titles = [" ".join(generator.choice(words, generator.integers(0, 6))) for _ in range(12)]
    movies = pd.DataFrame({"movieId": range(12), "title": titles})
    cells = [(user, movie) for user in range(6) for movie in range(2 * user + 1)]
    ratings = pd.DataFrame(cells, columns=["userId", "movieId"])
    ratings["rating"] = generator.integers(1, 6, len(ratings)).astype(float)
    of = DeepCoNN(epochs=1, movie_words=4, filters=5, word_size=3, factors=4, rank=3, **settings)  # type: ignore[arg-type]
    found = of.fit(ratings, movies=movies).network.double()  # type: ignore[attr-defined]
    assert isinstance(found, CoNN)
    return found


def convolved(tower: torch.nn.Module, text: torch.Tensor) -> torch.Tensor:
    """By torch's own convolution over one text, with an empty word before and behind it."""
    vectors = torch.nn.functional.pad(tower.words.weight, (0, 0, 1, 0))  # type: ignore[union-attr, arg-type]
    words = torch.nn.functional.embedding(text, vectors).T[None]
    weight = tower.filters.permute(2, 1, 0)  # type: ignore[union-attr, operator]
    found = torch.nn.functional.conv1d(words, weight, tower.bias, padding=1)  # type: ignore[arg-type]
    return torch.relu(found)[0].amax(1)  # before the dense layer


def test_a_tower_is_a_convolution_and_a_maximum() -> None:
    of = network()
    found = of.movie(torch.arange(12))
    most = torch.stack([convolved(of.movie_tower, text) for text in of.text[:12]])
    torch.testing.assert_close(found, torch.relu(of.movie_tower.dense(most)))


def test_the_text_of_a_user_is_that_of_her_movies() -> None:
    """Movie by movie, and the words of those that she disliked are others."""
    of = network()
    places = of.draw(torch.arange(6), None)
    for user, found in zip(places, of.user(places), strict=True):
        most = []
        for place in user:
            text = of.text[of.rated.movie[place]]
            apart = of.n_words * int(of.rated.value[place])
            most.append(convolved(of.user_tower, torch.where(text > 0, text + apart, 0)))
        expected = torch.relu(of.user_tower.dense(torch.stack(most).amax(0)))
        torch.testing.assert_close(found, expected)
    assert 0 < of.rated.value.mean() < 1


def test_ratings_are_those_of_a_factorisation_machine() -> None:
    of = network()
    users, movies = torch.tensor([5, 3, 0]), torch.tensor([1, 11, 4])
    z = torch.cat([of.user(of.chosen[users]), of.movie(movies)], 1).detach().numpy()
    v, w = of.pairs.detach().numpy(), of.linear.weight.detach().numpy()[0]
    found = of(users, movies).detach().numpy()
    for row, of_pair in enumerate(zip(users, movies, strict=True)):
        value = (of.mean + of.linear.bias + of.user_bias[of_pair[0]]).item()
        value += float(of.movie_bias[of_pair[1]]) + w @ z[row]
        value += sum(v[k] @ v[m] * z[row, k] * z[row, m] for m in range(8) for k in range(m))
        assert found[row] == pytest.approx(value, abs=1e-6)
    everything = of.score_all(users)
    pairs = users.repeat_interleave(len(of.row)), of.row.repeat(3)
    torch.testing.assert_close(everything.flatten(), of(*pairs).detach())


def test_the_movie_that_is_rated_is_not_in_the_text() -> None:
    of = network(user_movies=200)
    users = torch.repeat_interleave(torch.arange(6), of.rated.start.diff())
    drawn = of.draw(users, of.rated.movie)
    for user, movie, places in zip(users.tolist(), of.rated.movie.tolist(), drawn, strict=True):
        others = set(range(2 * user + 1)) - {movie}  # who rated how many is by their number
        assert (places == -1).all() if user == 0 else (places >= 0).all()
        assert set(of.rated.movie[places[places >= 0]].tolist()) == others
        assert (places < of.rated.start[user + 1]).all()


def test_gradients_are_those_of_the_objective() -> None:
    of = network()
    for parameter in of.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    of.rated.double()
    batch = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 1, 5, 3, 9]), torch.ones(5).double()

    def objective() -> torch.Tensor:
        torch.manual_seed(1)
        return of.losses(*batch)[0]

    of.zero_grad()
    objective().backward()
    for name, parameter in of.named_parameters():
        assert parameter.grad is not None, name
        place = int(parameter.grad.abs().argmax())
        flat, values = parameter.data.view(-1), []
        for step in (1e-6, -2e-6):
            flat[place] += step
            values.append(float(objective().detach()))
        flat[place] += 1e-6
        slope = (values[0] - values[1]) / 2e-6
        assert float(parameter.grad.view(-1)[place]) == pytest.approx(slope, rel=1e-3), name


def test_it_rates_better_than_the_biases(model: DeepCoNN) -> None:
    ratings, _ = tastes()
    train, test = dlcf.split(ratings)
    bias = rmse(test["rating"], make("bias").fit(train).predict(test))
    assert rmse(test["rating"], model.predict(test)) < 0.75 * bias


def test_movies_that_nobody_rated_are_told_apart(model: DeepCoNN, tmp_path: object) -> None:
    table = pd.MultiIndex.from_product([range(60), range(100, 110)], names=["userId", "movieId"])
    pairs = table.to_frame(index=False)
    rating = model.predict(pairs)
    agrees = (pairs["userId"] % 2 == pairs["movieId"] % 2).to_numpy()
    assert rating[agrees].mean() > rating[~agrees].mean() + 0.7
    loaded = load_model(model.save(f"{tmp_path}/m"))
    assert np.array_equal(loaded.predict(pairs), rating)


def test_the_plain_one_has_neither_biases_nor_opinions() -> None:
    of = network(biases=False, opinions=False)
    assert not of.user_bias.any() and not of.movie_bias.any()
    assert of.user_tower.words.num_embeddings == of.n_words
    places = torch.tensor([[20], [21]])  # of one user
    of.rated.value.zero_()
    before = of.user(places)
    of.rated.value.fill_(1.0)
    assert torch.equal(of.user(places), before)
