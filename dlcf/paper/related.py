"""What the systems of the related work claim, put to the tests that their papers used.

*One left out*: the latest rating of each user is ranked among a hundred movies that are drawn, as
for NeuMF (He et al., 2017), and among the whole catalogue. *Content*: a tenth of the movies lose
all their ratings, and a tenth of the others' ratings are hidden; models are told nothing of the
movies, their genres, or all that there is: title, genres, year, and what users who rated them in
train called them. *Costs*: what a fit takes on the train part of the random split, by defaults.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dlcf.analysis.statistics import compare_all
from dlcf.data import load_movies, load_ratings, load_tags
from dlcf.evaluation import per_user
from dlcf.metrics import ndcg
from dlcf.models.base import Index, Recommender, top_k
from dlcf.ratings import fingerprint
from dlcf.registry import make
from dlcf.related.content import ContentMixin, with_tags
from dlcf.runtime import paths
from dlcf.runtime.parallel import map_in_processes
from dlcf.runtime.saving import read_folder
from dlcf.splits import split
from dlcf.studies.cache import code_version, digest_of, kept
from dlcf.studies.compare import PERMUTATIONS, PLAN, RELATED
from dlcf.studies.results import SEEDS, load_results, options, provenance

RESULTS_NAME = "related.json"
K, LIKED = 10, 4.0
COLD = 0.1  # of the movies, and of the others' ratings
DRAWS = SEEDS[:1]  # intervals are over users
ONE_OUT: dict[str, dict[str, Any]] = {
    "deepcf-plus": {"ranking": "next"},
    "sasrec": {},
    "neumf": {},
    "neumf, gmf": {"variant": "gmf", "regularization": 0.005, "epochs": 30},
    "neumf, dot": RELATED["neumf, dot"]["settings"],
    "cdae": {},
    "multvae": {},
    "item2vec": {},
    "ials": {},
    "ease": {},
    "popular": {},
}
CONTENT: dict[str, dict[str, Any]] = {
    "deepcf-plus": {},
    "fm-side": {},
    "deepconn": {},
    "mda-cf": {},
    "mda-cf, unrated": {"unrated_weight": 0.1},
    "cke": {},
    "cdl": {},
}
COSTS = (*RELATED, "mf", "fm-side", "ials", "ease", "deepcf", "deepcf-plus")
TOLD = ("nothing", "genres", "all")


@dataclass(frozen=True)
class Cell:
    """One model under one question; `told` is what is said of the movies."""

    question: str
    label: str
    seed: int
    told: str = "all"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, dataset: str) -> pd.DataFrame:
        """By user, numerators and weights for :func:`compare_all`; from the cache where it can."""
        torch.set_num_threads(1)
        ratings, movies = load_ratings(dataset), load_movies(dataset)
        model = make(self.label.partition(",")[0], **{"seed": self.seed, **self.settings})
        made_of = {
            "cell": asdict(self),
            "code": code_version(type(model), "paper.related", "evaluation", "metrics", "splits"),
            "data": [fingerprint(ratings), fingerprint(movies)],
        }
        folder = paths.CACHE / "related" / f"{model.name}-{digest_of(made_of)[:20]}"
        ask = left_out if self.question == "one left out" else by_content

        def computed() -> tuple[dict[str, Any], dict[str, Any]]:
            table = ask(model, ratings, movies, dataset, self).reset_index()
            return {str(name): table[name].to_numpy() for name in table}, {}

        return pd.DataFrame(kept(folder, computed)[0]).set_index("userId")


def left_out(
    model: Recommender, ratings: pd.DataFrame, movies: pd.DataFrame, dataset: str, cell: Cell
) -> pd.DataFrame:
    """HR and NDCG at 10 of each user's latest rating, whatever its stars; see the module."""
    train, test = split(ratings, "leave-last-out", seed=cell.seed)
    model.fit(train, movies=movies)
    lowest = float(test["rating"].min())
    with warnings.catch_warnings():  # of what this shows
        warnings.filterwarnings("ignore", message="sampled candidates")
        found = {p: per_user(model, train, test, p, K, lowest) for p in ("sampled", "full")}
    return pd.concat(
        [of[[name]].add_suffix(f", {p}") for p, of in found.items() for name in ("recall", "ndcg")],
        axis=1,
    )


def by_content(
    model: Recommender, ratings: pd.DataFrame, movies: pd.DataFrame, dataset: str, cell: Cell
) -> pd.DataFrame:
    """Errors on warm and cold movies, and NDCG of lists of either kind alone."""
    generator = np.random.default_rng([cell.seed, 7])
    ids = np.unique(ratings["movieId"])
    cold_ids = generator.choice(ids, round(COLD * len(ids)), replace=False)
    cold = ratings["movieId"].isin(cold_ids)
    hidden = ~cold & (generator.random(len(ratings)) < COLD)
    train, tests = ratings[~cold & ~hidden], {"warm": ratings[hidden], "cold": ratings[cold]}
    frames = {
        "nothing": movies[["movieId"]],
        "genres": movies[["movieId", "genres"]],
        "all": with_tags(movies, load_tags(dataset), train),
    }
    model.fit(train, movies=frames[cell.told])
    tables = []
    for name, test in tests.items():
        squared = (model.predict(test) - test["rating"]) ** 2
        sums = {f"squared, {name}": squared, f"ratings, {name}": 1.0}
        tables.append(test[["userId"]].assign(**sums).groupby("userId").sum())
        lists = per_user(model, train, test, "full", K, LIKED)["ndcg"] if name == "warm" else None
        if name == "cold" and isinstance(model, ContentMixin):
            lists = ranked_cold(model, test, cold_ids)
        if lists is not None:
            tables.append(lists.rename(f"ndcg, {name}").to_frame())
    return pd.concat(tables, axis=1).rename_axis("userId")


