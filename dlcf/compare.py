"""Many models, splits and seeds under one protocol, in parallel processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import torch
from tqdm import tqdm

from dlcf.data import load_movies, load_ratings
from dlcf.evaluation import PROTOCOLS, evaluate
from dlcf.experiment import fit_cached
from dlcf.models.network import NetworkRecommender
from dlcf.splits import split

__all__ = ["Job", "run_job", "run_jobs"]


@dataclass(frozen=True)
class Job:
    """One model, fitted on one split and measured under every protocol.

    `weights` names the epochs to report of a network: ``("last",)``, ``("last", "best")``, ...;
    models without epochs are reported once.
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


def run_job(job: Job) -> dict[str, dict[str, Any]]:
    """Fit (or load from the cache) and measure.

    Returns
    -------
    dict
        The model's name -> ``rmse``, ``mae``, and for each protocol its list-wise metrics of
        :func:`dlcf.evaluate`. Where `job.weights` names epochs there is an entry for each, named
        ``"deepcf (best epoch)"``.
    """
    torch.set_num_threads(1)
    train, test = split(load_ratings(job.dataset), job.split, seed=job.seed)
    movies = load_movies(job.dataset)
    model = fit_cached(job.model, train, movies=movies, seed=job.seed, **job.settings)
    if not (isinstance(model, NetworkRecommender) and job.weights):
        return {job.model: _measure(model, train, test, job)}
    return {
        f"{job.model} ({which} epoch)": _measure(model.use_weights(which), train, test, job)
        for which in job.weights
    }


def run_jobs(jobs: Sequence[Job], workers: int | None = None) -> list[dict[str, dict[str, Any]]]:
    """Run jobs in parallel processes of one thread each.

    Parameters
    ----------
    jobs
        Start in this order, so put the longest first.
    workers
        Processes; one a core by default.

    Returns
    -------
    list
        What :func:`run_job` gives for each job, in the order of `jobs`. The numbers do not depend
        on `workers`.
    """
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    # A forked child can hang on a lock that a thread of torch held in its parent.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        results = pool.map(run_job, jobs)
        return list(tqdm(results, total=len(jobs), desc="fits", disable=None, leave=False))


def _measure(model: Any, train: Any, test: Any, job: Job) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    for protocol in job.protocols:
        found = evaluate(model, train, test, protocol, job.k, job.threshold)
        measured |= {name: found[name] for name in ("rmse", "mae")}
        measured[protocol] = {name: value for name, value in found.items() if "@" in name}
    return measured
