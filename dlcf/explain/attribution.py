"""User or movie? How a prediction is shared out between the two.

:func:`shapley_two_players` is exact for the game of the two embeddings, and
:func:`integrated_gradients` a second opinion; both come from interventions on the model.
:func:`user_share` makes them comparable with attention weights.
"""

from __future__ import annotations

import importlib
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from dlcf.models.base import Floats, Recommender
from dlcf.plus.deepcf_plus import DeepCFPlus
from dlcf.runtime.environment import optional
from dlcf.variants.deepcf import ExplainedDeepCF
from dlcf.variants.networks import rate_embeddings
from dlcf.variants.shapley import cold_coalitions, player_share, shapley

__all__ = ["PLAYER_METHODS", "integrated_gradients", "shapley_two_players", "share", "user_share"]

BASELINES = ("mean", "cold")
PLAYER_METHODS = ("attention", "shapley, mean", "shapley, cold", "integrated gradients")


def shapley_two_players(model: Recommender, pairs: pd.DataFrame, baseline: str = "mean") -> Floats:
    """Exact Shapley values of the user and the movie in each prediction (Shapley, 1953).

    ``phi_u = 1/2 [v({u}) - v({})] + 1/2 [v({u, m}) - v({m})]``, and the same of the movie, in
    stars, ``(n, 2)``. A row sums to the prediction minus that without both.

    Parameters
    ----------
    model, pairs
        Fitted; ``n`` rows of `userId`, `movieId` and, for models that use time, `timestamp`.
    baseline
        What replaces an absent player. ``"mean"``: the mean embedding of the users or movies of
        train, with the attention that it draws; for `ExplainedDeepCF` and known users and movies.
        ``"cold"``: an unknown user or movie; for any model.
    """
    if baseline == "mean":
        values = _embedded(model).coalition_values(pairs)
    elif baseline == "cold":
        values = cold_coalitions(model, pairs)
    else:
        raise ValueError(f"unknown baseline {baseline!r}; choose one of {', '.join(BASELINES)}")
    return np.stack(shapley(values), axis=1)


def integrated_gradients(model: Recommender, pairs: pd.DataFrame, steps: int = 64) -> Floats:
    """Integrated gradients (Sundararajan et al., 2017) of both embeddings, from their means.

    `model` is an `ExplainedDeepCF`, `pairs` ``n`` rows of `userId` and `movieId`, all known. Given
    are, ``(n, 2)``, the sums over the user's and over the movie's embedding, in stars. A row sums
    to the prediction minus that of the two means, up to the error of the Gauss-Legendre quadrature
    of `steps`. Needs `captum`: ``pip install "dlcf[explain]"``.
    """
    embedded = _embedded(model)
    with optional("captum", "integrated gradients are computed", "explain"):
        captum = importlib.import_module("captum.attr")
    users, movies = embedded.embedded_pairs(pairs)
    network = embedded.network
    tables = network.user_embedding.weight.detach(), network.movie_embedding.weight.detach()
    means = tuple(table.mean(dim=0, keepdim=True) for table in tables)
    gradients = captum.IntegratedGradients(partial(rate_embeddings, network))
    parts = []
    for first in range(0, len(pairs), 256):
        rows = slice(first, first + 256)
        inputs = tables[0][users[rows]], tables[1][movies[rows]]
        found = gradients.attribute(inputs, means, n_steps=steps, internal_batch_size=8192)
        parts.append(torch.stack([part.detach().sum(dim=1) for part in found], dim=1))
    return torch.cat(parts).cpu().double().numpy()


def share(values: ArrayLike) -> Floats:
    """The user's share ``|phi_u| / (|phi_u| + |phi_m|)`` in [0, 1] of attributions ``(n, 2)``.

    Comparable with an attention weight on the user. 1/2 where both are 0.
    """
    return player_share(*np.asarray(values, dtype=np.float64).T)


def user_share(model: Recommender, pairs: pd.DataFrame, method: str) -> Floats:
    """The user's share of each prediction by one of `PLAYER_METHODS`, ``(n,)`` in [0, 1].

    ``"shapley, cold"`` is of any model, ``"attention"`` of `deepcf` and `deepcf-plus`, the others
    of `deepcf`.
    """
    if method == "attention":
        if not isinstance(model, (ExplainedDeepCF, DeepCFPlus)):
            raise ValueError(f"{model.name} has no attention weights")
        return model.attention_weights(pairs)[:, 0]
    if method == "integrated gradients":
        return share(integrated_gradients(model, pairs))
    if method not in PLAYER_METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(PLAYER_METHODS)}")
    return share(shapley_two_players(model, pairs, method.removeprefix("shapley, ")))


def _embedded(model: Recommender) -> ExplainedDeepCF:
    if not isinstance(model, ExplainedDeepCF):
        remedy = "use deepcf, or the Shapley values with baseline='cold'"
        raise ValueError(f"{model.name} has no pair of embeddings with attention; {remedy}")
    return model
