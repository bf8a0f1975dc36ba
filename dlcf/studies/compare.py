"""Many models, splits and seeds under one protocol.

Each model is fitted on each split and seed in a process of its own; what is measured is kept in the
cache, so that a comparison that was cut off goes on where it stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from itertools import combinations
from operator import getitem
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dlcf.analysis.beyond import measure
from dlcf.analysis.cold import describe_split
from dlcf.analysis.statistics import compare_tables, holm, interval_over_seeds
from dlcf.data import load_movies, load_ratings
from dlcf.evaluation import PROTOCOLS, evaluate
from dlcf.models.base import Recommender
from dlcf.models.network import NetworkRecommender
from dlcf.ratings import fingerprint
from dlcf.registry import make
from dlcf.runtime import paths
from dlcf.runtime.parallel import map_in_processes
from dlcf.splits import split
from dlcf.studies.cache import code_version, digest_of, fit_cached
from dlcf.studies.results import INTERVAL, interval_frame, load_results, options, provenance

__all__ = ["Job", "calibration_table", "compare", "count_table", "curve_table", "interval_table"]
__all__ += ["load_comparison", "main", "pair_table", "run_job", "run_jobs", "study"]

RESULTS_NAME = "comparison.json"
TABLES = ("errors", "lists")  # of each study, by user, for paired tests
Results = Mapping[str, Any]  # a comparison, from `load_comparison`


@dataclass(frozen=True)
class Job:
    """One model, fitted on one split and measured under the protocols named.

    `weights` names the epochs to report of a network: ``("last",)``, ``("last", "best")``, ...;
    models without epochs are reported once. `label` is the model's name in the results.
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

    def fit(self) -> tuple[Recommender, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """The fitted model (from the cache where it is there), train, test and movies."""
        torch.set_num_threads(1)
        train, test = split(load_ratings(self.dataset), self.split, seed=self.seed)
        movies = load_movies(self.dataset)
        model = fit_cached(self.model, train, movies=movies, seed=self.seed, **self.settings)
        return model, train, test, movies

    def variants(self, model: Recommender) -> Iterable[tuple[str, Recommender]]:
        """The model under each name that it is reported by, with the weights of that name."""
        label = self.label or self.model
        if not (isinstance(model, NetworkRecommender) and self.weights):
            yield label, model
            return
        for which in self.weights:
            yield f"{label} ({which} epoch)", model.use_weights(which)


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
    """`run_job` or `study` of each job; put the longest first.

    The numbers do not depend on `workers`, processes of one thread each, one a core by default.
    """
    return map_in_processes(function, jobs, workers, "fits")


def study(job: Job) -> dict[str, dict[str, Any]]:
    """Fit and measure everything that the comparison shows; done once, then read from the cache.

    Label -> ``numbers`` (nested names to floats) and the per-user tables ``errors`` and ``lists``.
    """
    folder = paths.CACHE / "study" / _digest(job)
    if not (folder / "numbers.json").is_file():
        model, train, test, movies = job.fit()
        numbers = {}
        for index, (label, variant) in enumerate(job.variants(model)):
            found = measure(variant, train, test, movies, job.k, job.threshold)
            numbers[label], *tables = found
            for name, table in zip(TABLES, tables, strict=True):
                content = table.to_csv(float_format="%.17g")
                paths.write_atomically(folder / f"{name}-{index}.csv", content)
        paths.write_atomically(folder / "numbers.json", json.dumps(numbers))
    numbers = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    return {
        label: {"numbers": values}
        | {n: pd.read_csv(folder / f"{n}-{index}.csv", index_col="userId") for n in TABLES}
        for index, (label, values) in enumerate(numbers.items())
    }


def compare(jobs: Sequence[Job], workers: int | None = None) -> dict[str, Any]:
    """Study all jobs and put them side by side: ``provenance``, and ``splits`` by name.

    Each holds ``models``: label -> numbers, each ``[mean, low, high]`` over the seeds (95%,
    Student's t), and ``pairs``: paired tests over users of all pairs of models in RMSE and in
    NDCG@10 of the full protocol, p-values by Holm's method within each metric.
    """
    found = run_jobs(jobs, workers, study)
    splits: dict[str, Any] = {}
    for how in dict.fromkeys(job.split for job in jobs):
        by_label: dict[str, list[dict[str, Any]]] = {}
        of_split = [result for job, result in zip(jobs, found, strict=True) if job.split == how]
        for label, measured in (item for result in of_split for item in result.items()):
            by_label.setdefault(label, []).append(measured)
        models = {m: _over_seeds([one["numbers"] for one in by_label[m]]) for m in by_label}
        splits[how] = {"models": models, "pairs": _pairs(by_label)}
    return {"provenance": _provenance(jobs), "splits": splits}


def load_comparison(path: Path | None = None) -> dict[str, Any]:
    """The committed comparison, or another that :func:`main` wrote."""
    return load_results(path or paths.RESULTS / RESULTS_NAME, "compare")


def interval_table(comparison: Results, split: str, *names: str) -> pd.DataFrame:
    """One metric of all models, best first: ``mean``, ``low``, ``high``.

    `names` are the path of the metric: ``"rmse"``, or ``"full", "ndcg"``, ... RMSE and MAE ascend,
    everything else descends.
    """
    models = comparison["splits"][split]["models"]
    table = interval_frame({m: reduce(getitem, names, value) for m, value in models.items()})
    return table.sort_values("mean", ascending=names[0] in ("rmse", "mae"), kind="stable")


def pair_table(comparison: Results, split: str, metric: str) -> pd.DataFrame:
    """The paired tests of one metric, each pair in both directions.

    Index (first, second); ``difference``, ``low``, ``high``, ``p_holm``.
    """
    rows = pd.DataFrame(comparison["splits"][split]["pairs"])
    rows = rows[rows["metric"] == metric]
    back = rows.rename(columns={"first": "second", "second": "first"})
    back = back.assign(difference=-rows["difference"], low=-rows["high"], high=-rows["low"])
    both = pd.concat([rows, back]).set_index(["first", "second"])
    return both[["difference", "low", "high", "p_holm"]]


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
    """RMSE by training ratings of the ``"movie"`` or the ``"user"``.

    ``x`` is the lower end of the ``bin``, 0.5 for none.
    """
    rows = [
        (model, name, max(float(re.split("[-+]", name)[0]), 0.5), *values["rmse"])
        for model, name, values in _bins(comparison, split, models, f"rmse by ratings of the {of}")
    ]
    table = pd.DataFrame(rows, columns=["model", "bin", "x", *INTERVAL])
    return table.sort_values("x", kind="stable")


def calibration_table(comparison: Results, split: str, model: str, of: str) -> pd.DataFrame:
    """Means over the seeds of what a model says and what comes of it, by bin.

    `of` is ``"strength"`` (outcome: share at or above the threshold) or ``"rating"``. Index the
    lower end of each bin; ``confidence``, ``outcome``, ``cases``.
    """
    bins = comparison["splits"][split]["models"][model]["calibration"][of]
    rows = {float(low): {k: v[0] for k, v in values.items()} for low, values in bins.items()}
    return pd.DataFrame.from_dict(rows, orient="index").sort_index()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = options("compare", __doc__, RESULTS_NAME, arguments, PLAN)
    jobs = [
        Job(dataset=given.dataset, split=how, seed=seed, label=label, **PLAN[label])
        for label in given.models
        for how in given.splits
        for seed in given.seeds
    ]
    paths.write_json(given.output, compare(jobs, given.workers))
    print(f"{len(jobs)} fits compared: {given.output}")
    return 0


# Label -> what is fitted; the longest first, so that no process is left with it at the end.
PLAN: dict[str, dict[str, Any]] = {
    "deepcf": {"model": "deepcf", "weights": ("last", "best")},
    "deepcf, ranking output": {
        "model": "deepcf",
        "settings": {"ranking_weight": 2.0, "epochs": 4},
        "weights": ("best",),
    },
}
ALONE = (
    "deepcf-plus fm-side fm-implicit fm svdpp ease mf ials item-knn user-knn rp3beta popular bias"
)
PLAN |= {name: {"model": name} for name in [*ALONE.split(), "global-mean"]}


def _over_seeds(values: Sequence[Any]) -> Any:
    """Nested names to ``[mean, low, high]``; a name that a seed lacks is averaged over the rest."""
    if isinstance(values[0], Mapping):
        names = dict.fromkeys(name for value in values for name in value)
        return {name: _over_seeds([v[name] for v in values if name in v]) for name in names}
    return interval_over_seeds(values)


def _pairs(by_label: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = []
    for metric, table in (("rmse", "errors"), ("ndcg", "lists")):
        rows = []
        for first, second in combinations(by_label, 2):
            tables = [[one[table] for one in by_label[label]] for label in (first, second)]
            found = compare_tables(tables[0], tables[1], metric)
            rows.append({"first": first, "second": second, **found.as_dict()})
        for row, corrected in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
            row["p_holm"] = float(corrected)
        tests += rows
    return [
        {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in tests
    ]


def _provenance(jobs: Sequence[Job]) -> dict[str, Any]:
    first = jobs[0]
    tests = {}
    for how, seed in dict.fromkeys((job.split, job.seed) for job in jobs):
        report = describe_split(*split(load_ratings(first.dataset), how, seed=seed))
        tests[f"{first.dataset}, {how}, seed {seed}"] = report.test_sha256
    about = {"test size": 0.2, "k": first.k, "threshold": first.threshold}
    computed = provenance(first.dataset, [job.seed for job in jobs])
    return {**computed, **about, "test pairs sha256": tests}


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
