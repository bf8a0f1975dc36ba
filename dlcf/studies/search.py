"""Settings that suit a data set: searched on validation data, recorded, and used again.

Every model has the same number of trials, within `spaces.toml`: its defaults, then what Optuna's
TPE sampler (Bergstra et al., 2011) proposes from those before. What a trial measured is kept in the
cache, and a search always begins at its first trial, so that one that was cut off, or is given more
trials, goes the way of one that was not, and fits only what is missing.
"""

from __future__ import annotations

import json
import time
import tomllib
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from dlcf.data import is_available, load_movies, load_ratings
from dlcf.data.archives import DATASETS
from dlcf.evaluation import per_user
from dlcf.metrics import rmse
from dlcf.models.base import Recommender
from dlcf.ratings import fingerprint
from dlcf.registry import make
from dlcf.runtime import paths
from dlcf.runtime.environment import git_state, library_versions, optional
from dlcf.splits import train_validation_test
from dlcf.studies.cache import LIBRARIES, code_version, digest_of, fit_key, kept

Named = str | Path  # a data set or a file
BEST: dict[str, Literal["minimize", "maximize"]] = {"rmse": "minimize", "ndcg@10": "maximize"}
# Model -> by what it is judged -> setting -> a range, or a list of choices.
SPACES: dict[str, dict[str, dict[str, Any]]] = {}
for _space in tomllib.loads(Path(__file__).with_name("spaces.toml").read_text("utf-8"))["space"]:
    for _model in _space["models"]:
        SPACES.setdefault(_model, {})[_space["judged_by"]] = _space["settings"]


def make_tuned(
    name: str, dataset: Named, split: str = "random", record: Named | None = "", **settings: Any
) -> Recommender:
    """A fresh model with the settings that ``dlcf tune --trials`` found on a data set.

    Parameters
    ----------
    name, settings
        As for :func:`dlcf.registry.make`; the settings override what was found.
    dataset, split
        A data set's name or folder, and the split by which validation data were cut. ValueError
        where it was not tuned on these very ratings and this split says what to run.
    record
        The file of what was found, where it is not :func:`record_of` the data set; None stands for
        none, so that the model has its defaults.
    """
    return make(name, **(tuned_settings(dataset, split, record, name).get(name, {}) | settings))


def tuned_settings(
    dataset: Named, split: str, record: Named | None = "", model: str = ""
) -> dict[str, dict[str, Any]]:
    """Model -> what was found; as :func:`make_tuned`, of any models where `model` is not given."""
    if record is None:
        return {}
    is_available(dataset)  # ValueError for an unknown name, on which nothing can be tuned
    path = paths.path(record) if record else record_of(dataset)
    remedy = f"run: dlcf tune {model or 'MODEL'} --dataset {dataset} --split {split} --trials 30"
    if not (tuned := read_record(path)):
        raise ValueError(f"nothing was tuned on {dataset}: {path} is missing; {remedy}")
    if (of_ratings := tuned.get(fingerprint(load_ratings(dataset)))) is None:
        raise ValueError(f"{path} was found on other ratings than {dataset} holds; {remedy}")
    found = {name: of["settings"] for name, of in of_ratings.get(split, {}).items()}
    if not found or model not in ("", *found):
        raise ValueError(f"{path} has nothing of {model or 'models'}, split {split}; {remedy}")
    return found


def record_of(dataset: Named) -> Path:
    """The usual file of what was found on a data set; a folder goes by its own name."""
    name = str(dataset) if dataset in DATASETS else paths.path(dataset).resolve().name
    return paths.TUNED / f"{paths.file_name(name)}.json"


def read_record(path: Path) -> dict[str, Any]:
    """Digest of ratings -> split -> model -> what :func:`search` found; {} for no file."""
    try:
        return json.loads(path.read_text("utf-8"))["tuned"] if path.exists() else {}
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{path} is no record of dlcf tune --trials; name another file") from None


