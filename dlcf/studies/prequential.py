"""Ratings in the order in which they were given: how well each is predicted from those before it.

All models are trained on the earlier ratings, and again every 90 days on all that came before
(:func:`dlcf.evaluation.prequential`). *As trained*, they stay as they are in between: the split of
all ratings by time, with a cut that moves on. *Updated*, a model that can observes the ratings of
every ten minutes before it predicts the next; the others stay as trained there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dlcf.analysis.statistics import compare_all, holm
from dlcf.data import load_movies, load_ratings
from dlcf.evaluation import prequential
from dlcf.ratings import fingerprint
from dlcf.registry import make
from dlcf.runtime import paths
from dlcf.runtime.parallel import map_in_processes
from dlcf.splits import split
from dlcf.studies.cache import code_version, digest_of, kept
from dlcf.studies.compare import PERMUTATIONS, with_bound
from dlcf.studies.results import interval_frame, load_results, options, provenance

RESULTS_NAME = "prequential.json"
OURS = "deepcf-plus"
EVERY, STEP = "90D", "10min"
# The slowest first; of the paper's network the best epoch.
MODELS: dict[str, dict[str, Any]] = {
    "fm-side": {},
    "fm-implicit": {},
    "fm": {},
    "deepcf": {"weights": "best"},
    "svdpp": {},
    "mf": {},
}
# Those that can observe; no lists are asked for, so that nothing has to learn to rank.
UPDATED: dict[str, dict[str, Any]] = {
    OURS: {"ranking": "item-item"},
    "user-knn": {},
    "item-knn": {},
    "bias": {},
}
MODES = ("as trained", "updated")
# By how many ratings of the user came before the rating.
KNOWN = {"0": (0, 0), "1-5": (1, 5), "6-20": (6, 20), "21+": (21, 10**9)}


def run_cell(dataset: str, cell: tuple[str, str]) -> pd.DataFrame:
    """The predictions of a model in a mode, from the cache where they are there.

    `userId`, `rating`, `predicted` and `known` of the later ratings, in the order of time.
    """
    name, mode = cell
    settings = {**MODELS, **UPDATED}[name] | {"seed": 0}
    ratings, movies = load_ratings(dataset), load_movies(dataset)
    model = make(name, **settings)

    def computed() -> tuple[dict[str, Any], dict[str, Any]]:
        torch.set_num_threads(1)
        past, future = split(ratings, "global-temporal")
        step = STEP if mode == "updated" else EVERY
        found = prequential(model, past, future, EVERY, step, movies)
        names = ("userId", "rating", "predicted", "known")
        return {name: found[name].to_numpy() for name in names}, {}

    made_of = {
        "cell": [name, mode, settings, EVERY, STEP],
        "code": code_version(type(model), "studies.prequential", "evaluation", "splits"),
        "data": [fingerprint(ratings), fingerprint(movies)],
    }
    folder = paths.CACHE / "prequential" / f"{name}-{digest_of(made_of)[:20]}"
    return pd.DataFrame(kept(folder, computed)[0])


def tables(predictions: pd.DataFrame, known: pd.Series) -> pd.DataFrame:
    """By user, ``squared`` and ``ratings`` of each group, for :func:`compare_all`.

    `known` is how many ratings of its user came before each rating. Groups are ``all``, those of
    `KNOWN`, and ``new users`` and ``known users``: whether any came before the model was trained or
    told.
    """
    error = (predictions["predicted"] - predictions["rating"]) ** 2
    groups = {"all": known >= 0, "new users": predictions["known"] == 0}
    groups["known users"] = ~groups["new users"]
    groups |= {group: known.between(*bounds) for group, bounds in KNOWN.items()}
    columns = {f"squared, {group}": error * rows for group, rows in groups.items()}
    columns |= {f"ratings, {group}": rows.astype(float) for group, rows in groups.items()}
    return pd.DataFrame(columns).groupby(predictions["userId"].rename("userId")).sum()


def summarise(by_model: Mapping[str, pd.DataFrame], groups: Sequence[str]) -> dict[str, Any]:
    """RMSE by group with 95% intervals over users, and our model's difference to each other.

    ``models``: model -> group -> ``[mean, low, high]``; ``pairs``: group -> other model ->
    ``[difference, low, high, p]``, negative where ours is better, p corrected by Holm's method.
    """
    models: dict[str, dict[str, Any]] = {name: {} for name in by_model}
    pairs: dict[str, dict[str, Any]] = {}
    ordered = {OURS: [by_model[OURS]]} | {name: [table] for name, table in by_model.items()}
    for group in groups:
        intervals, compared = compare_all(ordered, f"rmse, {group}", permutations=PERMUTATIONS)
        for name, of in intervals.items():
            models[name][group] = [round(v, 5) for v in (of.mean, of.low, of.high)]
        ours = {other: test for (first, other), test in compared.items() if first == OURS}
        corrected = holm([test.p_value for test in ours.values()])
        pairs[group] = {
            other: [round(v, 5) for v in (test.difference, test.low, test.high, float(p))]
            for (other, test), p in zip(ours.items(), corrected, strict=True)
        }
    return {"models": models, "pairs": pairs}


def load_prequential(path: Path | None = None) -> dict[str, Any]:
    """The committed study, or another that :func:`main` wrote."""
    return load_results(path or paths.RESULTS / RESULTS_NAME, "prequential")


def group_table(study: Mapping[str, Any], mode: str) -> pd.DataFrame:
    """RMSE of all models in a mode, best first: models x groups."""
    rows = {m: {g: v[0] for g, v in of.items()} for m, of in study[mode]["models"].items()}
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("all", kind="stable")


def difference_table(study: Mapping[str, Any], mode: str, group: str) -> pd.DataFrame:
    """Our RMSE minus that of each model: ``mean``, ``low``, ``high``, ``p_holm``; `with_bound`."""
    rows = study[mode]["pairs"][group]
    table = interval_frame({model: row[:3] for model, row in rows.items()})
    p_holm = pd.Series({model: row[3] for model, row in rows.items()})
    # The smallest that Holm's method makes of as many p-values.
    at_floor = p_holm < 1.5 * len(rows) / (1 + PERMUTATIONS)
    return with_bound(table.assign(p_holm=p_holm, at_floor=at_floor))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = options("prequential", __doc__, RESULTS_NAME, arguments, reported=())
    cells = [(name, "updated") for name in UPDATED]
    cells += [(name, "as trained") for name in [*MODELS, *UPDATED]]
    found = map_in_processes(partial(run_cell, given.dataset), cells, given.workers, "models")
    by_cell = dict(zip(cells, found, strict=True))
    known = by_cell[OURS, "updated"]["known"]
    content: dict[str, Any] = {"provenance": provenance("prequential", given.dataset, [0])}
    content |= {"every": EVERY, "step": STEP}
    for mode in MODES:
        of_mode = {m: by_cell.get((m, mode), by_cell[m, MODES[0]]) for m in [*UPDATED, *MODELS]}
        by_model = {name: tables(frame, known) for name, frame in of_mode.items()}
        groups = ["all", *KNOWN] + (["known users", "new users"] if mode == MODES[0] else [])
        content[mode] = summarise(by_model, groups)
    ours = tables(by_cell[OURS, MODES[0]], known)
    content["groups"] = {
        group: {"ratings": int(of.sum()), "users": int((of > 0).sum())}
        for group in ["all", *KNOWN, "known users", "new users"]
        for of in [ours[f"ratings, {group}"]]
    }
    paths.write_json(given.output, content)
    print(f"{len(cells)} runs: {given.output}")
    return 0
