"""The study of components: gaps, paired changes, tests, and parts of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlcf.analysis.statistics import mean_interval
from dlcf.metrics import rmse
from dlcf.paper import components
from dlcf.paper.components import BASE, component_table, load_components, summarise
from dlcf.paper.fits import Fit, fit_all

SMALL = {"epochs": 2, "embedding_size": 4, "hidden": (6,), "dropout": (0.1,)}
VARIANTS = {BASE: SMALL, "dropout: none": {**SMALL, "dropout": (0.0,)}}


def test_variants_are_compared_with_the_network_as_described(
    dataset: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "VARIANTS", VARIANTS)
    output = tmp_path / "components.json"
    part = ["--dataset", dataset, "--splits", "random", "--seeds", "0", "1", "2"]
    chosen = ["--models", "dropout: none", "--workers", "1", "--output", str(output)]
    for _ in range(2):  # its own file is replaced
        assert components.main([*part, *chosen]) == 0
    found = load_components(output)["splits"]["random"]

    def kept(variant: str) -> list[float]:
        fits = [Fit(dataset, "random", seed, VARIANTS[variant]) for seed in (0, 1, 2)]
        return [rmse(f.test["rating"], f.predicted["best"]) for f in fit_all(fits, workers=1)]

    change = mean_interval(np.subtract(kept("dropout: none"), kept(BASE)))
    other = found["dropout: none"]
    assert other["change in best"] == pytest.approx(
        [change.mean, change.low, change.high], abs=2e-5
    )
    assert other["gap"][0] == pytest.approx(other["held out"][0] - other["train"][0], abs=2e-5)
    assert 0 < other["tests"]["best"]["p_holm"] <= 1 and "tests" not in found[BASE]
    assert other["tests"]["best"]["difference"] == pytest.approx(change.mean, abs=0.002)
    table = component_table(load_components(output), "random", "best")
    assert table.index.tolist() == [BASE, "dropout: none"]
    assert table.loc[BASE, ["mean", "low", "high"]].tolist() == [0.0, 0.0, 0.0]
    assert table.loc["dropout: none", ["mean", "low", "high"]].tolist() == other["change in best"]
    assert table.loc["dropout: none", "p_holm"] == other["tests"]["best"]["p_holm"]
    gap = component_table(load_components(output), "random", "gap")
    assert gap["value"].tolist() == [found[variant]["gap"][0] for variant in table.index]
    assert gap.loc["dropout: none", "high"] == other["change in gap"][2]
    assert gap["p_holm"].isna().all()


def test_a_network_beside_itself_has_no_difference(dataset: str, cache: Path) -> None:
    measured = [components.measure(f) for f in fit_all([Fit(dataset, "random", 0, SMALL)], 1)] * 2
    found = summarise({BASE: measured, "the same": measured})["the same"]
    assert found["change in last"] == [0.0, 0.0, 0.0]
    assert found["tests"]["last"]["p_holm"] == 1.0