def ranked_cold(model: ContentMixin, test: pd.DataFrame, cold_ids: Index) -> pd.Series:
    """NDCG@10 of each user who liked a movie without ratings, where only such are ranked."""
    liked = test[(test["rating"] >= LIKED) & test["userId"].isin(model.user_ids)]
    users, row = np.unique(liked["userId"], return_inverse=True)
    ids, scores = model.score_described(users)
    place = np.flatnonzero(np.isin(ids, cold_ids))
    wanted = np.zeros((len(users), len(ids)), bool)
    wanted[row, np.searchsorted(ids, liked["movieId"])] = True
    order = np.random.default_rng(0).permutation(place)  # of equal scores
    best = order[top_k(scores[:, order], K)]
    gains = np.take_along_axis(wanted, best, axis=1).astype(float)
    ideal = np.arange(K) < wanted.sum(axis=1, keepdims=True)
    return pd.Series(ndcg(gains, ideal.astype(float)), index=pd.Index(users, name="userId"))


def summarise(tables: Mapping[str, Sequence[pd.DataFrame]]) -> dict[str, Any]:
    """Metric -> ``models``, by label ``[mean, low, high]`` over users, and ``pairs`` of labels.

    A pair is ``first; second`` -> ``[difference, low, high, p]``, first minus second.
    """
    columns = next(iter(tables.values()))[0].columns
    found: dict[str, Any] = {}
    for name in columns[~columns.str.startswith("ratings")]:
        metric = name.replace("squared", "rmse")
        wanted = [name, name.replace("squared", "ratings")]
        of = {
            label: [one.loc[one[name].notna(), list(dict.fromkeys(wanted))] for one in of_label]
            for label, of_label in tables.items()
        }
        intervals, compared = compare_all(of, metric, permutations=PERMUTATIONS)
        found[metric] = {
            "models": {
                m: [round(v, 5) for v in i.as_dict().values()] for m, i in intervals.items()
            },
            "pairs": {
                "; ".join(pair): [round(v, 5) for v in (t.difference, t.low, t.high, t.p_value)]
                for pair, t in compared.items()
            },
        }
    return found


def cost(name: str, train: pd.DataFrame, movies: pd.DataFrame) -> dict[str, float]:
    """CPU ``seconds`` of a fit, others beside it, and the ``floats`` that a saved model holds."""
    planned = (PLAN | RELATED)[name]
    model = make(planned["model"], **planned.get("settings", {}))
    began = time.process_time()
    model.fit(train, movies=movies)
    seconds = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / name)
        arrays, _ = read_folder(Path(folder) / name)
    floats = sum(array.size for array in arrays.values() if array.dtype.kind == "f")
    return {"seconds": round(seconds, 2), "floats": floats}


def load_related(path: Path | None = None) -> dict[str, Any]:
    """The committed study, or another that :func:`main` wrote."""
    return load_results(path or paths.RESULTS / RESULTS_NAME, "related")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = options("related", __doc__, RESULTS_NAME, arguments, reported=())
    cells = [
        Cell("one left out", m, seed, "all", of) for m, of in ONE_OUT.items() for seed in DRAWS
    ]
    cells += [
        Cell("content", label, seed, told, settings)
        for label, settings in CONTENT.items()
        for told in TOLD
        for seed in DRAWS
    ]
    measure = partial(Cell.measure, dataset=given.dataset)
    tables = map_in_processes(measure, cells, given.workers, "fits")
    by_group: dict[str, dict[str, list[pd.DataFrame]]] = {}
    for cell, table in zip(cells, tables, strict=True):
        of_content = cell.question == "content"  # of which each model is compared with itself
        group = by_group.setdefault(cell.label if of_content else cell.question, {})
        group.setdefault(cell.told if of_content else cell.label, []).append(table)
    found = {group: summarise(of_group) for group, of_group in by_group.items()}
    content = {"provenance": provenance("related", given.dataset, DRAWS)}
    content |= {"one left out": found.pop("one left out"), "content": found}
    train, _ = split(load_ratings(given.dataset), "random", seed=DRAWS[0])
    movies = load_movies(given.dataset)
    measured = map_in_processes(
        partial(cost, train=train, movies=movies), COSTS, given.workers, "costs"
    )
    content["costs"] = {"ratings": len(train), **dict(zip(COSTS, measured, strict=True))}
    paths.write_json(given.output, content)
    print(f"{len(cells)} fits: {given.output}")
    return 0
