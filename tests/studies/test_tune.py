"""Trials of the tuning: what is measured of a model, and on what."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock

from dlcf.evaluation import evaluate
from dlcf.explain.faithfulness import measure_faithfulness
from dlcf.metrics import rmse
from dlcf.registry import make
from dlcf.splits import train_validation_test
from dlcf.studies import tune

SMALL = {
    "embedding_size": 4, "hidden": (8,), "dropout": (0.0,), "epochs": 1, "faithful_weight": 0.5,
}  # fmt: skip


def test_a_trial_is_measured_on_the_validation_part(
    toy_ratings: pd.DataFrame, toy_movies: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "load_ratings", lambda _: toy_ratings)
    monkeypatch.setattr(tune, "load_movies", lambda _: toy_movies)
    found = tune.run_trial("deepcf", SMALL)
    assert set(found) == set(tune.SPLITS)
    for how in tune.SPLITS:
        train, validation, _ = train_validation_test(toy_ratings, how, seed=1000)
        model = make("deepcf", **SMALL).fit(train, movies=toy_movies)
        error = rmse(validation["rating"].to_numpy(), model.predict(validation))
        assert found[how]["rmse"] == pytest.approx(error, abs=1e-5)
        ndcg = evaluate(model, train, validation)["ndcg@10"]
        assert found[how]["ndcg@10"] == pytest.approx(ndcg, abs=1e-5)
        agreement = measure_faithfulness(model, validation).mean
        assert found[how]["faithfulness"] == pytest.approx(agreement, abs=1e-5)
    # A model without attention weights has none that could be faithful.
    assert set(tune.run_trial("bias", {})["random"]) == {"rmse", "ndcg@10"}


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tuning.json"
    monkeypatch.setattr(tune, "RECORD", path)
    monkeypatch.setattr(tune, "map_in_processes", lambda _, configs, *__: [{} for _ in configs])
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "invalid choice: 'nope'"),
        (["mf", "nope", "--try", "{}"], "invalid choice: 'nope'"),
        (["mf"], "no trial of mf is on record"),
        (["mf", "--try", '{"foo": 1}'], "mf has no hyper-parameter 'foo'"),
        (["mf", "bias", "--try", '{"factors": 3}'], "bias has no hyper-parameter 'factors'"),
        (["mf", "--try", '{"factors": 0}'], "factors is 0; give a whole number of at least 1"),
        (["mf", "--try", "[1]"], "must be a mapping"),
    ],
)
def test_what_cannot_be_tried_leaves_the_record_alone(
    arguments: list[str], message: str, record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        tune.main(arguments)
    assert end.value.code == 2 and not record.exists()
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_trials_are_put_on_record_and_run_again(record: Path) -> None:
    assert tune.main(["mf", "--try", '{"factors": 3}', "--try", '{"factors": 4}']) == 0
    assert tune.main(["mf"]) == 0
    trials = json.loads(record.read_text())["mf"]["trials"]
    assert [trial["config"]["factors"] for trial in trials] == [3, 4]


def test_what_others_put_on_record_meanwhile_stays(
    record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(_: Any, configs: list[Any], *__: Any) -> list[Any]:
        if {"factors": 3} in configs:  # other runs begin and end while these trials run
            tune.main(["svdpp", "--try", '{"factors": 5}'])
            tune.main(["mf", "--try", '{"factors": 4}'])
        return [{} for _ in configs]

    monkeypatch.setattr(tune, "map_in_processes", measure)
    assert tune.main(["mf", "--try", '{"factors": 3}']) == 0
    found = json.loads(record.read_text())
    factors = {m: [t["config"]["factors"] for t in found[m]["trials"]] for m in found}
    assert factors == {"svdpp": [5], "mf": [4, 3]}


def test_the_record_is_locked_while_it_is_read_and_written(record: Path) -> None:
    with ThreadPoolExecutor() as pool:
        with FileLock(record.with_name(".tuning.json.lock")):
            done = pool.submit(tune.main, ["mf", "--try", '{"factors": 3}'])
            time.sleep(1)
            assert not done.done() and not record.exists()
            record.write_text('{"svdpp": {"trials": []}}')
        assert done.result(timeout=60) == 0
    assert set(json.loads(record.read_text())) == {"svdpp", "mf"}
