"""What each ingredient of ``deepcf-plus`` buys, on validation data: ``python -m dlcf.ablation``.

For each split and seed a validation part is cut from train; no test rating is read. Evidence is
computed once, and networks are trained on it with an ingredient switched off, or added step by
step from almost nothing.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from dlcf.analysis.statistics import interval_over_seeds
from dlcf.data import load_movies, load_ratings
from dlcf.evaluation import per_user
from dlcf.metrics import rmse
from dlcf.notebook.experiment import code_version
from dlcf.plus.deepcf_plus import HIDDEN, DeepCFPlus, EvidenceNetwork
from dlcf.plus.evidence import Context, episodes
from dlcf.runtime import paths
from dlcf.runtime.parallel import map_in_processes
from dlcf.splits import train_validation_test
from dlcf.studies.compare import provenance
from dlcf.training import Batch

__all__ = [
    "OFF",
    "RANKING",
    "STEPS",
    "Variant",
    "effect_table",
    "load_ablation",
    "main",
    "run_seed",
    "summarise",
]

SPLITS = ("random", "user-temporal")
SEEDS = (0, 1, 2, 3, 4)
RESULTS_NAME = "ablation.json"
VALIDATION_SIZE = 0.2
USUAL = ("mean", "count", "spread")
MOVIE = ("count", "bias", "spread", "year", "age", "date")
RATERS = ("raters who agree", "raters, signed", "raters who overlap")


@dataclass(frozen=True)
class Variant:
    """A network that lacks something.

    Attributes
    ----------
    without
        Parts switched off, of :meth:`AblatedNetwork.switch_off`.
    data
        ``"all"``; ``"no times"`` or ``"no movies"``: train has no timestamps, or no frame of
        movies (genres, years) is given.
    episodes
        ``"all"``, ``"random"`` or ``"future"``: which training episodes there are.
    """

    without: tuple[str, ...] = ()
    data: str = "all"
    episodes: str = "all"


OFF: dict[str, Variant] = {
    "nothing": Variant(),
    "times of the ratings": Variant(data="no times"),
    "genres and years": Variant(data="no movies"),
    "random episodes": Variant(episodes="future"),
    "future episodes": Variant(episodes="random"),
    "learned attention": Variant(("learned attention",)),
    "fixed kernels": Variant(("kernels",)),
    "the movie's raters": Variant(("raters",)),
    "facts of the movie": Variant(("movie",)),
    "gate": Variant(("gate",)),
    "tower": Variant(("tower",)),
    "embeddings": Variant(("embeddings",)),
}

EVIDENCE = ("user", "movie", "raters", "kernels", "learned attention")
STEPS: dict[str, Variant] = {
    "embeddings, gate and tower": Variant(EVIDENCE, "no times"),
    "+ means and counts": Variant(EVIDENCE[2:], "no times"),
    "+ the movie's raters": Variant(EVIDENCE[3:], "no times"),
    "+ fixed kernels": Variant(EVIDENCE[4:], "no times"),
    "+ learned attention": Variant((), "no times"),
    "+ times of the ratings": Variant(),
}

# Of the ranking: nothing is trained again.
RANKING: dict[str, dict[str, float]] = {
    "nothing": {},
    "rating weights of the item scores": {"rating_weight": 0.0},
    "re-ranking by predicted rating": {"rerank": 0.0},
}


class AblatedNetwork(EvidenceNetwork):
    """The network with parts that say nothing; :meth:`switch_off` names them."""

    silent: tuple[list[int], list[int]] = ([], [])

    def switch_off(self, parts: Iterable[str], names: tuple[list[str], list[str]]) -> None:
        """Silence parts before training.

        Parameters
        ----------
        parts
            ``"embeddings"``, ``"gate"``, ``"tower"``, ``"learned attention"``; and of the features,
            ``"user"`` (mean, count, spread), ``"kernels"`` (the user's others),
            ``"raters"``, and ``"movie"`` (the movie's others).
        names
            Of the features of both sides.
        """
        parts = set(parts)
        user, movie = names
        drop_user = {"user": USUAL, "kernels": tuple(n for n in user if n not in USUAL)}
        drop_movie = {"raters": RATERS, "movie": MOVIE}
        self.silent = (
            [user.index(n) for part in parts & drop_user.keys() for n in drop_user[part]],
            [movie.index(n) for part in parts & drop_movie.keys() for n in drop_movie[part]],
        )
        if "embeddings" in parts:
            _freeze(self.user_embedding)
            _freeze(self.movie_embedding)
        if "gate" in parts:
            _freeze(self.gate)
        if "tower" in parts:  # the output reads what the gate lets through
            self.output = nn.Linear(HIDDEN[0], 1)
            self.tower = nn.Identity()
        if "learned attention" in parts:  # everything goes to the null entry, whose logit is 0
            _freeze(self.attention, bias=-30.0)

    def standardise(self, user: torch.Tensor, movie: torch.Tensor) -> None:
        super().standardise(user, movie)
        self.scale_user[self.silent[0]] = torch.inf
        self.scale_movie[self.silent[1]] = torch.inf


class _Ablated(DeepCFPlus):
    without: tuple[str, ...] = ()

    def _build(self) -> EvidenceNetwork:
        names = self.context.feature_names()
        network = AblatedNetwork(
            self.data.n_users,
            self.data.n_movies,
            (len(names[0]), len(names[1])),
            self.embedding_size,
            self.tower_dropout,
            self.weight_decay,
        )
        network.switch_off(self.without, names)
        return network


class Prepared:
    """A model that knows its ratings but has no network yet, and the evidence of its episodes."""

    def __init__(self, train: pd.DataFrame, movies: pd.DataFrame | None, seed: int) -> None:
        model = _Ablated(seed=seed)
        self.model = model
        self.batches: dict[str, Batch] = {}
        model._fit = self._keep  # type: ignore[method-assign]
        model.fit(train, movies=movies)

    def _keep(self, data: Any, validation: Any, movies: pd.DataFrame | None) -> None:
        model = self.model
        model._take_side_information(movies)
        model._take_ratings(data)
        masks = iter(list(episodes(model.data, model.folds, model.cuts, model.seed)))
        random = itertools.islice(masks, model.folds)
        for name, chosen in (("random", random), ("future", masks)):
            batch = model._batch(
                (Context(model.data.take(visible), model.side), model.data.take(hidden))
                for visible, hidden in chosen
            )
            assert batch is not None, "the data are too few for episodes"
            self.batches[name] = batch
        pairs = zip(self.batches["random"], self.batches["future"], strict=True)
        self.batches["all"] = tuple(torch.cat(pair) for pair in pairs)

    def train(self, variant: Variant) -> DeepCFPlus:
        """A fitted model."""
        model = copy.copy(self.model)
        model.without = variant.without
        model._train(self.batches[variant.episodes], None)
        return model


def run_seed(dataset: str, cell: tuple[str, int]) -> dict[str, dict[str, float]]:
    """All variants on one split and seed.

    Returns
    -------
    dict
        ``off`` and ``steps``: variant -> RMSE; ``ranking``: variant -> NDCG@10, full protocol.
    """
    how, seed = cell
    path = paths.CACHE / "ablation" / _digest() / f"{dataset}-{how}-{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    torch.set_num_threads(1)
    ratings, movies = load_ratings(dataset), load_movies(dataset)
    train, validation, _ = train_validation_test(
        ratings, how, validation_size=VALIDATION_SIZE, seed=seed
    )
    sources = {
        "all": (train, movies),
        "no times": (train.drop(columns="timestamp"), movies),
        "no movies": (train, None),
    }
    found: dict[str, dict[str, float]] = {"off": {}, "steps": {}, "ranking": {}}
    errors: dict[Variant, float] = {}
    wanted = [*OFF.values(), *STEPS.values()]
    for source, frames in sources.items():
        prepared = Prepared(*frames, seed)
        for variant in dict.fromkeys(v for v in wanted if v.data == source):
            model = prepared.train(variant)
            errors[variant] = rmse(validation["rating"], model.predict(validation))
            if variant == OFF["nothing"]:
                found["ranking"] = _ranking(model, train, validation)
    for name, variants in (("off", OFF), ("steps", STEPS)):
        found[name] = {label: errors[variant] for label, variant in variants.items()}
    paths.write_atomically(path, json.dumps(found))
    return found


def _ranking(fitted: DeepCFPlus, train: pd.DataFrame, validation: pd.DataFrame) -> dict[str, float]:
    found = {}
    for label, settings in RANKING.items():
        model = copy.copy(fitted)
        for name, value in settings.items():
            setattr(model, name, value)
        model.__dict__.pop("_item_scores", None)  # they were computed with the old settings
        found[label] = float(per_user(model, train, validation)["ndcg"].mean())
    return found


def summarise(by_seed: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Means over the seeds and differences to the whole model, each ``[mean, low, high]``.

    A difference is positive where the variant's value is higher; its interval is that of the
    paired differences.
    """
    summary: dict[str, Any] = {}
    for part in by_seed[0]:
        summary[part] = {}
        labels = list(by_seed[0][part])
        for position, label in enumerate(labels):
            values = [seed[part][label] for seed in by_seed]
            row = {"value": interval_over_seeds(values)}
            # A step is compared with the one before, everything else with the whole model.
            other = labels[max(position - 1, 0)] if part == "steps" else labels[0]
            if other != label:
                base = [seed[part][other] for seed in by_seed]
                row["difference"] = interval_over_seeds(
                    [a - b for a, b in zip(values, base, strict=True)]
                )
            summary[part][label] = row
    return summary


def load_ablation(path: Path | None = None) -> dict[str, Any]:
    """The committed ablation, or another that :func:`main` wrote.

    Raises
    ------
    FileNotFoundError
        There is none; the message says how to make it.
    """
    path = path or paths.RESULTS / RESULTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run: make ablation")
    return json.loads(path.read_text(encoding="utf-8"))


def effect_table(
    ablation: Mapping[str, Any], split: str, part: str, column: str = "difference"
) -> pd.DataFrame:
    """One part of an ablation on one split.

    Parameters
    ----------
    ablation
        From :func:`load_ablation`.
    split, part
        ``"random"`` or ``"user-temporal"``; ``"off"``, ``"steps"`` or ``"ranking"``.
    column
        ``"value"``: RMSE in stars, or NDCG@10 of ``"ranking"``; ``"difference"``: what is added to
        it, by the row against the row before in ``"steps"`` and against ``"nothing"`` elsewhere.

    Returns
    -------
    DataFrame
        Index the variant; ``mean``, ``low``, ``high`` over the seeds. The row that nothing is
        compared with is left out of differences.
    """
    rows = ablation["splits"][split][part]
    values = {label: row[column] for label, row in rows.items() if column in row}
    return pd.DataFrame.from_dict(values, orient="index", columns=["mean", "low", "high"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dlcf.ablation", description=__doc__)
    parser.add_argument("--dataset", default="ml-latest-small")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--splits", nargs="+", default=list(SPLITS))
    parser.add_argument("--workers", type=int, default=None, help="processes; default: cores")
    parser.add_argument("--output", type=Path, default=paths.RESULTS / RESULTS_NAME)
    options = parser.parse_args(arguments)
    cells = [(how, seed) for how in options.splits for seed in options.seeds]
    found = map_in_processes(partial(run_seed, options.dataset), cells, options.workers, "seeds")
    by_split = {
        how: summarise([f for f, cell in zip(found, cells, strict=True) if cell[0] == how])
        for how in options.splits
    }
    about = provenance(options.dataset, options.seeds) | {"validation size": VALIDATION_SIZE}
    paths.write_json(options.output, {"provenance": about, "splits": by_split})
    print(f"{len(cells)} seeds and splits: {options.output}")
    return 0


def _freeze(module: nn.Module, bias: float = 0.0) -> None:
    for name, parameter in module.named_parameters():
        nn.init.constant_(parameter, bias if name == "bias" else 0.0)
        parameter.requires_grad_(False)


def _digest() -> str:
    return code_version(DeepCFPlus, "ablation", "evaluation", "metrics", "splits")[:20]


if __name__ == "__main__":
    sys.exit(main())
