"""Many models, splits and seeds under one protocol.

Each model is fitted on each split and seed in a process of its own; what is measured is kept in the
cache, so that a comparison that was cut off goes on where it stopped.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dlcf.analysis.beyond import measure, to_the_day
from dlcf.analysis.cold import describe_split
from dlcf.analysis.statistics import compare_all, holm, interval_over_seeds
from dlcf.data import load_movies, load_ratings
from dlcf.evaluation import PROTOCOLS, evaluate
from dlcf.models.base import Recommender
from dlcf.models.network import NetworkRecommender
from dlcf.ratings import fingerprint
from dlcf.registry import make
from dlcf.runtime import paths
from dlcf.runtime.parallel import map_in_processes
from dlcf.splits import split, train_validation_test
from dlcf.studies.cache import code_version, digest_of, fit_cached, kept
from dlcf.studies.results import (
    DATASET,
    INTERVAL,
    SPLITS,
    interval_frame,
    load_results,
    options,
    provenance,
)
from dlcf.studies.search import tuned_settings
from dlcf.studies.tune import SEED as TUNING_SEED

RESULTS_NAME = "comparison.json"
RELATED_NAME = "comparison-related.json"  # beside the strongest of the others
TABLES = ("errors", "lists")  # of each study, by user, for paired tests
PERMUTATIONS = 100_000  # of each test
Results = Mapping[str, Any]  # a comparison, from `load_comparison`


@dataclass(frozen=True)
class Job:
    """One model, fitted on one split and measured under the protocols named.

    `weights` names the epochs to report of a network: ``("last",)``, ``("last", "best")``, ...;
    models without epochs are reported once. `label` is the model's name in the results, `changes`
    are settings of the fitted model to try too, by what is put behind the label. If `days`, times
    are to the day, in train as well: no more than what `fm-side` reads.
    """

    model: str
    dataset: str
    split: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    protocols: tuple[str, ...] = PROTOCOLS
    k: int = 10
    threshold: float = 4.0
    label: str = ""
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    days: bool = False

    def fit(self) -> tuple[Recommender, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """The fitted model (from the cache where it is there), train, test and movies."""
        torch.set_num_threads(1)
        train, test = split(load_ratings(self.dataset), self.split, seed=self.seed)
        if self.days:
            train, test = to_the_day(train), to_the_day(test)
        movies = load_movies(self.dataset)
        model = fit_cached(self.model, train, movies=movies, seed=self.seed, **self.settings)
        return model, train, test, movies

    def variants(self, model: Recommender) -> Iterable[tuple[str, Recommender]]:
        """The model under each name that it is reported by, with the weights of that name."""
        label = self.label or self.model
        if isinstance(model, NetworkRecommender) and self.weights:
            for which in self.weights:
                yield f"{label} ({which} epoch)", model.use_weights(which)
            return
        yield label, model
        for name, values in self.changes.items():
            changed = copy.copy(model)
            vars(changed).update(values)
            yield f"{label}, {name}", changed


def run_job(job: Job) -> dict[str, dict[str, Any]]:
    """Label of :meth:`Job.variants` -> ``rmse``, ``mae``, and by protocol its list metrics."""
    model, train, test, _ = job.fit()
    results: dict[str, dict[str, Any]] = {}
    for label, variant in job.variants(model):
        measured = results[label] = {}
        for protocol in job.protocols:
            found = evaluate(variant, train, test, protocol, job.k, job.threshold)
            measured |= {name: found[name] for name in ("rmse", "mae")}
            measured[protocol] = {name: value for name, value in found.items() if "@" in name}
    return results


def run_jobs(jobs: Sequence[Job], workers: int | None = None, function: Any = run_job) -> list[Any]:
    """`run_job` or `study` of each job in processes of one thread each; put the longest first."""
    return map_in_processes(function, jobs, workers, "fits")


def study(job: Job) -> dict[str, dict[str, Any]]:
    """Fit and measure everything that the comparison shows; done once, then read from the cache.

    Label -> ``numbers`` (nested names to floats) and the per-user tables ``errors`` and ``lists``.
    """
    _, found = kept(paths.CACHE / "studies" / _digest(job), lambda: ({}, _measured(job)))
    for of in found.values():
        of |= {name: pd.DataFrame(of[name]).set_index("userId") for name in TABLES}
    return found


def compare(jobs: Sequence[Job], workers: int | None = None) -> dict[str, Any]:
    """Study all jobs and put them side by side: ``provenance``, and ``splits`` by name.

    Each holds ``models``: label -> numbers, each ``[mean, low, high]`` over the seeds (95%,
    Student's t), but ``over users`` of users drawn anew, as seeds may test the same ratings. And
    ``pairs``: paired tests over users in RMSE and NDCG@10 of the full protocol, but for `OUTDONE`
    also in RMSE of parts of the test set and without times; Holm's p-values within each metric.
    """
    found = run_jobs(jobs, workers, study)
    splits: dict[str, Any] = {}
    for how in dict.fromkeys(job.split for job in jobs):
        by_label: dict[str, list[dict[str, Any]]] = {}
        of_split = [result for job, result in zip(jobs, found, strict=True) if job.split == how]
        for label, measured in (item for result in of_split for item in result.items()):
            by_label.setdefault(label, []).append(measured)
        models = {m: _over_seeds([one["numbers"] for one in by_label[m]]) for m in by_label}
        over_users, pairs = _over_users(by_label)
        models = {m: values | {"over users": over_users[m]} for m, values in models.items()}
        splits[how] = {"models": models, "pairs": pairs}
    return {"provenance": _provenance(jobs), "splits": splits}


def load_comparison(path: Path | None = None) -> dict[str, Any]:
    """The committed comparison, or another that :func:`main` wrote."""
    return load_results(path or paths.RESULTS / RESULTS_NAME, "compare")


def interval_table(comparison: Results, split: str, *names: str) -> pd.DataFrame:
    """One metric of all models, best first: ``mean``, ``low``, ``high``.

    `names` lead to the metric: ``"rmse"``; ``"full", "ndcg"``; ``"parts", "warm pairs", "rmse"``;
    ``"parts", "all", "rmse, no times"``; ... RMSE and MAE ascend, everything else descends.
    """
    models = comparison["splits"][split]["models"]
    table = interval_frame({m: reduce(getitem, names, value) for m, value in models.items()})
    ascending = names[-1].startswith(("rmse", "mae"))
    return table.sort_values("mean", ascending=ascending, kind="stable")


def pair_table(comparison: Results, split: str, metric: str) -> pd.DataFrame:
    """The paired tests of one metric, each pair in both directions.

    Index (first, second); ``difference``, ``low``, ``high``, ``p_holm``; ``at_floor`` is 1 where no
    permutation differed as much, so that the p-value is at most what is said (:func:`with_bound`).
    """
    rows = pd.DataFrame(comparison["splits"][split]["pairs"])
    rows = rows[rows["metric"] == metric]
    least = 1 / (1 + comparison["provenance"].get("permutations", 10_000))
    rows = rows.assign(at_floor=(rows["p_value"] < 1.5 * least).astype(float))
    back = rows.rename(columns={"first": "second", "second": "first"})
    back = back.assign(difference=-rows["difference"], low=-rows["high"], high=-rows["low"])
    both = pd.concat([rows, back]).set_index(["first", "second"])
    return both[["difference", "low", "high", "p_holm", "at_floor"]]


def with_bound(tests: pd.DataFrame) -> pd.DataFrame:
    """:func:`pair_table` for a reader: p-values that are upper bounds begin with "≤"."""
    values = tests[["p_holm", "at_floor"]].to_numpy()
    shown = [f"{'≤ ' if floor else ''}{p:.4f}" for p, floor in values]
    return tests.drop(columns="at_floor").assign(p_holm=shown)


def _bins(comparison: Results, split: str, models: Sequence[str], of: str) -> Iterator[Any]:
    """Model, name of the bin and its numbers, for each bin of each model."""
    for model in models:
        for name, values in comparison["splits"][split]["models"][model][of].items():
            yield model, name, values


def curve_table(
    comparison: Results, split: str, models: Sequence[str], metric: str
) -> pd.DataFrame:
    """A list-wise metric of the full protocol by length of the list, which is column ``x``."""
    bins = _bins(comparison, split, models, "at k")
    rows = [(model, int(k), *values[metric]) for model, k, values in bins]
    return pd.DataFrame(rows, columns=["model", "x", *INTERVAL])


def count_table(comparison: Results, split: str, models: Sequence[str], of: str) -> pd.DataFrame:
    """RMSE by ratings of a ``"movie"`` or ``"user"``; ``x`` is the bin's low end, 0.5 for none."""
    rows = [
        (model, name, max(float(re.split("[-+]", name)[0]), 0.5), *values["rmse"])
        for model, name, values in _bins(comparison, split, models, f"rmse by ratings of the {of}")
    ]
    table = pd.DataFrame(rows, columns=["model", "bin", "x", *INTERVAL])
    return table.sort_values("x", kind="stable")


def calibration_table(comparison: Results, split: str, model: str, of: str) -> pd.DataFrame:
    """Means over the seeds of what a model says and what comes of it, by bin.

    Of the ``"strength"`` (outcome: share at or above the threshold) or ``"rating"``, by low ends.
    """
    bins = comparison["splits"][split]["models"][model]["calibration"][of]
    rows = {float(low): {k: v[0] for k, v in values.items()} for low, values in bins.items()}
    return pd.DataFrame.from_dict(rows, orient="index").sort_index()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    ways, known = (*SPLITS, "global-temporal"), PLAN | RELATED
    given = options("compare", __doc__, RESULTS_NAME, arguments, PLAN, ways, RELATED)
    of = {how: tuned_settings(given.dataset, how, given.tuned) for how in given.splits}

    def settings(label: str, how: str) -> dict[str, Any]:
        found = of[how].get(known[label]["model"], {}) | known[label].get("settings", {})
        return found | PER_SPLIT.get(label, {}).get(how, {})

    jobs = [
        Job(
            dataset=given.dataset,
            split=how,
            seed=seed,
            label=label,
            **{**known[label], "settings": settings(label, how)},
        )
        for label in given.models
        for how in given.splits
        for seed in given.seeds
        if how in SPLITS or label not in OUTDONE or given.models != list(PLAN)
    ]
    taken = {
        f"{job.label}, {job.split}": job.settings for job in jobs if job.model in of[job.split]
    }
    found = compare(jobs, given.workers)
    if taken:
        found["provenance"]["tuned"] = taken
    paths.write_json(given.output, found)
    print(f"{len(jobs)} fits compared: {given.output}")
    return 0


# Label -> what is fitted; the longest first, so that no process is left with it at the end.
PLAN: dict[str, dict[str, Any]] = {
    "deepcf": {"model": "deepcf", "weights": ("last", "best")},
    "deepcf, ranking output": {
        "model": "deepcf", "settings": {"ranking_weight": 2.0, "epochs": 4}, "weights": ("best",),
    },
    "deepcf-plus, days": {"model": "deepcf-plus", "days": True},
}  # fmt: skip
REST = (
    "deepcf-plus fm-side fm-implicit fm svdpp ease mf ials item-knn user-knn rp3beta popular bias"
)
PLAN |= {name: {"model": name} for name in [*REST.split(), "global-mean"]}
PLAN["deepcf-plus"]["changes"] = {
    "not re-ranked": {"rerank": 0.0}, "item-item": {"ranking": "item-item"},
}  # fmt: skip
# What of the lists was chosen for each split by itself, on its validation data.
PLAN |= {"deepcf-plus, per split": {"model": "deepcf-plus"}, "ease, per split": {"model": "ease"}}
PER_SPLIT: dict[str, dict[str, dict[str, Any]]] = {
    "deepcf-plus, per split": {
        "random": {"ranking": "missing"},
        "user-temporal": {"ranking": "next"},
        "global-temporal": {"ranking": "next"},
    },
    "ease, per split": {"user-temporal": {"regularization": 300.0, "rating_weight": 1.0}},
}
# The paper's related work: fitted where it is named. The dot product is tuned by itself.
NINE = ("deepconn", "cke", "neumf", "sasrec", "item2vec", "cdl", "cdae", "multvae", "mda-cf")
RELATED: dict[str, dict[str, Any]] = {name: {"model": name} for name in NINE}
RELATED["neumf, dot"] = {
    "model": "neumf",
    "settings": {"variant": "dot", "factors": 64, "regularization": 0.005, "epochs": 30},
}
# Not fitted on the global-temporal split: each has its like that does better.
OUTDONE = {"deepcf, ranking output", "fm-implicit", "svdpp", "user-knn", "rp3beta", "global-mean"}
OUTDONE |= {"ease, per split", *RELATED}


def _measured(job: Job) -> dict[str, dict[str, Any]]:
    """What :func:`study` returns, as JSON: a table is its columns."""
    model, train, test, movies = job.fit()
    found: dict[str, dict[str, Any]] = {}
    for label, variant in job.variants(model):
        numbers, *tables = measure(variant, train, test, movies, job.k, job.threshold)
        if job.dataset == DATASET:  # on which defaults were chosen
            numbers["apart from tuning"] = _apart_from_tuning(job, variant, train, test)
        columns = [table.reset_index().to_dict("list") for table in tables]
        found[label] = {"numbers": numbers, **dict(zip(TABLES, columns, strict=True))}
    return found


def _apart_from_tuning(
    job: Job, model: Recommender, train: pd.DataFrame, test: pd.DataFrame
) -> dict[str, float]:
    """Measured on the test ratings on which no trial of the tuning was judged, and their share.

    Test sets of other seeds, and of other ways to split, hold some on which trials were.
    """
    ratings = load_ratings(job.dataset)
    parts = [train_validation_test(ratings, how, seed=TUNING_SEED)[1] for how in SPLITS]
    judged = pd.MultiIndex.from_frame(pd.concat(parts)[["userId", "movieId"]])
    apart = ~pd.MultiIndex.from_frame(test[["userId", "movieId"]]).isin(judged)
    # The others are no candidates: they are neither relevant here nor irrelevant.
    found = evaluate(
        model, pd.concat([train, test[~apart]]), test[apart], "full", job.k, job.threshold
    )
    names = {"rmse": "rmse", "ndcg": f"ndcg@{job.k}"}
    return {"share": float(apart.mean())} | {name: found[of] for name, of in names.items()}


def _over_seeds(values: Sequence[Any]) -> Any:
    """Nested names to ``[mean, low, high]``; a name that a seed lacks is averaged over the rest."""
    if isinstance(values[0], Mapping):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _over_seeds([v[name] for v in values if name in v]) for name in names}
    return interval_over_seeds(values)


