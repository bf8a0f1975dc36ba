"""What one explanation costs, by method: the section "explain" of :mod:`bench.measure`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import pandas as pd

from dlcf.data import load_movies, load_ratings
from dlcf.explain.attribution import user_share
from dlcf.explain.faithfulness import milliseconds
from dlcf.explain.history import history_attributions, history_methods
from dlcf.models.base import Recommender
from dlcf.registry import make
from dlcf.splits import split

__all__ = ["PLAYERS", "explanation_costs"]

PAIRS = 20  # of different users
HISTORY = (20, 60)  # ratings that such a user has
FEW = 40  # users, to test the harness
# Method, as the summary of notebook 5 names it -> model, and its method of `user_share`.
PLAYERS = {
    "attention of the paper": ("deepcf", "attention"),
    "attention trained to be faithful": ("faithful", "attention"),
    "gate of deepcf-plus": ("deepcf-plus", "attention"),
    "Shapley values": ("deepcf", "shapley, mean"),
    "integrated gradients": ("deepcf", "integrated gradients"),
}
READERS = ("deepcf-plus", "item-knn", "ease")


def explanation_costs(
    dataset: str, clock: Callable[[], float] = time.perf_counter, quick: bool = False
) -> dict[str, dict[str, Any]]:
    """Milliseconds that each method takes for one prediction: the median over some pairs.

    The cost depends on the shape of a model and not on what it learned, so networks are trained
    for one epoch. Of each pair the faster of two calls counts: the first may fill caches.

    Parameters
    ----------
    dataset
        Name of the data set.
    clock
        Seconds.
    quick
        Few users and pairs, to test the harness.

    Returns
    -------
    dict
        Method to ``ms`` and ``pairs``; of methods over a history also ``ratings``, its median
        length. Integrated gradients only where captum is installed.
    """
    ratings, movies = load_ratings(dataset), load_movies(dataset)
    if quick:
        ratings = ratings[ratings["userId"] <= FEW]
    train, test = split(ratings)
    models = _models(train, movies)
    length = train["userId"].value_counts()
    known = test["userId"].map(length).between(*HISTORY) & test["movieId"].isin(train["movieId"])
    pairs = test[known].drop_duplicates("userId").head(2 if quick else PAIRS)

    def cost(call: Callable[[pd.DataFrame], object]) -> dict[str, Any]:
        singles = [pairs.iloc[[row]] for row in range(len(pairs))]
        times = [milliseconds(partial(call, pair), 1, 2, clock) for pair in singles]
        return {"ms": median(times), "pairs": len(pairs)}

    found = {
        name: cost(partial(user_share, models[model], method=method))
        for name, (model, method) in PLAYERS.items()
        if method != "integrated gradients" or find_spec("captum")
    }
    for name in READERS:
        for method in history_methods(models[name]):
            taken = cost(partial(_history, models[name], method))
            taken["ratings"] = float(length[pairs["userId"]].median())
            found[f"history: {name}, {method}"] = taken
    return found


def _models(train: pd.DataFrame, movies: pd.DataFrame) -> dict[str, Recommender]:
    """One of each kind, in its real shape."""
    once = {"epochs": 1, "seed": 0}
    network = {**once, "batch_size": 1024}
    made = {
        "deepcf": make("deepcf", **network),
        "faithful": make("deepcf", faithful_weight=0.3, **network),
        "deepcf-plus": make("deepcf-plus", **once),
        "item-knn": make("item-knn"),
        "ease": make("ease"),
    }
    return {name: model.fit(train, movies=movies) for name, model in made.items()}


def _history(model: Recommender, method: str, pair: pd.DataFrame) -> pd.DataFrame:
    user, movie = (int(pair[column].iloc[0]) for column in ("userId", "movieId"))
    return history_attributions(model, user, [movie], method)
