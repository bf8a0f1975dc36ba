"""The record of tuning: what was tried, on validation data only.

With ``--trials``, see :mod:`dlcf.studies.search`. Else `results/tuning.json` holds, for each model,
the trials that led to its defaults. A trial is fitted on the train part of a validation split that
is cut from the train part of split seed 1000, and measured on the validation part; no test rating
is read. ``dlcf tune mf`` runs a model's trials again, ``--try '{"factors": 20}'`` adds one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from filelock import FileLock

from dlcf.data import load_movies, load_ratings
from dlcf.explain.faithfulness import measure_faithfulness
from dlcf.models.deepcf import DeepCF
from dlcf.registry import available, make
from dlcf.runtime import paths
from dlcf.runtime.parallel import map_in_processes
from dlcf.runtime.settings import whole
from dlcf.splits import SPLITS as WAYS
from dlcf.splits import train_validation_test
from dlcf.studies.cache import fit_cached
from dlcf.studies.results import DATASET, SPLITS
from dlcf.studies.search import (
    BEST,
    SPACES,
    judged,
    put_on_record,
    read_record,
    record_of,
    search,
)

RECORD = paths.RESULTS / "tuning.json"
SEED = 1000  # of the split; the seeds that results are reported for are others


def run_trial(model: str, config: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Measure one configuration on validation data.

    By split, ``rmse`` and ``ndcg@10`` (full protocol, threshold 4.0) on the validation part; of a
    network with two attention weights also their ``faithfulness``, see
    :func:`dlcf.explain.faithfulness.measure_faithfulness`.
    """
    torch.set_num_threads(1)
    ratings, movies = load_ratings(DATASET), load_movies(DATASET)
    found = {}
    for how in SPLITS:
        train, validation, _ = train_validation_test(ratings, how, seed=SEED)
        fitted = fit_cached(model, train, movies=movies, **{"seed": 0, **config})
        found[how] = {by: judged(by, fitted, train, validation) for by in BEST}
        if isinstance(fitted, DeepCF):
            found[how]["faithfulness"] = round(measure_faithfulness(fitted, validation).mean, 5)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="dlcf tune", description=__doc__)
    parser.add_argument("models", nargs="+", choices=[*available(), "all"], metavar="MODEL")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--try", dest="new", type=json.loads, action="append", default=[])
    either.add_argument("--trials", type=int, help="how many, of a search")
    parser.add_argument("--workers", type=int, default=None, help="processes; default: cores")
    parser.add_argument("--dataset", default=DATASET, help="to search on: a name or a folder")
    parser.add_argument("--split", default="random", choices=WAYS)
    parser.add_argument("--seed", type=int, default=0, help="of split, sampler and models")
    parser.add_argument("--output", type=paths.path, help="default: results/tuned/DATASET.json")
    given = parser.parse_args(arguments)
    if "all" in given.models:
        given.models = list(SPACES)
    if given.trials is not None:
        return _search_all(given)
    for name in ("dataset", "split", "seed", "output"):
        if getattr(given, name) != parser.get_default(name):
            parser.error(f"--{name} is for a search; give --trials too, such as --trials 30")
    known = {m: [t["config"] for t in entry["trials"]] for m, entry in _read_record().items()}
    plan = {model: given.new or known.get(model, []) for model in given.models}
    for model, configs in plan.items():
        if not configs:
            parser.error(f"no trial of {model} is on record; give one with --try")
        try:
            for config in configs:
                make(model, **config)
        except (TypeError, ValueError) as error:
            parser.error(str(error))
    load_ratings(DATASET)  # once: the processes find it where it then is
    for model, configs in plan.items():
        measured = map_in_processes(partial(run_trial, model), configs, given.workers, model)
        with FileLock(RECORD.with_name(f".{RECORD.name}.lock")):
            record = _read_record()  # again: others may have written while these trials ran
            entry = record.setdefault(model, {"trials": []})
            for config, validation in zip(configs, measured, strict=True):
                trial = {"config": config, "validation": validation}
                entry["trials"] = [t for t in entry["trials"] if t["config"] != config] + [trial]
            paths.write_atomically(RECORD, json.dumps(record, indent=1) + "\n")
    return 0


def _read_record() -> dict[str, Any]:
    return json.loads(RECORD.read_text("utf-8")) if RECORD.is_file() else {}


def _search_all(given: argparse.Namespace) -> int:
    """Search the settings of each model; a bar shows models, or, one at a time, their trials."""
    whole("trials", given.trials, 1)
    given.output = given.output or record_of(given.dataset)
    read_record(given.output)  # what cannot be used is refused before hours of work
    load_ratings(given.dataset)
    if len(given.models) == 1 or given.workers == 1:
        torch.set_num_threads(1)  # as the processes have
        said = [_searched(given, model) for model in given.models]
    else:
        said = map_in_processes(partial(_searched, given), given.models, given.workers, "models")
    for text, failed in dict.fromkeys(said):
        print(text, file=sys.stderr if failed else sys.stdout)
    return int(any(failed for _, failed in said))


def _searched(given: argparse.Namespace, model: str) -> tuple[str, bool]:
    """Search, and put on record; what to say of it, and whether it failed."""
    try:
        found = search(model, given.dataset, given.split, given.trials, given.seed)
    except (ImportError, ValueError) as error:  # the other models are searched nevertheless
        return f"dlcf tune: error: {error}", True
    put_on_record(given.output, given.dataset, given.split, model, found)
    by = [f"{by} {of['best']}, by default {of['defaults']}" for by, of in found["searches"].items()]
    return f"{model}: {'; '.join(by) or 'nothing to search'}", False
