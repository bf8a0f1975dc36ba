"""Lists by guesses with a bound on their error are the exact ones, whatever the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import dlcf
from dlcf.fast import kernels
from dlcf.fast.catalogue import FoldedTower, Screen, _balanced
from dlcf.models import deepcf
from dlcf.models.base import top_k
from dlcf.models.deepcf import AttentionNetwork, DeepCF

N_USERS, N_MOVIES = 7, 3000


def network_of(
    seed: int,
    hidden: tuple[int, ...] = (48, 32, 16),
    weight_scale: float = 1.0,
    embedding_scale: float = 30.0,
) -> AttentionNetwork:
    """Weights, biases and batch norms away from where training begins; scores of all sizes."""
    torch.manual_seed(seed)
    network = AttentionNetwork(N_USERS, N_MOVIES, (0.5, 5.0), 16, hidden, (0.1,) * len(hidden))
    for name, tensor in network.state_dict().items():
        if name.endswith("embedding.weight"):
            tensor.mul_(embedding_scale)
        elif name.endswith("running_var"):
            tensor.copy_(torch.rand_like(tensor) + 0.1)
        elif tensor.dtype == torch.float32:
            tensor.mul_(weight_scale).add_(0.2 * torch.randn_like(tensor))
    return network.eval()


def some_left_out() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return np.nonzero(generator.random((N_USERS, N_MOVIES)) < 0.02)


def lists(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    columns = top_k(scores, k)
    return columns, np.take_along_axis(scores, columns, axis=1)


def dead(network: AttentionNetwork) -> None:
    network.output.weight.data.zero_()  # all movies tie


def saturated(network: AttentionNetwork) -> None:
    network.output.bias.data.fill_(40.0)  # ratings tie, what they are made of does not


def silent(network: AttentionNetwork) -> None:
    cast(Tensor, network.tower[1].bias.data).fill_(-1e3)  # no unit of the first layer is open


def uneven(network: AttentionNetwork) -> None:
    linear = network.tower[4]
    linear.weight.data[::3] *= 1e3
    linear.weight.data[1] = 0
    network.tower[8].weight.data[:, ::3] /= 1e3


NETWORKS: dict[str, Callable[[], AttentionNetwork]] = {
    "usual": lambda: network_of(0),
    "small weights": lambda: network_of(1, weight_scale=0.1),
    "large weights": lambda: network_of(2, weight_scale=5.0),
    "alike": lambda: network_of(3, embedding_scale=0.01),
    "two layers": lambda: network_of(4, hidden=(24, 8)),
    "five layers": lambda: network_of(5, hidden=(64, 48, 32, 16, 8)),
}
CHANGES = {change.__name__: change for change in (dead, saturated, silent, uneven)}


def changed(name: str) -> AttentionNetwork:
    if name in NETWORKS:
        return NETWORKS[name]()
    network = network_of(6)
    CHANGES[name](network)
    return network


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", [*NETWORKS, *CHANGES])
def test_lists_are_the_exact_ones(name: str, n_threads: int) -> None:
    torch.set_num_threads(n_threads)  # reset_randomness puts it back
    network, left_out = changed(name), some_left_out()
    tower, users = network.folded_tower(), network.user_embedding.weight.detach()
    exact = network.score_all(torch.arange(N_USERS)).numpy()
    exact[left_out] = -np.inf
    found = tower.list_scores(users, left_out, 10)
    assert torch.get_num_threads() == n_threads
    columns, values = lists(found, 10)
    expected, best = lists(exact, 11)
    np.testing.assert_allclose(values, best[:, :10], atol=2e-6)
    steps = -np.diff(best, axis=1, prepend=np.inf)
    apart = (steps[:, :10] > 1e-5) & (steps[:, 1:] > 1e-5)  # else rounding may order them
    assert apart.any() or name in ("alike", "large weights", "dead", "silent", "saturated")
    assert np.array_equal(columns[apart], expected[:, :10][apart])
    computed = found > -np.inf
    np.testing.assert_allclose(found[computed], exact[computed], atol=2e-6)
    if name in ("dead", "silent"):  # what ties with the tenth cannot be ruled out
        assert np.array_equal(computed, exact > -np.inf)
        assert np.array_equal(columns, expected[:, :10])


@pytest.mark.parametrize("name", [*NETWORKS, *CHANGES])
def test_no_guess_is_farther_off_than_its_bound(name: str) -> None:
    network = changed(name)
    tower, movies = FoldedTower(network), torch.arange(N_MOVIES)
    screen, sides = Screen(tower), tower._sides(network.user_embedding.weight.detach())
    guesses, errors = screen.of_movies(sides, screen.centres(sides), movies)
    precise = copy.deepcopy(network).double()
    users = torch.arange(N_USERS).repeat_interleave(N_MOVIES)
    weight, user, movie = precise.attend(users, movies.repeat(N_USERS))
    attended = torch.cat([weight[:, :1] * user, weight[:, 1:] * movie], dim=1)
    exact = precise.output(precise.tower(attended)).detach().view(N_USERS, N_MOVIES)
    assert bool(((guesses - exact).abs() <= errors).all())
    assert bool(
        ((tower.logits(network.user_embedding.weight.float()) - exact).abs() <= errors).all()
    )
    if name == "usual":  # of the size that rounding has, not merely large
        assert float((guesses - exact).abs().max()) > 0.01 * float(errors.min())
        assert float(errors.median()) < float(exact.std())


def test_what_is_not_a_number_is_not_ruled_out() -> None:
    network, left_out = network_of(0), some_left_out()
    network.output.bias.data.fill_(torch.nan)
    found = network.folded_tower().list_scores(network.user_embedding.weight, left_out, 5)
    assert (found[left_out] == -np.inf).all()
    assert np.isnan(found).sum() == found.size - len(left_out[0])
    network = network_of(0)
    network.tower[4].weight.data[3] = torch.inf  # of a unit that is closed for some pairs
    network.tower[4].bias.data[3] = -1e30
    exact = network.score_all(torch.arange(N_USERS)).numpy()
    exact[left_out] = -np.inf
    found = network.folded_tower().list_scores(network.user_embedding.weight, left_out, 5)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
    np.testing.assert_allclose(found, exact, atol=2e-6)


def test_a_list_may_be_longer_than_what_is_left() -> None:
    network = network_of(0)
    users = network.user_embedding.weight
    taken = np.ones((N_USERS, N_MOVIES), dtype=bool)
    taken[:, 5:9] = False
    found = network.folded_tower().list_scores(users, np.nonzero(taken), 10)
    assert np.array_equal(np.nonzero(found > -np.inf)[1].reshape(N_USERS, 4)[0], [5, 6, 7, 8])
    assert ((found > -np.inf).sum(axis=1) == 4).all()


def test_rounding_is_torchs() -> None:
    """To the nearest of bfloat16, ties to even, and exactly that far from it."""
    generator = np.random.default_rng(0)
    values = (generator.normal(size=(50, 33)) * 10.0 ** generator.integers(-6, 6, (50, 33))).astype(
        np.float32
    )
    values[0, :4] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, -(1 + 2.0**-8), 0.0  # the first three are ties
    values[1, 0] = np.nan
    out, norms = np.empty(values.shape, dtype=np.uint16), np.zeros((50, 3), dtype=np.float32)
    kernels.rounded(values, np.zeros(33, dtype=np.float32), out, norms)
    ours = torch.from_numpy(out).view(torch.bfloat16)
    expected = torch.from_numpy(values).bfloat16()
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)
    gap = (values.astype(np.float64) - expected.double().numpy())[2:]
    np.testing.assert_allclose(norms[2:, 2], (gap**2).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(norms[2:, 1], (values[2:].astype(np.float64) ** 2).sum(1), rtol=1e-5)
    bias = generator.normal(size=33).astype(np.float32)
    hidden, again = np.empty_like(values), np.empty_like(out)
    kernels.bias_relu(out, bias, hidden, bias, again, norms)
    relu = torch.relu(expected.float() + torch.from_numpy(bias))
    np.testing.assert_array_equal(hidden[2:], relu.numpy()[2:])
    copy = (relu - torch.from_numpy(bias)).bfloat16()[2:]
    torch.testing.assert_close(torch.from_numpy(again).view(torch.bfloat16)[2:], copy)
    squares = (expected.double().numpy()[2:] ** 2).sum(axis=1)
    np.testing.assert_allclose(norms[2:, 0], squares, rtol=1e-5)


def test_balancing_changes_no_function_but_what_can_be_amplified() -> None:
    network = changed("uneven")
    tower = network.folded_tower()
    layers = [(w.double(), b.double()) for w, b in [*tower.rest, tower.output]]
    balanced = _balanced(layers)
    inputs = torch.rand(20, 48, dtype=torch.float64)

    def output(layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        hidden = inputs
        for weight, bias in layers[:-1]:
            hidden = torch.relu(hidden @ weight.T + bias)
        return hidden @ layers[-1][0] + layers[-1][1]

    def amplified(layers: list[tuple[Tensor, Tensor]]) -> float:
        norms = [torch.linalg.matrix_norm(torch.atleast_2d(weight), 2) for weight, _ in layers]
        return float(torch.stack(norms).prod().detach())

    torch.testing.assert_close(output(balanced), output(layers), rtol=1e-12, atol=1e-12)
    assert amplified(balanced) < 0.1 * amplified(layers)


def test_a_models_lists_are_the_same_with_and_without(
    ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the real ratings; guesses leave a small part of the catalogue to be scored exactly."""
    model = cast(DeepCF, dlcf.make("deepcf", epochs=1, batch_size=1024).fit(ratings))
    some = model.user_ids[::12]
    scored = []
    score = FoldedTower._score

    def counting(tower: FoldedTower, scores: Tensor, sides: object, wanted: Tensor) -> None:
        scored.append(float(wanted.double().mean()))
        score(tower, scores, sides, wanted)  # type: ignore[arg-type]

    monkeypatch.setattr(FoldedTower, "_score", counting)
    found = {}
    for fast in (False, True):
        monkeypatch.setattr(deepcf, "bfloat16_is_fast", lambda fast=fast: fast)
        found[fast] = model.recommend_all(some)
        assert bool(scored) == fast
    assert found[True]["movieId"].tolist() == found[False]["movieId"].tolist()
    np.testing.assert_allclose(found[True]["score"], found[False]["score"], atol=2e-6)
    assert sum(scored) < 0.25, scored
    assert model.recommend(int(some[3]))["movieId"].tolist() == (
        found[True].loc[found[True]["userId"] == some[3], "movieId"].tolist()
    )
    tower = model.network.folded_tower()  # type: ignore[operator]
    assert 0 < tower.share_scored < 0.5
    tower.share_scored = 0.5
    assert not model._screens(10)
    model.use_weights("best")  # weights that were written to have a tower of their own
    ranking = dlcf.make("deepcf", epochs=1, batch_size=4096, ranking_weight=0.1).fit(ratings)
    assert not cast(DeepCF, ranking)._screens(10) and model._screens(10)
    assert not model._screens(1000)
