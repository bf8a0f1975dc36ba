"""The comparison over seeds: intervals, pairs, provenance, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import dlcf
from dlcf.analysis.cold import describe_split
from dlcf.analysis.statistics import compare_all, holm, mean_interval
from dlcf.data import load_ratings
from dlcf.evaluation import evaluate
from dlcf.metrics import mae, rmse
from dlcf.registry import make
from dlcf.runtime import paths
from dlcf.splits import split
from dlcf.studies import compare
from dlcf.studies.compare import (
    Job,
    interval_table,
    load_comparison,
    pair_table,
    run_job,
    run_jobs,
    study,
)
from dlcf.studies.results import SPLITS


@pytest.fixture(scope="module")
def dataset(
    tmp_path_factory: pytest.TempPathFactory, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> str:
    """The toy world as a folder in MovieLens form; the last six users come after all others."""
    folder = tmp_path_factory.mktemp("toy")
    late = 10**9 * (toy_ratings["userId"].rank(method="dense") > 34)
    ratings = toy_ratings.assign(timestamp=toy_ratings["timestamp"] + late)
    ratings.to_csv(folder / "ratings.csv", index=False)
    movies = toy_movies.assign(
        title=toy_movies["title"] + " (1999)", genres=toy_movies["genres"].str.join("|")
    )
    movies[["movieId", "title", "genres"]].to_csv(folder / "movies.csv", index=False)
    return str(folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def plan(dataset: str, seeds: tuple[int, ...] = (0, 1, 2)) -> list[Job]:
    return [
        Job(name, dataset, "random", seed) for name in ("bias", "popular", "mf") for seed in seeds
    ]


def test_jobs_run_in_processes_give_what_they_give_here(dataset: str, cache: Path) -> None:
    settings = {"epochs": 2, "embedding_size": 4, "hidden": (6,), "dropout": (0.1,)}
    jobs = [
        Job("deepcf", dataset, "random", 0, settings, ("last", "best")),
        Job("bias", dataset, "user-temporal", 1, label="biases"),
    ]
    found = run_jobs(jobs, workers=2)
    assert found == [run_job(job) for job in jobs]
    assert list(found[0]) == ["deepcf (last epoch)", "deepcf (best epoch)"]
    assert set(found[1]["biases"]) == {"rmse", "mae", "rated", "full"}


@pytest.mark.parametrize(("how", "seed"), [("random", 0), ("random", 3), ("user-temporal", 3)])
def test_the_seed_draws_the_split_and_the_model(
    dataset: str, cache: Path, how: str, seed: int
) -> None:
    """Were one of the two the same for all seeds, an interval over seeds would be too narrow."""
    settings = {"epochs": 1, "factors": 3}
    train, test = split(load_ratings(dataset), how, seed=seed)
    expected = make("mf", seed=seed, **settings).fit(train)
    model, *parts, _ = Job("mf", dataset, how, seed, settings).fit()
    assert [list(part.index) for part in parts] == [list(train.index), list(test.index)]
    assert model.config == expected.config
    assert (model.predict(test) == expected.predict(test)).all()
    measured = run_job(Job("mf", dataset, how, seed, settings, k=5, threshold=3.0))["mf"]
    numbers = study(Job("mf", dataset, how, seed, settings, k=5, threshold=3.0))["mf"]["numbers"]
    for protocol in ("rated", "full"):
        found = evaluate(expected, train, test, protocol, 5, 3.0)
        assert measured["rmse"] == found["rmse"] == pytest.approx(numbers["rmse"])
        for name in ("precision", "recall", "ndcg"):
            assert measured[protocol][f"{name}@5"] == found[f"{name}@5"]
            assert numbers[protocol][name] == pytest.approx(found[f"{name}@5"])


def test_a_study_is_done_once(dataset: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("bias", dataset, "random", 0)
    first = study(job)
    monkeypatch.setattr(Job, "fit", None)  # a second fit would fail
    again = study(job)
    assert first["bias"]["numbers"] == again["bias"]["numbers"]
    for table in ("errors", "lists"):
        pd.testing.assert_frame_equal(first["bias"][table], again["bias"][table])
    with pytest.raises(TypeError):
        study(Job("bias", dataset, "random", 1))


def test_a_comparison_holds_intervals_and_pairs(
    dataset: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "PLAN", {name: {"model": name} for name in ("bias", "mf")})
    arguments = ["--dataset", dataset, "--seeds", "0", "1", "2", "--splits", "random"]
    output = tmp_path / "comparison.json"
    assert compare.main([*arguments, "--models", "bias", "mf", "--output", str(output)]) == 0
    found = load_comparison(output)

    errors = [study(Job("mf", dataset, "random", s, label="mf"))["mf"] for s in (0, 1, 2)]
    expected = mean_interval([one["numbers"]["rmse"] for one in errors])
    table = interval_table(found, "random", "rmse")
    assert table.loc["mf"].tolist() == pytest.approx(
        [expected.mean, expected.low, expected.high], abs=1e-5
    )
    assert table["mean"].is_monotonic_increasing
    assert interval_table(found, "random", "full", "ndcg")["mean"].is_monotonic_decreasing

    pairs = pair_table(found, "random", "rmse")
    forth, back = pairs.loc[("bias", "mf")], pairs.loc[("mf", "bias")]
    assert forth["difference"] == -back["difference"]
    assert (forth["low"], forth["high"]) == (-back["high"], -back["low"])
    assert 0 < forth["p_holm"] <= 1

    provenance = found["provenance"]
    assert provenance["seeds"] == [0, 1, 2]
    assert len(provenance["test pairs sha256"]) == 3
    assert all(len(digest) == 64 for digest in provenance["test pairs sha256"].values())


def test_parts_and_times_are_measured_apart(
    dataset: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the global-temporal split there are new users; deepcf-plus alone reads the time."""
    few = {"embedding_size": 4, "folds": 2, "epochs": 1, "cuts": (0.5,), "candidates": 10}
    jobs = [
        Job("deepcf-plus", dataset, "global-temporal", 0, few, changes={"plain": {"rerank": 0.0}}),
        Job("bias", dataset, "global-temporal", 0),
    ]
    monkeypatch.setattr(compare, "PERMUTATIONS", 500)
    found = compare.compare(jobs, workers=1)
    models = found["splits"]["global-temporal"]["models"]
    assert list(models) == ["deepcf-plus", "deepcf-plus, plain", "bias"]
    train, test = dlcf.split(dlcf.load_ratings(dataset), "global-temporal", seed=0)
    model = jobs[1].fit()[0]
    known = test["userId"].isin(train["userId"])
    warm = known & test["movieId"].isin(train["movieId"])
    bias = models["bias"]["parts"]
    assert 0 < known.sum() < len(test)
    for part, rows in {"warm pairs": warm, "known users": known, "new users": ~known}.items():
        predicted, actual = model.predict(test[rows]), test["rating"][rows]
        assert bias[part]["share"][0] == pytest.approx(rows.mean(), abs=1e-5)
        assert bias[part]["rmse"][0] == pytest.approx(rmse(actual, predicted), abs=1e-5)
        assert bias[part]["mae"][0] == pytest.approx(mae(actual, predicted), abs=1e-5)
    assert bias["all"]["rmse"] == bias["all"]["rmse, no times"] == models["bias"]["rmse"]

    timed, plus = models["deepcf-plus"]["parts"]["all"], jobs[0].fit()[0]
    noon = test["timestamp"] // 86_400 * 86_400 + 43_200
    frames = {", day": test.assign(timestamp=noon), ", no times": test.drop(columns="timestamp")}
    for time, pairs in {"": test, **frames}.items():
        error = rmse(test["rating"], plus.predict(pairs))
        assert timed[f"rmse{time}"][0] == pytest.approx(error, abs=1e-5)
    assert timed["rmse"] != timed["rmse, no times"]
    # Without re-ranking the ratings stay and the lists do not.
    changed = models["deepcf-plus, plain"]
    assert changed["parts"] == models["deepcf-plus"]["parts"]
    assert changed["at k"] != models["deepcf-plus"]["at k"]

    served = "rmse, warm pairs, no times"
    middle, low, high = models["bias"]["over users"][served]
    assert middle == bias["warm pairs"]["rmse, no times"][0] and low < middle < high
    row = pair_table(found, "global-temporal", served).loc["deepcf-plus", "bias"]
    expected = models["deepcf-plus"]["over users"][served][0] - middle
    assert row["difference"] == pytest.approx(expected, abs=2e-5)


