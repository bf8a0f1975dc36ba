"""What can have given the paper's six numbers: readings of its training and of its measuring.

The paper's network is trained under each of `READINGS`, on several splits and seeds; its
predictions are measured under every protocol of :mod:`dlcf.studies.replication`. The split of all
ratings by time is tried for the network as described alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dlcf.analysis.statistics import interval_over_seeds
from dlcf.models.network import WEIGHTS
from dlcf.paper.fits import Fit, Fitted, fit_all
from dlcf.runtime import paths
from dlcf.runtime.parallel import map_in_processes
from dlcf.studies.replication import PAPER, distance, effects, protocol_table
from dlcf.studies.results import load_results, options, provenance

RESULTS_NAME = "replication.json"
DESCRIBED, GLOBAL = "as described", "global-temporal"
READINGS: dict[str, dict[str, Any]] = {
    DESCRIBED: {},
    "test set validates": {"validate_on_test": True},
    "scale 1 to 5": {"settings": {"output_scale": (1.0, 5.0)}},
    "5 times the sigmoid": {"settings": {"output_scale": (0.0, 5.0)}},
    "patience of two epochs": {"settings": {"lr_patience": 1}},
    "no attention": {"settings": {"attention": "none"}},
}
NEAR = 0.02
LISTS = ["precision@10", "recall@10", "F@10"]
CHOSEN_BEFORE = ["reading", "split", "epoch"]  # what comes with the predictions
# What most would choose; the threshold is left open.
USUAL = {
    "reading": DESCRIBED,
    "rounding": "none",
    "users": "with a relevant movie",
    "precision divides by": "list length",
    "gain": "rating",
}


def measure(fitted: Fitted) -> pd.DataFrame:
    """The protocols of both epochs' predictions; ``epoch`` is the first column."""
    tables = []
    for which in WEIGHTS:
        table = protocol_table(fitted.test.assign(predicted=fitted.predicted[which]))
        table.insert(0, "epoch", which)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def summarise(by_fit: Mapping[tuple[str, str, int], pd.DataFrame]) -> dict[str, Any]:
    """Put the tables of :func:`measure`, by reading, split and seed, side by side.

    ``readings``: reading -> split -> epoch -> ``RMSE``, ``MAE`` as ``[mean, low, high]`` over the
    seeds, and ``one run``, the bounds within which a single further run of the same kind is
    expected (95%, Student's t). ``protocols``: how many there are and are near the paper, those
    ``nearest`` by mean distance over the seeds, and ``effects`` of each choice on the first of
    them. ``usual``: split -> epoch -> threshold -> metric as ``[mean, low, high]``, all else as in
    `USUAL`. ``cloud``: columns of mean precision and recall of the network as described.
    """
    seeds = sorted({seed for _, _, seed in by_fit})
    cells = list(dict.fromkeys(key[:2] for key in by_fit))
    tables = []
    for seed in seeds:
        parts = [by_fit[r, how, seed].assign(reading=r, split=how) for r, how in cells]
        tables.append(pd.concat(parts, ignore_index=True))
    names = CHOSEN_BEFORE + [n for n in tables[0] if n not in (*CHOSEN_BEFORE, *PAPER)]
    values = np.stack([table[list(PAPER)].to_numpy() for table in tables])
    mean = tables[0][names].assign(**dict(zip(PAPER, values.mean(axis=0).T, strict=True)))
    apart = np.stack([distance(table) for table in tables], axis=1)
    lists = np.stack([distance(t, {n: PAPER[n] for n in LISTS}) for t in tables], axis=1)
    order = np.argsort(apart.mean(axis=1), kind="stable")
    nearest = [
        {**_rounded(mean.iloc[row].to_dict()), "distance": interval_over_seeds(apart[row])}
        for row in order[:10]
    ]
    moves = effects(mean, mean.iloc[order[0]].to_dict())
    found = {
        "tried": len(mean),
        "of one set of predictions": len(mean) // len(mean[CHOSEN_BEFORE].drop_duplicates()),
        "within 0.02 of all six": int((apart.mean(axis=1) < NEAR).sum()),
        "within 0.02 of all six on some seed": int((apart < NEAR).any(axis=1).sum()),
        "within 0.02 of precision, recall and F": int((lists.mean(axis=1) < NEAR).sum()),
        "within 0.02 of precision, recall and F on some seed": int(
            (lists < NEAR).any(axis=1).sum()
        ),
        "nearest to precision, recall and F": round(float(lists.mean(axis=1).min()), 5),
        "nearest to precision, recall and F on some seed": round(float(lists.min()), 5),
        "nearest": nearest,
        "effects": [_rounded(row) for row in moves.to_dict("records")],
    }
    usual: dict[str, Any] = {}
    for row in np.flatnonzero((mean[list(USUAL)] == pd.Series(USUAL)).all(axis=1)):
        how, which, threshold = map(str, mean.loc[row, ["split", "epoch", "threshold"]])
        intervals = map(interval_over_seeds, values[:, row].T.tolist())
        by_threshold = usual.setdefault(how, {}).setdefault(which, {})
        by_threshold[threshold] = dict(zip(PAPER, intervals, strict=True))
    errors = _errors(tables, cells)
    return {"readings": errors, "protocols": found, "usual": usual, "cloud": _cloud(mean)}