def put_on_record(path: Path, dataset: str, split: str, model: str, found: dict[str, Any]) -> None:
    """Add what :func:`search` found to a file that others write to, in the place of its like."""
    about = git_state() | {"libraries": library_versions((*LIBRARIES, "optuna"))}
    digest = fingerprint(load_ratings(dataset))
    with FileLock(path.with_name(f".{path.name}.lock")):
        tuned = read_record(path)
        tuned.setdefault(digest, {}).setdefault(split, {})[model] = {**found, "provenance": about}
        paths.write_json(path, {"tuned": tuned})


def search(model: str, dataset: str, split: str, trials: int, seed: int = 0) -> dict[str, Any]:
    """The ``settings`` of a model that are best in so many trials, and ``searches``: the trials.

    A trial is fitted on the train part of :func:`train_validation_test`, measured on the validation
    part; `seed` is of split, sampler and model. ValueError where no trial could be fitted.
    """
    with optional("optuna", "dlcf tune --trials searches", "tune"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    train, validation, _ = train_validation_test(load_ratings(dataset), split, seed=seed)
    movies = load_movies(dataset)
    defaults, found, searches = make(model).config, dict[str, Any](), dict[str, Any]()
    for by, space in SPACES.get(model, {}).items():
        tpe = optuna.samplers.TPESampler(seed=seed)
        study = optuna.create_study(sampler=tpe, direction=BEST[by])
        study.enqueue_trial({name: defaults[name] for name in space})
        within = {name: _distribution(optuna.distributions, given) for name, given in space.items()}
        tried: list[dict[str, Any]] = []
        for _ in tqdm(range(trials), f"{model}, {by}", disable=None, leave=False):
            trial = study.ask(within)
            candidate = make(model, **{"seed": seed, **found, **trial.params})
            measured = _measure(candidate, by, train, validation, movies)
            failed = None if by in measured else optuna.trial.TrialState.FAIL
            study.tell(trial, measured.get(by), failed)
            tried.append({"settings": trial.params, **measured})
        if not (fitted := [one for one in tried if by in one]):
            raise ValueError(f"no trial of {model} could be fitted: {tried[0]['failed']}")
        best = (min if BEST[by] == "minimize" else max)(fitted, key=lambda one: one[by])
        found |= best["settings"]
        searches[by] = {"best": best[by], "defaults": tried[0].get(by), "trials": tried}
    return {"settings": found, "seed": seed, "searches": searches}


def judged(by: str, model: Recommender, train: pd.DataFrame, validation: pd.DataFrame) -> float:
    """``rmse``, or ``ndcg@10`` (full protocol, threshold 4.0), of a fitted model, rounded."""
    if by == "rmse":
        return round(rmse(validation["rating"], model.predict(validation)), 5)
    return round(float(per_user(model, train, validation)["ndcg"].mean()), 5)


def _distribution(of: Any, given: Any) -> Any:
    """Optuna's of a list of choices, or of a range."""
    if isinstance(given, list):
        return of.CategoricalDistribution(given)
    return (of.IntDistribution if isinstance(given["low"], int) else of.FloatDistribution)(**given)


def _measure(
    model: Recommender, by: str, train: pd.DataFrame, validation: pd.DataFrame, movies: pd.DataFrame
) -> dict[str, Any]:
    """What `model` is judged by, or why it ``failed``, and the ``seconds``; kept in the cache."""
    measures = [by, fingerprint(validation), code_version("evaluation", "metrics")]
    key = digest_of({"fit": fit_key(model, train, None, movies), "measures": measures})

    def compute() -> tuple[dict[str, Any], dict[str, Any]]:
        began = time.perf_counter()
        try:
            model.fit(train, movies=movies)
            found: dict[str, Any] = {by: judged(by, model, train, validation)}
        except ValueError as error:
            found = {"failed": str(error)}
        return {}, {**found, "seconds": round(time.perf_counter() - began, 2)}

    return kept(paths.CACHE / "trials" / f"{model.name}-{key[:20]}", compute)[1]
