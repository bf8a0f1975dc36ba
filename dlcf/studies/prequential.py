"""Ratings in the order in which they were given: how well each is predicted from those before it.

All models are trained on the earlier ratings, and again every 90 days on all that came before
(:func:`dlcf.evaluation.prequential`). *As trained*, they stay as they are in between: the split of
all ratings by time, with a cut that moves on. *Updated*, a model that can observes the ratings of
every ten minutes before it predicts the next; the others stay as trained there too. *Lists* are
ranked at the first rating of each day, when the ratings of all days before are observed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
EVERY = "90D"
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
# Those that rank, and observe.
LISTS: dict[str, dict[str, Any]] = {
    OURS: {"ranking": "next"},
    "ease": {},
    "ials": {},
    "item-knn": {},
    "user-knn": {},
    "rp3beta": {},
    "popular": {},
}
STEPS = {"as trained": EVERY, "updated": "10min", "lists": "1D"}  # by mode
MODES = ("as trained", "updated")
K, LIKED = 10, 4.0  # of lists: their length, and from how many stars a movie is relevant
# By how many ratings of the user came before the rating.
KNOWN = {"0": (0, 0), "1-5": (1, 5), "6-20": (6, 20), "21+": (21, 10**9)}


def run_cell(dataset: str, cell: tuple[str, str]) -> pd.DataFrame:
    """What a model says in a mode, from the cache where it is there.

    `userId`, `rating`, `predicted` and `known` of the later ratings, in the order of time; and of
    lists the `place` of the movie.
    """
    name, mode = cell
    settings = (LISTS if mode == "lists" else {**MODELS, **UPDATED})[name] | {"seed": 0}
    ratings, movies = load_ratings(dataset), load_movies(dataset)
    model = make(name, **settings)

    def computed() -> tuple[dict[str, Any], dict[str, Any]]:
        torch.set_num_threads(1)
        past, future = split(ratings, "global-temporal")
        found = prequential(model, past, future, EVERY, STEPS[mode], movies, mode == "lists")
        names = ("userId", "rating", "predicted", "known", "place")
        return {name: found[name].to_numpy() for name in names if name in found}, {}

    made_of = {
        "cell": [name, mode, settings, EVERY, STEPS[mode]],
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


def list_tables(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By group, ``ndcg`` of each user: the mean over the user's lists with something to like."""
    liked = found[found["rating"] >= LIKED]
    gain = (liked["place"] <= K) / np.log2(1 + liked["place"])
    lists = gain.groupby([liked["userId"], liked["known"]]).agg(["sum", "size"])
    best = np.cumsum(1 / np.log2(np.arange(2, K + 2)))
    ndcg = (lists["sum"] / best[np.minimum(lists["size"], K) - 1]).rename("ndcg").reset_index()
    groups = {"all": (0, 10**9)} | KNOWN
    return {
        group: ndcg[ndcg["known"].between(*bounds)].groupby("userId")[["ndcg"]].mean()
        for group, bounds in groups.items()
    }


def summarise(by_group: Mapping[str, tuple[str, Mapping[str, pd.DataFrame]]]) -> dict[str, Any]:
    """A metric by group with 95% intervals over users, and our model's difference to each other.

    Of group -> name of the metric, and model -> table: ``models``, model -> group ->
    ``[mean, low, high]``; ``pairs``, group -> other model -> ``[difference, low, high, p]``, ours
    minus the other, p corrected by Holm's method; ``users`` of each group.
    """
    models: dict[str, dict[str, Any]] = {}
    pairs: dict[str, dict[str, Any]] = {}
    users: dict[str, int] = {}
    for group, (metric, by_model) in by_group.items():
        ordered = {OURS: [by_model[OURS]]} | {name: [table] for name, table in by_model.items()}
        intervals, compared = compare_all(ordered, metric, permutations=PERMUTATIONS)
        for name, of in intervals.items():
            rounded = [round(v, 5) for v in (of.mean, of.low, of.high)]
            models.setdefault(name, {})[group] = rounded
        ours = {other: test for (first, other), test in compared.items() if first == OURS}
        corrected = holm([test.p_value for test in ours.values()])
        pairs[group] = {
            other: [round(v, 5) for v in (test.difference, test.low, test.high, float(p))]
            for (other, test), p in zip(ours.items(), corrected, strict=True)
        }
        users[group] = next(iter(ours.values())).users
    return {"models": models, "pairs": pairs, "users": users}


def load_prequential(path: Path | None = None) -> dict[str, Any]:
    """The committed study, or another that :func:`main` wrote."""
    return load_results(path or paths.RESULTS / RESULTS_NAME, "prequential")


def group_table(study: Mapping[str, Any], mode: str) -> pd.DataFrame:
    """RMSE, or NDCG of ``"lists"``, of all models in a mode, best first: models x groups."""
    rows = {m: {g: v[0] for g, v in of.items()} for m, of in study[mode]["models"].items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.sort_values("all", ascending=mode != "lists", kind="stable")


def difference_table(study: Mapping[str, Any], mode: str, group: str) -> pd.DataFrame:
    """Ours minus that of each model: ``mean``, ``low``, ``high``, ``p_holm``; `with_bound`."""
    rows = study[mode]["pairs"][group]
    table = interval_frame({model: row[:3] for model, row in rows.items()})
    p_holm = pd.Series({model: row[3] for model, row in rows.items()})
    # The smallest that Holm's method makes of as many p-values.
    at_floor = p_holm < 1.5 * len(rows) / (1 + PERMUTATIONS)
    return with_bound(table.assign(p_holm=p_holm, at_floor=at_floor))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = options("prequential", __doc__, RESULTS_NAME, arguments, reported=())
    cells = [(name, "lists") for name in LISTS] + [(name, "updated") for name in UPDATED]
    cells += [(name, "as trained") for name in [*MODELS, *UPDATED]]
    found = map_in_processes(partial(run_cell, given.dataset), cells, given.workers, "models")
    by_cell = dict(zip(cells, found, strict=True))
    known = by_cell[OURS, "updated"]["known"]
    content: dict[str, Any] = {"provenance": provenance("prequential", given.dataset, [0])}
    content |= {"every": EVERY, "steps": STEPS}
    for mode in MODES:
        of_mode = {m: by_cell.get((m, mode), by_cell[m, MODES[0]]) for m in [*UPDATED, *MODELS]}
        by_model = {name: tables(frame, known) for name, frame in of_mode.items()}
        groups = ["all", *KNOWN] + (["known users", "new users"] if mode == MODES[0] else [])
        content[mode] = summarise({group: (f"rmse, {group}", by_model) for group in groups})
    lists = {name: list_tables(by_cell[name, "lists"]) for name in LISTS}
    filled = [group for group, of_users in lists[OURS].items() if len(of_users)]
    of_groups = {group: {name: of[group] for name, of in lists.items()} for group in filled}
    content["lists"] = summarise({group: ("ndcg", of) for group, of in of_groups.items()})
    ours = tables(by_cell[OURS, MODES[0]], known)
    content["groups"] = {
        group: {"ratings": int(of.sum()), "users": int((of > 0).sum())}
        for group in ["all", *KNOWN, "known users", "new users"]
        for of in [ours[f"ratings, {group}"]]
    }
    paths.write_json(given.output, content)
    print(f"{len(cells)} runs: {given.output}")
    return 0
