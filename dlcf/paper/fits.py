"""Fits of the paper's network, changed or not, kept as predictions for whatever is asked later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from dlcf.data import load_ratings
from dlcf.models.base import Floats
from dlcf.models.network import WEIGHTS
from dlcf.ratings import fingerprint
from dlcf.runtime import paths
from dlcf.runtime.parallel import map_in_processes
from dlcf.splits import split
from dlcf.studies.cache import code_version, digest_of, kept
from dlcf.training import History
from dlcf.variants.components import ComponentDeepCF


@dataclass(frozen=True)
class Fit:
    """The paper's network with `settings` of `ComponentDeepCF`, on one split and seed.

    With `validate_on_test` the test set takes the place of the part of train that is held out.
    """

    dataset: str
    split: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    validate_on_test: bool = False


@dataclass(frozen=True)
class Fitted:
    """What is kept of a fit: predictions of the test set by weights, and how training went.

    `test` has the columns `userId`, `movieId`, `rating`. `train_error` is the MSE of the ratings
    trained on, without dropout.
    """

    test: pd.DataFrame
    predicted: dict[str, Floats]
    history: History
    train_error: dict[str, float]


def fit_all(fits: Sequence[Fit], workers: int | None = None) -> list[Fitted]:
    """Of each fit what is kept, from the cache where it was done before; first come, first done."""
    return map_in_processes(fitted, fits, workers, "fits")


def fitted(fit: Fit) -> Fitted:
    """Fit, or read from the cache."""
    torch.set_num_threads(1)
    ratings = load_ratings(fit.dataset)
    train, test = split(ratings, fit.split, seed=fit.seed)
    model = ComponentDeepCF(**{"seed": fit.seed, **fit.settings})
    description = {
        "config": model.config,
        "fit": [fit.split, fit.seed, fit.validate_on_test],
        "data": fingerprint(ratings),
        "code": code_version(ComponentDeepCF, "splits"),
        "torch": torch.__version__,
    }
    folder = paths.CACHE / "paper" / f"fit-{digest_of(description)[:20]}"

    def compute() -> tuple[dict[str, Floats], dict[str, Any]]:
        model.fit(train, test if fit.validate_on_test else None)
        about = {"history": model.history.as_dict(), "train_error": model.train_error}
        return {w: model.use_weights(w).predict(test) for w in WEIGHTS}, about

    arrays, about = kept(folder, compute)
    predicted = {which: arrays[which].astype(np.float64) for which in WEIGHTS}
    columns = test[["userId", "movieId", "rating"]]
    return Fitted(columns, predicted, History(**about["history"]), about["train_error"])
