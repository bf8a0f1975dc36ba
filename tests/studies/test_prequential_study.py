"""The study of ratings in the order of time: who is measured on what, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from toy_models import TINY

from dlcf.evaluation import prequential
from dlcf.models.base import Recommender
from dlcf.registry import make
from dlcf.runtime import paths
from dlcf.splits import split
from dlcf.studies import prequential as study

SMALL: dict[str, dict[str, Any]] = {
    "mf": TINY["mf"], "deepcf-plus": TINY["deepcf-plus"], "bias": {},
}  # fmt: skip


@pytest.fixture
def world(
    toy_ratings: pd.DataFrame,
    toy_movies: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Three models on the toy ratings, of which some users have rated late only."""
    late = toy_ratings["userId"].isin(toy_ratings["userId"].unique()[:4])
    time = toy_ratings["timestamp"].where(~late, toy_ratings["timestamp"] // 40 + 1_500_000_000)
    ratings = toy_ratings.assign(timestamp=time)
    monkeypatch.setattr(study, "load_ratings", lambda _: ratings)
    monkeypatch.setattr(study, "load_movies", lambda _: toy_movies)
    monkeypatch.setattr(study, "MODELS", {"mf": SMALL["mf"]})
    monkeypatch.setattr(study, "UPDATED", {m: SMALL[m] for m in ("deepcf-plus", "bias")})
    monkeypatch.setattr(study, "EVERY", "500D")
    monkeypatch.setattr(study, "LISTS", {m: SMALL[m] for m in ("deepcf-plus", "bias")})
    steps = {"as trained": "500D", "updated": "90D", "lists": "30D"}
    monkeypatch.setattr(study, "STEPS", steps)
    monkeypatch.setattr(study, "map_in_processes", lambda run, cells, *_: list(map(run, cells)))
    monkeypatch.setattr(study, "provenance", lambda *_: {"study": "prequential"})
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    return tmp_path / study.RESULTS_NAME


def test_the_numbers_are_those_of_each_group_by_hand(world: Path, toy_movies: pd.DataFrame) -> None:
    assert study.main(["--workers", "1"]) == 0
    found = study.load_prequential(world)
    ratings = study.load_ratings("")
    past, future = split(ratings, "global-temporal")
    for name, mode, step in (("bias", "updated", "90D"), ("mf", "as trained", "500D")):
        model = make(name, **SMALL[name], seed=0)
        expected = prequential(model, past, future, "500D", step, toy_movies)
        known = prequential(make("bias"), past, future, "500D", "90D")["known"]
        squared = (expected["predicted"] - expected["rating"]) ** 2
        groups = {"all": known >= 0} | {g: known.between(*b) for g, b in study.KNOWN.items()}
        if mode == "as trained":
            groups["new users"] = expected["known"] == 0
        for group, rows in groups.items():
            value, low, high = found[mode]["models"][name][group]
            assert value == pytest.approx(np.sqrt(squared[rows].mean()), abs=2e-5), (name, group)
            assert low < value < high
    of = prequential(make("bias"), past, future, "500D", "30D", toy_movies, lists=True)
    ndcg: dict[int, list[float]] = {}
    for (user, _), shown in of.groupby(["userId", "known"]):
        liked = shown.loc[shown["rating"] >= 4.0, "place"]
        if len(liked):
            best = sum(1 / np.log2(1 + j) for j in range(1, min(len(liked), 10) + 1))
            got = sum(1 / np.log2(1 + place) for place in liked if place <= 10)
            ndcg.setdefault(user, []).append(got / best)
    mean = np.mean([np.mean(of_user) for of_user in ndcg.values()])
    assert found["lists"]["models"]["bias"]["all"][0] == pytest.approx(mean, abs=2e-5)
    assert found["lists"]["users"]["all"] == len(ndcg)
    by_ndcg = study.group_table(found, "lists")["all"]
    assert by_ndcg.is_monotonic_decreasing and (by_ndcg > 0).all()
    assert found["groups"]["0"]["ratings"] == int((known == 0).sum()) > 0
    assert sum(found["groups"][g]["ratings"] for g in study.KNOWN) == len(future)
    table = study.group_table(found, "as trained")
    ours, other = (table.loc[name, "new users"] for name in (study.OURS, "mf"))
    difference = study.difference_table(found, "as trained", "new users").loc["mf"]
    assert difference["mean"] == pytest.approx(ours - other, abs=2e-5)
    assert difference["low"] <= difference["mean"] <= difference["high"]


def test_what_is_kept_is_not_computed_again(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study.main(["--workers", "1"]) == 0
    first = world.read_text()
    monkeypatch.setattr(study, "prequential", None)
    assert study.main(["--workers", "1"]) == 0
    assert json.loads(world.read_text()) == json.loads(first)
    monkeypatch.setitem(study.STEPS, "updated", "30D")  # another question
    with pytest.raises(TypeError):
        study.main(["--workers", "1"])


def test_those_that_can_observe_are_updated() -> None:
    for models, wanted in ((study.UPDATED, True), (study.MODELS, False)):
        for name in models:
            assert (type(make(name))._observe is not Recommender._observe) == wanted, name


def test_a_p_value_at_the_floor_is_an_upper_bound() -> None:
    """Of ten comparisons by 100,000 permutations the smallest is 10 / 100,001."""
    rows = {f"model {n}": [-0.1, -0.2, -0.05, 0.0001 if n else 0.0002] for n in range(10)}
    found = study.difference_table({"updated": {"pairs": {"all": rows}}}, "updated", "all")
    assert found["p_holm"].tolist() == ["0.0002", *9 * ["≤ 0.0001"]]
