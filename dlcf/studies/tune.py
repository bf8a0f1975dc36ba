"""The record of tuning: what was tried, on validation data only: ``python -m dlcf.tune``.

`results/tuning.json` holds, for each model, the trials that led to its defaults. A trial is fitted
on the train part of a validation split that is cut from the train part of split seed 1000, and
measured on the validation part; no test rating is read. ``python -m dlcf.tune mf`` runs the trials
of a model again, ``--try '{"factors": 20}'`` adds one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from dlcf.data import load_movies, load_ratings
from dlcf.evaluation import per_user, per_user_errors
from dlcf.explain.faithfulness import measure_faithfulness
from dlcf.models.deepcf import DeepCF
from dlcf.registry import make
from dlcf.runtime import paths
from dlcf.runtime.parallel import map_in_processes
from dlcf.splits import train_validation_test

__all__ = ["RECORD", "SEED", "SPLITS", "main", "run_trial"]

RECORD = paths.RESULTS / "tuning.json"
DATASET = "ml-latest-small"
SEED = 1000  # of the split; the seeds that results are reported for are others
SPLITS = ("random", "user-temporal")


def run_trial(model: str, config: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Measure one configuration on validation data.

    Returns
    -------
    dict
        Split -> ``rmse`` and ``ndcg@10`` (full protocol, threshold 4.0) on the validation part; of
        a network with two attention weights also their ``faithfulness``, see
        :func:`dlcf.explain.measure_faithfulness`.
    """
    torch.set_num_threads(1)
    ratings, movies = load_ratings(DATASET), load_movies(DATASET)
    found = {}
    for how in SPLITS:
        train, validation, _ = train_validation_test(ratings, how, seed=SEED)
        fitted = make(model, **{"seed": 0, **config}).fit(train, movies=movies)
        total = per_user_errors(fitted, validation).sum()
        found[how] = {
            "rmse": round(float((total["squared"] / total["ratings"]) ** 0.5), 5),
            "ndcg@10": round(float(per_user(fitted, train, validation)["ndcg"].mean()), 5),
        }
        if isinstance(fitted, DeepCF):
            agreement = measure_faithfulness(fitted, validation).mean
            found[how]["faithfulness"] = round(agreement, 5)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dlcf.tune", description=__doc__)
    parser.add_argument("models", nargs="+", help="names of models")
    parser.add_argument("--try", dest="new", type=json.loads, action="append", default=[])
    parser.add_argument("--workers", type=int, default=None, help="processes; default: cores")
    options = parser.parse_args(arguments)
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    for model in options.models:
        known = [trial["config"] for trial in record.get(model, {}).get("trials", [])]
        configs = options.new or known
        measured = map_in_processes(partial(run_trial, model), configs, options.workers, model)
        entry = record.setdefault(model, {"trials": []})
        for config, validation in zip(configs, measured, strict=True):
            trial = {"config": config, "validation": validation}
            entry["trials"] = [t for t in entry["trials"] if t["config"] != config] + [trial]
        paths.write_atomically(RECORD, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
