"""Fits are done once, and every reading and variant is another network or another training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcf.data import load_ratings
from dlcf.metrics import rmse
from dlcf.paper.components import VARIANTS
from dlcf.paper.fits import Fit, fit_all
from dlcf.paper.replication import DESCRIBED, READINGS
from dlcf.splits import split
from dlcf.variants.components import ComponentDeepCF

SMALL: dict[str, Any] = {"epochs": 8, "embedding_size": 6, "learning_rate": 0.02}


def small(dataset: str, settings: Any = None, **other: Any) -> Fit:
    return Fit(dataset, "random", 0, {**SMALL, **(settings or {})}, **other)


def test_a_fit_is_done_once(dataset: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fit_all([small(dataset)], workers=1)[0]
    train, test = split(load_ratings(dataset), "random", seed=0)
    model = ComponentDeepCF(**SMALL).fit(train)
    assert np.array_equal(first.predicted["last"], model.predict(test))
    assert first.test["rating"].tolist() == test["rating"].tolist()
    assert len(first.history.train_loss) == 8 and first.train_error.keys() == {"last", "best"}

    monkeypatch.setattr(ComponentDeepCF, "fit", None)  # a second fit would fail
    again = fit_all([small(dataset)], workers=1)[0]
    assert again.history == first.history and again.train_error == first.train_error
    for which, predicted in first.predicted.items():
        assert np.array_equal(again.predicted[which], predicted)
    with pytest.raises(TypeError):
        fit_all([small(dataset, {"epochs": 2})], workers=1)
    with pytest.raises(TypeError):
        fit_all([small(dataset, validate_on_test=True)], workers=1)


def test_every_reading_has_an_effect(dataset: str, cache: Path) -> None:
    fits = {}
    for name, reading in READINGS.items():
        other = {key: value for key, value in reading.items() if key != "settings"}
        fits[name] = small(dataset, {**reading.get("settings", {}), "epochs": 14}, **other)
    found = dict(zip(fits, fit_all(list(fits.values()), workers=1), strict=True))
    base = found.pop(DESCRIBED)
    assert len(found) == 5
    for name, other in found.items():
        assert np.abs(other.predicted["last"] - base.predicted["last"]).max() > 1e-3, name


def test_the_test_set_can_validate(dataset: str, cache: Path) -> None:
    found = fit_all([small(dataset, validate_on_test=True)], workers=1)[0]
    for which, loss in (("last", found.history.validation_loss[-1]),
                        ("best", min(found.history.validation_loss))):  # fmt: skip
        error = rmse(found.test["rating"], found.predicted[which])
        assert error**2 == pytest.approx(loss, rel=1e-4)


def test_every_variant_is_a_model_of_its_own() -> None:
    configs = [ComponentDeepCF(**settings).config for settings in VARIANTS.values()]
    assert len({str(config) for config in configs}) == len(configs)
