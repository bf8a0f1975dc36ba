"""The ablation: what is switched off says nothing, and with nothing off it is the model itself."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dlcf.metrics import rmse
from dlcf.models.deepcf import DeepCF
from dlcf.plus.deepcf_plus import DeepCFPlus
from dlcf.runtime import paths
from dlcf.splits import train_validation_test
from dlcf.studies import ablation
from dlcf.studies.ablation import (
    OFF,
    PAPER,
    RATERS,
    STEPS,
    AblatedDeepCFPlus,
    AblatedNetwork,
    Variant,
    effect_table,
    summarise,
)

NAMES = (
    ["mean", "count", "spread", "time 15", "co-rated"],
    [*RATERS, "count", "bias", "spread", "year", "date", "genre 0"],
)


def network(*parts: str) -> tuple[AblatedNetwork, list[torch.Tensor]]:
    """A network with random weights, and inputs of 20 pairs with 3 of 5 entries."""
    torch.manual_seed(3)
    built = AblatedNetwork(6, 7, (len(NAMES[0]), len(NAMES[1])), 4, 0.1)
    built.switch_off(parts, NAMES)
    user, movie = torch.randn(20, 5), torch.randn(20, 9)
    built.standardise(user, movie)
    inputs = [
        torch.randint(0, 6, (20,)), torch.randint(0, 7, (20,)), torch.randn(20), user, movie,
        torch.randn(20, 5, 8).half(), torch.full((20,), 3),
    ]  # fmt: skip
    return built.eval(), inputs


def moves(part: str, place: int, columns: slice) -> float:
    """How far the output moves when some columns of an input do, with `part` switched off."""
    built, inputs = network(*([part] if part else []))
    before = built(*inputs)
    inputs[place] = inputs[place].clone()
    inputs[place][:, columns] += 0.5
    return float((built(*inputs) - before).abs().max().detach())


@pytest.mark.parametrize(
    ("part", "place", "columns"),
    [
        ("user", 3, slice(0, 3)),
        ("kernels", 3, slice(3, 5)),
        ("raters", 4, slice(0, 3)),
        ("movie", 4, slice(3, 9)),
        ("learned attention", 5, slice(0, 3)),
    ],
)
def test_what_is_off_is_not_read(part: str, place: int, columns: slice) -> None:
    assert moves("", place, columns) > 1e-4
    assert moves(part, place, columns) < 1e-6


def test_each_feature_belongs_to_one_group() -> None:
    for place, size, groups in ((3, 5, ("user", "kernels")), (4, 9, ("raters", "movie"))):
        for column in range(size):
            silent = [moves(g, place, slice(column, column + 1)) < 1e-6 for g in groups]
            assert sum(silent) == 1, (place, column)


def test_gate_embeddings_and_tower() -> None:
    built, inputs = network("gate")
    assert torch.equal(built.read(*inputs)[1], torch.full((20, 2), 0.5))
    built, inputs = network("embeddings")
    others = [(inputs[0] + 1) % 6, (inputs[1] + 1) % 7, *inputs[2:]]
    assert torch.equal(built(*inputs), built(*others))
    built, inputs = network("tower")
    assert isinstance(built.tower, torch.nn.Identity) and built(*inputs).shape == (20,)


def test_a_frozen_part_stays_off_in_training(toy_ratings: pd.DataFrame) -> None:
    whole = AblatedDeepCFPlus(seed=0).fit(toy_ratings)
    assert isinstance(whole, AblatedDeepCFPlus)
    model = whole.variant(Variant(("gate", "embeddings")))
    assert not model.network.gate.weight.any()
    assert not model.network.user_embedding.weight.any()
    assert model.network.output.weight.any()


def test_with_nothing_off_it_is_the_model(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    model = AblatedDeepCFPlus(seed=2).fit(toy_ratings, movies=toy_movies)
    whole = DeepCFPlus(seed=2).fit(toy_ratings, movies=toy_movies)
    assert np.array_equal(model.predict(toy_ratings), whole.predict(toy_ratings))
    assert isinstance(model, AblatedDeepCFPlus) and model.variant(Variant(data="no times")) is model


def test_a_variant_may_learn_from_some_of_the_episodes(toy_ratings: pd.DataFrame) -> None:
    whole = AblatedDeepCFPlus(seed=0, epochs=1).fit(toy_ratings)
    assert isinstance(whole, AblatedDeepCFPlus)
    few = whole.variant(Variant(episodes="random"))
    assert len(few.history.train_loss) == 1
    assert not np.array_equal(few.predict(toy_ratings), whole.predict(toy_ratings))


@pytest.mark.parametrize(("how", "seed"), [("random", 0), ("random", 4), ("user-temporal", 4)])
def test_the_seed_draws_the_split_and_the_models(
    how: str,
    seed: int,
    toy_ratings: pd.DataFrame,
    toy_movies: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No test rating is read: variants learn from train and are measured on validation."""
    fits: list[tuple[int, pd.DataFrame, Any]] = []

    class Watched(AblatedDeepCFPlus):
        def fit(self, train: Any, validation: Any = None, movies: Any = None) -> Any:
            fits.append((self.seed, train, movies))
            return self

        def variant(self, wanted: Variant) -> Any:
            return self

        def predict(self, pairs: pd.DataFrame) -> np.ndarray:
            return np.full(len(pairs), 2.0)

    monkeypatch.setattr(paths, "CACHE", tmp_path)
    monkeypatch.setattr(ablation, "load_ratings", lambda _: toy_ratings)
    monkeypatch.setattr(ablation, "load_movies", lambda _: toy_movies)
    monkeypatch.setattr(ablation, "AblatedDeepCFPlus", Watched)
    monkeypatch.setattr(ablation, "_ranking", lambda model, *parts: {"rows": list(map(len, parts))})
    found = ablation.run_seed("toy", (how, seed))
    train, validation, _ = train_validation_test(toy_ratings, how, validation_size=0.2, seed=seed)
    assert [fit[0] for fit in fits] == [seed] * 3
    pd.testing.assert_frame_equal(fits[0][1], train)
    assert all(list(given.index) == list(train.index) for _, given, _ in fits)
    assert ["timestamp" in given for _, given, _ in fits] == [True, False, True]
    assert [movies is None for *_, movies in fits] == [False, False, True]
    error = rmse(validation["rating"], np.full(len(validation), 2.0))
    assert found["off"] == dict.fromkeys(OFF, error) and list(found["steps"]) == [PAPER, *STEPS]
    paper = DeepCF(seed=seed, weights="best").fit(train)
    assert found["steps"].pop(PAPER) == rmse(validation["rating"], paper.predict(validation))
    assert found["steps"] == dict.fromkeys(STEPS, error)
    assert found["ranking"] == {"rows": [len(train), len(validation)]}


def test_steps_only_add() -> None:
    steps = list(STEPS.values())
    for before, after in itertools.pairwise(steps):
        assert before != after
        assert set(after.without) <= set(before.without)
    assert OFF["nothing"] in steps


def test_differences_are_paired() -> None:
    by_seed = [
        {"off": {"nothing": 0.7 + s, "x": 0.71 + s}, "steps": {"a": 0.9 + s, "b": 0.8, "c": 0.7}}
        for s in (0.0, 0.1, 0.3)
    ]
    found = {"splits": {"random": summarise(by_seed)}}
    off = effect_table(found, "random", "off")
    assert list(off.index) == ["x"]
    assert off.loc["x"].to_list() == pytest.approx([0.01, 0.01, 0.01])
    steps = effect_table(found, "random", "steps")
    assert steps["mean"].to_dict() == pytest.approx({"b": -0.23333, "c": -0.1})
    assert effect_table(found, "random", "off", "value").loc["nothing", "mean"] == pytest.approx(
        0.83333
    )
