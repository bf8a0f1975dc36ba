"""What a list is ranked by: its evidence against formulas, its questions, and what it learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from dlcf.models.base import Interactions
from dlcf.plus import ranker
from dlcf.plus.evidence import SideInformation
from dlcf.plus.ranker import (
    Candidates,
    ItemWeights,
    ListEvidence,
    Lists,
    gains_of,
    lists_of,
    questions,
    train_ranker,
)


@pytest.fixture
def world() -> tuple[Interactions, SideInformation]:
    """Twelve users, nine movies, each user with four to eight ratings at distinct times."""
    generator = np.random.default_rng(0)
    cells = [
        (user, movie)
        for user in range(12)
        for movie in generator.choice(9, generator.integers(4, 9), replace=False)
    ]
    users, movies = np.array(cells).T
    times = 10**9 + generator.permutation(len(users)) * 86400 * 20
    ratings = generator.integers(1, 11, len(users)).astype(np.float32) / 2
    side = SideInformation(np.eye(3, dtype=np.float32)[np.arange(9) % 3], 1990 + np.arange(9.0))
    return Interactions(users, movies, ratings, times, 12, 9), side


def dense(data: Interactions, values: Any) -> np.ndarray:
    table = np.zeros((data.n_users, data.n_movies))
    table[data.users, data.movies] = values
    return table


@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_item_weights_are_the_constrained_least_squares(shape: tuple[int, int]) -> None:
    """By the system of users or that of movies; of histories that they were not fitted on too."""
    generator = np.random.default_rng(1)
    matrix = generator.random(shape) * (generator.random(shape) < 0.6)
    history = generator.random((5, shape[1])) * (generator.random((5, shape[1])) < 0.5)
    weights = np.zeros((shape[1],) * 2)
    for movie in range(shape[1]):
        others = np.delete(np.arange(shape[1]), movie)  # the diagonal of B is zero
        x = matrix[:, others]
        gram = x.T @ x + 2.0 * np.eye(len(others))
        weights[others, movie] = np.linalg.solve(gram, x.T @ matrix[:, movie])
    fitted = ItemWeights(sparse.csr_matrix(matrix.astype(np.float32)), 2.0)
    assert fitted.by_user == (shape[0] < shape[1])
    for rows in (matrix, history):
        found = fitted.scores(sparse.csr_matrix(rows.astype(np.float32)))
        np.testing.assert_allclose(found, rows @ weights, atol=1e-5)


class TestEvidence:
    def test_histories_are_in_the_order_of_time(
        self, world: tuple[Interactions, SideInformation]
    ) -> None:
        data, side = world
        evidence = ListEvidence(data, side, 5.0, 0.5)
        user = 3
        own = data.take(data.users == user)
        order = np.argsort(own.timestamps)
        back = np.empty(len(own))
        back[order] = np.arange(len(own))[::-1]  # 0 for the latest
        value = np.maximum(1 + 0.5 * (own.ratings - data.ratings.mean()), 0)
        expected = np.zeros(9)
        expected[own.movies] = value * np.exp(-back / 10)
        np.testing.assert_allclose(evidence.recent[10][user].toarray()[0], expected, rtol=1e-5)
        assert evidence.latest[user] == own.timestamps.max()
        assert evidence.first[user] == own.timestamps.min()

    @pytest.mark.parametrize("crowded", [0.0, 2.0])
    def test_what_follows_is_counted_by_its_distance(
        self,
        world: tuple[Interactions, SideInformation],
        crowded: float,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        data, side = world
        usual = ListEvidence(data, side, 5.0, 0.5)
        monkeypatch.setattr(ranker, "CROWDED", crowded)
        evidence = ListEvidence(data, side, 5.0, 0.5)
        count, expected = np.bincount(data.movies, minlength=9), np.zeros((9, 9))
        for user in range(12):
            own = data.take(data.users == user)
            movies = own.movies[np.argsort(own.timestamps)]
            for place, movie in enumerate(movies):
                for gap, later in enumerate(movies[place + 1 :], 1):
                    damped = np.sqrt((count[movie] + 5) * (count[later] + 5))
                    expected[movie, later] += 1 / np.log2(1 + gap) / damped
        follows, beside = (
            sparse.csr_matrix(m).toarray() for m in (evidence.follows, evidence.beside)
        )
        np.testing.assert_allclose(follows, expected, atol=1e-6)
        np.testing.assert_allclose(beside, expected + expected.T, atol=1e-6)
        asked = np.arange(12), evidence.latest
        for found, known in zip(evidence.collect(*asked), usual.collect(*asked), strict=True):
            np.testing.assert_array_equal(found.movies, known.movies)
            np.testing.assert_allclose(found.features, known.features, atol=1e-5)

    def test_popularity_is_that_near_the_moment(
        self, world: tuple[Interactions, SideInformation]
    ) -> None:
        data, side = world
        evidence = ListEvidence(data, side, 5.0, 0.5)
        for scale in ranker.POPULARITY:
            for at, popular in zip(evidence.moments, evidence.popular[scale], strict=True):
                near = np.exp(-np.abs(data.timestamps - at) / (scale * ranker.YEAR))
                expected = np.log1p(np.bincount(data.movies, near, 9))
                np.testing.assert_allclose(popular, expected, rtol=1e-5)

    def test_candidates_are_unseen_and_told_of_pair_by_pair(
        self, world: tuple[Interactions, SideInformation]
    ) -> None:
        data, side = world
        evidence = ListEvidence(data, side, 5.0, 0.5)
        users = np.arange(12)
        (found,) = evidence.collect(users, evidence.latest + 3600.0)
        seen = dense(data, 1) > 0
        assert not seen[users[found.row], found.movies].any()
        # So few movies that all that are unseen are candidates.
        assert len(found.row) == (~seen).sum() and np.isfinite(found.features).all()
        some = np.array([5, 2])
        (part,) = evidence.collect(some, evidence.latest[some] + 3600.0)
        for place, user in enumerate(some):
            rows, own = found.row == user, part.row == place
            assert np.array_equal(found.movies[rows], part.movies[own])
            np.testing.assert_allclose(found.features[rows], part.features[own], atol=1e-5)

    def test_blocks_of_users_do_not_matter(
        self, world: tuple[Interactions, SideInformation], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, side = world
        evidence = ListEvidence(data, side, 5.0, 0.5)
        users, at = np.arange(12), evidence.latest + 3600.0
        (whole,) = evidence.collect(users, at)
        monkeypatch.setattr(ranker, "USERS_AT_ONCE", 5)
        parts = list(evidence.collect(users, at))
        assert len(parts) == 3
        for name in ("row", "movies", "features"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_allclose(joined, getattr(whole, name), atol=1e-6)

    def test_without_times_nothing_is_recent(
        self, world: tuple[Interactions, SideInformation]
    ) -> None:
        data, side = world
        untimed = Interactions(
            data.users, data.movies, data.ratings, 0 * data.timestamps, data.n_users, data.n_movies
        )
        evidence = ListEvidence(untimed, side, 5.0, 0.5)
        assert sparse.csr_matrix(evidence.follows).nnz == 0
        assert (evidence.recent[3] != evidence.value).nnz == 0

    def test_only_the_most_rated_movies_are_candidates(
        self, world: tuple[Interactions, SideInformation], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, side = world
        monkeypatch.setattr(ranker, "MOST_MOVIES", 4)
        evidence = ListEvidence(data, side, 5.0, 0.5)
        count = np.bincount(data.movies, minlength=9)
        assert len(evidence.items) == 4 and count[evidence.items].min() >= np.sort(count)[-4]
        (found,) = evidence.collect(np.arange(12), evidence.latest)
        assert set(found.movies) <= set(evidence.items)
        assert not evidence.item_scores(np.arange(12), 9)[
            :, np.setdiff1d(np.arange(9), evidence.items)
        ].any()


class TestQuestions:
    def test_what_is_next_lies_behind_all_that_is_visible(
        self, world: tuple[Interactions, SideInformation]
    ) -> None:
        data, _ = world
        masks = list(questions(data, "next", 0))
        assert len(masks) == 3
        for visible, hidden in masks:
            assert not (visible & hidden).any()
            for user in np.unique(data.users[hidden]):
                own = data.users == user
                latest = data.timestamps[own & visible].max()
                assert latest < data.timestamps[own & hidden].min()

    def test_what_is_missing_is_drawn_from_everywhere(
        self, world: tuple[Interactions, SideInformation]
    ) -> None:
        data, _ = world
        masks = list(questions(data, "missing", 0))
        assert all(np.array_equal(visible, ~hidden) for visible, hidden in masks)
        assert np.max(np.sum([hidden for _, hidden in masks], axis=0)) == 1
        other = list(questions(data, "missing", 1))
        assert not np.array_equal(masks[0][1], other[0][1])

    def test_both_are_both(self, world: tuple[Interactions, SideInformation]) -> None:
        data, _ = world
        both, parts = list(questions(data, "both", 0)), []
        for which in ("next", "missing"):
            parts += list(questions(data, which, 0))
        for found, expected in zip(both, parts, strict=True):
            assert all(map(np.array_equal, found, expected))


def test_gains_are_of_what_was_hidden() -> None:
    hidden = Interactions(
        np.array([7, 7, 2]), np.array([1, 4, 1]), np.array([4.0, 3.5, 5.0], np.float32),
        np.zeros(3, np.int64), 9, 5,
    )  # fmt: skip
    users = np.array([2, 7])
    found = Candidates(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 3, 4]), np.zeros((5, 1)))
    np.testing.assert_allclose(gains_of(found, users, hidden, 4.0), [0, 1, 1, 0, 0.1])


def test_lists_without_anything_taken_up_are_left_out(
    world: tuple[Interactions, SideInformation],
) -> None:
    data, side = world
    one = data.users == 4
    hidden = one & (data.timestamps == data.timestamps[one].max())
    lists = lists_of(iter([(data.take(~hidden), data.take(hidden))]), side, 5.0, 0.5, 4.0, 0)
    assert lists is not None and len(lists.start) == 2  # that of user 4 alone
    assert (lists.gains > 0).sum() == 1
    assert (
        lists_of(iter([(data, data.take(np.zeros(len(data), bool)))]), side, 5, 0.5, 4, 0) is None
    )


def test_it_learns_which_feature_tells() -> None:
    """Of five features, the third says what is taken up; the seed decides all bits."""
    generator = np.random.default_rng(0)
    n_lists, length = 200, 30
    features = generator.normal(size=(n_lists * length, 5)).astype(np.float32)
    best = features[:, 2].reshape(n_lists, length).argmax(axis=1)
    gains = np.zeros((n_lists, length), np.float32)
    gains[np.arange(n_lists), best] = 1
    start = np.arange(n_lists + 1) * length
    lists = Lists(torch.from_numpy(features), torch.from_numpy(gains.ravel()), start)
    network, again, other = (train_ranker(lists, seed) for seed in (0, 0, 1))
    new = generator.normal(size=(50, length, 5)).astype(np.float32)
    found = network.logits(new).argmax(axis=1)
    assert (found == new[:, :, 2].argmax(axis=1)).mean() > 0.8
    assert np.array_equal(network.logits(new), again.logits(new))
    assert not np.array_equal(network.logits(new), other.logits(new))
