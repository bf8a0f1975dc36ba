"""What each ingredient of ``deepcf-plus`` buys, on validation data.

For each split and seed a validation part is cut from train; no test rating is read. Evidence is
computed once, and networks are trained on it with an ingredient switched off, or added step by
step. The steps begin at the paper's network, at its best epoch on a tenth of train.
"""

from __future__ import annotations

import copy
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
from dlcf.models.base import Interactions
from dlcf.models.deepcf import DeepCF
from dlcf.plus.deepcf_plus import HIDDEN, DeepCFPlus, EvidenceNetwork
from dlcf.plus.evidence import episodes
from dlcf.ratings import fingerprint
from dlcf.runtime import paths
from dlcf.runtime.parallel import map_in_processes
from dlcf.splits import train_validation_test
from dlcf.studies.cache import code_version, kept
from dlcf.studies.results import interval_frame, load_results, options, provenance

RESULTS_NAME = "ablation.json"
VALIDATION_SIZE = 0.2
USUAL = ("mean", "count", "spread")
RATERS = ("raters who agree", "raters, signed", "raters who overlap")


@dataclass(frozen=True)
class Variant:
    """What a network lacks: parts that :meth:`AblatedNetwork.switch_off` names, data, episodes.

    `data` are ``"all"``, ``"no times"`` (of ratings) or ``"no movies"`` (no genres and years);
    `episodes` are ``"all"``, ``"random"`` or ``"future"`` ones.
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

PAPER = "the paper's network"
EVIDENCE = ("user", "movie", "raters", "kernels", "learned attention")
STEPS: dict[str, Variant] = {
    "embeddings, gate and tower": Variant(EVIDENCE, "no times"),
    "+ means and counts": Variant(EVIDENCE[2:], "no times"),
    "+ the movie's raters": Variant(EVIDENCE[3:], "no times"),
    "+ fixed kernels": Variant(EVIDENCE[4:], "no times"),
    "+ learned attention": Variant((), "no times"),
    "+ times of the ratings": Variant(),
}

# Of the ranking: nothing is trained again. Lists answer the question that the split asks.
RANKING: dict[str, dict[str, Any]] = {
    "nothing": {},
    "re-ranking by predicted rating": {"rerank": 0.0},
    "the ranker": {"ranking": "item-item"},
}
QUESTION = {"random": "missing"}  # elsewhere what is next


class AblatedNetwork(EvidenceNetwork):
    """The network with parts that say nothing; :meth:`switch_off` names them."""

    silent: tuple[list[int], list[int]] = ([], [])

    def switch_off(self, parts: Iterable[str], names: tuple[list[str], list[str]]) -> None:
        """Silence parts before training.

        They are ``"embeddings"``, ``"gate"``, ``"tower"``, ``"learned attention"``; and of the
        features, whose `names` on both sides are given, ``"user"`` (mean, count, spread),
        ``"kernels"`` (the user's others), ``"raters"``, and ``"movie"`` (the movie's others).
        """
        parts = set(parts)
        user, movie = names
        drop_user = {"user": USUAL, "kernels": tuple(n for n in user if n not in USUAL)}
        drop_movie = {"raters": RATERS, "movie": tuple(n for n in movie if n not in RATERS)}
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


class AblatedDeepCFPlus(DeepCFPlus):
    """The model, which keeps the evidence of its episodes to train variants on."""

    network_class = AblatedNetwork
    without: tuple[str, ...] = ()

    def build_network(self, data: Interactions) -> EvidenceNetwork:
        network = super().build_network(data)
        assert isinstance(network, AblatedNetwork)
        network.switch_off(self.without, self.context.feature_names())
        return network

    def _fit(self, data: Interactions, validation: Any, movies: pd.DataFrame | None) -> None:
        self.prepare(data, movies)
        self._learn_to_rank()
        masks = list(episodes(self.data, self.folds, self.cuts, self.seed))
        random, future, new = masks[: self.folds], masks[self.folds : -1], masks[-1:]
        kinds = {"all": masks, "random": random + new, "future": future + new}
        self.batches = {kind: self.hidden_ratings(of) for kind, of in kinds.items()}
        self.train_on(self.batches["all"])

    def variant(self, wanted: Variant) -> AblatedDeepCFPlus:
        """A model with parts switched off, or of some episodes; this one where nothing differs."""
        if not wanted.without and wanted.episodes == "all":
            return self
        model = copy.copy(self)
        model.without = wanted.without
        model.train_on(self.batches[wanted.episodes])
        return model


def run_seed(dataset: str, cell: tuple[str, int]) -> dict[str, dict[str, float]]:
    """All variants on one split and seed; done once, then read from the cache.

    ``off`` and ``steps``: variant -> RMSE; ``ranking``: variant -> NDCG@10, full protocol.
    """
    how, seed = cell
    ratings, movies = load_ratings(dataset), load_movies(dataset)
    measures = "studies.ablation", "evaluation", "metrics", "splits"
    code = code_version(DeepCFPlus, DeepCF, *measures)
    digests = "-".join(digest[:20] for digest in (code, fingerprint(ratings), fingerprint(movies)))
    folder = paths.CACHE / "ablation" / digests / f"{how}-{seed}"
    return kept(folder, lambda: ({}, _measured(ratings, movies, how, seed)))[1]


def _measured(ratings: pd.DataFrame, movies: pd.DataFrame, how: str, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    parts = train_validation_test(ratings, how, validation_size=VALIDATION_SIZE, seed=seed)
    train, validation, _ = parts
    untimed = train.drop(columns="timestamp")
    sources = {"all": (train, movies), "no times": (untimed, movies), "no movies": (train, None)}
    ranking: dict[str, float] = {}
    errors: dict[Variant, float] = {}
    wanted = [*OFF.values(), *STEPS.values()]
    for source, (frame, of_movies) in sources.items():
        whole = AblatedDeepCFPlus(seed=seed, ranking=QUESTION.get(how, "next"))
        whole.fit(frame, movies=of_movies)
        for variant in dict.fromkeys(v for v in wanted if v.data == source):
            model = whole.variant(variant)
            errors[variant] = rmse(validation["rating"], model.predict(validation))
            if variant == OFF["nothing"]:
                ranking = _ranking(model, train, validation)
    off, steps = ({k: errors[variant] for k, variant in kind.items()} for kind in (OFF, STEPS))
    paper = DeepCF(seed=seed, weights="best").fit(train)
    steps = {PAPER: rmse(validation["rating"], paper.predict(validation))} | steps
    return {"off": off, "steps": steps, "ranking": ranking}


def _ranking(fitted: DeepCFPlus, train: pd.DataFrame, validation: pd.DataFrame) -> dict[str, float]:
    found = {}
    for label, settings in RANKING.items():
        model = copy.copy(fitted)
        for name, value in settings.items():
            setattr(model, name, value)
        found[label] = float(per_user(model, train, validation)["ndcg"].mean())
    return found


def summarise(by_seed: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Means over the seeds and differences to the whole model, each ``[mean, low, high]``.

    A difference is positive where the variant's value is higher; its interval is that of the
    paired differences.
    """
    summary: dict[str, Any] = {}
    for part, first in by_seed[0].items():
        table = pd.DataFrame([seed[part] for seed in by_seed], columns=list(first))
        # A step is compared with the one before, everything else with the whole model.
        base = table.shift(axis=1) if part == "steps" else table.iloc[:, [0]].to_numpy()
        differences = table - base
        summary[part] = {
            label: {"value": interval_over_seeds(table[label].tolist())}
            | ({"difference": interval_over_seeds(differences[label].tolist())} if place else {})
            for place, label in enumerate(table)
        }
    return summary