def test_a_job_of_days_knows_no_more_of_the_time(dataset: str, cache: Path) -> None:
    _, train, test, _ = Job("bias", dataset, "random", 0, days=True).fit()
    exact = dlcf.split(dlcf.load_ratings(dataset), "random", seed=0)
    for frame, of in zip((train, test), exact, strict=True):
        assert (frame["timestamp"] // 86_400 == of["timestamp"] // 86_400).all()
        assert (frame["timestamp"] % 86_400 == 43_200).all()


def test_the_global_temporal_split_is_for_models_that_none_outdoes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(compare, "compare", lambda given, _: jobs.extend(given) or {})
    compare.main(["--seeds", "0", "--output", str(tmp_path / "c.json")])
    of = {
        how: [job.label for job in jobs if job.split == how] for how in (*SPLITS, "global-temporal")
    }
    assert len(jobs) == sum(map(len, of.values()))
    assert of["random"] == of["user-temporal"] == list(compare.PLAN)
    assert of["global-temporal"] == [m for m in compare.PLAN if m not in compare.OUTDONE]
    jobs.clear()  # what is asked for by name is fitted
    arguments = [
        "--models",
        "svdpp",
        "--splits",
        "global-temporal",
        "--output",
        str(tmp_path / "c"),
    ]
    compare.main(arguments)
    assert [job.label for job in jobs] == ["svdpp"] * 5


def test_a_p_value_that_no_permutation_reached_is_marked() -> None:
    row = {"first": "a", "second": "b", "metric": "rmse", "difference": -0.1, "low": -0.2}
    row |= {"high": -0.05, "users": 9, "p_holm": 0.01}
    pairs = [{**row, "p_value": 0.001}, {**row, "second": "c", "p_value": 0.002}]
    comparison = {"provenance": {"permutations": 999}, "splits": {"random": {"pairs": pairs}}}
    table = pair_table(comparison, "random", "rmse")
    assert table["at_floor"].to_dict() == {
        ("a", "b"): 1.0, ("b", "a"): 1.0, ("a", "c"): 0.0, ("c", "a"): 0.0,
    }  # fmt: skip


def test_pairs_pool_all_seeds_and_are_corrected(
    dataset: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By split, over the tables of all seeds; p-values are corrected within each metric."""
    seeds, names, hows = (0, 1, 2), ("ease", "bias", "popular"), ("random", "user-temporal")
    monkeypatch.setattr(compare, "PERMUTATIONS", 500)
    jobs = [Job(name, dataset, how, s) for name in names for how in hows for s in seeds]
    found = compare.compare(jobs, workers=1)
    for how in hows:
        of = {name: [study(Job(name, dataset, how, s))[name] for s in seeds] for name in names}
        part = found["splits"][how]
        for name in names:
            mean = sum(one["numbers"]["rmse"] for one in of[name]) / len(seeds)
            assert part["models"][name]["rmse"][0] == pytest.approx(mean, abs=1e-5)
        for metric, table in (("rmse", "errors"), ("ndcg", "lists")):
            tables = {name: [one[table] for one in of[name]] for name in names}
            intervals, pairs = compare_all(tables, metric, permutations=500)
            rows = [row for row in part["pairs"] if row["metric"] == metric]
            assert [(row["first"], row["second"]) for row in rows] == list(pairs)
            corrected = holm([pair.p_value for pair in pairs.values()])
            for row, pair, p_holm in zip(rows, pairs.values(), corrected, strict=True):
                for key in ("difference", "low", "high", "p_value", "users"):
                    assert row[key] == pytest.approx(getattr(pair, key), abs=1e-5), (how, key)
                assert row["p_holm"] == pytest.approx(p_holm, abs=1e-5)
            for name, interval in intervals.items():
                over_users = part["models"][name]["over users"][metric]
                assert over_users == pytest.approx([*interval.as_dict().values()], abs=1e-5)
    digests = found["provenance"]["test pairs sha256"]
    for how in hows:
        for seed in seeds:
            report = describe_split(*split(load_ratings(dataset), how, seed=seed))
            assert digests[f"{dataset}, {how}, seed {seed}"] == report.test_sha256
    assert len(digests) == 6 and found["provenance"]["seeds"] == [0, 1, 2]


def test_the_file_reads_as_lines_of_intervals(dataset: str, cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "c.json"
    arguments = ["--dataset", dataset, "--seeds", "0", "1", "--splits", "random"]
    for _ in range(2):  # its own file is replaced
        assert compare.main([*arguments, "--models", "bias", "--output", str(output)]) == 0
    text = output.read_text()
    assert json.loads(text)["splits"]["random"]["pairs"] == []
    line = next(line for line in text.splitlines() if '"rmse": [' in line)
    assert len(json.loads("{" + line.strip().rstrip(",") + "}")["rmse"]) == 3


def test_a_missing_comparison_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make compare"):
        load_comparison(tmp_path / "none.json")
