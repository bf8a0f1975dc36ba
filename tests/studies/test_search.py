"""A search of settings: what it reads, that it goes on, what is recorded, and who takes it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock

import dlcf
from dlcf import cli
from dlcf.data import load_ratings
from dlcf.evaluation import evaluate
from dlcf.metrics import rmse
from dlcf.models.baselines import Bias
from dlcf.registry import available, load_model, make
from dlcf.runtime import paths
from dlcf.splits import train_validation_test
from dlcf.studies import compare, search, train, tune
from dlcf.studies.search import BEST, SPACES, make_tuned, put_on_record, record_of, tuned_settings

needs_optuna = pytest.mark.skipif(
    find_spec("optuna") is None, reason='Optuna is not installed: pip install "dlcf[tune]"'
)
FOUND = {"settings": {"user_damping": 7.5}, "seed": 0, "searches": {}}


def written(folder: Path, ratings: pd.DataFrame, movies: pd.DataFrame) -> str:
    """A data set as a folder in MovieLens form."""
    folder.mkdir(parents=True)
    ratings.to_csv(folder / "ratings.csv", index=False)
    movies = movies.assign(genres=movies["genres"].str.join("|"))
    movies[["movieId", "title", "genres"]].to_csv(folder / "movies.csv", index=False)
    return str(folder)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache and records of the test's own, in its processes too."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(paths, "TUNED", tmp_path / "tuned")
    monkeypatch.setenv("DLCF_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def dataset(tmp_path: Path, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame) -> str:
    return written(tmp_path / "toy", toy_ratings, toy_movies)


def trials(found: dict[str, Any], by: str = "rmse") -> list[dict[str, Any]]:
    """Without the times that they took."""
    of = found["searches"][by]["trials"]
    return [{key: value for key, value in one.items() if key != "seconds"} for one in of]


# --------------------------------------------------------------------------------- spaces


def problems(name: str, spaces: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with the spaces of a model."""
    found, defaults = [], make(name).config
    names = [setting for space in spaces.values() for setting in space]
    found += [f"{n} is searched twice" for n in set(names) if names.count(n) > 1]
    found += [f"nothing is judged by {by}" for by in spaces.keys() - BEST.keys()]
    for setting, given in (item for space in spaces.values() for item in space.items()):
        if setting not in defaults:
            found.append(f"no {setting}")
            continue
        choices = given if isinstance(given, list) else [given["low"], given["high"]]
        for value in choices:
            try:
                changed = getattr(make(name, **{setting: value}), setting)
            except ValueError as error:
                found.append(str(error))
            else:
                if type(changed) is not type(value):
                    found.append(f"{setting} {value!r} becomes {changed!r}")
        default = defaults[setting]
        inside = default in choices
        if isinstance(given, dict):
            inside = given["low"] <= default <= given["high"]
            if given["low"] >= given["high"] or (given.get("log") and given["low"] <= 0):
                found.append(f"{setting} has no range")
        if not inside:
            found.append(f"{setting}: the default {default!r} is outside")
    return found


def test_every_model_that_has_settings_has_a_space() -> None:
    assert set(SPACES) == {name for name in available() if make(name).hyper_parameters()}
    assert all(SPACES[name] and all(SPACES[name].values()) for name in SPACES)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_holds_what_the_model_takes(name: str) -> None:
    assert problems(name, SPACES[name]) == []


