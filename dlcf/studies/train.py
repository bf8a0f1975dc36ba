"""Fit one model and save it, alone or started by ``torchrun``."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from dlcf.data import load_movies, load_ratings
from dlcf.metrics import rmse
from dlcf.registry import available
from dlcf.runtime.checkpoints import checkpoints
from dlcf.runtime.distributed import is_first, process_group
from dlcf.runtime.paths import path
from dlcf.runtime.saving import folder_for_model
from dlcf.splits import SPLITS, split
from dlcf.studies.results import DATASET, literal
from dlcf.studies.search import make_tuned
from dlcf.training import pick_device


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, report the error on the test split, save; with ``torchrun``, by all its processes."""
    parser = argparse.ArgumentParser(prog="dlcf train", description=__doc__)
    parser.add_argument("model", choices=available())
    parser.add_argument("--dataset", default=DATASET, help="a name or a folder")
    parser.add_argument("--split", default="random", choices=SPLITS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", type=_setting)
    parser.add_argument("--tuned", nargs="?", const="", metavar="FILE", help="what dlcf tune found")
    parser.add_argument("--output", type=path, required=True, help="folder of the fitted model")
    parser.add_argument("--checkpoints", type=path, help="folder that the run goes on from")
    given = parser.parse_args(arguments)
    folder = given.checkpoints or given.output.with_name(given.output.name + "-checkpoints")
    output = given.output.resolve()
    if output in (folder.resolve(), *folder.resolve().parents):
        parser.error(f"--checkpoints {folder} is in --output; give each a folder of its own")
    set_default_threads()
    try:
        folder_for_model(given.output)
        settings = {"seed": given.seed, **dict(given.set)}
        model = make_tuned(given.model, given.dataset, given.split, given.tuned, **settings)
        pick_device(getattr(model, "device", "cpu"))
        ratings, movies = load_ratings(given.dataset), load_movies(given.dataset)
        train, test = split(ratings, given.split, seed=given.seed)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    with process_group(), checkpoints(folder):
        if is_first():
            logging.basicConfig(format="%(message)s")
            logging.getLogger("dlcf").setLevel(logging.INFO)
        model.fit(train, movies=movies)
        if is_first():
            print(f"test RMSE {rmse(test['rating'], model.predict(test)):.4f}")
            print(f"saved to {model.save(given.output)}")
    return 0


def set_default_threads() -> None:
    """Give torch and NumPy's BLAS as many threads as the environment variable DLCF_THREADS, or 1.

    Sums of floats depend on who shares them.
    """
    n_threads = int(os.environ.get("DLCF_THREADS", "1"))
    torch.set_num_threads(n_threads)
    threadpool_limits(n_threads, "blas")


def _setting(text: str) -> tuple[str, Any]:
    """``epochs=3`` as a pair."""
    name, _, value = text.partition("=")
    return name, literal(value)