def load_replication(path: Path | None = None) -> dict[str, Any]:
    """The committed study, or another that :func:`main` wrote."""
    return load_results(path or paths.RESULTS / RESULTS_NAME, "replication")


def error_table(replication: Mapping[str, Any], split: str, metric: str = "RMSE") -> pd.DataFrame:
    """Errors by reading and epoch: ``mean``, ``low``, ``high``, and of one run ``least``, ``most``.

    Index ``reading, epoch``; `metric` is ``"RMSE"`` or ``"MAE"``.
    """
    rows = {
        f"{reading}, {which} epoch": (*errors[metric], *errors["one run"][metric])
        for reading, splits in replication["readings"].items()
        for which, errors in splits.get(split, {}).items()
    }
    columns = ["mean", "low", "high", "least", "most"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = options("replication", __doc__, RESULTS_NAME, arguments)
    keys = [
        (reading, how, seed)
        for reading in READINGS
        for how in dict.fromkeys(given.splits + [GLOBAL] * (reading == DESCRIBED))
        for seed in given.seeds
    ]
    fits = [Fit(given.dataset, how, seed, **READINGS[reading]) for reading, how, seed in keys]
    kept = fit_all(fits, given.workers)
    tables = map_in_processes(measure, kept, given.workers, "protocols")
    about = provenance("replication", given.dataset, given.seeds)
    summary = summarise(dict(zip(keys, tables, strict=True)))
    paths.write_json(given.output, {"provenance": about, **summary})
    print(f"{len(fits)} fits, {summary['protocols']['tried']} protocols: {given.output}")
    return 0


def _errors(tables: Sequence[pd.DataFrame], cells: Sequence[tuple[str, str]]) -> dict[str, Any]:
    found: dict[str, Any] = {reading: {} for reading, _ in cells}
    unrounded = [table[table["rounding"] == "none"] for table in tables]
    by_key = [t.groupby(CHOSEN_BEFORE)[["RMSE", "MAE"]].first().to_dict() for t in unrounded]
    for reading, how in cells:
        by_epoch = found[reading][how] = {}
        for which in WEIGHTS:
            errors: dict[str, Any] = {}
            one_run = {}
            for metric in ("RMSE", "MAE"):
                of_seeds = [table[metric][reading, how, which] for table in by_key]
                mean, low, high = errors[metric] = interval_over_seeds(of_seeds)
                one_run[metric] = [None, None]
                if mean is not None and low is not None and high is not None:
                    half = (high - low) / 2 * (len(of_seeds) + 1) ** 0.5
                    one_run[metric] = [round(mean - half, 5), round(mean + half, 5)]
            by_epoch[which] = {**errors, "one run": one_run}
    return found


def _cloud(mean: pd.DataFrame) -> dict[str, list[Any]]:
    chosen = mean[(mean["reading"] == DESCRIBED) & (mean["gain"] == "rating")]
    wanted = chosen[["split", "threshold", "users", "precision@10", "recall@10"]]
    return {str(k): v for k, v in wanted.round(4).drop_duplicates().to_dict("list").items()}


def _rounded(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