def load_ablation(path: Path | None = None) -> dict[str, Any]:
    """The committed ablation, or another that :func:`main` wrote."""
    return load_results(path or paths.RESULTS / RESULTS_NAME, "ablation")


def effect_table(
    ablation: Mapping[str, Any], split: str, part: str, column: str = "difference"
) -> pd.DataFrame:
    """One part of an ablation on one split: ``mean``, ``low``, ``high`` of each variant.

    Parts are ``"off"``, ``"steps"`` and ``"ranking"``. Columns are ``"value"``, RMSE in stars or
    NDCG@10 of ``"ranking"``; and ``"difference"``, what is added to it: by a step against the one
    before, elsewhere against ``"nothing"``, which is itself left out.
    """
    rows = ablation["splits"][split][part]
    return interval_frame({label: row[column] for label, row in rows.items() if column in row})


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = options("ablation", __doc__, RESULTS_NAME, arguments)
    cells = [(how, seed) for how in given.splits for seed in given.seeds]
    measured = map_in_processes(partial(run_seed, given.dataset), cells, given.workers, "seeds")
    found = dict(zip(cells, measured, strict=True))
    by_split = {s: summarise([found[s, seed] for seed in given.seeds]) for s in given.splits}
    about = provenance("ablation", given.dataset, given.seeds)
    about |= {"validation size": VALIDATION_SIZE}
    paths.write_json(given.output, {"provenance": about, "splits": by_split})
    print(f"{len(cells)} seeds and splits: {given.output}")
    return 0


def _freeze(module: nn.Module, bias: float = 0.0) -> None:
    for name, parameter in module.named_parameters():
        nn.init.constant_(parameter, bias if name == "bias" else 0.0)
        parameter.requires_grad_(False)
