"""The study of readings: intervals, protocols over seeds, and a file that says all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dlcf.analysis.statistics import mean_interval
from dlcf.metrics import rmse
from dlcf.paper import components, replication
from dlcf.paper.fits import Fit, Fitted, fit_all
from dlcf.paper.replication import USUAL, error_table, load_replication, measure, summarise
from dlcf.studies.replication import CHOICES, PAPER, distance, protocol_table

SMALL = {"epochs": 2, "embedding_size": 4, "hidden": (6,), "dropout": (0.1,)}
N_PROTOCOLS = int(np.prod([len(values) for values in CHOICES.values()]))
READINGS: dict[str, dict[str, Any]] = {
    "as described": {"settings": SMALL},
    "no attention": {"settings": {**SMALL, "attention": "none"}},
}


def evaluate_lists(fitted: Fitted, which: str) -> pd.Series:
    table = protocol_table(fitted.test.assign(predicted=fitted.predicted[which]))
    usual = {**{n: v for n, v in USUAL.items() if n != "reading"}, "threshold": 4.0}
    return table[(table[list(usual)] == pd.Series(usual)).all(axis=1)].iloc[0]


@pytest.fixture
def found(
    dataset: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    monkeypatch.setattr(replication, "READINGS", READINGS)
    output = tmp_path / "replication.json"
    part = ["--dataset", dataset, "--splits", "random", "--seeds", "0", "1", "2"]
    assert replication.main([*part, "--workers", "1", "--output", str(output)]) == 0
    found = load_replication(output)
    assert found["provenance"]["study"] == "replication"
    return found


def test_errors_hold_intervals_of_the_mean_and_of_one_run(
    found: dict[str, Any], dataset: str
) -> None:
    fits = [Fit(dataset, "random", seed, SMALL) for seed in (0, 1, 2)]
    kept = fit_all(fits, workers=1)
    errors = [rmse(one.test["rating"], one.predicted["best"]) for one in kept]
    expected = mean_interval(errors)
    best = found["readings"]["as described"]["random"]["best"]
    assert best["RMSE"] == pytest.approx([expected.mean, expected.low, expected.high], abs=1e-5)
    half = stats.t.ppf(0.975, 2) * np.std(errors, ddof=1) * (1 + 1 / 3) ** 0.5
    assert best["one run"]["RMSE"] == pytest.approx(
        [expected.mean - half, expected.mean + half], abs=3e-5
    )
    usual = found["usual"]["random"]["best"]
    assert list(usual) == ["3.0", "3.5", "4.0", "4.5"]
    assert usual["3.5"]["RMSE"] == best["RMSE"]
    lists = [evaluate_lists(one, "best") for one in kept]
    expected = mean_interval([each["precision@10"] for each in lists])
    assert usual["4.0"]["precision@10"][0] == pytest.approx(expected.mean, abs=1e-5)
    table = error_table(found, "random")
    assert table.loc["as described, best epoch", "mean"] == best["RMSE"][0]
    assert (table["least"] < table["low"]).all() and (table["high"] < table["most"]).all()


def test_the_split_by_time_of_all_is_tried_once(found: dict[str, Any]) -> None:
    assert set(found["readings"]["as described"]) == {"random", "global-temporal"}
    assert set(found["readings"]["no attention"]) == {"random"}
    protocols = found["protocols"]
    assert protocols["of one set of predictions"] == N_PROTOCOLS
    assert protocols["tried"] == 3 * 2 * N_PROTOCOLS
    distances = [row["distance"][0] for row in protocols["nearest"]]
    assert distances == sorted(distances) and len(distances) == 10
    assert {row["choice"] for row in protocols["effects"]} <= {
        "reading",
        "split",
        "epoch",
        *CHOICES,
    }
    assert len(set(map(len, found["cloud"].values()))) == 1


def test_counts_and_nearest_are_over_the_seeds() -> None:
    """Two readings with two protocols each; the paper's own numbers, with 0.01 or 0.03 added."""
    rows = [{"epoch": "last", "rounding": r, "gain": "rating", "users": "all", "threshold": 3.0,
             "precision divides by": "k", **PAPER} for r in ("none", "half stars")]  # fmt: skip
    base = pd.DataFrame(rows)
    shifted = {
        ("as described", "random", 0): (0.01, 0.03),
        ("as described", "random", 1): (0.03, 0.03),
        ("other", "random", 0): (0.00, 0.01),
        ("other", "random", 1): (0.01, 0.04),
    }
    tables = {}
    for key, shifts in shifted.items():
        tables[key] = base.assign(RMSE=PAPER["RMSE"] + np.array(shifts))
        assert distance(tables[key]).tolist() == pytest.approx(shifts)
        tables[key] = pd.concat([tables[key], tables[key].assign(epoch="best", MAE=2.0)])
    found = summarise(tables)["protocols"]
    assert found["tried"] == 8
    # Mean distances: 0.02 (not below it), 0.03; 0.005, 0.025.
    assert found["within 0.02 of all six"] == 1
    assert found["within 0.02 of all six on some seed"] == 3
    assert found["within 0.02 of precision, recall and F"] == 8
    nearest = found["nearest"][0]
    assert (nearest["reading"], nearest["rounding"], nearest["distance"][0]) == (
        "other",
        "none",
        0.005,
    )
    assert nearest["RMSE"] == pytest.approx(PAPER["RMSE"] + 0.005, abs=1e-5)
    of_reading = [row for row in found["effects"] if row["choice"] == "reading"]
    assert [row["RMSE"] for row in of_reading] == pytest.approx([0.015])


def test_a_reading_of_one_fit_has_both_epochs(dataset: str, cache: Path) -> None:
    table = measure(fit_all([Fit(dataset, "random", 0, SMALL)], workers=1)[0])
    assert table["epoch"].value_counts().to_dict() == {"last": N_PROTOCOLS, "best": N_PROTOCOLS}


@pytest.mark.parametrize("study", [replication, components])
def test_a_part_needs_a_file_of_its_own(study: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        study.main(["--seeds", "0"])
    assert end.value.code == 2 and "give another --output" in capsys.readouterr().err


def test_a_missing_study_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make replication"):
        load_replication(tmp_path / "none.json")
