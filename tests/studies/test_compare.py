"""The comparison over seeds: intervals, pairs, provenance, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from dlcf.analysis.statistics import mean_interval
from dlcf.runtime import paths
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


@pytest.fixture(scope="module")
def dataset(
    tmp_path_factory: pytest.TempPathFactory, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> str:
    """The toy world as a folder in MovieLens form."""
    folder = tmp_path_factory.mktemp("toy")
    toy_ratings.to_csv(folder / "ratings.csv", index=False)
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


def test_the_file_reads_as_lines_of_intervals(dataset: str, cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "c.json"
    arguments = ["--dataset", dataset, "--seeds", "0", "1", "--splits", "random"]
    compare.main([*arguments, "--models", "bias", "--output", str(output)])
    text = output.read_text()
    assert json.loads(text)["splits"]["random"]["pairs"] == []
    line = next(line for line in text.splitlines() if '"rmse": [' in line)
    assert len(json.loads("{" + line.strip().rstrip(",") + "}")["rmse"]) == 3


def test_a_missing_comparison_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make compare"):
        load_comparison(tmp_path / "none.json")
