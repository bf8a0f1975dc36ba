"""What each decision of the paper's design is worth: the network with one of them changed.

Each of `VARIANTS` is trained on several splits and seeds. Of every one the test RMSE after the last
and at the best validation epoch is compared with that of the network as described, by paired tests
over users; and so is its over-fitting, the RMSE on ratings held out of training less that on the
ratings trained on (both without dropout, after the last epoch), by intervals over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dlcf.analysis.statistics import compare_tables, holm, interval_over_seeds
from dlcf.models.network import WEIGHTS
from dlcf.paper.fits import Fit, Fitted, fit_all
from dlcf.runtime import paths
from dlcf.studies.results import INTERVAL, load_results, options, provenance

RESULTS_NAME = "components.json"
BASE = "as described"
# Component -> variant -> settings; the shallower towers keep the layers next to the output.
COMPONENTS: dict[str, dict[str, dict[str, Any]]] = {
    "dropout": {"none": {"dropout": (0.0,) * 4}, "0.2 everywhere": {"dropout": (0.2,) * 4}},
    "depth": {
        "1 layer": {"hidden": (64,), "dropout": (0.1,)},
        "2 layers": {"hidden": (128, 64), "dropout": (0.2, 0.1)},
        "3 layers": {"hidden": (256, 128, 64), "dropout": (0.2, 0.2, 0.1)},
    },
    "embedding": {f"{size} dimensions": {"embedding_size": size} for size in (8, 32, 64)},
    "batch norm": {"none": {"batch_norm": False}},
    "attention": {
        "none": {"attention": "none"},
        "two gates": {"attention": "gates"},
        "per dimension": {"attention": "per dimension"},
    },
    "learning rate": {"constant": {"lr_patience": 10}},
    "width": {"half": {"hidden": (256, 128, 64, 32)}, "double": {"hidden": (1024, 512, 256, 128)}},
    "sigmoid": {"1 to 5": {"output_scale": (1.0, 5.0)}, "0 to 5": {"output_scale": (0.0, 5.0)}},
    "weight decay": {"1e-5": {"weight_decay": 1e-5}, "1e-4": {"weight_decay": 1e-4}},
}
VARIANTS: dict[str, dict[str, Any]] = {BASE: {}} | {
    f"{component}: {name}": settings
    for component, variants in COMPONENTS.items()
    for name, settings in variants.items()
}


def measure(fitted: Fitted) -> dict[str, Any]:
    """``gap``, ``train`` and ``held out`` after the last epoch; by epoch a table for the tests."""
    train = fitted.train_error["last"] ** 0.5
    held_out = fitted.history.validation_loss[-1] ** 0.5
    found: dict[str, Any] = {"gap": held_out - train, "train": train, "held out": held_out}
    for which in WEIGHTS:
        error = fitted.predicted[which] - fitted.test["rating"].to_numpy(np.float64)
        table = pd.DataFrame({"squared": error**2, "ratings": 1.0})
        found[which] = table.groupby(fitted.test["userId"].to_numpy()).sum()
    return found


def summarise(by_variant: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Variant -> what :func:`measure` found over the seeds, beside the network as described.

    ``last`` and ``best`` are RMSE, each ``[mean, low, high]`` over the seeds as the rest; with
    ``change in``, what the variant adds (paired over seeds); ``tests`` hold the paired test over
    users, p-values by Holm's method over all variants and both epochs.
    """
    base = by_variant[BASE]
    summary: dict[str, Any] = {}
    tests = []
    for variant, seeds in by_variant.items():
        found = summary[variant] = {}
        for name in ("last", "best", "gap", "train", "held out"):
            own, other = ([_value(one, name) for one in of] for of in (seeds, base))
            found[name] = interval_over_seeds(own)
            if variant != BASE:
                change = np.subtract(own, other).tolist()
                found[f"change in {name}"] = interval_over_seeds(change)
        for which in WEIGHTS if variant != BASE else ():
            tables = [[one[which] for one in of] for of in (seeds, base)]
            tests.append((variant, which, compare_tables(tables[0], tables[1], "rmse")))
    corrected = holm([test.p_value for *_, test in tests])
    for (variant, which, test), p_value in zip(tests, corrected, strict=True):
        kept = {name: round(getattr(test, name), 5) for name in ("difference", "low", "high")}
        found = summary[variant].setdefault("tests", {})
        found[which] = {**kept, "p_holm": round(float(p_value), 5)}
    return summary


def load_components(path: Path | None = None) -> dict[str, Any]:
    """The committed study, or another that :func:`main` wrote."""
    return load_results(path or paths.RESULTS / RESULTS_NAME, "components")


def component_table(components: Mapping[str, Any], split: str, of: str) -> pd.DataFrame:
    """RMSE after the ``"last"`` or at the ``"best"`` epoch, or the ``"gap"``, by variant.

    ``value``, its mean over the seeds; ``mean``, ``low``, ``high`` of its change against the
    network as described; ``p_holm`` of the paired test, which the gap does not have.
    """
    rows = {}
    for variant, found in components["splits"][split].items():
        change = found.get(f"change in {of}", [0.0, 0.0, 0.0])
        p_value = found.get("tests", {}).get(of, {}).get("p_holm")
        rows[variant] = [found[of][0], *change, p_value]
    columns = ["value", *INTERVAL, "p_holm"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).astype(float)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = options("components", __doc__, RESULTS_NAME, arguments, VARIANTS)
    labels = list(dict.fromkeys([BASE, *given.models]))
    keys = [(how, v, seed) for how in given.splits for v in labels for seed in given.seeds]
    fits = [Fit(given.dataset, how, seed, VARIANTS[variant]) for how, variant, seed in keys]
    measured = dict(zip(keys, map(measure, fit_all(fits, given.workers)), strict=True))
    by_split = {
        how: summarise({v: [measured[how, v, seed] for seed in given.seeds] for v in labels})
        for how in given.splits
    }
    about = provenance("components", given.dataset, given.seeds)
    paths.write_json(given.output, {"provenance": about, "splits": by_split})
    print(f"{len(fits)} fits: {given.output}")
    return 0


def _value(measured: Mapping[str, Any], name: str) -> float:
    found = measured[name]
    if isinstance(found, pd.DataFrame):
        return float((found["squared"].sum() / found["ratings"].sum()) ** 0.5)
    return float(found)
