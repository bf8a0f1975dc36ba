"""Every model by its name: `make` a fresh one, `load_model` a saved one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import dlcf.fast  # noqa: F401 - fills the hooks of training and scoring
from dlcf.baselines import fm
from dlcf.baselines.knn import ItemKNN, UserKNN
from dlcf.baselines.ranking import EASE, ImplicitALS, RP3Beta
from dlcf.baselines.svdpp import SVDPlusPlus
from dlcf.models.base import FORMAT, Recommender
from dlcf.models.baselines import Bias, GlobalMean, Popular
from dlcf.models.mf import MatrixFactorization
from dlcf.plus.deepcf_plus import DeepCFPlus
from dlcf.related.cdae import CDAE
from dlcf.related.cdl import CollaborativeDL
from dlcf.related.cke import CKE
from dlcf.related.deepconn import DeepCoNN
from dlcf.related.item2vec import Item2Vec
from dlcf.related.mda_cf import MarginalizedCF
from dlcf.related.multvae import MultVAE
from dlcf.related.neumf import NeuMF
from dlcf.related.sasrec import SASRec
from dlcf.runtime.checkpoints import keeping_checkpoints
from dlcf.runtime.parallel import map_in_processes
from dlcf.runtime.saving import DESCRIPTION, read_folder
from dlcf.training import pick_device
from dlcf.variants.deepcf import ExplainedDeepCF

_MODELS: tuple[type[Recommender], ...] = (
    GlobalMean,
    Bias,
    Popular,
    MatrixFactorization,
    SVDPlusPlus,
    ExplainedDeepCF,
    DeepCFPlus,
    ItemKNN,
    UserKNN,
    fm.FactorizationMachine,
    fm.ImplicitFactorizationMachine,
    fm.SideFactorizationMachine,
    ImplicitALS,
    EASE,
    RP3Beta,
    CollaborativeDL,
    MarginalizedCF,
    NeuMF,
    CDAE,
    MultVAE,
    SASRec,
    Item2Vec,
    CKE,
    DeepCoNN,
)
_REGISTRY = {model.name: model for model in _MODELS}


def available() -> list[str]:
    """Names that :func:`make` takes."""
    return list(_REGISTRY)


def make(name: str, **hyper_parameters: Any) -> Recommender:
    """A fresh, unfitted model; `name` is one of :func:`available`.

    The hyper-parameters override the model's defaults. `seed` is taken by every model; those
    without randomness ignore it. ValueError where the name or a hyper-parameter is unknown lists
    the known ones.
    """
    if name not in _REGISTRY:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(_REGISTRY)}")
    model = _REGISTRY[name]
    known = model.hyper_parameters()
    if "seed" not in known:
        hyper_parameters.pop("seed", None)
    unknown = sorted(set(hyper_parameters) - set(known))
    if unknown:
        problem = f"{name} has no hyper-parameter {', '.join(map(repr, unknown))}"
        raise ValueError(f"{problem}; it takes {', '.join(known) or 'none'}")
    return model(**hyper_parameters)


def load_model(folder: str | Path, device: str | None = None) -> Recommender:
    """The fitted model that :meth:`Recommender.save` wrote; it predicts the same numbers.

    A network goes to `device`, such as ``"cpu"`` for one that was fitted on CUDA; by default to the
    device that it was made for. FileNotFoundError where the folder holds no `model.json`,
    ValueError where a file is damaged or of a format that this version does not read.
    """
    arrays, description = read_folder(folder)
    with _suiting(folder):
        if description["format"] != FORMAT:
            raise ValueError(f"its format is {description['format']}, {FORMAT} is read here")
        config = description["config"]
        if device is not None and "device" in config:
            config = {**config, "device": device}
        model = make(description["name"], **config)
    pick_device(getattr(model, "device", "cpu"))  # what it says has a remedy of its own
    with _suiting(folder):
        model.restore(arrays, description)
    return model


@contextmanager
def _suiting(folder: str | Path) -> Iterator[None]:
    """ValueError where a folder holds something else than this version saves."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        problem = f"{Path(folder) / DESCRIPTION} does not suit this version of dlcf ({error!r})"
        raise ValueError(f"{problem}; fit the model and save it again") from error


def fit_together(
    name: str,
    seeds: Sequence[int],
    train: pd.DataFrame,
    validation: pd.DataFrame | None = None,
    movies: pd.DataFrame | None = None,
    **hyper_parameters: Any,
) -> list[Recommender]:
    """Models that differ only in their seeds, fitted at once; in the order of `seeds`.

    Each is what :func:`make` and `fit`, whose arguments the others are, give for its seed on one
    thread. Where torch has more than one thread, as many parallel processes fit them and send them
    back; networks that go to a GPU are fitted one after another.
    """
    models = [make(name, seed=seed, **hyper_parameters) for seed in seeds]
    n_threads = torch.get_num_threads()
    on_gpu = pick_device(getattr(models[0], "device", "cpu")).type != "cpu" if models else False
    fit = partial(_fit, train, validation, movies)
    if n_threads == 1 or len(models) < 2 or on_gpu:
        return [fit(model) for model in models]
    # No more at a time than threads, or they would push each other's weights out of the caches;
    # but those that are left over share the cores with the first, not the last with nobody.
    workers = n_threads + len(models) % n_threads
    return map_in_processes(keeping_checkpoints(fit), models, workers, "fits")


def _fit(train: Any, validation: Any, movies: Any, model: Recommender) -> Recommender:
    """Of this module, so that a process that fits has the hooks which it fills."""
    return model.fit(train, validation, movies)
