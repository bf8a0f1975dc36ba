"""Many models, splits and seeds under one protocol: ``python -m dlcf.compare``.

Each model is fitted on each split and seed in a process of its own; what is measured is kept in the
cache, so that a comparison that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
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
from dlcf.notebook.experiment import code_version, fit_cached
from dlcf.ratings import fingerprint
from dlcf.registry import make
from dlcf.runtime import paths
from dlcf.runtime.parallel import map_in_processes
from dlcf.splits import split

__all__ = [
    "Job",
    "calibration_table",
    "compare",
    "count_table",
    "curve_table",
    "interval_table",
    "load_comparison",
    "main",
    "pair_table",
    "provenance",
    "run_job",
    "run_jobs",
    "study",
]

RESULTS_NAME = "comparison.json"
SEEDS = (0, 1, 2, 3, 4)
SPLITS = ("random", "user-temporal")
LIBRARIES = ("torch", "numpy", "pandas", "scipy", "myfm", "implicit")


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
    """Fit and measure.

    Returns
    -------
    dict
        The model's label -> ``rmse``, ``mae``, and for each protocol its list-wise metrics of
        :func:`dlcf.evaluate`. Where `job.weights` names epochs there is an entry for each, named
        ``"deepcf (best epoch)"``.
    """
    model, train, test, _ = job.fit()
    results: dict[str, dict[str, Any]] = {}
    for label, variant in job.variants(model):
        measured: dict[str, Any] = {}
        for protocol in job.protocols:
            found = evaluate(variant, train, test, protocol, job.k, job.threshold)
            measured |= {name: found[name] for name in ("rmse", "mae")}
            measured[protocol] = {name: value for name, value in found.items() if "@" in name}
        results[label] = measured
    return results


def run_jobs(jobs: Sequence[Job], workers: int | None = None, function: Any = run_job) -> list[Any]:
    """Run jobs in parallel processes of one thread each.

    Parameters
    ----------
    jobs
        Start in this order, so put the longest first.
    workers
        Processes; one a core by default.
    function
        What is done with a job: :func:`run_job` or :func:`study`.

    Returns
    -------
    list
        What `function` gives for each job, in the order of `jobs`. The numbers do not depend on
        `workers`.
    """
    return map_in_processes(function, jobs, workers, "fits")


def study(job: Job) -> dict[str, dict[str, Any]]:
    """Fit and measure everything that the comparison shows; done once, then read from the cache.

    Returns
    -------
    dict
        Label -> ``numbers`` (nested names to floats) and the per-user tables ``errors`` and
        ``lists`` for paired tests.
    """
    folder = paths.CACHE / "study" / _digest(job)
    if not (folder / "numbers.json").is_file():
        model, train, test, movies = job.fit()
        numbers = {}
        for index, (label, variant) in enumerate(job.variants(model)):
            numbers[label], errors, lists = measure(
                variant, train, test, movies, job.k, job.threshold
            )
            for name, table in (("errors", errors), ("lists", lists)):
                content = table.to_csv(float_format="%.17g")
                paths.write_atomically(folder / f"{name}-{index}.csv", content)
        paths.write_atomically(folder / "numbers.json", json.dumps(numbers))
    numbers = json.loads((folder / "numbers.json").read_text())
    return {
        label: {
            "numbers": values,
            "errors": pd.read_csv(folder / f"errors-{index}.csv", index_col="userId"),
            "lists": pd.read_csv(folder / f"lists-{index}.csv", index_col="userId"),
        }
        for index, (label, values) in enumerate(numbers.items())
    }


def compare(jobs: Sequence[Job], workers: int | None = None) -> dict[str, Any]:
    """Study all jobs and put them side by side.

    Returns
    -------
    dict
        ``provenance``; and by split, ``models``: label -> numbers, each ``[mean, low, high]`` over
        the seeds (95%, Student's t), and ``pairs``: the paired tests over users of every pair of
        models in RMSE and in NDCG@10 of the full protocol, with p-values corrected by Holm's
        method within each metric.
    """
    found = run_jobs(jobs, workers, study)
    splits: dict[str, Any] = {}
    for how in dict.fromkeys(job.split for job in jobs):
        by_label: dict[str, list[dict[str, Any]]] = {}
        for job, result in zip(jobs, found, strict=True):
            if job.split == how:
                for label, measured in result.items():
                    by_label.setdefault(label, []).append(measured)
        models = {
            label: _over_seeds([one["numbers"] for one in measured])
            for label, measured in by_label.items()
        }
        splits[how] = {"models": models, "pairs": _pairs(by_label)}
    return {"provenance": _provenance(jobs), "splits": splits}


def load_comparison(path: Path | None = None) -> dict[str, Any]:
    """The committed comparison, or another that :func:`main` wrote.

    Raises
    ------
    FileNotFoundError
        There is none; the message says how to make it.
    """
    path = path or paths.RESULTS / RESULTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run: make compare")
    return json.loads(path.read_text(encoding="utf-8"))


def interval_table(comparison: Mapping[str, Any], split: str, *names: str) -> pd.DataFrame:
    """One metric of all models, best first.

    Parameters
    ----------
    comparison
        From :func:`load_comparison`.
    split
        One of its splits.
    *names
        Path of the metric: ``"rmse"``, or ``"full", "ndcg"``, ...

    Returns
    -------
    DataFrame
        Index model; ``mean``, ``low``, ``high``. RMSE and MAE ascend, everything else descends.
    """
    rows = {}
    for model, value in comparison["splits"][split]["models"].items():
        for name in names:
            value = value[name]
        rows[model] = value
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])
    return table.sort_values("mean", ascending=names[0] in ("rmse", "mae"), kind="stable")


def pair_table(comparison: Mapping[str, Any], split: str, metric: str) -> pd.DataFrame:
    """The paired tests of one metric, each pair in both directions.

    Returns
    -------
    DataFrame
        Index (first, second); ``difference``, ``low``, ``high``, ``p_holm``.
    """
    rows = pd.DataFrame(comparison["splits"][split]["pairs"])
    rows = rows[rows["metric"] == metric]
    back = rows.rename(columns={"first": "second", "second": "first"})
    back = back.assign(difference=-rows["difference"], low=-rows["high"], high=-rows["low"])
    both = pd.concat([rows, back]).set_index(["first", "second"])
    return both[["difference", "low", "high", "p_holm"]]


def curve_table(
    comparison: Mapping[str, Any], split: str, models: Sequence[str], metric: str
) -> pd.DataFrame:
    """A list-wise metric of the full protocol by length of the list.

    Returns
    -------
    DataFrame
        ``model``, ``x`` (the length), ``mean``, ``low``, ``high``.
    """
    rows = [
        (model, int(k), *values[metric])
        for model in models
        for k, values in comparison["splits"][split]["models"][model]["at k"].items()
    ]
    return pd.DataFrame(rows, columns=["model", "x", "mean", "low", "high"])


def count_table(
    comparison: Mapping[str, Any], split: str, models: Sequence[str], of: str
) -> pd.DataFrame:
    """RMSE by training ratings of the ``"movie"`` or the ``"user"``.

    Returns
    -------
    DataFrame
        ``model``, ``bin``, ``x`` (its lower end, 0.5 for none), ``mean``, ``low``, ``high``.
    """
    rows = [
        (model, name, max(float(re.split("[-+]", name)[0]), 0.5), *values["rmse"])
        for model in models
        for name, values in comparison["splits"][split]["models"][model][
            f"rmse by ratings of the {of}"
        ].items()
    ]
    table = pd.DataFrame(rows, columns=["model", "bin", "x", "mean", "low", "high"])
    return table.sort_values("x", kind="stable")


def calibration_table(
    comparison: Mapping[str, Any], split: str, model: str, of: str
) -> pd.DataFrame:
    """Means over the seeds of what a model says and what comes of it.

    Parameters
    ----------
    comparison, split, model
        As for :func:`interval_table`.
    of
        ``"strength"`` (outcome: share at or above the threshold) or ``"rating"``.

    Returns
    -------
    DataFrame
        Index the lower end of each bin; ``confidence``, ``outcome``, ``cases``.
    """
    bins = comparison["splits"][split]["models"][model]["calibration"][of]
    rows = {float(low): {k: v[0] for k, v in values.items()} for low, values in bins.items()}
    return pd.DataFrame.from_dict(rows, orient="index").sort_index()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dlcf.compare", description=__doc__)
    parser.add_argument("--dataset", default="ml-latest-small")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--splits", nargs="+", default=list(SPLITS))
    parser.add_argument("--models", nargs="+", default=list(PLAN), choices=list(PLAN))
    parser.add_argument("--workers", type=int, default=None, help="processes; default: cores")
    parser.add_argument("--output", type=Path, default=paths.RESULTS / RESULTS_NAME)
    options = parser.parse_args(arguments)
    jobs = [
        Job(dataset=options.dataset, split=how, seed=seed, label=label, **PLAN[label])
        for label in options.models
        for how in options.splits
        for seed in options.seeds
    ]
    paths.write_json(options.output, compare(jobs, options.workers))
    print(f"{len(jobs)} fits compared: {options.output}")
    return 0


# Label -> what is fitted; the longest first, so that no process is left with it at the end.
PLAN: dict[str, dict[str, Any]] = {
    "deepcf": {"model": "deepcf", "weights": ("last", "best")},
    "deepcf, ranking output": {
        "model": "deepcf",
        "settings": {"ranking_weight": 2.0, "epochs": 4},
        "weights": ("best",),
    },
    "deepcf-plus": {"model": "deepcf-plus"},
    "fm-side": {"model": "fm-side"},
    "fm-implicit": {"model": "fm-implicit"},
    "fm": {"model": "fm"},
    "svdpp": {"model": "svdpp"},
    "ease": {"model": "ease"},
    "mf": {"model": "mf"},
    "ials": {"model": "ials"},
    "item-knn": {"model": "item-knn"},
    "user-knn": {"model": "user-knn"},
    "rp3beta": {"model": "rp3beta"},
    "popular": {"model": "popular"},
    "bias": {"model": "bias"},
    "global-mean": {"model": "global-mean"},
}


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
    return {
        **provenance(first.dataset, [job.seed for job in jobs]),
        "test size": 0.2,
        "k": first.k,
        "threshold": first.threshold,
        "test pairs sha256": tests,
    }


def provenance(dataset: str, seeds: Iterable[int]) -> dict[str, Any]:
    """What numbers were computed with: commit, versions, hardware, seeds, and the data's digest."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted changes": bool(_git("status", "--porcelain", "--", "dlcf")),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {_processor()}",
        "seeds": sorted(set(seeds)),
        "data sha256": {dataset: fingerprint(load_ratings(dataset))},
    }


def _digest(job: Job) -> str:
    """Names a study by the job, the data, and the code of the model and of what measures it."""
    model = make(job.model, seed=job.seed, **job.settings)
    description = {
        "job": asdict(job),
        "config": model.config,
        "data": fingerprint(load_ratings(job.dataset)),
        "code": code_version(type(model)),
        "measures": code_version("beyond", "evaluation", "metrics", "splits"),
        "torch": torch.__version__,
    }
    text = json.dumps(description, sort_keys=True, default=str)
    return f"{job.label or job.model}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(paths.ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