@pytest.mark.parametrize(
    ("spaces", "problem"),
    [
        ({"rmse": {"factor": [50]}}, "no factor"),
        ({"rmse": {"factors": {"low": 0, "high": 64}}}, "factors is 0; give a whole number"),
        ({"rmse": {"factors": {"low": 8.0, "high": 64.0}}}, "factors is 8.0; give a whole number"),
        ({"rmse": {"regularization": {"low": 0, "high": 1}}}, "regularization 0 becomes 0.0"),
        ({"rmse": {"regularization": {"low": 0.2, "high": 1.0}}}, "the default 0.12 is outside"),
        ({"rmse": {"epochs": {"low": 20, "high": 20}}}, "epochs has no range"),
        ({"rmse": {"regularization": {"low": 0.0, "high": 1.0, "log": True}}}, "has no range"),
        ({"rmse": {"batch_size": [64, 128]}}, "the default 512 is outside"),
        ({"rmse": {"weights": ["last", "worst"]}}, "weights is 'worst'"),
        ({"mae": {"factors": [50]}}, "nothing is judged by mae"),
        ({"rmse": {"factors": [50]}, "ndcg@10": {"factors": [50]}}, "factors is searched twice"),
    ],
)
def test_a_space_that_does_not_fit_is_seen(spaces: dict[str, Any], problem: str) -> None:
    assert problem in "; ".join(problems("mf", spaces))


# --------------------------------------------------------------------------------- search