def _over_users(by_label: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Any, Any]:
    """By label and metric, intervals over users; and the paired tests, as rows."""
    columns = next(iter(by_label.values()))[0]["errors"].columns
    parts = [of.removeprefix("squared") for of in columns if of.startswith("squared")]
    intervals: dict[str, dict[str, list[float]]] = {label: {} for label in by_label}
    tests: list[dict[str, Any]] = []
    strong = [m for m in by_label if re.sub(r" \(.*", "", m) not in OUTDONE] or list(by_label)
    for metric in ["ndcg", *(f"rmse{of}" for of in parts if not of.endswith("day"))]:
        table = "lists" if metric == "ndcg" else "errors"
        labels = by_label if metric in ("rmse", "ndcg") else strong
        tables = {label: [one[table] for one in by_label[label]] for label in labels}
        of_models, of_pairs = compare_all(tables, metric, permutations=PERMUTATIONS)
        for label, interval in of_models.items():
            intervals[label][metric] = [round(v, 5) for v in interval.as_dict().values()]
        corrected = holm([found.p_value for found in of_pairs.values()])
        for ((first, second), found), p in zip(of_pairs.items(), corrected, strict=True):
            row = {"first": first, "second": second, **found.as_dict(), "p_holm": float(p)}
            tests.append({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
    return intervals, tests


def _provenance(jobs: Sequence[Job]) -> dict[str, Any]:
    data, k, threshold = jobs[0].dataset, jobs[0].k, jobs[0].threshold
    tests = {}
    for how, seed in dict.fromkeys((job.split, job.seed) for job in jobs):
        report = describe_split(*split(load_ratings(data), how, seed=seed))
        tests[f"{data}, {how}, seed {seed}"] = report.test_sha256
    about = provenance("comparison", data, [job.seed for job in jobs])
    about |= {"test size": 0.2, "k": k, "threshold": threshold, "permutations": PERMUTATIONS}
    return {**about, "test pairs sha256": tests}


def _digest(job: Job) -> str:
    """Names a study by the job, the data, and the code of the model and of what measures it."""
    model = make(job.model, seed=job.seed, **job.settings)
    description = {
        "job": asdict(job),
        "config": model.config,
        "data": fingerprint(load_ratings(job.dataset)),
        "code": code_version(type(model)),
        "measures": code_version("analysis.beyond", "evaluation", "metrics", "splits"),
        "torch": torch.__version__,
    }
    return f"{job.label or job.model}-{digest_of(description)[:20]}"