@needs_optuna
@pytest.mark.parametrize(("name", "by"), [("bias", "rmse"), ("ease", "ndcg@10")])
def test_trials_begin_with_the_defaults_and_are_measured_on_validation_data(
    name: str, by: str, dataset: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found = search.search(name, dataset, "user-temporal", trials=5, seed=3)
    tried = trials(found, by)
    default = make(name).config
    assert len(tried) == 5 and tried[0]["settings"] == {
        key: default[key] for key in SPACES[name][by]
    }
    parts = train_validation_test(load_ratings(dataset), "user-temporal", seed=3)
    for one in tried:
        model = make(name, **one["settings"]).fit(parts[0])
        measured = {"rmse": rmse(parts[1]["rating"], model.predict(parts[1]))}
        measured |= evaluate(model, *parts[:2])
        assert one[by] == pytest.approx(measured[by], abs=1e-5)
    values = [one[by] for one in tried]
    assert len(set(values)) > 1
    best = min(values) if by == "rmse" else max(values)
    assert found["settings"] == tried[values.index(best)]["settings"]
    assert found["searches"][by]["best"] == best and found["searches"][by]["defaults"] == values[0]
    assert capfd.readouterr() == ("", "")


@needs_optuna
def test_lists_are_searched_with_what_was_found_for_ratings(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    measure = search._measure
    monkeypatch.setattr(
        search, "_measure", lambda model, by, *parts: seen.append((by, model.config)) or
        measure(model, by, *parts)
    )  # fmt: skip
    found = search.search("item-knn", dataset, "random", trials=3)
    assert [by for by, _ in seen] == ["rmse"] * 3 + ["ndcg@10"] * 3
    of_ratings = found["searches"]["rmse"]["trials"]
    best = min(of_ratings, key=lambda one: one["rmse"])["settings"]
    for _, config in seen[3:]:
        assert {name: config[name] for name in best} == best
    assert found["settings"].keys() == best.keys() | {"ranking_neighbors"}


@needs_optuna
def test_a_search_that_was_interrupted_ends_as_one_that_was_not(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[Bias] = []
    last: float = 12
    fit = Bias._fit

    def counted(self: Bias, *data: Any) -> None:
        fit(self, *data)
        if len(fitted) == last:
            raise KeyboardInterrupt
        fitted.append(self)

    monkeypatch.setattr(Bias, "_fit", counted)
    with pytest.raises(KeyboardInterrupt):
        search.search("bias", dataset, "random", trials=16)
    last = float("inf")
    resumed = search.search("bias", dataset, "random", trials=16)
    assert len(fitted) == 16  # those that were done are not done again
    monkeypatch.setattr(paths, "CACHE", tmp_path / "another")
    whole = search.search("bias", dataset, "random", trials=16)
    assert len(fitted) == 32 and trials(whole) == trials(resumed)
    assert {**whole, "searches": {}} == {**resumed, "searches": {}}
    fewer = search.search("bias", dataset, "random", trials=7)
    assert len(fitted) == 32 and trials(fewer) == trials(whole)[:7]
    assert trials(search.search("bias", dataset, "random", 7, seed=1))[1:] != trials(fewer)[1:]


@needs_optuna
def test_a_command_that_was_killed_goes_on(dataset: str, tmp_path: Path) -> None:
    given = ["mf", "--dataset", dataset, "--trials", "12", "--output", str(tmp_path / "found.json")]
    process = subprocess.Popen(
        [sys.executable, "-m", "dlcf", "tune", *given], stderr=subprocess.PIPE
    )
    deadline, done = time.monotonic() + 300, list[Path]()
    while len(done) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
        done = list((tmp_path / "cache" / "trials").glob("*/model.json"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "found.json").exists()
    before = {path: path.stat().st_mtime_ns for path in done}
    assert tune.main(given) == 0
    assert before == {path: path.stat().st_mtime_ns for path in done}
    (of_ratings,) = json.loads((tmp_path / "found.json").read_text())["tuned"].values()
    paths.CACHE = tmp_path / "another"  # a fixture sets it back
    assert trials(of_ratings["random"]["mf"]) == trials(search.search("mf", dataset, "random", 12))


@needs_optuna
def test_test_ratings_are_not_read(
    dataset: str, tmp_path: Path, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    _, validation, test = train_validation_test(toy_ratings, "random", seed=0)
    for part, same in ((test, True), (validation, False)):
        changed = toy_ratings.copy()
        changed.loc[part.index, "rating"] = 5.5 - changed.loc[part.index, "rating"]
        other = written(tmp_path / f"changed-{same}", changed, toy_movies)
        pair = [search.search("user-knn", name, "random", trials=4) for name in (dataset, other)]
        for by in BEST:
            assert (trials(pair[0], by) == trials(pair[1], by)) is same


@needs_optuna
def test_what_cannot_be_fitted_is_a_trial_that_failed(
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit, least = Bias._fit, 5.0

    def picky(self: Bias, *data: Any) -> None:
        if self.user_damping < least:
            raise ValueError("too little damping")
        fit(self, *data)

    monkeypatch.setattr(Bias, "_fit", picky)
    tried = trials(search.search("bias", dataset, "random", trials=6))
    failed = [one for one in tried if one["settings"]["user_damping"] < 5]
    assert 0 < len(failed) < 6 and all(one["failed"] == "too little damping" for one in failed)
    assert all(("rmse" in one) is (one not in failed) for one in tried)
    least = 1000.0
    monkeypatch.setattr(paths, "CACHE", tmp_path / "another")
    given = ["bias", "ease", "--workers", "1", "--dataset", dataset, "--trials", "2"]
    assert tune.main(given) == 1
    said = capsys.readouterr()
    assert said.err == "dlcf tune: error: no trial of bias could be fitted: too little damping\n"
    assert said.out.startswith("ease: ndcg@10 ")
    assert list(tuned_settings(dataset, "random")) == ["ease"]  # whatever became of the other


# --------------------------------------------------------------------------------- the record


@needs_optuna
def test_models_searched_in_two_processes_are_on_one_record(
    dataset: str, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["bias", "ease", "global-mean", "--workers", "2", "--dataset", dataset]
    assert tune.main([*given, "--trials", "3"]) == 0
    first, second, third = capfd.readouterr().out.splitlines()
    assert first.startswith("bias: rmse 0.") and second.startswith("ease: ndcg@10 0.")
    assert third == "global-mean: nothing to search"
    path = record_of(dataset)
    assert path == paths.TUNED / "toy.json"
    (of_ratings,) = json.loads(path.read_text())["tuned"].values()
    assert set(of_ratings["random"]) == {"bias", "ease", "global-mean"}
    for name, entry in of_ratings["random"].items():
        assert entry["settings"] == tuned_settings(dataset, "random")[name]
        assert entry["provenance"]["libraries"]["optuna"] and entry["seed"] == 0
        assert all(len(of["trials"]) == 3 for of in entry["searches"].values())
        assert set(entry["searches"]) == set(SPACES.get(name, {}))


def test_a_search_replaces_nothing_but_its_like(
    dataset: str, tmp_path: Path, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    path = record_of(dataset)
    namesake = written(tmp_path / "elsewhere" / "toy", toy_ratings.iloc[1:], toy_movies)
    assert record_of(namesake) == path
    places = [
        (dataset, "random", "bias"),
        (dataset, "random", "ease"),
        (dataset, "user-temporal", "bias"),
    ]
    places.append((namesake, "random", "bias"))
    for number, place in enumerate(places):
        put_on_record(path, *place, {"settings": {"regularization": number}})
    put_on_record(path, *places[0], {"settings": {"regularization": 9}})
    for number, (of, split, model) in enumerate(places):
        found = tuned_settings(of, split)[model]
        assert found == {"regularization": number or 9}


def test_the_record_is_locked_while_it_is_read_and_written(dataset: str) -> None:
    path = record_of(dataset)
    put_on_record(path, dataset, "random", "ease", FOUND)
    content = json.loads(path.read_text())
    with ThreadPoolExecutor() as pool:
        with FileLock(path.with_name(".toy.json.lock")):
            done = pool.submit(put_on_record, path, dataset, "random", "bias", FOUND)
            time.sleep(1)
            assert not done.done()
            content["tuned"]["other ratings"] = {}
            path.write_text(json.dumps(content))
        done.result(timeout=60)
    assert "other ratings" in json.loads(path.read_text())["tuned"]
    assert set(tuned_settings(dataset, "random")) == {"ease", "bias"}


def test_settings_reach_a_model_and_what_is_given_goes_first(dataset: str, tmp_path: Path) -> None:
    put_on_record(record_of(dataset), dataset, "random", "bias", FOUND)
    model = dlcf.make_tuned("bias", dataset)
    assert model.config == make("bias", user_damping=7.5).config
    given = dlcf.make_tuned("bias", Path(dataset), split="random", user_damping=1.0, seed=3)
    assert given.config == make("bias", user_damping=1.0).config
    assert make("bias").config["user_damping"] == 5.0
    path = tmp_path / "mine.json"
    put_on_record(path, dataset, "leave-last-out", "mf", {"settings": {"factors": 3}})
    model = make_tuned("mf", dataset, "leave-last-out", path, epochs=2, seed=4)
    assert model.config == make("mf", factors=3, epochs=2, seed=4).config


def test_what_was_not_tuned_says_what_to_run(
    dataset: str, toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame
) -> None:
    path = record_of(dataset)
    remedy = f"; run: dlcf tune {{}} --dataset {dataset} --split {{}} --trials 30"
    with pytest.raises(ValueError, match="unknown data set 'ml-2m'; use one of ml-latest-small"):
        make_tuned("bias", "ml-2m")
    problems = {("bias", "random"): f"nothing was tuned on {dataset}: {path} is missing"}

    def check() -> None:
        for (model, split), problem in problems.items():
            with pytest.raises(ValueError) as error:
                make_tuned(model, dataset, split)
            assert str(error.value) == problem + remedy.format(model, split)

    check()
    put_on_record(path, dataset, "random", "bias", FOUND)
    problems = {
        ("ease", "random"): f"{path} has nothing of ease, split random",
        ("bias", "user-temporal"): f"{path} has nothing of bias, split user-temporal",
    }
    check()
    changed = toy_ratings.assign(rating=toy_ratings["rating"].replace(5.0, 4.5))
    changed.to_csv(Path(dataset) / "ratings.csv", index=False)
    problems = {("bias", "random"): f"{path} was found on other ratings than {dataset} holds"}
    check()


# --------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bias", "--dataset", "ml-1m"], "--dataset is for a search; give --trials too"),
        (["bias", "--seed", "1"], "--seed is for a search; give --trials too"),
        (["bias", "--trials", "3", "--try", "{}"], "--try: not allowed with argument --trials"),
        (["bias", "--trials", "many"], "argument --trials: invalid int value: 'many'"),
        (["bias", "--trials", "3", "--split", "odd"], "invalid choice: 'odd'"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        tune.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_searched_is_one_line(
    dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    thesis = tmp_path / "thesis.json"
    thesis.write_text('{"years": 4}')
    monkeypatch.setitem(sys.modules, "optuna", None)
    given = ["tune", "bias", "ease", "--workers", "1", "--trials"]
    problems = {
        ("0", "--dataset", dataset): "trials is 0; give a whole number of at least 1",
        ("3", "--dataset", "ml-2m"): "unknown data set 'ml-2m'; use one of ",
        ("3", "--dataset", dataset, "--output", str(thesis)): f"{thesis} is no record of dlcf tune",
        ("3", "--dataset", dataset): 'searches with optuna: pip install "dlcf[tune]"',
    }
    for arguments, problem in problems.items():
        assert cli.main([*given, *arguments]) == 1
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1, err
        assert err.startswith("dlcf tune: error: ") and problem in err
    assert thesis.read_text() == '{"years": 4}' and not record_of(dataset).exists()


def test_train_takes_what_was_found(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fitted(*more: str) -> dict[str, Any]:
        output = tmp_path / "-".join(["model", *(paths.file_name(text) for text in more)])
        given = ["bias", "--dataset", dataset, "--output", str(output)]
        assert train.main([*given, *more]) == 0
        return load_model(output).config

    with pytest.raises(SystemExit):
        fitted("--tuned")
    assert "run: dlcf tune bias --dataset" in capsys.readouterr().err.splitlines()[-1]
    put_on_record(record_of(dataset), dataset, "random", "bias", FOUND)
    other = tmp_path / "other.json"
    put_on_record(other, dataset, "random", "bias", {"settings": {"movie_damping": 1.5}})
    default = make("bias").config
    assert fitted() == default
    assert fitted("--tuned") == {**default, "user_damping": 7.5}
    assert fitted("--tuned", "--set", "user_damping=2") == {**default, "user_damping": 2.0}
    assert fitted("--tuned", str(other)) == {**default, "movie_damping": 1.5}


def test_a_comparison_takes_what_was_found_and_says_so(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[compare.Job] = []
    monkeypatch.setattr(
        compare, "compare", lambda given, _: jobs.extend(given) or {"provenance": {"seeds": [0]}}
    )
    for name, settings in {
        "bias": {"user_damping": 7.5},
        "deepcf": {"epochs": 9, "batch_size": 9},
    }.items():
        put_on_record(record_of(dataset), dataset, "random", name, {"settings": settings})
    output = tmp_path / "c.json"
    given = [
        "--dataset",
        dataset,
        "--seeds",
        "0",
        "1",
        "--splits",
        "random",
        "--output",
        str(output),
    ]
    labels = ["bias", "popular", "deepcf", "deepcf, ranking output"]
    assert compare.main([*given, "--models", *labels]) == 0
    assert json.loads(output.read_text())["provenance"] == {"seeds": [0]}
    output.unlink()
    jobs.clear()
    assert compare.main([*given, "--tuned", "--models", *labels]) == 0
    taken = {
        "bias, random": {"user_damping": 7.5},
        "deepcf, random": {"epochs": 9, "batch_size": 9},
        # What makes the label what it is stays.
        "deepcf, ranking output, random": {"epochs": 4, "batch_size": 9, "ranking_weight": 2.0},
    }
    assert json.loads(output.read_text())["provenance"] == {"seeds": [0], "tuned": taken}
    assert len(jobs) == 8
    for job in jobs:
        assert job.settings == taken.get(f"{job.label}, random", {})
    assert "settings" not in compare.PLAN["bias"]
    output.unlink()
    with pytest.raises(
        ValueError, match="has nothing of models, split user-temporal; run: dlcf tune"
    ):
        compare.main([*given, "--tuned", "--splits", "user-temporal"])
